//! Products of matrix fragments.
//!
//! A product is probed in three ways: one element of A, or of B, at one place of the registers and numbers that tell all
//! elements of the other apart, which shows the layout; C alone; and random fragments in six regimes of exponents, which show
//! the arithmetic.

use super::fragment::{N, Shape, gather};
use crate::{
    form::{Class, Form},
    inputs::{Data, Kind, Register, mix},
    oracle::{
        Expected, Oracle, Warp, WarpExpected,
        exact::{BF16, F16, F32, F64, Format, Number, Round, Sum},
    },
};
use std::sync::Arc;

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    for (k, ty) in [(16, "f16"), (8, "f16"), (16, "bf16"), (8, "bf16"), (8, "tf32"), (4, "tf32")] {
        floats(forms, k, ty, "f32");
    }
    floats(forms, 16, "f16", "f16");
    floats(forms, 8, "f16", "f16");
    for k in [16, 32] {
        for (a, b) in [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")] {
            bytes(forms, k, a, b, false);
            bytes(forms, k, a, b, true);
        }
    }
    for operation in ["and", "xor"] {
        for (m, k) in [(16, 128), (16, 256), (8, 128)] {
            single_bits(forms, m, k, operation);
        }
    }
}

/// Most probes of one operand; of larger fragments every n-th element is probed.
const PROBES: usize = 512;

/// How registers are filled: encodings of one, of numbers that differ, and random ones.
struct Filling {
    shape: Shape,
    /// Bits of 1 in A and B.
    one: u64,
    /// Bits of a number that tells elements apart, for A and B, and for C.
    tag: fn(usize) -> u64,
    tag_c: fn(usize) -> u64,
    /// A random element: regime, whether it belongs to C, random bits of the warp and of its own.
    random: fn(u64, bool, u64, u64) -> u64,
    regimes: u64,
}

/// Random warps of each regime.
const EACH: u64 = 128;

impl Filling {
    fn data(self) -> Data {
        let [a, b, _] = self.shape.registers();
        let [a_all, b_all] = [a, b].map(|registers| registers * 32 * self.shape.each());
        let (a_probes, b_probes) = (a_all.min(PROBES), b_all.min(PROBES));
        let probes = (a_probes + b_probes + 1) as u64;
        let warps = probes + self.regimes * EACH;
        Data::Custom(
            32 * warps,
            Arc::new(move |index, operand| {
                let (warp, lane) = (index / 32, (index % 32) as usize);
                let matrix = if operand < a { 0 } else { 1 + usize::from(operand >= a + b) };
                let register = operand - [0, a, a + b][matrix];
                let bits = if matrix == 2 { self.shape.result_bits } else { self.shape.bits };
                let each = 32 / bits;
                (0..each)
                    .map(|element| {
                        let number = (register * 32 + lane) * each + element;
                        let probe = warp as usize;
                        let value = if probe < a_probes {
                            self.probe(matrix, 0, number, probe * a_all / a_probes)
                        } else if probe < a_probes + b_probes {
                            self.probe(matrix, 1, number, (probe - a_probes) * b_all / b_probes)
                        } else if probe == a_probes + b_probes {
                            if matrix == 2 { (self.tag_c)(number) } else { 0 }
                        } else {
                            let own = mix(mix(warp * 64 + operand as u64) ^ (number as u64) << 20);
                            (self.random)((warp - probes) / EACH, matrix == 2, mix(warp), own)
                        };
                        (value & (u64::MAX >> (64 - bits))) << (bits * element)
                    })
                    .sum()
            }),
        )
    }

    /// One hot element in one matrix, tags in the other, nothing in C.
    fn probe(&self, matrix: usize, hot: usize, number: usize, place: usize) -> u64 {
        match matrix {
            2 => 0,
            _ if matrix == hot => {
                if number == place {
                    self.one
                } else {
                    0
                }
            }
            _ => (self.tag)(number),
        }
    }
}

fn form(key: String, shape: Shape, filling: Filling) -> Form {
    let [a, b, c] = shape.registers();
    let list = |letter: char, first: usize, count: usize| {
        (first..first + count).map(|i| format!("%{letter}{i}")).collect::<Vec<_>>().join(", ")
    };
    let body = format!(
        "{key} {{{}}}, {{{}}}, {{{}}}, {{{}}};",
        list('d', 0, c),
        list('a', 0, a),
        list('a', a, b),
        list('a', a + b, c)
    );
    Form::with_body(key, &vec![Kind::I32; a + b + c], &vec![Register::B32; c], body).data(filling.data())
}

/// Splits the registers of a warp into the three matrices.
fn matrices(shape: Shape, x: &Warp) -> [Vec<Vec<u64>>; 3] {
    let [a, b, _] = shape.registers();
    [
        gather(&x[..a], shape.bits, (shape.m, shape.k), |l, r, e| shape.a_place(l, r, e)),
        gather(&x[a..a + b], shape.bits, (shape.k, N), |l, r, e| shape.b_place(l, r, e)),
        gather(&x[a + b..], shape.result_bits, (shape.m, N), |l, r, e| shape.c_place(l, r, e)),
    ]
}

