//! Sums, products, quotients and dot products of every width.

use super::{check, check_rows, doubles, s, signed, u, word, words};
use crate::harness::{B16, B32, B64, cross};

#[test]
fn arithmetic_of_32_bits() {
    check(
        B32,
        &[B32, B32],
        &[
            ("add.u32 %d, %a, %b;", |v| word(u(v[0]).wrapping_add(u(v[1])))),
            ("add.s32 %d, %a, %b;", |v| word(u(v[0]).wrapping_add(u(v[1])))),
            ("add.sat.s32 %d, %a, %b;", |v| signed(s(v[0]).saturating_add(s(v[1])))),
            ("sub.u32 %d, %a, %b;", |v| word(u(v[0]).wrapping_sub(u(v[1])))),
            ("sub.sat.s32 %d, %a, %b;", |v| signed(s(v[0]).saturating_sub(s(v[1])))),
            ("mul.lo.u32 %d, %a, %b;", |v| word(u(v[0]).wrapping_mul(u(v[1])))),
            ("mul.lo.s32 %d, %a, %b;", |v| word(u(v[0]).wrapping_mul(u(v[1])))),
            ("mul.hi.u32 %d, %a, %b;", |v| (v[0] * v[1]) >> 32),
            ("mul.hi.s32 %d, %a, %b;", |v| word(((i64::from(s(v[0])) * i64::from(s(v[1]))) >> 32) as u32)),
            ("min.u32 %d, %a, %b;", |v| v[0].min(v[1])),
            ("max.u32 %d, %a, %b;", |v| v[0].max(v[1])),
            ("min.s32 %d, %a, %b;", |v| signed(s(v[0]).min(s(v[1])))),
            ("max.s32 %d, %a, %b;", |v| signed(s(v[0]).max(s(v[1])))),
            ("sad.u32 %d, %a, %b, 5;", |v| word(u(v[0]).abs_diff(u(v[1])).wrapping_add(5))),
            ("sad.s32 %d, %a, %b, 5;", |v| word(s(v[0]).abs_diff(s(v[1])).wrapping_add(5))),
            ("add.u32 %d, %a, -3; xor.b32 %d, %d, %b; xor.b32 %d, %d, %b;", |v| word(u(v[0]).wrapping_sub(3))),
        ],
    );
}

#[test]
fn products_and_sums() {
    let rows = cross(&[&words(), &words(), &[0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]]);
    check_rows(
        B32,
        &[B32, B32, B32],
        &rows,
        &[
            ("mad.lo.u32 %d, %a, %b, %c;", |v| word(u(v[0]).wrapping_mul(u(v[1])).wrapping_add(u(v[2])))),
            ("mad.lo.s32 %d, %a, %b, %c;", |v| word(u(v[0]).wrapping_mul(u(v[1])).wrapping_add(u(v[2])))),
            ("mad.hi.u32 %d, %a, %b, %c;", |v| word((((v[0] * v[1]) >> 32) as u32).wrapping_add(u(v[2])))),
            ("mad.hi.s32 %d, %a, %b, %c;", |v| {
                word((((i64::from(s(v[0])) * i64::from(s(v[1]))) >> 32) as u32).wrapping_add(u(v[2])))
            }),
            ("sad.u32 %d, %a, %b, %c;", |v| word(u(v[0]).abs_diff(u(v[1])).wrapping_add(u(v[2])))),
        ],
    );
    check(
        B64,
        &[B32, B32],
        &[
            ("mul.wide.u32 %d, %a, %b;", |v| v[0] * v[1]),
            ("mul.wide.s32 %d, %a, %b;", |v| (i64::from(s(v[0])) * i64::from(s(v[1]))) as u64),
            ("mul.wide.u32 %d, %a, 4000000000; add.u64 %d, %d, 0;", |v| v[0] * 4_000_000_000),
        ],
    );
    let rows = cross(&[&words(), &words(), &doubles()]);
    check_rows(
        B64,
        &[B32, B32, B64],
        &rows,
        &[
            ("mad.wide.u32 %d, %a, %b, %c;", |v| (v[0] * v[1]).wrapping_add(v[2])),
            ("mad.wide.s32 %d, %a, %b, %c;", |v| ((i64::from(s(v[0])) * i64::from(s(v[1]))) as u64).wrapping_add(v[2])),
        ],
    );
}

