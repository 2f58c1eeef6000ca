//! Decoding of warp collectives, barriers and control flow.

use super::cold::{Barrier, BarrierKind, Cold, FixedShuffle, Reduction, Shuffle, ShuffleMode, Vote};
use super::context::{Decoded, Decoder};
use super::op::{NO_PRED, Op};
use crate::exec::shuffle_sources;
use crate::ptx::ast::{Operand, Type};

/// `shfl.sync`
pub(super) fn shuffle(d: &mut Decoder<'_>) -> Decoded<()> {
    const MODES: [ShuffleMode; 4] = [ShuffleMode::Up, ShuffleMode::Down, ShuffleMode::Butterfly, ShuffleMode::Index];
    let mut words = d.words();
    words.expect("sync")?;
    let mode = words.any(&["up", "down", "bfly", "idx"]).ok_or_else(|| words.error("a mode is missing"))?;
    words.expect("b32")?;
    words.finish()?;
    d.arity(5)?;
    let (first, second) = d.pair(0)?;
    let to = d.dest_operand(first, Type::B32)?;
    let inside = second.map(|operand| d.pred_dest(operand)).transpose()?;
    let mode = MODES[mode];
    let fixed = match (d.operand(2)?, d.operand(3)?, d.operand(4)?) {
        (Operand::Immediate(b), Operand::Immediate(c), Operand::Immediate(members)) => {
            let (sources, inside) = shuffle_sources(mode, &[*b as u32; 32], &[*c as u32; 32]);
            Some(FixedShuffle { sources: sources.map(|lane| lane as u8), inside, members: *members as u32 })
        }
        _ => None,
    };
    let shuffle = Shuffle {
        fixed,
        mode,
        d: to,
        inside,
        a: d.source(1, Type::B32)?,
        b: d.source(2, Type::U32)?,
        c: d.source(3, Type::U32)?,
        members: d.source(4, Type::U32)?,
    };
    d.emit_cold(Cold::Shuffle(shuffle))
}

/// `vote.sync`
pub(super) fn vote(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("sync")?;
    let mode = words.any(&["all", "any", "uni", "ballot"]).ok_or_else(|| words.error("a mode is missing"))?;
    words.expect(if mode == 3 { "b32" } else { "pred" })?;
    words.finish()?;
    d.arity(3)?;
    let to = d.operand(0)?;
    let vote = match mode {
        0 => Vote::All(d.pred_dest(to)?),
        1 => Vote::Any(d.pred_dest(to)?),
        2 => Vote::Uniform(d.pred_dest(to)?),
        _ => Vote::Ballot(d.dest_operand(to, Type::B32)?),
    };
    let source = d.pred_source(1, true)?;
    let members = d.source(2, Type::U32)?;
    d.emit_cold(Cold::Vote { vote, source, members })
}

/// `match.any.sync` and `match.all.sync`
pub(super) fn matching(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let mode = words.any(&["any", "all"]).ok_or_else(|| words.error("a mode is missing"))?;
    words.expect("sync")?;
    let ty = words.ty()?;
    words.finish()?;
    if !matches!(ty, Type::B32 | Type::B64) {
        return Err(words.error("the type is .b32 or .b64"));
    }
    d.arity(3)?;
    let (first, second) = d.pair(0)?;
    if mode == 0 && second.is_some() {
        return Err(words.error("only match.all gives a predicate"));
    }
    let to = d.dest_operand(first, Type::B32)?;
    let all = second.map(|operand| d.pred_dest(operand)).transpose()?;
    let a = d.source(1, ty)?;
    let members = d.source(2, Type::U32)?;
    d.emit_cold(Cold::Match { d: to, all, uniform: mode == 1, a, wide: ty == Type::B64, members })
}

/// `redux.sync`
pub(super) fn redux(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("sync")?;
    let name = words.next()?;
    let ty = words.ty()?;
    words.finish()?;
    let reduction = match (name, ty) {
        ("add", Type::U32 | Type::S32) => Reduction::Add,
        ("min", Type::U32) => Reduction::MinU,
        ("max", Type::U32) => Reduction::MaxU,
        ("min", Type::S32) => Reduction::MinS,
        ("max", Type::S32) => Reduction::MaxS,
        ("and", Type::B32) => Reduction::And,
        ("or", Type::B32) => Reduction::Or,
        ("xor", Type::B32) => Reduction::Xor,
        _ => return Err(words.error("this reduction does not exist for the type")),
    };
    d.arity(3)?;
    let (to, a, members) = (d.dest(0, ty)?, d.source(1, ty)?, d.source(2, Type::U32)?);
    d.emit_cold(Cold::Redux { reduction, d: to, a, members })
}

/// `activemask.b32`
pub(super) fn active_mask(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("b32")?;
    words.finish()?;
    d.arity(1)?;
    let to = d.dest(0, Type::B32)?;
    d.emit_cold(Cold::ActiveMask(to))
}

