//! The comparison operators of `set` and `setp`.

use super::half::{bf16_to_f32, f16_to_f32};
use super::{Lanes, float::flush_f32};

/// A comparison. The integer types use the first six; `Lo` to `Hs` of PTX are `Lt` to `Ge` on unsigned types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `.eq`
    Eq,
    /// `.ne`: ordered, so false for NaN
    Ne,
    /// `.lt`, `.lo`
    Lt,
    /// `.le`, `.ls`
    Le,
    /// `.gt`, `.hi`
    Gt,
    /// `.ge`, `.hs`
    Ge,
    /// `.equ`: `eq`, or either is NaN
    Equ,
    /// `.neu`
    Neu,
    /// `.ltu`
    Ltu,
    /// `.leu`
    Leu,
    /// `.gtu`
    Gtu,
    /// `.geu`
    Geu,
    /// `.num`: both are numbers
    Num,
    /// `.nan`: either is NaN
    Nan,
}

/// Compares two integers of one type. Operators that only floating-point types have give false.
#[inline(always)]
pub fn integers<T: Ord>(comparison: Comparison, a: T, b: T) -> bool {
    match comparison {
        Comparison::Eq => a == b,
        Comparison::Ne => a != b,
        Comparison::Lt => a < b,
        Comparison::Le => a <= b,
        Comparison::Gt => a > b,
        Comparison::Ge => a >= b,
        _ => false,
    }
}

/// Compares two floating-point numbers: without a `u` a NaN gives false, with one it gives true.
#[inline(always)]
pub fn floats<T: PartialOrd>(comparison: Comparison, a: T, b: T) -> bool {
    let unordered = a.partial_cmp(&b).is_none();
    match comparison {
        Comparison::Eq => a == b,
        Comparison::Ne => a != b && !unordered,
        Comparison::Lt => a < b,
        Comparison::Le => a <= b,
        Comparison::Gt => a > b,
        Comparison::Ge => a >= b,
        Comparison::Equ => a == b || unordered,
        Comparison::Neu => a != b,
        Comparison::Ltu => a < b || unordered,
        Comparison::Leu => a <= b || unordered,
        Comparison::Gtu => a > b || unordered,
        Comparison::Geu => a >= b || unordered,
        Comparison::Num => !unordered,
        Comparison::Nan => unordered,
    }
}

/// The type that [`lanes`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compared {
    /// `.u32`, `.b32`
    U32,
    /// `.s32`
    S32,
    /// `.u16`, `.b16` in the low half
    U16,
    /// `.s16` in the low half
    S16,
    /// `.f32`
    F32,
    /// `.f32` with `.ftz`
    F32Ftz,
    /// `.f16` in the low half
    F16,
    /// `.bf16` in the low half
    Bf16,
}

/// One bit per lane: the outcome of the comparison. Whole words until the end, which is what vectorises.
#[inline(always)]
fn mask(f: impl Fn(usize) -> bool) -> u32 {
    let mut flags = [0u32; 32];
    for lane in 0..32 {
        flags[lane] = if f(lane) { 1 << lane } else { 0 };
    }
    flags.iter().fold(0, |bits, flag| bits | flag)
}

#[inline(always)]
fn mask_integers<T: Ord>(comparison: Comparison, value: impl Fn(u32) -> T, a: &Lanes, b: &Lanes) -> u32 {
    // One loop per operator, so that none decides inside the loop.
    macro_rules! each {
        ($($op:ident),*) => {
            match comparison {
                $(Comparison::$op => mask(|i| integers(Comparison::$op, value(a[i]), value(b[i]))),)*
                _ => 0,
            }
        };
    }
    each!(Eq, Ne, Lt, Le, Gt, Ge)
}

#[inline(always)]
fn mask_floats<T: PartialOrd>(comparison: Comparison, value: impl Fn(u32) -> T, a: &Lanes, b: &Lanes) -> u32 {
    macro_rules! each {
        ($($op:ident),*) => {
            match comparison {
                $(Comparison::$op => mask(|i| floats(Comparison::$op, value(a[i]), value(b[i]))),)*
            }
        };
    }
    each!(Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan)
}

/// Compares two registers lane by lane: bit `i` of the result is lane `i`.
#[inline(always)]
pub fn lanes(comparison: Comparison, compared: Compared, a: &Lanes, b: &Lanes) -> u32 {
    match compared {
        Compared::U32 => mask_integers(comparison, |x| x, a, b),
        Compared::S32 => mask_integers(comparison, |x| x as i32, a, b),
        Compared::U16 => mask_integers(comparison, |x| x as u16, a, b),
        Compared::S16 => mask_integers(comparison, |x| x as i16, a, b),
        Compared::F32 => mask_floats(comparison, f32::from_bits, a, b),
        Compared::F32Ftz => mask_floats(comparison, |x| f32::from_bits(flush_f32(x)), a, b),
        Compared::F16 => mask_floats(comparison, |x| f32::from_bits(f16_to_f32(x as u16)), a, b),
        Compared::Bf16 => mask_floats(comparison, |x| f32::from_bits(bf16_to_f32(x as u16)), a, b),
    }
}

#[cfg(test)]
mod tests;
