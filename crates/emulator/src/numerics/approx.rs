//! The `.approx` instructions, modelled as the sequence that they lower to on sm_90: each step of the special-function unit is
//! the `f64` value of the function rounded once to nearest, and the scalings around it are `f32` products.
//!
//! The `f64` values come from fixed polynomials with fused multiply-adds, so they do not depend on the CPU or its libm.

use super::float::{canonical_f32, flush_f32};
use super::float16::{Half, flush_f16};
use super::half::{halves, pair};
use super::{Lanes, NAN_HALF, dispatched, map1, map2};

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

const TWO_POW_24: f32 = 16_777_216.0;

/// `ex2.approx.f32`: below -126 the half exponent is raised and the result squared.
#[inline(always)]
fn ex2(x: f32) -> f32 {
    let low = x < -126.0;
    let power = exp2(if low { 0.5 * x } else { x });
    if low { power * power } else { power }
}

/// `lg2.approx.f32`: a subnormal is scaled by 2^24 and 24 is taken off the result.
#[inline(always)]
fn lg2(x: f32) -> f32 {
    let low = x.abs() < f32::MIN_POSITIVE;
    let log = log2(if low { x * TWO_POW_24 } else { x });
    if low { log - 24.0 } else { log }
}

/// `rcp.approx.f32`: subnormals are scaled up, and numbers with a subnormal reciprocal down, on both sides of the step.
#[inline(always)]
fn rcp(x: f32) -> f32 {
    let magnitude = x.abs();
    let scale = if magnitude < f32::MIN_POSITIVE {
        TWO_POW_24
    } else if magnitude > 8.507_059_2e37 {
        0.25
    } else {
        1.0
    };
    (1.0 / (x * scale)) * scale
}

/// `rsqrt.approx.f32`: a subnormal is scaled by 2^24 and the result by 2^12.
#[inline(always)]
fn rsqrt(x: f32) -> f32 {
    let low = x.abs() < f32::MIN_POSITIVE;
    let root = (1.0 / f64::from(if low { x * TWO_POW_24 } else { x }).sqrt()) as f32;
    if low { root * 4096.0 } else { root }
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
        Function::Ex2 if ftz => lanes(true, a, exp2),
        Function::Ex2 => lanes(false, a, ex2),
        Function::Lg2 => lanes(ftz, a, lg2),
        Function::Rcp if ftz => lanes(true, a, |x| 1.0 / x),
        Function::Rcp => lanes(false, a, rcp),
        Function::Rsqrt => lanes(ftz, a, rsqrt),
        // The scaling by an even power of two around the root changes nothing: no root is subnormal.
        Function::Sqrt => lanes(ftz, a, f32::sqrt),
        Function::Sin => lanes(ftz, a, |x| sin_turns(turns(x))),
        Function::Cos => lanes(ftz, a, |x| cos_turns(turns(x))),
        Function::Tanh => lanes(false, a, tanh),
    }
}

dispatched! {
    /// `{ex2,lg2,rcp,rsqrt,sqrt,sin,cos,tanh}.approx{.ftz}.f32` on every lane.
    pub fn function_lanes(function: Function, ftz: bool, a: &Lanes) -> Lanes = function_body;
}

/// An approximate division.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Division {
    /// `div.approx`: for divisors up to 2^126 only; beyond, the quotient is zero (NaN for an infinite dividend).
    Approx,
    /// `div.full`: scaled, so good over the full range.
    Full,
}

#[inline(always)]
fn divide(ftz: bool, a: f32, b: f32) -> f32 {
    let flush = |x: f32| if ftz { f32::from_bits(flush_f32(x.to_bits())) } else { x };
    flush(a * flush(if ftz { 1.0 / b } else { rcp(b) }))
}

#[inline(always)]
fn division_body(division: Division, ftz: bool, a: &Lanes, b: &Lanes) -> Lanes {
    let value = |x: u32| f32::from_bits(if ftz { flush_f32(x) } else { x });
    map2(a, b, |a, b| {
        let (a, b) = (value(a), value(b));
        canonical_f32(match division {
            Division::Approx => divide(ftz, a, b),
            Division::Full if b.abs() > 8.507_059_2e37 => divide(ftz, a * 0.25, b * 0.25),
            Division::Full => divide(ftz, a, b),
        })
    })
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

#[inline(always)]
fn half_body(function: HalfFunction, format: Half, packed: bool, ftz: bool, a: &Lanes) -> Lanes {
    let flush = |h: u16| match (ftz, format) {
        (false, _) => h,
        (true, Half::F16) => flush_f16(h),
        (true, Half::Bf16) => {
            if h & 0x7f80 == 0 {
                h & 0x8000
            } else {
                h
            }
        }
    };
    let one = |h: u16| {
        let x = f64::from(f32::from_bits(format.widen(flush(h))));
        let value = match function {
            HalfFunction::Ex2 => functions::exp2_f64(x),
            HalfFunction::Tanh => functions::tanh_f64(x),
        };
        if value.is_nan() { NAN_HALF } else { flush(format.round_f64(value)) }
    };
    map1(a, |word| {
        let (high, low) = halves(word);
        pair(if packed { one(high) } else { 0 }, one(low))
    })
}

dispatched! {
    /// `{ex2,tanh}.approx{.ftz}.{f16,f16x2,bf16,bf16x2}` on every lane: one rounding to the format. Not packed, the high half
    /// of the result is zero.
    pub fn half_lanes(function: HalfFunction, format: Half, packed: bool, ftz: bool, a: &Lanes) -> Lanes = half_body;
}
