//! Logic, shifts, bit fields, permutes and counts.

use super::{check, check_rows, doubles, s, signed, u, word, words};
use crate::harness::{B32, B64, cross};

#[test]
fn one_operand_of_32_bits() {
    check(
        B32,
        &[B32],
        &[
            ("not.b32 %d, %a;", |v| word(!u(v[0]))),
            ("cnot.b32 %d, %a;", |v| u64::from(v[0] == 0)),
            ("neg.s32 %d, %a;", |v| word(u(v[0]).wrapping_neg())),
            ("abs.s32 %d, %a;", |v| signed(s(v[0]).wrapping_abs())),
            ("popc.b32 %d, %a;", |v| word(u(v[0]).count_ones())),
            ("clz.b32 %d, %a;", |v| word(u(v[0]).leading_zeros())),
            ("brev.b32 %d, %a;", |v| word(u(v[0]).reverse_bits())),
            ("bfind.u32 %d, %a;", |v| word(31u32.wrapping_sub(u(v[0]).leading_zeros()))),
            ("bfind.s32 %d, %a;", |v| {
                let bits = if s(v[0]) < 0 { !u(v[0]) } else { u(v[0]) };
                word(31u32.wrapping_sub(bits.leading_zeros()))
            }),
            ("bfind.shiftamt.u32 %d, %a;", |v| word(if v[0] == 0 { u32::MAX } else { u(v[0]).leading_zeros() })),
            ("mov.b32 %d, %a;", |v| v[0]),
        ],
    );
}

#[test]
fn logic_and_shifts_of_32_bits() {
    check(
        B32,
        &[B32, B32],
        &[
            ("and.b32 %d, %a, %b;", |v| v[0] & v[1]),
            ("or.b32 %d, %a, %b;", |v| v[0] | v[1]),
            ("xor.b32 %d, %a, %b;", |v| v[0] ^ v[1]),
            ("shl.b32 %d, %a, %b;", |v| if v[1] < 32 { word(u(v[0]) << v[1]) } else { 0 }),
            ("shr.u32 %d, %a, %b;", |v| if v[1] < 32 { v[0] >> v[1] } else { 0 }),
            ("shr.b32 %d, %a, %b;", |v| if v[1] < 32 { v[0] >> v[1] } else { 0 }),
            ("shr.s32 %d, %a, %b;", |v| signed(s(v[0]) >> v[1].min(31))),
            ("shl.b32 %d, %a, 5; xor.b32 %d, %d, %b; xor.b32 %d, %d, %b;", |v| word(u(v[0]) << 5)),
        ],
    );
    let rows = cross(&[&words(), &words(), &words()]);
    check_rows(
        B32,
        &[B32, B32, B32],
        &rows,
        &[
            ("lop3.b32 %d, %a, %b, %c, 0x96;", |v| v[0] ^ v[1] ^ v[2]),
            ("lop3.b32 %d, %a, %b, %c, 0xE8;", |v| v[0] & v[1] | v[0] & v[2] | v[1] & v[2]),
            ("lop3.b32 %d, %a, %b, %c, 0xCA;", |v| v[0] & v[1] | word(!u(v[0])) & v[2]),
            ("lop3.b32 %d, %a, %b, %c, 0x0F;", |v| word(!u(v[0]))),
            ("shf.l.wrap.b32 %d, %a, %b, %c;", |v| word(((v[1] << 32 | v[0]) << (v[2] & 31) >> 32) as u32)),
            ("shf.r.wrap.b32 %d, %a, %b, %c;", |v| word(((v[1] << 32 | v[0]) >> (v[2] & 31)) as u32)),
            ("shf.l.clamp.b32 %d, %a, %b, %c;", |v| word((u128::from(v[1] << 32 | v[0]) << v[2].min(32) >> 32) as u32)),
            ("shf.r.clamp.b32 %d, %a, %b, %c;", |v| word(((v[1] << 32 | v[0]) >> v[2].min(32)) as u32)),
        ],
    );
}

