//! Instructions that a warp executes together: shuffles, votes, matches, reductions.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register, mix},
    oracle::{Expected, Oracle, Warp, WarpExpected},
};
use std::{fmt::Write, sync::Arc};

/// What a lane that does not take part keeps.
const UNTOUCHED: u64 = 0xdead_beef;

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    shuffles(forms);
    votes(forms);
    matches_(forms);
    reductions(forms);
    leaders(forms);
}

/// Runs one instruction on the lanes whose last operand holds; `%members` is their mask.
fn some(instruction: &str, member: usize, outputs: usize) -> String {
    let mut body: String = (0..outputs).map(|i| format!("mov.b32 %d{i}, {UNTOUCHED:#x};\n")).collect();
    let _ = write!(body, "vote.sync.ballot.b32 %members, %a{member}, 0xffffffff;\n@%a{member} {instruction}");
    body
}

fn members(x: &[u64; 32]) -> u64 {
    (0..32).map(|lane| x[lane] << lane).sum()
}

/// The lane that `shfl` reads, and whether it lies inside.
fn source(mode: &str, lane: u64, b: u64, c: u64) -> (u64, bool) {
    let (segment, clamp, b) = (c >> 8 & 31, c & 31, b & 31);
    let least = lane & segment;
    let most = least | clamp & !segment;
    let (from, inside) = match mode {
        "up" => (lane.wrapping_sub(b), lane as i64 - b as i64 >= most as i64),
        "down" => (lane + b, lane + b <= most),
        "bfly" => (lane ^ b, lane ^ b <= most),
        _ => (least | b & !segment, least | b & !segment <= most),
    };
    (if inside { from } else { lane }, inside)
}

fn shuffles(forms: &mut Vec<Form>) {
    // One segmentation for a warp, as kernels have it; distances differ by lane only where they may.
    let data = |apart: bool| {
        Data::Custom(
            32 * 144,
            Arc::new(move |index, operand| {
                let warp = index / 32;
                match operand {
                    0 => mix(index),
                    1 => {
                        if apart {
                            mix(index + 7_000_000) % 40
                        } else {
                            warp % 36
                        }
                    }
                    _ => {
                        [0, 0x1000, 0x1800, 0x1c00, 0x1e00, 0x1f00][(warp % 6) as usize]
                            | [31, 0, 7, 15][(warp / 6 % 4) as usize]
                    }
                }
            }),
        )
    };
    for mode in ["up", "down", "bfly", "idx"] {
        let key = format!("shfl.sync.{mode}.b32");
        let inputs = [Kind::I32, Kind::Below(64), Kind::I32];
        let exchange = move |x: &Warp, out: &mut WarpExpected| {
            for lane in 0..32 {
                let (from, inside) = source(mode, lane as u64, x[1][lane], x[2][lane]);
                out[0][lane] = Expected::Bits(x[0][from as usize & 31]);
                if let Some(out) = out.get_mut(1) {
                    out[lane] = Expected::Bits(inside.into());
                }
            }
        };
        // Any lane may name any source only by index; the other modes want one distance.
        let body = format!("{key} %d0, %a0, %a1, %a2, 0xffffffff;");
        let form = Form::with_body(key.clone(), &inputs, &[Register::B32], body);
        forms.push(form.data(data(mode == "idx")).oracle(Oracle::warp(exchange)));
        let body = format!("{key} %d0|%d1, %a0, %a1, %a2, 0xffffffff;");
        let form = Form::with_body(format!("{key} p|q"), &inputs, &[Register::B32, Register::Pred], body);
        forms.push(form.data(data(mode == "idx")).oracle(Oracle::warp(exchange)));
        constants(forms, mode);
    }
    let body = some("shfl.sync.idx.b32 %d0, %a0, %a1, 31, %members;", 2, 1);
    let form = Form::with_body("shfl.sync.idx.b32", &[Kind::I32, Kind::Below(32), Kind::Pred], &[Register::B32], body);
    // Every lane names one that takes part: what another one would have given is undefined.
    let member = |warp: u64, lane: u64| predicate(mix(warp), lane);
    let data = Data::Custom(
        2048,
        Arc::new(move |index, operand| {
            let (warp, lane) = (index / 32, index % 32);
            let named = (0..32).map(|i| (mix(index) + i) % 32).find(|lane| member(warp, *lane) == 1);
            [mix(index + 1_000_000), named.unwrap_or(0), member(warp, lane)][operand]
        }),
    );
    let form = form.case("some lanes").declare(".reg .b32 %members;").data(data);
    forms.push(form.oracle(Oracle::warp(|x, out| {
        for lane in 0..32 {
            let bits = if x[2][lane] == 1 { x[0][x[1][lane] as usize] } else { UNTOUCHED };
            out[0][lane] = Expected::Bits(bits);
        }
    })));
}

