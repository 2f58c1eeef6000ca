//! Decoding of `cvt` and `cvt.pack`-like forms.

use super::cold::{LaneFn, Place};
use super::context::{Decoded, Decoder, is_bits, is_signed};
use super::emit::{binary, place, scalar, unary};
use super::op::{Op, R2, R3, Slot};
use super::words::Words;
use crate::numerics::convert::{self, Float, Integer};
use crate::numerics::half::{self, Eight, Pack, pack_lanes};
use crate::numerics::{Lanes, Rounding};
use crate::ptx::ast::Type;

/// The modifiers between `cvt` and its types.
struct Head {
    rounding: Option<Rounding>,
    /// The rounding was written `.rni` and so on.
    integral: bool,
    relu: bool,
    satfinite: bool,
    ftz: bool,
    saturate: bool,
}

fn head(words: &mut Words<'_>) -> Head {
    const ROUNDINGS: [Rounding; 9] = [
        Rounding::Nearest,
        Rounding::Zero,
        Rounding::Down,
        Rounding::Up,
        Rounding::NearestAway,
        Rounding::Nearest,
        Rounding::Zero,
        Rounding::Down,
        Rounding::Up,
    ];
    let index = words.any(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]);
    let early = words.take("satfinite");
    let relu = words.take("relu");
    let satfinite = early || words.take("satfinite");
    let ftz = words.take("ftz");
    let saturate = words.take("sat");
    let integral = index.is_some_and(|index| index >= 5);
    Head { rounding: index.map(|index| ROUNDINGS[index]), integral, relu, satfinite, ftz, saturate }
}

/// `cvt`
pub(super) fn convert(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let head = head(&mut words);
    match words.peek() {
        Some("tf32") => return to_tf32(d, words, &head),
        Some("e4m3x2" | "e5m2x2") => return to_eight(d, words, &head),
        Some("f16x2" | "bf16x2") => return to_pair(d, words, &head),
        _ => {}
    }
    let to = words.ty()?;
    let from = words.ty()?;
    words.finish()?;
    d.arity(2)?;
    if head.satfinite || head.relu && !(matches!(to, Type::F16 | Type::Bf16) && from == Type::F32) {
        return Err(words.error("this combination of modifiers does not exist"));
    }
    let any_bits = is_bits(to) || is_bits(from);
    let packed = |ty| matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::Pred);
    if any_bits || packed(to) || packed(from) {
        return Err(words.error("a conversion has typed operands"));
    }
    let brain = to == Type::Bf16 || from == Type::Bf16;
    if brain && (to.bytes() == 1 || from.bytes() == 1) {
        return Err(words.error("there is no conversion between .bf16 and 8-bit integers"));
    }
    if brain && to != Type::F32 && from != Type::F32 {
        d.needs(90)?;
    }
    if let (Some(to), Some(from)) = (float(to), float(from)) {
        return between_floats(d, &words, &head, to, from);
    }
    match (float(to), float(from)) {
        (Some(target), None) => {
            let wanted = head.rounding.filter(|_| !head.integral);
            let rounding = wanted.ok_or_else(|| words.error("a rounding .rn, .rz, .rm or .rp is missing"))?;
            integer_to_float(d, &head, (to, target), from, rounding)
        }
        (None, Some(source)) => {
            let wanted = head.rounding.filter(|_| head.integral);
            let rounding = wanted.ok_or_else(|| words.error("a rounding .rni, .rzi, .rmi or .rpi is missing"))?;
            float_to_integer(d, &head, to, (from, source), rounding)
        }
        _ => {
            if head.rounding.is_some() || head.ftz {
                return Err(words.error("integer conversions do not round"));
            }
            between_integers(d, &head, to, from)
        }
    }
}

fn float(ty: Type) -> Option<Float> {
    Some(match ty {
        Type::F16 => Float::F16,
        Type::Bf16 => Float::Bf16,
        Type::F32 => Float::F32,
        Type::F64 => Float::F64,
        _ => return None,
    })
}

fn integer(ty: Type) -> Integer {
    Integer::new(8 * ty.bytes(), is_signed(ty))
}

