//! The specification's golden vectors of the models' cores.

use lookback_reference::{
    hydra, jrt,
    layers::softplus,
    lightnet::{self, Heads},
    mamba2,
};
use lookback_suite::random::golden;

/// Sum, sum of absolute values and last element, to the digits that are printed.
#[track_caller]
fn assert_summary(values: &[f64], sum: f64, abs: f64, last: f64) {
    let got = [values.iter().sum(), values.iter().map(|v| v.abs()).sum(), values.last().copied().unwrap_or(f64::NAN)];
    for (got, want) in got.into_iter().zip([sum, abs, last]) {
        assert!((got - want).abs() < 2e-9, "{got} is not {want}");
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
