//! Warp collectives: `shfl`, `vote`, `match`, `redux`, `elect`, `bar.warp.sync`, and the meeting of lanes before them.

use super::machine::{Block, Faulted, Machine};
use super::rare::Flow;
use super::warp::{Group, Warp};
use crate::decode::cold::{Reduction, Shuffle, ShuffleMode, Vote};
use crate::decode::op::{Pred, Slot};
use crate::launch::FaultKind;

/// The sets of lanes that may execute a `.sync` instruction now, and those that have to wait for others.
pub(super) struct Meeting {
    sets: [u32; 32],
    count: usize,
    waiting: u32,
}

impl Meeting {
    /// The sets that are complete.
    pub fn sets(&self) -> &[u32] {
        &self.sets[..self.count]
    }
}

/// Sort the lanes of `mask` by their member masks.
pub(super) fn meet(
    m: &Machine<'_>,
    block: &Block,
    warp: &Warp,
    members: Slot,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Meeting, Faulted> {
    m.require(block, warp, members, mask, pc)?;
    let wanted = warp.row(members);
    let mut meeting = Meeting { sets: [0; 32], count: 0, waiting: 0 };
    let mut left = mask;
    while left != 0 {
        let lead = left.trailing_zeros();
        let want = wanted[lead as usize];
        let mut same = 0;
        for (lane, other) in wanted.iter().enumerate() {
            same |= u32::from(*other == want) << lane;
        }
        same &= left;
        left &= !same;
        if same & !want != 0 {
            let lane = (same & !want).trailing_zeros();
            let message = format!("lane {lane} executes it but is not in its own member mask {want:#010x}");
            return Err(m.fault(FaultKind::IllegalInstruction, block, warp.index, Some(lane), pc, message));
        }
        let astray = want & mask & !same;
        if astray != 0 {
            let message = format!(
                "lane {lead} names lanes {want:#010x}, of which {astray:#010x} execute it with another member mask"
            );
            return Err(m.fault(FaultKind::IllegalInstruction, block, warp.index, Some(lead), pc, message));
        }
        let skipping = want & act & !mask;
        if skipping != 0 {
            let message =
                format!("lanes {skipping:#010x} are in the member mask {want:#010x} but their guard is false here");
            return Err(m.fault(FaultKind::Divergence, block, warp.index, Some(lead), pc, message));
        }
        if want & warp.live & !same == 0 {
            meeting.sets[meeting.count] = same;
            meeting.count += 1;
        } else {
            meeting.waiting |= same;
        }
    }
    Ok(meeting)
}

/// Go on after the complete sets of a meeting have executed; `act` are all lanes that stand here.
pub(super) fn part(m: &mut Machine<'_>, warp: &mut Warp, meeting: &Meeting, act: u32, pc: u32) -> Flow {
    if meeting.waiting == 0 {
        return Flow::Next;
    }
    wait(m, warp, meeting.waiting, act, pc, false)
}

/// Park `waiting` at this instruction and let the rest of `act` go on.
pub(super) fn wait(m: &mut Machine<'_>, warp: &mut Warp, waiting: u32, act: u32, pc: u32, aligned: bool) -> Flow {
    if let Some(tally) = m.tally.get_mut(pc as usize) {
        // It counts when it executes, not when lanes come to wait.
        tally.issued = tally.issued.saturating_sub(u64::from(waiting == act));
        tally.lanes = tally.lanes.saturating_sub(waiting.count_ones().into());
    }
    warp.park(pc, waiting, aligned);
    if act & !waiting != 0 {
        warp.groups.push(Group::at(pc + 1, act & !waiting));
    }
    Flow::Regroup
}

/// Tell the sanitizer of a collective that orders no memory.
fn note(m: &mut Machine<'_>, block: &Block, warp: &Warp, set: u32) {
    let agent = m.agent(block, warp.index);
    if let Some(sanitizer) = &mut m.sanitizer {
        sanitizer.collective(agent, set);
    }
}

/// `shfl.sync`
pub(super) fn shuffle(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    op: &Shuffle,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    if let Some(fixed) = op.fixed {
        // Everyone who is named is here, and everyone who is here is named.
        if mask != 0 && mask & !fixed.members == 0 && fixed.members & warp.live & !mask == 0 {
            m.require(block, warp, op.a, mask, pc)?;
            move_lanes(m, block, warp, op, &fixed.sources, fixed.inside, mask, pc)?;
            return Ok(Flow::Next);
        }
    }
    let meeting = meet(m, block, warp, op.members, mask, act, pc)?;
    for &set in meeting.sets() {
        for slot in [op.a, op.b, op.c] {
            m.require(block, warp, slot, set, pc)?;
        }
        let (sources, inside) = sources(op.mode, warp.row(op.b), warp.row(op.c));
        move_lanes(m, block, warp, op, &sources.map(|lane| lane as u8), inside, set, pc)?;
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// The lanes of `set` exchange values.
#[expect(clippy::too_many_arguments, reason = "the operands of one instruction")]
#[inline(always)]
fn move_lanes(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    op: &Shuffle,
    sources: &[u8; 32],
    inside: u32,
    set: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if m.checked() && set != u32::MAX {
        let stray = (0..32).find(|&lane| set >> lane & 1 == 1 && set >> (sources[lane as usize] & 31) & 1 == 0);
        if let Some(lane) = stray {
            let from = sources[lane as usize];
            let message = format!("lane {lane} reads lane {from}, which does not take part");
            return Err(m.fault(FaultKind::Divergence, block, warp.index, Some(lane), pc, message));
        }
    }
    let a = warp.row(op.a);
    let mut result = [0; 32];
    for (value, source) in result.iter_mut().zip(sources) {
        *value = a[usize::from(*source & 31)];
    }
    warp.put(op.d, &result, set);
    if let Some(predicate) = op.inside {
        warp.put_predicate(predicate, inside, set);
    }
    note(m, block, warp, set);
    Ok(())
}

/// Which lane every lane reads, and in which lanes that is the one asked for.
#[inline]
pub(crate) fn sources(mode: ShuffleMode, b: &[u32; 32], c: &[u32; 32]) -> ([u32; 32], u32) {
    let mut sources = [0; 32];
    let mut flags = [0u32; 32];
    for lane in 0..32 {
        let own = lane as u32;
        let (offset, clamp, segment) = (b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31);
        let low = own & segment;
        let limit = low | (clamp & !segment);
        // `up` compares as signed: its limit is the lowest lane of the segment.
        let (from, inside) = match mode {
            ShuffleMode::Up => {
                let from = own.wrapping_sub(offset);
                (from, from as i32 >= limit as i32)
            }
            ShuffleMode::Down => (own + offset, own + offset <= limit),
            ShuffleMode::Butterfly => (own ^ offset, own ^ offset <= limit),
            ShuffleMode::Index => {
                let from = low | (offset & !segment);
                (from, from <= limit)
            }
        };
        sources[lane] = if inside { from & 31 } else { own };
        flags[lane] = u32::from(inside);
    }
    let bits = flags.iter().enumerate().fold(0, |bits, (lane, flag)| bits | flag << lane);
    (sources, bits)
}

/// `vote.sync`
pub(super) fn vote(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    (vote, source, members): (Vote, Pred, Slot),
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let meeting = meet(m, block, warp, members, mask, act, pc)?;
    for &set in meeting.sets() {
        m.require_predicate(block, warp, source, set, pc)?;
        let ballot = warp.predicate(source) & set;
        let spread = |value: bool| if value { u32::MAX } else { 0 };
        match vote {
            Vote::All(d) => warp.put_predicate(d, spread(ballot == set), set),
            Vote::Any(d) => warp.put_predicate(d, spread(ballot != 0), set),
            Vote::Uniform(d) => warp.put_predicate(d, spread(ballot == 0 || ballot == set), set),
            Vote::Ballot(d) => warp.put(d, &[ballot; 32], set),
        }
        note(m, block, warp, set);
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// Operands of `match.sync`.
pub(super) struct Matching {
    pub d: Slot,
    pub all: Option<Pred>,
    pub uniform: bool,
    pub a: Slot,
    pub wide: bool,
    pub members: Slot,
}

/// `match.sync`
pub(super) fn matching(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    op: &Matching,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let meeting = meet(m, block, warp, op.members, mask, act, pc)?;
    for &set in meeting.sets() {
        m.require(block, warp, op.a, set, pc)?;
        let value = |lane: usize| if op.wide { warp.wide(op.a)[lane] } else { warp.row(op.a)[lane].into() };
        let values: [u64; 32] = std::array::from_fn(value);
        let equal = |lane: usize| {
            (0..32).fold(0u32, |bits, other| bits | u32::from(values[other] == values[lane]) << other) & set
        };
        let mut result: [u32; 32] = std::array::from_fn(equal);
        if op.uniform {
            let lead = set.trailing_zeros() as usize & 31;
            let same = result[lead] == set;
            result = [if same { set } else { 0 }; 32];
            if let Some(predicate) = op.all {
                warp.put_predicate(predicate, if same { u32::MAX } else { 0 }, set);
            }
        }
        warp.put(op.d, &result, set);
        note(m, block, warp, set);
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// `redux.sync`
pub(super) fn redux(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    (reduction, d, a, members): (Reduction, Slot, Slot, Slot),
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let meeting = meet(m, block, warp, members, mask, act, pc)?;
    for &set in meeting.sets() {
        m.require(block, warp, a, set, pc)?;
        let row = warp.row(a);
        let values = (0..32).filter(|lane| set >> lane & 1 == 1).map(|lane| row[lane]);
        let join = |x: u32, y: u32| match reduction {
            Reduction::Add => x.wrapping_add(y),
            Reduction::MinU => x.min(y),
            Reduction::MaxU => x.max(y),
            Reduction::MinS => (x as i32).min(y as i32) as u32,
            Reduction::MaxS => (x as i32).max(y as i32) as u32,
            Reduction::And => x & y,
            Reduction::Or => x | y,
            Reduction::Xor => x ^ y,
        };
        let value = values.reduce(join).unwrap_or(0);
        warp.put(d, &[value; 32], set);
        note(m, block, warp, set);
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// `elect.sync`: the lowest lane leads.
pub(super) fn elect(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    (d, leader, members): (Slot, Pred, Slot),
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let meeting = meet(m, block, warp, members, mask, act, pc)?;
    for &set in meeting.sets() {
        let lead = set.trailing_zeros();
        warp.put(d, &[lead; 32], set);
        warp.put_predicate(leader, 1 << lead, set);
        note(m, block, warp, set);
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// `bar.warp.sync`
pub(super) fn warp_sync(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    members: Slot,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let meeting = meet(m, block, warp, members, mask, act, pc)?;
    let agent = m.agent(block, warp.index);
    if let Some(sanitizer) = &mut m.sanitizer {
        for &set in meeting.sets() {
            sanitizer.warp_sync(agent, set);
        }
    }
    Ok(part(m, warp, &meeting, act, pc))
}

/// Before an `.aligned` instruction: `None` when the whole warp is here and may execute it, else how to go on.
pub(super) fn align(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    mask: u32,
    act: u32,
    pc: u32,
    full: bool,
) -> Result<Option<Flow>, Faulted> {
    if mask == 0 {
        return Ok(Some(Flow::Next));
    }
    if mask != act {
        let message = format!(
            "the instruction wants the whole warp, but its guard holds in lanes {mask:#010x} of {act:#010x} only"
        );
        return Err(m.fault(FaultKind::Divergence, block, warp.index, None, pc, message));
    }
    if full && warp.live != u32::MAX {
        let message = format!("the instruction wants all 32 lanes, but only {:#010x} are running", warp.live);
        return Err(m.fault(FaultKind::Divergence, block, warp.index, None, pc, message));
    }
    if act != warp.live { Ok(Some(wait(m, warp, act, act, pc, true))) } else { Ok(None) }
}
