//! Products by chains of `f32` fused multiply-adds, `k` ascending, starting from the accumulator.

use super::layout::{self, MatrixA, MatrixB, MatrixC};
use crate::numerics::float::canonical_f32;
use crate::numerics::float16::Half;
use crate::numerics::{Lanes, dispatched};

/// Adds `A B` to C, over the first `k` columns of A.
#[inline(always)]
pub(super) fn multiply(k: usize, a: &MatrixA, b: &MatrixB, c: &mut MatrixC) {
    for first in [0, 8] {
        let mut sums = [[0f32; 8]; 8];
        for i in 0..8 {
            for j in 0..8 {
                sums[i][j] = f32::from_bits(c[first + i][j]);
            }
        }
        for p in 0..k {
            for i in 0..8 {
                let x = f32::from_bits(a[first + i][p]);
                for j in 0..8 {
                    sums[i][j] = x.mul_add(f32::from_bits(b[p][j]), sums[i][j]);
                }
            }
        }
        for i in 0..8 {
            for j in 0..8 {
                c[first + i][j] = canonical_f32(sums[i][j]);
            }
        }
    }
}

#[inline(always)]
pub(super) fn half_body(format: Half, k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_words(c);
    match (format, k) {
        (Half::Bf16, 16) => {
            multiply(16, &layout::a_half(Half::Bf16, 16, a), &layout::b_half(Half::Bf16, 16, b), &mut m)
        }
        (Half::F16, 16) => multiply(16, &layout::a_half(Half::F16, 16, a), &layout::b_half(Half::F16, 16, b), &mut m),
        _ => multiply(k, &layout::a_half(format, k, a), &layout::b_half(format, k, b), &mut m),
    }
    layout::d_words(&m)
}

dispatched! {
    /// `f16` or `bf16`, accumulated in `f32`.
    pub fn half(format: Half, k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = half_body;
}

#[inline(always)]
pub(super) fn half_to_half_body(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_pairs(c);
    multiply(k, &layout::a_half(Half::F16, k, a), &layout::b_half(Half::F16, k, b), &mut m);
    layout::d_pairs(&m, |x| Half::F16.narrow(x))
}

dispatched! {
    /// `f16`, accumulated in `f32` and rounded to `f16` once.
    pub fn half_to_half(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = half_to_half_body;
}

#[inline(always)]
pub(super) fn tf32_body(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = layout::c_words(c);
    multiply(k, &layout::a_tf32(k, a), &layout::b_tf32(k, b), &mut m);
    layout::d_words(&m)
}

dispatched! {
    /// `tf32`, accumulated in `f32`.
    pub fn tf32(k: usize, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] = tf32_body;
}
