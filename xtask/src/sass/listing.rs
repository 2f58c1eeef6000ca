//! What nvdisasm prints, as data; and where control goes.

use crate::flow::Step;
use std::fmt;

/// One machine instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Bytes from the first instruction of the kernel.
    pub address: u32,
    /// The predicate before it, `@P0` or `@!UP1`; empty without one.
    pub guard: String,
    /// With its modifiers, `LDG.E.128`.
    pub opcode: String,
    /// As printed.
    pub operands: String,
}

impl Instruction {
    /// The opcode without modifiers.
    pub fn stem(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Whether the opcode has this modifier.
    pub fn has(&self, modifier: &str) -> bool {
        self.opcode.split('.').skip(1).any(|m| m == modifier)
    }

    /// The last operand where it is an address of code.
    fn target(&self) -> Option<u32> {
        if !matches!(self.stem(), "BRA" | "BSSY" | "CALL" | "JMP" | "WARPSYNC") {
            return None;
        }
        let last = self.operands.rsplit([',', ' ']).next()?;
        u32::from_str_radix(last.strip_prefix("0x")?, 16).ok()
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/*{:04x}*/", self.address)?;
        for part in [&self.guard, &self.opcode, &self.operands].into_iter().filter(|p| !p.is_empty()) {
            write!(f, " {part}")?;
        }
        f.write_str(";")
    }
}

/// The code of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In order of address.
    pub instructions: Vec<Instruction>,
    /// Jump tables, one after the other: addresses.
    pub tables: Vec<u32>,
}

/// The instructions in a disassembly. Lines that are none (headers, labels) are left out; one that begins as an
/// instruction and is none is an error. Addresses, those in operands too, count from `base`.
pub fn instructions(text: &str, base: u32) -> Result<Vec<Instruction>, String> {
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| l.starts_with("/*")) {
        let bad = || format!("not an instruction: `{line}`");
        let (address, rest) = line[2..].split_once("*/").ok_or_else(bad)?;
        let address = u32::from_str_radix(address, 16).map_err(|_| bad())?.checked_sub(base).ok_or_else(bad)?;
        let mut rest = rest.split(';').next().unwrap_or_default().trim();
        let mut guard = String::new();
        if rest.starts_with('@') {
            let (first, after) = rest.split_once(' ').ok_or_else(bad)?;
            guard = first.to_string();
            rest = after.trim();
        }
        let (opcode, operands) = rest.split_once(' ').unwrap_or((rest, ""));
        if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut instruction =
            Instruction { address, guard, opcode: opcode.to_string(), operands: operands.trim().to_string() };
        if let Some(target) = instruction.target().filter(|_| base > 0) {
            let from_here = target.checked_sub(base).ok_or_else(bad)?;
            let printed = format!("{target:#x}");
            let kept = instruction.operands.len() - printed.len();
            instruction.operands = format!("{}{from_here:#x}", &instruction.operands[..kept]);
        }
        all.push(instruction);
    }
    Ok(all)
}

impl Listing {
    /// Where control goes after every instruction.
    ///
    /// Left out on purpose, because a run that goes well does not come there: the way that `BRA.DIV` takes when a warp is
    /// not together, and what `CALL` calls (slow ways of divisions and square roots).
    pub fn steps(&self) -> Result<Vec<Step>, String> {
        let at = |address: u32| self.instructions.binary_search_by_key(&address, |i| i.address);
        let to = |address: u32| at(address).map_err(|_| format!("a branch to {address:#x}, where nothing is"));
        let mut steps = Vec::with_capacity(self.instructions.len());
        for (i, instruction) in self.instructions.iter().enumerate() {
            let Instruction { guard, operands, .. } = instruction;
            let is_sure = guard.is_empty() && !operands.contains(',');
            let bad = || format!("`{instruction}` goes nowhere");
            steps.push(match instruction.stem() {
                "BRA" if instruction.has("DIV") => Step::next(),
                "BRA" | "JMP" => Step { falls: !is_sure, targets: vec![to(instruction.target().ok_or_else(bad)?)?] },
                "BRX" | "BRXU" => {
                    let table = self.table_of(i).ok_or_else(bad)?;
                    let targets: Result<Vec<usize>, String> = table.iter().map(|address| to(*address)).collect();
                    Step { falls: !guard.is_empty(), targets: targets? }
                }
                "EXIT" => Step { falls: !guard.is_empty() || !operands.is_empty(), targets: vec![] },
                "RET" | "KILL" => Step { falls: !guard.is_empty(), targets: vec![] },
                "BSYNC" => self.after_bsync(i).map_or(Ok(Step::next()), |address| {
                    to(address).map(|target| Step { falls: true, targets: vec![target] })
                })?,
                _ => Step::next(),
            });
        }
        Ok(steps)
    }

    /// Where the threads meet: at the target of the BSSY before, unless that is the next instruction anyway.
    fn after_bsync(&self, i: usize) -> Option<u32> {
        let barrier = self.instructions[i].operands.as_str();
        let follows = self.instructions[i].address + 16;
        let is_mine = |b: &&Instruction| {
            b.stem() == "BSSY" && b.operands.split(',').next().is_some_and(|register| register == barrier)
        };
        let mine: Vec<u32> =
            self.instructions[..i].iter().rev().filter(is_mine).filter_map(Instruction::target).collect();
        if mine.contains(&follows) { None } else { mine.first().copied() }
    }

    /// The table of an indirect branch: its register was read from the tables' bank (`c[0x2]`) shortly before, at an offset
    /// that says where the table begins. It ends where that of another branch begins.
    fn table_of(&self, i: usize) -> Option<&[u32]> {
        let begin = self.table_begin(i)?;
        let is_branch = |j: &usize| matches!(self.instructions[*j].stem(), "BRX" | "BRXU");
        let all = (0..self.instructions.len()).filter(is_branch).filter_map(|j| self.table_begin(j));
        let end = all.filter(|b| *b > begin).min().unwrap_or(self.tables.len());
        self.tables.get(begin..end)
    }

    fn table_begin(&self, i: usize) -> Option<usize> {
        let register = self.instructions[i].operands.split_whitespace().next()?;
        let load = self.instructions[..i].iter().rev().find(|l| {
            let target = l.operands.split(',').next().unwrap_or_default();
            matches!(l.stem(), "LDC" | "ULDC" | "LDCU") && target == register && l.operands.contains("c[0x2]")
        })?;
        let inside = load.operands.split_once("c[0x2][")?.1.trim_end_matches(']');
        let offset = inside.rsplit_once('+').map_or("0x0", |(_, offset)| offset);
        Some(usize::from_str_radix(offset.strip_prefix("0x")?, 16).ok()? / 4)
    }
}
