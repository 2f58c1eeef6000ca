//! Decoding of logic, shifts, permutes and bit fields.

use super::context::{Decoded, Decoder, is_bits, is_integer, is_signed};
use super::emit::{Pipe, binary, scalar, ternary, unary};
use super::op::{Op, PredOp, R3, R4};
use crate::numerics::integer::{self, Funnel, Permute};
use crate::ptx::ast::Type;

/// `and`, `or`, `xor`, `not`, `cnot`
pub(super) fn logic(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    let opcode = d.ins.opcode.as_str();
    if ty == Type::Pred {
        return predicate_logic(d);
    }
    if !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
        return Err(words.error("logic works on .pred, .b16, .b32 and .b64"));
    }
    let wide = ty == Type::B64;
    match (opcode, wide) {
        ("and", false) => Op::And32(d.r3(ty)?).pipe(d),
        ("or", false) => Op::Or32(d.r3(ty)?).pipe(d),
        ("xor", false) => Op::Xor32(d.r3(ty)?).pipe(d),
        ("and", true) => Op::And64(d.r3(ty)?).pipe(d),
        ("or", true) => Op::Or64(d.r3(ty)?).pipe(d),
        ("xor", true) => Op::Xor64(d.r3(ty)?).pipe(d),
        ("not", false) => {
            let mask = if ty == Type::B16 { 0xFFFF } else { u32::MAX };
            d.emit_lanes(ty, 1, unary(move |a| !a & mask))
        }
        ("not", true) => d.emit_scalar(ty, &[ty], scalar(|[a, ..]| !a)),
        _ => d.emit_scalar(ty, &[ty], scalar(|[a, ..]| u64::from(a == 0))),
    }
}

fn predicate_logic(d: &mut Decoder<'_>) -> Decoded<()> {
    let op = match d.ins.opcode.as_str() {
        "and" => PredOp::And,
        "or" => PredOp::Or,
        "xor" => PredOp::Xor,
        "not" => PredOp::Not,
        _ => return Err(d.error("not for predicates")),
    };
    let unary = op == PredOp::Not;
    d.arity(if unary { 2 } else { 3 })?;
    let to = d.pred_dest(d.operand(0)?)?;
    let a = d.pred_source(1, false)?;
    let b = if unary { a } else { d.pred_source(2, false)? };
    d.emit(Op::Logic(op, to, a, b));
    Ok(())
}

/// `shl` and `shr`: the amount is always 32 bits.
pub(super) fn shift(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    d.arity(3)?;
    let left = d.ins.opcode == "shl";
    if !is_integer(ty) || ty.bytes() == 1 || (left && !is_bits(ty)) {
        return Err(words.error("type not supported here"));
    }
    let to = d.dest(0, ty)?;
    let a = d.source(1, ty)?;
    let b = d.source(2, Type::U32)?;
    let operands = R3 { d: to, a, b };
    let signed = is_signed(ty);
    match (ty.bytes(), left, signed) {
        (4, true, _) => Op::Shl32(operands).pipe(d),
        (4, false, false) => Op::ShrU32(operands).pipe(d),
        (4, false, true) => Op::ShrS32(operands).pipe(d),
        (8, true, _) => Op::Shl64(operands).pipe(d),
        (8, false, false) => Op::ShrU64(operands).pipe(d),
        (8, false, true) => Op::ShrS64(operands).pipe(d),
        _ => {
            let f = binary(move |a, amount| {
                let a = a as u16;
                u32::from(match (left, signed) {
                    (true, _) => integer::shl16(a, amount),
                    (false, false) => integer::shr_u16(a, amount),
                    (false, true) => integer::shr_s16(a, amount),
                })
            });
            d.emit_lane_fn(f, to, [a, b, 0], 2)
        }
    }
}

/// `lop3.b32`
pub(super) fn lop3(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("b32")?;
    words.finish()?;
    d.arity(5)?;
    let ty = Type::B32;
    let operands = R4 { d: d.dest(0, ty)?, a: d.source(1, ty)?, b: d.source(2, ty)?, c: d.source(3, ty)? };
    let table = u8::try_from(d.literal(4)?).map_err(|_| d.error("the truth table has 8 bits"))?;
    Op::Lop3(operands, table).pipe(d)
}

/// `prmt.b32`
pub(super) fn permute(d: &mut Decoder<'_>) -> Decoded<()> {
    const MODES: [Permute; 6] = [
        Permute::Forward4,
        Permute::Backward4,
        Permute::Replicate8,
        Permute::EdgeClampLeft,
        Permute::EdgeClampRight,
        Permute::Replicate16,
    ];
    let mut words = d.words();
    words.expect("b32")?;
    let mode = words.any(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]).map(|index| MODES[index]);
    words.finish()?;
    match mode {
        None => Op::Prmt(d.r4(Type::B32)?).pipe(d),
        Some(mode) => d.emit_lanes(Type::B32, 3, ternary(move |a, b, c| integer::prmt(a, b, c, mode))),
    }
}

