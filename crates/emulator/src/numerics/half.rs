//! Encodings of the narrow floating-point formats: `f16`, `bf16`, `tf32`, `e4m3`, `e5m2`.
//!
//! `f32` values travel as bits. A NaN becomes the canonical NaN of its new format. Packed conversions follow `cvt`: the
//! **first** source goes to the high half.

use super::exact::{Exact, Format};
use super::{Lanes, NAN_F32, NAN_HALF, Rounding, dispatched};

/// `cvt.f32.f16`: exact.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> u32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff) << 13;
    // Rebiasing by a float product places subnormals too: 2^112 is the difference of the biases.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    let infinite = 0x7f80_0000 | magnitude;
    let value = if h & 0x7fff >= 0x7c00 { infinite } else { finite } | sign;
    if h & 0x7fff > 0x7c00 { NAN_F32 } else { value }
}

/// `cvt.rn.f16.f32`.
#[inline(always)]
pub fn f32_to_f16_rn(x: u32) -> u16 {
    let sign = (x >> 16) & 0x8000;
    let u = x & 0x7fff_ffff;
    // Adding one half leaves the subnormal's quotient, rounded to nearest even, in the low bits of the sum.
    let small = (f32::from_bits(u) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = u.wrapping_add(0xc800_0fff).wrapping_add((u >> 13) & 1) >> 13;
    let finite = if u < 0x3880_0000 { small } else { normal };
    let value = if u >= 0x4780_0000 { 0x7c00 } else { finite };
    if u > 0x7f80_0000 { NAN_HALF } else { (value | sign) as u16 }
}

/// `cvt.{rn,rz,rm,rp}.f16.f32`.
#[inline(always)]
pub fn f32_to_f16(x: u32, rounding: Rounding) -> u16 {
    if rounding == Rounding::Nearest { f32_to_f16_rn(x) } else { narrow(x, Format::F16, rounding) }
}

/// `cvt.f32.bf16`: exact.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> u32 {
    if h & 0x7fff > 0x7f80 { NAN_F32 } else { u32::from(h) << 16 }
}

/// `cvt.rn.bf16.f32`.
#[inline(always)]
pub fn f32_to_bf16_rn(x: u32) -> u16 {
    let rounded = x.wrapping_add(0x7fff).wrapping_add((x >> 16) & 1) >> 16;
    if x & 0x7fff_ffff > 0x7f80_0000 { NAN_HALF } else { rounded as u16 }
}

/// `cvt.{rn,rz,rm,rp}.bf16.f32`.
#[inline(always)]
pub fn f32_to_bf16(x: u32, rounding: Rounding) -> u16 {
    if rounding == Rounding::Nearest { f32_to_bf16_rn(x) } else { narrow(x, Format::BF16, rounding) }
}

#[inline(never)]
fn narrow(x: u32, format: Format, rounding: Rounding) -> u16 {
    match Exact::from_bits(Format::F32, u64::from(x)) {
        Some(value) => value.round(format, rounding) as u16,
        None if x & 0x7f_ffff != 0 => NAN_HALF,
        None => (x >> 16) as u16 & 0x8000 | format.infinity() as u16,
    }
}

/// `.relu` on `f16` or `bf16`: negative numbers, and minus zero, become plus zero; NaN stays.
#[inline(always)]
pub fn relu_half(h: u16) -> u16 {
    if h & 0x8000 != 0 { 0 } else { h }
}

/// `.satfinite` on a finite format: infinity becomes the largest finite number of its sign.
#[inline(always)]
pub fn satfinite_half(h: u16, infinity: u16) -> u16 {
    if h & 0x7fff == infinity { h - 1 } else { h }
}

/// `cvt.rna.tf32.f32`: half a unit is added to the magnitude and 13 bits are cleared. Infinity and NaN only lose the bits,
/// so a NaN with nothing above them becomes infinity, as the instructions that this lowers to do.
#[inline(always)]
pub fn f32_to_tf32_rna(x: u32) -> u32 {
    let special = x & 0x7f80_0000 == 0x7f80_0000;
    (if special { x } else { x.wrapping_add(0x1000) }) & !0x1fff
}

/// `cvt.rn.tf32.f32`.
#[inline(always)]
pub fn f32_to_tf32_rn(x: u32) -> u32 {
    if x & 0x7fff_ffff > 0x7f80_0000 {
        return NAN_F32;
    }
    x.wrapping_add(0xfff).wrapping_add((x >> 13) & 1) & !0x1fff
}

/// `cvt.rz.tf32.f32`.
#[inline(always)]
pub fn f32_to_tf32_rz(x: u32) -> u32 {
    if x & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { x & !0x1fff }
}

/// An eight-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eight {
    /// Four bits of exponent, three of fraction, no infinity, one NaN (0x7f, 0xff); the largest number is 448.
    E4m3,
    /// Five bits of exponent, two of fraction, with infinity; the largest number is 57344.
    E5m2,
}

