//! Integer arithmetic.

use crate::{
    form::Form,
    inputs::{Kind, Register},
    oracle::{
        Expected, Oracle,
        integer::{Integer, dot},
    },
};

const TYPES: [&str; 6] = ["u16", "u32", "u64", "s16", "s32", "s64"];

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    sums(forms);
    products(forms);
    quotients(forms);
    carries(forms);
    dots(forms);
}

fn types() -> impl Iterator<Item = (&'static str, Integer, Kind)> {
    TYPES.into_iter().filter_map(|name| Some((name, Integer::named(name)?, Kind::of(name))))
}

type Binary = fn(Integer, i128, i128) -> i128;

fn sums(forms: &mut Vec<Form>) {
    let binary: [(&str, Binary); 4] =
        [("add", |_, a, b| a + b), ("sub", |_, a, b| a - b), ("min", |_, a, b| a.min(b)), ("max", |_, a, b| a.max(b))];
    for (name, ty, kind) in types() {
        for (opcode, f) in binary {
            let form = Form::plain(format!("{opcode}.{name}"), &[kind; 2], kind.register());
            forms.push(form.oracle(Oracle::bits(move |x| ty.wrap(f(ty, ty.value(x[0]), ty.value(x[1]))))));
        }
        let sad = Form::plain(format!("sad.{name}"), &[kind; 3], kind.register());
        forms.push(sad.oracle(Oracle::bits(move |x| {
            let distance = (ty.value(x[0]) - ty.value(x[1])).abs();
            ty.wrap(ty.value(x[2]) + distance)
        })));
        if ty.signed {
            for opcode in ["abs", "neg"] {
                let form = Form::plain(format!("{opcode}.{name}"), &[kind], kind.register());
                forms.push(form.oracle(Oracle::bits(move |x| {
                    let value = ty.value(x[0]);
                    ty.wrap(if opcode == "neg" { -value } else { value.abs() })
                })));
            }
        }
    }
    let s32 = Integer { bits: 32, signed: true };
    for (opcode, sign) in [("add", 1), ("sub", -1)] {
        let form = Form::plain(format!("{opcode}.sat.s32"), &[Kind::I32; 2], Register::B32);
        forms.push(form.oracle(Oracle::bits(move |x| s32.clamp(s32.value(x[0]) + sign * s32.value(x[1])))));
    }
}

fn products(forms: &mut Vec<Form>) {
    for (name, ty, kind) in types() {
        for (part, shift) in [("lo", 0), ("hi", ty.bits)] {
            let form = Form::plain(format!("mul.{part}.{name}"), &[kind; 2], kind.register());
            forms.push(form.oracle(Oracle::bits(move |x| high(ty, x[0], x[1], shift))));
            let form = Form::plain(format!("mad.{part}.{name}"), &[kind; 3], kind.register());
            forms.push(
                form.oracle(Oracle::bits(move |x| ty.wrap(i128::from(high(ty, x[0], x[1], shift)) + ty.value(x[2])))),
            );
        }
        if ty.bits < 64 {
            let wide = Integer { bits: 2 * ty.bits, ..ty };
            let to = if ty.bits == 16 { Kind::I32 } else { Kind::I64 };
            let form = Form::plain(format!("mul.wide.{name}"), &[kind; 2], to.register());
            forms.push(form.oracle(Oracle::bits(move |x| wide.wrap(ty.value(x[0]) * ty.value(x[1])))));
            let form = Form::plain(format!("mad.wide.{name}"), &[kind, kind, to], to.register());
            forms.push(
                form.oracle(Oracle::bits(move |x| wide.wrap(ty.value(x[0]) * ty.value(x[1]) + wide.value(x[2])))),
            );
        }
    }
    let s32 = Integer { bits: 32, signed: true };
    let form = Form::plain("mad.hi.sat.s32", &[Kind::I32; 3], Register::B32);
    forms.push(form.oracle(Oracle::bits(move |x| s32.clamp(s32.value(high(s32, x[0], x[1], 32)) + s32.value(x[2])))));
    for (name, signed) in [("u32", false), ("s32", true)] {
        // The operands are the low 24 bits, with their own sign.
        let low = move |x: u64| if signed { i128::from((x << 40) as i64 >> 40) } else { i128::from(x & 0xff_ffff) };
        let word = Integer { bits: 32, signed };
        let form = Form::plain(format!("mul24.lo.{name}"), &[Kind::I32; 2], Register::B32);
        forms.push(form.oracle(Oracle::bits(move |x| word.wrap(low(x[0]) * low(x[1])))));
        let form = Form::plain(format!("mad24.lo.{name}"), &[Kind::I32; 3], Register::B32);
        forms.push(form.oracle(Oracle::bits(move |x| word.wrap(low(x[0]) * low(x[1]) + word.value(x[2])))));
    }
}

