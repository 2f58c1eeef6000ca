//! The instructions of the side table, each handed to the module that knows it.

use super::collective::{self, Matching, align};
use super::machine::{Block, Faulted, Machine, Stop};
use super::warp::{Group, Warp};
use super::{asynchronous, atomic, barrier, elementwise, generic, mbarrier, tensor};
use crate::check::Scope as Observers;
use crate::decode::cold::{Clock, Cold};
use crate::decode::op::Scope;
use crate::launch::FaultKind;

/// How a warp goes on after an instruction.
pub(super) enum Flow {
    /// With the next instruction.
    Next,
    /// All groups have been put aside; pick one.
    Regroup,
    /// All groups have been put aside; the turn ends.
    Stop(Stop),
}

/// Execute an instruction of the side table. `act` are the lanes that stand here, `mask` those whose guard holds.
pub(super) fn execute(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    index: u16,
    mask: u32,
    act: u32,
    pc: u32,
) -> Result<Flow, Faulted> {
    let program = m.program;
    let Some(cold) = program.cold.get(usize::from(index)) else {
        return Err(m.fault(FaultKind::IllegalInstruction, block, warp.index, None, pc, "no such instruction".into()));
    };
    match cold {
        Cold::Lanes { f, d, sources, count, .. } => {
            elementwise::lanes(m, block, warp, f, *d, &sources[..usize::from(*count)], mask, pc)?;
        }
        Cold::Test { f, d, a, b, .. } => elementwise::test(m, block, warp, f, *d, (*a, *b), mask, pc)?,
        Cold::Map(map) => elementwise::map(m, block, warp, map, mask, pc)?,
        Cold::Shuffle(shuffle) => return collective::shuffle(m, block, warp, shuffle, mask, act, pc),
        Cold::Vote { vote, source, members } => {
            return collective::vote(m, block, warp, (*vote, *source, *members), mask, act, pc);
        }
        Cold::Match { d, all, uniform, a, wide, members } => {
            let op = Matching { d: *d, all: *all, uniform: *uniform, a: *a, wide: *wide, members: *members };
            return collective::matching(m, block, warp, &op, mask, act, pc);
        }
        Cold::Redux { reduction, d, a, members } => {
            return collective::redux(m, block, warp, (*reduction, *d, *a, *members), mask, act, pc);
        }
        Cold::ActiveMask(d) => warp.put(*d, &[mask; 32], mask),
        Cold::Elect { d, leader, members } => {
            return collective::elect(m, block, warp, (*d, *leader, *members), mask, act, pc);
        }
        Cold::WarpSync(members) => return collective::warp_sync(m, block, warp, *members, mask, act, pc),
        Cold::Barrier(op) if op.aligned => {
            if let Some(flow) = align(m, block, warp, mask, act, pc, false)? {
                return Ok(flow);
            }
            return barrier::aligned(m, block, warp, op, mask, pc);
        }
        Cold::Barrier(op) => {
            return barrier::unaligned(m, block, warp, op, mask, act, pc);
        }
        Cold::Fence(scope) => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            let agent = m.agent(block, warp.index);
            let observers = if *scope == Scope::Cta { Observers::Cta } else { Observers::Gpu };
            if let Some(sanitizer) = &mut m.sanitizer
                && mask != 0
            {
                sanitizer.fence(agent, mask, observers);
            }
        }
        Cold::LoadGeneric(access) => generic::load(m, block, warp, access, mask, pc)?,
        Cold::StoreGeneric(access) => generic::store(m, block, warp, access, mask, pc)?,
        Cold::LoadParam(access) => generic::load_param(m, block, warp, access, mask, pc)?,
        Cold::Atomic(op) => atomic::execute(m, block, warp, op, mask, pc)?,
        Cold::Matrix(op) => {
            if let Some(flow) = align(m, block, warp, mask, act, pc, true)? {
                return Ok(flow);
            }
            tensor::matrix(m, block, warp, op, pc)?;
        }
        Cold::Transpose { d, a } => {
            if let Some(flow) = align(m, block, warp, mask, act, pc, true)? {
                return Ok(flow);
            }
            tensor::transpose(m, block, warp, *d, *a, pc)?;
        }
        Cold::Mma(op) => {
            if let Some(flow) = align(m, block, warp, mask, act, pc, true)? {
                return Ok(flow);
            }
            tensor::mma(m, block, warp, op, pc)?;
        }
        Cold::CopyAsync(op) => asynchronous::issue(m, block, warp, op, mask, pc)?,
        Cold::Commit => warp.copies.commit(mask),
        Cold::WaitGroups(groups) => asynchronous::wait(m, block, warp, *groups, mask, pc)?,
        Cold::Mbarrier(op) => {
            if mbarrier::execute(m, block, warp, op, mask, pc)? {
                return Ok(yield_at(warp, act, pc + 1, m.version));
            }
        }
        Cold::Clock { d, clock } => {
            let now = m.clock;
            match clock {
                Clock::Full | Clock::Timer => warp.put_wide(*d, &[now; 32], mask),
                Clock::Low | Clock::TimerLow => warp.put(*d, &[now as u32; 32], mask),
                Clock::High | Clock::TimerHigh => warp.put(*d, &[(now >> 32) as u32; 32], mask),
            }
            // Time passes, and someone may be waiting for it.
            m.clock += 1;
            m.version += 1;
        }
        Cold::Sleep => {
            if mask != 0 {
                warp.polled = true;
                warp.polled_at = pc;
                return Ok(yield_at(warp, act, pc + 1, m.version));
            }
        }
        Cold::Trap => {
            if mask != 0 {
                let lane = mask.trailing_zeros();
                let message = format!("lanes {mask:#010x} reached a trap");
                return Err(m.fault(FaultKind::Trap, block, warp.index, Some(lane), pc, message));
            }
        }
        Cold::Breakpoint => {
            if mask != 0 {
                let message = "breakpoint without a debugger".to_owned();
                return Err(m.fault(FaultKind::Trap, block, warp.index, Some(mask.trailing_zeros()), pc, message));
            }
        }
    }
    Ok(Flow::Next)
}

/// End the turn of a warp that waits for others, after which it goes on at `pc`.
fn yield_at(warp: &mut Warp, act: u32, pc: u32, version: u64) -> Flow {
    let diverged = !warp.groups.is_empty();
    warp.groups.push(Group { spun: diverged, ..Group::at(pc, act) });
    if diverged && warp.others_unspun() {
        return Flow::Regroup;
    }
    warp.spin(version);
    Flow::Stop(Stop::Spin)
}
