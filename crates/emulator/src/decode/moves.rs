//! Decoding of `mov`.

use super::cold::{Clock, Cold};
use super::context::{Decoded, Decoder};
use super::emit::Pipe;
use super::op::{NO_SLOT, Op, Pred, PredOp, R3, Slot};
use crate::ptx::ast::{Operand, SpecialRegister, Type};

/// `mov`: registers, addresses, clocks, and vectors that pack or unpack.
pub(super) fn mov(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let ty = words.ty()?;
    words.finish()?;
    d.arity(2)?;
    let (to, from) = (d.operand(0)?, d.operand(1)?);
    match (to, from) {
        (Operand::Vector(parts), _) => unpack(d, ty, parts),
        (_, Operand::Vector(parts)) => pack(d, ty, parts),
        _ if ty == Type::Pred => {
            let to = d.pred_dest(to)?;
            let a = match from {
                Operand::Immediate(value @ (0 | 1)) => return constant_predicate(d, to, *value == 1),
                _ => d.pred_source(1, false)?,
            };
            Op::Logic(PredOp::Mov, to, a, a).pipe(d)
        }
        (_, Operand::Special(special)) if clock(*special).is_some() => read_clock(d, ty, *special),
        _ => {
            let operands = d.r2(ty)?;
            (if ty.bytes() == 8 { Op::Mov64(operands) } else { Op::Mov32(operands) }).pipe(d)
        }
    }
}

/// Type of each part when a value of `ty` is taken apart into `count`.
fn part(d: &Decoder<'_>, ty: Type, count: usize) -> Decoded<Type> {
    match (ty, count) {
        (Type::B64, 2) => Ok(Type::B32),
        (Type::B64, 4) | (Type::B32, 2) => Ok(Type::B16),
        _ => Err(d.error(format!("a vector of {count} cannot make up .{}", ty.name()))),
    }
}

/// `mov.b64 {a, b}, c` and kin
pub(super) fn unpack<'a>(d: &mut Decoder<'a>, ty: Type, parts: &'a [Operand]) -> Decoded<()> {
    let element = part(d, ty, parts.len())?;
    let a = d.source(1, ty)?;
    let mut slots = Vec::with_capacity(parts.len());
    for operand in parts {
        slots.push(if matches!(operand, Operand::Sink) { NO_SLOT } else { d.dest_operand(operand, element)? });
    }
    if let (Type::B64, &[low, low_high, high, high_high]) = (ty, &slots[..]) {
        let (x, y) = (d.temporary(false)?, d.temporary(false)?);
        d.emit(Op::Unpack64(R3 { d: x, a, b: y }));
        d.emit_helper(Op::Unpack32(R3 { d: low, a: x, b: low_high }));
        d.emit_helper(Op::Unpack32(R3 { d: high, a: y, b: high_high }));
    } else if let &[low, high] = &slots[..] {
        let operands = R3 { d: low, a, b: high };
        d.emit(if ty == Type::B64 { Op::Unpack64(operands) } else { Op::Unpack32(operands) });
    }
    Ok(())
}

/// `mov.b64 c, {a, b}` and kin
pub(super) fn pack<'a>(d: &mut Decoder<'a>, ty: Type, parts: &'a [Operand]) -> Decoded<()> {
    let element = part(d, ty, parts.len())?;
    let to = d.dest(0, ty)?;
    let mut slots: Vec<Slot> = Vec::with_capacity(parts.len());
    for operand in parts {
        slots.push(d.source_operand(operand, element)?);
    }
    if let &[low, low_high, high, high_high] = &slots[..] {
        let (x, y) = (d.temporary(false)?, d.temporary(false)?);
        d.emit(Op::Pack32(R3 { d: x, a: low, b: low_high }));
        d.emit_helper(Op::Pack32(R3 { d: y, a: high, b: high_high }));
        d.emit_helper(Op::Pack64(R3 { d: to, a: x, b: y }));
    } else if let &[a, b] = &slots[..] {
        let operands = R3 { d: to, a, b };
        d.emit(if ty == Type::B64 { Op::Pack64(operands) } else { Op::Pack32(operands) });
    }
    Ok(())
}

/// `mov.pred p, 0` or `1`
pub(super) fn constant_predicate(d: &mut Decoder<'_>, to: Pred, value: bool) -> Decoded<()> {
    let one = super::op::ALWAYS;
    d.emit(Op::Logic(if value { PredOp::Mov } else { PredOp::Not }, to, one, one));
    Ok(())
}

/// The clock behind a special register, if it is one.
pub(super) fn clock(special: SpecialRegister) -> Option<(Clock, bool)> {
    Some(match special {
        SpecialRegister::Clock => (Clock::Low, false),
        SpecialRegister::ClockHi => (Clock::High, false),
        SpecialRegister::Clock64 => (Clock::Full, true),
        SpecialRegister::GlobalTimer => (Clock::Timer, true),
        SpecialRegister::GlobalTimerLo => (Clock::TimerLow, false),
        SpecialRegister::GlobalTimerHi => (Clock::TimerHigh, false),
        _ => return None,
    })
}

/// `mov` from a clock
pub(super) fn read_clock(d: &mut Decoder<'_>, ty: Type, special: SpecialRegister) -> Decoded<()> {
    let Some((clock, wide)) = clock(special) else {
        return Err(d.error("not a clock"));
    };
    if (ty.bytes() == 8) != wide || !super::context::is_integer(ty) {
        return Err(d.error(format!("this clock cannot be read as .{}", ty.name())));
    }
    let to = d.dest(0, ty)?;
    d.emit_cold(Cold::Clock { d: to, clock })
}