/// One half of `cvt.rn.satfinite.{e4m3,e5m2}x2.f32`: nearest even, subnormals kept, everything too large (infinity too)
/// becomes the largest number of its sign, NaN becomes 0x7f.
#[inline(always)]
pub fn f32_to_eight(x: u32, format: Eight) -> u8 {
    let (fraction, bias, largest) = match format {
        Eight::E4m3 => (3, 7, 0x7e),
        Eight::E5m2 => (2, 15, 0x7b),
    };
    let sign = (x >> 24) as u8 & 0x80;
    let u = x & 0x7fff_ffff;
    let drop = 23 - fraction;
    // The number whose unit in the last place is the format's smallest subnormal.
    let magic = (127 + 1 - bias + 23 - fraction) << 23;
    let small = (f32::from_bits(u) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let rebias = (127 - bias) << 23;
    let normal = u.wrapping_sub(rebias).wrapping_add((1 << (drop - 1)) - 1).wrapping_add((u >> drop) & 1) >> drop;
    let value = if u < (127 + 1 - bias) << 23 { small } else { normal };
    let value = if u >= 0x4780_0000 { largest } else { value.min(largest) } as u8;
    if u > 0x7f80_0000 { 0x7f } else { value | sign }
}

/// One half of `cvt.rn.f16x2.{e4m3,e5m2}x2`: exact.
#[inline(always)]
pub fn eight_to_f16(b: u8, format: Eight) -> u16 {
    let sign = u16::from(b & 0x80) << 8;
    let magnitude = u16::from(b & 0x7f);
    match format {
        Eight::E5m2 if magnitude > 0x7c => NAN_HALF,
        Eight::E5m2 => sign | magnitude << 8,
        Eight::E4m3 if magnitude == 0x7f => NAN_HALF,
        Eight::E4m3 if magnitude >= 8 => sign | ((magnitude << 7) + (8 << 10)),
        // A subnormal counts units of 2^-9: move its top bit to the implicit place.
        Eight::E4m3 if magnitude == 0 => sign,
        Eight::E4m3 => {
            let top = 15 - magnitude.leading_zeros() as u16;
            sign | ((top + 6) << 10) | ((magnitude << (10 - top)) & 0x3ff)
        }
    }
}

/// `cvt.rn.satfinite{.relu}.{e4m3,e5m2}x2.f32`: `a` goes to the high byte.
#[inline(always)]
pub fn pack_eight(a: u32, b: u32, format: Eight, relu: bool) -> u16 {
    let one = |x: u32| {
        let byte = f32_to_eight(x, format);
        if relu && byte & 0x80 != 0 { 0 } else { byte }
    };
    u16::from(one(a)) << 8 | u16::from(one(b))
}

/// `cvt.rn.satfinite{.relu}.{e4m3,e5m2}x2.f16x2`.
#[inline(always)]
pub fn pack_eight_from_f16x2(a: u32, format: Eight, relu: bool) -> u16 {
    pack_eight(f16_to_f32((a >> 16) as u16), f16_to_f32(a as u16), format, relu)
}

/// `cvt.rn.f16x2{.relu}.{e4m3,e5m2}x2`.
#[inline(always)]
pub fn unpack_eight(a: u16, format: Eight, relu: bool) -> u32 {
    let one = |b: u8| {
        let h = eight_to_f16(b, format);
        if relu { relu_half(h) } else { h }
    };
    u32::from(one((a >> 8) as u8)) << 16 | u32::from(one(a as u8))
}

/// Two halves in one word, `high` in the upper one.
#[inline(always)]
pub fn pair(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The upper and the lower half of a word.
#[inline(always)]
pub fn halves(word: u32) -> (u16, u16) {
    ((word >> 16) as u16, word as u16)
}

/// How two `f32` are packed: format, rounding and the modifiers of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pack {
    /// `bf16x2` rather than `f16x2`.
    pub bf16: bool,
    /// `.rn` or `.rz` (the others work too).
    pub rounding: Rounding,
    /// `.relu`.
    pub relu: bool,
    /// `.satfinite`.
    pub satfinite: bool,
}

#[inline(always)]
fn pack_lanes_body(a: &Lanes, b: &Lanes, how: Pack) -> Lanes {
    let mut d = [0; 32];
    match (how.bf16, how.rounding) {
        (false, Rounding::Nearest) => (0..32).for_each(|i| d[i] = pair(f32_to_f16_rn(a[i]), f32_to_f16_rn(b[i]))),
        (true, Rounding::Nearest) => (0..32).for_each(|i| d[i] = pair(f32_to_bf16_rn(a[i]), f32_to_bf16_rn(b[i]))),
        (false, r) => (0..32).for_each(|i| d[i] = pair(f32_to_f16(a[i], r), f32_to_f16(b[i], r))),
        (true, r) => (0..32).for_each(|i| d[i] = pair(f32_to_bf16(a[i], r), f32_to_bf16(b[i], r))),
    }
    if how.relu || how.satfinite {
        let infinity = if how.bf16 { 0x7f80 } else { 0x7c00 };
        for word in &mut d {
            let one = |h: u16| {
                let h = if how.satfinite { satfinite_half(h, infinity) } else { h };
                if how.relu { relu_half(h) } else { h }
            };
            let (high, low) = halves(*word);
            *word = pair(one(high), one(low));
        }
    }
    d
}

dispatched! {
    /// `cvt.{rn,rz}{.relu}{.satfinite}.{f16x2,bf16x2}.f32 d, a, b` on every lane: `a` goes to the high half.
    pub fn pack_lanes(a: &Lanes, b: &Lanes, how: Pack) -> Lanes = pack_lanes_body;
}

#[cfg(test)]
mod tests;
