//! `cvt` between formats and to and from integers.

use super::half_precision::HALVES;
use super::{check, few_singles, single, single_bits, singles};
use crate::harness::{B16, B32, B64, F32 as R32, F64 as R64, Random, cross, elementwise};
use crate::reals::{F16, F32, Mode, Real};

#[test]
fn conversions_between_formats() {
    for half in HALVES {
        let name = half.name;
        let all: Vec<Vec<u64>> = (0..=0xFFFF).map(|bits| vec![bits]).collect();
        for (row, found) in all.iter().zip(elementwise(&format!("cvt.f32.{name} %d, %a;"), R32, &[B16], &all)) {
            let (found, expected) = (single(found), half.value(row[0]));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{name} {row:x?}: {found} instead of {expected}");
        }

        let mut rows = cross(&[&singles()]);
        rows.extend(Random::new(5).words(4000).iter().map(|word| vec![u64::from(*word)]));
        // Ties and their neighbours for every exponent of the 16-bit format.
        rows.extend((0..=0x7FFFu64).step_by(61).flat_map(|bits| {
            let middle = single_bits((half.value(bits) + half.value(bits + 1)) / 2.0);
            [middle.saturating_sub(1), middle, middle + 1].map(|bits| vec![bits])
        }));
        for mode in [Mode::Rn, Mode::Rz] {
            check(&format!("cvt.{}.{name}.f32 %d, %a;", mode.name()), B16, &[R32], &rows, |v| {
                let value = single(v[0]);
                half.bits(if value.is_finite() { Real::exact(value).round(half.format, mode) } else { value })
            });
        }
        let pairs = cross(&[&few_singles(), &few_singles()]);
        check(&format!("cvt.rn.{name}x2.f32 %d, %a, %b;"), B32, &[R32, R32], &pairs, |v| {
            let round = |bits| {
                let value = single(bits);
                half.bits(if value.is_finite() { Real::exact(value).round(half.format, Mode::Rn) } else { value })
            };
            round(v[0]) << 16 | round(v[1])
        });
    }
    check("cvt.rna.tf32.f32 %d, %a;", B32, &[R32], &cross(&[&singles()]), |v| {
        let special = v[0] & 0x7F80_0000 == 0x7F80_0000;
        if special && single(v[0]).is_nan() {
            return v[0] & !0x1FFF;
        }
        if special { v[0] } else { (v[0] + 0x1000) & !0x1FFF }
    });
    check("cvt.f64.f32 %d, %a;", R64, &[R32], &cross(&[&few_singles()[..9]]), |v| single(v[0]).to_bits());
    let doubles: Vec<Vec<u64>> =
        [0.0, -0.0, 0.1, -1e-46, 1e-40, 1e300, 3.4028235677973366e38, 1.0 + 2f64.powi(-24), f64::INFINITY]
            .iter()
            .map(|value: &f64| vec![value.to_bits()])
            .collect();
    for mode in Mode::ALL {
        check(&format!("cvt.{}.f32.f64 %d, %a;", mode.name()), R32, &[R64], &doubles, |v| {
            let value = f64::from_bits(v[0]);
            single_bits(if value.is_finite() { Real::exact(value).round(F32, mode) } else { value })
        });
    }
}

#[test]
fn conversions_between_numbers_and_integers() {
    let mut rows = cross(&[&singles()]);
    for value in [
        0.5,
        1.5,
        2.5,
        -0.5,
        -2.5,
        2147483520.0,
        2147483648.0,
        4294967040.0,
        4294967296.0,
        -2147483648.0,
        9.3e18,
        1.9e19f32,
    ] {
        rows.push(vec![u64::from(value.to_bits())]);
    }
    let whole = |value: f64, mode: Mode| match mode {
        Mode::Rn => value.round_ties_even(),
        Mode::Rz => value.trunc(),
        Mode::Rm => value.floor(),
        Mode::Rp => value.ceil(),
    };
    for mode in Mode::ALL {
        let name = mode.name();
        check(&format!("cvt.{name}i.s32.f32 %d, %a;"), B32, &[R32], &rows, |v| {
            u64::from(whole(single(v[0]), mode) as i32 as u32)
        });
        check(&format!("cvt.{name}i.u32.f32 %d, %a;"), B32, &[R32], &rows, |v| {
            u64::from(whole(single(v[0]), mode) as u32)
        });
        let numbers: Vec<Vec<u64>> = rows.iter().filter(|v| !single(v[0]).is_nan()).cloned().collect();
        check(&format!("cvt.{name}i.s64.f32 %d, %a;"), B64, &[R32], &numbers, |v| {
            whole(single(v[0]), mode) as i64 as u64
        });
        check(&format!("cvt.{name}i.u64.f32 %d, %a;"), B64, &[R32], &numbers, |v| whole(single(v[0]), mode) as u64);
        check(&format!("cvt.{name}i.f32.f32 %d, %a;"), R32, &[R32], &numbers, |v| {
            single_bits(whole(single(v[0]), mode))
        });

        let words: Vec<Vec<u64>> =
            [0, 1, 16_777_217, 16_777_219, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFF00_0081u32]
                .iter()
                .map(|word| vec![u64::from(*word)])
                .collect();
        check(&format!("cvt.{name}.f32.u32 %d, %a;"), R32, &[B32], &words, |v| {
            single_bits(Real::exact(v[0] as f64).round(F32, mode))
        });
        check(&format!("cvt.{name}.f32.s32 %d, %a;"), R32, &[B32], &words, |v| {
            single_bits(Real::exact(f64::from(v[0] as i32)).round(F32, mode))
        });
    }
    check("cvt.rn.f16.u32 %d, %a;", B16, &[B32], &cross(&[&[0, 1, 2049, 2051, 65504, 65519, 65520, 1 << 31]]), |v| {
        HALVES[0].bits(Real::exact(v[0] as f64).round(F16, Mode::Rn))
    });
    check("cvt.rzi.s32.f16 %d, %a;", B32, &[B16], &cross(&[&[0, 0x3C00, 0xBE00, 0x7BFF, 0xFC00, 0x7C00]]), |v| {
        u64::from(HALVES[0].value(v[0]) as i32 as u32)
    });
    check("cvt.rn.f64.s64 %d, %a;", R64, &[B64], &cross(&[&[0, 1, u64::MAX, i64::MAX as u64]]), |v| {
        (v[0] as i64 as f64).to_bits()
    });
}
