//! `cp.async`: copies in flight, their groups, and when they land.

use super::global::{addresses as global_addresses, resolve};
use super::machine::{Block, Faulted, Machine};
use super::shared::{addresses as shared_addresses, check};
use super::warp::Warp;
use crate::check::{CopyId, Kind, Request};
use crate::counters::Direction;
use crate::decode::cold::CopyAsync;
use crate::launch::{AsyncCopies, FaultKind};

/// One instruction's copies.
#[derive(Debug)]
struct Copy {
    to: [u32; 32],
    from: [u64; 32],
    /// Bytes read per lane; the rest is zero.
    read: [u8; 32],
    bytes: u8,
    /// Lanes that have not waited for it.
    in_flight: u32,
    /// Lanes whose bytes have been moved.
    moved: u32,
    /// The group of each lane that it belongs to.
    group: [u32; 32],
    id: Option<CopyId>,
}

/// An arrival on an mbarrier that comes when earlier copies of the lanes are complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub addresses: [u32; 32],
    pub mask: u32,
    pub pc: u32,
}

/// The copies of one warp that have been issued and not waited for.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    queue: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; 32],
    pub(super) arrivals: Vec<Arrival>,
}

impl Copies {
    /// Nothing in flight.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.committed = [0; 32];
        self.arrivals.clear();
    }

    /// Close the current group of the lanes of `mask`.
    pub fn commit(&mut self, mask: u32) {
        for (lane, committed) in self.committed.iter_mut().enumerate() {
            *committed += mask >> lane & 1;
        }
    }

    /// Whether an mbarrier is still to hear of copies.
    pub fn owes_arrivals(&self) -> bool {
        !self.arrivals.is_empty()
    }
}

/// `cp.async.ca` and `cp.async.cg`
pub(super) fn issue(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    op: &CopyAsync,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    m.require(block, warp, op.to.slot, mask, pc)?;
    m.require(block, warp, op.from.slot, mask, pc)?;
    let bytes = u32::from(op.bytes);
    let to = shared_addresses(warp, op.to);
    let from = global_addresses(warp, op.from);
    check(m, block, warp.index, &to, bytes, mask, pc)?;
    let mut read = [op.bytes; 32];
    if let Some(slot) = op.source_bytes {
        m.require(block, warp, slot, mask, pc)?;
        for (lane, (read, wanted)) in read.iter_mut().zip(warp.row(slot)).enumerate() {
            if mask >> lane & 1 == 1 && *wanted > bytes {
                let message = format!("the source size {wanted} is larger than the copy of {bytes} bytes");
                return Err(m.fault(FaultKind::AsyncMisuse, block, warp.index, Some(lane as u32), pc, message));
            }
            *read = *wanted as u8;
        }
    }
    if let Some(predicate) = op.ignore {
        m.require_predicate(block, warp, predicate, mask, pc)?;
        for (lane, read) in read.iter_mut().enumerate() {
            if warp.predicate(predicate) >> lane & 1 == 1 {
                *read = 0;
            }
        }
    }
    let reading = (0..32).fold(0, |bits, lane| bits | u32::from(read[lane] != 0) << lane) & mask;
    let whole = (0..32).fold(0, |bits, lane| bits | u32::from(u32::from(read[lane]) == bytes) << lane) & mask;
    source(m, block, warp, &from, bytes, whole, pc)?;
    // A short read needs only its own bytes to be there, at the alignment of the whole copy.
    for lane in (0..32usize).filter(|lane| (reading & !whole) >> lane & 1 == 1) {
        if !from[lane].is_multiple_of(u64::from(bytes)) {
            return Err(m.misaligned(block, warp.index, lane as u32, pc, from[lane], bytes));
        }
        if let Err(fault) = m.view.resolve(from[lane], u64::from(read[lane])) {
            return Err(m.bad_address(block, warp.index, lane as u32, pc, fault));
        }
        partial(m, block, warp, from[lane], read[lane], lane, pc)?;
    }
    m.recorder.counters.async_copy_bytes +=
        (0..32usize).filter(|lane| mask >> lane & 1 == 1).map(|lane| u64::from(read[lane])).sum::<u64>();
    let mut id = None;
    if m.sanitizer.is_some() {
        let request = Request::weak(m.agent(block, warp.index), mask, bytes, Kind::Store, m.line(pc));
        if let Some(sanitizer) = &mut m.sanitizer {
            match sanitizer.async_issue(&request, &to) {
                Ok(copy) => id = Some(copy),
                Err(violation) => return Err(m.violation(block, warp.index, pc, &violation)),
            }
        }
    }
    let group = warp.copies.committed;
    let mut copy = Copy { to, from, read, bytes: op.bytes, in_flight: mask, moved: 0, group, id };
    if m.options.async_copies == AsyncCopies::Eager {
        transfer(m, block, &mut copy, mask);
    }
    warp.copies.queue.push(copy);
    Ok(())
}

