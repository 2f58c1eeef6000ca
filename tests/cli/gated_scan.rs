//! `run gated_scan` against a recurrence written here, for every option.

use crate::files::{Folder, T, lookback, read, stderr};

const B: usize = 2;
const LEN: usize = 37;
const D: usize = 10;

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from((phase + 0.37 * i as f64).sin() as f32)).collect()
}

/// The decay of row, token, channel.
type Decay<'a> = &'a dyn Fn(usize, usize, usize) -> f64;

/// The recurrence, one channel and one sequence at a time; gives `h` and the state after the last token in its direction.
struct Scan<'a> {
    a: Decay<'a>,
    b: &'a [f64],
    h0: Option<&'a [f64]>,
    flags: Option<&'a [u8]>,
    split: usize,
    /// Sequences as (row, first token, end, state row).
    sequences: Vec<(usize, usize, usize, usize)>,
}

impl Scan<'_> {
    fn run(&self, states: usize) -> (Vec<f64>, Vec<f64>) {
        let mut h = vec![0.0; self.b.len()];
        let mut last = vec![0.0; states * D];
        for &(row, first, end, n) in &self.sequences {
            for d in 0..D {
                let forward = d < self.split;
                let mut state = self.h0.map_or(0.0, |h0| h0[n * D + d]);
                let tokens: Vec<usize> = if forward { (first..end).collect() } else { (first..end).rev().collect() };
                for t in tokens {
                    let at = (row * LEN + t) * D + d;
                    let cut = self.flags.is_some_and(|f| f[row * LEN + t] & (if forward { 1 } else { 2 }) != 0);
                    state = if cut { 0.0 } else { (self.a)(row, t, d) * state } + self.b[at];
                    h[at] = state;
                }
                last[n * D + d] = state;
            }
        }
        (h, last)
    }
}

fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * largest, "{what}: element {i} is {g}, the recurrence has {w}");
    }
}

fn run(name: &str, tensors: &[(&str, T)], set: &[&str]) -> (Vec<f64>, Vec<f64>) {
    let folder = Folder::new(name);
    let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
    let mut args =
        vec!["run", "gated_scan", "--in", input.to_str().expect("utf-8"), "--out", output.to_str().expect("utf-8")];
    for s in set {
        args.extend(["--set", s]);
    }
    let done = lookback(&args);
    assert!(done.status.success(), "{name}: {}", stderr(&done));
    let mut outputs = read(&output);
    let (h, last) = (outputs.remove("h").expect("h"), outputs.remove("h_final").expect("h_final"));
    assert_eq!(h.0, [if set.contains(&"varlen") { 1 } else { tensors[0].1.1[0] }, LEN, D], "{name}");
    (h.1, last.1)
}

#[test]
fn every_option_agrees_with_the_recurrence() {
    let n = B * LEN * D;
    let decay: Vec<f64> = wave(1.0, n).iter().map(|v| f64::from((0.9 + 0.1 * v) as f32)).collect();
    let log: Vec<f64> = decay.iter().map(|v| f64::from(v.ln() as f32)).collect();
    let channel: Vec<f64> = decay[..D].to_vec();
    let (b, h0) = (wave(2.0, n), wave(3.0, B * D));
    let flags: Vec<u8> = (0..B * LEN)
        .map(|i| {
            if i % 7 == 3 {
                1
            } else if i % 5 == 2 {
                2
            } else if i % 11 == 0 {
                3
            } else {
                0
            }
        })
        .collect();
    let at = |row: usize, t: usize, d: usize| (row * LEN + t) * D + d;
    let of_tensor = |row, t, d| decay[at(row, t, d)];
    let of_log = |row, t, d| f64::exp(log[at(row, t, d)]);
    let of_channel = |_: usize, _: usize, d: usize| channel[d];
    let one = |_: usize, _: usize, _: usize| 1.0;
    let shape = [B, LEN, D];
    let dense = || (0..B).map(|row| (row, 0, LEN, row)).collect::<Vec<_>>();
    let sources: [(&str, Option<T>, &[&str], Decay); 4] = [
        ("tensor", Some(T::f32(&shape, &decay)), &[], &of_tensor),
        ("log", Some(T::f32(&shape, &log)), &["log=true"], &of_log),
        ("channel", Some(T::f32(&[D], &channel)), &[], &of_channel),
        ("one", None, &[], &one),
    ];
    for (source, a, set, value) in &sources {
        for (split, deterministic, extras) in [(D, false, false), (4, true, true), (0, false, true)] {
            let name = format!("{source}-{split}-{deterministic}-{extras}");
            let mut tensors = vec![("b", T::f32(&shape, &b))];
            tensors.extend(a.clone().map(|a| ("a", a)));
            if extras {
                tensors.extend([("h0", T::f32(&[B, D], &h0)), ("flags", T::u8(&[B, LEN], &flags))]);
            }
            let (split_set, deterministic_set) = (format!("split={split}"), format!("deterministic={deterministic}"));
            let mut set = set.to_vec();
            set.extend([split_set.as_str(), deterministic_set.as_str()]);
            let (h, last) = run(&name, &tensors, &set);
            let scan = Scan {
                a: *value,
                b: &b,
                h0: extras.then_some(&h0[..]),
                flags: extras.then_some(&flags[..]),
                split,
                sequences: dense(),
            };
            let (want_h, want_last) = scan.run(B);
            close(&name, &h, &want_h, 1e-5);
            close(&format!("{name} final"), &last, &want_last, 1e-5);
        }
    }
}

