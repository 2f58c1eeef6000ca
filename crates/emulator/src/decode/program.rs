//! What decoding one kernel gives: its code, its register slots, and what a launcher must know of it.

use super::cold::Cold;
use super::context::Decoder;
use super::op::{ALWAYS, Ins, Op, Slot};
use super::slots::{Home, Init, Slots};
use super::{DecodeError, instruction, pressure};
use crate::counters::Class;
use crate::ptx::ast::{Entry, Instruction, Module};

/// Compute capability that a module was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 80 for `sm_80`, 90 for `sm_90a`.
    pub capability: u32,
    /// The target has the `a` suffix: instructions of this one architecture are allowed.
    pub specific: bool,
}

impl Target {
    /// From `sm_80` or `sm_90a`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix("sm_")?;
        let (digits, specific) = match number.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (number, false),
        };
        digits.parse().ok().map(|capability| Self { capability, specific })
    }

    /// Whether the emulated device, an sm_90a, can run it.
    pub fn runs_here(self) -> bool {
        if self.specific { self.capability == 90 } else { (80..=90).contains(&self.capability) }
    }
}

/// A kernel that is ready to run. Immutable, and shared by all its launches.
#[derive(Debug)]
pub struct Program {
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) param_bytes: u32,
    pub(crate) static_shared: u32,
    pub(crate) dynamic_offset: u32,
    pub(crate) shared_align: u32,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) min_ctas: Option<u32>,
    pub(crate) registers: u32,
    /// Ends with an exit, so that running past the last instruction of the text is one.
    pub(crate) code: Vec<Ins>,
    pub(crate) cold: Vec<Cold>,
    /// PTX line of each instruction of `code`.
    pub(crate) lines: Vec<u32>,
    /// Class of each instruction of `code`; none for those that stand for a part of a PTX instruction.
    pub(crate) classes: Vec<Option<Class>>,
    pub(crate) slots: u32,
    pub(crate) predicates: u32,
    pub(crate) inits: Vec<(Slot, Init)>,
    pub(crate) slot_names: Vec<(Slot, String)>,
    pub(crate) predicate_names: Vec<(Slot, String)>,
}

impl Program {
    /// Name of the entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Architecture of the module.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Size of the parameter block.
    pub fn param_bytes(&self) -> u32 {
        self.param_bytes
    }

    /// Shared memory that the kernel declares itself.
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared
    }

    /// Shared memory of one CTA when `dynamic` bytes are asked for.
    pub fn shared_bytes(&self, dynamic: u32) -> u32 {
        if dynamic == 0 {
            self.static_shared
        } else {
            self.static_shared.max(self.dynamic_offset.saturating_add(dynamic))
        }
    }

    /// Largest alignment among the kernel's shared variables.
    pub fn shared_align(&self) -> u32 {
        self.shared_align
    }

    /// `.maxntid`: the product bounds the threads of a block.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// `.reqntid`: the only block shape that may be launched.
    pub fn required_block(&self) -> Option<[u32; 3]> {
        self.required_block
    }

    /// `.minnctapersm`.
    pub fn min_ctas_per_sm(&self) -> Option<u32> {
        self.min_ctas
    }

    /// 32-bit registers per thread, estimated from live ranges: what an allocator without spills would need at least.
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// Number of instructions, helpers of ours not counted.
    pub fn instructions(&self) -> usize {
        self.classes.iter().flatten().count()
    }

    /// Name of the register at a slot, for reports.
    pub(crate) fn slot_name(&self, slot: Slot) -> &str {
        name_of(&self.slot_names, slot)
    }

    /// Name of a predicate, for reports.
    pub(crate) fn predicate_name(&self, predicate: Slot) -> &str {
        name_of(&self.predicate_names, predicate)
    }
}

fn name_of(names: &[(Slot, String)], index: Slot) -> &str {
    match names.binary_search_by_key(&index, |(slot, _)| *slot) {
        Ok(at) => &names[at].1,
        Err(_) => "(temporary)",
    }
}