#[test]
fn bit_fields() {
    let positions: Vec<u64> = vec![0, 1, 5, 16, 31, 32, 40, 255, 256, 257];
    let rows = cross(&[&words(), &positions, &positions]);
    check_rows(
        B32,
        &[B32, B32, B32],
        &rows,
        &[
            ("bfe.u32 %d, %a, %b, %c;", |v| field(v[0], v[1] & 255, v[2] & 255, 32, false)),
            ("bfe.s32 %d, %a, %b, %c;", |v| field(v[0], v[1] & 255, v[2] & 255, 32, true)),
            ("bfi.b32 %d, 0x5A5A5A5A, %a, %b, %c;", |v| insert(0x5A5A_5A5A, v[0], v[1] & 255, v[2] & 255, 32)),
            ("bfi.b32 %d, %a, 0xF0F0F0F0, %b, %c;", |v| insert(v[0], 0xF0F0_F0F0, v[1] & 255, v[2] & 255, 32)),
        ],
    );
    let rows = cross(&[&doubles(), &positions, &positions]);
    check_rows(
        B64,
        &[B64, B32, B32],
        &rows,
        &[
            ("bfe.u64 %d, %a, %b, %c;", |v| field(v[0], v[1] & 255, v[2] & 255, 64, false)),
            ("bfe.s64 %d, %a, %b, %c;", |v| field(v[0], v[1] & 255, v[2] & 255, 64, true)),
        ],
    );
}

/// `length` bits of `value` from `position`, bit by bit as the manual describes it.
fn field(value: u64, position: u64, length: u64, width: u64, extend: bool) -> u64 {
    let bit = |index: u64| if index < width { value >> index & 1 } else { 0 };
    let top = (position + length).saturating_sub(1).min(width - 1);
    let sign = if extend && length > 0 { value >> top & 1 } else { 0 };
    (0..width)
        .map(|index| if index < length && position + index < width { bit(position + index) } else { sign } << index)
        .sum()
}

fn insert(field: u64, into: u64, position: u64, length: u64, width: u64) -> u64 {
    (0..width)
        .map(|index| {
            let inside = index >= position && index < position + length;
            (if inside { field >> (index - position) & 1 } else { into >> index & 1 }) << index
        })
        .sum()
}

#[test]
fn byte_permutes() {
    let rows = cross(&[&words(), &[0x0102_0384, 0xF5E6_D798], &[0x3210, 0x7654, 0xFEDC, 0x0123, 0x8421, 0xFFFF_9050]]);
    fn byte(v: &[u64], index: u64) -> u64 {
        (v[1] << 32 | v[0]) >> (8 * (index & 7)) & 255
    }
    check_rows(
        B32,
        &[B32, B32, B32],
        &rows,
        &[
            ("prmt.b32 %d, %a, %b, %c;", |v| {
                (0..4)
                    .map(|place| {
                        let selector = v[2] >> (4 * place) & 15;
                        let picked = byte(v, selector);
                        let value = if selector < 8 { picked } else { (picked >> 7) * 255 };
                        value << (8 * place)
                    })
                    .sum()
            }),
            ("prmt.b32.f4e %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, (v[2] & 3) + i) << (8 * i)).sum()),
            ("prmt.b32.b4e %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, (v[2] & 3) + 8 - i) << (8 * i)).sum()),
            ("prmt.b32.rc8 %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, v[2] & 3) << (8 * i)).sum()),
            ("prmt.b32.ecl %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, i.max(v[2] & 3)) << (8 * i)).sum()),
            ("prmt.b32.ecr %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, i.min(v[2] & 3)) << (8 * i)).sum()),
            ("prmt.b32.rc16 %d, %a, %b, %c;", |v| (0..4).map(|i| byte(v, (v[2] & 1) * 2 + i % 2) << (8 * i)).sum()),
        ],
    );
}