#[test]
fn packed_sequences_with_empty_ones_agree() {
    let n = LEN * D;
    let decay: Vec<f64> = wave(1.0, n).iter().map(|v| f64::from((0.9 + 0.1 * v) as f32)).collect();
    let (b, h0) = (wave(2.0, n), wave(3.0, 5 * D));
    let cu = [0, 0, 9, 9, 30, 37];
    let tensors = [
        ("b", T::f32(&[1, LEN, D], &b)),
        ("a", T::f32(&[1, LEN, D], &decay)),
        ("h0", T::f32(&[5, D], &h0)),
        ("cu_seqlens", T::i32(&[6], &cu)),
    ];
    let (h, last) = run("packed", &tensors, &["split=5"]);
    let value = |_: usize, t: usize, d: usize| decay[t * D + d];
    let sequences = (0..5).map(|n| (0, cu[n] as usize, cu[n + 1] as usize, n)).collect();
    let scan = Scan { a: &value, b: &b, h0: Some(&h0), flags: None, split: 5, sequences };
    let (want_h, want_last) = scan.run(5);
    close("packed", &h, &want_h, 1e-5);
    close("packed final", &last, &want_last, 1e-5);
}

#[test]
fn sixteen_bit_inputs_stay_within_their_rounding() {
    let n = B * LEN * D;
    let decay: Vec<f64> = wave(1.0, n).iter().map(|v| f64::from(half::bf16::from_f64(0.9 + 0.1 * v))).collect();
    let b: Vec<f64> = wave(2.0, n).iter().map(|v| f64::from(half::bf16::from_f64(*v))).collect();
    let shape = [B, LEN, D];
    let (h, last) = run("bf16", &[("b", T::bf16(&shape, &b)), ("a", T::bf16(&shape, &decay))], &["split=6"]);
    let value = |row: usize, t: usize, d: usize| decay[(row * LEN + t) * D + d];
    let sequences = (0..B).map(|row| (row, 0, LEN, row)).collect();
    let (want_h, want_last) = Scan { a: &value, b: &b, h0: None, flags: None, split: 6, sequences }.run(B);
    close("bf16", &h, &want_h, 8e-3);
    // The state is f32 whatever the tensors are.
    close("bf16 final", &last, &want_last, 1e-5);
}

#[test]
fn empty_tensors_give_empty_outputs() {
    for (name, shape, states) in
        [("no-tokens", [2, 0, D], [2, D]), ("no-rows", [0, LEN, D], [0, D]), ("no-channels", [2, LEN, 0], [2, 0])]
    {
        let folder = Folder::new(name);
        let input = folder.write("in.safetensors", &[("b", T::f32(&shape, &vec![0.0; shape.iter().product()]))]);
        let output = folder.path("out.safetensors");
        let (input, path) = (input.to_str().expect("utf-8"), output.to_str().expect("utf-8"));
        let done = lookback(&["run", "gated_scan", "--in", input, "--out", path]);
        assert!(done.status.success(), "{name}: {}", stderr(&done));
        let outputs = read(&output);
        assert_eq!(outputs["h"].0, shape, "{name}");
        assert_eq!(outputs["h_final"], (states.to_vec(), vec![0.0; states.iter().product()]), "{name}");
    }
}
