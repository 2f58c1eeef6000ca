//! Copies from global to shared memory that go on while the thread does.

use super::{
    Finding,
    code::{Code, has, has_space, is_barrier, is_copy, name, reads_shared},
};
use lookback_emulator::ptx::ast::Instruction;

fn is_cp(i: &Instruction, what: &str) -> bool {
    i.opcode == "cp" && has(i, "async") && has(i, what)
}

fn is_wait(i: &Instruction) -> bool {
    is_cp(i, "wait_group") || is_cp(i, "wait_all")
}

/// Proves that no way leads from a copy to a wait without a commit between (such a wait would not wait for it), and that
/// from every copy some way leads to a wait. That every way does, and that the wait is for the right group, it does not
/// prove: the emulator shows it, which holds back every copy until it is waited for.
pub fn commits(code: &Code) -> Vec<Finding> {
    let mut found = code.while_set(
        |i| if is_copy(i) { Some(true) } else { (is_cp(i, "commit_group") || is_cp(i, "wait_all")).then_some(false) },
        |i| is_cp(i, "wait_group").then(|| "a wait while a copy is not committed".to_string()),
    );
    let body = |block: usize| &code.entry.body[code.flow.block(block)];
    let mut waits: Vec<bool> = (0..code.flow.next.len()).map(|block| body(block).iter().any(is_wait)).collect();
    let mut left: Vec<usize> = (0..waits.len()).filter(|block| waits[*block]).collect();
    while let Some(block) = left.pop() {
        for &from in &code.flow.previous[block] {
            if !std::mem::replace(&mut waits[from], true) {
                left.push(from);
            }
        }
    }
    for &block in &code.flow.order {
        let last_wait = body(block).iter().rposition(is_wait);
        let goes_on = code.flow.next[block].iter().any(|next| waits[*next]);
        let unwaited = body(block)
            .iter()
            .enumerate()
            .filter(|(at, i)| is_copy(i) && !goes_on && last_wait.is_none_or(|w| w < *at));
        found.extend(unwaited.map(|(_, i)| Finding { line: i.line, message: "a copy that nothing waits for".into() }));
    }
    found
}

/// A wait is for the copies of the thread itself; those of the other threads are there after a barrier.
pub fn barriers(code: &Code) -> Vec<Finding> {
    code.while_set(
        |i| if is_wait(i) { Some(true) } else { is_barrier(i).then_some(false) },
        |i| reads_shared(i).then(|| format!("`{}` after a wait and before a barrier", name(i))),
    )
}

/// Bulk copies and wgmma read shared memory through another proxy, which sees a thread's stores only after a fence.
pub fn proxies(code: &Code) -> Vec<Finding> {
    let stores = |i: &Instruction| matches!(i.opcode.as_str(), "st" | "stmatrix") && has_space(i, "shared");
    let is_fence =
        |i: &Instruction| i.opcode == "fence" && has(i, "proxy") && i.modifiers.iter().any(|m| m.starts_with("async"));
    let is_bulk = |i: &Instruction| {
        i.opcode == "cp" && has(i, "bulk") && has(i, "async") && !has(i, "commit_group") && !has(i, "wait_group")
    };
    code.while_set(
        |i| if stores(i) { Some(true) } else { is_fence(i).then_some(false) },
        |i| {
            (is_bulk(i) || (i.opcode == "wgmma" && has(i, "mma_async"))).then(|| format!("`{}` after a store", name(i)))
        },
    )
}
