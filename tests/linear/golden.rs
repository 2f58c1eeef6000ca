//! The golden vectors of the family's forward pass: sum, sum of absolute values, last element.

use super::case::{Case, Computed, Data, Direction, run};
use lookback_device::DType;
use lookback_linear::{Decay, Read};
use lookback_suite::random::{golden, round};

const T: usize = 9;
const K: usize = 4;
const V: usize = 3;

/// `ln sigmoid(x + 1)`.
fn log_sigmoid(values: Vec<f64>) -> Vec<f64> {
    values.iter().map(|x| -(1.0 + (-(x + 1.0)).exp()).ln()).collect()
}

fn case(decay: Decay, segmented: bool) -> (Case, Data) {
    let case = Case { heads: 1, query_heads: 1, key_heads: 1, decay, scale: 0.5, ..Case::new(DType::F32, 1, T, K, V) };
    let width = if decay == Decay::Vector { K } else { 1 };
    let single = |values: Vec<f64>| values.into_iter().map(round::<f32>).collect::<Vec<_>>();
    let data = Data {
        own: Direction {
            q: single(golden(1.0, T * K)),
            k: single(golden(2.0, T * K)),
            g: single(log_sigmoid(golden(7.0, T * width))),
            state: Some(single(golden(4.0, K * V))),
        },
        reverse: None,
        v: single(golden(3.0, T * V)),
        u: None,
        flags: segmented.then(|| vec![0, 0, 0, 0, 1, 0, 0, 1, 0]),
        normalizer: None,
    };
    (case, data)
}

fn check(what: &str, got: &[f64], want: [f64; 3]) {
    let sums = [got.iter().sum(), got.iter().map(|v| v.abs()).sum(), *got.last().expect("some")];
    for (got, want) in sums.iter().zip(want) {
        // Inputs are rounded to f32, and so is every step.
        assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "{what}: {sums:?}, want {want}");
    }
}

fn both(what: &str, got: &Computed, o: [f64; 3], state: [f64; 3]) {
    check(&format!("o, {what}"), &got.o, o);
    check(&format!("state, {what}"), &got.state, state);
}

#[test]
fn golden_scalar_decays() {
    let (case, data) = case(Decay::Scalar, false);
    both(
        "scalar",
        &run::<f32>(&case, &data),
        [-1.727_037_742, 11.544_278_084, -0.384_450_479],
        [0.349_957_122, 9.588_143_365, -1.307_679_628],
    );
}

#[test]
fn golden_scalar_decays_in_segments() {
    let (case, data) = case(Decay::Scalar, true);
    both(
        "scalar, segments",
        &run::<f32>(&case, &data),
        [-3.903_302_774, 10.061_789_422, -0.385_520_347],
        [3.668_605_727, 10.262_777_446, -0.969_857_133],
    );
}

#[test]
fn golden_vector_decays() {
    let (case, data) = case(Decay::Vector, false);
    both(
        "vector",
        &run::<f32>(&case, &data),
        [-0.959_527_872, 12.215_930_705, -0.354_440_580],
        [1.102_650_277, 8.674_451_414, -1.234_700_806],
    );
}

#[test]
fn golden_vector_decays_in_segments() {
    let (case, data) = case(Decay::Vector, true);
    both(
        "vector, segments",
        &run::<f32>(&case, &data),
        [-4.150_878_968, 9.974_785_065, -0.328_285_974],
        [3.663_805_671, 9.669_237_257, -0.938_146_620],
    );
}

#[test]
fn golden_exclusive_bonus() {
    let (case, data) = case(Decay::Vector, false);
    let case = Case { read: Read::ExclusiveBonus, scale: 1.0, ..case };
    let data = Data { u: Some(golden(8.0, K).into_iter().map(round::<f32>).collect()), ..data };
    check("exclusive", &run::<f32>(&case, &data).o, [11.807_418_534, 22.598_137_545, -0.638_215_751]);
}
