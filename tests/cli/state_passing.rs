//! `linear_attention` and `gated_scan` of a sequence that is dealt to ranks: the results of one device.

use crate::files::{Folder, T, command, lookback, read, stderr};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}

/// Arguments of an operation; `set` are words parted by blanks.
fn arguments(operation: &str, input: &Path, out: &Path, set: &str) -> Vec<String> {
    let [input, out] = [input, out].map(|path| path.to_str().expect("utf-8"));
    let mut args: Vec<String> = ["run", operation, "--in", input, "--out", out].map(String::from).into();
    set.split_whitespace().for_each(|word| args.extend(["--set".into(), word.into()]));
    args
}

fn run(folder: &Folder, operation: &str, input: &Path, set: &str) -> PathBuf {
    let out = folder.path("out");
    let done = command().args(arguments(operation, input, &out, set)).output().expect("runs");
    assert!(done.status.success(), "{operation} {set}: {}", stderr(&done));
    out
}

/// Whether two files hold the same tensors but for rounding.
fn same(folder: &Folder, operation: &str, input: &Path, common: &str, dealt: &str) {
    let whole = read(&run(folder, operation, input, common));
    let parts = read(&run(folder, operation, input, &format!("{common} {dealt}")));
    let names = |of: &std::collections::HashMap<String, (Vec<usize>, Vec<f64>)>| {
        let mut names: Vec<String> = of.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&whole), names(&parts), "{operation} {dealt}");
    for (name, (shape, want)) in whole {
        let (found, got) = &parts[&name];
        assert_eq!(*found, shape, "{operation} {dealt}: {name}");
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(
                (got - want).abs() < 2e-5 * (1.0 + want.abs()),
                "{operation} {common} {dealt}: {name}[{at}] {got} {want}"
            );
        }
    }
}

const WAYS: [&str; 5] = [
    "ranks=4 schedule=serial",
    "ranks=3 schedule=allgather",
    "ranks=4 schedule=pipelined blocks=2",
    // More ranks than tokens of most documents, and the default schedule.
    "ranks=16",
    "schedule=serial",
];

fn linear(folder: &Folder, starts: &[i32]) -> PathBuf {
    let [b, t, h, k, v] = [if starts.is_empty() { 2 } else { 1 }, 37, 4, 8, 6];
    let n = if starts.is_empty() { b } else { starts.len() - 1 };
    let floats = |phase: f64, shape: &[usize]| T::f32(shape, &wave(phase, shape.iter().product()));
    let g: Vec<f64> = wave(4.0, b * t * h).iter().map(|x| 0.1 * x - 0.2).collect();
    let flags: Vec<u8> = (0..b * t).map(|i| u8::from(i % 11 == 5)).collect();
    let mut all = vec![
        ("q", floats(1.0, &[b, t, h, k])),
        ("k", floats(2.0, &[b, t, h, k])),
        ("v", floats(3.0, &[b, t, h, v])),
        ("g", T::f32(&[b, t, h], &g)),
        ("s0", floats(5.0, &[n, h, k, v])),
        ("flags", T::u8(&[b, t], &flags)),
    ];
    if !starts.is_empty() {
        all.push(("cu_seqlens", T::i32(&[starts.len()], starts)));
    }
    folder.write("linear", &all)
}

#[test]
fn linear_attention_on_ranks_is_that_of_one() {
    let folder = Folder::new("dealt-linear");
    for starts in [&[][..], &[0, 9, 9, 30, 37]] {
        let input = linear(&folder, starts);
        for way in WAYS {
            for mode in ["mode=causal", "mode=split split=2"] {
                same(&folder, "linear_attention", &input, mode, way);
            }
        }
        same(&folder, "linear_attention", &input, "mode=reverse", WAYS[0]);
        same(&folder, "linear_attention", &input, "mode=bidirectional", WAYS[2]);
    }
    // Sums of positive keys.
    let [t, h, k, v] = [21, 2, 8, 4];
    let positive = |phase, width| {
        T::f32(&[1, t, h, width], &wave(phase, t * h * width).iter().map(|x| 1.2 + x).collect::<Vec<_>>())
    };
    let input = folder.write("in", &[("q", positive(1.0, k)), ("k", positive(2.0, k)), ("v", positive(3.0, v))]);
    for way in &WAYS[..2] {
        same(&folder, "linear_attention", &input, "normalize=0.5", way);
    }
}

