//! Integer and logic instructions over special values, against plain Rust.

use crate::harness::{B16, B32, B64, Operand, Random, cross, elementwise};

/// Edges of 32-bit arithmetic and a few values without pattern.
fn words() -> Vec<u64> {
    let mut values = vec![0, 1, 2, 7, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000];
    values.extend([0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFE, 0xFFFF_FFFF]);
    values.extend(Random::new(1).words(4).iter().map(|word| u64::from(*word)));
    values
}

fn doubles() -> Vec<u64> {
    let mut values = vec![0, 1, 31, 32, 63, 64, 0xFFFF_FFFF, 0x1_0000_0000, 0x8000_0000, i64::MAX as u64];
    values.extend([i64::MIN as u64, i64::MIN as u64 + 1, u64::MAX - 1, u64::MAX]);
    let mut random = Random::new(2);
    values.extend((0..4).map(|_| random.next()));
    values
}

fn halves() -> Vec<u64> {
    vec![0, 1, 2, 15, 16, 17, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x1234, 0xA5C3]
}

type Expectation = fn(&[u64]) -> u64;

/// Runs every line of a table over all combinations of the values of its operands.
fn check(to: Operand, from: &[Operand], table: &[(&str, Expectation)]) {
    let values: Vec<Vec<u64>> = from
        .iter()
        .map(|operand| match *operand {
            B64 => doubles(),
            B16 => halves(),
            _ => words(),
        })
        .collect();
    let columns: Vec<&[u64]> = values.iter().map(Vec::as_slice).collect();
    check_rows(to, from, &cross(&columns), table);
}

fn check_rows(to: Operand, from: &[Operand], rows: &[Vec<u64>], table: &[(&str, Expectation)]) {
    for (code, expected) in table {
        for (row, found) in rows.iter().zip(elementwise(code, to, from, rows)) {
            assert_eq!(found, expected(row), "{code} of {row:x?}: {found:#x} instead of {:#x}", expected(row));
        }
    }
}

fn u(value: u64) -> u32 {
    value as u32
}

fn s(value: u64) -> i32 {
    value as i32
}

fn word(value: u32) -> u64 {
    u64::from(value)
}

fn signed(value: i32) -> u64 {
    word(value as u32)
}

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

#[test]
fn conversions_between_integers() {
    check(
        B64,
        &[B32],
        &[
            ("cvt.u64.u32 %d, %a;", |v| v[0]),
            ("cvt.s64.s32 %d, %a;", |v| i64::from(s(v[0])) as u64),
            ("cvt.u64.s32 %d, %a;", |v| i64::from(s(v[0])) as u64),
            ("cvt.s64.u32 %d, %a;", |v| v[0]),
        ],
    );
    check(
        B32,
        &[B64],
        &[
            ("cvt.u32.u64 %d, %a;", |v| word(v[0] as u32)),
            ("cvt.sat.u32.u64 %d, %a;", |v| v[0].min(0xFFFF_FFFF)),
            ("cvt.sat.s32.s64 %d, %a;", |v| signed((v[0] as i64).clamp(i32::MIN.into(), i32::MAX.into()) as i32)),
            (".reg .b32 %x; mov.b64 {%d, %x}, %a;", |v| word(v[0] as u32)),
            (".reg .b32 %x; mov.b64 {%x, %d}, %a;", |v| v[0] >> 32),
        ],
    );
    check(
        B32,
        &[B32],
        &[
            ("cvt.u32.u8 %d, %a;", |v| v[0] & 255),
            ("cvt.s32.s8 %d, %a;", |v| signed(i32::from(v[0] as i8))),
            ("cvt.u32.u16 %d, %a;", |v| v[0] & 0xFFFF),
            ("cvt.s32.s16 %d, %a;", |v| signed(i32::from(v[0] as i16))),
            ("cvt.sat.u32.s32 %d, %a;", |v| signed(s(v[0]).max(0))),
            ("cvt.sat.s32.u32 %d, %a;", |v| v[0].min(0x7FFF_FFFF)),
            ("cvt.sat.u8.s32 %d, %a;", |v| signed(s(v[0]).clamp(0, 255))),
            ("cvt.sat.s8.s32 %d, %a;", |v| signed(s(v[0]).clamp(-128, 127))),
        ],
    );
    check(
        B16,
        &[B32],
        &[
            ("cvt.u16.u32 %d, %a;", |v| v[0] & 0xFFFF),
            ("cvt.sat.s16.s32 %d, %a;", |v| signed(s(v[0]).clamp(-32768, 32767)) & 0xFFFF),
        ],
    );
}

