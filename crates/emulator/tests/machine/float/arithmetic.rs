//! Sums, products, quotients, roots, extremes and comparisons of f32 and f64.

use super::{check, extreme, few_singles, flush, single, single_bits, singles};
use crate::harness::{B32, F32 as R32, F64 as R64, Operand, cross, elementwise};
use crate::reals::{F32, Format, Mode, Real};

fn saturate(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// `add`, `mul` or `fma` of f64 that are no wider than f32, rounded once.
pub fn rounded(operation: &str, v: &[f64], format: Format, mode: Mode) -> f64 {
    let loose = match operation {
        "add" => v[0] + v[1],
        "sub" => v[0] - v[1],
        "mul" => v[0] * v[1],
        _ => v[0].mul_add(v[1], v[2]),
    };
    if !loose.is_finite() {
        return loose;
    }
    let real = match operation {
        "add" => Real::sum(v[0], v[1]),
        "sub" => Real::sum(v[0], -v[1]),
        "mul" => Real::exact(v[0] * v[1]),
        _ => Real::fused(v[0], v[1], v[2]),
    };
    let result = real.round(format, mode);
    // A sum of opposites is -0 when rounding down, and the CPU does not round down.
    let terms = match operation {
        "add" => [v[0], v[1]],
        "sub" => [v[0], -v[1]],
        "mul" => return result,
        _ => [v[0] * v[1], v[2]],
    };
    let cancels = result == 0.0 && terms[0] == -terms[1] && terms[0].is_sign_negative() != terms[1].is_sign_negative();
    if cancels { if mode == Mode::Rm { -0.0 } else { 0.0 } } else { result }
}

#[test]
fn sums_and_products_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    let triples = cross(&[&few_singles(), &few_singles(), &few_singles()]);
    for operation in ["add", "sub", "mul", "fma"] {
        let (rows, operands, sources) = match operation {
            "fma" => (&triples, "%d, %a, %b, %c", &[R32; 3][..]),
            _ => (&pairs, "%d, %a, %b", &[R32; 2][..]),
        };
        for mode in Mode::ALL {
            let exact = |row: &[u64]| {
                let values: Vec<f64> = row.iter().map(|bits| single(*bits)).collect();
                rounded(operation, &values, F32, mode)
            };
            let flushed = |row: &[u64]| {
                let values: Vec<f64> = row.iter().map(|bits| single(flush(*bits))).collect();
                flush(single_bits(rounded(operation, &values, F32, mode)))
            };
            let name = mode.name();
            check(&format!("{operation}.{name}.f32 {operands};"), R32, sources, rows, |row| single_bits(exact(row)));
            check(&format!("{operation}.{name}.ftz.f32 {operands};"), R32, sources, rows, flushed);
            let saturated = |row: &[u64]| single_bits(saturate(exact(row)));
            check(&format!("{operation}.{name}.sat.f32 {operands};"), R32, sources, rows, saturated);
        }
    }
    check("add.f32 %d, %a, %b;", R32, &[R32, R32], &pairs, |v| {
        single_bits(rounded("add", &[single(v[0]), single(v[1])], F32, Mode::Rn))
    });
}

#[test]
fn quotients_and_roots_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    let ones: Vec<Vec<u64>> = cross(&[&singles()]);
    for mode in Mode::ALL {
        let name = mode.name();
        let quotient = |a: f64, b: f64| match a / b {
            loose if !loose.is_finite() || loose == 0.0 => loose,
            _ => Real::quotient(a, b).round(F32, mode),
        };
        let root = |a: f64| if a > 0.0 && a.is_finite() { Real::square_root(a).round(F32, mode) } else { a.sqrt() };
        check(&format!("div.{name}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
            single_bits(quotient(single(v[0]), single(v[1])))
        });
        check(&format!("rcp.{name}.f32 %d, %a;"), R32, &[R32], &ones, |v| single_bits(quotient(1.0, single(v[0]))));
        check(&format!("sqrt.{name}.f32 %d, %a;"), R32, &[R32], &ones, |v| single_bits(root(single(v[0]))));
        check(&format!("sqrt.{name}.ftz.f32 %d, %a;"), R32, &[R32], &ones, |v| {
            flush(single_bits(root(single(flush(v[0])))))
        });
    }
}