#[test]
fn division() {
    let rows: Vec<Vec<u64>> = cross(&[&words(), &words()]).into_iter().filter(|row| row[1] != 0).collect();
    check_rows(
        B32,
        &[B32, B32],
        &rows,
        &[
            ("div.u32 %d, %a, %b;", |v| v[0] / v[1]),
            ("rem.u32 %d, %a, %b;", |v| v[0] % v[1]),
            ("div.s32 %d, %a, %b;", |v| signed(s(v[0]).wrapping_div(s(v[1])))),
            ("rem.s32 %d, %a, %b;", |v| signed(s(v[0]).wrapping_rem(s(v[1])))),
        ],
    );
    let rows: Vec<Vec<u64>> = cross(&[&doubles(), &doubles()]).into_iter().filter(|row| row[1] != 0).collect();
    check_rows(
        B64,
        &[B64, B64],
        &rows,
        &[
            ("div.u64 %d, %a, %b;", |v| v[0] / v[1]),
            ("rem.u64 %d, %a, %b;", |v| v[0] % v[1]),
            ("div.s64 %d, %a, %b;", |v| (v[0] as i64).wrapping_div(v[1] as i64) as u64),
            ("rem.s64 %d, %a, %b;", |v| (v[0] as i64).wrapping_rem(v[1] as i64) as u64),
        ],
    );
}

#[test]
fn dot_products() {
    let rows = cross(&[&words(), &words(), &[0, 100, 0x7FFF_FFFF, 0xFFFF_FFFF]]);
    fn dot(v: &[u64], a: fn(u64) -> i64, b: fn(u64) -> i64) -> u64 {
        let sum: i64 = (0..4).map(|i| a(v[0] >> (8 * i) & 255) * b(v[1] >> (8 * i) & 255)).sum();
        word((sum as u32).wrapping_add(u(v[2])))
    }
    fn plain(byte: u64) -> i64 {
        byte as i64
    }
    fn extended(byte: u64) -> i64 {
        i64::from(byte as i8)
    }
    check_rows(
        B32,
        &[B32, B32, B32],
        &rows,
        &[
            ("dp4a.u32.u32 %d, %a, %b, %c;", |v| dot(v, plain, plain)),
            ("dp4a.s32.s32 %d, %a, %b, %c;", |v| dot(v, extended, extended)),
            ("dp4a.s32.u32 %d, %a, %b, %c;", |v| dot(v, extended, plain)),
            ("dp4a.u32.s32 %d, %a, %b, %c;", |v| dot(v, plain, extended)),
        ],
    );
}

#[test]
fn arithmetic_of_64_bits() {
    check(
        B64,
        &[B64, B64],
        &[
            ("add.u64 %d, %a, %b;", |v| v[0].wrapping_add(v[1])),
            ("add.s64 %d, %a, %b;", |v| v[0].wrapping_add(v[1])),
            ("sub.u64 %d, %a, %b;", |v| v[0].wrapping_sub(v[1])),
            ("mul.lo.u64 %d, %a, %b;", |v| v[0].wrapping_mul(v[1])),
            ("mul.hi.u64 %d, %a, %b;", |v| ((u128::from(v[0]) * u128::from(v[1])) >> 64) as u64),
            ("mul.hi.s64 %d, %a, %b;", |v| ((i128::from(v[0] as i64) * i128::from(v[1] as i64)) >> 64) as u64),
            ("mad.lo.u64 %d, %a, %b, 9;", |v| v[0].wrapping_mul(v[1]).wrapping_add(9)),
            ("min.u64 %d, %a, %b;", |v| v[0].min(v[1])),
            ("max.u64 %d, %a, %b;", |v| v[0].max(v[1])),
            ("min.s64 %d, %a, %b;", |v| (v[0] as i64).min(v[1] as i64) as u64),
            ("max.s64 %d, %a, %b;", |v| (v[0] as i64).max(v[1] as i64) as u64),
            ("and.b64 %d, %a, %b;", |v| v[0] & v[1]),
            ("or.b64 %d, %a, %b;", |v| v[0] | v[1]),
            ("xor.b64 %d, %a, %b;", |v| v[0] ^ v[1]),
        ],
    );
    check(
        B64,
        &[B64],
        &[
            ("not.b64 %d, %a;", |v| !v[0]),
            ("neg.s64 %d, %a;", |v| v[0].wrapping_neg()),
            ("abs.s64 %d, %a;", |v| (v[0] as i64).wrapping_abs() as u64),
            ("brev.b64 %d, %a;", |v| v[0].reverse_bits()),
            ("mov.b64 %d, %a;", |v| v[0]),
        ],
    );
    check(
        B32,
        &[B64],
        &[
            ("popc.b64 %d, %a;", |v| word(v[0].count_ones())),
            ("clz.b64 %d, %a;", |v| word(v[0].leading_zeros())),
            ("bfind.u64 %d, %a;", |v| word(63u32.wrapping_sub(v[0].leading_zeros()))),
        ],
    );
    check(
        B64,
        &[B64, B32],
        &[
            ("shl.b64 %d, %a, %b;", |v| if v[1] < 64 { v[0] << v[1] } else { 0 }),
            ("shr.u64 %d, %a, %b;", |v| if v[1] < 64 { v[0] >> v[1] } else { 0 }),
            ("shr.s64 %d, %a, %b;", |v| ((v[0] as i64) >> v[1].min(63)) as u64),
        ],
    );
}

