//! `run linear_attention` against sums written here without a state, and what it says to bad input.

use crate::files::{Folder, T, lookback, read, stderr};

const B: usize = 2;
const LEN: usize = 23;
const H: usize = 2;
const K: usize = 6;
const V: usize = 5;

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from((phase + 0.37 * i as f64).sin() as f32)).collect()
}

/// Tensors of a file.
type File = Vec<(&'static str, T)>;

struct Tensors {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// `[B,T,H]`.
    g: Vec<f64>,
}

fn data() -> Tensors {
    let rows = B * LEN * H;
    let g = wave(4.0, rows).iter().map(|x| f64::from((0.1 * x - 0.1) as f32)).collect();
    Tensors { q: wave(1.0, rows * K), k: wave(2.0, rows * K), v: wave(3.0, rows * V), g }
}

impl Tensors {
    fn files(&self) -> File {
        vec![
            ("q", T::f32(&[B, LEN, H, K], &self.q)),
            ("k", T::f32(&[B, LEN, H, K], &self.k)),
            ("v", T::f32(&[B, LEN, H, V], &self.v)),
            ("g", T::f32(&[B, LEN, H], &self.g)),
        ]
    }

    /// `o[t] = scale sum over s of weight(head, t, s) (q[t].k[s]) v[s]`, without the recurrence.
    fn sums(&self, scale: f64, weight: &dyn Fn(usize, usize, usize, usize) -> f64) -> Vec<f64> {
        let mut o = vec![0.0; B * LEN * H * V];
        for (row, o) in o.chunks_mut(V).enumerate() {
            let (h, t, b) = (row % H, row / H % LEN, row / H / LEN);
            for s in 0..LEN {
                let other = (b * LEN + s) * H + h;
                let score: f64 = (0..K).map(|i| self.q[row * K + i] * self.k[other * K + i]).sum();
                let w = scale * weight(b, h, t, s) * score;
                o.iter_mut().zip(&self.v[other * V..]).for_each(|(o, v)| *o += w * v);
            }
        }
        o
    }

    /// `e^(sum of g from token a to token b - 1)`.
    fn decay(&self, row: usize, head: usize, a: usize, b: usize) -> f64 {
        (a..b).map(|t| self.g[(row * LEN + t) * H + head]).sum::<f64>().exp()
    }
}

fn run(name: &str, tensors: &[(&str, T)], set: &[&str]) -> Vec<f64> {
    let folder = Folder::new(name);
    let (input, output) = (folder.write("in.safetensors", tensors), folder.path("out.safetensors"));
    let mut args = vec![
        "run",
        "linear_attention",
        "--in",
        input.to_str().expect("utf-8"),
        "--out",
        output.to_str().expect("utf-8"),
    ];
    for s in set {
        args.extend(["--set", s]);
    }
    let done = lookback(&args);
    assert!(done.status.success(), "{name}: {}", stderr(&done));
    let mut outputs = read(&output);
    assert_eq!(outputs["s_final"].0, [B, H, K, V], "{name}");
    outputs.remove("o").expect("o").1
}

fn close(what: &str, got: &[f64], want: &[f64]) {
    let largest = want.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-5 * largest, "{what}: element {i} is {g}, the sum is {w}");
    }
    assert_eq!(got.len(), want.len(), "{what}");
}

#[test]
fn modes_agree_with_sums_over_tokens() {
    let data = data();
    let files = data.files();
    let scale = 1.0 / (K as f64).sqrt();
    // A link is guarded by the decay of the token that receives it.
    let before = |b, h, t: usize, s: usize| if s <= t { data.decay(b, h, s + 1, t + 1) } else { 0.0 };
    let after = |b, h, t: usize, s: usize| if s >= t { data.decay(b, h, t, s) } else { 0.0 };
    close("causal", &run("causal", &files, &[]), &data.sums(scale, &before));
    let reverse = run("reverse", &files, &["mode=reverse", "scale=0.5", "decay=scalar"]);
    close("reverse", &reverse, &data.sums(0.5, &after));
    // The reverse direction is read before the token's own decay and key, which the forward one has.
    let beyond = |b, h, t: usize, s: usize| if s > t { data.decay(b, h, t + 1, s) } else { 0.0 };
    let both = |b, h, t: usize, s: usize| before(b, h, t, s) + beyond(b, h, t, s);
    close("both", &run("both", &files, &["mode=bidirectional"]), &data.sums(scale, &both));
    let split = |b, h, t: usize, s: usize| if h == 0 { before(b, h, t, s) } else { after(b, h, t, s) };
    close("split", &run("split", &files, &["mode=split"]), &data.sums(scale, &split));
    let mut prefixed = files[..3].to_vec();
    prefixed.push(("prefix_len", T::i32(&[B], &[7, 0])));
    let prefix = |b: usize, _: usize, t: usize, s: usize| if s <= t || (b == 0 && s < 7) { 1.0 } else { 0.0 };
    close("prefix", &run("prefix", &prefixed, &["mode=prefix_read"]), &data.sums(scale, &prefix));
}

