//! Conversions.

use crate::{
    form::{Form, Level},
    inputs::{Data, Kind, Register},
    oracle::{
        Expected, Oracle,
        exact::{E5M2, F16, F32, Format, Number, Round, Sum, TF32},
        float::{Mode, convert, format, from_integer, to_integer},
        integer::Integer,
    },
};

const INTEGERS: [&str; 8] = ["u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"];
const FLOATS: [&str; 4] = ["f16", "bf16", "f32", "f64"];
const ROUNDINGS: [(&str, Round); 4] =
    [(".rn", Round::Nearest), (".rz", Round::Zero), (".rm", Round::Down), (".rp", Round::Up)];

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    integers(forms);
    to_integers(forms);
    from_integers(forms);
    floats(forms);
    pairs(forms);
    tensor(forms);
    eights(forms);
}

fn level(types: [&str; 2], brain_with_integer: bool) -> Level {
    if types.contains(&"bf16") && brain_with_integer { Level::Sm90 } else { Level::Sm80 }
}

/// A result in a register of 32 bits or more: narrow integers are extended to it.
fn extended(ty: Integer, bits: u64) -> u64 {
    if ty.bits == 8 { ty.value(bits) as u64 & 0xffff_ffff } else { bits }
}

fn named() -> impl Iterator<Item = (&'static str, Integer)> {
    INTEGERS.into_iter().filter_map(|name| Some((name, Integer::named(name)?)))
}

/// There is nothing between one `bf16` and bytes.
fn exists(float: &str, integer: Integer) -> bool {
    float != "bf16" || integer.bits > 8
}

fn integers(forms: &mut Vec<Form>) {
    for (to, target) in named() {
        for (from, source) in named() {
            let (kind, register) = (Kind::of(from), Kind::of(to).register());
            let form = Form::plain(format!("cvt.{to}.{from}"), &[kind], register);
            forms.push(form.oracle(Oracle::bits(move |x| extended(target, target.wrap(source.value(x[0]))))));
            let ((low, high), (least, most)) = (source.range(), target.range());
            if low < least || high > most {
                let form = Form::plain(format!("cvt.sat.{to}.{from}"), &[kind], register);
                forms.push(form.oracle(Oracle::bits(move |x| extended(target, target.clamp(source.value(x[0]))))));
            }
        }
    }
}

fn to_integers(forms: &mut Vec<Form>) {
    for from in FLOATS {
        for (to, target) in named().filter(|(_, to)| exists(from, *to)) {
            for (rounding, round) in ROUNDINGS {
                for ftz in [false, true] {
                    if ftz && from != "f32" {
                        continue;
                    }
                    let key = format!("cvt{rounding}i{}.{to}.{from}", if ftz { ".ftz" } else { "" });
                    let (kind, format) = (Kind::of(from), format(from));
                    let form = Form::plain(key, &[kind], Kind::of(to).register()).level(level([from, to], true));
                    let form = if kind.register() == Register::B16 { form.data(Data::Exhaustive) } else { form };
                    forms.push(form.oracle(Oracle::one(move |x| {
                        let bits = if ftz { format.flush(x[0]) } else { x[0] };
                        match to_integer(format, round, bits) {
                            Some(value) => Expected::Bits(extended(target, target.clamp(value))),
                            // NaN of a 64-bit source or to a 64-bit result is not fixed; otherwise it is zero.
                            None if target.bits == 64 || from == "f64" => Expected::Open,
                            None => Expected::Bits(0),
                        }
                    })));
                }
            }
        }
    }
}

fn from_integers(forms: &mut Vec<Form>) {
    for to in FLOATS {
        for (from, source) in named().filter(|(_, from)| exists(to, *from)) {
            for (rounding, round) in ROUNDINGS {
                let (kind, format) = (Kind::of(from), format(to));
                let form = Form::plain(format!("cvt{rounding}.{to}.{from}"), &[kind], Kind::of(to).register());
                let form = form.level(level([from, to], true));
                forms.push(form.oracle(Oracle::bits(move |x| from_integer(source.value(x[0]), format, round))));
            }
        }
    }
}

