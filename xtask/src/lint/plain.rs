//! Rules that look at one instruction, or at names.

use super::{
    Finding,
    code::{Code, has, has_space, name, read},
};
use lookback_emulator::ptx::ast::Operand;
use std::collections::BTreeSet;

/// Generic addresses cost a test of every access, and hide which memory is meant.
pub fn spaces(code: &Code) -> Vec<Finding> {
    const SPACES: [&str; 5] = ["global", "shared", "param", "const", "local"];
    let wrong = code.entry.body.iter().filter(|i| match i.opcode.as_str() {
        "ld" | "st" | "atom" | "red" | "ldu" => !SPACES.iter().any(|space| has_space(i, space)),
        "cvta" => !has(i, "to"),
        _ => false,
    });
    wrong.map(|i| Finding { line: i.line, message: format!("`{}` is generic", name(i)) }).collect()
}

/// ptxas makes a call or twenty instructions of a division even by a constant.
pub fn divisions(code: &Code) -> Vec<Finding> {
    let is_integer = |i: &&lookback_emulator::ptx::ast::Instruction| {
        matches!(i.opcode.as_str(), "div" | "rem") && !has(i, "f32") && !has(i, "f64")
    };
    let wrong =
        code.entry.body.iter().filter(is_integer).filter(|i| matches!(i.operands.last(), Some(Operand::Immediate(_))));
    wrong.map(|i| Finding { line: i.line, message: format!("`{}` by a constant", name(i)) }).collect()
}

/// Registers that are never read, by name once, and labels that nothing jumps to.
///
/// A register of an array (`%t<4>`) is not reported by itself: templates declare as many as the largest variant needs. Nor is
/// a result that comes with others in one vector or pair.
pub fn unused(code: &Code) -> Vec<Finding> {
    let used: BTreeSet<u32> = code.entry.body.iter().flat_map(read).collect();
    let unread = (0..code.entry.registers.len() as u32).filter(|r| !used.contains(r));
    let singles =
        unread.map(|r| &code.entry.registers[r as usize]).filter(|r| !r.name.ends_with(|c: char| c.is_ascii_digit()));
    let vectors: BTreeSet<u32> = code
        .entry
        .body
        .iter()
        .filter_map(|i| match i.operands.first() {
            Some(Operand::Vector(parts)) => Some(parts.clone()),
            Some(Operand::Pair(a, b)) => Some(vec![(**a).clone(), (**b).clone()]),
            _ => None,
        })
        .flatten()
        .filter_map(|o| if let Operand::Register(r) = o { Some(r) } else { None })
        .collect();
    let is_partial = |name: &str| vectors.iter().any(|r| code.entry.registers[*r as usize].name == name);
    let names: BTreeSet<&str> = singles.map(|r| r.name.as_str()).filter(|name| !is_partial(name)).collect();
    let mut found: Vec<Finding> =
        names.iter().map(|n| Finding { line: 0, message: format!("`{n}` is never read") }).collect();
    let lines: Vec<&str> = code.text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '%' || c == '$';
    let words: BTreeSet<&str> =
        lines.iter().filter(|l| !l.trim().ends_with(':')).flat_map(|l| l.split(|c| !is_word(c))).collect();
    let labels = lines.iter().enumerate().filter_map(|(at, line)| Some((at, line.trim().strip_suffix(':')?)));
    for (at, label) in labels.filter(|(_, label)| label.chars().all(is_word)) {
        if !words.contains(label) {
            found.push(Finding { line: at as u32 + 1, message: format!("nothing jumps to `{label}`") });
        }
    }
    found
}