/// `elect.sync`
pub(super) fn elect(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("sync")?;
    words.finish()?;
    d.arity(2)?;
    if d.target().capability < 90 {
        return Err(words.error("needs sm_90"));
    }
    let (first, second) = d.pair(0)?;
    let to = d.dest_operand(first, Type::B32)?;
    let leader = second.map_or(Ok(NO_PRED), |operand| d.pred_dest(operand))?;
    let members = d.source(1, Type::U32)?;
    d.emit_cold(Cold::Elect { d: to, leader, members })
}

/// `bar` and `barrier`, the warp's and the CTA's
pub(super) fn barrier(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let bar = d.ins.opcode == "bar";
    if bar && words.take("warp") {
        words.expect("sync")?;
        words.finish()?;
        d.arity(1)?;
        let members = d.source(0, Type::U32)?;
        return d.emit_cold(Cold::WarpSync(members));
    }
    if words.peek() == Some("cluster") {
        return Err(words.error("clusters are not supported"));
    }
    words.take("cta");
    let mode = words.any(&["sync", "arrive", "red"]).ok_or_else(|| words.error("an operation is missing"))?;
    let reduction = if mode == 2 {
        Some(words.any(&["popc", "and", "or"]).ok_or_else(|| words.error("a reduction is missing"))?)
    } else {
        None
    };
    let aligned = bar || words.take("aligned");
    match reduction {
        Some(0) => words.expect("u32")?,
        Some(_) => words.expect("pred")?,
        None => {}
    }
    words.finish()?;
    let first = if mode == 2 { 1 } else { 0 };
    let count = d.ins.operands.len();
    match mode {
        0 => d.arity_between(1, 2)?,
        1 => d.arity(2)?,
        _ => d.arity_between(3, 4)?,
    }
    if matches!(d.operand(first)?, Operand::Immediate(id) if !(0..16).contains(id)) {
        return Err(words.error("there are 16 barriers, 0 to 15"));
    }
    let id = d.source(first, Type::U32)?;
    let has_threads = match mode {
        2 => count == 4,
        _ => count == 2,
    };
    let threads = if has_threads {
        if matches!(d.operand(first + 1)?, Operand::Immediate(threads) if threads % 32 != 0 || *threads <= 0) {
            return Err(words.error("a barrier counts threads in multiples of 32"));
        }
        Some(d.source(first + 1, Type::U32)?)
    } else {
        None
    };
    let kind = match (mode, reduction) {
        (0, _) => BarrierKind::Sync,
        (1, _) => BarrierKind::Arrive,
        (_, Some(0)) => BarrierKind::Popc(d.dest(0, Type::U32)?, d.pred_source(count - 1, true)?),
        (_, Some(1)) => BarrierKind::And(d.pred_dest(d.operand(0)?)?, d.pred_source(count - 1, true)?),
        _ => BarrierKind::Or(d.pred_dest(d.operand(0)?)?, d.pred_source(count - 1, true)?),
    };
    d.emit_cold(Cold::Barrier(Barrier { kind, id, threads, aligned }))
}

/// `bra`
pub(super) fn branch(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.take("uni");
    words.finish()?;
    d.arity(1)?;
    let target = d.label(0)?;
    d.emit(Op::Branch(target));
    Ok(())
}

/// `ret`, `exit`
pub(super) fn exit(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    if d.ins.opcode == "ret" {
        words.take("uni");
    }
    words.finish()?;
    d.arity(0)?;
    d.emit(Op::Exit);
    Ok(())
}

/// `trap` and `brkpt`
pub(super) fn trap(d: &mut Decoder<'_>) -> Decoded<()> {
    d.words().finish()?;
    d.arity(0)?;
    d.emit_cold(if d.ins.opcode == "trap" { Cold::Trap } else { Cold::Breakpoint })
}

/// `nanosleep.u32`
pub(super) fn sleep(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    words.expect("u32")?;
    words.finish()?;
    d.arity(1)?;
    d.source(0, Type::U32)?;
    d.emit_cold(Cold::Sleep)
}

/// `griddepcontrol`: grids run one after another, so every earlier one is complete.
pub(super) fn grid_dependency(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    if words.any(&["wait", "launch_dependents"]).is_none() {
        return Err(words.error("an operation is missing"));
    }
    words.finish()?;
    d.arity(0)?;
    d.needs(90)?;
    d.emit(Op::Nop);
    Ok(())
}

/// `pmevent`: a performance event; nobody listens.
pub(super) fn event(d: &mut Decoder<'_>) -> Decoded<()> {
    let mut words = d.words();
    let most = if words.take("mask") { 0xFFFF } else { 15 };
    words.finish()?;
    d.arity(1)?;
    if !(0..=most).contains(&d.literal(0)?) {
        return Err(words.error("there are 16 events"));
    }
    d.emit(Op::Nop);
    Ok(())
}
