//! Logic, shifts, permutes and bit fields.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register, mix},
    oracle::{
        Expected, Oracle,
        integer::{self, Integer},
    },
};
use std::{fmt::Write, sync::Arc};

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    logic(forms);
    truth_tables(forms);
    shifts(forms);
    permutes(forms);
    fields(forms);
    counts(forms);
}

const fn word(signed: bool) -> Integer {
    Integer { bits: 32, signed }
}

type Binary = fn(u64, u64) -> u64;

fn logic(forms: &mut Vec<Form>) {
    for ty in ["pred", "b16", "b32", "b64"] {
        let kind = Kind::of(ty);
        let mask = if ty == "pred" { 1 } else { u64::MAX >> (64 - ty[1..].parse().unwrap_or(64)) };
        let binary: [(&str, Binary); 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
        for (opcode, f) in binary {
            let form = Form::plain(format!("{opcode}.{ty}"), &[kind; 2], kind.register());
            forms.push(form.oracle(Oracle::bits(move |x| f(x[0], x[1]))));
        }
        let form = Form::plain(format!("not.{ty}"), &[kind], kind.register());
        forms.push(form.oracle(Oracle::bits(move |x| !x[0] & mask)));
        if ty != "pred" {
            let form = Form::plain(format!("cnot.{ty}"), &[kind], kind.register());
            forms.push(form.oracle(Oracle::bits(|x| u64::from(x[0] == 0))));
        }
    }
}

/// All 256 truth tables, on bits that meet in all eight ways.
fn truth_tables(forms: &mut Vec<Form>) {
    let mut body = String::new();
    for table in 0..256 {
        let _ = writeln!(body, "lop3.b32 %d{table}, %a0, %a1, %a2, {table};");
    }
    let data = Data::Custom(
        64,
        Arc::new(|index, operand| match index {
            0 => [0xf0, 0xcc, 0xaa][operand],
            _ => mix(index * 3 + operand as u64) & 0xffff_ffff,
        }),
    );
    let form = Form::with_body("lop3.b32", &[Kind::I32; 3], &[Register::B32; 256], body).data(data);
    forms.push(form.oracle(Oracle::many(|x, out| {
        for (table, out) in out.iter_mut().enumerate() {
            let bit = |i: u64| {
                let place = (x[0] >> i & 1) << 2 | (x[1] >> i & 1) << 1 | x[2] >> i & 1;
                (table as u64 >> place & 1) << i
            };
            *out = Expected::Bits((0..32).map(bit).sum());
        }
    })));
}

fn shifts(forms: &mut Vec<Form>) {
    for name in ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"] {
        let (Some(ty), kind) = (Integer::named(name), Kind::of(name)) else { continue };
        for left in [true, false] {
            if left && !name.starts_with('b') {
                continue;
            }
            let opcode = if left { "shl" } else { "shr" };
            let form = Form::plain(format!("{opcode}.{name}"), &[kind, Kind::Amount], kind.register());
            forms.push(form.oracle(Oracle::bits(move |x| integer::shift(ty, left, x[0], x[1]))));
        }
    }
    for (side, left) in [("l", true), ("r", false)] {
        for (mode, clamp) in [("wrap", false), ("clamp", true)] {
            let inputs = [Kind::I32, Kind::I32, Kind::Amount];
            let form = Form::plain(format!("shf.{side}.{mode}.b32"), &inputs, Register::B32);
            forms.push(form.oracle(Oracle::bits(move |x| integer::funnel(left, clamp, x[0], x[1], x[2]))));
        }
    }
}

fn permutes(forms: &mut Vec<Form>) {
    for mode in ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"] {
        let key = format!("prmt.b32{}{mode}", if mode.is_empty() { "" } else { "." });
        // Every selector of the plain form, with bytes that all differ and have both signs.
        let data = Data::Custom(
            if mode.is_empty() { 1 << 16 } else { 256 },
            Arc::new(|index, operand| match operand {
                2 => index & 0xffff | mix(index) << 16 & 0xffff_0000,
                0 => (0x8371_f20e ^ mix(index) & 0x0f0f_0f0f) & 0xffff_ffff,
                _ => (0x15c6_64a9 ^ mix(index) >> 32 & 0x0f0f_0f0f) & 0xffff_ffff,
            }),
        );
        let form = Form::plain(key, &[Kind::I32; 3], Register::B32).data(data);
        forms.push(form.oracle(Oracle::bits(move |x| integer::permute(mode, x[0], x[1], x[2]))));
    }
}