/// Check and count the lanes that read all their bytes.
fn source(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &Warp,
    from: &[u64; 32],
    bytes: u32,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    resolve(m, block, warp.index, from, bytes, mask, pc)?;
    m.recorder.global_request(Direction::Load, mask, from, bytes);
    let request = Request::weak(m.agent(block, warp.index), mask, bytes, Kind::Load, m.line(pc));
    note_source(m, block, warp, &request, from, pc)
}

/// Check and count one lane that reads fewer bytes, in pieces that are a power of two.
fn partial(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &Warp,
    from: u64,
    read: u8,
    lane: usize,
    pc: u32,
) -> Result<(), Faulted> {
    let mut at = from;
    for bytes in [8u8, 4, 2, 1].into_iter().filter(|bytes| read & bytes != 0) {
        let addresses = [at; 32];
        m.recorder.global_request(Direction::Load, 1 << lane, &addresses, bytes.into());
        let request = Request::weak(m.agent(block, warp.index), 1 << lane, bytes.into(), Kind::Load, m.line(pc));
        note_source(m, block, warp, &request, &addresses, pc)?;
        at += u64::from(bytes);
    }
    Ok(())
}

fn note_source(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &Warp,
    request: &Request,
    from: &[u64; 32],
    pc: u32,
) -> Result<(), Faulted> {
    if let Some(sanitizer) = &mut m.sanitizer
        && let Err(violation) = sanitizer.global_access(request, from, &[])
    {
        return Err(m.violation(block, warp.index, pc, &violation));
    }
    Ok(())
}

/// Move the bytes of some lanes. Addresses were checked at the issue and memory that a launch sees is not freed.
fn transfer(m: &mut Machine<'_>, block: &mut Block, copy: &mut Copy, mask: u32) {
    let mask = mask & !copy.moved;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let (bytes, read) = (usize::from(copy.bytes), usize::from(copy.read[lane]));
        let Some(offset) = block.shared_offset(copy.to[lane], bytes as u32) else { continue };
        let target = &mut block.shared[offset..offset + bytes];
        target[read..].fill(0);
        if read != 0
            && let Ok(from) = m.view.resolve(copy.from[lane], read as u64)
        {
            // SAFETY: `resolve` vouches for `read` bytes at `from`, and `target` is a separate host buffer of at least
            // as many.
            unsafe { from.copy_to_nonoverlapping(target.as_mut_ptr(), read) };
        }
    }
    copy.moved |= mask;
    m.version += 1;
}

/// `cp.async.wait_group` and `cp.async.wait_all`
pub(super) fn wait(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    groups: Option<u32>,
    mask: u32,
    _pc: u32,
) -> Result<(), Faulted> {
    let committed = warp.copies.committed;
    land(m, block, warp, None, |copy| {
        let Some(keep) = groups else { return mask };
        (0..32).fold(0, |bits, lane| {
            let done = copy.group[lane].saturating_add(keep) < committed[lane];
            bits | u32::from(done) << lane
        }) & mask
    });
    Ok(())
}

/// Complete the lanes that `which` names of each copy: at a wait, or on an mbarrier.
fn land(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp, on: Option<u32>, which: impl Fn(&Copy) -> u32) {
    let agent = m.agent(block, warp.index);
    for copy in &mut warp.copies.queue {
        let lanes = which(copy) & copy.in_flight;
        if lanes == 0 {
            continue;
        }
        transfer(m, block, copy, lanes);
        copy.in_flight &= !lanes;
        if let (Some(sanitizer), Some(id)) = (&mut m.sanitizer, copy.id) {
            match on {
                None => sanitizer.async_complete(agent, id, lanes),
                Some(address) => sanitizer.async_complete_on(agent, id, lanes, address),
            }
        }
    }
    warp.copies.queue.retain(|copy| copy.in_flight != 0);
}

/// Let the copies land that mbarriers are to hear of, and arrive there. True when anything happened.
pub(crate) fn deliver(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Result<bool, Faulted> {
    let arrivals = std::mem::take(&mut warp.copies.arrivals);
    let any = !arrivals.is_empty();
    for Arrival { addresses, mask, pc } in arrivals {
        let mut left = mask;
        while left != 0 {
            let address = addresses[left.trailing_zeros() as usize];
            let same = (0..32).fold(0, |bits, lane| bits | u32::from(addresses[lane] == address) << lane) & left;
            left &= !same;
            land(m, block, warp, Some(address), |_| same);
            super::mbarrier::arrive_late(m, block, warp, address, same, pc)?;
        }
    }
    Ok(any)
}

/// The warp ends: what it issued still lands.
pub(super) fn abandon(m: &mut Machine<'_>, block: &mut Block, warp: &mut Warp) -> Result<(), Faulted> {
    deliver(m, block, warp)?;
    land(m, block, warp, None, |copy| copy.in_flight);
    Ok(())
}
