//! Barriers of a whole block, and whether all its threads come to them.

use super::{
    Finding,
    code::{Code, name, read, written},
};
use crate::flow::post_dominators;
use lookback_emulator::ptx::ast::{Instruction, Operand, SpecialRegister};

/// Barriers of a whole block that stand where the way depends on a value that may differ between threads: the thread's
/// number, what is read at an address that depends on it, what lanes tell each other, what an atomic operation gives, what
/// is written where threads have parted. A value read at an address that is the same for all is the same for all.
///
/// Named barriers with a count of threads are not looked at, nor is a branch that only leads to the end: threads that
/// ended are not waited for.
pub fn check(code: &Code) -> Vec<Finding> {
    let mut apart = vec![false; code.flow.next.len()];
    loop {
        let before = parted(code, &apart);
        let more = blocks_apart(code, &before);
        if more.iter().zip(&apart).all(|(now, known)| *known || !now) {
            return barriers(code, &apart, &before);
        }
        apart.iter_mut().zip(&more).for_each(|(known, now)| *known |= now);
    }
}

fn barriers(code: &Code, apart: &[bool], before: &[Registers]) -> Vec<Finding> {
    let mut found = Vec::new();
    for &block in &code.flow.order {
        let mut parted = before[block].clone();
        for i in &code.entry.body[code.flow.block(block)] {
            let is_whole = i.opcode == "bar" && i.modifiers == ["sync"] && i.operands.len() == 1;
            let is_guarded = i.guard.is_some_and(|g| parted[g.register as usize]);
            if is_whole && (apart[block] || is_guarded) {
                found.push(Finding { line: i.line, message: format!("`{}` where threads may have parted", name(i)) });
            }
            pass(i, apart[block], &mut parted);
        }
    }
    found.sort_by_key(|f| f.line);
    found
}

/// Which registers may differ between the threads of a block.
type Registers = Vec<bool>;

/// Registers that may differ, at the beginning of every block.
fn parted(code: &Code, apart: &[bool]) -> Vec<Registers> {
    let mut before = vec![vec![false; code.entry.registers.len()]; code.flow.next.len()];
    let mut is_seen = vec![false; before.len()];
    let mut left: Vec<usize> = code.flow.order.iter().rev().copied().collect();
    while let Some(block) = left.pop() {
        is_seen[block] = true;
        let mut after = before[block].clone();
        code.entry.body[code.flow.block(block)].iter().for_each(|i| pass(i, apart[block], &mut after));
        for &next in &code.flow.next[block] {
            let is_more = before[next].iter().zip(&after).any(|(known, now)| *now && !known);
            before[next].iter_mut().zip(&after).for_each(|(known, now)| *known |= now);
            // Blocks not seen yet are on the list.
            if is_more && is_seen[next] {
                left.push(next);
            }
        }
    }
    before
}

/// What an instruction does to them. A write under a guard leaves the old value to some.
fn pass(i: &Instruction, is_apart: bool, parted: &mut Registers) {
    let differs = is_apart || is_source(i) || read(i).iter().any(|r| parted[*r as usize]);
    for register in written(i) {
        let kept = i.guard.is_some() && parted[register as usize];
        parted[register as usize] = differs || kept;
    }
}

fn is_source(i: &Instruction) -> bool {
    use SpecialRegister as S;
    let is_own = |o: &Operand| {
        matches!(
            o,
            Operand::Special(
                S::Tid(_)
                    | S::LaneId
                    | S::WarpId
                    | S::LanemaskEq
                    | S::LanemaskLe
                    | S::LanemaskLt
                    | S::LanemaskGe
                    | S::LanemaskGt
                    | S::Clock
                    | S::ClockHi
                    | S::Clock64
                    | S::GlobalTimer
            )
        )
    };
    matches!(i.opcode.as_str(), "atom" | "shfl" | "vote" | "redux" | "match" | "activemask")
        || i.operands.iter().any(is_own)
}

/// Blocks between a branch over a parted register and the block where all ways from it meet again.
fn blocks_apart(code: &Code, before: &[Registers]) -> Vec<bool> {
    let graph = without_ends(code);
    let meeting = post_dominators(&graph);
    let mut apart = vec![false; graph.len()];
    for &block in &code.flow.order {
        let Some(last) = code.entry.body[code.flow.block(block)].last() else { continue };
        let mut parted = before[block].clone();
        code.entry.body[code.flow.block(block)].iter().for_each(|i| pass(i, false, &mut parted));
        let is_parting = last.opcode == "bra" && last.guard.is_some_and(|g| parted[g.register as usize]);
        if !is_parting || graph[block].len() < 2 {
            continue;
        }
        let mut is_seen = vec![false; graph.len()];
        let mut left = graph[block].clone();
        while let Some(at) = left.pop() {
            if Some(at) != meeting[block] && !std::mem::replace(&mut is_seen[at], true) {
                apart[at] = true;
                left.extend(&graph[at]);
            }
        }
    }
    apart
}

/// The ways from block to block without those that only lead to the end, save where a loop has no other way out.
fn without_ends(code: &Code) -> Vec<Vec<usize>> {
    let ends = only_ends(code);
    let ways = |block: usize| code.flow.next[block].iter().copied().filter(|b| !ends[*b]);
    let mut graph: Vec<Vec<usize>> = (0..code.flow.next.len()).map(|block| ways(block).collect()).collect();
    let mut leads_out = vec![false; graph.len()];
    let mut left: Vec<usize> = (0..graph.len()).filter(|block| graph[*block].is_empty()).collect();
    while let Some(block) = left.pop() {
        if !std::mem::replace(&mut leads_out[block], true) {
            left.extend(code.flow.previous[block].iter().filter(|from| graph[**from].contains(&block)));
        }
    }
    for block in (0..graph.len()).filter(|block| !leads_out[*block]) {
        graph[block].clone_from(&code.flow.next[block]);
    }
    graph
}

/// Blocks in which nothing more is done than to end.
fn only_ends(code: &Code) -> Vec<bool> {
    (0..code.flow.next.len())
        .map(|block| code.entry.body[code.flow.block(block)].iter().all(|i| i.opcode == "ret" && i.guard.is_none()))
        .collect()
}
