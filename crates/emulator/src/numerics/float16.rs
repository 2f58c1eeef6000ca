//! Arithmetic on `f16` and `bf16`: one rounding per operation, canonical NaN.
//!
//! Values widen exactly. The exact result, or `f64` rounded to odd where `f64` cannot hold it, is rounded once to the grid.

use super::float::Choice;
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16_rn, f32_to_f16_rn, halves, pair};
use super::{Lanes, NAN_HALF};

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

    #[inline(always)]
    fn value(self, h: u16) -> f64 {
        f64::from(f32::from_bits(self.widen(h)))
    }

    /// Rounds an `f64` to nearest even in one step. The sum with a number whose unit is the format's unit at that
    /// magnitude does the rounding, subnormals included.
    #[inline(always)]
    pub fn round_f64(self, x: f64) -> u16 {
        let (stored, min_exponent) = match self {
            Half::F16 => (10, -14),
            Half::Bf16 => (7, -126),
        };
        let exponent = ((x.to_bits() >> 52) & 0x7ff) as i64 - 1023;
        let unit = exponent.clamp(min_exponent, 200) - stored;
        let magic = 1.5 * f64::from_bits(((unit + 52 + 1023) as u64) << 52);
        let rounded = ((x + magic) - magic).copysign(x);
        // Infinity and NaN pass through the cast, and an overflow turns into infinity in it or in `narrow`.
        self.narrow((if x.is_finite() { rounded } else { x } as f32).to_bits())
    }
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

/// `.ftz` for `f16`: a subnormal becomes zero of the same sign.
#[inline(always)]
pub fn flush_f16(h: u16) -> u16 {
    if h & 0x7c00 == 0 { h & 0x8000 } else { h }
}

/// `p + c` rounded to odd: where the sum is inexact, the neighbour with an odd last bit. Rounding that again to a format
/// that is at least two bits narrower gives what one rounding of the exact sum would.
#[inline(always)]
fn add_to_odd(p: f64, c: f64) -> f64 {
    let sum = p + c;
    let virtual_c = sum - p;
    let error = (p - (sum - virtual_c)) + (c - virtual_c);
    let bits = sum.to_bits();
    let toward = if (error > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let inexact = error != 0.0 && sum.is_finite() && bits & 1 == 0;
    f64::from_bits(if inexact { toward } else { bits })
}

/// `fma.rn`: the product is exact in `f64`, the sum is rounded once.
#[inline(always)]
pub fn fma_half(format: Half, a: u16, b: u16, c: u16) -> u16 {
    let product = format.value(a) * format.value(b);
    let sum = match format {
        // A sum that `f64` cannot hold has an addend more than 2^30 above the product: no tie is near.
        Half::F16 => product + format.value(c),
        Half::Bf16 => add_to_odd(product, format.value(c)),
    };
    format.round_f64(sum)
}

/// `add.rn`: `f32` has more than twice the precision, so rounding twice does no harm.
#[inline(always)]
pub fn add_half(format: Half, a: u16, b: u16) -> u16 {
    let sum = f32::from_bits(format.widen(a)) + f32::from_bits(format.widen(b));
    format.narrow(sum.to_bits())
}

/// `sub.rn`, as [`add_half`].
#[inline(always)]
pub fn sub_half(format: Half, a: u16, b: u16) -> u16 {
    let difference = f32::from_bits(format.widen(a)) - f32::from_bits(format.widen(b));
    format.narrow(difference.to_bits())
}

/// `mul.rn`: the product is exact, in `f32` for `f16` and in `f64` for `bf16`, whose smallest products leave `f32`.
#[inline(always)]
pub fn mul_half(format: Half, a: u16, b: u16) -> u16 {
    match format {
        Half::F16 => format.narrow((f32::from_bits(format.widen(a)) * f32::from_bits(format.widen(b))).to_bits()),
        Half::Bf16 => format.round_f64(format.value(a) * format.value(b)),
    }
}

/// `min` or `max`: a NaN loses unless `.NaN`; minus zero is below plus zero.
#[inline(always)]
pub fn choose_half(format: Half, choice: Choice, a: u16, b: u16) -> u16 {
    let flush = |h: u16| if choice.ftz { flush_f16(h) } else { h };
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

/// Applies the modifiers to operands and result of an operation on one value.
#[inline(always)]
pub fn apply<const N: usize>(mode: HalfMode, format: Half, x: [u16; N], f: impl Fn([u16; N]) -> u16) -> u16 {
    let flush = |h: u16| if mode.ftz { flush_f16(h) } else { h };
    let d = flush(f(x.map(flush)));
    let d = if mode.relu && d & 0x8000 != 0 { 0 } else { d };
    if mode.saturate { saturate_half(format, d) } else { d }
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

#[inline(always)]
fn operate(operation: HalfOperation, format: Half, [a, b, c]: [u16; 3]) -> u16 {
    match operation {
        HalfOperation::Add => add_half(format, a, b),
        HalfOperation::Sub => sub_half(format, a, b),
        HalfOperation::Mul => mul_half(format, a, b),
        HalfOperation::Fma => fma_half(format, a, b, c),
    }
}

/// `add`, `sub`, `mul` (then `c` is ignored) and `fma` on every lane: `packed` works on both halves of the registers, else
/// on the low half, and the high half of the result is zero.
#[inline(always)]
pub fn operate_lanes(
    operation: HalfOperation,
    format: Half,
    packed: bool,
    mode: HalfMode,
    [a, b, c]: [&Lanes; 3],
) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        let (a, b, c) = (halves(a[lane]), halves(b[lane]), halves(c[lane]));
        let low = apply(mode, format, [a.1, b.1, c.1], |x| operate(operation, format, x));
        let high = if packed { apply(mode, format, [a.0, b.0, c.0], |x| operate(operation, format, x)) } else { 0 };
        d[lane] = pair(high, low);
    }
    d
}

/// `min` and `max` on every lane, packed or not as in [`operate_lanes`].
#[inline(always)]
pub fn choose_half_lanes(format: Half, packed: bool, choice: Choice, a: &Lanes, b: &Lanes) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        let (a, b) = (halves(a[lane]), halves(b[lane]));
        let high = if packed { choose_half(format, choice, a.0, b.0) } else { 0 };
        d[lane] = pair(high, choose_half(format, choice, a.1, b.1));
    }
    d
}
