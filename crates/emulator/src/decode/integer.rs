//! Decoding of integer arithmetic, shifts, logic and bit fields.

use super::cold::{Cold, LaneFn, Map, Place, ScalarFn, TestFn, elementwise_class};
use super::context::{Decoded, Decoder, is_integer, is_signed};
use super::op::{CARRY, Op, Pred, PredOp, R2, R3, R4, Slot};
use super::words::Words;
use crate::counters::Class;
use crate::numerics::integer::{self, Funnel, Permute};
use crate::numerics::{Lanes, map1, map2, map3};
use crate::ptx::ast::{Operand, Type};

/// One source.
pub(super) fn unary(f: impl Fn(u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, _: &Lanes, _: &Lanes| map1(a, &f))
}

/// Two sources.
pub(super) fn binary(f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, b: &Lanes, _: &Lanes| map2(a, b, &f))
}

/// Three sources.
pub(super) fn ternary(f: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static) -> LaneFn {
    Box::new(move |a: &Lanes, b: &Lanes, c: &Lanes| map3(a, b, c, &f))
}

/// An operation of one result on lanes of up to 64 bits.
pub(super) fn scalar(f: impl Fn([u64; 4]) -> u64 + Send + Sync + 'static) -> ScalarFn {
    Box::new(move |operands| [f(operands), 0])
}

/// The place of a value of that type in a slot.
pub(super) fn place(slot: Slot, ty: Type) -> Place {
    match ty.bytes() {
        8 => Place::Double(slot),
        4 => Place::Word(slot),
        _ => Place::Half(slot),
    }
}

impl<'a> Decoder<'a> {
    fn elementwise_class(&self) -> Class {
        elementwise_class(&self.ins.opcode, self.words().last())
    }

    /// Emit a function of whole 32-bit registers.
    pub(super) fn emit_lane_fn(&mut self, f: LaneFn, d: Slot, sources: [Slot; 3], count: u8) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Lanes { f, d, sources, count, class })
    }

    /// Emit a function of single lanes.
    pub(super) fn emit_map(&mut self, f: ScalarFn, to: [Place; 2], from: [Place; 4]) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Map(Map { f, to, from, class }))
    }

    /// Emit a comparison of whole 32-bit registers.
    pub(super) fn emit_test_fn(&mut self, f: TestFn, d: Pred, a: Slot, b: Slot) -> Decoded<()> {
        let class = self.elementwise_class();
        self.emit_cold(Cold::Test { f, d, a, b, class })
    }

    /// Emit an operation on whole 32-bit registers: destination first, then the sources, all of one type.
    pub(super) fn emit_lanes(&mut self, ty: Type, sources: usize, f: LaneFn) -> Decoded<()> {
        self.arity(sources + 1)?;
        let d = self.dest(0, ty)?;
        let mut slots = [0; 3];
        for (index, slot) in slots.iter_mut().enumerate().take(sources) {
            *slot = self.source(index + 1, ty)?;
        }
        self.emit_lane_fn(f, d, slots, sources as u8)
    }

    /// Emit an operation lane by lane: the types of the destination and of the sources.
    pub(super) fn emit_scalar(&mut self, to: Type, from: &[Type], f: ScalarFn) -> Decoded<()> {
        self.arity(from.len() + 1)?;
        let d = self.dest(0, to)?;
        let mut places = [Place::None; 4];
        for (index, (slot, ty)) in places.iter_mut().zip(from).enumerate() {
            *slot = place(self.source(index + 1, *ty)?, *ty);
        }
        self.emit_map(f, [place(d, to), Place::None], places)
    }

    /// Destination and one source of a type.
    pub(super) fn r2(&mut self, ty: Type) -> Decoded<R2> {
        self.arity(2)?;
        Ok(R2 { d: self.dest(0, ty)?, a: self.source(1, ty)? })
    }

    /// Destination and two sources of a type.
    pub(super) fn r3(&mut self, ty: Type) -> Decoded<R3> {
        self.arity(3)?;
        Ok(R3 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)? })
    }

    /// Destination and three sources of a type.
    pub(super) fn r4(&mut self, ty: Type) -> Decoded<R4> {
        self.arity(4)?;
        Ok(R4 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? })
    }
}

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

/// Hands a finished operation to the decoder.
trait Pipe {
    fn pipe(self, d: &mut Decoder<'_>) -> Decoded<()>;
}

impl Pipe for Op {
    fn pipe(self, d: &mut Decoder<'_>) -> Decoded<()> {
        d.emit(self);
        Ok(())
    }
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
    let product =
        move |a, b| if signed { integer::mul24_lo_s32(a, b) } else { integer::mul24_lo_u32(a, b) };
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
        (Type::U64, _) => {
            d.emit_scalar(ty, &[ty; 2], scalar(move |[a, b, ..]| if max { a.max(b) } else { a.min(b) }))
        }
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
    if !is_integer(ty) || ty.bytes() == 1 || (left && !super::context::is_bits(ty)) {
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
    let operands =
        R4 { d: d.dest(0, ty)?, a: d.source(1, ty)?, b: d.source(2, ty)?, c: d.source(3, ty)? };
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
    let f = ternary(move |lo, hi, amount| {
        if left { integer::shf_l(lo, hi, amount, mode) } else { integer::shf_r(lo, hi, amount, mode) }
    });
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
    d.emit_lanes(Type::B32, 2, if clamp { binary(integer::bmsk_clamp) } else { binary(integer::bmsk_wrap) })
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
                let distance = if is_signed(ty) {
                    extend(a, ty).abs_diff(extend(b, ty))
                } else {
                    a.abs_diff(b)
                };
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
    d.emit_lanes(Type::B32, 3, f)
}

/// `mov`: registers, addresses, clocks, and vectors that pack or unpack.
pub(super) fn mov(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    d.arity(2)?;
    let (to, from) = (d.operand(0)?, d.operand(1)?);
    match (to, from) {
        (Operand::Vector(parts), _) => super::moves::unpack(d, ty, parts),
        (_, Operand::Vector(parts)) => super::moves::pack(d, ty, parts),
        _ if ty == Type::Pred => {
            let to = d.pred_dest(to)?;
            let a = match from {
                Operand::Immediate(value @ (0 | 1)) => return super::moves::constant_predicate(d, to, *value == 1),
                _ => d.pred_source(1, false)?,
            };
            Op::Logic(PredOp::Mov, to, a, a).pipe(d)
        }
        (_, Operand::Special(special)) if super::moves::clock(*special).is_some() => {
            super::moves::read_clock(d, ty, *special)
        }
        _ => {
            let operands = d.r2(ty)?;
            (if ty.bytes() == 8 { Op::Mov64(operands) } else { Op::Mov32(operands) }).pipe(d)
        }
    }
}