/// Destination and source; integer registers may be wider than the types. The destination's own width comes along.
fn operands(d: &mut Decoder<'_>, to: Type, from: Type) -> Decoded<(Slot, Type, Slot)> {
    let (slot, declared) = d.dest_relaxed(d.operand(0)?, to)?;
    let mut source = d.source_relaxed(d.operand(1)?, from)?;
    // A narrow source may sit in a 64-bit register: its low word is what counts.
    if from.bytes() < 8
        && let crate::ptx::ast::Operand::Register(register) = d.operand(1)?
        && d.register_type(*register)?.bytes() == 8
    {
        let narrow = d.temporary(false)?;
        d.emit_helper(Op::Truncate(R2 { d: narrow, a: source }));
        source = narrow;
    }
    Ok((slot, declared, source))
}

/// The type that a result of type `ty` takes in a register of type `declared`: sign or zero extended to its width.
fn widened(ty: Type, declared: Type) -> u64 {
    // The mask of the bits that the register keeps.
    let bytes = declared.bytes().max(ty.bytes()).min(8);
    u64::MAX >> (64 - 8 * bytes)
}

fn emit(d: &mut Decoder<'_>, to: Slot, declared: Type, a: Slot, from: Type, f: super::cold::ScalarFn) -> Decoded<()> {
    let from = [place(a, from), Place::None, Place::None, Place::None];
    d.emit_map(f, [place(to, declared), Place::None], from)
}

fn between_integers(d: &mut Decoder<'_>, head: &Head, to: Type, from: Type) -> Decoded<()> {
    let (wide, narrow) = (integer(from), integer(to));
    if head.saturate && wide.min() >= narrow.min() && wide.max() <= narrow.max() {
        return Err(d.error(".sat is for types that cannot hold every value of the source"));
    }
    let (slot, declared, a) = operands(d, to, from)?;
    let plain = !head.saturate && declared.bytes() == to.bytes();
    let pair = R2 { d: slot, a };
    let op = match (to.bytes(), from.bytes()) {
        (8, 4) if plain && is_signed(from) => Some(Op::SignExtend(pair)),
        (8, 4) if plain => Some(Op::ZeroExtend(pair)),
        (4, 8) if plain => Some(Op::Truncate(pair)),
        (4, 4) if plain => Some(Op::Mov32(pair)),
        (8, 8) if plain => Some(Op::Mov64(pair)),
        _ => None,
    };
    if let Some(op) = op {
        d.emit(op);
        return Ok(());
    }
    let (target, source, mask, saturate) = (integer(to), integer(from), widened(to, declared), head.saturate);
    let f = scalar(move |[a, ..]| convert::integer_to_integer(source, target, a, saturate) & mask);
    emit(d, slot, declared, a, from, f)
}

fn integer_to_float(
    d: &mut Decoder<'_>,
    head: &Head,
    (to, target): (Type, Float),
    from: Type,
    rounding: Rounding,
) -> Decoded<()> {
    let (slot, declared, a) = operands(d, to, from)?;
    let simple = rounding == Rounding::Nearest && to == Type::F32 && !head.saturate;
    match from {
        Type::U32 if simple => d.emit(Op::FloatU32(R2 { d: slot, a })),
        Type::S32 if simple => d.emit(Op::FloatS32(R2 { d: slot, a })),
        _ => {
            let (source, saturate) = (integer(from), head.saturate);
            let f = scalar(move |[a, ..]| {
                let value = convert::integer_to_float(source, target, a, rounding);
                if saturate { target.saturate(value) } else { value }
            });
            return emit(d, slot, declared, a, from, f);
        }
    }
    Ok(())
}

fn float_to_integer(
    d: &mut Decoder<'_>,
    head: &Head,
    to: Type,
    (from, source): (Type, Float),
    rounding: Rounding,
) -> Decoded<()> {
    let (slot, declared, a) = operands(d, to, from)?;
    let ftz = head.ftz;
    if from == Type::F32 && declared.bytes() == 4 && matches!(to, Type::S32 | Type::U32) {
        let signed = to == Type::S32;
        let f: LaneFn =
            Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| convert::integer_lanes(signed, ftz, rounding, a));
        return d.emit_lane_fn(f, slot, [a, 0, 0], 1);
    }
    let (target, mask) = (integer(to), widened(to, declared));
    let f = scalar(move |[a, ..]| {
        let a = if ftz { source.flush(a) } else { a };
        convert::float_to_integer(source, target, a, rounding) & mask
    });
    emit(d, slot, declared, a, from, f)
}

