//! Loads and stores of global memory.

use super::machine::{Block, Faulted, Machine};
use super::warp::Warp;
use crate::check::{Kind, Order as Ordering, Request, Scope as Observers};
use crate::counters::Direction;
use crate::decode::op::{Access, Address, Element, Order, Scope};
use std::sync::atomic::{Ordering as Memory, fence};

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
    Near { base: *mut u8, low: u64 },
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
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = access.element.total();
    let direction = if kind == Kind::Store { Direction::Store } else { Direction::Load };
    m.recorder.global_request(direction, mask, addresses, bytes);
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
        let (values, rows) = if kind == Kind::Store { words(warp, access) } else { ([[0; 32]; 4], 0) };
        let rows = &[&values[0], &values[1], &values[2], &values[3]][..rows];
        if let Some(sanitizer) = &mut m.sanitizer
            && let Err(violation) = sanitizer.global_access(&request, addresses, rows)
        {
            return Err(m.violation(block, warp.index, pc, &violation));
        }
    }
    Ok(())
}

/// The values of a store, one row of lanes per 4 bytes; how many rows.
pub(super) fn words(warp: &Warp, access: &Access) -> ([[u32; 32]; 4], usize) {
    let mut rows = [[0; 32]; 4];
    let mut used = 0;
    for (index, &slot) in access.data[..usize::from(access.element.count)].iter().enumerate() {
        match access.element.bytes {
            8 => {
                for (lane, value) in warp.wide(slot).iter().enumerate() {
                    rows[used][lane] = *value as u32;
                    rows[used + 1][lane] = (*value >> 32) as u32;
                }
                used += 2;
            }
            4 => {
                rows[used] = *warp.row(slot);
                used += 1;
            }
            // Narrow values are packed side by side, as memory holds them.
            bytes => {
                let shift = 8 * u32::from(bytes) * index as u32;
                let keep = (1u32 << (8 * bytes)) - 1;
                for (lane, value) in warp.row(slot).iter().enumerate() {
                    rows[(shift / 32) as usize][lane] |= (value & keep) << (shift % 32);
                }
                used = (shift / 32) as usize + 1;
            }
        }
    }
    (rows, used)
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
    let element = access.element;
    let bytes = element.total();
    let places = resolve(m, block, warp.index, &addresses, bytes, mask, pc)?;
    if access.order.polls() {
        warp.polled = true;
        warp.polled_at = pc;
    }
    let kind = if access.order == Order::ReadOnly { Kind::LoadNonCoherent } else { Kind::Load };
    note::<CHECKED>(m, block, warp, access, kind, &addresses, mask, pc)?;
    if let (Places::Near { base, .. }, u32::MAX) = (&places, mask)
        && contiguous(&addresses, u64::from(bytes))
    {
        // SAFETY: `resolve` found all bytes from the lowest to the highest address inside one allocation; the lanes are
        // side by side, so the lowest is lane 0's and 32 times `bytes` follow.
        unsafe { read_dense(warp, access, *base) };
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
    let places = resolve(m, block, warp.index, &addresses, bytes, mask, pc)?;
    note::<CHECKED>(m, block, warp, access, Kind::Store, &addresses, mask, pc)?;
    m.version += 1;
    if access.order == Order::Release {
        fence(Memory::Release);
    }
    if let (Places::Near { base, .. }, u32::MAX) = (&places, mask)
        && contiguous(&addresses, u64::from(bytes))
    {
        // SAFETY: as in `load`; device memory is raw memory that nothing holds references to.
        unsafe { write_dense(warp, access, *base) };
    } else {
        // SAFETY: `resolve` checked `bytes` at every active lane's place.
        unsafe { write_lanes(warp, access, mask, |lane| places.lane(lane, &addresses)) };
    }
    Ok(())
}

/// Read 32 lanes that lie side by side from `base`.
///
/// # Safety
/// 32 times the element's total must be readable at `base`.
#[inline(always)]
pub(super) unsafe fn read_dense(warp: &mut Warp, access: &Access, base: *const u8) {
    let Element { bytes, signed, wide, count } = access.element;
    let count = usize::from(count);
    match (bytes, wide) {
        (4, false) => {
            for (part, &slot) in access.data[..count].iter().enumerate() {
                let mut row = [0u32; 32];
                for (lane, value) in row.iter_mut().enumerate() {
                    // SAFETY: lane * count + part is below 32 * count words, all of which the caller vouches for.
                    *value = unsafe { base.cast::<u32>().add(lane * count + part).read_unaligned() };
                }
                warp.put(slot, &row, u32::MAX);
            }
        }
        (2, false) if !signed => {
            for (part, &slot) in access.data[..count].iter().enumerate() {
                let mut row = [0u32; 32];
                for (lane, value) in row.iter_mut().enumerate() {
                    // SAFETY: as above, in half words.
                    *value = unsafe { base.cast::<u16>().add(lane * count + part).read_unaligned() }.into();
                }
                warp.put(slot, &row, u32::MAX);
            }
        }
        _ => {
            let step = usize::from(bytes) * count;
            // SAFETY: every lane's bytes are inside what the caller vouches for.
            unsafe { read_lanes(warp, access, u32::MAX, |lane| base.wrapping_add(lane * step)) };
        }
    }
}

/// Read each active lane from its own place.
///
/// # Safety
/// The element's total must be readable at the place of every lane of `mask`.
#[inline(always)]
pub(super) unsafe fn read_lanes(warp: &mut Warp, access: &Access, mask: u32, place: impl Fn(usize) -> *const u8) {
    let Element { bytes, signed, wide, count } = access.element;
    for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
        let mut row = [0u64; 32];
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let from = place(lane).wrapping_add(part * usize::from(bytes));
            // SAFETY: the caller vouches for `count` elements at the lane's place, and `part` is below `count`.
            row[lane] = unsafe { read_one(from, bytes, signed) };
        }
        if wide {
            warp.put_wide(slot, &row, mask);
        } else {
            warp.put(slot, &row.map(|value| value as u32), mask);
        }
    }
}

