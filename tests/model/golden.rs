//! The specification's golden vectors of the models' cores: the oracle's, and the operations' that the models put them together from.

use lookback_device::{DType, cudarc::driver::CudaSlice};
use lookback_linear::{
    Decay, Inputs, Mode, Options, Read, ReverseInputs, Shape, linear_attention,
    time_reduce::{self, Map, Workspace},
};
use lookback_nn::{decay_gate, head_scale, taylor_map};
use lookback_reference::{
    hydra, jrt,
    layers::softplus,
    lightnet::{self, Heads},
    mamba2,
};
use lookback_scan::log_cumsum_exp;
use lookback_suite::{
    buffer::{download, upload_as},
    device::{info, stream},
    random::golden,
};

/// Sum, sum of absolute values and last element, to the digits that are printed.
#[track_caller]
fn assert_summary(values: &[f64], sum: f64, abs: f64, last: f64) {
    assert_near(values, [sum, abs, last], 2e-9);
}

/// As [`assert_summary`] for what an operation gave in f32.
#[track_caller]
fn assert_device(values: &CudaSlice<f32>, summary: [f64; 3]) {
    let values: Vec<f64> = download(values).into_iter().map(f64::from).collect();
    assert_near(&values, summary, 5e-7 * summary[1].max(1.0));
}

#[track_caller]
fn assert_near(values: &[f64], summary: [f64; 3], bound: f64) {
    let got = [values.iter().sum(), values.iter().map(|v| v.abs()).sum(), values.last().copied().unwrap_or(f64::NAN)];
    for (got, want) in got.into_iter().zip(summary) {
        assert!((got - want).abs() < bound, "{got} is not {want}");
    }
}

const HEADS: Heads = Heads { heads: 1, key: 4, value: 3 };

/// Δ of the Mamba-2 row.
fn steps(phase: f64) -> Vec<f64> {
    golden(phase, 8).iter().map(|raw| softplus(raw - 1.0 + 0.3)).collect()
}

#[test]
fn mamba2_core() {
    let sizes = mamba2::Sizes {
        width: 0,
        heads: 1,
        head_dim: 3,
        groups: 1,
        state: 4,
        dt_limit: (0.0, f64::INFINITY),
        eps: 1e-5,
    };
    let (x, dt, b, c) = (golden(1.0, 24), steps(2.0), golden(3.0, 32), golden(4.0, 32));
    let core = mamba2::Core { x: &x, dt: &dt, a: &[-0.2_f64.exp()], b: &b, c: &c, d: &[0.5] };
    let (y, h) = mamba2::core(&sizes, &core);
    assert_summary(&y, -2.123881384, 14.314737426, -0.574755762);
    assert_summary(&h, 1.285701303, 2.044677142, 0.051437435);
}

#[test]
fn hydra_core() {
    let sizes = hydra::Sizes { width: 0, heads: 1, head_dim: 3, groups: 1, state: 4, eps: 1e-5 };
    let forward = hydra::Direction { dt: &steps(2.0), b: &golden(3.0, 32), c: &golden(4.0, 32) };
    let reverse = hydra::Direction { dt: &steps(8.0), b: &golden(9.0, 32), c: &golden(10.0, 32) };
    let y = hydra::core(&sizes, &golden(1.0, 24), &[-1.0], forward, reverse, &golden(11.0, 8));
    assert_summary(&y, -3.376961255, 18.914942296, -0.068864768);
}

#[test]
fn lightnet_causal_and_bidirectional() {
    let (q, v) = (golden(1.0, 36), golden(3.0, 27));
    let k: Vec<f64> = golden(2.0, 36).iter().map(|k| 2.0 * k).collect();
    let causal = lightnet::causal(&HEADS, &q, &k, &v);
    assert_summary(&causal.o, 0.003362112, 10.739821739, -0.132655940);
    assert_summary(&causal.z, 12.079664112, 12.079664112, 2.955628238);
    assert_summary(&causal.state, 0.141833577, 1.761570597, -0.236314848);
    assert_summary(&lightnet::bidirectional(&HEADS, &q, &k, &v), -0.601144282, 6.817033485, -0.132655940);
}

