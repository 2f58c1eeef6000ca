//! What synchronises in a kernel's text, and the text without it.

use lookback_emulator::{
    decode::{Program, decode},
    ptx::{
        self,
        ast::{Instruction, Module, Operand},
    },
};
use lookback_kernels::Kernel;

/// One way to take an instruction's effect away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// The instruction is not there.
    Deleted,
    /// `cp.async.wait_group` lets one more group be on its way.
    OneLater,
    /// `ld.acquire`, `st.release` and both sides of an atomic become relaxed.
    Relaxed,
    /// `ld.acquire` and `st.release` become plain.
    Plain,
    /// The acquiring side of an `acq_rel` atomic is gone.
    ReleaseOnly,
    /// The releasing side of an `acq_rel` atomic is gone.
    AcquireOnly,
    /// What holds for the device holds for the block alone.
    BlockScope,
}

/// A synchronising instruction.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its place in the body.
    pub index: usize,
    /// Line of the text.
    pub line: u32,
    /// The instruction without operands, with the number of groups that it waits for.
    pub name: String,
    /// The label before it, which says what phase of the kernel it is in.
    pub label: String,
    /// How many with this name are between that label and this one.
    pub nth: usize,
    /// What is changed about it.
    pub changes: Vec<Change>,
}

/// A kernel's parsed text and its sites.
pub struct Sites {
    module: Module,
    pub all: Vec<Site>,
}

impl Sites {
    pub fn of(kernel: &Kernel) -> Self {
        Self::of_text(&kernel.ptx())
    }

    fn of_text(text: &str) -> Self {
        let module = ptx::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let labels: Vec<Option<&str>> = text.lines().map(label).collect();
        let before = |line: u32| labels[..line as usize].iter().rev().copied().flatten().next().unwrap_or("ENTRY");
        let mut all: Vec<Site> = Vec::new();
        for (index, instruction) in module.entries[0].body.iter().enumerate() {
            let changes = changes(instruction);
            if !changes.is_empty() {
                let (line, name, label) = (instruction.line, name(instruction), before(instruction.line).to_owned());
                let nth = all.iter().filter(|site| (&site.name, &site.label) == (&name, &label)).count();
                all.push(Site { index, line, name, label, nth, changes });
            }
        }
        Self { module, all }
    }

    /// What synchronises, in order: variants that agree here differ in arithmetic and conversions.
    pub fn signature(&self) -> Vec<String> {
        self.all.iter().map(|site| site.name.clone()).collect()
    }

