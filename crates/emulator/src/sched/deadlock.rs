//! Reports of launches that cannot end.

use super::Slot;
use crate::exec::machine::{Block, Machine};
use crate::exec::mbarrier;
use crate::exec::warp::{State, Warp};
use crate::launch::{Fault, FaultKind};

/// Warps that a report lists one by one.
const LISTED: usize = 24;

/// Nothing can go on: who waits for what.
#[cold]
pub(super) fn report(m: &Machine<'_>, resident: &[Slot], left: u64) -> Box<Fault> {
    let mut message = format!("nothing can go on: {} CTAs are resident", resident.len());
    if left != 0 {
        message.push_str(&format!(
            ", {left} more cannot start before one of these ends, so none of these may wait for them"
        ));
    }
    tell(m, resident, FaultKind::Deadlock, message)
}

/// The launch has used up its instructions.
#[cold]
pub(super) fn limit(m: &Machine<'_>, resident: &[Slot]) -> Box<Fault> {
    let message = format!("more than {} warp instructions; the launch counts as hung", m.options.instruction_limit);
    tell(m, resident, FaultKind::InstructionLimit, message)
}

fn tell(m: &Machine<'_>, resident: &[Slot], kind: FaultKind, mut message: String) -> Box<Fault> {
    let mut place = None;
    let mut listed = 0;
    let mut more = 0;
    let mut mbarriers = Vec::new();
    for slot in resident {
        let Slot::Running(cta) = slot else { continue };
        mbarriers.extend(mbarrier::describe(&cta.block).into_iter().map(|text| (cta.block.id, text)));
        for warp in cta.live_warps() {
            let (pc, what) = waiting(m, warp, &cta.block);
            place.get_or_insert((pc, cta.block.id));
            if listed == LISTED {
                more += 1;
                continue;
            }
            listed += 1;
            let [x, y, z] = cta.block.id;
            message.push_str(&format!("\n  CTA ({x}, {y}, {z}) warp {}: {what}", warp.index));
        }
    }
    for ([x, y, z], text) in mbarriers.into_iter().take(LISTED) {
        message.push_str(&format!("\n  CTA ({x}, {y}, {z}) {text}"));
    }
    if more != 0 {
        message.push_str(&format!("\n  and {more} more warps"));
    }
    let (pc, cta) = place.unwrap_or((0, [0; 3]));
    Box::new(Fault { kind, kernel: m.program.name.clone(), line: m.line(pc), cta, thread: None, message })
}

/// Where a warp stands, and what it waits for.
fn waiting(m: &Machine<'_>, warp: &Warp, block: &Block) -> (u32, String) {
    if let State::Barrier { id, pc } = warp.state {
        return (pc, format!("waits at line {}: {}", m.line(pc), block.barriers.describe(id)));
    }
    let groups: Vec<String> = warp
        .groups
        .iter()
        .map(|group| {
            let how = if group.parked { "waits for other lanes" } else { "runs" };
            format!("lanes {:#010x} {how} at line {}", group.mask, m.line(group.pc))
        })
        .collect();
    let polled = warp.polled_at;
    (polled, format!("polls at line {}; {}", m.line(polled), groups.join(", ")))
}