#[test]
fn prefix_linear_attention() {
    let prefix = jrt::Prefix { k: &golden(7.0, 16), v: &golden(8.0, 12) };
    let o = jrt::core(&HEADS, &golden(1.0, 36), &golden(2.0, 36), &golden(3.0, 27), Some(prefix), 1e-12);
    assert_summary(&o, -1.203347486, 4.163235784, -0.034237616);
}

fn upload(values: &[f64]) -> CudaSlice<f32> {
    upload_as::<f32>(values)
}

fn zeros(len: usize) -> CudaSlice<f32> {
    upload(&vec![0.0; len])
}

/// `dt = softplus(raw - 1 + 0.3)` and `g = rate dt` of 8 tokens.
fn gates(phase: f64, rate: f64) -> (CudaSlice<f32>, CudaSlice<f32>) {
    let raw: Vec<f64> = golden(phase, 8).iter().map(|raw| raw - 1.0).collect();
    let options = decay_gate::Options { dtype: DType::F32, negated: false, bounds: (0.0, f32::INFINITY), rate: 0.0 };
    let plan = decay_gate::Plan::new(&decay_gate::Shape::dense(8, 1), &options, &info()).unwrap();
    let (bias, rate, mut dt, mut g) = (upload(&[0.3]), upload(&[rate]), zeros(8), zeros(8));
    let params = decay_gate::Params { bias: Some(&bias), rate: Some(&rate) };
    plan.run(&stream(), &upload(&raw), params, &mut g, Some(&mut dt)).unwrap();
    (dt, g)
}

/// `(scale[t] + bias) x[t]`, added to `out`.
fn add_scaled(x: &CudaSlice<f32>, scale: Option<&CudaSlice<f32>>, bias: f64, out: &mut CudaSlice<f32>) {
    let options = head_scale::Options { dtype: DType::F32, accumulate: true };
    let plan = head_scale::Plan::new(&head_scale::Shape::dense(8, 1, x.len() / 8), &options, &info()).unwrap();
    let bias = upload(&[bias]);
    let factors = head_scale::Factors { scale: scale.map(|scale| scale as _), bias: Some(&bias) };
    plan.run(&stream(), x, factors, out).unwrap();
}

#[test]
fn mamba2_core_on_the_device() {
    let (x, b, c) = (upload(&golden(1.0, 24)), upload(&golden(3.0, 32)), upload(&golden(4.0, 32)));
    let (dt, g) = gates(2.0, -0.2_f64.exp());
    let mut v = zeros(24);
    add_scaled(&x, Some(&dt), 0.0, &mut v);
    let shape = Shape::dense(1, 8, 1, 4, 3);
    let options = Options { decay: Decay::Scalar, scale: 1.0, ..Options::new::<f32>(&shape) };
    let mut made =
        linear_attention(&stream(), &shape, &options, &Inputs { g: Some(&g), ..Inputs::of(&c, &b, &v) }).unwrap();
    add_scaled(&x, None, 0.5, &mut made.o);
    assert_device(&made.o, [-2.123881384, 14.314737426, -0.574755762]);
    assert_device(&made.state, [1.285701303, 2.044677142, 0.051437435]);
}

#[test]
fn hydra_core_on_the_device() {
    let x = upload(&golden(1.0, 24));
    let [b, c, reverse_b, reverse_c] = [3.0, 4.0, 9.0, 10.0].map(|phase| upload(&golden(phase, 32)));
    let ((dt, g), (reverse_dt, reverse_g)) = (gates(2.0, -1.0), gates(8.0, -1.0));
    let (mut k, mut reverse_k) = (zeros(32), zeros(32));
    add_scaled(&b, Some(&dt), 0.0, &mut k);
    add_scaled(&reverse_b, Some(&reverse_dt), 0.0, &mut reverse_k);
    let shape = Shape::dense(1, 8, 1, 4, 3);
    let options = Options {
        decay: Decay::Scalar,
        read: Read::Shifted,
        mode: Mode::Bidirectional,
        scale: 1.0,
        ..Options::new::<f32>(&shape)
    };
    let reverse = ReverseInputs { q: Some(&reverse_c), k: Some(&reverse_k), g: Some(&reverse_g), state: None };
    let inputs = Inputs { g: Some(&g), reverse, ..Inputs::of(&c, &k, &x) };
    let mut made = linear_attention(&stream(), &shape, &options, &inputs).unwrap();
    add_scaled(&x, Some(&upload(&golden(11.0, 8))), 0.0, &mut made.o);
    assert_device(&made.o, [-3.376961255, 18.914942296, -0.068864768]);
}