fn between_floats(d: &mut Decoder<'_>, words: &Words<'_>, head: &Head, to: Float, from: Float) -> Decoded<()> {
    let narrower = to.format() != from.format() && !widens(from, to);
    if to == from {
        if head.rounding.is_some() && !head.integral {
            return Err(words.error("rounding to an integral value is written .rni, .rzi, .rmi or .rpi"));
        }
    } else if head.integral || (narrower && head.rounding.is_none()) || (!narrower && head.rounding.is_some()) {
        return Err(words.error("the rounding does not fit the types"));
    }
    if head.ftz && to != Float::F32 && from != Float::F32 {
        return Err(words.error(".ftz needs .f32"));
    }
    let (to_ty, from_ty) = (ty_of(to), ty_of(from));
    let (slot, a) = (d.dest(0, to_ty)?, d.source(1, from_ty)?);
    let pair = R2 { d: slot, a };
    let plain = !head.ftz && !head.saturate && !head.relu;
    let nearest = head.rounding == Some(Rounding::Nearest);
    let op = match (to, from) {
        (Float::F32, Float::F16) if plain => Some(Op::WidenF16(pair)),
        (Float::F32, Float::Bf16) if plain => Some(Op::WidenBf16(pair)),
        (Float::F16, Float::F32) if plain && nearest => Some(Op::NarrowF16(pair)),
        (Float::Bf16, Float::F32) if plain && nearest => Some(Op::NarrowBf16(pair)),
        _ => None,
    };
    if let Some(op) = op {
        d.emit(op);
        return Ok(());
    }
    let (rounding, integral) = (head.rounding, head.integral);
    let (ftz, saturate, relu) = (head.ftz, head.saturate, head.relu);
    let f = scalar(move |[a, ..]| {
        let a = if ftz { from.flush(a) } else { a };
        let value = match (integral, rounding) {
            (true, Some(rounding)) => convert::round_to_integral(from, a, rounding),
            (_, rounding) => convert::float_to_float(from, to, a, rounding.unwrap_or(Rounding::Nearest)),
        };
        let value = if ftz { to.flush(value) } else { value };
        let value = if relu { half::relu_half(value as u16).into() } else { value };
        if saturate { to.saturate(value) } else { value }
    });
    emit(d, slot, to_ty, a, from_ty, f)
}

fn ty_of(float: Float) -> Type {
    match float {
        Float::F16 => Type::F16,
        Float::Bf16 => Type::Bf16,
        Float::F32 => Type::F32,
        Float::F64 => Type::F64,
    }
}

/// Every value of `from` is a value of `to`.
fn widens(from: Float, to: Float) -> bool {
    matches!((from, to), (Float::F16 | Float::Bf16, Float::F32 | Float::F64) | (Float::F32, Float::F64))
}

/// `cvt.rna.tf32.f32` and kin
fn to_tf32(d: &mut Decoder<'_>, mut words: Words<'_>, head: &Head) -> Decoded<()> {
    words.expect("tf32")?;
    words.expect("f32")?;
    words.finish()?;
    let satfinite = head.satfinite;
    if head.ftz || head.saturate || head.integral || (head.relu && head.rounding == Some(Rounding::NearestAway)) {
        return Err(words.error("this combination of modifiers does not exist"));
    }
    let round: fn(u32) -> u32 = match head.rounding {
        Some(Rounding::NearestAway) => half::f32_to_tf32_rna,
        Some(Rounding::Nearest) if d.target().capability >= 90 => half::f32_to_tf32_rn,
        Some(Rounding::Zero) if d.target().capability >= 90 => half::f32_to_tf32_rz,
        _ => return Err(words.error("a rounding that the target has is missing")),
    };
    if satfinite {
        return Err(words.error(".satfinite is not supported for .tf32"));
    }
    let relu = head.relu;
    let f = unary(move |a| {
        let value = round(a);
        if relu && value & 0x8000_0000 != 0 { 0 } else { value }
    });
    d.arity(2)?;
    let (to, a) = (d.dest(0, Type::B32)?, d.source(1, Type::F32)?);
    d.emit_lane_fn(f, to, [a, 0, 0], 1)
}

