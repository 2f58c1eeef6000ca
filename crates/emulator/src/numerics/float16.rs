//! Arithmetic on `f16` and `bf16`: one rounding per operation, canonical NaN.
//!
//! Values widen exactly. The exact result, or a wider one rounded to odd where it cannot be held, is rounded once.

use super::float::Choice;
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16_rn, f32_to_f16_rn, halves, pair, relu_half};
use super::{Lanes, NAN_HALF, dispatched};

/// A 16-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
}

impl Half {
    /// The value as `f32` bits, exactly.
    #[inline(always)]
    pub fn widen(self, h: u16) -> u32 {
        match self {
            Half::F16 => f16_to_f32(h),
            Half::Bf16 => bf16_to_f32(h),
        }
    }

    /// Rounds `f32` bits to nearest even.
    #[inline(always)]
    pub fn narrow(self, x: u32) -> u16 {
        match self {
            Half::F16 => f32_to_f16_rn(x),
            Half::Bf16 => f32_to_bf16_rn(x),
        }
    }

    /// Rounds an `f64` to nearest even in one step.
    #[inline(always)]
    pub fn narrow_f64(self, x: f64) -> u16 {
        self.narrow(to_odd(x).to_bits())
    }
}

/// `x` rounded to odd: where it is inexact, the neighbour with an odd last bit. Rounding that to a format that is at least two
/// bits narrower gives what one rounding of `x` would.
#[inline(always)]
pub(super) fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let wide = f64::from(nearest);
    let bits = nearest.to_bits();
    let toward = if wide.abs() > x.abs() { bits.wrapping_sub(1) } else { bits.wrapping_add(1) };
    f32::from_bits(if wide != x && bits & 1 == 0 && !x.is_nan() { toward } else { bits })
}

/// The modifiers of a 16-bit instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HalfMode {
    /// `.ftz` (`f16` only)
    pub ftz: bool,
    /// `.sat`: clamps to [0, 1], NaN becomes zero
    pub saturate: bool,
    /// `.relu`: negative results become zero, NaN stays
    pub relu: bool,
}

/// `.ftz`: a subnormal becomes zero of the same sign.
#[inline(always)]
pub fn flush_half(format: Half, h: u16) -> u16 {
    let exponent = match format {
        Half::F16 => 0x7c00,
        Half::Bf16 => 0x7f80,
    };
    if h & exponent == 0 { h & 0x8000 } else { h }
}

/// `p + c` in `f64`, rounded to odd.
#[inline(always)]
fn add_to_odd(p: f64, c: f64) -> f64 {
    let sum = p + c;
    let virtual_c = sum - p;
    let error = (p - (sum - virtual_c)) + (c - virtual_c);
    let bits = sum.to_bits();
    let toward = if (error > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let inexact = error != 0.0 && error.is_finite() && bits & 1 == 0;
    f64::from_bits(if inexact { toward } else { bits })
}

/// `a * b + c` of widened operands, to be narrowed: the product is exact in `f64`.
#[inline(always)]
fn wide_fma(format: Half, a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    to_odd(match format {
        // A sum that `f64` cannot hold has an addend more than 2^30 above the product: no tie is near.
        Half::F16 => product + c,
        Half::Bf16 => add_to_odd(product, c),
    })
}

/// `a * b` of widened operands, to be narrowed: exact in `f32` for `f16`; the smallest products of `bf16` leave `f32`.
#[inline(always)]
fn wide_mul(format: Half, a: f32, b: f32) -> f32 {
    match format {
        Half::F16 => a * b,
        Half::Bf16 => to_odd(f64::from(a) * f64::from(b)),
    }
}

#[inline(always)]
fn value(format: Half, h: u16) -> f32 {
    f32::from_bits(format.widen(h))
}

/// `fma.rn`: one rounding.
#[inline(always)]
pub fn fma_half(format: Half, a: u16, b: u16, c: u16) -> u16 {
    format.narrow(wide_fma(format, value(format, a), value(format, b), value(format, c)).to_bits())
}

/// `add.rn`: `f32` has more than twice the precision, so rounding twice does no harm.
#[inline(always)]
pub fn add_half(format: Half, a: u16, b: u16) -> u16 {
    format.narrow((value(format, a) + value(format, b)).to_bits())
}

/// `sub.rn`, as [`add_half`].
#[inline(always)]
pub fn sub_half(format: Half, a: u16, b: u16) -> u16 {
    format.narrow((value(format, a) - value(format, b)).to_bits())
}

/// `mul.rn`: one rounding.
#[inline(always)]
pub fn mul_half(format: Half, a: u16, b: u16) -> u16 {
    format.narrow(wide_mul(format, value(format, a), value(format, b)).to_bits())
}

/// `min` or `max`: a NaN loses unless `.NaN`; minus zero is below plus zero.
#[inline(always)]
pub fn choose_half(format: Half, choice: Choice, a: u16, b: u16) -> u16 {
    let flush = |h: u16| if choice.ftz { flush_half(format, h) } else { h };
    let (a, b) = (flush(a), flush(b));
    let (x, y) = if choice.xorsign_abs { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    let infinity = match format {
        Half::F16 => 0x7c00,
        Half::Bf16 => 0x7f80,
    };
    let nan = |h: u16| h & 0x7fff > infinity;
    // Sign and magnitude to two's complement: the order of numbers, with minus zero just below zero.
    let key = |h: u16| (h as i16) ^ (((h as i16) >> 15) as u16 & 0x7fff) as i16;
    let first = (key(x) > key(y)) == choice.max;
    let sign = if choice.xorsign_abs { (a ^ b) & 0x8000 } else { 0 };
    match (nan(x), nan(y)) {
        (false, false) => (if first { x } else { y }) | sign,
        (true, false) if !choice.nan => y | sign,
        (false, true) if !choice.nan => x | sign,
        _ => NAN_HALF,
    }
}

/// `neg`: flips the sign; a NaN becomes canonical.
#[inline(always)]
pub fn neg_half(format: Half, a: u16) -> u16 {
    format.narrow(format.widen(a) ^ 0x8000_0000)
}

/// `abs`: clears the sign; a NaN becomes canonical.
#[inline(always)]
pub fn abs_half(format: Half, a: u16) -> u16 {
    format.narrow(format.widen(a) & 0x7fff_ffff)
}

/// `.sat`: clamps to [0, 1]; NaN and minus zero become plus zero.
#[inline(always)]
pub fn saturate_half(format: Half, h: u16) -> u16 {
    let (one, infinity) = match format {
        Half::F16 => (0x3c00, 0x7c00),
        Half::Bf16 => (0x3f80, 0x7f80),
    };
    if h & 0x8000 != 0 || h > infinity { 0 } else { h.min(one) }
}

/// An arithmetic operation of the 16-bit formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HalfOperation {
    /// `add`
    Add,
    /// `sub`
    Sub,
    /// `mul`
    Mul,
    /// `fma`
    Fma,
}

/// The half of every lane that lies `shift` bits up, widened.
#[inline(always)]
pub(super) fn widen_lanes(format: Half, ftz: bool, shift: u32, register: &Lanes) -> [f32; 32] {
    let mut d = [0.0; 32];
    for lane in 0..32 {
        let h = (register[lane] >> shift) as u16;
        d[lane] = value(format, if ftz { flush_half(format, h) } else { h });
    }
    d
}

/// Every lane narrowed into the low half.
#[inline(always)]
pub(super) fn narrow_lanes(format: Half, ftz: bool, x: &[f32; 32]) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        let h = format.narrow(x[lane].to_bits());
        d[lane] = u32::from(if ftz { flush_half(format, h) } else { h });
    }
    d
}

