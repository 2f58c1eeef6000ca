//! Products as Hopper's tensor cores sum them: every product and the accumulator aligned to the largest exponent and
//! truncated to 25 fractional bits, an exact sum, and a truncated result.

use super::layout::{self, MatrixA, MatrixB, MatrixC};
use crate::numerics::float16::Half;
use crate::numerics::{Lanes, NAN_F32};

/// Bits kept below the binary point of the largest term.
const FRACTION: i32 = 25;

/// The significand with its sign, and the exponent of its unit times 2^23 (a zero counts as the smallest exponent).
#[inline(always)]
fn split(x: u32) -> (i64, i32) {
    let field = (x >> 23 & 255) as i32;
    let magnitude = i64::from(x & 0x7f_ffff | if field == 0 { 0 } else { 0x80_0000 });
    (if x >> 31 == 1 { -magnitude } else { magnitude }, field.max(1) - 127)
}

/// One element in integers: `row` and `column` are `f32` bits with 11 significant bits at most.
fn element(row: &[u32], column: impl Fn(usize) -> u32, c: u32) -> u32 {
    let special = |x: u32| x & 0x7f80_0000 == 0x7f80_0000;
    if special(c) || (0..row.len()).any(|p| special(row[p]) || special(column(p))) {
        // Products of finite operands neither overflow nor matter beside an infinity, so its sign decides, or NaN does.
        let mut sum = if special(c) { f64::from(f32::from_bits(c)) } else { 0.0 };
        for p in 0..row.len() {
            if special(row[p]) || special(column(p)) {
                sum += f64::from(f32::from_bits(row[p])) * f64::from(f32::from_bits(column(p)));
            }
        }
        return if sum.is_nan() { NAN_F32 } else { (sum as f32).to_bits() };
    }
    let (c, c_exponent) = split(c);
    let mut largest = c_exponent;
    for p in 0..row.len() {
        largest = largest.max(split(row[p]).1 + split(column(p)).1);
    }
    // A term's magnitude in units of 2^(largest - FRACTION): truncation drops the sign's influence.
    let align = |value: i64, fraction: i32, exponent: i32| {
        let down = (largest - exponent).min(63);
        let magnitude = if fraction <= FRACTION {
            value.unsigned_abs() << (FRACTION - fraction) >> down
        } else {
            value.unsigned_abs() >> (fraction - FRACTION) >> down
        };
        if value < 0 { -(magnitude as i64) } else { magnitude as i64 }
    };
    let mut sum = align(c, 23, c_exponent);
    for p in 0..row.len() {
        let ((x, x_exponent), (y, y_exponent)) = (split(row[p]), split(column(p)));
        sum += align(x * y, 46, x_exponent + y_exponent);
    }
    truncate(sum, largest - FRACTION)
}

/// `sum * 2^unit` truncated to `f32`; too large becomes infinite.
fn truncate(sum: i64, unit: i32) -> u32 {
    if sum == 0 {
        return 0;
    }
    let sign = if sum < 0 { 0x8000_0000 } else { 0 };
    let magnitude = sum.unsigned_abs();
    let top = 63 - magnitude.leading_zeros() as i32;
    let exponent = top + unit;
    if exponent > 127 {
        return sign | 0x7f80_0000;
    }
    let shift = exponent.max(-126) - 23 - unit;
    let significand = if shift >= 0 { magnitude >> shift.min(63) } else { magnitude << -shift } as u32;
    sign | (((exponent.max(-126) + 126) as u32) << 23).wrapping_add(significand)
}

fn multiply(k: usize, a: &MatrixA, b: &MatrixB, c: &mut MatrixC) {
    for i in 0..16 {
        for j in 0..8 {
            c[i][j] = element(&a[i][..k], |p| b[p][j], c[i][j]);
        }
    }
}

/// `f16` or `bf16`, accumulated in `f32`.
pub fn half(format: Half, k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_words(c);
    multiply(k, &layout::a_half(format, k, a), &layout::b_half(format, k, b), &mut m);
    layout::d_words(&m)
}

/// `f16`, rounded to `f16` to nearest even at the end.
pub fn half_to_half(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_pairs(c);
    multiply(k, &layout::a_half(Half::F16, k, a), &layout::b_half(Half::F16, k, b), &mut m);
    layout::d_pairs(&m)
}

/// `tf32`, accumulated in `f32`.
pub fn tf32(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_words(c);
    multiply(k, &layout::a_tf32(k, a), &layout::b_tf32(k, b), &mut m);
    layout::d_words(&m)
}
