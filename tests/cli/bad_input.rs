//! Bad input: one clear line, exit status 2, no output file.

use crate::files::{Folder, T, command, lookback, stderr};

fn refused(name: &str, tensors: &[(&str, T)], set: &[&str], says: &[&str]) {
    let folder = Folder::new(name);
    let input = folder.write("in.safetensors", tensors);
    refused_file(&folder, &input, set, says);
}

fn refused_file(folder: &Folder, input: &std::path::Path, set: &[&str], says: &[&str]) {
    let output = folder.path("out.safetensors");
    let mut args =
        vec!["run", "gated_scan", "--in", input.to_str().expect("utf-8"), "--out", output.to_str().expect("utf-8")];
    for s in set {
        args.extend(["--set", s]);
    }
    let done = lookback(&args);
    let text = stderr(&done);
    assert_eq!(done.status.code(), Some(2), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| !l.starts_with("device: ")).collect();
    assert_eq!(errors.len(), 1, "one line, not:\n{text}");
    for word in says {
        assert!(errors[0].contains(word), "`{}` does not say `{word}`", errors[0]);
    }
    assert!(!output.exists(), "an output was written");
}

fn f32s(shape: &[usize]) -> T {
    T::f32(shape, &vec![0.5; shape.iter().product()])
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (a, b) = (("a", f32s(&[1, 4, 3])), ("b", f32s(&[1, 4, 3])));
    refused("missing", std::slice::from_ref(&a), &[], &["`b`", "missing"]);
    refused("shape", &[("a", f32s(&[1, 5, 3])), b.clone()], &[], &["`b`", "[B,T,D]", "[1, 4, 3]"]);
    refused("rank", &[a.clone(), ("b", f32s(&[4, 3]))], &[], &["`b`", "[B,T,D]", "[4, 3]"]);
    refused("dtype", &[a.clone(), ("b", T::i32(&[1, 4, 3], &[0; 12]))], &[], &["`b`", "i32"]);
    refused("mixed", &[a.clone(), ("b", T::bf16(&[1, 4, 3], &[0.0; 12]))], &[], &["`b`", "bf16", "f32"]);
    refused("unknown", &[a.clone(), b.clone(), ("c", f32s(&[1]))], &[], &["`c`", "the inputs are"]);
    refused("h0", &[a.clone(), b.clone(), ("h0", f32s(&[2, 3]))], &[], &["`h0`", "[2, 3]"]);
    refused("flags", &[a, b, ("flags", T::u8(&[1, 5], &[0; 5]))], &[], &["`flags`", "[1, 5]"]);
}

#[test]
fn lengths_that_are_not_lengths_are_named() {
    let tensors = |cu: T| [("a", f32s(&[1, 4, 3])), ("b", f32s(&[1, 4, 3])), ("cu_seqlens", cu)];
    refused("nan", &tensors(T::f32(&[3], &[0.0, f64::NAN, 4.0])), &[], &["`cu_seqlens`", "i32", "f32"]);
    refused("decreasing", &tensors(T::i32(&[4], &[0, 3, 2, 4])), &[], &["cu_seqlens", "[2]", "2"]);
    refused("overrun", &tensors(T::i32(&[3], &[0, 2, 5])), &[], &["cu_seqlens", "[2]", "5"]);
    refused("first", &tensors(T::i32(&[3], &[1, 2, 4])), &[], &["cu_seqlens", "[0]", "1"]);
    let two_rows = [("a", f32s(&[2, 4, 3])), ("b", f32s(&[2, 4, 3])), ("cu_seqlens", T::i32(&[2], &[0, 4]))];
    refused("rows", &two_rows, &[], &["cu_seqlens"]);
    refused("alone", &tensors(T::i32(&[1], &[0])), &[], &["cu_seqlens", "2"]);
}

