//! Products as Hopper's tensor cores sum them. With the exponent of a product taken as the sum of its operands' exponents
//! (subnormal operands keep their format's smallest one, and a product that is zero counts as -126):
//!
//! 1. all products and the accumulator are aligned to the largest exponent and truncated to 25 fractional bits;
//! 2. the sum of those is exact;
//! 3. it is truncated to `f32`, or rounded to nearest even where the result is `f16`.
//!
//! A NaN, or infinities that do not agree, give the canonical NaN.

mod rows;

use super::layout::{self, MatrixA, MatrixB, MatrixC};
use crate::numerics::float16::Half;
use crate::numerics::{Lanes, NAN_F32, dispatched};
use rows::{Operands, Sums};

/// Bits kept below the binary point of the largest term.
const FRACTION: i32 = 25;
/// The exponent of a zero operand: low enough to never be the largest.
const ZERO: i32 = -10_000;

/// The exponent of an operand whose format has `smallest` for its subnormals; 128 for infinity and NaN.
#[inline(always)]
fn exponent(x: u32, smallest: i32) -> i32 {
    let field = (x >> 23 & 255) as i32;
    if x & 0x7fff_ffff == 0 { ZERO } else { (field - 127).max(smallest) }
}

/// The exponents of a matrix, and the largest one. One flat loop, which is what vectorises.
#[inline(always)]
fn exponents<const N: usize>(m: &[[u32; N]; 16], smallest: i32) -> ([[i32; N]; 16], i32) {
    let mut all = [[0; N]; 16];
    let mut top = ZERO;
    for (to, x) in all.as_flattened_mut().iter_mut().zip(m.as_flattened()) {
        *to = exponent(*x, smallest);
        top = top.max(*to);
    }
    (all, top)
}

/// `2^n` for the exponents of normal numbers.
#[inline(always)]
fn power_f64(n: i32) -> f64 {
    f64::from_bits(((i64::from(n) + 1023) as u64) << 52)
}

/// What the operands are: the smallest exponents of the factors and of the accumulator.
#[derive(Clone, Copy)]
struct Formats {
    k: usize,
    factors: i32,
    accumulator: i32,
}

/// The exact sum for one element, in any case whatsoever.
#[inline(never)]
fn element(formats: Formats, row: &[u32; 16], b: &MatrixB, j: usize, c: u32) -> f64 {
    let value = |x: u32| f64::from(f32::from_bits(x));
    let special = |x: u32| x & 0x7f80_0000 == 0x7f80_0000;
    let k = formats.k;
    if special(c) || (0..k).any(|p| special(row[p]) || special(b[p][j])) {
        // Nothing finite overflows in f64, so only the special operands decide.
        return (0..k).fold(value(c), |sum, p| sum + value(row[p]) * value(b[p][j]));
    }
    let mut largest = exponent(c, formats.accumulator).max(-126);
    for p in 0..k {
        largest = largest.max(exponent(row[p], formats.factors) + exponent(b[p][j], formats.factors));
    }
    let (scale, unit) = (power_f64(FRACTION - largest), power_f64(largest - FRACTION));
    let aligned = |x: f64| (x * scale).trunc();
    // Starting from plus zero: the sum of whole numbers has no minus zero.
    (0..k).fold(0.0 + aligned(value(c)), |sum, p| sum + aligned(value(row[p]) * value(b[p][j]))) * unit
}

/// Every element of D: as `pick` takes it from the rows, or as `round` makes it from an exact sum where they do not serve.
/// `WIDE` is for a caller that is compiled for AVX2.
#[inline(always)]
fn multiply<const WIDE: bool, T: Copy + Default>(
    formats: Formats,
    a: &MatrixA,
    b: &MatrixB,
    c: &MatrixC,
    pick: impl Fn(&Sums) -> [[T; 8]; 16],
    round: impl Fn(f64) -> T,
) -> [[T; 8]; 16] {
    let (a_exponents, a_top) = exponents(a, formats.factors);
    let (b_exponents, b_top) = exponents(b, formats.factors);
    let (c_exponents, c_top) = exponents(c, formats.accumulator);
    let (mut d, mut left) = ([[T::default(); 8]; 16], u32::MAX);
    // Numbers only, and no product overflows.
    if a_top.max(b_top).max(c_top) < 128 && a_top + b_top <= 125 {
        let (a_exponents, b_exponents, c_exponents) = (&a_exponents, &b_exponents, &c_exponents);
        let operands = Operands { k: formats.k, a, a_exponents, b, b_exponents, c, c_exponents };
        let sums = if WIDE { operands.wide() } else { operands.plain() };
        (d, left) = (pick(&sums), sums.low);
    }
    if left != 0 {
        for i in (0..16).filter(|i| left >> i & 1 == 1) {
            for j in 0..8 {
                d[i][j] = round(element(formats, &a[i], b, j, c[i][j]));
            }
        }
    }
    d
}

