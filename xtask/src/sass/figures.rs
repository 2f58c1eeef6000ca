//! What a kernel's machine code says about its speed.

use super::{class, class::Class, listing::Listing};
use crate::{
    flow::{Flow, Loop},
    row::Row,
};

/// An inner loop is taken to turn this many times for each turn of the loop around it.
const TURNS: u64 = 4;
/// Deeper loops weigh no more.
const DEEPEST: u32 = 5;
/// Bytes of device memory that one of the four schedulers of a multiprocessor gets a clock, in tenths: an H200's 4.3 TB/s
/// over 132 multiprocessors at 1.755 GHz.
const TENTH_BYTES_A_CLOCK: u64 = 46;
/// Clocks of a special-function instruction of a warp: 4 lanes a scheduler.
const MUFU_CLOCKS: u64 = 8;

/// Sums over some instructions, each times its weight.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    instructions: u64,
    tensor: u64,
    /// Tenths.
    tensor_clocks: u64,
    mufu: u64,
    barriers: u64,
    /// Bytes of global memory that a thread moves: all of them, those not in 16-byte accesses, those read.
    bytes: u64,
    narrow: u64,
    read: u64,
}

/// Adds the figures of one kernel to its row.
pub fn measure(listing: &Listing, row: &mut Row) -> Result<(), String> {
    let flow = Flow::new(&listing.steps()?);
    row.set("code", 16 * listing.instructions.len() as u64);
    for instruction in &listing.instructions {
        match class::of(instruction)? {
            Class::Tensor => row.add(&format!("tensor {}", instruction.opcode), 1),
            Class::Mufu => row.add("mufu", 1),
            Class::Load(bytes) => row.add(&format!("load {bytes}"), 1),
            Class::Store(bytes) => row.add(&format!("store {bytes}"), 1),
            Class::Copy(bytes) => row.add(&format!("copy {bytes}"), 1),
            Class::Atomic => row.add("atomics", 1),
            Class::Local => row.add("local", 1),
            Class::Barrier => row.add("barriers", 1),
            Class::Float | Class::Integer | Class::Shared(_) | Class::Fence | Class::Lanes => {}
            Class::Branch | Class::Nothing => {}
        }
    }
    let whole = sums(listing, &flow, &flow.order, weight)?;
    row.set("issue", whole.instructions);
    row.set("narrow", (1000 * whole.narrow).checked_div(whole.bytes).unwrap_or(0));
    let Some(hot) = hottest(listing, &flow)? else {
        let all = sums(listing, &flow, &flow.order, |_| 1)?;
        pressures(&all, row);
        row.set("asked", 32 * all.read);
        return Ok(());
    };
    let turn = sums(listing, &flow, &hot.blocks, |_| 1)?;
    row.set("loops", flow.loops.len() as u64);
    row.set("loop", turn.instructions);
    row.set("loop tensor", turn.tensor);
    row.set("loop mufu", turn.mufu);
    row.set("loop barriers", turn.barriers);
    row.set("asked", 32 * turn.read);
    // A loop over what lies in shared memory already says nothing about device memory: then the whole kernel counts.
    pressures(if turn.bytes > 0 || turn.tensor > 0 { &turn } else { &whole }, row);
    Ok(())
}

/// Issue slots and special functions against what the same instructions take of the tensor core or of device memory.
fn pressures(sums: &Sums, row: &mut Row) {
    let memory = 32 * 100 * sums.bytes / TENTH_BYTES_A_CLOCK;
    let tenths = sums.tensor_clocks.max(memory);
    let against = |clocks: u64| (10_000 * clocks).checked_div(tenths).unwrap_or(0);
    row.set("issue pressure", against(sums.instructions));
    row.set("mufu pressure", against(MUFU_CLOCKS * sums.mufu));
}

fn weight(depth: u32) -> u64 {
    TURNS.pow(depth.min(DEEPEST))
}

/// The loop in which the kernel spends most: of those that do not merely wait, the one whose own instructions (not those of
/// loops inside) weigh most in tensor operations, and where there are none, in instructions.
fn hottest<'a>(listing: &Listing, flow: &'a Flow) -> Result<Option<&'a Loop>, String> {
    let mut best: Option<(&Loop, [u64; 2])> = None;
    for l in &flow.loops {
        let own: Vec<usize> = l.blocks.iter().copied().filter(|b| flow.depth[*b] == l.depth).collect();
        let is_waiting =
            own.iter().any(|b| listing.instructions[flow.block(*b)].iter().any(|i| i.stem() == "NANOSLEEP"));
        if is_waiting {
            continue;
        }
        let sums = sums(listing, flow, &own, weight)?;
        let key = [sums.tensor, sums.instructions];
        if best.is_none_or(|(_, least)| key > least) {
            best = Some((l, key));
        }
    }
    Ok(best.map(|(l, _)| l))
}

fn sums(listing: &Listing, flow: &Flow, blocks: &[usize], weight: impl Fn(u32) -> u64) -> Result<Sums, String> {
    let mut sums = Sums::default();
    for &block in blocks {
        let times = weight(flow.depth[block]);
        for instruction in &listing.instructions[flow.block(block)] {
            let class = class::of(instruction)?;
            if class != Class::Nothing {
                sums.instructions += times;
            }
            match class {
                Class::Tensor => {
                    sums.tensor += times;
                    sums.tensor_clocks += times * u64::from(class::tensor_clocks(instruction)?);
                }
                Class::Mufu => sums.mufu += times,
                Class::Barrier => sums.barriers += times,
                Class::Load(bytes) | Class::Store(bytes) | Class::Copy(bytes) => {
                    let bytes = times * u64::from(bytes);
                    sums.bytes += bytes;
                    sums.narrow += if class_is_wide(class) { 0 } else { bytes };
                    sums.read += if matches!(class, Class::Store(_)) { 0 } else { bytes };
                }
                _ => {}
            }
        }
    }
    Ok(sums)
}

fn class_is_wide(class: Class) -> bool {
    matches!(class, Class::Load(16) | Class::Store(16) | Class::Copy(16))
}