/// Distances and segments as constants, as unrolled reductions write them.
fn constants(forms: &mut Vec<Form>, mode: &'static str) {
    let cases: [(u64, u64); 12] = [
        (0, 31),
        (1, 31),
        (2, 31),
        (4, 31),
        (8, 31),
        (16, 31),
        (31, 31),
        (1, 0),
        (3, 0x1c07),
        (5, 0x1807),
        (1, 0x1000),
        (2, 0x1e1f),
    ];
    let mut body = String::new();
    for (i, (b, c)) in cases.iter().enumerate() {
        let _ = writeln!(body, "shfl.sync.{mode}.b32 %d{i}, %a0, {b}, {c}, 0xffffffff;");
    }
    let form = Form::with_body(format!("shfl.sync.{mode}.b32"), &[Kind::I32], &[Register::B32; 12], body);
    let form = form.case("constants").data(Data::Random(256));
    forms.push(form.oracle(Oracle::warp(move |x, out| {
        for (out, (b, c)) in out.iter_mut().zip(cases) {
            for (lane, out) in out.iter_mut().enumerate() {
                *out = Expected::Bits(x[0][source(mode, lane as u64, b, c).0 as usize & 31]);
            }
        }
    })));
}

/// Predicates of a warp: none, all, one, all but one, random ones, by the number of the warp.
fn predicate(warp: u64, lane: u64) -> u64 {
    match warp % 6 {
        0 => 0,
        1 => 1,
        2 => u64::from(lane == warp / 6 % 32),
        3 => u64::from(lane != warp / 6 % 32),
        _ => mix(mix(warp) ^ lane) & 1,
    }
}

fn votes(forms: &mut Vec<Form>) {
    let data = || {
        Data::Custom(
            32 * 192,
            Arc::new(|index, operand| match operand {
                0 => predicate(index / 32, index % 32),
                _ => predicate(mix(index / 32 * 3 + 1) % 1000, index % 32),
            }),
        )
    };
    for (mode, ty, output) in [
        ("all", "pred", Register::Pred),
        ("any", "pred", Register::Pred),
        ("uni", "pred", Register::Pred),
        ("ballot", "b32", Register::B32),
    ] {
        let key = format!("vote.sync.{mode}.{ty}");
        let count = move |mask: u64, values: u64| match mode {
            "all" => u64::from(values == mask),
            "any" => u64::from(values != 0),
            "uni" => u64::from(values == mask || values == 0),
            _ => values,
        };
        for (negated, case) in [("", ""), ("!", "negated")] {
            let body = format!("{key} %d0, {negated}%a0, 0xffffffff;");
            let form = Form::with_body(key.clone(), &[Kind::Pred], &[output], body).case(case).data(data());
            forms.push(form.oracle(Oracle::warp(move |x, out| {
                let values = members(&x[0]);
                let values = if negated.is_empty() { values } else { !values & 0xffff_ffff };
                out[0] = [Expected::Bits(count(0xffff_ffff, values)); 32];
            })));
        }
        let (result, convert) = match output {
            Register::Pred => ("%result", "\n@%a1 selp.b32 %d0, 1, 0, %result;"),
            _ => ("%d0", ""),
        };
        let body = some(&format!("{key} {result}, %a0, %members;"), 1, 1) + convert;
        let form = Form::with_body(key, &[Kind::Pred; 2], &[Register::B32], body).case("some lanes").data(data());
        forms.push(form.declare(".reg .b32 %members; .reg .pred %result;").oracle(Oracle::warp(move |x, out| {
            let mask = members(&x[1]);
            let value = count(mask, members(&x[0]) & mask);
            for lane in 0..32 {
                out[0][lane] = Expected::Bits(if x[1][lane] == 1 { value } else { UNTOUCHED });
            }
        })));
    }
}

