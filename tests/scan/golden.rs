//! Golden vectors: sum, sum of absolute values, last element.

use super::case::{Case, Data, backward, forward};
use lookback_device::DType;
use lookback_scan::Source;
use lookback_suite::random::golden;

fn check(name: &str, values: &[f64], [sum, abs, last]: [f64; 3]) {
    let got = [values.iter().sum::<f64>(), values.iter().map(|v| v.abs()).sum(), values[values.len() - 1]];
    for (got, want) in got.into_iter().zip([sum, abs, last]) {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{name}: {got} is not {want}");
    }
}

fn data(phase_a: f64) -> Data {
    Data {
        a: golden(phase_a, 14).iter().map(|v| 1.0 / (1.0 + (-1.0 - v).exp())).collect(),
        b: golden(2.0, 14),
        x: Vec::new(),
        channel: Vec::new(),
        flags: Some(vec![0, 0, 0, 2, 1, 0, 2]),
        initial: Some(golden(4.0, 2)),
        dh: golden(3.0, 14),
        d_last: None,
    }
}

#[test]
fn gated_scan_golden_forward_channels() {
    let (case, data) = (Case::new(Source::Tensor, DType::F32, 1, 7, 2), data(1.0));
    let h = forward::<f32>(&case, &data).h;
    check("h", &h, [-5.622692749, 10.031383506, -1.366932025]);
    let got = backward::<f32>(&case, &data, &h);
    check("da", &got.a, [-5.031197717, 6.498480874, 0.136525892]);
    check("db", &got.b, [-0.160787819, 9.588181713, -0.165604175]);
    check("dh0", &got.d_initial, [-0.458780160, 0.458780160, -0.417964154]);
}

#[test]
fn gated_scan_golden_reverse_channels() {
    let case = Case { split: 0, ..Case::new(Source::Tensor, DType::F32, 1, 7, 2) };
    let data = data(1.0);
    let h = forward::<f32>(&case, &data).h;
    check("h", &h, [-6.827040501, 10.479408261, -0.919328526]);
    let got = backward::<f32>(&case, &data, &h);
    check("da", &got.a, [2.557370537, 5.755488146, 0.0]);
    check("db", &got.b, [-4.767257206, 10.497691721, -1.455405585]);
    check("dh0", &got.d_initial, [0.0, 0.0, 0.0]);
}

#[test]
fn gated_scan_golden_rg_lru() {
    let case = Case::new(Source::RgLru { unit_at_reset: true }, DType::F32, 1, 6, 2);
    let data = Data {
        a: golden(2.0, 12),
        b: golden(3.0, 12),
        x: golden(1.0, 12),
        channel: golden(4.0, 2),
        flags: None,
        initial: None,
        dh: Vec::new(),
        d_last: None,
    };
    check("h", &forward::<f32>(&case, &data).h, [-0.205096192, 3.371238035, 0.086338542]);
}
