//! `f32` and `f64` arithmetic on register bits.
//!
//! A NaN result is canonical. `.ftz` flushes subnormal operands and results to zero of the same sign: wrap operands and
//! result in [`flush_f32`]. `.sat` is [`saturate_f32`] on the result. The `*_lanes` functions take a [`Mode`] and do all of it.

use super::exact::{Exact, Format};
use super::{Lanes, NAN_F32, NAN_F64, Rounding, dispatched, map1, map2, map3};

/// The modifiers of an `f32` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// `.rn` (also where none is written), `.rz`, `.rm` or `.rp`.
    pub rounding: Rounding,
    /// `.ftz`
    pub ftz: bool,
    /// `.sat`
    pub saturate: bool,
}

impl Mode {
    /// `.rn` with nothing else.
    pub const PLAIN: Mode = Mode { rounding: Rounding::Nearest, ftz: false, saturate: false };
}

/// The bits of a result, with the canonical NaN.
#[inline(always)]
pub fn canonical_f32(x: f32) -> u32 {
    if x.is_nan() { NAN_F32 } else { x.to_bits() }
}

/// The bits of a result, with the canonical NaN.
#[inline(always)]
pub fn canonical_f64(x: f64) -> u64 {
    if x.is_nan() { NAN_F64 } else { x.to_bits() }
}

