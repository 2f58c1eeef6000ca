//! Arithmetic as PTX defines it, lane by lane: pure functions from register bits to register bits.
//!
//! Every function takes and returns the raw bits that a register holds. The small ones are `#[inline(always)]` and free of
//! branches where that matters, so a plain loop over 32 lanes vectorises once it is compiled with AVX2 and FMA enabled; the
//! big ones (`approx`, `mma`) take whole registers (`&[u32; 32]`) and pick the fastest code for this CPU themselves.
//! The results never depend on the CPU: no path contracts, reorders or approximates differently from another.
//!
//! | module | subject |
//! |---|---|
//! | [`integer`] | bit fields, permutes, shifts, wide products, dot products, division |
//! | [`float`] | `f32` and `f64` arithmetic with rounding, flushing and saturation |
//! | [`float16`] | `f16`, `bf16` and their packed pairs |
//! | [`compare`] | the comparison operators of `set` and `setp` |
//! | [`half`] | `f16`, `bf16`, `tf32`, `e4m3`, `e5m2` encodings |
//! | [`convert`] | every other `cvt` |
//! | [`approx`] | `ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh`, `div` in their approximate forms |
//! | [`mma`] | matrix fragments and matrix products |
//! | [`exact`] | exact values and their rounding, for the modes that the CPU does not offer |

#![allow(clippy::needless_range_loop, reason = "lanes and matrix places are indices into several arrays at once")]

pub mod approx;
pub mod compare;
pub mod convert;
pub mod exact;
pub mod float;
pub mod float16;
pub mod half;
pub mod integer;
pub mod mma;
#[cfg(test)]
pub(crate) mod testing;

/// One 32-bit register of a warp: the bits of each lane.
pub type Lanes = [u32; 32];

/// The NaN that `f32` operations produce on NVIDIA hardware.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The NaN that `f64` operations produce here (PTX leaves the payload open; this is CUDA's own constant).
pub const NAN_F64: u64 = 0xfff8_0000_0000_0000;
/// The NaN that `f16` and `bf16` operations produce.
pub const NAN_HALF: u16 = 0x7fff;

/// How an inexact result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`, `.rni`: to nearest, ties to even.
    Nearest,
    /// `.rna`: to nearest, ties away from zero (conversions to `tf32` only).
    NearestAway,
    /// `.rz`, `.rzi`: toward zero.
    Zero,
    /// `.rm`, `.rmi`: toward minus infinity.
    Down,
    /// `.rp`, `.rpi`: toward plus infinity.
    Up,
}

/// Applies `f` to every lane.
#[inline(always)]
pub fn map1(a: &Lanes, f: impl Fn(u32) -> u32) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        d[lane] = f(a[lane]);
    }
    d
}

/// Applies `f` to every lane of two registers.
#[inline(always)]
pub fn map2(a: &Lanes, b: &Lanes, f: impl Fn(u32, u32) -> u32) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        d[lane] = f(a[lane], b[lane]);
    }
    d
}

/// Applies `f` to every lane of three registers.
#[inline(always)]
pub fn map3(a: &Lanes, b: &Lanes, c: &Lanes, f: impl Fn(u32, u32, u32) -> u32) -> Lanes {
    let mut d = [0; 32];
    for lane in 0..32 {
        d[lane] = f(a[lane], b[lane], c[lane]);
    }
    d
}

macro_rules! wide_map {
    ($(#[$meta:meta])* $name:ident = $map:ident($($x:ident),*) over $($bits:ident),*) => {
        $(#[$meta])*
        #[inline(always)]
        pub fn $name($($x: &Lanes,)* f: impl Fn($($bits),*) -> u32) -> Lanes {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn compiled($($x: &Lanes,)* f: impl Fn($($bits),*) -> u32) -> Lanes {
                    $map($($x,)* f)
                }
                if has_avx2_fma() {
                    // SAFETY: the CPU was just asked for both features.
                    return unsafe { compiled($($x,)* f) };
                }
            }
            $map($($x,)* f)
        }
    };
}

wide_map! {
    /// As [`map1`], compiled for AVX2 as well: for functions that are called through a pointer, and so not compiled along
    /// with the interpreter.
    wide_map1 = map1(a) over u32
}
wide_map! {
    /// As [`map2`], compiled for AVX2 as well.
    wide_map2 = map2(a, b) over u32, u32
}
wide_map! {
    /// As [`map3`], compiled for AVX2 as well.
    wide_map3 = map3(a, b, c) over u32, u32, u32
}

/// True when code compiled for AVX2 and FMA may run on this CPU (a cached flag, cheap to ask).
#[inline(always)]
pub fn has_avx2_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Defines a function whose `#[inline(always)]` body is compiled twice, once for AVX2 and FMA, and picked at run time. With a
/// second body, that one is compiled for AVX2 and FMA; it must give the same results.
macro_rules! dispatched {
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty = $body:path;) => {
        $crate::numerics::dispatched! {
            $(#[$meta])*
            pub fn $name($($arg: $ty),*) -> $ret = $body, $body;
        }
    };
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty = $body:path, $wide:path;) => {
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) -> $ret {
                    $wide($($arg),*)
                }
                if $crate::numerics::has_avx2_fma() {
                    // SAFETY: the CPU was just asked for both features.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatched;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_apply_the_function_to_each_lane() {
        let mut random = testing::Random::new(50);
        let (a, b, c) = (random.lanes(), random.lanes(), random.lanes());
        let expected: Lanes = std::array::from_fn(|i| a[i].wrapping_mul(3) ^ 5);
        assert_eq!([map1(&a, |x| x.wrapping_mul(3) ^ 5), wide_map1(&a, |x| x.wrapping_mul(3) ^ 5)], [expected; 2]);
        let expected: Lanes = std::array::from_fn(|i| a[i].wrapping_sub(b[i]));
        assert_eq!([map2(&a, &b, u32::wrapping_sub), wide_map2(&a, &b, u32::wrapping_sub)], [expected; 2]);
        let expected: Lanes = std::array::from_fn(|i| a[i] & b[i] | c[i]);
        assert_eq!([map3(&a, &b, &c, |x, y, z| x & y | z), wide_map3(&a, &b, &c, |x, y, z| x & y | z)], [expected; 2]);
    }
}