fn scan(folder: &Folder, starts: &[i32]) -> PathBuf {
    let [b, t, d] = [if starts.is_empty() { 2 } else { 1 }, 41, 12];
    let n = if starts.is_empty() { b } else { starts.len() - 1 };
    let a: Vec<f64> = wave(1.0, b * t * d).iter().map(|x| 0.8 + 0.2 * x).collect();
    let flags: Vec<u8> = (0..b * t).map(|i| [0, 0, 1, 0, 2, 0, 0][i % 7]).collect();
    let mut all = vec![
        ("a", T::f32(&[b, t, d], &a)),
        ("b", T::f32(&[b, t, d], &wave(2.0, b * t * d))),
        ("h0", T::f32(&[n, d], &wave(3.0, n * d))),
        ("flags", T::u8(&[b, t], &flags)),
    ];
    if !starts.is_empty() {
        all.push(("cu_seqlens", T::i32(&[starts.len()], starts)));
    }
    folder.write("scan", &all)
}

#[test]
fn gated_scans_on_ranks_are_those_of_one() {
    let folder = Folder::new("dealt-scan");
    for starts in [&[][..], &[0, 0, 13, 41]] {
        let input = scan(&folder, starts);
        for way in WAYS {
            same(&folder, "gated_scan", &input, "split=7", way);
        }
        same(&folder, "gated_scan", &input, "", WAYS[1]);
    }
}

#[test]
fn states_between_processes_are_those_between_threads() {
    let folder = Folder::new("dealt-processes");
    for (operation, input) in
        [("linear_attention", linear(&folder, &[0, 9, 30, 37])), ("gated_scan", scan(&folder, &[]))]
    {
        for way in &WAYS[..2] {
            let ranks = &way[6..7];
            let threads = fs::read(run(&folder, operation, &input, way)).expect("a result");
            let out = folder.path("processes");
            let program = command().get_program().to_owned();
            let mut launched = command();
            launched.args(["launch", "-n", ranks, "--"]).arg(program).args(arguments(operation, &input, &out, way));
            let done = launched.output().expect("runs");
            let said = stderr(&done);
            assert!(done.status.success() && said.matches("all are here").count().to_string() == ranks, "{said}");
            assert!(fs::read(out).expect("a result") == threads, "{operation} {way}");
        }
    }
}

#[test]
fn what_cannot_be_dealt_is_refused() {
    let folder = Folder::new("dealt-refused");
    let (linear, scan, out) = (linear(&folder, &[]), scan(&folder, &[]), folder.path("out"));
    for (operation, input, set, words) in [
        ("linear_attention", &linear, "ranks=0", "`ranks`"),
        ("linear_attention", &linear, "ranks=65", "`ranks`"),
        ("gated_scan", &scan, "ranks=two", "`ranks`"),
        ("gated_scan", &scan, "ranks=2 schedule=ring", "`schedule`"),
        ("gated_scan", &scan, "ranks=2 blocks=2", "`blocks` wants schedule=pipelined"),
        ("gated_scan", &scan, "ranks=2 schedule=pipelined blocks=0", "blocks"),
        ("gated_scan", &scan, "ranks=2 schedule=pipelined blocks=13", "blocks"),
        ("gated_scan", &scan, "blocks=2", "`blocks` wants ranks"),
        ("linear_attention", &linear, "timeout=3", "`timeout` wants ranks"),
        ("linear_attention", &linear, "ranks=2 timeout=0", "`timeout`"),
        ("linear_attention", &linear, "ranks=2 transport=pigeons", "`transport`"),
        ("linear_attention", &linear, "ranks=2 read=shifted", "shifted reads"),
        ("linear_attention", &linear, "ranks=2 mode=prefix_state", "prefixes"),
        ("linear_attention", &linear, "ranks=2 schedule=pipelined blocks=5", "blocks"),
        ("linear_attention", &linear, "ranks=2 schedule=pipelined normalize=0.5", "normaliser"),
        ("linear_attention", &linear, "ranks=2 mode=split normalize=0.5", "normaliser"),
    ] {
        let args = arguments(operation, input, &out, set);
        let done = lookback(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{operation} {set}: {said}");
        assert!(said.contains(words) && !out.exists(), "{operation} {set}: {said}");
    }
}
