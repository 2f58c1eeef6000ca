//! Floating-point instructions over special values, against exact arithmetic rounded by [`crate::reals`].

mod approximations;
mod arithmetic;
mod conversions;
mod half_precision;

use crate::harness::{Operand, Random, elementwise};

pub const NAN_F32: u64 = 0x7FFF_FFFF;

/// Zeros, subnormals, ties, extremes, infinities, NaNs, and a few values without pattern.
pub fn singles() -> Vec<u64> {
    let mut bits: Vec<u32> = [
        0.0,
        1.0,
        1.5,
        2.0,
        3.0,
        0.1,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        16_777_215.0,
        16_777_216.0,
        1e-20,
        1e20,
        f32::MIN_POSITIVE,
        f32::MAX,
    ]
    .iter()
    .map(|value: &f32| value.to_bits())
    .collect();
    bits.extend([1, 0x007F_FFFF, 0x0040_0000, 0x3300_0000, f32::INFINITY.to_bits()]);
    bits.extend(bits.clone().iter().map(|value| value | 0x8000_0000));
    bits.extend([0x7FC0_0000, 0x7F80_0001, 0xFFC1_2345]);
    bits.extend(Random::new(4).words(4).iter().map(|word| word & 0xBFFF_FFFF | 0x2000_0000));
    bits.into_iter().map(u64::from).collect()
}

pub fn few_singles() -> Vec<u64> {
    [
        0x0000_0000,
        0x8000_0000,
        0x3F80_0000,
        0xBFC0_0000,
        0x0000_0001,
        0x8040_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0001,
        0x3380_0000,
        0x4B80_0000,
        0x0080_0000,
        0xB400_0001,
    ]
    .to_vec()
}

pub fn single(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

pub fn flush(bits: u64) -> u64 {
    if bits & 0x7F80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// The bits of an exactly representable f32, NaN in its one form.
pub fn single_bits(value: f64) -> u64 {
    if value.is_nan() { NAN_F32 } else { u64::from((value as f32).to_bits()) }
}

/// The smaller or larger of two numbers; -0 is smaller than +0.
pub fn extreme(a: f64, b: f64, larger: bool, nan_wins: bool) -> f64 {
    if a.is_nan() || b.is_nan() {
        return if nan_wins {
            f64::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    let a_first = a.total_cmp(&b).is_le();
    if a_first != larger { a } else { b }
}

pub fn check(code: &str, to: Operand, from: &[Operand], rows: &[Vec<u64>], expected: impl Fn(&[u64]) -> u64) {
    for (row, found) in rows.iter().zip(elementwise(code, to, from, rows)) {
        let expected = expected(row);
        assert_eq!(found, expected, "{code} of {row:x?}: {found:#x} instead of {expected:#x}");
    }
}
