//! Decoding of floating-point arithmetic and of the opcodes that exist for integers too.

use super::cold::{LaneFn, ScalarFn};
use super::context::{Decoded, Decoder};
use super::emit::{binary, scalar, unary};
use super::integer;
use super::op::{Op, R2};
use super::words::Words;
use crate::numerics::approx::{Division, Function, HalfFunction, division_lanes, function_lanes, half_lanes};
use crate::numerics::float::{self, Choice, Class, Mode, Operation};
use crate::numerics::float16::{self, Half, HalfMode, HalfOperation};
use crate::numerics::{Lanes, Rounding, wide_map1};
use crate::ptx::ast::Type;

/// Whether the instruction works on floating-point numbers, by its last word.
fn is_float(words: &Words<'_>) -> bool {
    matches!(words.last(), Some("f16" | "f16x2" | "bf16" | "bf16x2" | "f32" | "f64"))
}

/// Format of a 16-bit type, and whether it is packed.
fn half(ty: Type) -> Option<(Half, bool)> {
    Some(match ty {
        Type::F16 => (Half::F16, false),
        Type::F16x2 => (Half::F16, true),
        Type::Bf16 => (Half::Bf16, false),
        Type::Bf16x2 => (Half::Bf16, true),
        _ => return None,
    })
}

/// `add`, `sub`, `mul`, `mad`, `fma`, `div`, `rem`, `min`, `max`, `abs`, `neg`: both kinds of types.
pub(super) fn arithmetic(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let float = is_float(&words);
    match (d.ins.opcode.as_str(), float) {
        ("add" | "sub", false) => integer::add_sub(d, &mut words),
        ("mul" | "mad", false) => integer::multiply(d, &mut words),
        ("div" | "rem", false) => integer::divide(d, &mut words),
        ("min" | "max", false) => integer::choose(d, &mut words),
        ("abs" | "neg", false) => integer::sign(d, &mut words),
        ("add", true) => rounded(d, Operation::Add),
        ("sub", true) => rounded(d, Operation::Sub),
        ("mul", true) => rounded(d, Operation::Mul),
        ("fma" | "mad", true) => rounded(d, Operation::Fma),
        ("div", true) => divide(d),
        ("min" | "max", true) => choose(d),
        ("abs" | "neg", true) => sign(d),
        _ => Err(words.error("this type is not supported")),
    }
}

/// `add`, `sub`, `mul`, `fma`
fn rounded(d: &mut Decoder<'_>, operation: Operation) -> Decoded<()> {
    let mut words = d.words();
    let rounding = words.rounding();
    let ftz = words.take("ftz");
    let saturate = words.take("sat");
    let relu = operation == Operation::Fma && words.take("relu");
    let ty = words.ty()?;
    words.finish()?;
    if operation == Operation::Fma && rounding.is_none() {
        return Err(words.error("a rounding is missing"));
    }
    let sources = if operation == Operation::Fma { 3 } else { 2 };
    let mode = Mode { rounding: rounding.unwrap_or(Rounding::Nearest), ftz, saturate };
    if let Some((format, packed)) = half(ty) {
        if mode.rounding != Rounding::Nearest || (relu && saturate) || (format == Half::Bf16 && (ftz || saturate)) {
            return Err(words.error("this combination of modifiers does not exist"));
        }
        if format == Half::Bf16 && operation != Operation::Fma && d.target().capability < 90 {
            return Err(words.error("bf16 add, sub and mul need sm_90"));
        }
        let operation = match operation {
            Operation::Add => HalfOperation::Add,
            Operation::Sub => HalfOperation::Sub,
            Operation::Mul => HalfOperation::Mul,
            _ => HalfOperation::Fma,
        };
        let mode = HalfMode { ftz, saturate, relu };
        let f: LaneFn = Box::new(move |a: &Lanes, b: &Lanes, c: &Lanes| {
            float16::operate_lanes(operation, format, packed, mode, [a, b, c])
        });
        return d.emit_lanes(ty, sources, f);
    }
    if relu || (ty == Type::F64 && (ftz || saturate)) {
        return Err(words.error("this combination of modifiers does not exist"));
    }
    if ty == Type::F64 {
        return d.emit_scalar(ty, &[ty; 3][..sources], double(operation, mode.rounding));
    }
    if mode.rounding != Rounding::Nearest || saturate {
        let f: LaneFn = match operation {
            Operation::Add => Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float::add_lanes(mode, a, b)),
            Operation::Sub => Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float::sub_lanes(mode, a, b)),
            Operation::Mul => Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float::mul_lanes(mode, a, b)),
            _ => Box::new(move |a: &Lanes, b: &Lanes, c: &Lanes| float::fma_lanes(mode, a, b, c)),
        };
        return d.emit_lanes(ty, sources, f);
    }
    let op = match (operation, ftz) {
        (Operation::Add, false) => Op::AddF32(d.r3(ty)?),
        (Operation::Add, true) => Op::AddF32Ftz(d.r3(ty)?),
        (Operation::Sub, false) => Op::SubF32(d.r3(ty)?),
        (Operation::Sub, true) => Op::SubF32Ftz(d.r3(ty)?),
        (Operation::Mul, false) => Op::MulF32(d.r3(ty)?),
        (Operation::Mul, true) => Op::MulF32Ftz(d.r3(ty)?),
        (_, false) => Op::FmaF32(d.r4(ty)?),
        (_, true) => Op::FmaF32Ftz(d.r4(ty)?),
    };
    d.emit(op);
    Ok(())
}