fn scatter(shape: Shape, out: &mut WarpExpected, element_of: impl Fn(usize, usize) -> Expected) {
    for (register, lanes) in out.iter_mut().enumerate() {
        for (lane, out) in lanes.iter_mut().enumerate() {
            let at = |element| {
                let (row, column) = shape.c_place(lane, register, element);
                element_of(row, column)
            };
            *out = if shape.result_bits == 32 { at(0) } else { both([at(0), at(1)]) };
        }
    }
}

/// A register of two `f16`, which are compared by their own tolerance.
fn both(halves: [Expected; 2]) -> Expected {
    Expected::Halves(halves.map(|half| match half {
        Expected::Near { value, tolerance, .. } => Some((value, tolerance)),
        Expected::Nan(_) => Some((f64::NAN, 0.0)),
        _ => None,
    }))
}

fn floats(forms: &mut Vec<Form>, k: usize, ty: &'static str, result: &'static str) {
    let bits = if ty == "tf32" { 32 } else { 16 };
    let shape = Shape { m: 16, k, bits, result_bits: if result == "f32" { 32 } else { 16 } };
    let format = match ty {
        "f16" => F16,
        "bf16" => BF16,
        _ => F32,
    };
    let result_format = if result == "f32" { F32 } else { F16 };
    let tag: fn(usize) -> u64 = match ty {
        "f16" => |n| encode(F16, (n % 509 + 1) as f64),
        "bf16" => |n| encode(BF16, (n % 127 + 1) as f64),
        _ => |n| encode(F32, (n % 509 + 1) as f64),
    };
    let random: fn(u64, bool, u64, u64) -> u64 = match (ty, result) {
        ("f16", "f32") => |r, c, w, o| element(r, if c { F32 } else { F16 }, c, w, o),
        ("f16", _) => |r, c, w, o| element(r, F16, c, w, o),
        ("bf16", _) => |r, c, w, o| element(r, if c { F32 } else { BF16 }, c, w, o),
        // The low bits of a tf32 operand are not part of it.
        _ => |r, c, w, o| element(r, F32, c, w, o) & if c { u64::MAX } else { !0x1fff },
    };
    let filling = Filling {
        shape,
        one: encode(format, 1.0),
        tag,
        tag_c: if result == "f32" { |n| encode(F32, (n + 1) as f64) } else { |n| encode(F16, (n + 1) as f64) },
        random,
        regimes: 6,
    };
    let key = format!("mma.sync.aligned.m16n8k{k}.row.col.{result}.{ty}.{ty}.{result}");
    let form = form(key, shape, filling).class(Class::Tensor);
    forms.push(form.oracle(Oracle::warp(move |x, out| {
        let [a, b, c] = matrices(shape, x);
        scatter(shape, out, |row, column| {
            let products = (0..k).map(|i| (a[row][i], b[i][column]));
            dot(format, result_format, products, c[row][column])
        });
    })));
}

fn encode(format: Format, value: f64) -> u64 {
    crate::oracle::float::convert(F64, format, Round::Nearest, value.to_bits())
}

/// An element of one of the regimes: narrow, wide, cancelling, subnormal, a large accumulator, not finite.
fn element(regime: u64, format: Format, accumulator: bool, warp: u64, own: u64) -> u64 {
    let fraction = own & ((1 << format.mantissa) - 1);
    let sign = if own >> 63 == 0 { 0 } else { format.sign() };
    let most = (1i64 << format.exponent) - 2;
    let centre = most / 2;
    let around = |middle: i64, spread: u64| (middle + (own >> 40) as i64 % (spread as i64 + 1)).clamp(0, most) as u64;
    let field = match regime {
        0 => around(centre - 1, 2),
        1 => around(centre - most / 5, 2 * most as u64 / 5),
        // The same magnitude with few bits: sums nearly vanish.
        2 => return sign | (centre as u64) << format.mantissa | fraction & !((1 << (format.mantissa - 2)) - 1),
        3 => around(0, if accumulator { 2 } else { most as u64 / 2 }),
        4 if accumulator => around(centre + most / 4, 6),
        4 => around(centre - 3, 6),
        _ => match own >> 8 & 15 {
            // One of these in a warp's column is enough to decide it; most warps have few.
            0 if mix(warp ^ own) & 7 == 0 => return sign | format.infinity(),
            1 if mix(warp ^ own) & 15 == 0 => return format.infinity() | 1,
            2 => return sign,
            _ => around(centre - 4, 8),
        },
    };
    sign | field << format.mantissa | fraction
}

