//! Which argument an address comes from, and whether the contract allows what is done there.

use super::{
    Finding,
    code::{Code, has, is_copy, is_global, name, read, written},
};
use lookback_emulator::ptx::ast::{AddressBase, Instruction, Operand, SymbolKind, Type};
use std::collections::BTreeSet;

/// Follows every pointer argument through moves and 64-bit arithmetic, wherever the register is written. An address that may
/// come from several arguments is held to the weakest: it is reported if none of them allows the access.
pub fn check(code: &Code) -> Vec<Finding> {
    let origins = origins(code);
    let mut found = Vec::new();
    for i in code.reachable() {
        let writes = is_global(i, "st") || is_global(i, "red") || is_global(i, "atom");
        let reads_constant = (is_global(i, "ld") && has(i, "nc")) || is_copy(i);
        if !writes && !reads_constant {
            continue;
        }
        let from = global_address(i).map(|r| &origins[r as usize]);
        let from: Vec<&str> = from.into_iter().flatten().map(|a| code.kernel.args[*a].direction).collect();
        let allows = |direction: &&str| if writes { *direction != "in" } else { *direction == "in" || is_copy(i) };
        if from.is_empty() || !from.iter().any(allows) {
            let from = if from.is_empty() {
                "no argument".to_string()
            } else {
                format!("an argument that is {}", from.join(" or "))
            };
            found.push(Finding { line: i.line, message: format!("`{}` through {from}", name(i)) });
        }
    }
    found
}

/// The register of the address in global memory: the second address of a copy, else the only one.
fn global_address(i: &Instruction) -> Option<u32> {
    let mut addresses = i.operands.iter().filter_map(|o| match o {
        Operand::Address { base: AddressBase::Register(r), .. } => Some(*r),
        _ => None,
    });
    addresses.next_back()
}

/// Pointer arguments that a register may come from, by index.
fn origins(code: &Code) -> Vec<BTreeSet<usize>> {
    let mut origins: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); code.entry.registers.len()];
    let is_wide = |r: &u32| matches!(code.entry.registers[*r as usize].ty, Type::B64 | Type::U64 | Type::S64);
    let mut is_changed = true;
    while is_changed {
        is_changed = false;
        for i in &code.entry.body {
            let from: BTreeSet<usize> = match (i.opcode.as_str(), i.operands.get(1)) {
                (
                    "ld",
                    Some(Operand::Address { base: AddressBase::Symbol { kind: SymbolKind::Param, .. }, offset }),
                ) => {
                    let is_read = |a: &lookback_kernels::Arg| a.offset as i64 == *offset && !a.direction.is_empty();
                    code.kernel.args.iter().enumerate().filter(|(_, a)| is_read(a)).map(|(index, _)| index).collect()
                }
                // A parameter chosen while the kernel runs: any pointer.
                ("ld", _) if has(i, "param") => {
                    let is_pointer = |a: &lookback_kernels::Arg| !a.direction.is_empty();
                    code.kernel.args.iter().enumerate().filter(|(_, a)| is_pointer(a)).map(|(index, _)| index).collect()
                }
                // What lies in memory is no pointer.
                ("ld" | "atom" | "setp", _) => BTreeSet::new(),
                _ => read(i).iter().filter(|r| is_wide(r)).flat_map(|r| origins[*r as usize].clone()).collect(),
            };
            for r in written(i).iter().filter(|r| is_wide(r)) {
                let known = &mut origins[*r as usize];
                let before = known.len();
                known.extend(&from);
                is_changed |= known.len() > before;
            }
        }
    }
    origins
}
