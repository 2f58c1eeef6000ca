//! The functions behind the approximate instructions, in `f64`, good to about 2^-50: an `f32` or shorter result is correctly
//! rounded but for one value in 2^26. No branches, so that loops over lanes vectorise.

use std::hint::select_unpredictable;

/// `2^f - 1` for `|f| <= 1/2`, over `f`: interpolated at the Chebyshev nodes, relative error of the power below 2^-50.
const EXP2: [f64; 10] = [
    0.6931471805599462,
    0.24022650695910075,
    0.05550410866465167,
    0.009618129107618665,
    0.0013333558200794592,
    0.00015403530424776529,
    1.5252672924850737e-05,
    1.3215451633221434e-06,
    1.0205905413765595e-07,
    7.070977866508139e-09,
];

/// `2 / ((2k+1) ln 2)`: log2((1+s)/(1-s)) is `s` times a series in `s^2`.
const LOG2: [f64; 11] = {
    let mut c = [0.0; 11];
    let mut k = 0;
    while k < 11 {
        c[k] = 2.0 * std::f64::consts::LOG2_E / (2 * k + 1) as f64;
        k += 1;
    }
    c
};

/// Taylor coefficients of `sin(2 pi r)` in odd powers of `r` and of `cos(2 pi r)` in even ones, for `|r| <= 1/8`.
const SIN: [f64; 9] = series(1);
const COS: [f64; 9] = series(0);

const fn series(first: usize) -> [f64; 9] {
    let mut c = [0.0; 9];
    let mut term = if first == 1 { std::f64::consts::TAU } else { 1.0 };
    let mut k = 0;
    while k < 9 {
        c[k] = term;
        let n = (2 * k + first) as f64;
        term *= -(std::f64::consts::TAU * std::f64::consts::TAU) / ((n + 1.0) * (n + 2.0));
        k += 1;
    }
    c
}

#[inline(always)]
fn polynomial<const N: usize>(c: &[f64; N], x: f64) -> f64 {
    let mut value = c[N - 1];
    for i in (0..N - 1).rev() {
        value = value.mul_add(x, c[i]);
    }
    value
}

/// `2^n` for an integer held in an `f64` within the exponents of normal numbers.
#[inline(always)]
fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((i64::from(n) + 1023) as u64) << 52)
}

/// `2^x`.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f64 {
    // Beyond these bounds the result is zero or infinite in any narrower format; NaN passes both comparisons.
    let x = if x > 200.0 { 200.0 } else { x };
    let x = if x < -200.0 { -200.0 } else { x };
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const MAGIC: f32 = 12_582_912.0;
    let sum = x + MAGIC;
    let n = sum.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let f = f64::from(x - (sum - MAGIC));
    polynomial(&EXP2, f).mul_add(f, 1.0) * power_of_two(n)
}

/// An integer `n`, and `2^f - 1` for the rest `f` of `x - n`, where `|x|` is below 1000.
#[inline(always)]
fn split_exp2(x: f64) -> (i32, f64) {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let sum = x + MAGIC;
    let n = sum.to_bits() as i32;
    let f = x - (sum - MAGIC);
    (n, polynomial(&EXP2, f) * f)
}

/// `log2 x` rounded to `f32`, for anything but subnormals: minus infinity at zero, NaN below.
#[inline(always)]
pub(super) fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    // The mantissa is taken from [sqrt 1/2, sqrt 2), so that the logarithm near one has no cancellation.
    let offset = bits.wrapping_sub(0x3f35_04f3);
    let exponent = (offset as i32) >> 23;
    let m = f64::from(f32::from_bits((offset & 0x7f_ffff) + 0x3f35_04f3));
    let s = (m - 1.0) / (m + 1.0);
    let value = polynomial(&LOG2, s * s).mul_add(s, f64::from(exponent)) as f32;
    let special = if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    let value = if x > 0.0 { value } else { special };
    if x == f32::INFINITY { x } else { value }
}

/// The nearest multiple of a quarter turn as its number modulo four, and what is left, in turns.
#[inline(always)]
fn quarters(t: f32) -> (u32, f64) {
    // From 2^23 on every number is a whole number of turns; the product makes NaN of infinity.
    let whole = t.abs() >= 8_388_608.0;
    let t = f64::from(if whole { t * 0.0 } else { t });
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let sum = t * 4.0 + MAGIC;
    (sum.to_bits() as u32 & 3, t - (sum - MAGIC) * 0.25)
}

#[inline(always)]
fn sine_or_cosine(quarter: u32, r: f64) -> f64 {
    let square = r * r;
    let sine = polynomial(&SIN, square) * r;
    let cosine = polynomial(&COS, square);
    let value = select_unpredictable(quarter & 1 == 0, sine, cosine);
    f64::from_bits(value.to_bits() ^ (u64::from(quarter & 2) << 62))
}

/// `sin(2 pi t)` rounded to `f32`.
#[inline(always)]
pub(super) fn sin_turns(t: f32) -> f32 {
    let (quarter, r) = quarters(t);
    let value = sine_or_cosine(quarter, r) as f32;
    if t == 0.0 { t } else { value }
}

/// `cos(2 pi t)` rounded to `f32`.
#[inline(always)]
pub(super) fn cos_turns(t: f32) -> f32 {
    let (quarter, r) = quarters(t);
    sine_or_cosine(quarter + 1, r) as f32
}

/// `tanh x`; a subnormal is its own value.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f64 {
    let magnitude = x.abs();
    // tanh is 1 to the last bit of an f32 long before 40.
    let bounded = f64::from(if magnitude > 40.0 { 40.0 } else { magnitude });
    let (n, part) = split_exp2(bounded * (2.0 * std::f64::consts::LOG2_E));
    // e^2x - 1 without cancellation: what 2^n adds is exact.
    let scale = power_of_two(n);
    let minus_one = part.mul_add(scale, scale - 1.0);
    let value = (minus_one / (minus_one + 2.0)).copysign(f64::from(x));
    if magnitude < f32::MIN_POSITIVE { f64::from(x) } else { value }
}