#[test]
fn minima_signs_and_comparisons_of_f32() {
    let pairs = cross(&[&singles(), &singles()]);
    for (name, larger) in [("min", false), ("max", true)] {
        for (suffix, nan_wins) in [("", false), (".NaN", true)] {
            check(&format!("{name}{suffix}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
                single_bits(extreme(single(v[0]), single(v[1]), larger, nan_wins))
            });
            check(&format!("{name}.ftz{suffix}.f32 %d, %a, %b;"), R32, &[R32, R32], &pairs, |v| {
                single_bits(extreme(single(flush(v[0])), single(flush(v[1])), larger, nan_wins))
            });
        }
    }
    let numbers: Vec<Vec<u64>> = cross(&[&singles()]).into_iter().filter(|row| !single(row[0]).is_nan()).collect();
    check("neg.f32 %d, %a;", R32, &[R32], &numbers, |v| v[0] ^ 0x8000_0000);
    check("abs.f32 %d, %a;", R32, &[R32], &numbers, |v| v[0] & 0x7FFF_FFFF);
    check("neg.ftz.f32 %d, %a;", R32, &[R32], &numbers, |v| flush(v[0]) ^ 0x8000_0000);
    check("abs.ftz.f32 %d, %a;", R32, &[R32], &numbers, |v| flush(v[0]) & 0x7FFF_FFFF);
    check("copysign.f32 %d, %a, %b;", R32, &[R32, R32], &cross(&[&few_singles(), &few_singles()]), |v| {
        v[0] & 0x8000_0000 | v[1] & 0x7FFF_FFFF
    });

    type Test = fn(f64, f64) -> bool;
    let tests: [(&str, Test); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (name, test) in tests {
        check(&format!("setp.{name}.f32 %p, %a, %b; selp.f32 %d, %a, %b, %p;"), R32, &[R32, R32], &pairs, |v| {
            if test(single(v[0]), single(v[1])) { v[0] } else { v[1] }
        });
        check(&format!("setp.{name}.ftz.f32 %p, %a, %b; selp.b32 %d, 1, 0, %p;"), B32, &[R32, R32], &pairs, |v| {
            u64::from(test(single(flush(v[0])), single(flush(v[1]))))
        });
    }
    check("testp.finite.f32 %p, %a; selp.b32 %d, 1, 0, %p;", B32, &[R32], &cross(&[&singles()]), |v| {
        u64::from(single(v[0]).is_finite())
    });
}

#[test]
fn double_precision() {
    let doubles: Vec<u64> =
        [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e-300, 5e-324, f64::MAX, f64::INFINITY, f64::MIN_POSITIVE]
            .iter()
            .map(|value: &f64| value.to_bits())
            .collect();
    let pairs = cross(&[&doubles, &doubles]);
    let triples = cross(&[&doubles, &doubles, &doubles]);
    let double = f64::from_bits;
    // The payload of a NaN is not defined for f64.
    let check = |code: &str, from: &[Operand], rows: &[Vec<u64>], expected: &dyn Fn(&[u64]) -> f64| {
        for (row, found) in rows.iter().zip(elementwise(code, R64, from, rows)) {
            let (found, expected) = (double(found), expected(row));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{code} of {row:x?}: {found} instead of {expected}");
        }
    };
    check("add.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) + double(v[1]));
    check("add.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) + double(v[1]));
    check("sub.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) - double(v[1]));
    check("mul.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) * double(v[1]));
    check("div.rn.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| double(v[0]) / double(v[1]));
    check("fma.rn.f64 %d, %a, %b, %c;", &[R64; 3], &triples, &|v| double(v[0]).mul_add(double(v[1]), double(v[2])));
    check("sqrt.rn.f64 %d, %a;", &[R64], &cross(&[&doubles]), &|v| double(v[0]).sqrt());
    check("max.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| extreme(double(v[0]), double(v[1]), true, false));
    check("min.f64 %d, %a, %b;", &[R64, R64], &pairs, &|v| extreme(double(v[0]), double(v[1]), false, false));
    check("neg.f64 %d, %a;", &[R64], &cross(&[&doubles]), &|v| -double(v[0]));
}
