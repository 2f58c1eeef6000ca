//! Comparisons and selections.

use crate::{
    form::{Form, Level},
    inputs::{Kind, Register},
    oracle::{Expected, Oracle, exact::Format, float::format, integer::Integer},
};
use std::cmp::Ordering;

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    for ty in ["u16", "u32", "u64", "s16", "s32", "s64", "b16", "b32", "b64", "f16", "bf16", "f32", "f64"] {
        for comparison in comparisons(ty) {
            for ftz in [false, true] {
                if ftz && !matches!(ty, "f32" | "f16") {
                    continue;
                }
                predicates(forms, comparison, ty, ftz);
            }
        }
    }
    sets(forms);
    selections(forms);
}

const COMBINATIONS: [&str; 4] = ["", ".and", ".or", ".xor"];

fn comparisons(ty: &str) -> &'static [&'static str] {
    match ty.as_bytes()[0] {
        b'b' if ty != "bf16" => &["eq", "ne"],
        b's' => &["eq", "ne", "lt", "le", "gt", "ge"],
        b'u' => &["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"],
        _ => &["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"],
    }
}

/// How two values relate; `None` if one of them is NaN.
fn relation(ty: &'static str, ftz: bool) -> impl Fn(u64, u64) -> Option<Ordering> + Send + Sync + Copy {
    let integer = Integer::named(ty);
    let format: Format = format(ty);
    move |a, b| match integer {
        Some(ty) => Some(ty.value(a).cmp(&ty.value(b))),
        None => {
            let value = |x| format.value(if ftz { format.flush(x) } else { x });
            value(a).partial_cmp(&value(b))
        }
    }
}

fn holds(comparison: &str, relation: Option<Ordering>) -> bool {
    use Ordering::{Equal, Greater, Less};
    let Some(order) = relation else {
        // Those that end in `u` hold for unordered operands; so does `nan`.
        return matches!(comparison, "equ" | "neu" | "ltu" | "leu" | "gtu" | "geu" | "nan");
    };
    match comparison {
        "eq" | "equ" => order == Equal,
        "ne" | "neu" => order != Equal,
        "lt" | "lo" | "ltu" => order == Less,
        "le" | "ls" | "leu" => order != Greater,
        "gt" | "hi" | "gtu" => order == Greater,
        "ge" | "hs" | "geu" => order != Less,
        "num" => true,
        _ => false,
    }
}

fn combine(combination: &str, value: bool, c: bool) -> bool {
    match combination {
        ".and" => value && c,
        ".or" => value || c,
        ".xor" => value != c,
        _ => value,
    }
}

fn predicates(forms: &mut Vec<Form>, comparison: &'static str, ty: &'static str, ftz: bool) {
    let (kind, relation) = (Kind::of(ty), relation(ty, ftz));
    for combination in COMBINATIONS {
        let modifier = if ftz { ".ftz" } else { "" };
        let key = format!("setp.{comparison}{combination}{modifier}.{ty}");
        let mut inputs = vec![kind; 2];
        let third = if combination.is_empty() { "" } else { ", %a2" };
        if !combination.is_empty() {
            inputs.push(Kind::Pred);
        }
        let level = if ty == "bf16" { Level::Sm90 } else { Level::Sm80 };
        let form = Form::plain(key.clone(), &inputs, Register::Pred).level(level);
        forms.push(form.oracle(Oracle::bits(move |x| {
            let value = holds(comparison, relation(x[0], x[1]));
            u64::from(combine(combination, value, x.get(2) == Some(&1)))
        })));
        // The second predicate is the same of the opposite.
        if (ty == "f32" || ty == "s32") && matches!(combination, "" | ".and") {
            let body = format!("{key} %d0|%d1, %a0, %a1{third};");
            let form = Form::with_body(format!("{key} p|q"), &inputs, &[Register::Pred; 2], body);
            forms.push(form.oracle(Oracle::many(move |x, out| {
                let value = holds(comparison, relation(x[0], x[1]));
                for (out, value) in out.iter_mut().zip([value, !value]) {
                    *out = Expected::Bits(combine(combination, value, x.get(2) == Some(&1)).into());
                }
            })));
        }
    }
}

fn sets(forms: &mut Vec<Form>) {
    for to in ["u32", "s32", "f32"] {
        for ty in ["u32", "s32", "u64", "s64", "f32", "f64"] {
            for comparison in comparisons(ty) {
                // Combining is what `setp` does, too; here one type has to do.
                for combination in if ty == "f32" { &COMBINATIONS[..] } else { &COMBINATIONS[..1] } {
                    let relation = relation(ty, false);
                    let mut inputs = vec![Kind::of(ty); 2];
                    if !combination.is_empty() {
                        inputs.push(Kind::Pred);
                    }
                    let form = Form::plain(format!("set.{comparison}{combination}.{to}.{ty}"), &inputs, Register::B32);
                    forms.push(form.oracle(Oracle::bits(move |x| {
                        let value = holds(comparison, relation(x[0], x[1]));
                        match (combine(combination, value, x.get(2) == Some(&1)), to) {
                            (false, _) => 0,
                            (true, "f32") => 1f32.to_bits().into(),
                            (true, _) => 0xffff_ffff,
                        }
                    })));
                }
            }
        }
    }
}

fn selections(forms: &mut Vec<Form>) {
    for ty in ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64"] {
        let kind = Kind::of(ty);
        let form = Form::plain(format!("selp.{ty}"), &[kind, kind, Kind::Pred], kind.register());
        forms.push(form.oracle(Oracle::bits(|x| if x[2] == 1 { x[0] } else { x[1] })));
        let form = Form::plain(format!("slct.{ty}.s32"), &[kind, kind, Kind::I32], kind.register());
        forms.push(form.oracle(Oracle::bits(|x| if (x[2] as i32) >= 0 { x[0] } else { x[1] })));
        for modifier in ["", ".ftz"] {
            let form = Form::plain(format!("slct{modifier}.{ty}.f32"), &[kind, kind, Kind::F32], kind.register());
            let flush = !modifier.is_empty();
            forms.push(form.oracle(Oracle::bits(move |x| {
                let f32 = format("f32");
                let value = f32.value(if flush { f32.flush(x[2]) } else { x[2] });
                // A NaN is not at least zero.
                if value >= 0.0 { x[0] } else { x[1] }
            })));
        }
    }
}