    /// The kernel as it is.
    pub fn program(&self) -> Program {
        decode(&self.module, &self.module.entries[0], &[]).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The kernel with these changes; of several at one site the first.
    pub fn mutant(&mut self, changes: &[(Site, Change)]) -> Program {
        let body = &mut self.module.entries[0].body;
        let whole = body.clone();
        for (site, change) in changes.iter().rev() {
            body[site.index] = changed(&whole[site.index], *change);
        }
        let program = self.program();
        self.module.entries[0].body = whole;
        program
    }
}

/// The label that a line defines.
fn label(line: &str) -> Option<&str> {
    let (name, rest) = line.split_once(':')?;
    let rest = rest.trim_start();
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    (is_name && (rest.is_empty() || rest.starts_with("//"))).then_some(name)
}

fn name(instruction: &Instruction) -> String {
    let mut name = instruction.opcode.clone();
    instruction.modifiers.iter().for_each(|word| name.extend([".", word]));
    if let (true, Some(Operand::Immediate(groups))) = (name == "cp.async.wait_group", instruction.operands.first()) {
        name.push_str(&format!(" {groups}"));
    }
    name
}

fn changes(instruction: &Instruction) -> Vec<Change> {
    use Change::{AcquireOnly, BlockScope, Deleted, OneLater, Plain, Relaxed, ReleaseOnly};
    let has = |word: &str| instruction.modifiers.iter().any(|modifier| modifier == word);
    match instruction.opcode.as_str() {
        "bar" | "barrier" | "mbarrier" => vec![Deleted],
        "cp" if has("wait_group") => vec![Deleted, OneLater],
        "cp" if has("wait_all") => vec![Deleted],
        "fence" | "membar" if has("gpu") || has("gl") => vec![Deleted, BlockScope],
        "fence" | "membar" => vec![Deleted],
        "ld" if has("acquire") => vec![Relaxed, Plain, BlockScope],
        "st" if has("release") => vec![Relaxed, Plain, BlockScope],
        "atom" | "red" if has("acq_rel") => vec![Relaxed, ReleaseOnly, AcquireOnly, BlockScope],
        "atom" | "red" if has("acquire") || has("release") => vec![Relaxed, BlockScope],
        _ => vec![],
    }
}

fn changed(old: &Instruction, change: Change) -> Instruction {
    let mut new = old.clone();
    let order = |word: &str| ["acquire", "release", "acq_rel"].contains(&word);
    let scope = |word: &str| ["gpu", "sys", "gl"].contains(&word);
    let mut replace = |is: &dyn Fn(&str) -> bool, by: &str| {
        new.modifiers.iter_mut().filter(|word| is(word)).for_each(|word| by.clone_into(word));
    };
    match change {
        Change::Deleted => {
            // A performance event, to which nobody listens: branches keep their targets.
            new.opcode = "pmevent".into();
            new.modifiers.clear();
            new.operands = vec![Operand::Immediate(0)];
        }
        Change::OneLater => {
            if let Some(Operand::Immediate(groups)) = new.operands.first_mut() {
                *groups += 1;
            }
        }
        Change::Relaxed => replace(&order, "relaxed"),
        Change::ReleaseOnly => replace(&order, "release"),
        Change::AcquireOnly => replace(&order, "acquire"),
        Change::BlockScope => replace(&scope, "cta"),
        Change::Plain => new.modifiers.retain(|word| !order(word) && !scope(word)),
    }
    new
}

#[test]
fn sites_are_found_and_taken_away() {
    const TEXT: &str = ".version 7.0
.target sm_80
.address_size 64
.visible .entry one(.param .u64 p)
{
    .reg .pred %is;
    .reg .b32 %r;
    .reg .b64 %p;
    ld.param.u64 %p, [p];
    setp.eq.u64 %is, %p, 0;
    cp.async.wait_group 2;
    @%is bar.sync 0;
    bar.sync 0;
AGAIN:      // TOO: early
    ld.acquire.gpu.global.u32 %r, [%p];
    atom.acq_rel.gpu.global.inc.u32 %r, [%p], 7;
    st.release.gpu.global.u32 [%p], %r;
    st.global.u32 [%p], %r;
    fence.acq_rel.gpu;
    @%is bra AGAIN;
    ret;
}
";
    let mut sites = Sites::of_text(TEXT);
    let found: Vec<_> = sites.all.iter().map(|s| (s.line, s.label.as_str(), s.name.as_str(), s.nth)).collect();
    let want = [
        (11, "ENTRY", "cp.async.wait_group 2", 0),
        (12, "ENTRY", "bar.sync", 0),
        (13, "ENTRY", "bar.sync", 1),
        (15, "AGAIN", "ld.acquire.gpu.global.u32", 0),
        (16, "AGAIN", "atom.acq_rel.gpu.global.inc.u32", 0),
        (17, "AGAIN", "st.release.gpu.global.u32", 0),
        (19, "AGAIN", "fence.acq_rel.gpu", 0),
    ];
    assert_eq!(found, want);
    let whole = sites.module.clone();
    let names = |sites: &Sites, change: Change| {
        let of = |site: &&Site| site.changes.contains(&change);
        let body = &sites.module.entries[0].body;
        sites.all.iter().filter(of).map(|site| name(&changed(&body[site.index], change))).collect::<Vec<String>>()
    };
    let gone = ["pmevent"; 4];
    assert_eq!(names(&sites, Change::Deleted), gone);
    assert_eq!(names(&sites, Change::OneLater), ["cp.async.wait_group 3"]);
    let relaxed = ["ld.relaxed.gpu.global.u32", "atom.relaxed.gpu.global.inc.u32", "st.relaxed.gpu.global.u32"];
    assert_eq!(names(&sites, Change::Relaxed), relaxed);
    assert_eq!(names(&sites, Change::Plain), ["ld.global.u32", "st.global.u32"]);
    assert_eq!(names(&sites, Change::ReleaseOnly), ["atom.release.gpu.global.inc.u32"]);
    assert_eq!(names(&sites, Change::AcquireOnly), ["atom.acquire.gpu.global.inc.u32"]);
    let of_block = [
        "ld.acquire.cta.global.u32",
        "atom.acq_rel.cta.global.inc.u32",
        "st.release.cta.global.u32",
        "fence.acq_rel.cta",
    ];
    assert_eq!(names(&sites, Change::BlockScope), of_block);
    // Every one is a program, and the text is whole again afterwards.
    for site in sites.all.clone() {
        for change in &site.changes {
            sites.mutant(&[(site.clone(), *change)]);
        }
    }
    assert_eq!(sites.module, whole);
}
