//! The `.approx` instructions, modelled as the sequence that they lower to on sm_90: each step of the special-function unit is
//! the `f64` value of the function rounded once to nearest, and the scalings around it are `f32` products.
//!
//! The `f64` values come from fixed polynomials with fused multiply-adds, so they do not depend on the CPU or its libm.

use std::hint::select_unpredictable;

use super::float::{canonical_f32, flush_f32};
use super::float16::{Half, narrow_lanes, to_odd, widen_lanes};
use super::{Lanes, dispatched, map1, map2};

mod functions;
use functions::{cos_turns, exp2, log2, sin_turns, tanh};

/// A function of one `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `ex2.approx`
    Ex2,
    /// `lg2.approx`
    Lg2,
    /// `rcp.approx`
    Rcp,
    /// `rsqrt.approx`
    Rsqrt,
    /// `sqrt.approx`
    Sqrt,
    /// `sin.approx`
    Sin,
    /// `cos.approx`
    Cos,
    /// `tanh.approx` (has no `.ftz`: subnormals pass through)
    Tanh,
}

// `select_unpredictable` rather than `if` where both sides would otherwise repeat a whole polynomial in the vectorised loop.

const TWO_POW_24: f32 = 16_777_216.0;
const TWO_POW_126: f32 = f32::from_bits(0x7e80_0000);

#[inline(always)]
fn flush(x: f32) -> f32 {
    f32::from_bits(flush_f32(x.to_bits()))
}

/// The reciprocal step itself knows no subnormals, on either side.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    flush(1.0 / flush(x))
}

/// `ex2.approx.f32`: below -126 the half exponent is raised and the result squared.
#[inline(always)]
fn ex2(x: f32) -> f32 {
    let low = x < -126.0;
    let power = exp2(select_unpredictable(low, 0.5 * x, x)) as f32;
    select_unpredictable(low, power * power, power)
}

/// `lg2.approx.f32`: a subnormal is scaled by 2^24 and 24 is taken off the result.
#[inline(always)]
fn lg2(x: f32) -> f32 {
    let low = x.abs() < f32::MIN_POSITIVE;
    let log = log2(select_unpredictable(low, x * TWO_POW_24, x));
    select_unpredictable(low, log - 24.0, log)
}

/// `rcp.approx.f32`: subnormals are scaled up, and numbers with a subnormal reciprocal down, on both sides of the step.
#[inline(always)]
fn rcp(x: f32) -> f32 {
    let magnitude = x.abs();
    let scale = if magnitude < f32::MIN_POSITIVE {
        TWO_POW_24
    } else if magnitude > TWO_POW_126 {
        0.25
    } else {
        1.0
    };
    reciprocal(x * scale) * scale
}

/// `rsqrt.approx.f32`: a subnormal is scaled by 2^24 and the result by 2^12.
#[inline(always)]
fn rsqrt(x: f32) -> f32 {
    let low = x.abs() < f32::MIN_POSITIVE;
    let root = (1.0 / f64::from(select_unpredictable(low, x * TWO_POW_24, x)).sqrt()) as f32;
    select_unpredictable(low, root * 4096.0, root)
}

/// The nearest number toward zero to the product with 1/2pi, which the trigonometric steps take as turns.
#[inline(always)]
fn turns(x: f32) -> f32 {
    let product = f64::from(x) * f64::from(0.159_154_94_f32);
    let nearest = product as f32;
    if f64::from(nearest).abs() > product.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest }
}

#[inline(always)]
fn lanes(ftz: bool, a: &Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    if ftz {
        map1(a, |x| flush_f32(canonical_f32(f(f32::from_bits(flush_f32(x))))))
    } else {
        map1(a, |x| canonical_f32(f(f32::from_bits(x))))
    }
}

#[inline(always)]
fn function_body(function: Function, ftz: bool, a: &Lanes) -> Lanes {
    match function {
        // With flushed results there is nothing to gain from the detour for small ones.
        Function::Ex2 if ftz => lanes(true, a, |x| exp2(x) as f32),
        Function::Ex2 => lanes(false, a, ex2),
        Function::Lg2 => lanes(ftz, a, lg2),
        Function::Rcp if ftz => lanes(true, a, reciprocal),
        Function::Rcp => lanes(false, a, rcp),
        Function::Rsqrt => lanes(ftz, a, rsqrt),
        // The scaling by an even power of two around the root changes nothing: no root is subnormal.
        Function::Sqrt => lanes(ftz, a, f32::sqrt),
        Function::Sin => lanes(ftz, a, |x| sin_turns(turns(x))),
        Function::Cos => lanes(ftz, a, |x| cos_turns(turns(x))),
        Function::Tanh => lanes(false, a, |x| tanh(x) as f32),
    }
}

