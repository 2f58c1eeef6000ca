//! What decoding one kernel gives: its code, its register slots, and what a launcher must know of it.

use super::op::Ins;
use super::slots::Init;

/// Compute capability that a module was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 80 for `sm_80`, 90 for `sm_90a`.
    pub capability: u32,
    /// The target has the `a` suffix: instructions of this one architecture are allowed.
    pub specific: bool,
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
    pub(crate) code: Vec<Ins>,
    pub(crate) lines: Vec<u32>,
    pub(crate) slots: u32,
    pub(crate) predicates: u32,
    pub(crate) inits: Vec<(u16, Init)>,
    pub(crate) register_names: Vec<(u16, String)>,
    pub(crate) predicate_names: Vec<(u16, String)>,
    pub(crate) reads_clock: bool,
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
        if dynamic == 0 { self.static_shared } else { self.static_shared.max(self.dynamic_offset.saturating_add(dynamic)) }
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

    /// Number of instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}
