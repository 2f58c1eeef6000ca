//! The sixteen barriers of a CTA.

use super::machine::{Block, Faulted, Machine, Stop};
use super::rare::Flow;
use super::warp::{Group, Pending, State, Warp};
use crate::decode::cold::{Barrier, BarrierKind};
use crate::launch::FaultKind;

/// What a reduction over a barrier gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub count: u32,
    pub all: bool,
    pub any: bool,
}

const NOTHING: Outcome = Outcome { count: 0, all: true, any: false };

/// One barrier between two completions.
#[derive(Debug, Clone, Copy)]
struct One {
    /// Warps that have arrived.
    arrived: u32,
    /// Those of them that wait.
    waiting: u32,
    /// Threads that it counts; 0 while nobody has arrived, `u32::MAX` for the whole CTA.
    expected: u32,
    /// Whether arrivals carry a reduction, and which.
    reduction: Option<u8>,
    outcome: Outcome,
}

const IDLE: One = One { arrived: 0, waiting: 0, expected: 0, reduction: None, outcome: NOTHING };

const WHOLE: u32 = u32::MAX;

/// The barriers of a CTA, and the warps that they have let go.
#[derive(Debug)]
pub(crate) struct Barriers {
    all: [One; 16],
    /// Warps that have not ended.
    live: u32,
    /// Warps that may go on.
    released: u32,
    outcomes: [Outcome; 32],
}

impl Barriers {
    /// Idle barriers of a CTA of that many warps.
    pub fn new(warps: u32) -> Self {
        let live = if warps >= 32 { u32::MAX } else { (1 << warps) - 1 };
        Self { all: [IDLE; 16], live, released: 0, outcomes: [NOTHING; 32] }
    }

    /// Whether the barrier that a warp waits at has completed; asking takes the permission.
    pub fn take_release(&mut self, warp: u32) -> bool {
        let bit = 1 << warp;
        let released = self.released & bit != 0;
        self.released &= !bit;
        released
    }

    /// A warp has ended: barriers of the whole CTA do not wait for it. Gives the barriers that complete, with the warps
    /// that waited there.
    pub fn leave(&mut self, warp: u32) -> Vec<(u32, u32)> {
        self.live &= !(1 << warp);
        let mut completed = Vec::new();
        for id in 0..16u32 {
            if self.all[id as usize].arrived != 0
                && let Some(waiters) = self.complete(id)
            {
                completed.push((id, waiters));
            }
        }
        completed
    }

    /// Let the waiting warps of a barrier go if everyone has arrived.
    fn complete(&mut self, id: u32) -> Option<u32> {
        let barrier = &mut self.all[id as usize];
        let full = if barrier.expected == WHOLE {
            self.live & !barrier.arrived == 0
        } else {
            32 * barrier.arrived.count_ones() >= barrier.expected
        };
        if !full {
            return None;
        }
        let waiters = barrier.waiting;
        for warp in (0..32).filter(|warp| waiters >> warp & 1 == 1) {
            self.outcomes[warp] = barrier.outcome;
        }
        self.released |= waiters;
        *barrier = IDLE;
        Some(waiters)
    }

    /// How many arrived at a barrier and how many it wants, for reports.
    pub fn describe(&self, id: u32) -> String {
        let barrier = &self.all[id as usize & 15];
        let warps: Vec<String> =
            (0..32).filter(|warp| barrier.arrived >> warp & 1 == 1).map(|warp| warp.to_string()).collect();
        let wanted = if barrier.expected == WHOLE {
            format!("all {} warps that still run", self.live.count_ones())
        } else {
            format!("{} threads", barrier.expected)
        };
        format!("barrier {id} wants {wanted}; arrived: warps {}", warps.join(", "))
    }
}

/// `bar`, and `barrier` with `.aligned`: the whole warp is here.
pub(super) fn aligned(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    barrier: &Barrier,
    mask: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    if execute(m, block, warp, barrier, mask, pc)? {
        return Ok(Flow::Next);
    }
    warp.groups.push(Group::at(pc + 1, mask));
    Ok(Flow::Stop(Stop::Blocked))
}