/// So many bits of a product, from a place on.
fn high(ty: Integer, a: u64, b: u64, shift: u32) -> u64 {
    if ty.signed {
        ty.wrap((ty.value(a) * ty.value(b)) >> shift)
    } else {
        // The product of two unsigned 64-bit numbers needs the sign bit of `i128`.
        ((u128::from(a & ty.mask()) * u128::from(b & ty.mask())) >> shift) as u64 & ty.mask()
    }
}

fn quotients(forms: &mut Vec<Form>) {
    for (name, ty, kind) in types() {
        for opcode in ["div", "rem"] {
            let form = Form::plain(format!("{opcode}.{name}"), &[kind; 2], kind.register());
            forms.push(form.oracle(Oracle::one(move |x| {
                let (a, b) = (ty.value(x[0]), ty.value(x[1]));
                // Dividing by zero, and the one overflow, give what the machine happens to give.
                if b == 0 || (b == -1 && a == ty.range().0) {
                    return Expected::Open;
                }
                Expected::Bits(ty.wrap(if opcode == "div" { a / b } else { a % b }))
            })));
        }
    }
}

/// The carry shows in a second addition of zeros.
fn carries(forms: &mut Vec<Form>) {
    for (name, ty, kind) in types().filter(|(_, ty, _)| ty.bits >= 32) {
        for (opcode, with, sign) in [("add", "addc", 1), ("sub", "subc", -1)] {
            let register = kind.register();
            let (zero, mask) = (if ty.bits == 64 { "mov.b64 %zero, 0;" } else { "mov.b32 %zero, 0;" }, ty.mask());
            let declare = format!(".reg .{} %zero;", register.name());
            let body = format!("{zero}\n{opcode}.cc.{name} %d0, %a0, %a1;\n{with}.{name} %d1, %zero, %zero;");
            let form = Form::with_body(format!("{opcode}.cc.{name}"), &[kind; 2], &[register; 2], body);
            let flow = move |a: u64, b: u64, carry: i128| {
                let unsigned = |x: u64| i128::from(x & mask);
                let value = unsigned(a) + sign * (unsigned(b) + carry);
                (value as u64 & mask, i128::from(value < 0 || value > i128::from(mask)))
            };
            let oracle = move |x: &[u64], out: &mut [Expected]| {
                let (low, carry) = flow(x[0], x[1], 0);
                out[0] = Expected::Bits(low);
                out[1] = Expected::Bits((sign * carry) as u64 & mask);
            };
            forms.push(form.declare(declare.clone()).also(&[&format!("{with}.{name}")]).oracle(Oracle::many(oracle)));
            let body = format!(
                "{zero}\n{opcode}.cc.{name} %d0, %a0, %a1;\n{with}.cc.{name} %d1, %a2, %a3;\n{with}.{name} %d2, %zero, %zero;"
            );
            let form = Form::with_body(format!("{with}.cc.{name}"), &[kind; 4], &[register; 3], body);
            forms.push(form.declare(declare).oracle(Oracle::many(move |x, out| {
                let (low, first) = flow(x[0], x[1], 0);
                let (high, second) = flow(x[2], x[3], first);
                out[0] = Expected::Bits(low);
                out[1] = Expected::Bits(high);
                out[2] = Expected::Bits((sign * second) as u64 & mask);
            })));
        }
    }
}

fn dots(forms: &mut Vec<Form>) {
    for (a, b) in [("u32", "u32"), ("u32", "s32"), ("s32", "u32"), ("s32", "s32")] {
        let part = |bits, name: &str| Integer { bits, signed: name == "s32" };
        let bytes = (part(8, a), part(8, b));
        let form = Form::plain(format!("dp4a.{a}.{b}"), &[Kind::I32; 3], Register::B32);
        forms.push(form.oracle(Oracle::bits(move |x| dot((x[0], bytes.0, 0), (x[1], bytes.1, 0), 4, x[2]))));
        for (half, first) in [("lo", 0), ("hi", 16)] {
            let (halves, bytes) = (part(16, a), part(8, b));
            let form = Form::plain(format!("dp2a.{half}.{a}.{b}"), &[Kind::I32; 3], Register::B32);
            forms.push(form.oracle(Oracle::bits(move |x| dot((x[0], halves, 0), (x[1], bytes, first), 2, x[2]))));
        }
    }
}
