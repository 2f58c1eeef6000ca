//! `run lean_decode` against a softmax written here, and what it says to bad input.

use crate::files::{Folder, T, lookback, read, stderr};
use safetensors::Dtype;

const B: usize = 2;
const H: usize = 4;
const HK: usize = 2;
const D: usize = 16;
const KEYS: [usize; B] = [37, 5];
const CAPACITY: usize = 40;

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| half::bf16::from_f64((phase + 0.37 * i as f64).sin()).to_f64()).collect()
}

type File = Vec<(&'static str, T)>;

/// One query of each request over a dense cache.
fn dense() -> File {
    let cache = [B, CAPACITY, HK, D];
    let n = cache.iter().product();
    vec![
        ("q", T::bf16(&[B, 1, H, D], &wave(1.0, B * H * D))),
        ("k", T::bf16(&cache, &wave(2.0, n))),
        ("v", T::bf16(&cache, &wave(3.0, n))),
        ("kv_len", T::i32(&[B], &KEYS.map(|n| n as i32))),
    ]
}

/// `o` and `lse` of every request and head, for keys that `seen(b, j)` lets through.
fn softmax(scale: f64, seen: &dyn Fn(usize, usize) -> bool) -> (Vec<f64>, Vec<f64>) {
    let (q, k, v) = (wave(1.0, B * H * D), wave(2.0, B * CAPACITY * HK * D), wave(3.0, B * CAPACITY * HK * D));
    let (mut o, mut lse) = (vec![0.0; B * H * D], Vec::new());
    for (row, o) in o.chunks_mut(D).enumerate() {
        let (b, h) = (row / H, row % H);
        let mut sum = 0.0;
        for j in (0..KEYS[b]).filter(|j| seen(b, *j)) {
            let at = ((b * CAPACITY + j) * HK + h / 2) * D;
            let weight = (scale * (0..D).map(|d| q[row * D + d] * k[at + d]).sum::<f64>()).exp();
            sum += weight;
            o.iter_mut().zip(&v[at..]).for_each(|(o, v)| *o += weight * v);
        }
        o.iter_mut().for_each(|o| *o /= sum);
        lse.push(sum.ln());
    }
    (o, lse)
}

/// Runs on these tensors and attributes; gives what comes out.
fn run(name: &str, tensors: &File, attributes: &[&str]) -> std::collections::HashMap<String, (Vec<usize>, Vec<f64>)> {
    let folder = Folder::new(name);
    let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
    let mut arguments = vec!["run", "lean_decode", "--in", input.to_str().expect("path"), "--out"];
    arguments.push(output.to_str().expect("path"));
    attributes.iter().for_each(|a| arguments.extend(["--set", a]));
    let done = lookback(&arguments);
    assert!(done.status.success(), "{}", stderr(&done));
    read(&output)
}

fn assert_near(got: &[f64], want: &[f64], most: f64) {
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= most, "element {at}: {got}, not {want}");
    }
}

#[test]
fn lean_decode_is_a_softmax_over_each_request() {
    let out = run("decode-dense", &dense(), &["scale=0.5"]);
    let (o, lse) = softmax(0.5, &|_, _| true);
    assert_eq!((&out["o"].0, &out["lse"].0), (&vec![B, 1, H, D], &vec![B, 1, H]));
    assert_near(&out["o"].1, &o, 0.01);
    assert_near(&out["lse"].1, &lse, 1e-4);
    // The default is 1 / sqrt(D).
    let (o, _) = softmax(0.25, &|_, _| true);
    assert_near(&run("decode-scale", &dense(), &[])["o"].1, &o, 0.01);
    // A rounded output is the nearest to one that is not.
    let exact = run("decode-f32", &dense(), &["scale=0.5", "out=f32"]);
    let rounded = |v: &f64| half::bf16::from_f64(*v).to_f64();
    assert_eq!(exact["o"].1.iter().map(rounded).collect::<Vec<_>>(), out["o"].1);
    let windowed = run("decode-window", &dense(), &["scale=0.5", "window=9", "sink_tokens=2", "slots=2"]);
    let (o, lse) = softmax(0.5, &|b, j| j + 10 >= KEYS[b] || j < 2);
    assert_near(&windowed["o"].1, &o, 0.01);
    assert_near(&windowed["lse"].1, &lse, 1e-4);
}

#[test]
fn lean_decode_reads_pages_and_lists() {
    // Pages of 5 places, HND, the last first.
    let page = 5;
    let places = |phase: f64| {
        let dense = wave(phase, B * CAPACITY * HK * D);
        let pages = B * CAPACITY / page;
        let mut out = Vec::new();
        for p in (0..pages).rev() {
            for h in 0..HK {
                for place in 0..page {
                    out.extend_from_slice(&dense[((p * page + place) * HK + h) * D..][..D]);
                }
            }
        }
        T::bf16(&[pages, HK, page, D], &out)
    };
    let table: Vec<i32> = (0..16).rev().collect();
    let mut tensors: File = dense().into_iter().filter(|(name, _)| !["k", "v"].contains(name)).collect();
    tensors.extend([
        ("k_pages", places(2.0)),
        ("v_pages", places(3.0)),
        ("kv_indptr", T::i32(&[B + 1], &[0, 8, 16])),
        ("kv_indices", T::i32(&[16], &table)),
    ]);
    let out = run("decode-pages", &tensors, &["scale=0.5", "layout=HND", "logits=true"]);
    let (o, lse) = softmax(0.5, &|_, _| true);
    assert_near(&out["o"].1, &o, 0.01);
    assert_near(&out["lse"].1, &lse, 1e-4);
    let (shape, logits) = &out["logits"];
    assert_eq!(*shape, [B, H, 1, KEYS[0]]);
    for (row, lse) in lse.iter().enumerate() {
        let logits = &logits[row * KEYS[0]..][..KEYS[0]];
        let sum: f64 = logits.iter().map(|s| s.exp()).sum();
        assert!((sum.ln() - lse).abs() < 1e-4, "row {row}: {} for {lse}", sum.ln());
        assert!(logits[KEYS[row / H]..].iter().all(|s| *s == f64::NEG_INFINITY));
    }
    // The same keys for all heads, by lists.
    tensors.push(("list", T::i32(&[B, HK, 4], &[3, 1, -1, 4].repeat(B * HK))));
    tensors.push(("list_len", T::i32(&[B, HK], &[4; B * HK])));
    let out = run("decode-lists", &tensors, &["scale=0.5", "layout=HND"]);
    let (o, lse) = softmax(0.5, &|_, j| [1, 3, 4].contains(&j));
    assert_near(&out["o"].1, &o, 0.01);
    assert_near(&out["lse"].1, &lse, 1e-4);
}