#[test]
fn lightnet_on_the_device() {
    let logits: Vec<f64> = golden(2.0, 36).iter().map(|k| 2.0 * k).collect();
    let (q, logits, v) = (upload(&golden(1.0, 36)), upload(&logits), upload(&golden(3.0, 27)));
    let shape = Shape::dense(1, 9, 1, 4, 3);
    let gates = log_cumsum_exp::Plan::new(
        &log_cumsum_exp::Shape::dense(1, 9, 4),
        &log_cumsum_exp::Options::new::<f32>(),
        &info(),
    );
    let (mut k, mut g, mut last) = (zeros(36), zeros(36), zeros(4));
    let outputs = log_cumsum_exp::Outputs { z: None, k: Some(&mut k), g: Some(&mut g), last: Some(&mut last) };
    gates.unwrap().run(&stream(), &log_cumsum_exp::Inputs::of(&logits), outputs).unwrap();
    let options = Options { decay: Decay::Vector, scale: 1.0, ..Options::new::<f32>(&shape) };
    let made =
        linear_attention(&stream(), &shape, &options, &Inputs { g: Some(&g), ..Inputs::of(&q, &k, &v) }).unwrap();
    assert_device(&made.o, [0.003362112, 10.739821739, -0.132655940]);
    assert_device(&last, [12.079664112, 12.079664112, 2.955628238]);
    assert_device(&made.state, [0.141833577, 1.761570597, -0.236314848]);
    let pool = time_reduce::Plan::new(&shape, &time_reduce::Options::new(DType::F32, Map::Softmax), &info()).unwrap();
    let mut workspace = Workspace::new(&stream(), pool.workspace_bytes()).unwrap();
    let mut o = zeros(27);
    let inputs = time_reduce::Inputs { q: Some(&q), k: &logits, v: &v, cu_seqlens: None, prefix_len: None };
    let outputs = time_reduce::Outputs { o: Some(&mut o), den: None, kv: None, ksum: None };
    pool.run(&stream(), &inputs, outputs, &mut workspace).unwrap();
    assert_device(&o, [-0.601144282, 6.817033485, -0.132655940]);
}

#[test]
fn prefix_linear_attention_on_the_device() {
    let features = |phase: f64| {
        let plan = taylor_map::Plan::new(&taylor_map::Shape::dense(9, 1, 4), DType::F32, &info()).unwrap();
        let mut out = zeros(9 * taylor_map::FEATURES);
        plan.run(&stream(), &upload(&golden(phase, 36)), &mut out).unwrap();
        out
    };
    let prefix = Shape::dense(1, 4, 1, 4, 3);
    let encoder =
        time_reduce::Plan::new(&prefix, &time_reduce::Options::new(DType::F32, Map::Taylor), &info()).unwrap();
    let mut workspace = Workspace::new(&stream(), encoder.workspace_bytes()).unwrap();
    let (mut state, mut sums) = (zeros(3 * taylor_map::FEATURES), zeros(taylor_map::FEATURES));
    let (k, v) = (upload(&golden(7.0, 16)), upload(&golden(8.0, 12)));
    let inputs = time_reduce::Inputs { q: None, k: &k, v: &v, cu_seqlens: None, prefix_len: None };
    let outputs = time_reduce::Outputs { o: None, den: None, kv: Some(&mut state), ksum: Some(&mut sums) };
    encoder.run(&stream(), &inputs, outputs, &mut workspace).unwrap();
    let shape = Shape::dense(1, 9, 1, taylor_map::FEATURES, 3);
    let options = Options { scale: 1.0, normalize: Some(1e-12), ..Options::new::<f32>(&shape) };
    let (q, k, v) = (features(1.0), features(2.0), upload(&golden(3.0, 27)));
    let inputs = Inputs { state: Some(&state), normalizer: Some(&sums), ..Inputs::of(&q, &k, &v) };
    let made = linear_attention(&stream(), &shape, &options, &inputs).unwrap();
    assert_device(&made.o, [-1.203347486, 4.163235784, -0.034237616]);
}