/// `shf.l` and `shf.r`
pub(super) fn funnel(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let left = words.take("l");
    if !left {
        words.expect("r")?;
    }
    let clamp = words.take("clamp");
    if !clamp {
        words.expect("wrap")?;
    }
    words.expect("b32")?;
    words.finish()?;
    let mode = if clamp { Funnel::Clamp } else { Funnel::Wrap };
    let f = ternary(
        move |lo, hi, amount| {
            if left { integer::shf_l(lo, hi, amount, mode) } else { integer::shf_r(lo, hi, amount, mode) }
        },
    );
    d.emit_lanes(Type::B32, 3, f)
}

/// `bfe`, `bfi`, `bmsk`
pub(super) fn field(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let insert = d.ins.opcode == "bfi";
    let ty = words.ty()?;
    words.finish()?;
    let word = Type::U32;
    match (insert, ty) {
        (false, Type::U32) => d.emit_lanes(ty, 3, ternary(integer::bfe_u32)),
        (false, Type::S32) => d.emit_lanes(ty, 3, ternary(integer::bfe_s32)),
        (false, Type::U64) => {
            d.emit_scalar(ty, &[ty, word, word], scalar(|[a, p, l, _]| integer::bfe_u64(a, p as u32, l as u32)))
        }
        (false, Type::S64) => {
            d.emit_scalar(ty, &[ty, word, word], scalar(|[a, p, l, _]| integer::bfe_s64(a, p as u32, l as u32)))
        }
        (true, Type::B32) => {
            let f = scalar(|[a, b, p, l]| integer::bfi32(a as u32, b as u32, p as u32, l as u32).into());
            d.emit_scalar(ty, &[ty, ty, word, word], f)
        }
        (true, Type::B64) => {
            let f = scalar(|[a, b, p, l]| integer::bfi64(a, b, p as u32, l as u32));
            d.emit_scalar(ty, &[ty, ty, word, word], f)
        }
        _ => Err(words.error("type not supported here")),
    }
}

/// `bmsk`
pub(super) fn mask(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let clamp = words.take("clamp");
    if !clamp {
        words.expect("wrap")?;
    }
    words.expect("b32")?;
    words.finish()?;
    d.emit_lanes(Type::U32, 2, if clamp { binary(integer::bmsk_clamp) } else { binary(integer::bmsk_wrap) })
}

/// `brev`, `popc`, `clz`
pub(super) fn bits(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    match (d.ins.opcode.as_str(), ty) {
        ("brev", Type::B32) => d.emit_lanes(ty, 1, unary(u32::reverse_bits)),
        ("brev", Type::B64) => d.emit_scalar(ty, &[ty], scalar(|[a, ..]| a.reverse_bits())),
        ("popc", Type::B32) => d.emit_lanes(ty, 1, unary(u32::count_ones)),
        ("popc", Type::B64) => d.emit_scalar(Type::U32, &[ty], scalar(|[a, ..]| a.count_ones().into())),
        ("clz", Type::B32) => d.emit_lanes(ty, 1, unary(u32::leading_zeros)),
        ("clz", Type::B64) => d.emit_scalar(Type::U32, &[ty], scalar(|[a, ..]| a.leading_zeros().into())),
        _ => Err(words.error("type not supported here")),
    }
}

/// `bfind`
pub(super) fn find(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let amount = words.take("shiftamt");
    let ty = words.ty()?;
    words.finish()?;
    match ty {
        Type::U32 => d.emit_lanes(ty, 1, unary(move |a| integer::bfind_u32(a, amount))),
        Type::S32 => d.emit_lanes(ty, 1, unary(move |a| integer::bfind_s32(a, amount))),
        Type::U64 => d.emit_scalar(Type::U32, &[ty], scalar(move |[a, ..]| integer::bfind_u64(a, amount).into())),
        Type::S64 => d.emit_scalar(Type::U32, &[ty], scalar(move |[a, ..]| integer::bfind_s64(a, amount).into())),
        _ => Err(words.error("type not supported here")),
    }
}

/// `fns.b32`
pub(super) fn nth_set(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("b32")?;
    words.finish()?;
    d.emit_lanes(Type::B32, 3, ternary(integer::fns))
}

/// `szext`
pub(super) fn extend_bits(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let wrap = words.take("wrap");
    if !wrap {
        words.expect("clamp")?;
    }
    let ty = words.ty()?;
    words.finish()?;
    match ty {
        Type::U32 => d.emit_lanes(ty, 2, binary(move |a, n| integer::szext_u32(a, n, wrap))),
        Type::S32 => d.emit_lanes(ty, 2, binary(move |a, n| integer::szext_s32(a, n, wrap))),
        _ => Err(words.error("type not supported here")),
    }
}
