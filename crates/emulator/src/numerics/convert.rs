//! `cvt` between integers and floating-point types, integer narrowing, and rounding to integral values.
//!
//! Values travel in the low bits of a `u64`: integers sign- or zero-extended by [`Integer::extend`], floats as their bits.

use super::exact::{Exact, Format};
use super::float::flush_f32;
use super::{Lanes, NAN_F32, NAN_F64, NAN_HALF, Rounding, dispatched, map1};

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Integer {
    /// 8, 16, 32 or 64.
    pub bits: u32,
    /// `.s` rather than `.u`.
    pub signed: bool,
}

impl Integer {
    /// A type of that width.
    pub const fn new(bits: u32, signed: bool) -> Integer {
        Integer { bits, signed }
    }

    /// The value of the low bits of a register.
    #[inline(always)]
    pub fn value(self, raw: u64) -> i128 {
        if self.signed { i128::from(self.extend(raw) as i64) } else { i128::from(self.extend(raw)) }
    }

    /// The low bits, extended to 64 by sign or zero.
    #[inline(always)]
    pub fn extend(self, raw: u64) -> u64 {
        let unused = 64 - self.bits;
        if self.signed { ((raw << unused) as i64 >> unused) as u64 } else { raw << unused >> unused }
    }

    /// The smallest value.
    #[inline(always)]
    pub fn min(self) -> i128 {
        if self.signed { -(1i128 << (self.bits - 1)) } else { 0 }
    }

    /// The largest value.
    #[inline(always)]
    pub fn max(self) -> i128 {
        (1i128 << (self.bits - u32::from(self.signed))) - 1
    }
}

/// A floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.f32`
    F32,
    /// `.f64`
    F64,
}

impl Float {
    /// The encoding.
    pub fn format(self) -> Format {
        match self {
            Float::F16 => Format::F16,
            Float::Bf16 => Format::BF16,
            Float::F32 => Format::F32,
            Float::F64 => Format::F64,
        }
    }

    /// The canonical NaN.
    pub fn nan(self) -> u64 {
        match self {
            Float::F16 | Float::Bf16 => NAN_HALF.into(),
            Float::F32 => NAN_F32.into(),
            Float::F64 => NAN_F64,
        }
    }

    fn is_nan(self, bits: u64) -> bool {
        bits & (self.format().sign() - 1) > self.format().infinity()
    }

    /// `.ftz`: a subnormal `f32` becomes zero of the same sign; other types have no such modifier in `cvt`.
    pub fn flush(self, bits: u64) -> u64 {
        if self == Float::F32 { flush_f32(bits as u32).into() } else { bits }
    }

    /// `.sat`: clamps to [0, 1]; NaN and minus zero become plus zero.
    pub fn saturate(self, bits: u64) -> u64 {
        let format = self.format();
        let one = Exact::from_integer(1).round(format, Rounding::Nearest);
        if bits & format.sign() != 0 || self.is_nan(bits) { 0 } else { bits.min(one) }
    }
}

/// Integer to integer: with `saturate` the value is clamped to the target's range, else its low bits are kept. The result
/// is extended to 64 bits by the target's own signedness.
#[inline(always)]
pub fn integer_to_integer(from: Integer, to: Integer, raw: u64, saturate: bool) -> u64 {
    let value = from.value(raw);
    to.extend(if saturate { value.clamp(to.min(), to.max()) as u64 } else { value as u64 })
}

/// Integer to float in the given mode.
pub fn integer_to_float(from: Integer, to: Float, raw: u64, rounding: Rounding) -> u64 {
    Exact::from_integer(from.value(raw)).round(to.format(), rounding)
}

/// Float to integer (`.rni` and so on): clamps to the target's range, `.sat` or not. NaN gives zero, or the target's top bit
/// alone where the source is `f64` or the target has 64 bits.
pub fn float_to_integer(from: Float, to: Integer, bits: u64, rounding: Rounding) -> u64 {
    if from.is_nan(bits) {
        return if from == Float::F64 || to.bits == 64 { to.extend(1 << (to.bits - 1)) } else { 0 };
    }
    let value = match Exact::from_bits(from.format(), bits) {
        Some(value) => {
            let magnitude = i128::try_from(value.in_units(0, rounding)).unwrap_or(i128::MAX);
            if value.negative { -magnitude } else { magnitude }
        }
        None if bits & from.format().sign() != 0 => i128::MIN,
        None => i128::MAX,
    };
    to.extend(value.clamp(to.min(), to.max()) as u64)
}