#[test]
fn carries() {
    let wide_add = ".reg .b32 %l<3>, %h<3>; mov.b64 {%l0, %h0}, %a; mov.b64 {%l1, %h1}, %b;
        add.cc.u32 %l2, %l0, %l1; addc.u32 %h2, %h0, %h1; mov.b64 %d, {%l2, %h2};";
    let wide_sub = ".reg .b32 %l<3>, %h<3>; mov.b64 {%l0, %h0}, %a; mov.b64 {%l1, %h1}, %b;
        sub.cc.u32 %l2, %l0, %l1; subc.u32 %h2, %h0, %h1; mov.b64 %d, {%l2, %h2};";
    check(B64, &[B64, B64], &[(wide_add, |v| v[0].wrapping_add(v[1])), (wide_sub, |v| v[0].wrapping_sub(v[1]))]);
    check(
        B32,
        &[B32, B32],
        &[
            ("add.cc.u32 %d, %a, %b; addc.u32 %d, 0, 0;", |v| (v[0] + v[1]) >> 32),
            ("add.cc.u32 %d, %a, %b; addc.cc.u32 %d, %a, 0; addc.u32 %d, 0, 0;", |v| {
                (v[0] + ((v[0] + v[1]) >> 32)) >> 32
            }),
        ],
    );
}

#[test]
fn arithmetic_of_16_bits() {
    check(
        B16,
        &[B16, B16],
        &[
            ("add.u16 %d, %a, %b;", |v| (v[0] + v[1]) & 0xFFFF),
            ("sub.s16 %d, %a, %b;", |v| v[0].wrapping_sub(v[1]) & 0xFFFF),
            ("mul.lo.u16 %d, %a, %b;", |v| (v[0] * v[1]) & 0xFFFF),
            ("mul.hi.u16 %d, %a, %b;", |v| (v[0] * v[1]) >> 16),
            ("min.u16 %d, %a, %b;", |v| v[0].min(v[1])),
            ("max.s16 %d, %a, %b;", |v| u64::from((v[0] as i16).max(v[1] as i16) as u16)),
            ("and.b16 %d, %a, %b;", |v| v[0] & v[1]),
            ("or.b16 %d, %a, %b;", |v| v[0] | v[1]),
            ("xor.b16 %d, %a, %b;", |v| v[0] ^ v[1]),
        ],
    );
    check(
        B32,
        &[B16, B16],
        &[
            ("mul.wide.u16 %d, %a, %b;", |v| v[0] * v[1]),
            ("mul.wide.s16 %d, %a, %b;", |v| signed(i32::from(v[0] as i16) * i32::from(v[1] as i16))),
            ("mov.b32 %d, {%a, %b};", |v| v[1] << 16 | v[0]),
        ],
    );
    check(
        B16,
        &[B16, B32],
        &[
            ("shl.b16 %d, %a, %b;", |v| if v[1] < 16 { v[0] << v[1] & 0xFFFF } else { 0 }),
            ("shr.u16 %d, %a, %b;", |v| if v[1] < 16 { v[0] >> v[1] } else { 0 }),
            ("shr.s16 %d, %a, %b;", |v| u64::from(((v[0] as i16) >> v[1].min(15)) as u16)),
        ],
    );
    check(
        B16,
        &[B32],
        &[
            (".reg .b16 %h; mov.b32 {%d, %h}, %a;", |v| v[0] & 0xFFFF),
            (".reg .b16 %h; mov.b32 {%h, %d}, %a;", |v| v[0] >> 16),
        ],
    );
}