fn fields(forms: &mut Vec<Form>) {
    for name in ["u32", "s32", "u64", "s64"] {
        let (Some(ty), kind) = (Integer::named(name), Kind::of(name)) else { continue };
        let form = Form::plain(format!("bfe.{name}"), &[kind, Kind::Amount, Kind::Amount], kind.register());
        forms.push(form.oracle(Oracle::bits(move |x| integer::extract(ty, x[0], x[1], x[2]))));
    }
    for name in ["b32", "b64"] {
        let (kind, bits) = (Kind::of(name), if name == "b32" { 32 } else { 64 });
        let form = Form::plain(format!("bfi.{name}"), &[kind, kind, Kind::Amount, Kind::Amount], kind.register());
        forms.push(form.oracle(Oracle::bits(move |x| integer::insert(bits, x[0], x[1], x[2], x[3]))));
    }
    for (mode, clamp) in [("clamp", true), ("wrap", false)] {
        let form = Form::plain(format!("bmsk.{mode}.b32"), &[Kind::Amount; 2], Register::B32).level(Level::Sm90);
        forms.push(form.oracle(Oracle::bits(move |x| {
            let limit = |amount: u64| if clamp { amount.min(32) } else { amount & 31 };
            let (from, width) = (limit(x[0] & 0xffff_ffff), limit(x[1] & 0xffff_ffff));
            ((1u64 << width) - 1) << from & 0xffff_ffff
        })));
        for signed in [false, true] {
            let key = format!("szext.{mode}.{}", if signed { "s32" } else { "u32" });
            let form = Form::plain(key, &[Kind::I32, Kind::Amount], Register::B32).level(Level::Sm90);
            forms.push(form.oracle(Oracle::bits(move |x| {
                let bits = x[1] & 0xffff_ffff;
                let bits = if clamp { bits.min(32) } else { bits & 31 } as u32;
                match bits {
                    0 => 0,
                    _ => word(false).wrap(Integer { bits, signed }.value(x[0])),
                }
            })));
        }
    }
}

fn counts(forms: &mut Vec<Form>) {
    for bits in [32u32, 64] {
        let kind = if bits == 32 { Kind::I32 } else { Kind::I64 };
        let form = Form::plain(format!("brev.b{bits}"), &[kind], kind.register());
        forms.push(form.oracle(Oracle::bits(move |x| (0..bits).map(|i| (x[0] >> i & 1) << (bits - 1 - i)).sum())));
        let form = Form::plain(format!("popc.b{bits}"), &[kind], Register::B32);
        forms.push(form.oracle(Oracle::bits(move |x| (0..bits).map(|i| x[0] >> i & 1).sum())));
        let form = Form::plain(format!("clz.b{bits}"), &[kind], Register::B32);
        forms.push(
            form.oracle(Oracle::bits(move |x| (0..bits).rev().take_while(|i| x[0] >> i & 1 == 0).count() as u64)),
        );
        for signed in [false, true] {
            let ty = Integer { bits, signed };
            for (modifier, amount) in [("", false), (".shiftamt", true)] {
                let key = format!("bfind{modifier}.{}{bits}", if signed { "s" } else { "u" });
                let form = Form::plain(key, &[kind], Register::B32);
                forms.push(form.oracle(Oracle::bits(move |x| integer::find(ty, x[0], amount))));
            }
        }
    }
    // Offsets on both sides of zero, up to more than there are bits.
    let data = Data::Custom(
        16 * 32 * 40,
        Arc::new(|index, operand| match operand {
            0 => mix(index / 1280) & mix(index / 1280 + 100) & 0xffff_ffff,
            1 => index % 32,
            _ => (index / 32 % 40).wrapping_sub(20) & 0xffff_ffff,
        }),
    );
    let form = Form::plain("fns.b32", &[Kind::I32; 3], Register::B32).data(data);
    forms.push(form.oracle(Oracle::bits(|x| integer::nth_set(x[0], x[1], x[2]))));
}
