//! Approximations, with the largest error that the PTX manual (9.1) documents. Where it gives none, as for subnormal
//! results, one unit of the smallest subnormal is added, because that much any rounding may cost.

use crate::{
    form::{Class, Form, Level},
    inputs::{Data, Kind},
    oracle::{
        Expected, Oracle,
        exact::{F32, Format},
        float::format,
    },
};

/// All forms.
pub fn add(forms: &mut Vec<Form>) {
    single(forms);
    half(forms);
    quotients(forms);
}

fn power(exponent: f64) -> f64 {
    exponent.exp2()
}

/// A float near `value`: infinities, NaN and zeros of singular points are exact.
fn near(format: Format, value: f64, tolerance: f64) -> Expected {
    if value.is_nan() {
        return Expected::Nan(format);
    }
    if value.is_infinite() {
        return Expected::Bits(format.infinity() | if value < 0.0 { format.sign() } else { 0 });
    }
    Expected::Near { format, value, tolerance }
}

/// What is documented of a function of one `f32`.
struct Function {
    name: &'static str,
    ftz: &'static [bool],
    exact: fn(f64) -> f64,
    /// The documented tolerance at `x` where the value is `y`; infinite where nothing is promised.
    tolerance: fn(f64, f64) -> f64,
}

fn relative(bits: f64, y: f64) -> f64 {
    power(-bits) * y.abs()
}

fn angle(x: f64) -> f64 {
    use std::f64::consts::PI;
    match x.abs() / PI {
        ..=2.0 => power(-20.5),
        ..=100.0 => power(-14.7),
        _ => f64::INFINITY,
    }
}

const FUNCTIONS: [Function; 8] = [
    Function { name: "ex2", ftz: &[false, true], exact: f64::exp2, tolerance: |_, y| relative(22.0, y) },
    Function {
        name: "lg2",
        ftz: &[false, true],
        exact: f64::log2,
        tolerance: |x, y| if x > 0.5 && x < 2.0 { power(-22.0) } else { relative(22.0, y) },
    },
    Function { name: "rcp", ftz: &[false, true], exact: |x| 1.0 / x, tolerance: |_, y| relative(23.0, y) },
    Function {
        name: "rsqrt",
        ftz: &[false, true],
        // The root of minus zero is minus zero, and so is what IEEE makes of its reciprocal.
        exact: |x| 1.0 / x.sqrt(),
        tolerance: |_, y| relative(22.9, y),
    },
    Function { name: "sqrt", ftz: &[false, true], exact: f64::sqrt, tolerance: |_, y| relative(23.0, y) },
    Function { name: "sin", ftz: &[false, true], exact: f64::sin, tolerance: |x, _| angle(x) },
    Function { name: "cos", ftz: &[false, true], exact: f64::cos, tolerance: |x, _| angle(x) },
    Function { name: "tanh", ftz: &[false], exact: f64::tanh, tolerance: |_, y| relative(11.0, y) },
];

fn single(forms: &mut Vec<Form>) {
    for Function { name, ftz, exact, tolerance } in FUNCTIONS {
        for ftz in ftz {
            let (ftz, key) = (*ftz, format!("{name}.approx{}.f32", if *ftz { ".ftz" } else { "" }));
            let form = Form::plain(key, &[Kind::F32], Kind::F32.register()).data(Data::Sweep).class(Class::Approximate);
            forms.push(form.oracle(Oracle::one(move |x| {
                let x = F32.value(if ftz { F32.flush(x[0]) } else { x[0] });
                let value = exact(x);
                // Beyond the largest number, and within half a unit of it, both it and infinity are right.
                if value.is_finite() && value.abs() > f64::from(f32::MAX) * (1.0 - power(-22.0)) {
                    return if value.abs() > f64::from(f32::MAX) * (1.0 + power(-21.0)) {
                        near(F32, f64::INFINITY.copysign(value), 0.0)
                    } else {
                        Expected::Open
                    };
                }
                small(F32, value, tolerance(x, value), ftz)
            })));
        }
    }
}

/// A subnormal result may be flushed, or be off by its last place.
fn small(format: Format, value: f64, tolerance: f64, ftz: bool) -> Expected {
    let normal = format.value(1 << format.mantissa);
    let smallest = format.value(1);
    let flushed = ftz && value.abs() <= normal * (1.0 + power(-20.0));
    let extra = match value.abs() {
        0.0 => 0.0,
        _ if flushed => value.abs() + smallest,
        magnitude if magnitude < 2.0 * normal => smallest,
        _ => 0.0,
    };
    near(format, value, tolerance + extra)
}