/// Truncates to `f32`. What exceeds the largest number by a unit or more is infinite.
#[inline(always)]
fn truncate_f32(x: f64) -> u32 {
    const OVERFLOW: f64 = f64::from_bits((1023 + 128) << 52);
    let nearest = x as f32;
    let over = f64::from(nearest).abs() > x.abs() && x.abs() < OVERFLOW;
    let bits = if over { nearest.to_bits() - 1 } else { nearest.to_bits() };
    if x.is_nan() { NAN_F32 } else { bits }
}

#[inline(always)]
fn multiply_words<const WIDE: bool>(formats: Formats, a: &MatrixA, b: &MatrixB, c: &MatrixC) -> [Lanes; 4] {
    layout::d_words(&multiply::<WIDE, u32>(formats, a, b, c, |sums| sums.truncated, truncate_f32))
}

#[inline(always)]
pub(super) fn half_body<const WIDE: bool>(
    format: Half,
    k: usize,
    a: [&Lanes; 4],
    b: [&Lanes; 2],
    c: [&Lanes; 4],
) -> [Lanes; 4] {
    let c = layout::c_words(c);
    match (format, k) {
        (Half::F16, 16) => {
            let formats = Formats { k: 16, factors: -14, accumulator: -126 };
            multiply_words::<WIDE>(formats, &layout::a_half(Half::F16, 16, a), &layout::b_half(Half::F16, 16, b), &c)
        }
        (Half::Bf16, 16) => {
            let formats = Formats { k: 16, factors: -126, accumulator: -126 };
            multiply_words::<WIDE>(formats, &layout::a_half(Half::Bf16, 16, a), &layout::b_half(Half::Bf16, 16, b), &c)
        }
        _ => {
            let factors = if format == Half::F16 { -14 } else { -126 };
            let formats = Formats { k: 8, factors, accumulator: -126 };
            multiply_words::<WIDE>(formats, &layout::a_half(format, 8, a), &layout::b_half(format, 8, b), &c)
        }
    }
}

dispatched! {
    /// `f16` or `bf16`, accumulated in `f32`.
    pub fn half(format: Half, k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = half_body::<false>, half_body::<true>;
}

#[inline(always)]
pub(super) fn half_to_half_body<const WIDE: bool>(
    k: usize,
    a: [&Lanes; 4],
    b: [&Lanes; 2],
    c: [&Lanes; 4],
) -> [Lanes; 4] {
    let formats = Formats { k, factors: -14, accumulator: -14 };
    let c = layout::c_pairs(c);
    let (a, b) = (layout::a_half(Half::F16, k, a), layout::b_half(Half::F16, k, b));
    let exact = multiply::<WIDE, f64>(formats, &a, &b, &c, |sums| sums.exact, |exact| exact);
    layout::d_pairs(&exact, |x| Half::F16.narrow_f64(x))
}

dispatched! {
    /// `f16` throughout.
    pub fn half_to_half(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = half_to_half_body::<false>, half_to_half_body::<true>;
}

#[inline(always)]
pub(super) fn tf32_body<const WIDE: bool>(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let formats = Formats { k, factors: -126, accumulator: -126 };
    multiply_words::<WIDE>(formats, &layout::a_tf32(k, a), &layout::b_tf32(k, b), &layout::c_words(c))
}

dispatched! {
    /// `tf32`, accumulated in `f32`.
    pub fn tf32(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = tf32_body::<false>, tf32_body::<true>;
}
