//! Loads and stores of shared memory.

use super::address::SHARED_BASE;
use super::element::{read_dense, read_lanes, read_uniform, with_words, write_dense, write_lanes};
use super::global::require;
use super::machine::{Block, Faulted, Machine};
use super::warp::Warp;
use crate::check::{Kind, Request};
use crate::counters::{Direction, SharedTraffic};
use crate::decode::op::{Access, Address};

/// An address that is outside every CTA's shared memory, and aligned for every access.
const OUTSIDE: u32 = 0xFFFF_FFF0;

/// Addresses of every lane, offset included.
#[inline(always)]
pub(crate) fn addresses(warp: &Warp, address: Address) -> [u32; 32] {
    let offset = address.offset as u32;
    if address.wide {
        let wide = warp.wide(address.slot);
        return std::array::from_fn(|lane| {
            let address = wide[lane].wrapping_add(address.offset as i64 as u64);
            // What does not fit 32 bits, a generic address for one, points to no shared memory.
            u32::try_from(address).unwrap_or(OUTSIDE)
        });
    }
    let mut all = *warp.row(address.slot);
    for lane in &mut all {
        *lane = lane.wrapping_add(offset);
    }
    all
}

/// Whether all 32 lanes are side by side, `bytes` each.
#[inline(always)]
fn contiguous(addresses: &[u32; 32], bytes: u32) -> bool {
    let mut gaps = 0;
    for (lane, address) in addresses.iter().enumerate() {
        gaps |= address ^ addresses[0].wrapping_add(bytes * lane as u32);
    }
    gaps == 0
}

/// Whether all active lanes, of which there is one, have the same address.
#[inline(always)]
fn uniform(addresses: &[u32; 32], mask: u32) -> bool {
    let first = addresses[mask.trailing_zeros() as usize & 31];
    let mut differ = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differ |= (address ^ first) & 0u32.wrapping_sub(mask >> lane & 1);
    }
    differ == 0
}

/// Where in the CTA's memory lane 0 is when all lanes are active, aligned, side by side and inside: the usual case.
#[inline(always)]
fn dense(block: &Block, addresses: &[u32; 32], bytes: u32, mask: u32) -> Option<usize> {
    let usual = mask == u32::MAX && addresses[0] & (bytes - 1) == 0 && contiguous(addresses, bytes);
    if usual { block.shared_offset(addresses[0], 32 * bytes) } else { None }
}

/// Count a request of all 32 lanes that needs no more passes over the banks than it must: lanes side by side from a
/// multiple of the size on, or all at one address.
#[inline(always)]
fn count_ideal(traffic: &mut SharedTraffic, bytes: u32) {
    let passes = u64::from(bytes.div_ceil(4));
    traffic.requests += 1;
    traffic.bytes += u64::from(32 * bytes);
    traffic.wavefronts += passes;
    traffic.ideal_wavefronts += passes;
}

/// Check bounds and alignment of every active lane; gives the lowest address.
#[inline(always)]
pub(super) fn check(
    m: &Machine<'_>,
    block: &Block,
    warp: u32,
    addresses: &[u32; 32],
    bytes: u32,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let (mut low, mut high, mut bits) = (u32::MAX, 0u32, 0u32);
    for (lane, &address) in addresses.iter().enumerate() {
        let active = 0u32.wrapping_sub(mask >> lane & 1);
        low = low.min(address | !active);
        high = high.max(address & active);
        bits |= address & active;
    }
    let inside = block.shared_offset(low, bytes).is_some() && block.shared_offset(high, bytes).is_some();
    if inside && bits & (bytes - 1) == 0 { Ok(()) } else { Err(blame(m, block, warp, addresses, bytes, mask, pc)) }
}

#[cold]
#[inline(never)]
fn blame(m: &Machine<'_>, block: &Block, warp: u32, addresses: &[u32; 32], bytes: u32, mask: u32, pc: u32) -> Faulted {
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let address = addresses[lane as usize];
        if address & (bytes - 1) != 0 && block.shared_offset(address, 1).is_some() {
            return m.misaligned(block, warp, lane, pc, address.into(), bytes);
        }
        if block.shared_offset(address, bytes).is_none() {
            return m.bad_shared(block, warp, lane, pc, address, bytes);
        }
    }
    m.bad_shared(block, warp, 0, pc, addresses[0], bytes)
}

