//! Fragments to matrices and back. With `g = lane / 4` and `t = lane % 4`, a lane holds rows `g` and `g + 8` of A and D, and
//! column `g` of B. The four lanes of a row lie side by side, so a register of A holds eight rows of 16 contiguous bytes.

use crate::numerics::Lanes;
use crate::numerics::float16::Half;
use crate::numerics::half::pair;

/// A, row by row, as `f32` bits; columns from `K` on are unused.
pub type MatrixA = [[u32; 16]; 16];
/// B as `k` rows of eight columns, as `f32` bits.
pub type MatrixB = [[u32; 8]; 16];
/// C or D, row by row, as `f32` or `s32` bits.
pub type MatrixC = [[u32; 8]; 16];

/// The low and the high halves of a register of 16-bit pairs, as `f32` bits. A NaN keeps its payload: no result shows it.
#[inline(always)]
fn widen(format: Half, register: &Lanes) -> [Lanes; 2] {
    let mut d = [[0; 32]; 2];
    for lane in 0..32 {
        let word = register[lane];
        (d[0][lane], d[1][lane]) = match format {
            Half::Bf16 => (word << 16, word & 0xffff_0000),
            Half::F16 => (widen_f16(word << 16), widen_f16(word)),
        };
    }
    d
}

/// The value of the `f16` in the upper half of a word.
#[inline(always)]
fn widen_f16(word: u32) -> u32 {
    // Shifting the sign in puts it where `f32` has it; a product with the difference of the biases does the rest.
    let moved = (word as i32 >> 3) as u32 & 0x8fff_e000;
    let value = (f32::from_bits(moved) * f32::from_bits((112 + 127) << 23)).to_bits();
    value | if moved & 0x0f80_0000 == 0x0f80_0000 { 0x7f80_0000 } else { 0 }
}

/// A of a 16-bit product with `k` columns, 16 or 8.
#[inline(always)]
pub fn a_half(format: Half, k: usize, a: [&Lanes; 4]) -> MatrixA {
    let mut m = [[0; 16]; 16];
    for part in 0..k / 4 {
        let [low, high] = widen(format, a[part]);
        let (rows, columns) = (8 * (part % 2), 8 * (part / 2));
        for g in 0..8 {
            for t in 0..4 {
                m[rows + g][columns + 2 * t] = low[4 * g + t];
                m[rows + g][columns + 2 * t + 1] = high[4 * g + t];
            }
        }
    }
    m
}

/// B of a 16-bit product with `k` rows, 16 or 8.
#[inline(always)]
pub fn b_half(format: Half, k: usize, b: [&Lanes; 2]) -> MatrixB {
    let mut m = [[0; 8]; 16];
    for part in 0..k / 8 {
        let [low, high] = widen(format, b[part]);
        for t in 0..4 {
            for n in 0..8 {
                m[8 * part + 2 * t][n] = low[4 * n + t];
                m[8 * part + 2 * t + 1][n] = high[4 * n + t];
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
    let ([c0, c1], [c2, c3]) = (widen(Half::F16, c[0]), widen(Half::F16, c[1]));
    c_words([&c0, &c1, &c2, &c3])
}

/// D into two registers of `f16` pairs (the other two are zero), each value through `round`.
#[inline(always)]
pub fn d_pairs<T: Copy + Default>(m: &[[T; 8]; 16], round: impl Fn(T) -> u16) -> [Lanes; 4] {
    let mut d = [[0; 32]; 4];
    for rows in 0..2 {
        let (mut low, mut high) = ([T::default(); 32], [T::default(); 32]);
        for g in 0..8 {
            for t in 0..4 {
                low[4 * g + t] = m[8 * rows + g][2 * t];
                high[4 * g + t] = m[8 * rows + g][2 * t + 1];
            }
        }
        for lane in 0..32 {
            d[rows][lane] = pair(round(high[lane]), round(low[lane]));
        }
    }
    d
}