/// A sum of products and the accumulator. Any order of `f32` additions, or a fused sum that keeps at least 24 bits of its
/// largest term, stays within the tolerance.
fn dot(format: Format, result: Format, products: impl Iterator<Item = (u64, u64)>, c: u64) -> Expected {
    use Number::{Finite, Infinite, Nan};
    let (mut sum, mut size, mut terms) = (Sum::default(), result.value(c).abs(), 1.0);
    let mut infinite = [false; 2];
    match result.decode(c) {
        Nan => return Expected::Nan(result),
        Infinite(negative) => infinite[usize::from(negative)] = true,
        Finite { negative, significand, exponent } => sum.add_number(negative, significand, exponent),
    }
    for (a, b) in products {
        terms += 1.0;
        size += (format.value(a) * format.value(b)).abs();
        match (format.decode(a), format.decode(b)) {
            (Nan, _) | (_, Nan) => return Expected::Nan(result),
            (Infinite(_), Finite { significand: 0, .. }) | (Finite { significand: 0, .. }, Infinite(_)) => {
                return Expected::Nan(result);
            }
            (
                Finite { negative: n, significand: s, exponent: e },
                Finite { negative: m, significand: t, exponent: f },
            ) => sum.add(n != m, u128::from(s) * u128::from(t), e + f),
            _ => infinite[usize::from((a ^ b) & format.sign() != 0)] = true,
        }
    }
    match infinite {
        [true, true] => return Expected::Nan(result),
        [false, false] => {}
        [_, negative] => {
            let value = if negative { f64::NEG_INFINITY } else { f64::INFINITY };
            return Expected::Near { format: result, value, tolerance: 0.0 };
        }
    }
    let value = f64::from_bits(sum.round(F64, Round::Nearest));
    let unit = |n: f64| n.exp2();
    let mut tolerance = size * (terms * unit(-24.0) + unit(-23.0)) + terms * unit(-149.0);
    if result == F16 {
        tolerance += value.abs() * unit(-11.0) + unit(-24.0);
    }
    let largest = result.value(result.infinity() - 1);
    // Where a partial sum may overflow, the order decides.
    if size + tolerance > largest { Expected::Open } else { Expected::Near { format: result, value, tolerance } }
}

fn bytes(forms: &mut Vec<Form>, k: usize, a: &'static str, b: &'static str, saturate: bool) {
    let shape = Shape { m: 16, k, bits: 8, result_bits: 32 };
    let filling = Filling {
        shape,
        one: 1,
        tag: |n| (n % 127 + 1) as u64,
        tag_c: |n| (n * 65_537 + 1) as u64,
        // Random bytes, the extreme ones, and accumulators that overflow.
        random: |regime, accumulator, warp, own| match (regime, accumulator) {
            (0, false) => own,
            (1, false) => [0x7f, 0x80, 0xff, 0][(own & 3) as usize],
            (_, false) => [0x7f, 0x80][(warp & 1) as usize],
            (0, true) => own & 0xffff,
            (1, true) => own,
            (_, true) => [0x7fff_ff00, 0x8000_00ff, 0x7fff_ffff, 0x8000_0000][(own & 3) as usize],
        },
        regimes: 3,
    };
    let word = if saturate { "satfinite." } else { "" };
    let key = format!("mma.sync.aligned.m16n8k{k}.row.col.{word}s32.{a}.{b}.s32");
    let value = |ty: &str, bits: u64| if ty == "s8" { i64::from(bits as u8 as i8) } else { i64::from(bits as u8) };
    forms.push(form(key, shape, filling).oracle(Oracle::warp(move |x, out| {
        let [ma, mb, mc] = matrices(shape, x);
        scatter(shape, out, |row, column| {
            let products = (0..k).map(|i| value(a, ma[row][i]) * value(b, mb[i][column]));
            let sum = products.sum::<i64>() + i64::from(mc[row][column] as u32 as i32);
            let sum = if saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
            Expected::Bits(sum as u64 & 0xffff_ffff)
        });
    })));
}

fn single_bits(forms: &mut Vec<Form>, m: usize, k: usize, operation: &'static str) {
    let shape = Shape { m, k, bits: 1, result_bits: 32 };
    let filling = Filling {
        shape,
        one: 1,
        tag: |n| mix(n as u64) & 1,
        tag_c: |n| (n * 65_537 + 1) as u64,
        random: |regime, accumulator, _, own| match (regime, accumulator) {
            (_, true) => own,
            (0, _) => own & 1,
            (1, _) => own & own >> 1 & 1,
            _ => (own | own >> 1) & 1,
        },
        regimes: 3,
    };
    let key = format!("mma.sync.aligned.m{m}n8k{k}.row.col.s32.b1.b1.s32.{operation}.popc");
    forms.push(form(key, shape, filling).oracle(Oracle::warp(move |x, out| {
        let [a, b, c] = matrices(shape, x);
        scatter(shape, out, |row, column| {
            let join = |i: usize| if operation == "and" { a[row][i] & b[i][column] } else { a[row][i] ^ b[i][column] };
            let count: u64 = (0..k).map(join).sum();
            Expected::Bits((count + c[row][column]) & 0xffff_ffff)
        });
    })));
}