dispatched! {
    /// `{ex2,lg2,rcp,rsqrt,sqrt,sin,cos,tanh}.approx{.ftz}.f32` on every lane.
    pub fn function_lanes(function: Function, ftz: bool, a: &Lanes) -> Lanes = function_body;
}

/// An approximate division.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Division {
    /// `div.approx`: for divisors up to 2^126; beyond, the quotient is zero (NaN for an infinite dividend).
    Approx,
    /// `div.full`: scaled, so good over the full range.
    Full,
}

#[inline(always)]
fn divide(division: Division, ftz: bool, a: f32, b: f32) -> f32 {
    let magnitude = b.abs();
    let scale = if division == Division::Full && magnitude > TWO_POW_126 {
        0.25
    } else if !ftz && magnitude < f32::MIN_POSITIVE {
        TWO_POW_24
    } else {
        1.0
    };
    let dividend = a * scale;
    (if ftz { flush(dividend) } else { dividend }) * reciprocal(b * scale)
}

#[inline(always)]
fn division_body(division: Division, ftz: bool, a: &Lanes, b: &Lanes) -> Lanes {
    if ftz {
        map2(a, b, |a, b| {
            let quotient = divide(division, true, flush(f32::from_bits(a)), flush(f32::from_bits(b)));
            canonical_f32(flush(quotient))
        })
    } else {
        map2(a, b, |a, b| canonical_f32(divide(division, false, f32::from_bits(a), f32::from_bits(b))))
    }
}

dispatched! {
    /// `div.{approx,full}{.ftz}.f32` on every lane.
    pub fn division_lanes(division: Division, ftz: bool, a: &Lanes, b: &Lanes) -> Lanes = division_body;
}

/// A function of one 16-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HalfFunction {
    /// `ex2.approx{.ftz}`
    Ex2,
    /// `tanh.approx`
    Tanh,
}

/// The half of every lane that lies `shift` bits up, through `f` and one rounding.
#[inline(always)]
fn half_of(format: Half, ftz: bool, shift: u32, a: &Lanes, f: impl Fn(f32) -> f64) -> Lanes {
    let mut d = widen_lanes(format, ftz, shift, a);
    for x in &mut d {
        *x = to_odd(f(*x));
    }
    narrow_lanes(format, ftz, &d)
}

/// One half of every lane, or both.
#[inline(always)]
fn halves_of(format: Half, packed: bool, ftz: bool, a: &Lanes, f: impl Fn(f32) -> f64) -> Lanes {
    let mut d = half_of(format, ftz, 0, a, &f);
    if packed {
        let high = half_of(format, ftz, 16, a, &f);
        for lane in 0..32 {
            d[lane] |= high[lane] << 16;
        }
    }
    d
}

#[inline(always)]
fn half_body(function: HalfFunction, format: Half, packed: bool, ftz: bool, a: &Lanes) -> Lanes {
    match (function, format) {
        (HalfFunction::Ex2, Half::F16) => halves_of(Half::F16, packed, ftz, a, exp2),
        (HalfFunction::Ex2, Half::Bf16) => halves_of(Half::Bf16, packed, ftz, a, exp2),
        (HalfFunction::Tanh, Half::F16) => halves_of(Half::F16, packed, ftz, a, tanh),
        (HalfFunction::Tanh, Half::Bf16) => halves_of(Half::Bf16, packed, ftz, a, tanh),
    }
}

dispatched! {
    /// `{ex2,tanh}.approx{.ftz}.{f16,f16x2,bf16,bf16x2}` on every lane: one rounding to the format. Not packed, the high half
    /// of the result is zero.
    pub fn half_lanes(function: HalfFunction, format: Half, packed: bool, ftz: bool, a: &Lanes) -> Lanes = half_body;
}

#[cfg(test)]
mod tests;