/// `.ftz`: a subnormal becomes zero of the same sign.
#[inline(always)]
pub fn flush_f32(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// `.sat`: clamps to [0, 1]; NaN and minus zero become plus zero.
#[inline(always)]
pub fn saturate_f32(x: u32) -> u32 {
    let v = f32::from_bits(x);
    let low = if v > 0.0 { v } else { 0.0 };
    (if low < 1.0 { low } else { 1.0 }).to_bits()
}

macro_rules! nearest {
    ($($(#[$meta:meta])* $name32:ident $name64:ident ($($x:ident),*) = $value:expr;)*) => {$(
        $(#[$meta])*
        #[inline(always)]
        pub fn $name32($($x: u32),*) -> u32 {
            $(let $x = f32::from_bits($x);)*
            canonical_f32($value)
        }

        $(#[$meta])*
        #[inline(always)]
        pub fn $name64($($x: u64),*) -> u64 {
            $(let $x = f64::from_bits($x);)*
            canonical_f64($value)
        }
    )*};
}

nearest! {
    /// `add.rn`
    add_f32 add_f64 (a, b) = a + b;
    /// `sub.rn`
    sub_f32 sub_f64 (a, b) = a - b;
    /// `mul.rn`
    mul_f32 mul_f64 (a, b) = a * b;
    /// `fma.rn`: one rounding. Fast only where the caller is compiled with FMA.
    fma_f32 fma_f64 (a, b, c) = a.mul_add(b, c);
    /// `div.rn`
    div_f32 div_f64 (a, b) = a / b;
    /// `rcp.rn`
    rcp_f32 rcp_f64 (a) = 1.0 / a;
    /// `sqrt.rn`
    sqrt_f32 sqrt_f64 (a) = a.sqrt();
    /// `neg`
    neg_f32 neg_f64 (a) = -a;
    /// `abs`
    abs_f32 abs_f64 (a) = a.abs();
}

/// An operation that rounds, for the modes that the CPU does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a * b + c`
    Fma,
    /// `a / b`
    Div,
    /// `1 / a`
    Rcp,
    /// The square root of `a`
    Sqrt,
}

/// Rounds an operation on finite operands in any mode; `None` where the result is exact in every mode or no number at all
/// (infinite or NaN operands, division by zero, the root of a negative number), which rounding to nearest gets right.
fn finite(operation: Operation, format: Format, a: u64, b: u64, c: u64, rounding: Rounding) -> Option<u64> {
    let exact = |bits| Exact::from_bits(format, bits);
    let a = exact(a)?;
    let value = match operation {
        Operation::Add => a.plus(exact(b)?, rounding),
        Operation::Sub => a.plus(exact(b)?.negated(), rounding),
        Operation::Mul => a.times(exact(b)?),
        Operation::Fma => a.times(exact(b)?).plus(exact(c)?, rounding),
        Operation::Div => a.over(exact(b).filter(|b| b.significand != 0)?),
        Operation::Rcp if a.significand != 0 => Exact::from_integer(1).over(a),
        Operation::Sqrt if !a.negative || a.significand == 0 => a.square_root(),
        Operation::Rcp | Operation::Sqrt => return None,
    };
    Some(value.round(format, rounding))
}

/// Any `f32` operation in any rounding mode (operands beyond its own are ignored). Slow but for `.rn`.
#[inline(never)]
pub fn rounded_f32(operation: Operation, a: u32, b: u32, c: u32, rounding: Rounding) -> u32 {
    if rounding != Rounding::Nearest
        && let Some(bits) = finite(operation, Format::F32, a.into(), b.into(), c.into(), rounding)
    {
        return bits as u32;
    }
    match operation {
        Operation::Add => add_f32(a, b),
        Operation::Sub => sub_f32(a, b),
        Operation::Mul => mul_f32(a, b),
        Operation::Fma => fma_f32(a, b, c),
        Operation::Div => div_f32(a, b),
        Operation::Rcp => rcp_f32(a),
        Operation::Sqrt => sqrt_f32(a),
    }
}

/// Any `f64` operation in any rounding mode (operands beyond its own are ignored). Slow but for `.rn`.
#[inline(never)]
pub fn rounded_f64(operation: Operation, a: u64, b: u64, c: u64, rounding: Rounding) -> u64 {
    if rounding != Rounding::Nearest
        && let Some(bits) = finite(operation, Format::F64, a, b, c, rounding)
    {
        return bits;
    }
    match operation {
        Operation::Add => add_f64(a, b),
        Operation::Sub => sub_f64(a, b),
        Operation::Mul => mul_f64(a, b),
        Operation::Fma => fma_f64(a, b, c),
        Operation::Div => div_f64(a, b),
        Operation::Rcp => rcp_f64(a),
        Operation::Sqrt => sqrt_f64(a),
    }
}

/// Operands and result of `operation` under `mode`, lane by lane; `nearest` is the same operation in `.rn`.
#[inline(always)]
fn lanes(operation: Operation, mode: Mode, [a, b, c]: [&Lanes; 3], nearest: impl Fn(u32, u32, u32) -> u32) -> Lanes {
    let mut d = match (mode.rounding, mode.ftz) {
        (Rounding::Nearest, false) => map3(a, b, c, &nearest),
        (Rounding::Nearest, true) => {
            map3(a, b, c, |a, b, c| flush_f32(nearest(flush_f32(a), flush_f32(b), flush_f32(c))))
        }
        (r, false) => map3(a, b, c, |a, b, c| rounded_f32(operation, a, b, c, r)),
        (r, true) => {
            map3(a, b, c, |a, b, c| flush_f32(rounded_f32(operation, flush_f32(a), flush_f32(b), flush_f32(c), r)))
        }
    };
    if mode.saturate {
        d = map1(&d, saturate_f32);
    }
    d
}

#[inline(always)]
fn add_body(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes {
    lanes(Operation::Add, mode, [a, b, &[0; 32]], |a, b, _| add_f32(a, b))
}

dispatched! {
    /// `add{.rnd}{.ftz}{.sat}.f32`
    pub fn add_lanes(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes = add_body;
}

#[inline(always)]
fn sub_body(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes {
    lanes(Operation::Sub, mode, [a, b, &[0; 32]], |a, b, _| sub_f32(a, b))
}

dispatched! {
    /// `sub{.rnd}{.ftz}{.sat}.f32`
    pub fn sub_lanes(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes = sub_body;
}

#[inline(always)]
fn mul_body(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes {
    lanes(Operation::Mul, mode, [a, b, &[0; 32]], |a, b, _| mul_f32(a, b))
}

dispatched! {
    /// `mul{.rnd}{.ftz}{.sat}.f32`
    pub fn mul_lanes(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes = mul_body;
}

#[inline(always)]
fn fma_body(mode: Mode, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    lanes(Operation::Fma, mode, [a, b, c], fma_f32)
}

dispatched! {
    /// `fma{.rnd}{.ftz}{.sat}.f32`
    pub fn fma_lanes(mode: Mode, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes = fma_body;
}

#[inline(always)]
fn div_body(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes {
    lanes(Operation::Div, mode, [a, b, &[0; 32]], |a, b, _| div_f32(a, b))
}

dispatched! {
    /// `div.{rn,rz,rm,rp}{.ftz}.f32`
    pub fn div_lanes(mode: Mode, a: &Lanes, b: &Lanes) -> Lanes = div_body;
}

#[inline(always)]
fn rcp_body(mode: Mode, a: &Lanes) -> Lanes {
    lanes(Operation::Rcp, mode, [a, &[0; 32], &[0; 32]], |a, _, _| rcp_f32(a))
}

dispatched! {
    /// `rcp.{rn,rz,rm,rp}{.ftz}.f32`
    pub fn rcp_lanes(mode: Mode, a: &Lanes) -> Lanes = rcp_body;
}

#[inline(always)]
fn sqrt_body(mode: Mode, a: &Lanes) -> Lanes {
    lanes(Operation::Sqrt, mode, [a, &[0; 32], &[0; 32]], |a, _, _| sqrt_f32(a))
}

dispatched! {
    /// `sqrt.{rn,rz,rm,rp}{.ftz}.f32`
    pub fn sqrt_lanes(mode: Mode, a: &Lanes) -> Lanes = sqrt_body;
}

macro_rules! min_max {
    ($float:ty, $bits:ty, $canonical:ident, $nan:expr, $min:ident, $max:ident, $min_nan:ident, $max_nan:ident) => {
        /// `min`: a NaN loses against a number; minus zero is below plus zero.
        #[inline(always)]
        pub fn $min(a: $bits, b: $bits) -> $bits {
            let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
            // Equal numbers differ at most in the sign of zero, where `or` gives the negative one.
            let number = if x < y {
                a
            } else if x > y {
                b
            } else {
                a | b
            };
            if x.is_nan() {
                $canonical(y)
            } else if y.is_nan() {
                a
            } else {
                number
            }
        }

        /// `max`: a NaN loses against a number; minus zero is below plus zero.
        #[inline(always)]
        pub fn $max(a: $bits, b: $bits) -> $bits {
            let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
            let number = if x > y {
                a
            } else if x < y {
                b
            } else {
                a & b
            };
            if x.is_nan() {
                $canonical(y)
            } else if y.is_nan() {
                a
            } else {
                number
            }
        }

        /// `min.NaN`: a NaN wins.
        #[inline(always)]
        pub fn $min_nan(a: $bits, b: $bits) -> $bits {
            if <$float>::from_bits(a).is_nan() || <$float>::from_bits(b).is_nan() { $nan } else { $min(a, b) }
        }

        /// `max.NaN`: a NaN wins.
        #[inline(always)]
        pub fn $max_nan(a: $bits, b: $bits) -> $bits {
            if <$float>::from_bits(a).is_nan() || <$float>::from_bits(b).is_nan() { $nan } else { $max(a, b) }
        }
    };
}

min_max!(f32, u32, canonical_f32, NAN_F32, min_f32, max_f32, min_nan_f32, max_nan_f32);
min_max!(f64, u64, canonical_f64, NAN_F64, min_f64, max_f64, min_nan_f64, max_nan_f64);

/// The modifiers of `min` and `max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `max` rather than `min`.
    pub max: bool,
    /// `.ftz`
    pub ftz: bool,
    /// `.NaN`
    pub nan: bool,
    /// `.xorsign.abs`: the choice is made on magnitudes, and the sign is the exclusive or of both signs.
    pub xorsign_abs: bool,
}

#[inline(always)]
fn choose_body(choice: Choice, a: &Lanes, b: &Lanes) -> Lanes {
    let flush = |x: u32| if choice.ftz { flush_f32(x) } else { x };
    if choice.xorsign_abs || choice.ftz {
        return map2(a, b, |a, b| {
            let (a, b) = (flush(a), flush(b));
            let (x, y) = if choice.xorsign_abs { (a & 0x7fff_ffff, b & 0x7fff_ffff) } else { (a, b) };
            let value = match (choice.max, choice.nan) {
                (false, false) => min_f32(x, y),
                (true, false) => max_f32(x, y),
                (false, true) => min_nan_f32(x, y),
                (true, true) => max_nan_f32(x, y),
            };
            let sign = if choice.xorsign_abs && value != NAN_F32 { (a ^ b) & 0x8000_0000 } else { 0 };
            value | sign
        });
    }
    match (choice.max, choice.nan) {
        (false, false) => map2(a, b, min_f32),
        (true, false) => map2(a, b, max_f32),
        (false, true) => map2(a, b, min_nan_f32),
        (true, true) => map2(a, b, max_nan_f32),
    }
}

dispatched! {
    /// `min` and `max` with their modifiers on every lane.
    pub fn choose_lanes(choice: Choice, a: &Lanes, b: &Lanes) -> Lanes = choose_body;
}

/// `copysign.f32 d, a, b`: the magnitude of `b` with the sign of `a`.
#[inline(always)]
pub fn copysign_f32(a: u32, b: u32) -> u32 {
    (a & 0x8000_0000) | (b & 0x7fff_ffff)
}

/// `copysign.f64 d, a, b`: the magnitude of `b` with the sign of `a`.
#[inline(always)]
pub fn copysign_f64(a: u64, b: u64) -> u64 {
    (a & 1 << 63) | (b & !(1 << 63))
}

/// The classes of `testp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `.finite`
    Finite,
    /// `.infinite`
    Infinite,
    /// `.number`: no NaN
    Number,
    /// `.notanumber`
    NotANumber,
    /// `.normal`: neither zero, subnormal, infinite nor NaN
    Normal,
    /// `.subnormal`
    Subnormal,
}

/// `testp.f32`
#[inline(always)]
pub fn testp_f32(class: Class, a: u32) -> bool {
    let x = f32::from_bits(a);
    match class {
        Class::Finite => x.is_finite(),
        Class::Infinite => x.is_infinite(),
        Class::Number => !x.is_nan(),
        Class::NotANumber => x.is_nan(),
        Class::Normal => x.is_normal(),
        Class::Subnormal => x.is_subnormal(),
    }
}

/// `testp.f64`
#[inline(always)]
pub fn testp_f64(class: Class, a: u64) -> bool {
    let x = f64::from_bits(a);
    match class {
        Class::Finite => x.is_finite(),
        Class::Infinite => x.is_infinite(),
        Class::Number => !x.is_nan(),
        Class::NotANumber => x.is_nan(),
        Class::Normal => x.is_normal(),
        Class::Subnormal => x.is_subnormal(),
    }
}

#[cfg(test)]
mod tests;
