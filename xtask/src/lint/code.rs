//! A parsed kernel with its control flow, and what the rules ask of an instruction.

use super::Finding;
use crate::flow::{Flow, Step};
use lookback_emulator::ptx::ast::{AddressBase, Entry, Instruction, Operand};
use lookback_kernels::Kernel;

/// A kernel as the rules see it.
pub struct Code<'a> {
    /// The text itself.
    pub text: &'a str,
    /// What the parser made of it.
    pub entry: &'a Entry,
    /// What the contract says.
    pub kernel: &'a Kernel,
    /// Where control goes.
    pub flow: Flow,
}

impl<'a> Code<'a> {
    /// Finds the control flow. Indirect branches are refused: the rules could not follow them.
    pub fn new(text: &'a str, entry: &'a Entry, kernel: &'a Kernel) -> Result<Self, String> {
        let steps: Result<Vec<Step>, String> = entry.body.iter().map(step).collect();
        Ok(Self { text, entry, kernel, flow: Flow::new(&steps?) })
    }

    /// The instructions that a run can come to.
    pub fn reachable(&self) -> impl Iterator<Item = &Instruction> {
        self.flow.order.iter().flat_map(|block| &self.entry.body[self.flow.block(*block)])
    }

    /// Finds places by one bit that holds on some way to an instruction. `change` says what an instruction does to the bit,
    /// `is_wrong` whether it must not come while the bit is set.
    pub fn while_set(
        &self,
        change: impl Fn(&Instruction) -> Option<bool>,
        is_wrong: impl Fn(&Instruction) -> Option<String>,
    ) -> Vec<Finding> {
        // What a block does to the bit is what the last of its instructions that touch it does.
        let of_block = |block| self.entry.body[self.flow.block(block)].iter().rev().find_map(&change);
        let effects: Vec<Option<bool>> = (0..self.flow.next.len()).map(of_block).collect();
        let mut before = vec![false; effects.len()];
        let mut left = self.flow.order.clone();
        while let Some(block) = left.pop() {
            if effects[block].unwrap_or(before[block]) {
                for &next in &self.flow.next[block] {
                    if !std::mem::replace(&mut before[next], true) {
                        left.push(next);
                    }
                }
            }
        }
        let mut found = Vec::new();
        for &block in &self.flow.order {
            let mut bit = before[block];
            for instruction in &self.entry.body[self.flow.block(block)] {
                if let Some(message) = is_wrong(instruction).filter(|_| bit) {
                    found.push(Finding { line: instruction.line, message });
                }
                bit = change(instruction).unwrap_or(bit);
            }
        }
        found.sort_by_key(|f| f.line);
        found
    }
}

fn step(instruction: &Instruction) -> Result<Step, String> {
    let targets: Vec<usize> = instruction
        .operands
        .iter()
        .filter_map(|o| if let Operand::Label(target) = o { Some(*target as usize) } else { None })
        .collect();
    Ok(match instruction.opcode.as_str() {
        "bra" => Step { falls: instruction.guard.is_some(), targets },
        "ret" | "exit" | "trap" => Step { falls: instruction.guard.is_some(), targets: vec![] },
        "brx" | "call" => return Err(format!("line {}: `{}` cannot be followed", instruction.line, name(instruction))),
        _ => Step::next(),
    })
}

/// The opcode with its modifiers.
pub fn name(i: &Instruction) -> String {
    let mut name = i.opcode.clone();
    i.modifiers.iter().for_each(|m| {
        name.push('.');
        name.push_str(m);
    });
    name
}

/// Whether an instruction has this modifier.
pub fn has(i: &Instruction, modifier: &str) -> bool {
    i.modifiers.iter().any(|m| m == modifier)
}

/// Whether it has one whose name begins so: `shared::cta` is shared too.
pub fn has_space(i: &Instruction, space: &str) -> bool {
    i.modifiers.iter().any(|m| m == space || m.strip_prefix(space).is_some_and(|rest| rest.starts_with("::")))
}

/// `ld`, `st`, `atom` or `red` of global memory.
pub fn is_global(i: &Instruction, opcode: &str) -> bool {
    i.opcode == opcode && has_space(i, "global")
}

/// `cp.async` past the registers, by the thread itself: not the bulk copies.
pub fn is_copy(i: &Instruction) -> bool {
    i.opcode == "cp" && has(i, "async") && has_space(i, "shared") && !has(i, "bulk")
}

/// Reads shared memory into registers.
pub fn reads_shared(i: &Instruction) -> bool {
    (i.opcode == "ld" || i.opcode == "ldmatrix") && has_space(i, "shared")
}

/// All threads of a block, or of a warp, meet.
pub fn is_barrier(i: &Instruction) -> bool {
    matches!(i.opcode.as_str(), "bar" | "barrier") && (has(i, "sync") || has(i, "red"))
}

/// Registers that an instruction writes.
pub fn written(i: &Instruction) -> Vec<u32> {
    match i.opcode.as_str() {
        "st" | "red" | "bar" | "barrier" | "bra" | "ret" | "exit" | "trap" | "cp" | "fence" | "membar"
        | "nanosleep" | "stmatrix" | "prefetch" | "setmaxnreg" | "wgmma" => Vec::new(),
        _ => i.operands.first().map(registers).unwrap_or_default(),
    }
}

/// Registers that an instruction reads.
pub fn read(i: &Instruction) -> Vec<u32> {
    let skip = usize::from(!written(i).is_empty());
    let guard = i.guard.iter().map(|g| g.register);
    let address = i.operands.iter().take(skip).filter(|o| matches!(o, Operand::Address { .. })).flat_map(registers);
    i.operands.iter().skip(skip).flat_map(registers).chain(guard).chain(address).collect()
}

fn registers(operand: &Operand) -> Vec<u32> {
    match operand {
        Operand::Register(r) | Operand::NegatedPredicate(r) => vec![*r],
        Operand::Address { base: AddressBase::Register(r), .. } => vec![*r],
        Operand::Vector(parts) => parts.iter().flat_map(registers).collect(),
        Operand::Pair(a, b) => [registers(a), registers(b)].concat(),
        _ => Vec::new(),
    }
}