#[test]
fn reads_and_cuts_agree_with_sums_over_tokens() {
    let data = data();
    let mut files = data.files();
    let scale = 1.0 / (K as f64).sqrt();
    let exclusive = |b, h, t: usize, s: usize| if s < t { data.decay(b, h, s + 1, t) } else { 0.0 };
    close("exclusive", &run("exclusive", &files, &["read=exclusive_bonus"]), &data.sums(scale, &exclusive));
    let flags: Vec<u8> = (0..B * LEN).map(|i| u8::from(i % 9 == 4)).collect();
    files.push(("flags", T::u8(&[B, LEN], &flags)));
    let uncut = |b: usize, s: usize, t: usize| flags[b * LEN + s + 1..=b * LEN + t].iter().all(|f| *f == 0);
    let segments = |b, h, t: usize, s: usize| match s <= t && uncut(b, s, t) {
        true => data.decay(b, h, s + 1, t + 1),
        false => 0.0,
    };
    close("cuts", &run("cuts", &files, &[]), &data.sums(scale, &segments));
}

#[test]
fn linear_attention_bad_input_is_one_line_that_names_it() {
    let data = data();
    let refused = |name: &str, alter: &dyn Fn(&mut File), set: &[&str], says: &[&str]| {
        let folder = Folder::new(name);
        let mut tensors = data.files();
        alter(&mut tensors);
        let (input, output) = (folder.write("in.safetensors", &tensors), folder.path("out.safetensors"));
        let (input, path) = (input.to_str().expect("utf-8"), output.to_str().expect("utf-8"));
        let mut args = vec!["run", "linear_attention", "--in", input, "--out", path];
        set.iter().for_each(|s| args.extend(["--set", s]));
        let done = lookback(&args);
        let text = stderr(&done);
        assert_eq!(done.status.code(), Some(2), "{name}: {text}");
        let errors: Vec<&str> = text.lines().filter(|l| !l.starts_with("device: ")).collect();
        assert_eq!(errors.len(), 1, "{name}: one line, not:\n{text}");
        says.iter().for_each(|word| assert!(errors[0].contains(word), "{name}: `{}` does not say `{word}`", errors[0]));
        assert!(!output.exists(), "{name}: an output was written");
    };
    let keep = |_: &mut File| {};
    let mut grows = data.g.clone();
    grows[11] = 0.5;
    refused("grows", &|t| t[3].1 = T::f32(&[B, LEN, H], &grows), &[], &["`g`", "at most 0", "element 11 is 0.5"]);
    refused("fits", &keep, &["decay=vector"], &["`g`", "decay=vector"]);
    let thirds = T::f32(&[B, LEN, 3, K], &vec![0.5; B * LEN * 3 * K]);
    refused("groups", &|t| t[1].1 = thirds.clone(), &[], &["key_heads", "divisor", "3"]);
    let wide = T::f32(&[B, LEN, H, 300], &vec![0.5; B * LEN * H * 300]);
    refused("keys", &|t| (t[0].1, t[1].1) = (wide.clone(), wide.clone()), &[], &["key_dim", "300", "256"]);
    refused("both-normalized", &keep, &["mode=bidirectional", "normalize=1"], &["normaliser", "time_reduce"]);
    refused("prefix-decays", &keep, &["mode=prefix_read"], &["prefix", "decay"]);
    refused("no-state", &keep, &["mode=prefix_state"], &["state", "given"]);
    refused("bonus", &|t| t.push(("u", T::f32(&[H, K], &[0.5; H * K]))), &[], &["bonus"]);
    refused("split-three", &keep, &["mode=split", "split=3"], &["split", "3", "2"]);
    refused("split-alone", &keep, &["split=1"], &["split", "mode=split"]);
    refused("tensor-cores", &keep, &["path=chain"], &["tensor cores", "f32"]);
    refused("eps", &keep, &["normalize=-1"], &["normalize", "-1"]);
    refused("rows", &|t| t.push(("s0", T::f32(&[1, H, K, V], &[0.5; H * K * V]))), &[], &["`s0`", "[1, 2, 6, 5]"]);
    refused(
        "lengths",
        &|t| t[3] = ("prefix_len", T::i32(&[B], &[1, 24])),
        &["mode=prefix_read"],
        &["prefix_len", "24"],
    );
    refused("starts", &|t| t.push(("cu_seqlens", T::i32(&[2], &[0, 23]))), &[], &["cu_seqlens", "B = 2"]);
}