fn double(operation: Operation, rounding: Rounding) -> ScalarFn {
    scalar(move |[a, b, c, _]| float::rounded_f64(operation, a, b, c, rounding))
}

/// `div` on floating-point numbers
fn divide(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let approximate = words.any(&["approx", "full"]);
    let rounding = if approximate.is_none() { words.rounding() } else { None };
    let ftz = words.take("ftz");
    let ty = words.ty()?;
    words.finish()?;
    match (approximate, rounding, ty) {
        (Some(kind), _, Type::F32) => {
            let division = if kind == 0 { Division::Approx } else { Division::Full };
            d.emit_lanes(ty, 2, Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| division_lanes(division, ftz, a, b)))
        }
        (None, Some(rounding), Type::F32) => {
            let mode = Mode { rounding, ftz, saturate: false };
            d.emit_lanes(ty, 2, Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float::div_lanes(mode, a, b)))
        }
        (None, Some(rounding), Type::F64) if !ftz => d.emit_scalar(ty, &[ty; 2], double(Operation::Div, rounding)),
        _ => Err(words.error("this combination of modifiers does not exist")),
    }
}

/// `rcp`, `sqrt`, `rsqrt`, `ex2`, `lg2`, `sin`, `cos`, `tanh`
pub(super) fn function(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let opcode = d.ins.opcode.as_str();
    let approximate = words.take("approx");
    let rounding = if approximate { None } else { words.rounding() };
    let ftz = words.take("ftz");
    let ty = words.ty()?;
    words.finish()?;
    if let (true, Some((format, packed))) = (approximate, half(ty)) {
        if format == Half::Bf16 {
            d.needs(90)?;
        }
        let function = match (opcode, format, ftz) {
            ("ex2", Half::F16, false) | ("ex2", Half::Bf16, true) => HalfFunction::Ex2,
            ("tanh", _, false) => HalfFunction::Tanh,
            _ => return Err(words.error("this combination of modifiers does not exist")),
        };
        let f = Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| half_lanes(function, format, packed, ftz, a));
        return d.emit_lanes(ty, 1, f);
    }
    if approximate && ty == Type::F32 {
        let function = match opcode {
            "ex2" => Function::Ex2,
            "lg2" => Function::Lg2,
            "rcp" => Function::Rcp,
            "rsqrt" => Function::Rsqrt,
            "sqrt" => Function::Sqrt,
            "sin" => Function::Sin,
            "cos" => Function::Cos,
            "tanh" if !ftz => Function::Tanh,
            _ => return Err(words.error("this combination of modifiers does not exist")),
        };
        return d.emit_lanes(ty, 1, Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| function_lanes(function, ftz, a)));
    }
    let operation = match opcode {
        "rcp" => Operation::Rcp,
        "sqrt" => Operation::Sqrt,
        _ => return Err(words.error("this combination of modifiers does not exist")),
    };
    match (rounding, ty) {
        (Some(rounding), Type::F32) => {
            let mode = Mode { rounding, ftz, saturate: false };
            d.emit_lanes(
                ty,
                1,
                Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| match operation {
                    Operation::Rcp => float::rcp_lanes(mode, a),
                    _ => float::sqrt_lanes(mode, a),
                }),
            )
        }
        (Some(rounding), Type::F64) if !ftz => d.emit_scalar(ty, &[ty], double(operation, rounding)),
        _ => Err(words.error("this combination of modifiers does not exist")),
    }
}