/// `cvt.rn.satfinite.e4m3x2.f32` and kin
fn to_eight(d: &mut Decoder<'_>, mut words: Words<'_>, head: &Head) -> Decoded<()> {
    let format = if words.take("e4m3x2") { Eight::E4m3 } else { Eight::E5m2 };
    words.any(&["e5m2x2"]);
    let packed = words.take("f16x2");
    if !packed {
        words.expect("f32")?;
    }
    words.finish()?;
    need_89(d, &words)?;
    let wrong = head.rounding != Some(Rounding::Nearest) || !head.satfinite || head.ftz || head.saturate;
    if wrong || head.integral {
        return Err(words.error("this combination of modifiers does not exist"));
    }
    let relu = head.relu;
    d.arity(if packed { 2 } else { 3 })?;
    let to = d.dest(0, Type::B16)?;
    if packed {
        let a = d.source(1, Type::F16x2)?;
        let f = unary(move |a| half::pack_eight_from_f16x2(a, format, relu).into());
        return d.emit_lane_fn(f, to, [a, 0, 0], 1);
    }
    let (a, b) = (d.source(1, Type::F32)?, d.source(2, Type::F32)?);
    let f = binary(move |a, b| half::pack_eight(a, b, format, relu).into());
    d.emit_lane_fn(f, to, [a, b, 0], 2)
}

fn need_89(d: &Decoder<'_>, words: &Words<'_>) -> Decoded<()> {
    if d.target().capability >= 89 { Ok(()) } else { Err(words.error("8-bit floats need sm_89")) }
}

/// `cvt.rn.f16x2.f32 d, a, b`, `cvt.rn.bf16x2.f32 d, a, b`, `cvt.rn.f16x2.e4m3x2 d, a`
fn to_pair(d: &mut Decoder<'_>, mut words: Words<'_>, head: &Head) -> Decoded<()> {
    let bf16 = words.take("bf16x2");
    if !bf16 {
        words.expect("f16x2")?;
    }
    let ty = if bf16 { Type::Bf16x2 } else { Type::F16x2 };
    let rounding = head.rounding.filter(|rounding| matches!(rounding, Rounding::Nearest | Rounding::Zero));
    let rounding = rounding.filter(|_| !head.integral);
    let rounding = rounding.ok_or_else(|| words.error("a rounding .rn or .rz is missing"))?;
    if head.ftz || head.saturate {
        return Err(words.error("this combination of modifiers does not exist"));
    }
    if let (false, Some(index)) = (bf16, words.any(&["e4m3x2", "e5m2x2"])) {
        words.finish()?;
        need_89(d, &words)?;
        if rounding != Rounding::Nearest || head.satfinite {
            return Err(words.error("this combination of modifiers does not exist"));
        }
        d.arity(2)?;
        let (to, a) = (d.dest(0, ty)?, d.source(1, Type::B16)?);
        let (format, relu) = ([Eight::E4m3, Eight::E5m2][index], head.relu);
        let f = unary(move |a| half::unpack_eight(a as u16, format, relu));
        return d.emit_lane_fn(f, to, [a, 0, 0], 1);
    }
    words.expect("f32")?;
    words.finish()?;
    d.arity(3)?;
    let operands = R3 { d: d.dest(0, ty)?, a: d.source(1, Type::F32)?, b: d.source(2, Type::F32)? };
    if rounding == Rounding::Nearest && !head.relu && !head.satfinite {
        d.emit(if bf16 { Op::NarrowBf16x2(operands) } else { Op::NarrowF16x2(operands) });
        return Ok(());
    }
    let how = Pack { bf16, rounding, relu: head.relu, satfinite: head.satfinite };
    let f: LaneFn = Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| pack_lanes(a, b, how));
    d.emit_lane_fn(f, operands.d, [operands.a, operands.b, 0], 2)
}
