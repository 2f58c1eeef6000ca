//! Blocks that speak to each other through global memory: waits, atomic operations, releases, acquires.

use super::{
    Finding,
    code::{Code, has, is_barrier, is_global, name, read, written},
};
use lookback_emulator::ptx::ast::Instruction;

fn is_fence(i: &Instruction) -> bool {
    i.opcode == "fence" && has(i, "acq_rel") && (has(i, "gpu") || has(i, "sys"))
}

fn is_release(i: &Instruction) -> bool {
    matches!(i.opcode.as_str(), "st" | "red" | "atom") && (has(i, "release") || has(i, "acq_rel"))
}

/// Loops that can only wait: those that sleep, and those that carry nothing from turn to turn and write nothing. What they read
/// of global memory must be read with acquire, or the loop might see the flag and not what it stands for.
///
/// Carried is a register that some instruction of the loop reads before the loop has written it in that turn.
pub fn waits(code: &Code) -> Vec<Finding> {
    let mut found = Vec::new();
    for l in &code.flow.loops {
        let own = || l.blocks.iter().flat_map(|b| code.flow.block(*b)).map(|i| (i, &code.entry.body[i]));
        let sleeps = own().any(|(_, i)| i.opcode == "nanosleep");
        let acts = own().any(|(_, i)| matches!(i.opcode.as_str(), "st" | "red" | "atom" | "cp") || is_barrier(i));
        let reads = own().any(|(_, i)| is_global(i, "ld"));
        if !reads || !(sleeps || (!acts && !carries(code, &l.blocks))) {
            continue;
        }
        let plain = own().filter(|(_, i)| is_global(i, "ld") && !has(i, "acquire"));
        found.extend(
            plain.map(|(_, i)| Finding { line: i.line, message: format!("`{}` in a loop that waits", name(i)) }),
        );
    }
    found
}

fn carries(code: &Code, blocks: &[usize]) -> bool {
    let all: Vec<usize> = blocks.iter().flat_map(|b| code.flow.block(*b)).collect();
    let is_before = |writer: usize, reader: usize| {
        let (from, to) = (code.flow.block_of(writer), code.flow.block_of(reader));
        if from == to { writer < reader } else { code.flow.dominates(from, to) }
    };
    all.iter().any(|reader| {
        read(&code.entry.body[*reader]).iter().any(|register| {
            let mut writers = all.iter().filter(|w| written(&code.entry.body[**w]).contains(register)).peekable();
            writers.peek().is_some() && !writers.any(|w| code.entry.body[*w].guard.is_none() && is_before(*w, *reader))
        })
    })
}

/// An atomic operation without an order is right in three places: between two fences; before every store to global memory,
/// where it hands out work and publishes nothing (a ticket); and as a `red` that only sets bits or adds floats, which nobody
/// waits for within the launch.
pub fn atomics(code: &Code) -> Vec<Finding> {
    let body = &code.entry.body;
    let is_bare =
        |i: &Instruction| is_global(i, "atom") && !["acq_rel", "release", "acquire"].iter().any(|o| has(i, o));
    let is_fenced = |line: u32| {
        let Some(at) = body.iter().position(|i| i.line == line) else { return false };
        at > 0 && is_fence(&body[at - 1]) && body.get(at + 1).is_some_and(is_fence)
    };
    let mut found = code.while_set(
        |i| (is_global(i, "st") || is_global(i, "red")).then_some(true),
        |i| is_bare(i).then(|| format!("`{}` after a store, without an order", name(i))),
    );
    found.retain(|f| !is_fenced(f.line));
    let is_wrong = |i: &&Instruction| is_global(i, "red") && !has(i, "release") && !has(i, "or") && !has(i, "f32");
    found.extend(
        code.reachable()
            .filter(is_wrong)
            .map(|i| Finding { line: i.line, message: format!("`{}` counts, without an order", name(i)) }),
    );
    found
}

/// What a block or warp stored becomes visible with the release of one thread only if the others met it after their stores.
pub fn releases(code: &Code) -> Vec<Finding> {
    code.while_set(
        |i| {
            if is_barrier(i) {
                return Some(false);
            }
            (is_global(i, "st") && !is_release(i)).then_some(true)
        },
        |i| {
            (is_release(i) || is_fence(i))
                .then(|| format!("`{}` with stores before it and no barrier between", name(i)))
        },
    )
}

/// What one thread acquired, others may read after they met it.
pub fn acquires(code: &Code) -> Vec<Finding> {
    let is_acquire = |i: &Instruction| has(i, "acquire") && matches!(i.opcode.as_str(), "ld" | "atom");
    code.while_set(
        |i| if is_barrier(i) { Some(false) } else { is_acquire(i).then_some(true) },
        |i| {
            (is_global(i, "ld") && !is_acquire(i))
                .then(|| format!("`{}` after an acquire and no barrier between", name(i)))
        },
    )
}
