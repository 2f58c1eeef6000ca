//! Integer and logic instructions over special values, against plain Rust.

mod arithmetic;
mod bits;
mod selection;

use crate::harness::{B16, B64, Operand, Random, cross, elementwise};

/// Edges of 32-bit arithmetic and a few values without pattern.
pub fn words() -> Vec<u64> {
    let mut values = vec![0, 1, 2, 7, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000];
    values.extend([0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFE, 0xFFFF_FFFF]);
    values.extend(Random::new(1).words(4).iter().map(|word| u64::from(*word)));
    values
}

pub fn doubles() -> Vec<u64> {
    let mut values = vec![0, 1, 31, 32, 63, 64, 0xFFFF_FFFF, 0x1_0000_0000, 0x8000_0000, i64::MAX as u64];
    values.extend([i64::MIN as u64, i64::MIN as u64 + 1, u64::MAX - 1, u64::MAX]);
    let mut random = Random::new(2);
    values.extend((0..4).map(|_| random.next()));
    values
}

pub fn halves() -> Vec<u64> {
    vec![0, 1, 2, 15, 16, 17, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x1234, 0xA5C3]
}

pub type Expectation = fn(&[u64]) -> u64;

/// Runs every line of a table over all combinations of the values of its operands.
pub fn check(to: Operand, from: &[Operand], table: &[(&str, Expectation)]) {
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

pub fn check_rows(to: Operand, from: &[Operand], rows: &[Vec<u64>], table: &[(&str, Expectation)]) {
    for (code, expected) in table {
        for (row, found) in rows.iter().zip(elementwise(code, to, from, rows)) {
            assert_eq!(found, expected(row), "{code} of {row:x?}: {found:#x} instead of {:#x}", expected(row));
        }
    }
}

pub fn u(value: u64) -> u32 {
    value as u32
}

pub fn s(value: u64) -> i32 {
    value as i32
}

pub fn word(value: u32) -> u64 {
    u64::from(value)
}

pub fn signed(value: i32) -> u64 {
    word(value as u32)
}
