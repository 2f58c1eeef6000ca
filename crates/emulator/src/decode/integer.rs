//! Decoding of integer arithmetic.

use super::cold::{Place, ScalarFn};
use super::context::{Decoded, Decoder, is_signed};
use super::emit::{Pipe, binary, place, scalar, ternary};
use super::op::{CARRY, Op, R3, R4};
use super::words::Words;
use crate::numerics::integer;
use crate::ptx::ast::Type;

/// An integer type with a sign, 16 to 64 bits; `.b` types are refused.
fn arithmetic_type(words: &mut Words<'_>) -> Decoded<Type> {
    let ty = words.ty()?;
    use Type::{S16, S32, S64, U16, U32, U64};
    if matches!(ty, U16 | U32 | U64 | S16 | S32 | S64) {
        Ok(ty)
    } else {
        Err(words.error(&format!("type .{} is not supported here", ty.name())))
    }
}

/// Value of the low `bytes` of a register, sign extended for signed types.
fn extend(raw: u64, ty: Type) -> i64 {
    let unused = 64 - 8 * ty.bytes();
    if is_signed(ty) { (raw << unused) as i64 >> unused } else { (raw << unused >> unused) as i64 }
}

/// `add` and `sub` on integers, without carry.
pub(super) fn add_sub(d: &mut Decoder<'_>, words: &mut Words<'_>) -> Decoded<()> {
    let subtract = d.ins.opcode == "sub";
    if words.take("cc") {
        return carry(d, words, false, true);
    }
    let saturate = words.take("sat");
    let ty = arithmetic_type(words)?;
    words.finish()?;
    if saturate {
        if ty != Type::S32 {
            return Err(words.error(".sat is for .s32"));
        }
        let f = if subtract { binary(integer::sub_sat_s32) } else { binary(integer::add_sat_s32) };
        return d.emit_lanes(ty, 2, f);
    }
    match ty.bytes() {
        2 if subtract => d.emit_lanes(ty, 2, binary(|a, b| a.wrapping_sub(b) & 0xFFFF)),
        2 => d.emit_lanes(ty, 2, binary(|a, b| a.wrapping_add(b) & 0xFFFF)),
        4 => {
            let operands = d.r3(ty)?;
            d.emit(if subtract { Op::Sub32(operands) } else { Op::Add32(operands) });
            Ok(())
        }
        _ => {
            let operands = d.r3(ty)?;
            d.emit(if subtract { Op::Sub64(operands) } else { Op::Add64(operands) });
            Ok(())
        }
    }
}

/// `add.cc`, `addc{.cc}`, `sub.cc`, `subc{.cc}`: carry in and out through a predicate of our own.
pub(super) fn carry(d: &mut Decoder<'_>, words: &mut Words<'_>, takes: bool, gives: bool) -> Decoded<()> {
    let subtract = d.ins.opcode.starts_with("sub");
    let ty = words.ty()?;
    words.finish()?;
    if !matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64) {
        return Err(words.error("carry arithmetic has 32 or 64 bits"));
    }
    let operands = d.r3(ty)?;
    let mask = if ty.bytes() == 8 { u64::MAX } else { u64::from(u32::MAX) };
    let f: ScalarFn = Box::new(move |[a, b, carry, _]| {
        // A borrow is the complement of a carry, so a subtraction adds the complement and one less.
        let (b, carry) = if subtract { (!b & mask, 1 - carry) } else { (b, carry) };
        let sum = u128::from(a) + u128::from(b) + u128::from(carry);
        let out = u64::from(sum > u128::from(mask));
        [sum as u64 & mask, if subtract { 1 - out } else { out }]
    });
    let to = [place(operands.d, ty), if gives { Place::Pred(CARRY) } else { Place::None }];
    let input = if takes { Place::Pred(CARRY) } else { Place::None };
    let from = [place(operands.a, ty), place(operands.b, ty), input, Place::None];
    d.emit_map(f, to, from)
}

/// `addc` and `subc`
pub(super) fn with_carry(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let gives = words.take("cc");
    carry(d, &mut words, true, gives)
}

