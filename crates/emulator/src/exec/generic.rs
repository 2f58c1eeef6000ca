//! Loads and stores through generic addresses, and loads of parameters at run-time offsets.

use super::address::{Generic, PARAM_WINDOW, classify};
use super::element::read_one;
use super::global::{self, addresses};
use super::machine::{Block, Faulted, Machine};
use super::shared;
use super::warp::Warp;
use crate::decode::op::Access;
use crate::launch::FaultKind;

/// Lanes by the space that their address lies in: global, shared, parameters.
fn sort(all: &[u64; 32], mask: u32) -> [u32; 3] {
    let mut lanes = [0; 3];
    for (lane, &address) in all.iter().enumerate() {
        let space = match classify(address) {
            Generic::Global => 0,
            Generic::Shared(_) => 1,
            Generic::Param(_) => 2,
        };
        lanes[space] |= (mask >> lane & 1) << lane;
    }
    lanes
}

/// The addresses inside the shared window, for the lanes that have one.
fn inside(all: &[u64; 32]) -> [u32; 32] {
    std::array::from_fn(|lane| match classify(all[lane]) {
        Generic::Shared(address) => address,
        _ => 0,
    })
}

/// `ld`
pub(super) fn load(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    access: &Access,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    m.require(block, warp, access.address, mask, pc)?;
    let all = addresses(warp, access.address());
    let [in_global, in_shared, in_params] = sort(&all, mask);
    // A destination may be the address register: lanes are disjoint, and each part writes its own lanes only.
    if in_params != 0 {
        params(m, block, warp, access, &all, PARAM_WINDOW, in_params, pc)?;
    }
    let checked = m.checked();
    if in_shared != 0 {
        let inside = inside(&all);
        if checked {
            shared::load_at::<true>(m, block, warp, access, &inside, in_shared, pc)?;
        } else {
            shared::load_at::<false>(m, block, warp, access, &inside, in_shared, pc)?;
        }
    }
    if checked {
        global::load::<true>(m, block, warp, access, in_global, pc)
    } else {
        global::load::<false>(m, block, warp, access, in_global, pc)
    }
}

/// `st`
pub(super) fn store(
    m: &mut Machine<'_>,
    block: &mut Block,
    warp: &mut Warp,
    access: &Access,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    m.require(block, warp, access.address, mask, pc)?;
    let all = addresses(warp, access.address());
    let [in_global, in_shared, in_params] = sort(&all, mask);
    for &slot in &access.data[..usize::from(access.element.count)] {
        m.require(block, warp, slot, mask, pc)?;
    }
    if in_params != 0 {
        let message = "store to the parameters".to_owned();
        let lane = Some(in_params.trailing_zeros());
        return Err(m.fault(FaultKind::IllegalAddress, block, warp.index, lane, pc, message));
    }
    let checked = m.checked();
    if in_shared != 0 {
        let inside = inside(&all);
        if checked {
            shared::store_at::<true>(m, block, warp, access, &inside, in_shared, pc)?;
        } else {
            shared::store_at::<false>(m, block, warp, access, &inside, in_shared, pc)?;
        }
    }
    if checked {
        global::store::<true>(m, block, warp, access, in_global, pc)
    } else {
        global::store::<false>(m, block, warp, access, in_global, pc)
    }
}

/// `ld.param` through a register
pub(super) fn load_param(
    m: &mut Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    access: &Access,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    m.require(block, warp, access.address, mask, pc)?;
    let all = addresses(warp, access.address());
    params(m, block, warp, access, &all, 0, mask, pc)
}

#[expect(clippy::too_many_arguments, reason = "one call per access, and a struct would only rename the arguments")]
fn params(
    m: &Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    access: &Access,
    all: &[u64; 32],
    window: u64,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let bytes = access.element.total();
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let offset = all[lane].wrapping_sub(window);
        if offset.checked_add(u64::from(bytes)).is_none_or(|end| end > m.params.len() as u64) {
            let message = format!("{bytes} bytes at offset {offset:#x} of a parameter block of {}", m.params.len());
            return Err(m.fault(FaultKind::IllegalAddress, block, warp.index, Some(lane as u32), pc, message));
        }
        if !offset.is_multiple_of(u64::from(bytes)) {
            return Err(m.misaligned(block, warp.index, lane as u32, pc, offset, bytes));
        }
    }
    for (part, &slot) in access.data[..usize::from(access.element.count)].iter().enumerate() {
        let mut row = [0u64; 32];
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let offset = all[lane].wrapping_sub(window) as usize + part * usize::from(access.element.bytes);
            // SAFETY: the loop above found the whole access inside the parameter block.
            row[lane] = unsafe { read_one(m.params.as_ptr().add(offset), access.element.bytes, access.element.signed) };
        }
        if access.element.wide {
            warp.put_wide(slot, &row, mask);
        } else {
            warp.put(slot, &row.map(|value| value as u32), mask);
        }
    }
    Ok(())
}