fn floats(forms: &mut Vec<Form>) {
    for from in FLOATS {
        for to in FLOATS {
            let (source, target, kind) = (format(from), format(to), Kind::of(from));
            let register = Kind::of(to).register();
            let exhaustive = kind.register() == Register::B16;
            let mut push = |key: String, level: Level, oracle: Oracle| {
                let form = Form::plain(key, &[kind], register).level(level).oracle(oracle);
                forms.push(match (exhaustive, from, to) {
                    (true, ..) => form.data(Data::Exhaustive),
                    (_, "f32", "f16" | "bf16") => form.data(Data::Sweep),
                    _ => form,
                });
            };
            // To one bf16 from anything but f32, and from one to anything but f32, came with sm_90.
            let brain = [from, to].contains(&"bf16") && ![from, to].contains(&"f32");
            let level = if brain || (from == "bf16" && to == "bf16") { Level::Sm90 } else { Level::Sm80 };
            let single = from == "f32" || to == "f32";
            let widens = from != to && target.mantissa >= source.mantissa && target.exponent >= source.exponent;
            for (rounding, round) in ROUNDINGS {
                let word = if from == to { format!("{rounding}i") } else { rounding.to_string() };
                if widens || (to == "bf16" && from != to && !matches!(round, Round::Nearest | Round::Zero)) {
                    continue;
                }
                for ftz in [false, true] {
                    if ftz && (!single || from == "bf16" || to == "bf16") {
                        continue;
                    }
                    let key = format!("cvt{word}{}.{to}.{from}", if ftz { ".ftz" } else { "" });
                    push(key, level, rounded([source, target], round, ftz));
                }
            }
            if widens {
                push(format!("cvt.{to}.{from}"), level, rounded([source, target], Round::Nearest, false));
            }
        }
    }
    for (to, format) in [("f16", F16), ("bf16", format("bf16"))] {
        for (rounding, round) in &ROUNDINGS[..2] {
            let (round, mode) = (*round, Mode { relu: true, ..Mode::nearest(format) });
            let form = Form::plain(format!("cvt{rounding}.relu.{to}.f32"), &[Kind::F32], Register::B16);
            forms.push(form.oracle(Oracle::one(move |x| mode.finish(convert(F32, format, round, x[0])))));
        }
    }
    for key in ["cvt.sat.f32.f32", "cvt.rn.sat.f16.f32", "cvt.rn.sat.f32.f64"] {
        let [to, from] = [&key[key.len() - 7..key.len() - 4], &key[key.len() - 3..]];
        let (source, target) = (format(from), format(to));
        let mode = Mode { saturate: true, ..Mode::nearest(target) };
        let form = Form::plain(key, &[Kind::of(from)], Kind::of(to).register());
        forms.push(form.oracle(Oracle::one(move |x| mode.finish(convert(source, target, Round::Nearest, x[0])))));
    }
}

fn rounded([source, target]: [Format; 2], round: Round, ftz: bool) -> Oracle {
    Oracle::one(move |x| {
        // Only single precision flushes.
        let flush = |format: Format, bits| if ftz && format == F32 { format.flush(bits) } else { bits };
        let bits = flush(source, x[0]);
        let value = if source == target { integral(source, round, bits) } else { convert(source, target, round, bits) };
        Expected::float(target, flush(target, value))
    })
}

/// The nearest integer as a float; the sign of zero stays.
fn integral(format: Format, round: Round, bits: u64) -> u64 {
    match format.decode(bits) {
        // From here on every number is an integer.
        Number::Finite { exponent: 0.., .. } | Number::Nan | Number::Infinite(_) => bits,
        Number::Finite { .. } => {
            let value = to_integer(format, round, bits).unwrap_or(0);
            from_integer(value.abs(), format, Round::Nearest) | bits & format.sign()
        }
    }
}

/// Two floats to a pair, the first one high.
fn pairs(forms: &mut Vec<Form>) {
    for ty in ["f16", "bf16"] {
        for (rounding, round) in &ROUNDINGS[..2] {
            for relu in [false, true] {
                let (round, mode) = (*round, Mode { relu, ..Mode::nearest(format(ty)) });
                let key = format!("cvt{rounding}{}.{ty}x2.f32", if relu { ".relu" } else { "" });
                let form = Form::plain(key, &[Kind::F32; 2], Register::B32);
                forms.push(form.oracle(Oracle::one(move |x| {
                    let half = |x| match mode.finish(convert(F32, mode.format, round, x)) {
                        Expected::Bits(bits) => Some(bits as u16),
                        Expected::Near { .. } => Some(0),
                        _ => None,
                    };
                    Expected::Pair(mode.format, [half(x[1]), half(x[0])])
                })));
            }
        }
    }
}