/// Float to float; a NaN becomes the target's canonical NaN.
pub fn float_to_float(from: Float, to: Float, bits: u64, rounding: Rounding) -> u64 {
    if from.is_nan(bits) {
        return to.nan();
    }
    let sign = if bits & from.format().sign() != 0 { to.format().sign() } else { 0 };
    match Exact::from_bits(from.format(), bits) {
        Some(value) => value.round(to.format(), rounding),
        None => to.format().infinity() | sign,
    }
}

/// `cvt.{rni,rzi,rmi,rpi}` within one type: the nearest integral value of that mode, with the sign of the operand.
pub fn round_to_integral(float: Float, bits: u64, rounding: Rounding) -> u64 {
    if float.is_nan(bits) {
        return float.nan();
    }
    match Exact::from_bits(float.format(), bits) {
        Some(value) if value.exponent < 0 => {
            let whole = Exact { significand: value.in_units(0, rounding), exponent: 0, ..value };
            whole.round(float.format(), Rounding::Nearest)
        }
        _ => bits,
    }
}

/// `cvt.rn.f32.s32`
#[inline(always)]
pub fn s32_to_f32_rn(a: u32) -> u32 {
    (a as i32 as f32).to_bits()
}

/// `cvt.rn.f32.u32`
#[inline(always)]
pub fn u32_to_f32_rn(a: u32) -> u32 {
    (a as f32).to_bits()
}

/// `cvt.rzi.s32.f32`: clamps; NaN gives zero.
#[inline(always)]
pub fn f32_to_s32_rz(a: u32) -> u32 {
    f32::from_bits(a) as i32 as u32
}

/// `cvt.rzi.u32.f32`: clamps; NaN gives zero.
#[inline(always)]
pub fn f32_to_u32_rz(a: u32) -> u32 {
    f32::from_bits(a) as u32
}

/// `cvt.{rni,rzi,rmi,rpi}.f32.f32`
#[inline(always)]
pub fn integral_f32(a: u32, rounding: Rounding) -> u32 {
    let x = f32::from_bits(a);
    let magnitude = x.abs();
    // From 2^23 on every number is integral; below, the sum with 2^23 rounds to nearest even.
    let nearest = if magnitude < 8_388_608.0 { ((magnitude + 8_388_608.0) - 8_388_608.0).copysign(x) } else { x };
    let value = match rounding {
        Rounding::Nearest => nearest,
        Rounding::NearestAway => x.round(),
        Rounding::Down => {
            if nearest > x {
                nearest - 1.0
            } else {
                nearest
            }
        }
        Rounding::Up => {
            if nearest < x {
                nearest + 1.0
            } else {
                nearest
            }
        }
        Rounding::Zero => {
            if nearest.abs() > magnitude {
                nearest - 1.0f32.copysign(x)
            } else {
                nearest
            }
        }
    };
    super::float::canonical_f32(value.copysign(x))
}

/// `cvt.{rni,rzi,rmi,rpi}.s32.f32`: clamps; NaN gives zero.
#[inline(always)]
pub fn f32_to_s32(a: u32, rounding: Rounding) -> u32 {
    f32_to_s32_rz(integral_f32(a, rounding))
}

/// `cvt.{rni,rzi,rmi,rpi}.u32.f32`: clamps; NaN gives zero.
#[inline(always)]
pub fn f32_to_u32(a: u32, rounding: Rounding) -> u32 {
    f32_to_u32_rz(integral_f32(a, rounding))
}

#[inline(always)]
fn integer_body(signed: bool, ftz: bool, rounding: Rounding, a: &Lanes) -> Lanes {
    let flushed = if ftz { map1(a, flush_f32) } else { *a };
    // One loop per mode, so that none decides inside the loop.
    let whole = match rounding {
        Rounding::Nearest => map1(&flushed, |x| integral_f32(x, Rounding::Nearest)),
        Rounding::NearestAway => map1(&flushed, |x| integral_f32(x, Rounding::NearestAway)),
        Rounding::Down => map1(&flushed, |x| integral_f32(x, Rounding::Down)),
        Rounding::Up => map1(&flushed, |x| integral_f32(x, Rounding::Up)),
        // The conversion itself cuts off.
        Rounding::Zero => flushed,
    };
    if signed { map1(&whole, f32_to_s32_rz) } else { map1(&whole, f32_to_u32_rz) }
}

dispatched! {
    /// `cvt.{rni,rzi,rmi,rpi}{.ftz}.{s32,u32}.f32` on every lane: clamps; NaN gives zero.
    pub fn integer_lanes(signed: bool, ftz: bool, rounding: Rounding, a: &Lanes) -> Lanes = integer_body;
}

#[cfg(test)]
mod tests;