/// `barrier` without `.aligned`: a diverged warp arrives when all its lanes have come, from whichever instruction.
pub(super) fn unaligned(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    barrier: &Barrier,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    if mask == 0 {
        return Ok(Flow::Next);
    }
    if mask == warp.live {
        return aligned(m, block, warp, barrier, mask, pc);
    }
    if barrier.kind != BarrierKind::Sync {
        return Ok(super::collective::wait(m, warp, mask, act, pc, false));
    }
    m.require(block, warp, barrier.id, mask, pc)?;
    let id = warp.row(barrier.id)[mask.trailing_zeros() as usize & 31];
    if act & !mask != 0 {
        warp.groups.push(Group::at(pc + 1, act & !mask));
    }
    if !warp.gather(pc, mask, id) || execute(m, block, warp, barrier, mask, pc)? {
        return Ok(Flow::Regroup);
    }
    Ok(Flow::Stop(Stop::Blocked))
}

/// A warp arrives. True when it need not wait.
fn execute(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    barrier: &Barrier,
    mask: u32,
    pc: u32,
) -> Result<bool, Faulted> {
    m.require(block, warp, barrier.id, mask, pc)?;
    let lead = mask.trailing_zeros() as usize & 31;
    let id = warp.row(barrier.id)[lead];
    let misuse = |m: &Machine<'_>, block: &Block, message: String| {
        Err(m.fault(FaultKind::BarrierMisuse, block, warp.index, None, pc, message))
    };
    if id >= 16 {
        return misuse(m, block, format!("barrier {id} does not exist; there are 16"));
    }
    let mut expected = WHOLE;
    if let Some(threads) = barrier.threads {
        m.require(block, warp, threads, mask, pc)?;
        expected = warp.row(threads)[lead];
        if expected == 0 || !expected.is_multiple_of(32) || expected > 1024 {
            return misuse(m, block, format!("{expected} threads at barrier {id}: not a multiple of 32 up to 1024"));
        }
    }
    let (reduction, predicate) = match barrier.kind {
        BarrierKind::Sync | BarrierKind::Arrive => (None, None),
        BarrierKind::Popc(_, p) => (Some(0), Some(p)),
        BarrierKind::And(_, p) => (Some(1), Some(p)),
        BarrierKind::Or(_, p) => (Some(2), Some(p)),
    };
    if let Some(predicate) = predicate {
        m.require_predicate(block, warp, predicate, mask, pc)?;
    }
    let bit = 1u32 << warp.index;
    let state = block.barriers.all[id as usize];
    if state.arrived != 0 && state.expected != expected {
        let message = format!("warps disagree on the thread count: {}", block.barriers.describe(id));
        return misuse(m, block, message);
    }
    if state.arrived & bit != 0 {
        let message = format!("the warp arrives twice before the barrier completes: {}", block.barriers.describe(id));
        return misuse(m, block, message);
    }
    if state.arrived != 0 && state.reduction != reduction && barrier.kind != BarrierKind::Arrive {
        return misuse(m, block, format!("barrier {id} is used for different operations at once"));
    }
    m.recorder.counters.barriers += 1;
    m.version += 1;
    if let Some(sanitizer) = &mut m.sanitizer {
        sanitizer.barrier_arrive(crate::check::Agent { cta: block.index, warp: warp.index }, id);
    }
    let waits = barrier.kind != BarrierKind::Arrive;
    let one = &mut block.barriers.all[id as usize];
    one.expected = expected;
    one.arrived |= bit;
    one.reduction = reduction.or(one.reduction);
    if waits {
        one.waiting |= bit;
    }
    if let Some(predicate) = predicate {
        let votes = warp.predicate(predicate) & mask;
        one.outcome.count += votes.count_ones();
        one.outcome.all &= votes == mask;
        one.outcome.any |= votes != 0;
    }
    if let Some(waiters) = block.barriers.complete(id)
        && let Some(sanitizer) = &mut m.sanitizer
    {
        sanitizer.barrier_complete(block.index, id, waiters);
    }
    if !waits {
        return Ok(true);
    }
    warp.pending = Some(Pending { kind: barrier.kind, mask });
    if block.barriers.take_release(warp.index) {
        finish(block, warp);
        return Ok(true);
    }
    warp.state = State::Barrier { id, pc };
    Ok(false)
}

/// Write the result of the barrier that let this warp go.
pub(super) fn finish(block: &Block, warp: &mut Warp) {
    let Some(Pending { kind, mask }) = warp.pending.take() else { return };
    let Outcome { count, all, any } = block.barriers.outcomes[warp.index as usize & 31];
    let spread = |value: bool| if value { u32::MAX } else { 0 };
    match kind {
        BarrierKind::Sync | BarrierKind::Arrive => {}
        BarrierKind::Popc(d, _) => warp.put(d, &[count; 32], mask),
        BarrierKind::And(d, _) => warp.put_predicate(d, spread(all), mask),
        BarrierKind::Or(d, _) => warp.put_predicate(d, spread(any), mask),
    }
}
