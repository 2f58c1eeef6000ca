//! Moves: registers, pairs, special registers, addresses.

use crate::{
    form::Form,
    inputs::{Data, Kind, Register},
    oracle::{Expected, Oracle},
    program::BLOCK,
};
use std::sync::Arc;

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    for ty in ["pred", "b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64"] {
        let kind = Kind::of(ty);
        forms.push(Form::plain(format!("mov.{ty}"), &[kind], kind.register()).oracle(Oracle::bits(|x| x[0])));
    }
    vectors(forms);
    special(forms);
    addresses(forms);
}

fn vectors(forms: &mut Vec<Form>) {
    for (ty, parts, part) in [("b32", 2u32, Kind::I16), ("b64", 2, Kind::I32), ("b64", 4, Kind::I16)] {
        let (whole, bits) = (Kind::of(ty), if part == Kind::I16 { 16 } else { 32 });
        let list = |letter: &str| (0..parts).map(|i| format!("%{letter}{i}")).collect::<Vec<_>>().join(", ");
        let body = format!("mov.{ty} %d0, {{{}}};", list("a"));
        let form =
            Form::with_body(format!("mov.{ty} r,{{{parts}}}"), &vec![part; parts as usize], &[whole.register()], body);
        forms.push(form.oracle(Oracle::bits(move |x| x.iter().rev().fold(0, |all, part| all << bits | part))));
        let body = format!("mov.{ty} {{{}}}, %a0;", list("d"));
        let outputs = vec![part.register(); parts as usize];
        let form = Form::with_body(format!("mov.{ty} {{{parts}}},r"), &[whole], &outputs, body);
        forms.push(form.oracle(Oracle::many(move |x, out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = Expected::Bits(x[0] >> (bits * i as u32) & ((1 << bits) - 1));
            }
        })));
    }
}

/// What a special register holds in the thread of an index of a grid of four blocks.
fn special(forms: &mut Vec<Form>) {
    let of_lane = |f: fn(u64) -> u64| move |index: u64| f(index % 32) & 0xffff_ffff;
    let block = u64::from(BLOCK);
    type Value = Box<dyn Fn(u64) -> u64 + Send + Sync>;
    let registers: Vec<(&str, Value)> = vec![
        ("%tid.x", Box::new(move |i| i % block)),
        ("%tid.y", Box::new(|_| 0)),
        ("%tid.z", Box::new(|_| 0)),
        ("%ntid.x", Box::new(move |_| block)),
        ("%ntid.y", Box::new(|_| 1)),
        ("%ntid.z", Box::new(|_| 1)),
        ("%ctaid.x", Box::new(move |i| i / block)),
        ("%ctaid.y", Box::new(|_| 0)),
        ("%ctaid.z", Box::new(|_| 0)),
        ("%nctaid.x", Box::new(|_| 4)),
        ("%nctaid.y", Box::new(|_| 1)),
        ("%nctaid.z", Box::new(|_| 1)),
        ("%laneid", Box::new(|i| i % 32)),
        ("%lanemask_eq", Box::new(of_lane(|lane| 1 << lane))),
        ("%lanemask_lt", Box::new(of_lane(|lane| (1 << lane) - 1))),
        ("%lanemask_le", Box::new(of_lane(|lane| (2 << lane) - 1))),
        ("%lanemask_gt", Box::new(of_lane(|lane| !((2 << lane) - 1)))),
        ("%lanemask_ge", Box::new(of_lane(|lane| !((1 << lane) - 1)))),
    ];
    for (name, value) in registers {
        let body = format!("mov.u32 %d0, {name};");
        let form = Form::with_body(format!("mov.u32 {name}"), &[Kind::I32], &[Register::B32], body);
        let data = Data::Custom(4 * block, Arc::new(|index, _| index));
        forms.push(form.data(data).oracle(Oracle::bits(move |x| value(x[0]))));
    }
}

/// Addresses differ between devices; distances do not.
fn addresses(forms: &mut Vec<Form>) {
    for ty in ["u32", "b32", "s32"] {
        let body = format!("mov.{ty} %d0, shared_tile+20;\nsub.u32 %d0, %d0, %tile;");
        let form = Form::with_body(format!("mov.{ty} shared"), &[Kind::I32], &[Register::B32], body).shared(64);
        forms.push(form.oracle(Oracle::bits(|_| 20)));
    }
    for (space, address) in [("global", "%memory"), ("shared", "%wide")] {
        let body = format!(
            "cvt.u64.u32 %wide, %tile;\ncvta.{space}.u64 %generic, {address};\ncvta.to.{space}.u64 %back, %generic;\nsub.u64 %d0, %back, {address};"
        );
        let form = Form::with_body(format!("cvta.{space}.u64"), &[Kind::I32], &[Register::B64], body);
        let form = form.declare(".reg .b64 %wide, %generic, %back;").shared(64);
        forms.push(form.also(&[&format!("cvta.to.{space}.u64")]).oracle(Oracle::bits(|_| 0)));
    }
}
