//! mbarrier objects: eight bytes of shared memory in our own encoding.
//!
//! Bits 0..20 expected arrivals, 20..40 pending arrivals, 40..62 bytes still to come (signed), 62 unused, 63 the phase's
//! parity. A phase completes when nothing is pending and no bytes are to come.

use super::asynchronous::Arrival;
use super::machine::{Block, Faulted, Machine};
use super::shared::{addresses, check};
use super::warp::Warp;
use crate::check::Order as Ordering;
use crate::decode::cold::{Mbarrier, MbarrierOp};
use crate::decode::op::{NO_SLOT, Order};
use crate::launch::{AsyncCopies, FaultKind};

const COUNT: u64 = (1 << 20) - 1;
const BYTES: i64 = 1 << 20;

/// The fields of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Object {
    expected: u64,
    pending: u64,
    bytes: i64,
    parity: u64,
}

impl Object {
    fn unpack(bits: u64) -> Self {
        Self {
            expected: bits & COUNT,
            pending: bits >> 20 & COUNT,
            bytes: (bits << 2) as i64 >> 42,
            parity: bits >> 63,
        }
    }

    fn pack(self) -> u64 {
        self.expected | self.pending << 20 | ((self.bytes as u64) & 0x3F_FFFF) << 40 | self.parity << 63
    }

    /// Begin the next phase if this one is complete.
    fn settle(&mut self) -> bool {
        let complete = self.pending == 0 && self.bytes == 0;
        if complete {
            self.pending = self.expected;
            self.parity ^= 1;
        }
        complete
    }
}

/// Execute an mbarrier instruction. True when an attempt that may wait has failed, so that the turn should end.
pub(super) fn execute(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &Mbarrier,
    mask: u32,
    pc: u32,
) -> Result<bool, Faulted> {
    if mask == 0 {
        return Ok(false);
    }
    if let MbarrierOp::PendingCount { d, state } = op.op {
        m.require(block, warp, state, mask, pc)?;
        let counts = warp.wide(state).map(|bits| Object::unpack(bits).pending as u32);
        warp.put(d, &counts, mask);
        return Ok(false);
    }
    m.require(block, warp, op.address.slot, mask, pc)?;
    for slot in sources(op.op).into_iter().flatten() {
        m.require(block, warp, slot, mask, pc)?;
    }
    let at = addresses(warp, op.address);
    check(m, block, warp.index, &at, 8, mask, pc)?;
    match op.op {
        MbarrierOp::TestState { done, state } => {
            let states = *warp.wide(state);
            return test(m, block, warp, op, done, &at, |lane| states[lane] >> 63, mask, pc);
        }
        MbarrierOp::TestParity { done, parity } => {
            let parities = *warp.row(parity);
            return test(m, block, warp, op, done, &at, |lane| u64::from(parities[lane] & 1), mask, pc);
        }
        MbarrierOp::CopyArrive { increment } => {
            for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                // Also with nothing to add: the object must be alive now, not only when the copies land.
                change(m, block, warp, at[lane], pc, |object| object.pending += u64::from(increment))?;
            }
            warp.copies.arrivals.push(Arrival { addresses: at, mask, pc });
            if m.options.async_copies == AsyncCopies::Eager {
                super::asynchronous::deliver(m, block, warp)?;
            }
            return Ok(false);
        }
        _ => {}
    }
    let mut states = [0u64; 32];
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        states[lane] = load(block, at[lane]);
        one(m, block, warp, op, lane, at[lane], pc)?;
    }
    if let MbarrierOp::Arrive { state, .. } = op.op
        && state != NO_SLOT
    {
        warp.put_wide(state, &states, mask);
    }
    Ok(false)
}

fn sources(op: MbarrierOp) -> [Option<u16>; 2] {
    match op {
        MbarrierOp::Init(slot) | MbarrierOp::ExpectBytes(slot) => [Some(slot), None],
        MbarrierOp::Arrive { count, expect, .. } => [Some(count), expect],
        MbarrierOp::TestState { state, .. } => [Some(state), None],
        MbarrierOp::TestParity { parity, .. } => [Some(parity), None],
        _ => [None, None],
    }
}

/// One lane of an instruction that changes the object.
fn one(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &Warp,
    op: &Mbarrier,
    lane: usize,
    address: u32,
    pc: u32,
) -> Result<(), Faulted> {
    match op.op {
        MbarrierOp::Init(count) => {
            let expected = u64::from(warp.row(count)[lane]);
            if expected == 0 || expected > COUNT {
                let message = format!("an mbarrier for {expected} arrivals; 1 to {COUNT} are allowed");
                return Err(m.fault(FaultKind::BarrierMisuse, block, warp.index, Some(lane as u32), pc, message));
            }
            save(block, address, Object { expected, pending: expected, bytes: 0, parity: 0 }.pack());
            block.mbarriers.insert(address);
            reset(m, block, address);
        }
        MbarrierOp::Invalidate => {
            if !block.mbarriers.remove(&address) {
                return Err(dead(m, block, warp, address, lane as u32, pc));
            }
            save(block, address, 0);
            reset(m, block, address);
        }
        MbarrierOp::ExpectBytes(slot) => {
            let bytes = i64::from(warp.row(slot)[lane]);
            change(m, block, warp, address, pc, |object| object.bytes += bytes)?;
        }
        MbarrierOp::Arrive { count, drop, expect, .. } => {
            let count = u64::from(warp.row(count)[lane]);
            let expect = expect.map_or(0, |slot| i64::from(warp.row(slot)[lane]));
            arrive(m, block, warp, 1 << lane, address, op.order, pc);
            let mut short = false;
            change(m, block, warp, address, pc, |object| {
                object.bytes += expect;
                short = count > object.pending || (drop && count > object.expected);
                object.pending = object.pending.saturating_sub(count);
                if drop {
                    object.expected = object.expected.saturating_sub(count);
                }
            })?;
            if short {
                let message = format!("{count} arrivals at an mbarrier that waits for fewer");
                return Err(m.fault(FaultKind::BarrierMisuse, block, warp.index, Some(lane as u32), pc, message));
            }
        }
        _ => {}
    }
    Ok(())
}