#[test]
fn attributes_that_do_not_fit_are_named() {
    let tensors = [("a", f32s(&[1, 4, 3])), ("b", f32s(&[1, 4, 3]))];
    refused("split-nan", &tensors, &["split=NaN"], &["`split`", "NaN"]);
    refused("split-big", &tensors, &["split=4"], &["split", "4"]);
    refused("split-negative", &tensors, &["split=-1"], &["`split`", "-1"]);
    refused("log", &tensors, &["log=maybe"], &["`log`", "maybe"]);
    refused("attribute", &tensors, &["chunk=4"], &["`chunk`", "the attributes are"]);
    refused("no-equals", &tensors, &["split"], &["key=value", "`split`"]);
    refused("newline", &tensors, &["sp\nlit=1"], &["`sp\\nlit`"]);
    refused("long", &tensors, &[&"x".repeat(1 << 16)], &["key=value"]);
    refused("twice", &tensors, &["split=1", "split=2"], &["`split`", "twice"]);
}

#[test]
fn files_that_are_not_safetensors_are_named() {
    let folder = Folder::new("files");
    let whole = folder.write("whole.safetensors", &[("a", f32s(&[1, 4, 3])), ("b", f32s(&[1, 4, 3]))]);
    let bytes = std::fs::read(&whole).expect("file");
    let cut = folder.path("cut.safetensors");
    for length in [0, 1, 7, 8, 9, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..length]).expect("file");
        refused_file(&folder, &cut, &[], &["cut.safetensors", "not a safetensors file"]);
    }
    refused_file(&folder, &folder.path("absent.safetensors"), &[], &["absent.safetensors"]);
}

#[test]
fn unknown_operations_and_devices_are_named() {
    let done = lookback(&["run", "gated_skan", "--in", "x", "--out", "y"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("`gated_skan`") && stderr(&done).contains("gated_scan"), "{}", stderr(&done));
    let done = lookback(&["info", "--device", "tpu"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("tpu"), "{}", stderr(&done));
}

#[test]
fn numbers_that_are_none_are_named_as_written() {
    let rows = T::f32(&[2, 3], &[0.5; 6]);
    let norm: &[(&str, T)] = &[("x", rows.clone())];
    let loss: &[(&str, T)] = &[("logits", rows), ("labels", T::i32(&[2], &[0, 1]))];
    let folder = Folder::new("numbers");
    for (operation, tensors, set, says) in [
        ("rms_norm", norm, "eps=nan", "`eps` must be a finite number from 0, got `nan`"),
        ("rms_norm", norm, "eps=-1", "got `-1`"),
        ("rms_norm", norm, "eps=1e39", "got `1e39`"),
        ("cross_entropy", loss, "scale=inf", "`scale` must be a finite number, got `inf`"),
    ] {
        let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
        let (input, output) = (input.to_str().expect("utf-8"), output.to_str().expect("utf-8"));
        let done = lookback(&["run", operation, "--in", input, "--out", output, "--set", set]);
        assert_eq!(done.status.code(), Some(2), "{}", stderr(&done));
        assert!(stderr(&done).contains(says), "{}", stderr(&done));
    }
}

#[test]
fn outputs_that_cannot_be_written_are_named() {
    let folder = Folder::new("outputs");
    let input = folder.write("in.safetensors", &[("b", f32s(&[1, 4, 3]))]);
    let (output, nowhere) = (folder.path("out"), folder.path("none/out"));
    let [input, output, nowhere] = [&input, &output, &nowhere].map(|path| path.to_str().expect("utf-8"));
    let cases: [(&[&str], &str); 3] = [
        (&["--out", nowhere], nowhere),
        (&["--out", output, "--counters", nowhere, "--device", "emulated"], nowhere),
        (&["--out", output, "--counters", output, "--device", "emulated"], "--counters"),
    ];
    for (files, says) in cases {
        let done = lookback(&[&["run", "gated_scan", "--in", input], files].concat());
        let text = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}");
        assert_eq!(text.lines().filter(|l| !l.starts_with("device: ")).count(), 1, "{text}");
        assert!(!std::path::Path::new(output).exists(), "an output was written");
    }
}

#[test]
fn a_wrong_device_in_the_environment_is_named() {
    let done = command().arg("info").env("LOOKBACK_DEVICE", "tpu").output().expect("the program runs");
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("LOOKBACK_DEVICE") && stderr(&done).contains("`tpu`"), "{}", stderr(&done));
}
