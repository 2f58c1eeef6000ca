//! Atomic operations: on a word of the thread's own, where the old and the new value are fixed, and on one word of a whole
//! warp, where only the last value is.

use crate::{
    form::{Form, Level},
    inputs::{Kind, Register},
    oracle::{
        Expected, Oracle,
        float::{Mode, format, pair},
        integer::Integer,
    },
};

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    let spaces = [Space::GLOBAL, Space::SHARED, Space::GENERIC];
    for space in spaces {
        for (name, ty) in INTEGERS {
            forms.extend([alone("atom", "", space, name, ty), alone("red", "", space, name, ty)].into_iter().flatten());
            if !matches!(name, "exch" | "cas") {
                forms.push(together(space, name, ty));
            }
        }
        for ty in ["f32", "f64", "f16x2", "f16", "bf16x2", "bf16"] {
            forms.push(float("atom", "", space, ty));
            forms.push(float("red", "", space, ty));
        }
    }
    for scope in [".cta", ".gpu", ".sys"] {
        for order in [".relaxed", ".acquire", ".release", ".acq_rel"] {
            for (name, ty) in
                [("add", "u32"), ("inc", "u32"), ("or", "b32"), ("max", "u64"), ("exch", "b32"), ("cas", "b32")]
            {
                let words = format!("{order}{scope}");
                forms.extend(alone("atom", &words, Space::GLOBAL, name, ty));
                // A reduction gives nothing back, so there is nothing to acquire with.
                if matches!(order, ".relaxed" | ".release") {
                    forms.extend(alone("red", &words, Space::GLOBAL, name, ty));
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Space {
    words: &'static str,
    setup: &'static str,
}

impl Space {
    const GLOBAL: Self = Self { words: ".global", setup: "mov.b64 %at, %memory;" };
    const SHARED: Self =
        Self { words: ".shared", setup: "mad.lo.u32 %narrow, %thread, 8, %tile;\ncvt.u64.u32 %at, %narrow;" };
    const GENERIC: Self = Self { words: "", setup: "cvta.global.u64 %at, %memory;" };
}

const DECLARE: &str = ".reg .b32 %narrow; .reg .b64 %at, %first; .reg .pred %leader;";

const INTEGERS: [(&str, &str); 22] = [
    ("add", "u32"),
    ("add", "s32"),
    ("add", "u64"),
    ("min", "u32"),
    ("min", "s32"),
    ("min", "u64"),
    ("min", "s64"),
    ("max", "u32"),
    ("max", "s32"),
    ("max", "u64"),
    ("max", "s64"),
    ("inc", "u32"),
    ("dec", "u32"),
    ("and", "b32"),
    ("and", "b64"),
    ("or", "b32"),
    ("or", "b64"),
    ("xor", "b32"),
    ("xor", "b64"),
    ("exch", "b32"),
    ("exch", "b64"),
    ("cas", "b32"),
];

fn apply(name: &str, ty: Integer, old: u64, b: u64, c: u64) -> u64 {
    let (x, y) = (ty.value(old), ty.value(b));
    match name {
        "add" => ty.wrap(x + y),
        "min" => ty.wrap(x.min(y)),
        "max" => ty.wrap(x.max(y)),
        "inc" => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        "dec" => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        "and" => old & b,
        "or" => old | b,
        "xor" => old ^ b,
        "exch" => b,
        _ => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}

/// On a word that nobody else touches. `red` has neither exchange.
fn alone(opcode: &str, order: &str, space: Space, name: &'static str, ty: &'static str) -> Option<Form> {
    let (returns, kind) = (opcode == "atom", Kind::of(ty));
    if !returns && matches!(name, "exch" | "cas") {
        return None;
    }
    let (bits, words) = (&ty[1..], space.words);
    let key = format!("{opcode}{order}{words}.{name}.{ty}");
    let result = if returns { "%d1, " } else { "" };
    let third = if name == "cas" { ", %a2" } else { "" };
    let body = format!(
        "{}\nst{words}.b{bits} [%at], %a0;\n{key} {result}[%at], %a1{third};\nld{words}.b{bits} %d0, [%at];",
        space.setup
    );
    let inputs = vec![kind; if name == "cas" { 3 } else { 2 }];
    let form = Form::with_body(key, &inputs, &vec![kind.register(); if returns { 2 } else { 1 }], body);
    let integer = Integer::named(ty)?;
    Some(form.declare(DECLARE).shared(128 * 8).oracle(Oracle::many(move |x, out| {
        out[0] = Expected::Bits(apply(name, integer, x[0], x[1], x.get(2).copied().unwrap_or(0)));
        if let Some(old) = out.get_mut(1) {
            *old = Expected::Bits(x[0]);
        }
    })))
}

/// On one word of the warp, by operations whose order does not matter.
fn together(space: Space, name: &'static str, ty: &'static str) -> Form {
    let (kind, bits, words) = (Kind::of(ty), &ty[1..], space.words);
    let key = format!("red{words}.{name}.{ty}");
    let body = format!(
        "{}\nand.b32 %narrow, %lane, 31;\ncvt.u64.u32 %first, %narrow;\nmul.lo.u64 %first, %first, {};\n\
         sub.u64 %at, %at, %first;\nsetp.eq.u32 %leader, %lane, 0;\n@%leader st{words}.b{bits} [%at], %a0;\n\
         bar.warp.sync 0xffffffff;\n{key} [%at], %a1;\nbar.warp.sync 0xffffffff;\nld{words}.b{bits} %d0, [%at];",
        space.setup,
        if words == ".shared" { 8 } else { crate::program::MEMORY },
    );
    let form = Form::with_body(key, &[kind; 2], &[kind.register()], body).case("together");
    let integer = Integer::named(ty).unwrap_or(Integer { bits: 32, signed: false });
    form.declare(DECLARE)
        .shared(128 * 8)
        .oracle(Oracle::warp(move |x, out| {
            // Counting up and down wraps at each lane's own limit, so there the order does matter, unless all limits are one.
            let last = (0..32).fold(x[0][0], |value, lane| apply(name, integer, value, x[1][lane], 0));
            let ordered = matches!(name, "inc" | "dec") && x[1].iter().any(|limit| *limit != x[1][0]);
            out[0] = [if ordered { Expected::Open } else { Expected::Bits(last) }; 32];
        }))
        .data(uniform_limits(name))
}

/// Random operands; for the counting operations with one limit for the whole warp.
fn uniform_limits(name: &'static str) -> crate::inputs::Data {
    use crate::inputs::{Data, mix};
    let counts = matches!(name, "inc" | "dec");
    Data::Custom(
        1024,
        std::sync::Arc::new(move |index, operand| match (counts, operand) {
            (true, 0) => mix(index / 32) % 64,
            (true, _) => mix(index / 32 + 1000) % 40 + 1,
            _ => mix(index * 2 + operand as u64) >> (mix(index / 32) % 60),
        }),
    )
}

/// Additions of floats. Global memory flushes subnormal `f32`, shared memory does not; the manual says so.
fn float(opcode: &str, order: &str, space: Space, ty: &'static str) -> Form {
    let (returns, kind, words) = (opcode == "atom", Kind::of(ty), space.words);
    let half = ty.contains("16");
    let key = format!("{opcode}{order}{words}.add{}.{ty}", if half { ".noftz" } else { "" });
    let bits = 8 * match kind.register() {
        Register::B16 => 2,
        register => register.bytes(),
    };
    let result = if returns { "%d1, " } else { "" };
    let body = format!(
        "{}\nst{words}.b{bits} [%at], %a0;\n{key} {result}[%at], %a1;\nld{words}.b{bits} %d0, [%at];",
        space.setup
    );
    let outputs = vec![kind.register(); if returns { 2 } else { 1 }];
    let form = Form::with_body(key, &[kind; 2], &outputs, body).declare(DECLARE).shared(128 * 8);
    let ftz = ty == "f32" && words != ".shared";
    let mode = Mode { ftz, ..Mode::nearest(format(ty)) };
    let packed = ty.ends_with("x2");
    let form = form.level(if half { Level::Sm90 } else { Level::Sm80 });
    form.oracle(Oracle::many(move |x, out| {
        out[0] = if packed { pair(mode.format, x, |x| mode.add(x[0], x[1])) } else { mode.add(x[0], x[1]) };
        if let Some(old) = out.get_mut(1) {
            *old = Expected::Bits(x[0]);
        }
    }))
}
