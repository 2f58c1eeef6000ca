//! Floating-point arithmetic that IEEE 754 defines to the last bit.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind},
    oracle::{
        Expected, Oracle,
        exact::{F32, F64, Round},
        float::{Choice, Mode, format, one, pair},
    },
};

const ROUNDINGS: [(&str, Round); 5] =
    [("", Round::Nearest), (".rn", Round::Nearest), (".rz", Round::Zero), (".rm", Round::Down), (".rp", Round::Up)];

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    arithmetic(forms);
    halves(forms);
    quotients(forms);
    choices(forms);
    signs(forms);
}

type Operation = fn(&Mode, &[u64]) -> Expected;

const OPERATIONS: [(&str, usize, Operation); 4] = [
    ("add", 2, |mode, x| mode.add(x[0], x[1])),
    ("sub", 2, |mode, x| mode.sub(x[0], x[1])),
    ("mul", 2, |mode, x| mode.mul(x[0], x[1])),
    ("fma", 3, |mode, x| mode.fma(x[0], x[1], x[2])),
];

fn arithmetic(forms: &mut Vec<Form>) {
    for (name, sources, operation) in OPERATIONS {
        for (word, round) in ROUNDINGS {
            if name == "fma" && word.is_empty() {
                continue;
            }
            for (modifiers, ftz, saturate) in
                [("", false, false), (".ftz", true, false), (".sat", false, true), (".ftz.sat", true, true)]
            {
                let mode = Mode { round, ftz, saturate, ..Mode::nearest(F32) };
                let key = format!("{name}{word}{modifiers}.f32");
                let form = Form::plain(key, &vec![Kind::F32; sources], Kind::F32.register());
                forms.push(form.oracle(Oracle::one(move |x| operation(&mode, x))));
            }
            let mode = Mode { round, ..Mode::nearest(F64) };
            let form = Form::plain(format!("{name}{word}.f64"), &vec![Kind::F64; sources], Kind::F64.register());
            forms.push(form.oracle(Oracle::one(move |x| operation(&mode, x))));
        }
    }
    for (word, round) in &ROUNDINGS[1..] {
        for (modifiers, ftz, saturate) in [("", false, false), (".ftz", true, false), (".sat", false, true)] {
            let mode = Mode { round: *round, ftz, saturate, ..Mode::nearest(F32) };
            let form = Form::plain(format!("mad{word}{modifiers}.f32"), &[Kind::F32; 3], Kind::F32.register());
            forms.push(form.oracle(Oracle::one(move |x| mode.fma(x[0], x[1], x[2]))));
        }
    }
}

fn halves(forms: &mut Vec<Form>) {
    for (name, sources, operation) in OPERATIONS {
        for ty in ["f16", "f16x2", "bf16", "bf16x2"] {
            let brain = ty.starts_with('b');
            let rounding = if name == "fma" { ".rn" } else { "" };
            for (modifiers, ftz, saturate, relu) in [
                ("", false, false, false),
                (".ftz", true, false, false),
                (".sat", false, true, false),
                (".ftz.sat", true, true, false),
                (".relu", false, false, true),
                (".ftz.relu", true, false, true),
            ] {
                if (brain && (ftz || saturate)) || (relu && name != "fma") {
                    continue;
                }
                let mode = Mode { ftz, saturate, relu, ..Mode::nearest(format(ty)) };
                let kind = Kind::of(ty);
                let form =
                    Form::plain(format!("{name}{rounding}{modifiers}.{ty}"), &vec![kind; sources], kind.register());
                let level = if brain && name != "fma" { Level::Sm90 } else { Level::Sm80 };
                let packed = ty.ends_with("x2");
                let oracle = Oracle::one(move |x| match packed {
                    true => pair(mode.format, x, |x| operation(&mode, x)),
                    false => operation(&mode, x),
                });
                forms.push(form.level(level).oracle(oracle));
            }
        }
    }
}

