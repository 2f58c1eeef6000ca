//! Loads and stores of global memory.

use super::element::{read_dense, read_lanes, read_uniform, with_words, write_dense, write_lanes};
use super::machine::{Block, Faulted, Machine};
use super::warp::Warp;
use crate::check::{Kind, Order as Ordering, Request, Scope as Observers};
use crate::counters::{Counting, Direction};
use crate::decode::op::{Access, Address, Order, Scope};
use std::sync::atomic::{Ordering as Memory, fence};

/// Bytes of a sector.
const SECTOR: u64 = 32;

/// Addresses of every lane, offset included.
#[inline(always)]
pub(crate) fn addresses(warp: &Warp, address: Address) -> [u64; 32] {
    let mut all = *warp.wide(address.slot);
    let offset = address.offset as i64 as u64;
    for lane in &mut all {
        *lane = lane.wrapping_add(offset);
    }
    all
}

/// Whether all 32 lanes are side by side, `bytes` each.
#[inline(always)]
pub(crate) fn contiguous(addresses: &[u64; 32], bytes: u64) -> bool {
    let mut gaps = 0;
    for (lane, address) in addresses.iter().enumerate() {
        gaps |= address ^ addresses[0].wrapping_add(bytes * lane as u64);
    }
    gaps == 0
}

/// Whether all active lanes, of which there is one, have the same address.
#[inline(always)]
fn uniform(addresses: &[u64; 32], mask: u32) -> bool {
    let first = addresses[mask.trailing_zeros() as usize & 31];
    let mut differ = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differ |= (address ^ first) & 0u64.wrapping_sub(u64::from(mask >> lane & 1));
    }
    differ == 0
}

/// Host address of lane 0 when all lanes are active, aligned, side by side and inside one allocation: the usual case.
#[inline(always)]
fn dense(m: &Machine<'_>, addresses: &[u64; 32], bytes: u32, mask: u32) -> Option<*mut u8> {
    let bytes = u64::from(bytes);
    let usual = mask == u32::MAX && addresses[0] & (bytes - 1) == 0 && contiguous(addresses, bytes);
    if usual { m.view.resolve(addresses[0], 32 * bytes).ok() } else { None }
}

/// Host address of every active lane, after checking bounds and alignment.
#[inline(always)]
pub(super) fn resolve(
    m: &Machine<'_>,
    block: &Block,
    warp: u32,
    addresses: &[u64; 32],
    bytes: u32,
    mask: u32,
    pc: u32,
) -> Result<Places, Faulted> {
    let (mut low, mut high, mut bits) = (u64::MAX, 0u64, 0u64);
    for (lane, &address) in addresses.iter().enumerate() {
        let active = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
        low = low.min(address | !active);
        high = high.max(address & active);
        bits |= address & active;
    }
    if bits & u64::from(bytes - 1) == 0
        && let Some(span) = high.checked_sub(low)
        && span < 1 << 36
        && let Ok(base) = m.view.resolve(low, span + u64::from(bytes))
    {
        return Ok(Places::Near { base, low });
    }
    far(m, block, warp, addresses, bytes, mask, pc)
}

/// Where the lanes of one access are on the host.
pub(super) enum Places {
    /// All in one allocation: `base` is where address `low` is.
    Near {
        base: *mut u8,
        low: u64,
    },
    Far(Box<[*mut u8; 32]>),
}

impl Places {
    /// Host address of a lane that is active.
    #[inline(always)]
    pub fn lane(&self, lane: usize, addresses: &[u64; 32]) -> *mut u8 {
        match self {
            Self::Near { base, low } => base.wrapping_add((addresses[lane] - low) as usize),
            Self::Far(all) => all[lane],
        }
    }
}

#[cold]
#[inline(never)]
fn far(
    m: &Machine<'_>,
    block: &Block,
    warp: u32,
    addresses: &[u64; 32],
    bytes: u32,
    mask: u32,
    pc: u32,
) -> Result<Places, Faulted> {
    let mut all = Box::new([std::ptr::null_mut(); 32]);
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let address = addresses[lane];
        // Where there is memory, alignment comes before the end of it.
        if address & u64::from(bytes - 1) != 0 && m.view.resolve(address, 1).is_ok() {
            return Err(m.misaligned(block, warp, lane as u32, pc, address, bytes));
        }
        all[lane] = m
            .view
            .resolve(address, u64::from(bytes))
            .map_err(|fault| m.bad_address(block, warp, lane as u32, pc, fault))?;
    }
    Ok(Places::Far(all))
}

/// The sanitizer's words for an ordering.
pub(super) fn ordering(order: Order) -> Ordering {
    match order {
        Order::Weak | Order::ReadOnly => Ordering::Weak,
        Order::Volatile | Order::Relaxed => Ordering::Relaxed,
        Order::Acquire => Ordering::Acquire,
        Order::Release => Ordering::Release,
        Order::AcquireRelease => Ordering::AcquireRelease,
    }
}