fn tensor(forms: &mut Vec<Form>) {
    for (rounding, round, level) in [
        ("rna", Round::Away, Level::Sm80),
        ("rn", Round::Nearest, Level::Sm90),
        ("rz", Round::Zero, Level::Sm90),
        ("rn.relu", Round::Nearest, Level::Sm90),
        ("rz.relu", Round::Zero, Level::Sm90),
    ] {
        let form = Form::plain(format!("cvt.{rounding}.tf32.f32"), &[Kind::F32], Register::B32).data(Data::Sweep);
        let relu = rounding.ends_with("relu");
        forms.push(form.level(level).oracle(Oracle::one(move |x| {
            let bits = convert(F32, TF32, round, x[0]);
            let value = TF32.value(bits);
            // A NaN that is nothing above the bits that are dropped is infinity without them; only `.rna` drops them bluntly.
            let blunt = rounding == "rna" && x[0] & 0x7f_e000 == 0;
            if value.is_nan() {
                return if blunt { Expected::Open } else { Expected::Nan(F32) };
            }
            // The 13 bits below are not part of the format; instructions that read it ignore them.
            if relu && value <= 0.0 {
                Expected::Near { format: F32, value: 0.0, tolerance: 0.0 }
            } else {
                Expected::Bits(bits << 13)
            }
        })));
    }
}

/// A number in one of the 8-bit formats, clamped to the largest finite one.
fn narrow(e4m3: bool, from: Format, relu: bool, bits: u64) -> u8 {
    // The largest numbers are 448 and 57344; `e4m3` has no infinity, so its top binade is only reached by clamping.
    let (most, nan) = if e4m3 { (0x7e, 0x7f) } else { (0x7b, 0x7f) };
    let value = from.value(bits);
    if value.is_nan() {
        return nan;
    }
    if relu && value <= 0.0 {
        return 0;
    }
    let sign = if bits & from.sign() == 0 { 0 } else { 0x80 };
    let magnitude = match from.decode(bits) {
        Number::Infinite(_) => most,
        Number::Finite { significand: 0, .. } => 0,
        Number::Finite { significand, exponent, .. } => {
            // With a fifth exponent bit the top binade of `e4m3`, too, is an ordinary one. That bit raises the bias by 8: a
            // scale of 2^-8 puts subnormal numbers in the same place.
            let (format, scale) = if e4m3 { (Format { mantissa: 3, exponent: 5 }, -8) } else { (E5M2, 0) };
            let mut sum = Sum::default();
            sum.add_number(false, significand, exponent + scale);
            sum.round(format, Round::Nearest).min(most)
        }
        Number::Nan => nan.into(),
    };
    sign | magnitude as u8
}

fn widen(e4m3: bool, bits: u8) -> f64 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let magnitude = u64::from(bits & 0x7f);
    match (e4m3, magnitude) {
        (true, 0x7f) => f64::NAN,
        (true, _) => sign * Format { mantissa: 3, exponent: 5 }.value(magnitude) * 256.0,
        (false, _) => sign * E5M2.value(magnitude),
    }
}

fn eights(forms: &mut Vec<Form>) {
    for (ty, e4m3) in [("e4m3x2", true), ("e5m2x2", false)] {
        for relu in [false, true] {
            let word = if relu { ".relu" } else { "" };
            let form = Form::plain(format!("cvt.rn.satfinite{word}.{ty}.f32"), &[Kind::F32; 2], Register::B16);
            forms.push(form.level(Level::Sm90).oracle(Oracle::bits(move |x| {
                u64::from(narrow(e4m3, F32, relu, x[0])) << 8 | u64::from(narrow(e4m3, F32, relu, x[1]))
            })));
            let form = Form::plain(format!("cvt.rn.satfinite{word}.{ty}.f16x2"), &[Kind::F16x2], Register::B16);
            forms.push(form.level(Level::Sm90).oracle(Oracle::bits(move |x| {
                let half = |shift: u32| u64::from(narrow(e4m3, F16, relu, x[0] >> shift & 0xffff));
                half(16) << 8 | half(0)
            })));
            let form = Form::plain(format!("cvt.rn{word}.f16x2.{ty}"), &[Kind::I16], Register::B32);
            forms.push(form.level(Level::Sm90).data(Data::Exhaustive).oracle(Oracle::one(move |x| {
                let half = |shift: u32| {
                    let value = widen(e4m3, (x[0] >> shift) as u8);
                    if value.is_nan() {
                        return None;
                    }
                    let value = if relu && value <= 0.0 { 0.0 } else { value };
                    Some(convert(format("f64"), F16, Round::Nearest, value.to_bits()) as u16)
                };
                Expected::Pair(F16, [half(0), half(8)])
            })));
        }
    }
}