/// `mul` and `mad` on integers.
pub(super) fn multiply(d: &mut Decoder<'_>, words: &mut Words<'_>) -> Decoded<()> {
    let part = words.any(&["lo", "hi", "wide"]).ok_or_else(|| words.error("one of .lo, .hi and .wide is missing"))?;
    let saturate = words.take("sat");
    let ty = arithmetic_type(words)?;
    words.finish()?;
    let add = d.ins.opcode == "mad";
    if saturate {
        if !add || part != 1 || ty != Type::S32 {
            return Err(words.error(".sat is for mad.hi.s32"));
        }
        return d.emit_lanes(ty, 3, ternary(integer::mad_hi_sat_s32));
    }
    match (part, ty.bytes(), add) {
        (0, 4, false) => Op::MulLo32(d.r3(ty)?),
        (0, 4, true) => Op::MadLo32(d.r4(ty)?),
        (0, 8, false) => Op::MulLo64(d.r3(ty)?),
        (0, 8, true) => Op::MadLo64(d.r4(ty)?),
        (2, 4, _) => {
            d.arity(if add { 4 } else { 3 })?;
            let wide = if is_signed(ty) { Type::S64 } else { Type::U64 };
            let (to, a, b) = (d.dest(0, wide)?, d.source(1, ty)?, d.source(2, ty)?);
            match (add, is_signed(ty)) {
                (false, false) => Op::MulWideU(R3 { d: to, a, b }),
                (false, true) => Op::MulWideS(R3 { d: to, a, b }),
                (true, signed) => {
                    let operands = R4 { d: to, a, b, c: d.source(3, wide)? };
                    if signed { Op::MadWideS(operands) } else { Op::MadWideU(operands) }
                }
            }
        }
        (2, 8, _) => return Err(words.error(".wide needs operands of 16 or 32 bits")),
        (2, _, _) => {
            let wide = if is_signed(ty) { Type::S32 } else { Type::U32 };
            let f = scalar(move |[a, b, c, _]| {
                extend(a, ty).wrapping_mul(extend(b, ty)).wrapping_add(c as i64) as u64 & 0xFFFF_FFFF
            });
            return d.emit_scalar(wide, &[ty, ty, wide][..if add { 3 } else { 2 }], f);
        }
        (_, 2, _) => {
            let f = ternary(move |a, b, c| {
                let product = extend(a.into(), ty).wrapping_mul(extend(b.into(), ty));
                let product = if part == 1 { product >> 16 } else { product };
                (product as u32).wrapping_add(if add { c } else { 0 }) & 0xFFFF
            });
            return d.emit_lanes(ty, if add { 3 } else { 2 }, f);
        }
        (_, 4, _) => {
            let signed = is_signed(ty);
            let high = move |a, b| if signed { integer::mul_hi_s32(a, b) } else { integer::mul_hi_u32(a, b) };
            return if add {
                d.emit_lanes(ty, 3, ternary(move |a, b, c: u32| high(a, b).wrapping_add(c)))
            } else {
                d.emit_lanes(ty, 2, binary(high))
            };
        }
        _ => {
            let signed = is_signed(ty);
            let f = scalar(move |[a, b, c, _]| {
                let high = if signed { integer::mul_hi_s64(a, b) } else { integer::mul_hi_u64(a, b) };
                high.wrapping_add(c)
            });
            return d.emit_scalar(ty, &[ty; 3][..if add { 3 } else { 2 }], f);
        }
    }
    .pipe(d)
}

/// `mul24` and `mad24`, low part
pub(super) fn multiply24(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("lo")?;
    let ty = arithmetic_type(&mut words)?;
    words.finish()?;
    let signed = match ty {
        Type::S32 => true,
        Type::U32 => false,
        _ => return Err(words.error("24-bit products have .s32 or .u32")),
    };
    let product = move |a, b| if signed { integer::mul24_lo_s32(a, b) } else { integer::mul24_lo_u32(a, b) };
    if d.ins.opcode == "mad24" {
        d.emit_lanes(ty, 3, ternary(move |a, b, c: u32| product(a, b).wrapping_add(c)))
    } else {
        d.emit_lanes(ty, 2, binary(product))
    }
}