/// The sanitizer's words for a scope.
pub(super) fn observers(scope: Scope) -> Observers {
    match scope {
        Scope::Cta => Observers::Cta,
        Scope::Gpu | Scope::System => Observers::Gpu,
    }
}

/// Tell the sanitizer and the counters of one access.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one call per access, and a struct would only rename the arguments")]
pub(super) fn note<const CHECKED: bool>(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &Warp,
    access: &Access,
    kind: Kind,
    addresses: &[u64; 32],
    dense: bool,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = access.element.total();
    if dense && m.options.counting == Counting::Basic {
        let counters = &mut m.recorder.counters;
        let traffic = if kind == Kind::Store { &mut counters.global_stores } else { &mut counters.global_loads };
        let length = u64::from(32 * bytes);
        traffic.requests += 1;
        traffic.bytes += length;
        traffic.sectors += (addresses[0] + length - 1) / SECTOR - addresses[0] / SECTOR + 1;
        traffic.ideal_sectors += length / SECTOR;
    } else {
        let direction = if kind == Kind::Store { Direction::Store } else { Direction::Load };
        m.recorder.global_request(direction, mask, addresses, bytes);
    }
    if CHECKED {
        let request = Request {
            agent: m.agent(block, warp.index),
            mask,
            bytes,
            kind,
            order: ordering(access.order),
            scope: observers(access.scope),
            line: m.line(pc),
        };
        if let Some(sanitizer) = &mut m.sanitizer {
            let result = if kind == Kind::Store {
                with_words(warp, access, |rows| sanitizer.global_access(&request, addresses, rows))
            } else {
                sanitizer.global_access(&request, addresses, &[])
            };
            if let Err(violation) = result {
                return Err(m.violation(block, warp.index, pc, &violation));
            }
        }
    }
    Ok(())
}

/// Refuse undefined sources of an access.
#[inline(always)]
pub(super) fn require<const CHECKED: bool>(
    m: &Machine<'_>,
    block: &Block,
    warp: &Warp,
    access: &Access,
    store: bool,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if CHECKED {
        m.require(block, warp, access.address, mask, pc)?;
        if store {
            for &slot in &access.data[..usize::from(access.element.count)] {
                m.require(block, warp, slot, mask, pc)?;
            }
        }
    }
    Ok(())
}

/// `ld.global`
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
    let bytes = access.element.total();
    let dense = dense(m, &addresses, bytes, mask);
    let places = match dense {
        Some(base) => Places::Near { base, low: addresses[0] },
        None => resolve(m, block, warp.index, &addresses, bytes, mask, pc)?,
    };
    if access.order.polls() {
        warp.polled = true;
        warp.polled_at = pc;
    }
    let kind = if access.order == Order::ReadOnly { Kind::LoadNonCoherent } else { Kind::Load };
    note::<CHECKED>(m, block, warp, access, kind, &addresses, dense.is_some(), mask, pc)?;
    if let Some(base) = dense {
        // SAFETY: `dense` found 32 times `bytes` bytes inside one allocation.
        unsafe { read_dense(warp, access, base) };
    } else if let Places::Near { base, .. } = places
        && uniform(&addresses, mask)
    {
        // SAFETY: `resolve` checked `bytes` at the lowest address, which is the only one.
        unsafe { read_uniform(warp, access, mask, base) };
    } else {
        // SAFETY: `resolve` checked `bytes` at every active lane's place.
        unsafe { read_lanes(warp, access, mask, |lane| places.lane(lane, &addresses)) };
    }
    if access.order == Order::Acquire {
        fence(Memory::Acquire);
    }
    Ok(())
}

/// `st.global`
#[inline(always)]
pub(super) fn store<const CHECKED: bool>(
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
    require::<CHECKED>(m, block, warp, access, true, mask, pc)?;
    let addresses = addresses(warp, access.address());
    let bytes = access.element.total();
    let dense = dense(m, &addresses, bytes, mask);
    let places = match dense {
        Some(base) => Places::Near { base, low: addresses[0] },
        None => resolve(m, block, warp.index, &addresses, bytes, mask, pc)?,
    };
    note::<CHECKED>(m, block, warp, access, Kind::Store, &addresses, dense.is_some(), mask, pc)?;
    m.version += 1;
    if access.order == Order::Release {
        fence(Memory::Release);
    }
    if let Some(base) = dense {
        // SAFETY: as in `load`; device memory is raw memory that nothing holds references to.
        unsafe { write_dense(warp, access, base) };
    } else {
        // SAFETY: `resolve` checked `bytes` at every active lane's place.
        unsafe { write_lanes(warp, access, mask, |lane| places.lane(lane, &addresses)) };
    }
    Ok(())
}