/// Read one element, extended to 64 bits.
///
/// # Safety
/// `bytes` must be readable at `from`.
#[inline(always)]
pub(super) unsafe fn read_one(from: *const u8, bytes: u8, signed: bool) -> u64 {
    // SAFETY: the caller vouches for `bytes` bytes; unaligned reads need nothing else.
    unsafe {
        match (bytes, signed) {
            (1, false) => from.read().into(),
            (1, true) => from.cast::<i8>().read() as i64 as u64,
            (2, false) => from.cast::<u16>().read_unaligned().into(),
            (2, true) => from.cast::<i16>().read_unaligned() as i64 as u64,
            (4, false) => from.cast::<u32>().read_unaligned().into(),
            (4, true) => from.cast::<i32>().read_unaligned() as i64 as u64,
            _ => from.cast::<u64>().read_unaligned(),
        }
    }
}

/// Write 32 lanes side by side from `base`.
///
/// # Safety
/// 32 times the element's total must be writable at `base`.
#[inline(always)]
pub(super) unsafe fn write_dense(warp: &Warp, access: &Access, base: *mut u8) {
    let Element { bytes, count, .. } = access.element;
    let count = usize::from(count);
    match bytes {
        4 => {
            for (part, &slot) in access.data[..count].iter().enumerate() {
                for (lane, value) in warp.row(slot).iter().enumerate() {
                    // SAFETY: lane * count + part is below 32 * count words, all of which the caller vouches for.
                    unsafe { base.cast::<u32>().add(lane * count + part).write_unaligned(*value) };
                }
            }
        }
        2 => {
            for (part, &slot) in access.data[..count].iter().enumerate() {
                for (lane, value) in warp.row(slot).iter().enumerate() {
                    // SAFETY: as above, in half words.
                    unsafe { base.cast::<u16>().add(lane * count + part).write_unaligned(*value as u16) };
                }
            }
        }
        _ => {
            let step = usize::from(bytes) * count;
            // SAFETY: every lane's bytes are inside what the caller vouches for.
            unsafe { write_lanes(warp, access, u32::MAX, |lane| base.wrapping_add(lane * step)) };
        }
    }
}

/// Write each active lane to its own place, lowest lane first.
///
/// # Safety
/// The element's total must be writable at the place of every lane of `mask`.
#[inline(always)]
pub(super) unsafe fn write_lanes(warp: &Warp, access: &Access, mask: u32, place: impl Fn(usize) -> *mut u8) {
    let Element { bytes, count, .. } = access.element;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let start = place(lane);
        for (part, &slot) in access.data[..usize::from(count)].iter().enumerate() {
            let to = start.wrapping_add(part * usize::from(bytes));
            let value = if bytes == 8 { warp.wide(slot)[lane] } else { warp.row(slot)[lane].into() };
            // SAFETY: the caller vouches for `count` elements at the lane's place, and `part` is below `count`.
            unsafe { write_one(to, bytes, value) };
        }
    }
}

/// Write the low `bytes` of a value.
///
/// # Safety
/// `bytes` must be writable at `to`.
#[inline(always)]
pub(super) unsafe fn write_one(to: *mut u8, bytes: u8, value: u64) {
    // SAFETY: the caller vouches for `bytes` bytes; unaligned writes need nothing else.
    unsafe {
        match bytes {
            1 => to.write(value as u8),
            2 => to.cast::<u16>().write_unaligned(value as u16),
            4 => to.cast::<u32>().write_unaligned(value as u32),
            _ => to.cast::<u64>().write_unaligned(value),
        }
    }
}