/// `min` and `max` on floating-point numbers
fn choose(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let max = d.ins.opcode == "max";
    let ftz = words.take("ftz");
    let nan = words.take("NaN");
    let xorsign_abs = words.take("xorsign");
    if xorsign_abs {
        words.expect("abs")?;
        d.needs(86)?;
    }
    let ty = words.ty()?;
    words.finish()?;
    let choice = Choice { max, ftz, nan, xorsign_abs };
    if let Some((format, packed)) = half(ty) {
        if ftz && format == Half::Bf16 {
            return Err(words.error("this combination of modifiers does not exist"));
        }
        let f: LaneFn =
            Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float16::choose_half_lanes(format, packed, choice, a, b));
        return d.emit_lanes(ty, 2, f);
    }
    match (ty, ftz || nan || xorsign_abs) {
        (Type::F32, false) => {
            let operands = d.r3(ty)?;
            d.emit(if max { Op::MaxF32(operands) } else { Op::MinF32(operands) });
            Ok(())
        }
        (Type::F32, true) => {
            d.emit_lanes(ty, 2, Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| float::choose_lanes(choice, a, b)))
        }
        (Type::F64, false) => {
            let f = scalar(move |[a, b, ..]| if max { float::max_f64(a, b) } else { float::min_f64(a, b) });
            d.emit_scalar(ty, &[ty; 2], f)
        }
        _ => Err(words.error("this combination of modifiers does not exist")),
    }
}

/// `abs` and `neg` on floating-point numbers
fn sign(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let negate = d.ins.opcode == "neg";
    let ftz = words.take("ftz");
    let ty = words.ty()?;
    words.finish()?;
    if let Some((format, packed)) = half(ty) {
        if ftz && format == Half::Bf16 {
            return Err(words.error("this combination of modifiers does not exist"));
        }
        let one = move |h: u16| {
            let h = if ftz { float16::flush_half(format, h) } else { h };
            if negate { float16::neg_half(format, h) } else { float16::abs_half(format, h) }
        };
        let f = unary(move |a| {
            let high = if packed { one((a >> 16) as u16) } else { 0 };
            u32::from(high) << 16 | u32::from(one(a as u16))
        });
        return d.emit_lanes(ty, 1, f);
    }
    match (ty, ftz) {
        (Type::F32, false) => {
            let operands: R2 = d.r2(ty)?;
            d.emit(if negate { Op::NegF32(operands) } else { Op::AbsF32(operands) });
            Ok(())
        }
        (Type::F32, true) => {
            let f: LaneFn = Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| {
                wide_map1(a, |x| {
                    let x = float::flush_f32(x);
                    if negate { float::neg_f32(x) } else { float::abs_f32(x) }
                })
            });
            d.emit_lanes(ty, 1, f)
        }
        (Type::F64, false) => {
            let f = scalar(move |[a, ..]| if negate { float::neg_f64(a) } else { float::abs_f64(a) });
            d.emit_scalar(ty, &[ty], f)
        }
        _ => Err(words.error("this combination of modifiers does not exist")),
    }
}

/// `copysign`
pub(super) fn copy_sign(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    match ty {
        Type::F32 => d.emit_lanes(ty, 2, binary(float::copysign_f32)),
        Type::F64 => d.emit_scalar(ty, &[ty; 2], scalar(|[a, b, ..]| float::copysign_f64(a, b))),
        _ => Err(words.error("type not supported here")),
    }
}

/// `testp`
pub(super) fn test(d: &mut Decoder<'_>) -> Decoded<()> {
    const CLASSES: [Class; 6] =
        [Class::Finite, Class::Infinite, Class::Number, Class::NotANumber, Class::Normal, Class::Subnormal];
    let mut words = d.words();
    let class = words
        .any(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        .map(|index| CLASSES[index])
        .ok_or_else(|| words.error("a class is missing"))?;
    let ty = words.ty()?;
    words.finish()?;
    let double = match ty {
        Type::F32 => false,
        Type::F64 => true,
        _ => return Err(words.error("type not supported here")),
    };
    let f = scalar(move |[a, ..]| {
        u64::from(if double { float::testp_f64(class, a) } else { float::testp_f32(class, a as u32) })
    });
    super::compare::emit_test(d, ty, f)
}