#[test]
fn lean_decode_reads_8_bits() {
    // Codes of 1.0 and -0.5, and a scale of 2.
    let codes: Vec<u8> = (0..B * CAPACITY * HK * D).map(|i| if i % 3 == 0 { 0x38 } else { 0xb0 }).collect();
    let shape = [B, CAPACITY, HK, D];
    let mut tensors: File = dense().into_iter().filter(|(name, _)| *name != "k" && *name != "v").collect();
    tensors.extend([
        ("k", T(Dtype::F8_E4M3, shape.to_vec(), codes.clone())),
        ("v", T(Dtype::F8_E4M3, shape.to_vec(), codes)),
        ("k_scale", T::f32(&[1], &[2.0])),
        ("v_scale", T::f32(&[1], &[2.0])),
    ]);
    let eight = run("decode-e4m3", &tensors, &[]);
    let values: Vec<f64> = (0..B * CAPACITY * HK * D).map(|i| if i % 3 == 0 { 2.0 } else { -1.0 }).collect();
    let mut tensors = dense();
    tensors[1].1 = T::bf16(&shape, &values);
    tensors[2].1 = T::bf16(&shape, &values);
    let sixteen = run("decode-bf16", &tensors, &[]);
    assert_near(&eight["o"].1, &sixteen["o"].1, 0.01);
    assert_near(&eight["lse"].1, &sixteen["lse"].1, 1e-4);
}

#[test]
fn lean_decode_says_what_is_wrong() {
    let folder = Folder::new("decode-wrong");
    let wrong = |tensors: &File, attributes: &[&str], words: &[&str]| {
        let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
        let mut arguments = vec!["run", "lean_decode", "--in", input.to_str().expect("path"), "--out"];
        arguments.push(output.to_str().expect("path"));
        attributes.iter().for_each(|a| arguments.extend(["--set", a]));
        let done = lookback(&arguments);
        let said = stderr(&done);
        let errors = said.lines().filter(|line| line.starts_with("error")).count();
        assert!(done.status.code() == Some(2) && errors == 1 && said.trim().lines().count() <= 2, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} lacks one of {words:?}");
        assert!(!output.exists());
    };
    let with = |name: &'static str, tensor: T| {
        let mut tensors: File = dense().into_iter().filter(|(n, _)| *n != name).collect();
        tensors.push((name, tensor));
        tensors
    };
    let without = |name: &str| -> File { dense().into_iter().filter(|(n, _)| *n != name).collect() };
    wrong(&without("k"), &[], &["`k`", "missing"]);
    wrong(&with("kv_len", T::i32(&[B], &[37, 41])), &[], &["`kv_len`", "outside"]);
    // Room for logits is what the cache holds, not what a length says.
    wrong(&with("kv_len", T::i32(&[B], &[37, i32::MAX])), &["logits=true"], &["`kv_len`", "outside"]);
    wrong(&with("kv_len", T::i32(&[3], &[1, 2, 3])), &[], &["`", "B = "]);
    wrong(&with("q", T::f32(&[B, 1, H, D], &wave(1.0, B * H * D))), &[], &["bf16", "f32"]);
    wrong(&with("q", T::bf16(&[B, 1, 3, D], &wave(1.0, B * 3 * D))), &[], &["key_heads"]);
    wrong(&with("k", T(Dtype::F8_E4M3, vec![B, CAPACITY, HK, D], vec![0; B * CAPACITY * HK * D])), &[], &["`v`"]);
    // What would be passed over is refused.
    wrong(&with("k_scale", T::f32(&[1], &[2.0])), &[], &["`k_scale`", "e4m3"]);
    wrong(&with("kv_indices", T::i32(&[3], &[0, 1, 2])), &[], &["`kv_indices`", "`k`"]);
    let mut both = with("kv_indptr", T::i32(&[B + 1], &[0, 1, 2]));
    both.push(("k_pages", T::bf16(&[1, CAPACITY, HK, D], &wave(2.0, CAPACITY * HK * D))));
    wrong(&both, &[], &["`k`", "`k_pages`"]);
    wrong(&dense(), &["layout=NDH"], &["layout", "NHD", "HND"]);
    wrong(&dense(), &["softcap=-1"], &["softcap"]);
    wrong(&dense(), &["window=x"], &["window"]);
    let f32s: File = dense()
        .into_iter()
        .map(|(n, t)| match n {
            "kv_len" => (n, t),
            _ => (n, T::f32(&t.1.clone(), &wave(1.0, t.1.iter().product()))),
        })
        .collect();
    wrong(&f32s, &[], &["f32"]);
}
