//! Arithmetic of the side table: functions that the decoder picked.

use super::machine::{Block, Faulted, Machine};
use super::warp::Warp;
use crate::decode::cold::{LaneFn, Map, Place, TestFn};
use crate::decode::op::{Pred, Slot};

/// A function of whole registers.
#[expect(clippy::too_many_arguments, reason = "the operands of one instruction")]
pub(super) fn lanes(
    m: &Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    f: &LaneFn,
    d: Slot,
    sources: &[Slot],
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    if mask == 0 {
        return Ok(());
    }
    for &slot in sources {
        m.require(block, warp, slot, mask, pc)?;
    }
    let operand = |index: usize| warp.row(sources.get(index).copied().unwrap_or(0));
    let result = f(operand(0), operand(1), operand(2));
    warp.put(d, &result, mask);
    Ok(())
}

/// A comparison of whole registers.
#[expect(clippy::too_many_arguments, reason = "the operands of one instruction")]
pub(super) fn test(
    m: &Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    f: &TestFn,
    d: Pred,
    (a, b): (Slot, Slot),
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    m.require(block, warp, a, mask, pc)?;
    m.require(block, warp, b, mask, pc)?;
    let result = f(warp.row(a), warp.row(b));
    warp.put_predicate(d, result, mask);
    Ok(())
}

/// A function of single lanes.
pub(super) fn map(
    m: &Machine<'_>,
    block: &Block,
    warp: &mut Warp,
    map: &Map,
    mask: u32,
    pc: u32,
) -> Result<(), Faulted> {
    for place in map.from {
        match place {
            Place::None => {}
            Place::Half(slot) | Place::Word(slot) | Place::Double(slot) => m.require(block, warp, slot, mask, pc)?,
            Place::Pred(pred) => m.require_predicate(block, warp, pred, mask, pc)?,
        }
    }
    let mut results = [[0u64; 32]; 2];
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let operands = map.from.map(|place| match place {
            Place::None => 0,
            Place::Half(slot) => u64::from(warp.row(slot)[lane] & 0xFFFF),
            Place::Word(slot) => warp.row(slot)[lane].into(),
            Place::Double(slot) => warp.wide(slot)[lane],
            Place::Pred(pred) => u64::from(warp.predicate(pred) >> lane & 1),
        });
        let values = (map.f)(operands);
        results[0][lane] = values[0];
        results[1][lane] = values[1];
    }
    for (place, values) in map.to.iter().zip(&results) {
        match *place {
            Place::None => {}
            Place::Half(slot) => warp.put(slot, &values.map(|value| value as u32 & 0xFFFF), mask),
            Place::Word(slot) => warp.put(slot, &values.map(|value| value as u32), mask),
            Place::Double(slot) => warp.put_wide(slot, values, mask),
            Place::Pred(pred) => {
                let bits =
                    values.iter().enumerate().fold(0, |bits, (lane, value)| bits | ((*value as u32 & 1) << lane));
                warp.put_predicate(pred, bits, mask);
            }
        }
    }
    Ok(())
}