/// `div` and `rem` on integers.
pub(super) fn divide(d: &mut Decoder<'_>, words: &mut Words<'_>) -> Decoded<()> {
    let remainder = d.ins.opcode == "rem";
    let ty = arithmetic_type(words)?;
    words.finish()?;
    match (ty, remainder) {
        (Type::U32, false) => d.emit_lanes(ty, 2, binary(integer::div_u32)),
        (Type::U32, true) => d.emit_lanes(ty, 2, binary(integer::rem_u32)),
        (Type::S32, false) => d.emit_lanes(ty, 2, binary(integer::div_s32)),
        (Type::S32, true) => d.emit_lanes(ty, 2, binary(integer::rem_s32)),
        (Type::U64, false) => d.emit_scalar(ty, &[ty; 2], scalar(|[a, b, ..]| integer::div_u64(a, b))),
        (Type::U64, true) => d.emit_scalar(ty, &[ty; 2], scalar(|[a, b, ..]| integer::rem_u64(a, b))),
        (Type::S64, false) => d.emit_scalar(ty, &[ty; 2], scalar(|[a, b, ..]| integer::div_s64(a, b))),
        (Type::S64, true) => d.emit_scalar(ty, &[ty; 2], scalar(|[a, b, ..]| integer::rem_s64(a, b))),
        _ => {
            let f = binary(move |a, b| {
                let (a, b) = (extend(a.into(), ty) as u32, extend(b.into(), ty) as u32);
                let value = match (is_signed(ty), remainder) {
                    (false, false) => integer::div_u32(a, b),
                    (false, true) => integer::rem_u32(a, b),
                    (true, false) => integer::div_s32(a, b),
                    (true, true) => integer::rem_s32(a, b),
                };
                value & 0xFFFF
            });
            d.emit_lanes(ty, 2, f)
        }
    }
}

/// `min` and `max` on integers.
pub(super) fn choose(d: &mut Decoder<'_>, words: &mut Words<'_>) -> Decoded<()> {
    let max = d.ins.opcode == "max";
    let ty = arithmetic_type(words)?;
    words.finish()?;
    match (ty, max) {
        (Type::U32, false) => Op::MinU32(d.r3(ty)?).pipe(d),
        (Type::U32, true) => Op::MaxU32(d.r3(ty)?).pipe(d),
        (Type::S32, false) => Op::MinS32(d.r3(ty)?).pipe(d),
        (Type::S32, true) => Op::MaxS32(d.r3(ty)?).pipe(d),
        (Type::U64, _) => d.emit_scalar(ty, &[ty; 2], scalar(move |[a, b, ..]| if max { a.max(b) } else { a.min(b) })),
        _ => {
            let f = scalar(move |[a, b, ..]| {
                let (x, y) = (extend(a, ty), extend(b, ty));
                if (x > y) == max { a } else { b }
            });
            d.emit_scalar(ty, &[ty; 2], f)
        }
    }
}

/// `abs` and `neg` on integers.
pub(super) fn sign(d: &mut Decoder<'_>, words: &mut Words<'_>) -> Decoded<()> {
    let negate = d.ins.opcode == "neg";
    let ty = arithmetic_type(words)?;
    words.finish()?;
    if !is_signed(ty) {
        return Err(words.error("a signed type must stand here"));
    }
    let mask = u64::MAX >> (64 - 8 * ty.bytes());
    let f = scalar(move |[a, ..]| {
        let value = extend(a, ty);
        (if negate { value.wrapping_neg() } else { value.wrapping_abs() }) as u64 & mask
    });
    d.emit_scalar(ty, &[ty], f)
}

/// `sad`
pub(super) fn absolute_difference(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = arithmetic_type(&mut words)?;
    words.finish()?;
    match ty {
        Type::U32 => d.emit_lanes(ty, 3, ternary(integer::sad_u32)),
        Type::S32 => d.emit_lanes(ty, 3, ternary(integer::sad_s32)),
        _ => {
            let mask = u64::MAX >> (64 - 8 * ty.bytes());
            let f = scalar(move |[a, b, c, _]| {
                let distance = if is_signed(ty) { extend(a, ty).abs_diff(extend(b, ty)) } else { a.abs_diff(b) };
                c.wrapping_add(distance) & mask
            });
            d.emit_scalar(ty, &[ty; 3], f)
        }
    }
}

/// `dp4a` and `dp2a`
pub(super) fn dot(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let high = if d.ins.opcode == "dp2a" {
        let high = words.take("hi");
        if !high {
            words.expect("lo")?;
        }
        Some(high)
    } else {
        None
    };
    let (a, b) = (words.ty()?, words.ty()?);
    words.finish()?;
    if ![a, b].iter().all(|ty| matches!(ty, Type::U32 | Type::S32)) {
        return Err(words.error("dot products have .u32 or .s32"));
    }
    let (a, b) = (is_signed(a), is_signed(b));
    let f = match high {
        None => ternary(move |x, y, z| integer::dp4a(x, y, z, a, b)),
        Some(high) => ternary(move |x, y, z| integer::dp2a(x, y, z, a, b, high)),
    };
    d.emit_lanes(Type::U32, 3, f)
}
