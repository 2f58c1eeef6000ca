//! Fragments to matrices and back. With `g = lane / 4` and `t = lane % 4`, a lane holds rows `g` and `g + 8` of A and D, and
//! column `g` of B. The four lanes of a row lie side by side, so a register of A holds eight rows of 16 contiguous bytes.

use crate::numerics::Lanes;
use crate::numerics::float16::Half;

/// A, row by row, as `f32` bits; columns from `K` on are unused.
pub type MatrixA = [[u32; 16]; 16];
/// B as `k` rows of eight columns, as `f32` bits.
pub type MatrixB = [[u32; 8]; 16];
/// C or D, row by row, as `f32` or `s32` bits.
pub type MatrixC = [[u32; 8]; 16];

/// The value of a 16-bit operand in an `f32`.
#[inline(always)]
fn widen(format: Half, h: u32) -> u32 {
    match format {
        Half::F16 => format.widen(h as u16),
        Half::Bf16 => h << 16,
    }
}

/// A of a 16-bit product with `k` columns, 16 or 8.
#[inline(always)]
pub fn a_half(format: Half, k: usize, a: [&Lanes; 4]) -> MatrixA {
    let mut m = [[0; 16]; 16];
    for half in 0..k / 8 {
        for i in 0..16 {
            let register = a[2 * half + i / 8];
            for t in 0..4 {
                let word = register[4 * (i % 8) + t];
                m[i][8 * half + 2 * t] = widen(format, word & 0xffff);
                m[i][8 * half + 2 * t + 1] = widen(format, word >> 16);
            }
        }
    }
    m
}

/// B of a 16-bit product with `k` rows, 16 or 8.
#[inline(always)]
pub fn b_half(format: Half, k: usize, b: [&Lanes; 2]) -> MatrixB {
    let mut m = [[0; 8]; 16];
    for half in 0..k / 8 {
        for t in 0..4 {
            for n in 0..8 {
                let word = b[half][4 * n + t];
                m[8 * half + 2 * t][n] = widen(format, word & 0xffff);
                m[8 * half + 2 * t + 1][n] = widen(format, word >> 16);
            }
        }
    }
    m
}

/// A of a `tf32` product with `k` columns, 8 or 4: the low 13 bits are dropped.
#[inline(always)]
pub fn a_tf32(k: usize, a: [&Lanes; 4]) -> MatrixA {
    let mut m = [[0; 16]; 16];
    for quarter in 0..k / 4 {
        for i in 0..16 {
            for t in 0..4 {
                m[i][4 * quarter + t] = a[2 * quarter + i / 8][4 * (i % 8) + t] & !0x1fff;
            }
        }
    }
    m
}

/// B of a `tf32` product with `k` rows, 8 or 4: the low 13 bits are dropped.
#[inline(always)]
pub fn b_tf32(k: usize, b: [&Lanes; 2]) -> MatrixB {
    let mut m = [[0; 8]; 16];
    for quarter in 0..k / 4 {
        for t in 0..4 {
            for n in 0..8 {
                m[4 * quarter + t][n] = b[quarter][4 * n + t] & !0x1fff;
            }
        }
    }
    m
}

/// C from four registers of 32-bit values.
#[inline(always)]
pub fn c_words(c: [&Lanes; 4]) -> MatrixC {
    let mut m = [[0; 8]; 16];
    for i in 0..16 {
        for t in 0..4 {
            let lane = 4 * (i % 8) + t;
            m[i][2 * t] = c[2 * (i / 8)][lane];
            m[i][2 * t + 1] = c[2 * (i / 8) + 1][lane];
        }
    }
    m
}

/// D into four registers of 32-bit values.
#[inline(always)]
pub fn d_words(m: &MatrixC) -> [Lanes; 4] {
    let mut d = [[0; 32]; 4];
    for i in 0..16 {
        for t in 0..4 {
            let lane = 4 * (i % 8) + t;
            d[2 * (i / 8)][lane] = m[i][2 * t];
            d[2 * (i / 8) + 1][lane] = m[i][2 * t + 1];
        }
    }
    d
}

/// C from two registers of `f16` pairs, as `f32` bits.
#[inline(always)]
pub fn c_pairs(c: [&Lanes; 4]) -> MatrixC {
    let mut m = [[0; 8]; 16];
    for i in 0..16 {
        for t in 0..4 {
            let word = c[i / 8][4 * (i % 8) + t];
            m[i][2 * t] = widen(Half::F16, word & 0xffff);
            m[i][2 * t + 1] = widen(Half::F16, word >> 16);
        }
    }
    m
}

/// D into two registers of `f16` pairs (the other two are zero): one rounding to nearest even.
#[inline(always)]
pub fn d_pairs(m: &MatrixC) -> [Lanes; 4] {
    let mut d = [[0; 32]; 4];
    for i in 0..16 {
        for t in 0..4 {
            let (low, high) = (Half::F16.narrow(m[i][2 * t]), Half::F16.narrow(m[i][2 * t + 1]));
            d[i / 8][4 * (i % 8) + t] = u32::from(high) << 16 | u32::from(low);
        }
    }
    d
}