/// Tell the sanitizer of one access.
#[inline(always)]
pub(super) fn note(
    m: &mut Machine<'_>,
    block: &Block,
    warp: u32,
    request: &Request,
    addresses: &[u32; 32],
    values: &[&[u32; 32]],
    pc: u32,
) -> Result<(), Faulted> {
    if let Some(sanitizer) = &mut m.sanitizer
        && let Err(violation) = sanitizer.shared_access(request, addresses, values)
    {
        return Err(m.violation(block, warp, pc, &violation));
    }
    Ok(())
}

/// `ld.shared`
#[inline(always)]
pub(super) fn load<const CHECKED: bool>(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    access: &Access,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    require::<CHECKED>(m, block, warp, access, false, mask, pc)?;
    let addresses = addresses(warp, access.address());
    load_at::<CHECKED>(m, block, warp, access, &addresses, mask, pc)
}

/// A load from these addresses.
#[inline(always)]
pub(super) fn load_at<const CHECKED: bool>(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    access: &Access,
    addresses: &[u32; 32],
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = access.element.total();
    let dense = dense(block, addresses, bytes, mask);
    let same = dense.is_none() && uniform(addresses, mask);
    if dense.is_none() {
        check(m, block, warp.index, addresses, bytes, mask, pc)?;
    }
    if access.order.polls() {
        warp.polled = true;
        warp.polled_at = pc;
    }
    if dense.is_some() || (same && mask == u32::MAX) {
        count_ideal(&mut m.recorder.counters.shared_loads, bytes);
    } else {
        m.recorder.shared_request(Direction::Load, mask, addresses, bytes);
    }
    if CHECKED {
        let request = request(m, block, warp, access, mask, Kind::Load, pc);
        note(m, block, warp.index, &request, addresses, &[], pc)?;
    }
    let base = block.shared.as_ptr();
    let place = |lane: usize| base.wrapping_add(addresses[lane].wrapping_sub(SHARED_BASE) as usize);
    if let Some(offset) = dense {
        // SAFETY: `dense` found 32 times `bytes` bytes inside.
        unsafe { read_dense(warp, access, base.wrapping_add(offset)) };
    } else if same {
        // SAFETY: `check` found the address of the active lanes, which is the same in all, inside.
        unsafe { read_uniform(warp, access, mask, place(mask.trailing_zeros() as usize & 31)) };
    } else {
        // SAFETY: `check` found the lowest and the highest active lane inside, so all are.
        unsafe { read_lanes(warp, access, mask, place) };
    }
    Ok(())
}

/// `st.shared`
#[inline(always)]
pub(super) fn store<const CHECKED: bool>(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    access: &Access,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    require::<CHECKED>(m, block, warp, access, true, mask, pc)?;
    let addresses = addresses(warp, access.address());
    store_at::<CHECKED>(m, block, warp, access, &addresses, mask, pc)
}

/// A store to these addresses.
#[inline(always)]
pub(super) fn store_at<const CHECKED: bool>(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    access: &Access,
    addresses: &[u32; 32],
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = access.element.total();
    let dense = dense(block, addresses, bytes, mask);
    if dense.is_some() {
        count_ideal(&mut m.recorder.counters.shared_stores, bytes);
    } else {
        check(m, block, warp.index, addresses, bytes, mask, pc)?;
        m.recorder.shared_request(Direction::Store, mask, addresses, bytes);
    }
    m.version += 1;
    if CHECKED {
        let request = request(m, block, warp, access, mask, Kind::Store, pc);
        with_words(warp, access, |rows| note(m, block, warp.index, &request, addresses, rows, pc))?;
    }
    let base = block.shared.as_mut_ptr();
    let place = |lane: usize| base.wrapping_add(addresses[lane].wrapping_sub(SHARED_BASE) as usize);
    if let Some(offset) = dense {
        // SAFETY: `dense` found 32 times `bytes` bytes inside; `block` is borrowed mutably.
        unsafe { write_dense(warp, access, base.wrapping_add(offset)) };
    } else {
        // SAFETY: `check` found the lowest and the highest active lane inside, so all are.
        unsafe { write_lanes(warp, access, mask, place) };
    }
    Ok(())
}

fn request(m: &Machine<'_>, block: &Block, warp: &Warp, access: &Access, mask: u32, kind: Kind, pc: u32) -> Request {
    Request {
        agent: m.agent(block, warp.index),
        mask,
        bytes: access.element.total(),
        kind,
        order: super::global::ordering(access.order),
        scope: super::global::observers(access.scope),
        line: m.line(pc),
    }
}
