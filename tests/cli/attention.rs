//! `run attention` against sums written here, and what it says to bad input.

use crate::files::{Folder, T, lookback, read, stderr};
use std::collections::BTreeMap;

const B: usize = 2;
const M: usize = 9;
const N: usize = 14;
const H: usize = 2;
const D: usize = 8;

/// Values that bf16 holds.
fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| ((phase + 0.37 * i as f64).sin() * 128.0).round() / 128.0).collect()
}

struct Tensors {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

fn data() -> Tensors {
    Tensors { q: wave(1.0, B * M * H * D), k: wave(2.0, B * N * D), v: wave(3.0, B * N * D) }
}

impl Tensors {
    fn files(&self) -> Vec<(&'static str, T)> {
        vec![
            ("q", T::bf16(&[B, M, H, D], &self.q)),
            ("k", T::bf16(&[B, N, 1, D], &self.k)),
            ("v", T::bf16(&[B, N, 1, D], &self.v)),
        ]
    }

    /// `o` and `lse`, where `weight` is what multiplies the exponential of key `j` for query `i` of row `b`.
    fn sums(&self, scale: f64, weight: &dyn Fn(usize, usize, usize) -> f64) -> [Vec<f64>; 2] {
        let (mut o, mut lse) = (vec![0.0; B * M * H * D], vec![0.0; B * M * H]);
        for row in 0..B * M * H {
            let (b, i) = (row / H / M, row / H % M);
            let mut sum = 0.0;
            for j in 0..N {
                let key = (b * N + j) * D;
                let dot: f64 = (0..D).map(|d| self.q[row * D + d] * self.k[key + d]).sum();
                let w = weight(b, i, j) * (scale * dot).exp();
                sum += w;
                (0..D).for_each(|d| o[row * D + d] += w * self.v[key + d]);
            }
            o[row * D..][..D].iter_mut().for_each(|o| *o /= sum);
            lse[row] = sum.ln();
        }
        [o, lse]
    }
}

fn call(name: &str, tensors: &[(&str, T)], set: &[&str]) -> (Folder, std::path::PathBuf, std::process::Output) {
    let folder = Folder::new(name);
    let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
    let paths = [&input, &output].map(|path| path.to_str().expect("utf-8"));
    let mut args = vec!["run", "attention", "--in", paths[0], "--out", paths[1]];
    set.iter().for_each(|s| args.extend(["--set", s]));
    let done = lookback(&args);
    (folder, output, done)
}

fn run(name: &str, tensors: &[(&str, T)], set: &[&str]) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let (_folder, output, done) = call(name, tensors, set);
    assert!(done.status.success(), "{name}: {}", stderr(&done));
    read(&output).into_iter().collect()
}

fn close(name: &str, got: &BTreeMap<String, (Vec<usize>, Vec<f64>)>, want: [Vec<f64>; 2]) {
    assert_eq!((&got["o"].0[..], &got["lse"].0[..]), (&[B, M, H, D][..], &[B, M, H][..]), "{name}");
    for (key, want, most) in [("o", &want[0], 6e-3), ("lse", &want[1], 1e-4)] {
        for (i, (got, want)) in got[key].1.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= most, "{name}: {key}[{i}] is {got}, the sum is {want}");
        }
    }
}

#[test]
fn masks_agree_with_sums_over_keys() {
    let data = data();
    let files = data.files();
    let scale = 1.0 / (D as f64).sqrt();
    let seen = |sees: &dyn Fn(usize, usize, usize) -> bool| {
        let weight = |b: usize, i: usize, j: usize| if sees(b, i, j) { 1.0 } else { 0.0 };
        data.sums(scale, &weight)
    };
    // Query i stands at position i + N - M.
    let causal = |i: usize, j: usize| j <= i + N - M;
    close("full", &run("attend-full", &files, &[]), seen(&|_, _, _| true));
    close("causal", &run("attend-causal", &files, &["mask=causal", "out=f32"]), seen(&|_, i, j| causal(i, j)));
    let after = run("attend-after", &files, &["mask=anti_causal", "offset=2"]);
    close("after", &after, seen(&|_, i, j| j > i + 2));
    let window = run("attend-window", &files, &["mask=window", "left=3", "right=1", "sink_tokens=2"]);
    close("window", &window, seen(&|_, i, j| j < 2 || (j + 3 >= i + N - M && j <= i + N - M + 1)));
    let with = |name: &'static str, tensor: T| [files.clone(), vec![(name, tensor)]].concat();
    let prefix = run("attend-prefix", &with("prefix_len", T::i32(&[B], &[12, 0])), &["mask=prefix"]);
    close("prefix", &prefix, seen(&|b, i, j| causal(i, j) || (b == 0 && j < 12)));
    let mask: Vec<u8> = (0..B * N).map(|j| u8::from(j % 3 != 1)).collect();
    let hidden = run("attend-hidden", &with("key_mask", T::u8(&[B, N], &mask)), &["mask=causal"]);
    close("hidden", &hidden, seen(&|b, i, j| causal(i, j) && (b * N + j) % 3 != 1));
    let rows: Vec<i32> = (0..B * M).flat_map(|row| [0, 1, row as i32 % 4 + 2, 9]).collect();
    let intervals = run("attend-rows", &with("intervals", T::i32(&[B, M, 4], &rows)), &["mask=intervals"]);
    close("intervals", &intervals, seen(&|b, i, j| j < 1 || ((b * M + i) % 4 + 2..9).contains(&j)));
    close("scale", &run("attend-scale", &files, &["scale=0.5"]), data.sums(0.5, &|_, _, _| 1.0));
}

