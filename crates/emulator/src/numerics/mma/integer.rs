//! Products of bytes and of bits: exact integers.

use super::BitOperation;
use super::layout::{c_words, d_words};
use crate::numerics::{Lanes, dispatched};

#[inline(always)]
fn byte(word: u32, i: usize, signed: bool) -> i32 {
    let raw = (word >> (8 * i)) as u8;
    if signed { i32::from(raw as i8) } else { i32::from(raw) }
}

#[inline(always)]
pub(super) fn bytes_body(
    k: usize,
    a_signed: bool,
    b_signed: bool,
    saturate: bool,
    a: [&Lanes; 4],
    b: [&Lanes; 2],
    c: [&Lanes; 4],
) -> [Lanes; 4] {
    let mut m = c_words(c);
    for i in 0..16 {
        for j in 0..8 {
            // 32 products of bytes stay below 2^21, so the sum itself is exact.
            let mut sum = 0;
            for half in 0..k / 16 {
                for t in 0..4 {
                    let (x, y) = (a[2 * half + i / 8][4 * (i % 8) + t], b[half][4 * j + t]);
                    for q in 0..4 {
                        sum += byte(x, q, a_signed) * byte(y, q, b_signed);
                    }
                }
            }
            let old = m[i][j] as i32;
            m[i][j] = if saturate { old.saturating_add(sum) } else { old.wrapping_add(sum) } as u32;
        }
    }
    d_words(&m)
}

dispatched! {
    /// Bytes of either signedness, accumulated in `s32`.
    pub fn bytes(
        k: usize, a_signed: bool, b_signed: bool, saturate: bool, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4],
    ) -> [Lanes; 4] = bytes_body;
}

#[inline(always)]
fn count(operation: BitOperation, x: u32, y: u32) -> u32 {
    match operation {
        BitOperation::And => (x & y).count_ones(),
        BitOperation::Xor => (x ^ y).count_ones(),
    }
}

/// `m16n8k256` and `m16n8k128`: four lanes hold 128 bits of a row.
pub fn bits(k: usize, operation: BitOperation, a: [&Lanes; 4], b: [&Lanes; 2], c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut m = c_words(c);
    for i in 0..16 {
        for j in 0..8 {
            for half in 0..k / 128 {
                for t in 0..4 {
                    let (x, y) = (a[2 * half + i / 8][4 * (i % 8) + t], b[half][4 * j + t]);
                    m[i][j] = m[i][j].wrapping_add(count(operation, x, y));
                }
            }
        }
    }
    d_words(&m)
}

/// `m8n8k128`: C and D are two registers.
pub fn bits_8x8(operation: BitOperation, a: &Lanes, b: &Lanes, c: [&Lanes; 4]) -> [Lanes; 4] {
    let mut d = [*c[0], *c[1], [0; 32], [0; 32]];
    for lane in 0..32 {
        for column in 0..2 {
            for t in 0..4 {
                let (x, y) = (a[lane / 4 * 4 + t], b[4 * (lane % 4 * 2 + column) + t]);
                d[column][lane] = d[column][lane].wrapping_add(count(operation, x, y));
            }
        }
    }
    d
}