/// Decode a kernel.
pub(super) fn build(module: &Module, entry: &Entry, globals: &[u64]) -> Result<Program, DecodeError> {
    let header = |message: String| DecodeError { line: entry.line, message };
    let target =
        Target::parse(&module.target).ok_or_else(|| header(format!("target {} is not understood", module.target)))?;
    if !target.runs_here() {
        return Err(header(format!("target {} does not run on an sm_90a device", module.target)));
    }
    let directives = &entry.directives;
    if directives.reqnctapercluster.is_some() || directives.explicitcluster || directives.maxclusterrank.is_some() {
        return Err(header("clusters are not supported".to_owned()));
    }
    let slots = Slots::new(&entry.registers).ok_or_else(|| header("too many registers".to_owned()))?;
    let none = Instruction {
        guard: None,
        opcode: String::new(),
        modifiers: Vec::new(),
        operands: Vec::new(),
        line: entry.line,
    };
    let mut d = Decoder::new(entry, globals, slots, &none, target);
    let mut starts = Vec::with_capacity(entry.body.len() + 1);
    for ins in &entry.body {
        starts.push(d.code.len() as u32);
        d.begin(ins)?;
        instruction(&mut d)?;
    }
    starts.push(d.code.len() as u32);
    d.finish();
    for ins in &mut d.code {
        if let Op::Branch(target) = &mut ins.op {
            let at = starts.get(*target as usize);
            *target = *at.ok_or_else(|| header("a branch leaves the kernel".to_owned()))?;
        }
    }
    let classes = d.code.iter().zip(&d.counted).map(|(ins, counted)| counted.then(|| class(ins.op, &d.cold))).collect();
    let (mut slot_names, mut predicate_names) = (Vec::new(), Vec::new());
    for (index, register) in entry.registers.iter().enumerate() {
        match d.slots.home(index as u32) {
            Some(Home::Slot(slot)) => slot_names.push((slot, register.name.clone())),
            Some(Home::Pred(pred)) => predicate_names.push((pred, register.name.clone())),
            None => {}
        }
    }
    Ok(Program {
        name: entry.name.clone(),
        target,
        param_bytes: entry.params_bytes,
        static_shared: entry.static_shared_bytes,
        dynamic_offset: entry.dynamic_shared_offset,
        shared_align: entry.shared_align,
        max_threads: directives.maxntid,
        required_block: directives.reqntid,
        min_ctas: directives.minnctapersm,
        registers: pressure::estimate(entry).min(directives.maxnreg.unwrap_or(255)),
        slots: d.slots.len(),
        predicates: d.slots.predicates(),
        code: d.code,
        cold: d.cold,
        lines: d.lines,
        classes,
        inits: d.slots.into_inits(),
        slot_names,
        predicate_names,
    })
}

impl Decoder<'_> {
    /// Append the exit behind the last instruction.
    fn finish(&mut self) {
        self.code.push(Ins { op: Op::Exit, guard: ALWAYS, flip: 0 });
        let line = self.lines.last().copied().unwrap_or(self.entry.line);
        self.lines.push(line);
        self.counted.push(false);
    }
}

/// What kind of work an operation is.
fn class(op: Op, cold: &[Cold]) -> Class {
    use Op::*;
    match op {
        AddF32(_) | SubF32(_) | MulF32(_) | FmaF32(_) | AddF32Ftz(_) | SubF32Ftz(_) | MulF32Ftz(_) | FmaF32Ftz(_)
        | MinF32(_) | MaxF32(_) | NegF32(_) | AbsF32(_) | SetF32(..) => Class::Float,
        WidenF16(_) | WidenBf16(_) | NarrowF16(_) | NarrowBf16(_) | NarrowF16x2(_) | NarrowBf16x2(_) | FloatU32(_)
        | FloatS32(_) | ZeroExtend(_) | SignExtend(_) | Truncate(_) => Class::Convert,
        LoadGlobal(_) | StoreGlobal(_) => Class::Global,
        LoadShared(_) | StoreShared(_) => Class::Shared,
        Branch(_) | Exit => Class::Control,
        Nop => Class::Other,
        Cold(index) => cold.get(usize::from(index)).map_or(Class::Other, super::cold::Cold::class),
        _ => Class::Integer,
    }
}
