//! Loads and stores through generic addresses, and loads of parameters at run-time offsets.

use super::address::{Generic, PARAM_WINDOW, SHARED_WINDOW, classify};
use super::global::{self, addresses, read_one};
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

/// The same access with the window taken off its address.
fn narrowed(access: &Access, window: u64) -> Access {
    // Windows end in 32 zero bits, so the low word of the address is the address inside; `wide_address` makes the shared
    // path take just that.
    debug_assert_eq!(window as u32, 0);
    Access { wide_address: true, ..*access }
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
    let [in_global, in_shared, in_params] = sort(&addresses(warp, access.address()), mask);
    // A destination may be the address register, so the parts must not see each other's results: lanes are disjoint, and
    // each part writes its own lanes only.
    if m.checked() {
        global::load::<true>(m, block, warp, access, in_global, pc)?;
        shared::load::<true>(m, block, warp, &narrowed(access, SHARED_WINDOW), in_shared, pc)?;
    } else {
        global::load::<false>(m, block, warp, access, in_global, pc)?;
        shared::load::<false>(m, block, warp, &narrowed(access, SHARED_WINDOW), in_shared, pc)?;
    }
    if in_params != 0 {
        params(m, block, warp, access, PARAM_WINDOW, in_params, pc)?;
    }
    Ok(())
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
    let [in_global, in_shared, in_params] = sort(&addresses(warp, access.address()), mask);
    if in_params != 0 {
        let message = "store to the parameters".to_owned();
        let lane = Some(in_params.trailing_zeros());
        return Err(m.fault(FaultKind::IllegalAddress, block, warp.index, lane, pc, message));
    }
    if m.checked() {
        global::store::<true>(m, block, warp, access, in_global, pc)?;
        shared::store::<true>(m, block, warp, &narrowed(access, SHARED_WINDOW), in_shared, pc)
    } else {
        global::store::<false>(m, block, warp, access, in_global, pc)?;
        shared::store::<false>(m, block, warp, &narrowed(access, SHARED_WINDOW), in_shared, pc)
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
    params(m, block, warp, access, 0, mask, pc)
}

fn params(
    m: &Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    access: &Access,
    window: u64,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    let all = addresses(warp, access.address());
    let bytes = access.element.total();
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let offset = all[lane].wrapping_sub(window);
        if offset.checked_add(u64::from(bytes)).is_none_or(|end| end > m.params.len() as u64) {
            let message = format!("{bytes} bytes at offset {offset:#x} of a parameter block of {}", m.params.len());
            return Err(m.fault(FaultKind::IllegalAddress, block, warp.index, Some(lane as u32), pc, message));
        }
        if offset % u64::from(bytes) != 0 {
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
