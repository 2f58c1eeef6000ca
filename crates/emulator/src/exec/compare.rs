//! Comparisons of whole registers, in a form that stays small inside the loop.

use crate::numerics::compare::{Compared, Comparison, lanes as compare_lanes};
use crate::numerics::{Lanes, dispatched};

dispatched! {
    /// One bit per lane in which an unusual comparison of f32 holds.
    pub fn compare_rarely(comparison: Comparison, a: &Lanes, b: &Lanes) -> u32 = compare_rarely_body;
}

#[inline(always)]
fn compare_rarely_body(comparison: Comparison, a: &Lanes, b: &Lanes) -> u32 {
    compare_lanes(comparison, Compared::F32, a, b)
}

/// One bit per lane in which a condition holds.
#[inline(always)]
fn bits(f: impl Fn(usize) -> bool) -> u32 {
    let mut flags = [0u32; 32];
    for (lane, flag) in flags.iter_mut().enumerate() {
        *flag = u32::from(f(lane)) << lane;
    }
    flags.iter().fold(0, |bits, flag| bits | flag)
}

/// An integer comparison out of two that the processor has, so that the loop holds little code for each type.
#[inline(always)]
pub(super) fn compare_integers<T: Ord + Copy>(
    comparison: Comparison,
    a: impl Fn(usize) -> T,
    b: impl Fn(usize) -> T,
) -> u32 {
    let less = |swap: bool| if swap { bits(|lane| b(lane) < a(lane)) } else { bits(|lane| a(lane) < b(lane)) };
    match comparison {
        Comparison::Eq => bits(|lane| a(lane) == b(lane)),
        Comparison::Ne => !bits(|lane| a(lane) == b(lane)),
        Comparison::Lt => less(false),
        Comparison::Ge => !less(false),
        Comparison::Gt => less(true),
        Comparison::Le => !less(true),
        // The decoder refuses the others for integers.
        _ => 0,
    }
}

/// A comparison of f32.
#[inline(always)]
pub(super) fn compare_floats(comparison: Comparison, a: &Lanes, b: &Lanes) -> u32 {
    let (x, y) = (|lane: usize| f32::from_bits(a[lane]), |lane: usize| f32::from_bits(b[lane]));
    match comparison {
        Comparison::Eq => bits(|lane| x(lane) == y(lane)),
        Comparison::Neu => !bits(|lane| x(lane) == y(lane)),
        Comparison::Lt => bits(|lane| x(lane) < y(lane)),
        Comparison::Gt => bits(|lane| y(lane) < x(lane)),
        Comparison::Le => bits(|lane| x(lane) <= y(lane)),
        Comparison::Ge => bits(|lane| y(lane) <= x(lane)),
        _ => compare_rarely(comparison, a, b),
    }
}