fn half(forms: &mut Vec<Form>) {
    let ex2: fn(f64) -> f64 = f64::exp2;
    for (name, modifier, ty, level, exact, relative_bits, absolute_bits) in [
        ("ex2", "", "f16", Level::Sm80, ex2, 9.9, f64::INFINITY),
        ("ex2", "", "f16x2", Level::Sm80, ex2, 9.9, f64::INFINITY),
        ("ex2", ".ftz", "bf16", Level::Sm90, ex2, 7.0, f64::INFINITY),
        ("ex2", ".ftz", "bf16x2", Level::Sm90, ex2, 7.0, f64::INFINITY),
        ("tanh", "", "f16", Level::Sm80, f64::tanh, f64::INFINITY, 10.987),
        ("tanh", "", "f16x2", Level::Sm80, f64::tanh, f64::INFINITY, 10.987),
        ("tanh", "", "bf16", Level::Sm90, f64::tanh, f64::INFINITY, 8.0),
        ("tanh", "", "bf16x2", Level::Sm90, f64::tanh, f64::INFINITY, 8.0),
    ] {
        let (kind, format, ftz) = (Kind::of(ty), format(ty), !modifier.is_empty());
        let form = Form::plain(format!("{name}.approx{modifier}.{ty}"), &[kind], kind.register());
        let form = form.level(level).class(Class::Approximate);
        if ty.ends_with("x2") {
            // The two halves in one register are what the single form gives, which is held against the definition below.
            let both =
                Form { body: halves(&form.key, ty), outputs: vec![kind.register(), Kind::I32.register()], ..form };
            let declare = ".reg .b16 %low, %high; .reg .b32 %joined; .reg .pred %same;";
            forms.push(both.declare(declare).oracle(Oracle::many(|_, out| out[1] = Expected::Bits(1))));
            continue;
        }
        let largest = format.value(format.infinity() - 1);
        forms.push(form.data(Data::Exhaustive).oracle(Oracle::one(move |x| {
            let x = format.value(if ftz { format.flush(x[0]) } else { x[0] });
            let value = exact(x);
            if value.is_finite() && value.abs() > largest {
                return Expected::Open;
            }
            small(format, value, power(-relative_bits) * value.abs() + power(-absolute_bits), ftz)
        })));
    }
}

/// Both halves together, and whether they are what the form gives one by one.
fn halves(key: &str, ty: &str) -> String {
    let one = key.replace(ty, &ty.replace("x2", ""));
    format!(
        "{key} %d0, %a0;\nmov.b32 {{%low, %high}}, %a0;\n{one} %low, %low;\n{one} %high, %high;\n\
         mov.b32 %joined, {{%low, %high}};\nsetp.eq.u32 %same, %joined, %d0;\nselp.u32 %d1, 1, 0, %same;"
    )
}

fn quotients(forms: &mut Vec<Form>) {
    for (kind, full) in [("approx", false), ("full", true)] {
        for ftz in [false, true] {
            let key = format!("div.{kind}{}.f32", if ftz { ".ftz" } else { "" });
            let form = Form::plain(key, &[Kind::F32; 2], Kind::F32.register()).class(Class::Approximate);
            forms.push(form.oracle(Oracle::one(move |x| quotient(full, ftz, x[0], x[1]))));
        }
    }
}

/// Two units in the last place, for divisors from 2^-126 to 2^126; `.full` scales larger ones.
fn quotient(full: bool, ftz: bool, a: u64, b: u64) -> Expected {
    let flushed = |x| F32.value(if ftz { F32.flush(x) } else { x });
    let (a, b) = (flushed(a), flushed(b));
    let value = a / b;
    if value.is_nan() || a == 0.0 || b == 0.0 || a.is_infinite() || b.is_infinite() {
        // Infinity divided by a large number is NaN without scaling.
        let large = b.is_finite() && b.abs() > power(126.0);
        return if a.is_infinite() && large { Expected::Open } else { near(F32, value, 0.0) };
    }
    let in_range = b.abs() >= power(-126.0) && b.abs() <= power(126.0);
    if !in_range && !full {
        return Expected::Open;
    }
    // The reciprocal or the scaled dividend may itself have lost bits near the ends of the range.
    if !in_range || a.abs() < power(-122.0) || value.abs() > power(127.9) || value.abs() < power(-122.0) {
        return Expected::Open;
    }
    Expected::Near { format: F32, value, tolerance: 2.0 * power(-23.0) * value.abs() }
}