#[test]
fn comparisons_and_selection() {
    macro_rules! compare {
        ($($name:literal $ty:literal $cast:ty, $operator:tt);* $(;)?) => {
            check(B32, &[B32, B32], &[$((
                concat!("setp.", $name, ".", $ty, " %p, %a, %b; selp.b32 %d, 7, 3, %p;"),
                |v| if (v[0] as $cast) $operator (v[1] as $cast) { 7 } else { 3 },
            )),*]);
        };
    }
    compare!(
        "eq" "u32" u32, ==; "ne" "u32" u32, !=; "lt" "u32" u32, <; "le" "u32" u32, <=; "gt" "u32" u32, >; "ge" "u32" u32, >=;
        "lo" "u32" u32, <; "ls" "u32" u32, <=; "hi" "u32" u32, >; "hs" "u32" u32, >=;
        "eq" "s32" i32, ==; "ne" "s32" i32, !=; "lt" "s32" i32, <; "le" "s32" i32, <=; "gt" "s32" i32, >; "ge" "s32" i32, >=;
        "eq" "b32" u32, ==; "ne" "b32" u32, !=;
    );
    check(
        B32,
        &[B64, B64],
        &[
            ("setp.lt.u64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from(v[0] < v[1])),
            ("setp.lt.s64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from((v[0] as i64) < v[1] as i64)),
            ("setp.eq.b64 %p, %a, %b; selp.b32 %d, 1, 0, %p;", |v| u64::from(v[0] == v[1])),
        ],
    );
    check(
        B32,
        &[B32, B32],
        &[
            ("setp.lt.u32 %p|%q, %a, %b; selp.b32 %d, 1, 0, %q;", |v| u64::from(v[0] >= v[1])),
            ("setp.eq.u32 %q, %a, 0; setp.lt.and.u32 %p, %a, %b, %q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] && v[0] == 0)
            }),
            ("setp.eq.u32 %q, %a, 0; setp.lt.or.u32 %p, %a, %b, !%q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] || v[0] != 0)
            }),
            ("setp.eq.u32 %q, %a, 0; setp.lt.xor.u32 %p|%q, %a, %b, %q; selp.b32 %d, 1, 0, %q;", |v| {
                u64::from((v[0] >= v[1]) != (v[0] == 0))
            }),
            ("set.lt.u32.u32 %d, %a, %b;", |v| if v[0] < v[1] { 0xFFFF_FFFF } else { 0 }),
            ("set.lt.f32.s32 %d, %a, %b;", |v| if s(v[0]) < s(v[1]) { 0x3F80_0000 } else { 0 }),
            ("slct.b32.s32 %d, %a, 77, %b;", |v| if s(v[1]) >= 0 { v[0] } else { 77 }),
            ("setp.lt.u32 %p, %a, %b; setp.gt.u32 %q, %a, 31; and.pred %p, %p, %q; selp.b32 %d, 1, 0, %p;", |v| {
                u64::from(v[0] < v[1] && v[0] > 31)
            }),
            (
                "setp.lt.u32 %p, %a, %b; setp.gt.u32 %q, %a, 31; xor.pred %p, %p, %q; not.pred %p, %p; selp.b32 %d, 1, 0, %p;",
                |v| u64::from((v[0] < v[1]) == (v[0] > 31)),
            ),
            ("setp.lt.u32 %p, %a, %b; mov.b32 %d, 5; @%p mov.b32 %d, 6; @!%p add.u32 %d, %d, 2;", |v| {
                if v[0] < v[1] { 6 } else { 7 }
            }),
        ],
    );
}