#[test]
fn rows_that_see_nothing_are_empty() {
    let files = data().files();
    let out = run("attend-nothing", &files, &["mask=causal", "offset=-3"]);
    for row in 0..B * M * H {
        let empty = row / H % M < 3;
        assert_eq!(out["lse"].1[row] == f64::NEG_INFINITY, empty, "row {row}");
        assert!(!empty || out["o"].1[row * D..][..D].iter().all(|o| *o == 0.0), "row {row}");
    }
}

fn refused(name: &str, tensors: &[(&str, T)], set: &[&str], says: &[&str]) {
    let (_folder, output, done) = call(name, tensors, set);
    let text = stderr(&done);
    assert_eq!(done.status.code(), Some(2), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| !line.starts_with("device: ")).collect();
    assert_eq!(errors.len(), 1, "one line, not:\n{text}");
    for word in says {
        assert!(errors[0].contains(word), "`{}` does not say `{word}`", errors[0]);
    }
    assert!(!output.exists(), "an output was written");
}

#[test]
fn bad_input_is_named() {
    let files = data().files();
    let with = |name: &'static str, tensor: T| [files.clone(), vec![(name, tensor)]].concat();
    let zeros = |shape: &[usize]| T::f32(shape, &vec![0.0; shape.iter().product()]);
    let single = [("q", zeros(&[1, 2, 1, 8])), ("k", zeros(&[1, 2, 1, 8])), ("v", zeros(&[1, 2, 1, 8]))];
    refused("attend-f32", &single, &[], &["attention", "f32", "f16 and bf16"]);
    refused(
        "attend-dim",
        &[
            ("q", T::bf16(&[1, 2, 1, 6], &[0.0; 12])),
            ("k", T::bf16(&[1, 2, 1, 6], &[0.0; 12])),
            ("v", T::bf16(&[1, 2, 1, 8], &[0.0; 16])),
        ],
        &[],
        &["head_dim", "8"],
    );
    refused("attend-word", &files, &["mask=diagonal"], &["`mask`", "anti_causal", "diagonal"]);
    refused("attend-left", &files, &["left=3"], &["`left`", "mask=window"]);
    refused("attend-cap", &files, &["softcap=0"], &["softcap", "from", "1024"]);
    refused("attend-out", &files, &["out=f64"], &["`out`", "same, f32"]);
    refused("attend-offset", &files, &["offset=1073741824"], &["offset", "1073741824"]);
    refused("attend-prefix-none", &files, &["mask=prefix"], &["`prefix_len`"]);
    refused(
        "attend-prefix-long",
        &with("prefix_len", T::i32(&[B], &[0, 15])),
        &["mask=prefix"],
        &["`prefix_len`", "15"],
    );
    refused("attend-prefix-few", &with("prefix_len", T::i32(&[3], &[0; 3])), &["mask=prefix"], &["`prefix_len`", "2"]);
    refused(
        "attend-rows-3",
        &with("intervals", T::i32(&[B, M, 3], &[0; B * M * 3])),
        &["mask=intervals"],
        &["`intervals`", "4"],
    );
    refused("attend-mask-short", &with("key_mask", T::u8(&[B, M], &[0; B * M])), &[], &["`key_mask`", "[B,S]"]);
    let starts = T::i32(&[2], &[0, M as i32]);
    refused(
        "attend-packed-rows",
        &[with("cu_seqlens_q", starts.clone()), vec![("cu_seqlens_k", starts.clone())]].concat(),
        &[],
        &["`cu_seqlens_q`", "B = 2"],
    );
    refused("attend-packed-one", &with("cu_seqlens_q", starts), &[], &["`cu_seqlens_k`", "missing"]);
}