/// An arrival that copies bring, for every lane of `mask`.
pub(super) fn arrive_late(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &Warp,
    address: u32,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let count = u64::from(mask.count_ones());
    let mut short = false;
    change(m, block, warp, address, pc, |object| {
        short = count > object.pending;
        object.pending = object.pending.saturating_sub(count);
    })?;
    if short {
        let message = "copies arrive at an mbarrier that waits for fewer arrivals".to_owned();
        return Err(m.fault(FaultKind::BarrierMisuse, block, warp.index, None, pc, message));
    }
    Ok(())
}

fn arrive(m: &mut Machine<'_>, block: &Block, warp: &Warp, mask: u32, address: u32, order: Order, _pc: u32) {
    let agent = m.agent(block, warp.index);
    let order = if order == Order::Relaxed { Ordering::Relaxed } else { Ordering::Release };
    if let Some(sanitizer) = &mut m.sanitizer {
        sanitizer.mbarrier_arrive(agent, mask, address, order);
    }
}

fn reset(m: &mut Machine<'_>, block: &Block, address: u32) {
    m.version += 1;
    if let Some(sanitizer) = &mut m.sanitizer {
        sanitizer.mbarrier_reset(block.index, address);
    }
}

/// The object was never initialised, or is no more.
#[cold]
fn dead(m: &Machine<'_>, block: &Block, warp: &Warp, address: u32, lane: u32, pc: u32) -> Faulted {
    let message = format!("there is no initialised mbarrier at {address:#x}");
    m.fault(FaultKind::BarrierMisuse, block, warp.index, Some(lane), pc, message)
}

/// Change an object that must be alive, and complete its phase if that was the last thing missing.
fn change(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &Warp,
    address: u32,
    pc: u32,
    edit: impl FnOnce(&mut Object),
) -> Result<(), Faulted> {
    if !block.mbarriers.contains(&address) {
        return Err(dead(m, block, warp, address, 0, pc));
    }
    let mut object = Object::unpack(load(block, address));
    edit(&mut object);
    if object.bytes.abs() >= BYTES || object.pending > COUNT {
        let message = format!("the counts of the mbarrier at {address:#x} leave their range");
        return Err(m.fault(FaultKind::BarrierMisuse, block, warp.index, None, pc, message));
    }
    let completed = object.settle();
    save(block, address, object.pack());
    m.version += 1;
    if completed && let Some(sanitizer) = &mut m.sanitizer {
        sanitizer.mbarrier_phase(block.index, address);
    }
    Ok(())
}

/// `test_wait` and `try_wait`: true where the phase with that parity has completed.
#[expect(clippy::too_many_arguments, reason = "the operands of one instruction")]
fn test(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &Mbarrier,
    done: u16,
    at: &[u32; 32],
    parity: impl Fn(usize) -> u64,
    mask: u32,
    pc: u32,
) -> Result<bool, Faulted> {
    let mut passed = 0u32;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        if !block.mbarriers.contains(&at[lane]) {
            return Err(dead(m, block, warp, at[lane], lane as u32, pc));
        }
        let object = Object::unpack(load(block, at[lane]));
        passed |= u32::from(object.parity != parity(lane)) << lane;
    }
    warp.put_predicate(done, passed, mask);
    let agent = m.agent(block, warp.index);
    if op.order != Order::Relaxed
        && let Some(sanitizer) = &mut m.sanitizer
    {
        for lane in (0..32).filter(|lane| passed >> lane & 1 == 1) {
            sanitizer.mbarrier_wait(agent, 1 << lane, at[lane]);
        }
    }
    if passed == mask {
        return Ok(false);
    }
    warp.polled = true;
    warp.polled_at = pc;
    Ok(op.waits)
}

/// The object's bits; the address was checked.
fn load(block: &Block, address: u32) -> u64 {
    let bytes = block.shared_offset(address, 8).and_then(|offset| block.shared.get(offset..offset + 8));
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn save(block: &mut Block, address: u32, bits: u64) {
    if let Some(offset) = block.shared_offset(address, 8) {
        block.shared[offset..offset + 8].copy_from_slice(&bits.to_le_bytes());
    }
}

/// What the mbarriers of a CTA wait for, for reports.
pub(crate) fn describe(block: &Block) -> Vec<String> {
    let one = |address: &u32| {
        let Object { expected, pending, bytes, parity } = Object::unpack(load(block, *address));
        format!("mbarrier {address:#x}: parity {parity}, {pending} of {expected} arrivals and {bytes} bytes missing")
    };
    block.mbarriers.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::Object;

    #[test]
    fn fields_survive_packing() {
        for bytes in [0, 1, -1, (1 << 20) - 1, -(1 << 20) + 1] {
            for parity in [0, 1] {
                let object = Object { expected: 0xF_FFFF, pending: 0x8_0001, bytes, parity };
                assert_eq!(Object::unpack(object.pack()), object);
            }
        }
    }

    #[test]
    fn a_phase_completes_when_nothing_is_missing() {
        let mut object = Object { expected: 3, pending: 0, bytes: -16, parity: 0 };
        assert!(!object.settle(), "a copy landed before its bytes were expected");
        object.bytes += 16;
        assert!(object.settle());
        assert_eq!(object, Object { expected: 3, pending: 3, bytes: 0, parity: 1 });
    }
}
