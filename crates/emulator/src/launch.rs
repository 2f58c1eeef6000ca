//! The direct API: run one decoded kernel over a grid on the calling thread.
//!
//! The driver library and the Rust tests both come in here. Everything that a GPU leaves to chance (the order of CTAs,
//! how many are resident, when lanes reconverge, when asynchronous copies land) is an [`Options`] field.

use crate::counters::{Counters, Counting};
use crate::decode::Program;
use crate::memory::DeviceMemory;
use crate::sched;
use std::fmt;

/// Threads in a warp.
pub const WARP: u32 = 32;

/// Most threads that a block may have.
pub const MAX_BLOCK_THREADS: u32 = 1024;

/// Most shared memory that one block may use, static and dynamic together.
pub const MAX_BLOCK_SHARED: u32 = 227 * 1024;

/// Shared memory of one multiprocessor.
pub const SM_SHARED: u32 = 228 * 1024;

/// Registers of one multiprocessor.
pub const SM_REGISTERS: u32 = 65_536;

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// CTAs in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The whole grid must be resident at once; refused when the residency limit is smaller.
    pub cooperative: bool,
}

/// Whether the sanitizer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checks {
    /// Bounds and alignment only.
    Off,
    /// Races, uninitialised registers and memory, barrier misuse and asynchronous copies too.
    #[default]
    On,
}

/// In which order CTAs become resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CtaOrder {
    /// Linear index upwards.
    #[default]
    InOrder,
    /// Linear index downwards.
    Reversed,
    /// A permutation drawn from this seed.
    Random(u64),
}

/// When diverged lanes of a warp meet again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Convergence {
    /// The lowest program counter runs first and equal ones merge.
    #[default]
    Natural,
    /// Groups take turns at random and merge only where an instruction demands it.
    Random(u64),
}

/// Arithmetic of `mma.sync` on floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MmaArithmetic {
    /// A chain of f32 fused multiply-adds: fast, and within the tolerance of the hardware.
    #[default]
    Fma,
    /// Bit for bit what Hopper's tensor cores give.
    Hopper,
}

/// When asynchronous copies take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AsyncCopies {
    /// At the wait: finds reads that come too early.
    #[default]
    Late,
    /// At the issue: finds buffers that are overwritten too early.
    Eager,
}

/// What orders the lanes of one warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneOrder {
    /// Program order: lanes are taken to run together, as mostly they do.
    #[default]
    Converged,
    /// `bar.warp.sync` and barriers alone, as the memory model has it: memory by which lanes hand something to each other,
    /// with neither between, is reported.
    Synchronised,
}

/// How to run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether the sanitizer runs.
    pub checks: Checks,
    /// In which order CTAs become resident.
    pub order: CtaOrder,
    /// CTAs resident at once. Without one: what [`Options::sm_count`] multiprocessors hold by shared memory, threads and registers.
    pub residency: Option<u32>,
    /// When diverged lanes meet again.
    pub convergence: Convergence,
    /// What orders the lanes of one warp.
    pub lane_order: LaneOrder,
    /// Arithmetic of `mma.sync`.
    pub mma: MmaArithmetic,
    /// When asynchronous copies take effect.
    pub async_copies: AsyncCopies,
    /// How much is counted.
    pub counting: Counting,
    /// Multiprocessors of the device.
    pub sm_count: u32,
    /// Instructions that a warp runs before another has its turn; small values interleave more.
    pub quantum: u32,
    /// Warp instructions after which a launch counts as hung.
    pub instruction_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            checks: Checks::default(),
            order: CtaOrder::default(),
            residency: None,
            convergence: Convergence::default(),
            lane_order: LaneOrder::default(),
            mma: MmaArithmetic::default(),
            async_copies: AsyncCopies::default(),
            counting: Counting::default(),
            sm_count: 132,
            quantum: 20_000,
            instruction_limit: 20_000_000_000,
        }
    }
}

/// What went wrong, in the words of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch itself is impossible: grid, block or parameter block of the wrong size.
    InvalidLaunch,
    /// More threads, registers or shared memory than a multiprocessor has.
    OutOfResources,
    /// A cooperative grid that cannot be resident at once.
    CooperativeTooLarge,
    /// Access outside any allocation, or outside the CTA's shared memory.
    IllegalAddress,
    /// Address not a multiple of the access size.
    MisalignedAddress,
    /// An operand value for which the instruction is undefined.
    IllegalInstruction,
    /// `trap`.
    Trap,
    /// Two accesses to one word, at least one a write, that nothing orders.
    Race,
    /// A read of a register or of memory that nothing has written.
    Uninitialized,
    /// An instruction that wants the whole warp was reached by a part of it.
    Divergence,
    /// Barrier or mbarrier used against its rules.
    BarrierMisuse,
    /// Asynchronous copy used against its rules.
    AsyncMisuse,
    /// Nothing can run any more.
    Deadlock,
    /// More instructions than [`Options::instruction_limit`].
    InstructionLimit,
}

impl FaultKind {
    /// The `CUresult` that a driver would return.
    pub fn cuda_code(self) -> u32 {
        match self {
            Self::InvalidLaunch => 1,
            Self::OutOfResources => 701,
            Self::CooperativeTooLarge => 720,
            Self::IllegalAddress => 700,
            Self::MisalignedAddress => 716,
            Self::IllegalInstruction => 715,
            Self::Deadlock | Self::InstructionLimit => 702,
            Self::Trap
            | Self::Race
            | Self::Uninitialized
            | Self::Divergence
            | Self::BarrierMisuse
            | Self::AsyncMisuse => 719,
        }
    }

    /// A few words for the head of a report.
    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidLaunch => "invalid launch",
            Self::OutOfResources => "launch out of resources",
            Self::CooperativeTooLarge => "cooperative launch too large",
            Self::IllegalAddress => "illegal address",
            Self::MisalignedAddress => "misaligned address",
            Self::IllegalInstruction => "illegal instruction",
            Self::Trap => "trap",
            Self::Race => "race",
            Self::Uninitialized => "uninitialized read",
            Self::Divergence => "divergence",
            Self::BarrierMisuse => "barrier misuse",
            Self::AsyncMisuse => "asynchronous copy misuse",
            Self::Deadlock => "deadlock",
            Self::InstructionLimit => "instruction limit",
        }
    }
}

/// Why a launch did not finish. Its `Display` is the whole story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// Entry name.
    pub kernel: String,
    /// Line of the PTX text, 0 when no instruction is to blame.
    pub line: u32,
    /// CTA of the offender.
    pub cta: [u32; 3],
    /// Thread of the offender, where one can be named.
    pub thread: Option<[u32; 3]>,
    /// What was found, in one or more lines.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in kernel {}", self.kind.title(), self.kernel)?;
        if self.line != 0 {
            write!(f, ", PTX line {}", self.line)?;
            write!(f, ", CTA ({}, {}, {})", self.cta[0], self.cta[1], self.cta[2])?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

/// Run `program` over the grid of `config` and return what it counted.
///
/// `params` is the parameter block, exactly [`Program::param_bytes`] long. On a fault, memory holds whatever was
/// written before it.
pub fn launch(
    program: &Program,
    memory: &DeviceMemory,
    config: &LaunchConfig,
    params: &[u8],
    options: &Options,
) -> Result<Counters, Fault> {
    sched::run(program, memory, config, params, options)
}

/// CTAs of that shape that one multiprocessor holds, by threads, shared memory and registers; 0 when it holds none.
pub fn occupancy(program: &Program, block_threads: u32, dynamic_shared: u32) -> u32 {
    sched::residency::occupancy(program, block_threads, dynamic_shared)
}
