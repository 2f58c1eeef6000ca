//! How many registers a kernel needs, estimated from live ranges.

use crate::ptx::ast::{AddressBase, Entry, Operand, Type};

/// First and last instruction that name a register.
#[derive(Clone, Copy)]
struct Range {
    first: usize,
    last: usize,
    weight: u32,
}

/// The largest number of 32-bit registers alive at once, rounded up to what hardware allocates.
///
/// A register lives from its first to its last mention; one that is alive when a loop begins and is mentioned inside
/// lives to the loop's end. Predicates have a file of their own.
pub(super) fn estimate(entry: &Entry) -> u32 {
    let mut ranges: Vec<Option<Range>> = vec![None; entry.registers.len()];
    let mut mention = |register: u32, at: usize| {
        let Some(declared) = entry.registers.get(register as usize) else { return };
        let weight = match declared.ty {
            Type::Pred => return,
            ty if ty.bytes() == 8 => 2,
            _ => 1,
        };
        let range = ranges[register as usize].get_or_insert(Range { first: at, last: at, weight });
        range.last = at;
    };
    let mut loops = Vec::new();
    for (at, ins) in entry.body.iter().enumerate() {
        for operand in &ins.operands {
            visit(operand, &mut |register| mention(register, at));
            if let Operand::Label(target) = operand
                && *target as usize <= at
            {
                loops.push((*target as usize, at));
            }
        }
    }
    // Inner loops end first, so one pass in that order carries a range outwards.
    for (start, end) in loops {
        for range in ranges.iter_mut().flatten() {
            if range.first < start && range.last >= start && range.last < end {
                range.last = end;
            }
        }
    }
    let mut change = vec![0i64; entry.body.len() + 2];
    for range in ranges.iter().flatten() {
        change[range.first] += i64::from(range.weight);
        change[range.last + 1] -= i64::from(range.weight);
    }
    let (mut live, mut most) = (0i64, 0i64);
    for step in change {
        live += step;
        most = most.max(live);
    }
    (most as u32).max(16).next_multiple_of(8).min(255)
}

fn visit(operand: &Operand, mention: &mut impl FnMut(u32)) {
    match operand {
        Operand::Register(register) | Operand::NegatedPredicate(register) => mention(*register),
        Operand::Address { base: AddressBase::Register(register), .. } => mention(*register),
        Operand::Vector(elements) => elements.iter().for_each(|element| visit(element, mention)),
        Operand::Pair(first, second) => {
            visit(first, mention);
            visit(second, mention);
        }
        _ => {}
    }
}