fn matches_(forms: &mut Vec<Form>) {
    for (ty, kind) in [("b32", Kind::I32), ("b64", Kind::I64)] {
        // Few values, so that lanes agree; sometimes all of them do. 64-bit ones differ in one half only.
        let data = move || {
            Data::Custom(
                32 * 128,
                Arc::new(move |index, operand| {
                    let warp = index / 32;
                    let value = mix(index) % [1, 2, 5, 40][(warp % 4) as usize];
                    match operand {
                        0 if kind == Kind::I64 && warp % 3 == 0 => value << 33,
                        0 => value,
                        _ => predicate(mix(warp), index % 32),
                    }
                }),
            )
        };
        for (mode, whole) in [("any", true), ("any", false), ("all", true), ("all", false)] {
            let key = format!("match.{mode}.sync.{ty}");
            let (pair, second, name) = match mode {
                "all" => ("|%same", "\nselp.b32 %d1, 1, 0, %same;", format!("{key} p|q")),
                _ => ("", "", key.clone()),
            };
            let outputs = if mode == "all" { 2 } else { 1 };
            let declare = ".reg .b32 %members; .reg .pred %same;";
            let body = if whole {
                format!("{key} %d0{pair}, %a0, 0xffffffff;{second}")
            } else {
                some(&format!("{key} %d0{pair}, %a0, %members;"), 1, outputs) + &second.replace("\nselp", "\n@%a1 selp")
            };
            let inputs = if whole { vec![kind] } else { vec![kind, Kind::Pred] };
            let form =
                Form::with_body(name, &inputs, &vec![Register::B32; outputs], body).data(data()).declare(declare);
            forms.push(form.case(if whole { "" } else { "some lanes" }).oracle(Oracle::warp(move |x, out| {
                let mask = if whole { 0xffff_ffff } else { members(&x[1]) };
                for lane in 0..32 {
                    if mask >> lane & 1 == 0 {
                        out.iter_mut().for_each(|out| out[lane] = Expected::Bits(UNTOUCHED));
                        continue;
                    }
                    let same =
                        (0..32).filter(|i| mask >> i & 1 == 1 && x[0][*i] == x[0][lane]).map(|i| 1u64 << i).sum();
                    out[0][lane] = Expected::Bits(if mode == "any" || same == mask { same } else { 0 });
                    if mode == "all" {
                        out[1][lane] = Expected::Bits(u64::from(same == mask));
                    }
                }
            })));
        }
    }
}

fn reductions(forms: &mut Vec<Form>) {
    type Join = fn(u64, u64) -> u64;
    let all: [(&str, Join); 9] = [
        ("add.u32", |a, b| (a + b) & 0xffff_ffff),
        ("add.s32", |a, b| (a + b) & 0xffff_ffff),
        ("min.u32", |a, b| a.min(b)),
        ("max.u32", |a, b| a.max(b)),
        ("min.s32", |a, b| if (a as u32 as i32) < b as u32 as i32 { a } else { b }),
        ("max.s32", |a, b| if (a as u32 as i32) > b as u32 as i32 { a } else { b }),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    let data = || {
        Data::Custom(
            32 * 128,
            Arc::new(|index, operand| match operand {
                // Mostly ones for `and`, mostly zeros for `or`, and everything between, by the number of the warp.
                0 => match index / 32 % 4 {
                    0 => mix(index),
                    1 => mix(index) | mix(index + 1) | mix(index + 2),
                    2 => mix(index) & mix(index + 1) & mix(index + 2),
                    _ => mix(index) & 0xffff_ffff >> (mix(index / 32) % 32),
                },
                _ => predicate(mix(index / 32), index % 32),
            }),
        )
    };
    for (name, join) in all {
        let key = format!("redux.sync.{name}");
        let body = format!("{key} %d0, %a0, 0xffffffff;");
        let form = Form::with_body(key.clone(), &[Kind::I32], &[Register::B32], body).data(data());
        forms.push(form.oracle(Oracle::warp(move |x, out| {
            let value = x[0].iter().copied().reduce(join).unwrap_or(0);
            out[0] = [Expected::Bits(value); 32];
        })));
        let body = some(&format!("{key} %d0, %a0, %members;"), 1, 1);
        let form = Form::with_body(key, &[Kind::I32, Kind::Pred], &[Register::B32], body).data(data());
        let form = form.declare(".reg .b32 %members;").case("some lanes");
        forms.push(form.oracle(Oracle::warp(move |x, out| {
            let inside = (0..32).filter(|lane| x[1][*lane] == 1).map(|lane| x[0][lane]);
            let value = inside.reduce(join).unwrap_or(0);
            for lane in 0..32 {
                out[0][lane] = Expected::Bits(if x[1][lane] == 1 { value } else { UNTOUCHED });
            }
        })));
    }
}

fn leaders(forms: &mut Vec<Form>) {
    let form = Form::with_body("activemask.b32", &[Kind::I32], &[Register::B32], "activemask.b32 %d0;");
    forms.push(form.data(Data::Random(256)).oracle(Oracle::bits(|_| 0xffff_ffff)));
    // Which lane is elected is the machine's choice, but it is one, it is a member, and everybody agrees.
    let body = "elect.sync %chosen|%leader, 0xffffffff;\nselp.b32 %d0, 1, 0, %leader;\nredux.sync.add.u32 %d0, %d0, 0xffffffff;\n\
                match.all.sync.b32 %d1|%leader, %chosen, 0xffffffff;";
    let form = Form::with_body("elect.sync p|q", &[Kind::I32], &[Register::B32; 2], body).level(Level::Sm90);
    let form = form.declare(".reg .b32 %chosen; .reg .pred %leader;").data(Data::Random(256));
    forms.push(form.oracle(Oracle::many(|_, out| {
        out[0] = Expected::Bits(1);
        out[1] = Expected::Bits(0xffff_ffff);
    })));
}