/// The operation on one half of every lane. The steps are loops of their own, because each vectorises and their sum does not.
#[inline(always)]
fn half_of(operation: HalfOperation, format: Half, mode: HalfMode, shift: u32, [a, b, c]: [&Lanes; 3]) -> Lanes {
    let a = widen_lanes(format, mode.ftz, shift, a);
    let b = widen_lanes(format, mode.ftz, shift, b);
    let mut wide = [0.0; 32];
    match operation {
        HalfOperation::Add => (0..32).for_each(|i| wide[i] = a[i] + b[i]),
        HalfOperation::Sub => (0..32).for_each(|i| wide[i] = a[i] - b[i]),
        HalfOperation::Mul => (0..32).for_each(|i| wide[i] = wide_mul(format, a[i], b[i])),
        HalfOperation::Fma => {
            let c = widen_lanes(format, mode.ftz, shift, c);
            (0..32).for_each(|i| wide[i] = wide_fma(format, a[i], b[i], c[i]));
        }
    }
    let mut d = narrow_lanes(format, mode.ftz, &wide);
    if mode.relu || mode.saturate {
        for word in &mut d {
            let h = if mode.relu { relu_half(*word as u16) } else { *word as u16 };
            *word = u32::from(if mode.saturate { saturate_half(format, h) } else { h });
        }
    }
    d
}

#[inline(always)]
fn operate_body(operation: HalfOperation, format: Half, packed: bool, mode: HalfMode, x: [&Lanes; 3]) -> Lanes {
    let mut d = match format {
        Half::F16 => half_of(operation, Half::F16, mode, 0, x),
        Half::Bf16 => half_of(operation, Half::Bf16, mode, 0, x),
    };
    if packed {
        let high = match format {
            Half::F16 => half_of(operation, Half::F16, mode, 16, x),
            Half::Bf16 => half_of(operation, Half::Bf16, mode, 16, x),
        };
        for lane in 0..32 {
            d[lane] |= high[lane] << 16;
        }
    }
    d
}

dispatched! {
    /// `add`, `sub`, `mul` (then the third register is ignored) and `fma` on every lane: `packed` works on both halves of
    /// the registers, else on the low half, and the high half of the result is zero.
    pub fn operate_lanes(
        operation: HalfOperation, format: Half, packed: bool, mode: HalfMode, x: [&Lanes; 3],
    ) -> Lanes = operate_body;
}

#[inline(always)]
fn choose_body(format: Half, packed: bool, choice: Choice, a: &Lanes, b: &Lanes) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        let (a, b) = (halves(a[lane]), halves(b[lane]));
        let high = if packed { choose_half(format, choice, a.0, b.0) } else { 0 };
        d[lane] = pair(high, choose_half(format, choice, a.1, b.1));
    }
    d
}

dispatched! {
    /// `min` and `max` on every lane, packed or not as in [`operate_lanes`].
    pub fn choose_half_lanes(format: Half, packed: bool, choice: Choice, a: &Lanes, b: &Lanes) -> Lanes = choose_body;
}

#[cfg(test)]
mod tests;
