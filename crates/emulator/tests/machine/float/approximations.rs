//! `ex2`, `lg2`, `rcp` and the rest: error bounds and special values.

use super::{NAN_F32, single, single_bits};
use crate::harness::{F32 as R32, Random, elementwise};

/// Distance in units of the last place of `exact`, measured in f32.
fn ulps(found: f32, exact: f64) -> f64 {
    let nearest = exact as f32;
    let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
    (f64::from(found) - exact).abs() / unit
}

#[test]
fn approximations_keep_their_promises() {
    let mut random = Random::new(6);
    let positive: Vec<Vec<u64>> =
        (0..3000).map(|_| vec![u64::from(random.word() % 0x7F00_0000 + 0x0080_0000)]).collect();
    let small: Vec<Vec<u64>> =
        (0..3000).map(|_| vec![u64::from((random.word() as f32 / 2f32.powi(27) - 16.0).to_bits())]).collect();
    let within = |code: &str, rows: &[Vec<u64>], limit: f64, exact: fn(f64) -> f64| {
        for (row, found) in rows.iter().zip(elementwise(code, R32, &[R32], rows)) {
            let exact = exact(single(row[0]));
            if exact.abs() < f64::from(f32::MIN_POSITIVE) || exact.abs() > f64::from(f32::MAX) {
                continue;
            }
            let error = ulps(f32::from_bits(found as u32), exact);
            assert!(error <= limit, "{code} of {:e}: {error} ulp", single(row[0]));
        }
    };
    within("ex2.approx.f32 %d, %a;", &small, 2.0, f64::exp2);
    within("ex2.approx.ftz.f32 %d, %a;", &small, 2.0, f64::exp2);
    within("rcp.approx.f32 %d, %a;", &positive, 1.0, |x| 1.0 / x);
    within("rsqrt.approx.f32 %d, %a;", &positive, 2.0, |x| 1.0 / x.sqrt());
    within("sqrt.approx.f32 %d, %a;", &positive, 2.0, f64::sqrt);
    within("tanh.approx.f32 %d, %a;", &small, 8192.0, f64::tanh);
    for (row, found) in positive.iter().zip(elementwise("lg2.approx.f32 %d, %a;", R32, &[R32], &positive)) {
        let (found, exact) = (single(found), single(row[0]).log2());
        let limit = if exact.abs() < 1.0 { 2f64.powi(-22) } else { 2f64.powi(-22) * exact.abs() };
        assert!((found - exact).abs() <= limit, "lg2 of {:e}", single(row[0]));
    }
    for (code, function) in
        [("sin.approx.f32 %d, %a;", f64::sin as fn(f64) -> f64), ("cos.approx.f32 %d, %a;", f64::cos)]
    {
        let near: Vec<Vec<u64>> =
            small.iter().filter(|row| single(row[0]).abs() < std::f64::consts::TAU).cloned().collect();
        for (row, found) in near.iter().zip(elementwise(code, R32, &[R32], &near)) {
            assert!((single(found) - function(single(row[0]))).abs() <= 2f64.powi(-20), "{code} of {}", single(row[0]));
        }
    }
    let pairs: Vec<Vec<u64>> =
        (0..2000).map(|i| vec![positive[i][0] % 0x2000_0000 + 0x3000_0000, small[i][0]]).collect();
    for code in ["div.approx.f32 %d, %a, %b;", "div.full.f32 %d, %a, %b;"] {
        for (row, found) in pairs.iter().zip(elementwise(code, R32, &[R32, R32], &pairs)) {
            let error = ulps(f32::from_bits(found as u32), single(row[0]) / single(row[1]));
            assert!(error <= 2.0, "{code} of {row:x?}: {error} ulp");
        }
    }
}

#[test]
fn approximations_of_special_values() {
    let inf = f32::INFINITY;
    let cases: [(&str, &[(f32, f32)]); 7] = [
        ("ex2", &[(0.0, 1.0), (-0.0, 1.0), (inf, inf), (-inf, 0.0), (200.0, inf), (-200.0, 0.0), (1.0, 2.0)]),
        ("lg2", &[(0.0, -inf), (-0.0, -inf), (inf, inf), (-1.0, f32::NAN), (1.0, 0.0), (8.0, 3.0)]),
        ("rcp", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-inf, -0.0), (1.0, 1.0), (-4.0, -0.25)]),
        ("rsqrt", &[(0.0, inf), (-0.0, -inf), (inf, 0.0), (-1.0, f32::NAN), (4.0, 0.5)]),
        ("sqrt", &[(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, f32::NAN), (9.0, 3.0)]),
        ("tanh", &[(0.0, 0.0), (-0.0, -0.0), (inf, 1.0), (-inf, -1.0), (20.0, 1.0)]),
        ("cos", &[(0.0, 1.0), (inf, f32::NAN)]),
    ];
    for (name, values) in cases {
        let mut rows: Vec<Vec<u64>> = values.iter().map(|(input, _)| vec![u64::from(input.to_bits())]).collect();
        rows.push(vec![0x7FC0_0001]);
        let found = elementwise(&format!("{name}.approx.f32 %d, %a;"), R32, &[R32], &rows);
        for ((input, expected), found) in values.iter().zip(&found) {
            assert_eq!(*found, single_bits(f64::from(*expected)), "{name} of {input}: {:e}", single(*found));
        }
        assert_eq!(found.last(), Some(&NAN_F32), "{name} of NaN");
    }
}