fn quotients(forms: &mut Vec<Form>) {
    for (word, round) in &ROUNDINGS[1..] {
        for (modifier, ty, ftz) in [("", "f32", false), (".ftz", "f32", true), ("", "f64", false)] {
            let mode = Mode { round: *round, ftz, ..Mode::nearest(format(ty)) };
            let kind = Kind::of(ty);
            let unary = |name: &str| {
                let form = Form::plain(format!("{name}{word}{modifier}.{ty}"), &[kind], kind.register());
                if ty == "f32" { form.data(Data::Sweep) } else { form }
            };
            let form = Form::plain(format!("div{word}{modifier}.{ty}"), &[kind; 2], kind.register());
            forms.push(form.oracle(Oracle::one(move |x| mode.div(x[0], x[1]))));
            forms.push(unary("rcp").oracle(Oracle::one(move |x| mode.div(one(mode.format), x[0]))));
            forms.push(unary("sqrt").oracle(Oracle::one(move |x| mode.sqrt(x[0]))));
        }
    }
}

fn choices(forms: &mut Vec<Form>) {
    for name in ["min", "max"] {
        for ty in ["f32", "f64", "f16", "f16x2", "bf16", "bf16x2"] {
            for (modifiers, ftz, nan, xorsign_abs) in [
                ("", false, false, false),
                (".ftz", true, false, false),
                (".NaN", false, true, false),
                (".ftz.NaN", true, true, false),
                (".xorsign.abs", false, false, true),
                (".NaN.xorsign.abs", false, true, true),
                (".ftz.xorsign.abs", true, false, true),
                (".ftz.NaN.xorsign.abs", true, true, true),
            ] {
                if (ty == "f64" && !modifiers.is_empty()) || (ty.starts_with('b') && ftz) {
                    continue;
                }
                let kind = Kind::of(ty);
                let choice = Choice { format: format(ty), max: name == "max", ftz, nan, xorsign_abs };
                let form = Form::plain(format!("{name}{modifiers}.{ty}"), &[kind; 2], kind.register());
                let packed = ty.ends_with("x2");
                let oracle = Oracle::one(move |x| match packed {
                    true => pair(choice.format, x, |x| choice.of(x[0], x[1])),
                    false => choice.of(x[0], x[1]),
                });
                forms.push(form.level(if xorsign_abs { Level::Sm90 } else { Level::Sm80 }).oracle(oracle));
            }
        }
    }
}

fn signs(forms: &mut Vec<Form>) {
    for ty in ["f32", "f64", "f16", "f16x2", "bf16", "bf16x2"] {
        let (kind, format, packed) = (Kind::of(ty), format(ty), ty.ends_with("x2"));
        for (modifier, ftz) in [("", false), (".ftz", true)] {
            if ftz && matches!(ty, "f64" | "bf16" | "bf16x2") {
                continue;
            }
            for name in ["abs", "neg"] {
                let negate = name == "neg";
                let one = move |x: &[u64]| {
                    let x = if ftz { format.flush(x[0]) } else { x[0] };
                    Expected::float(format, if negate { x ^ format.sign() } else { x & !format.sign() })
                };
                let form = Form::plain(format!("{name}{modifier}.{ty}"), &[kind], kind.register());
                let form = if matches!(ty, "f16" | "bf16") { form.data(Data::Exhaustive) } else { form };
                forms.push(form.oracle(Oracle::one(move |x| if packed { pair(format, x, one) } else { one(x) })));
            }
        }
    }
    for ty in ["f32", "f64"] {
        let (kind, format) = (Kind::of(ty), format(ty));
        let sign = format.sign();
        let form = Form::plain(format!("copysign.{ty}"), &[kind; 2], kind.register());
        forms.push(form.oracle(Oracle::bits(move |x| x[1] & !sign | x[0] & sign)));
        for class in ["finite", "infinite", "number", "notanumber", "normal", "subnormal"] {
            let form = Form::plain(format!("testp.{class}.{ty}"), &[kind], Kind::Pred.register());
            forms.push(form.oracle(Oracle::bits(move |x| {
                let magnitude = x[0] & (sign - 1);
                let (infinity, subnormal) = (format.infinity(), magnitude != 0 && magnitude & format.infinity() == 0);
                u64::from(match class {
                    "finite" => magnitude < infinity,
                    "infinite" => magnitude == infinity,
                    "number" => magnitude <= infinity,
                    "notanumber" => magnitude > infinity,
                    "normal" => magnitude < infinity && magnitude & infinity != 0,
                    _ => subnormal,
                })
            })));
        }
    }
}
