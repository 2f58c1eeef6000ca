//! What can go wrong, by who must act on it.

use crate::DType;
use cudarc::driver::{DriverError, sys::CUresult};
use std::{path::PathBuf, time::Duration};

/// Shorthand for results of this workspace.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of lookback. [`Error::class`] says who must act.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor or size has the wrong extent.
    #[error("{op}: `{arg}` must be {want}, got {got:?}")]
    Shape {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// What was wanted.
        want: String,
        /// What came.
        got: Vec<u64>,
    },
    /// A tensor has the wrong element type.
    #[error("{op}: `{arg}` must be {want}, got {got}")]
    Dtype {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// What was wanted.
        want: DType,
        /// What came.
        got: DType,
    },
    /// A tensor is laid out in a way the kernel cannot read.
    #[error("{op}: `{arg}` needs {need}, got strides {stride:?}")]
    Layout {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// What was wanted.
        need: &'static str,
        /// What came, in elements.
        stride: Vec<i64>,
    },
    /// A pointer is not aligned as needed.
    #[error("{op}: `{arg}` must be aligned to {need} bytes, got address {addr:#x}")]
    Align {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// Bytes.
        need: u64,
        /// Address that came.
        addr: u64,
    },
    /// Two tensors overlap that must not.
    #[error("{op}: `{a}` and `{b}` overlap")]
    Alias {
        /// Operation.
        op: &'static str,
        /// One argument.
        a: &'static str,
        /// The other.
        b: &'static str,
    },
    /// A number is outside its range.
    #[error("{op}: `{arg}`{} = {got}, want {lo}..={hi}", at.map(|i| format!("[{i}]")).unwrap_or_default())]
    Range {
        /// Operation.
        op: &'static str,
        /// Argument.
        arg: &'static str,
        /// Index of the entry, for an array.
        at: Option<u64>,
        /// Least value.
        lo: i64,
        /// Greatest value.
        hi: i64,
        /// What came.
        got: i64,
    },
    /// The workspace is smaller than the plan says.
    #[error("{op}: the workspace must have {need} bytes, got {got}")]
    Workspace {
        /// Operation.
        op: &'static str,
        /// Bytes wanted.
        need: u64,
        /// Bytes that came.
        got: u64,
    },
    /// Neither an NVIDIA driver nor the emulator was found.
    #[error("no device to run on; tried {}", tried.join(", "))]
    NoDriver {
        /// Names and paths that were tried.
        tried: Vec<String>,
    },
    /// The driver cannot read the kernel's PTX version.
    #[error("kernel {kernel} needs a driver for CUDA {}.{}, this one is for {}.{}", need / 1000, need % 1000 / 10, got / 1000, got % 1000 / 10)]
    DriverTooOld {
        /// Kernel entry.
        kernel: &'static str,
        /// CUDA version times 1000.
        need: u32,
        /// CUDA version times 1000.
        got: u32,
    },
    /// The device cannot run the kernel.
    #[error("kernel {kernel} needs {need}, this device is sm_{}{}", got.0, got.1)]
    Arch {
        /// Kernel entry.
        kernel: &'static str,
        /// Target of the text.
        need: String,
        /// Compute capability.
        got: (u32, u32),
    },
    /// No variant of a kernel fits the request.
    #[error("{op}: no kernel for {request}")]
    NoKernel {
        /// Operation.
        op: &'static str,
        /// Variant that was asked for.
        request: String,
    },
    /// The driver refused the PTX text.
    #[error("kernel {kernel}: the driver refused the PTX ({code:?})\n{log}")]
    Ptx {
        /// Kernel entry.
        kernel: &'static str,
        /// Driver code.
        code: CUresult,
        /// The compiler's own words.
        log: String,
    },
    /// Not enough device memory.
    #[error("{what}: out of device memory")]
    OutOfMemory {
        /// What was being done.
        what: &'static str,
    },
    /// A paged cache has fewer free pages than what is to be kept would fill.
    #[error("{op}: needs {need} more pages, {free} are free")]
    OutOfPages {
        /// Operation.
        op: &'static str,
        /// Pages wanted besides those in use.
        need: u64,
        /// Pages that nothing uses.
        free: u64,
    },
    /// A kernel met entries of `arg` that lead outside of what is there. It followed none of them: what they named was left out.
    #[error("{op}: `{arg}` has entries outside of {within}, which were left out")]
    Masked {
        /// Operation.
        op: &'static str,
        /// Tensor of lengths, starts or places.
        arg: &'static str,
        /// What its entries must lie in.
        within: &'static str,
    },
    /// A driver call failed.
    #[error("{what}: driver error {code:?}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// Driver code.
        code: CUresult,
    },
    /// A launch was refused.
    #[error("kernel {kernel}: launch failed with {code:?}")]
    Launch {
        /// Kernel entry.
        kernel: &'static str,
        /// Driver code.
        code: CUresult,
    },
    /// A kernel faulted: the context answers every later call with this code, until the process ends.
    #[error("{seen_at}: the device is lost ({code:?}){}", story.as_deref().map(|s| format!("\n{s}")).unwrap_or_default())]
    DeviceLost {
        /// Where the code was first seen.
        seen_at: &'static str,
        /// Driver code.
        code: CUresult,
        /// The emulator's account of the fault; a GPU gives none.
        story: Option<String>,
    },
    /// Another rank failed.
    #[error("rank {rank} at step {step}: {fault:?} after {waited:?}")]
    Peer {
        /// The rank that failed.
        rank: u32,
        /// Step of the schedule.
        step: u32,
        /// How.
        fault: PeerFault,
        /// How long this rank waited.
        waited: Duration,
    },
    /// Ranks did not find each other.
    #[error("rank {rank} at {address}: {why}")]
    Rendezvous {
        /// The rank that is to blame or that it was about.
        rank: u32,
        /// Where it was looked for.
        address: String,
        /// What went wrong.
        why: RendezvousFault,
    },
    /// A library that was asked for is not on this machine, or too old.
    #[error("{library} was not found; tried {}", tried.join(", "))]
    NoLibrary {
        /// Which.
        library: &'static str,
        /// Names that were tried, and what was said to each.
        tried: Vec<String>,
    },
    /// A function of such a library failed.
    #[error("{library}: {what}: {why}")]
    Library {
        /// Which.
        library: &'static str,
        /// What was being done.
        what: &'static str,
        /// The library's own words.
        why: String,
    },
    /// A weights file is not what the model needs.
    #[error("{}{}: {why}", file.display(), tensor.as_deref().map(|t| format!(", tensor `{t}`")).unwrap_or_default())]
    Weights {
        /// The file.
        file: PathBuf,
        /// The tensor, when one is to blame.
        tensor: Option<String>,
        /// What is wrong.
        why: WeightsFault,
    },
}

/// How another rank failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerFault {
    /// It said nothing in time.
    Silent,
    /// It closed the connection.
    Closed,
    /// It sent something that the schedule does not expect.
    Mismatch,
}

/// Why ranks did not find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousFault {
    /// It did not come in time.
    #[error("did not come in time")]
    Silent,
    /// Another process says that it is this rank.
    #[error("was there already")]
    Taken,
    /// It counts another number of ranks.
    #[error("counts {got} ranks, want {want}")]
    Ranks {
        /// Ranks of this one.
        want: u32,
        /// Ranks of that one.
        got: u32,
    },
    /// A connection or file failed.
    #[error("{0}")]
    Io(std::io::ErrorKind),
}

/// What is wrong with a weights file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsFault {
    /// The file cannot be read or is not safetensors.
    #[error("{0}")]
    Parse(String),
    /// A tensor is absent.
    #[error("is missing")]
    Missing,
    /// A tensor has the wrong shape.
    #[error("must have shape {want:?}, got {got:?}")]
    Shape {
        /// What was wanted.
        want: Vec<u64>,
        /// What came.
        got: Vec<u64>,
    },
    /// A tensor has the wrong element type.
    #[error("must be {want}, got {got}")]
    Dtype {
        /// What was wanted.
        want: String,
        /// What came.
        got: String,
    },
    /// A weight is NaN or infinite.
    #[error("is not finite at element {at}")]
    NonFinite {
        /// Flat index.
        at: u64,
    },
    /// A configuration value is absent or out of range.
    #[error("configuration `{key}` {problem}")]
    Config {
        /// Metadata key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Who must act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The caller: an argument is wrong. Nothing was launched and nothing written.
    Caller,
    /// The machine cannot do this. Nothing was written.
    Machine,
    /// A launch went wrong; outputs are undefined, or lack what was left out.
    Run,
    /// Another rank.
    Peer,
    /// A file.
    Data,
}

impl Error {
    /// Who must act.
    pub fn class(&self) -> Class {
        match self {
            Error::Shape { .. }
            | Error::Dtype { .. }
            | Error::Layout { .. }
            | Error::Align { .. }
            | Error::Alias { .. }
            | Error::Range { .. }
            | Error::NoKernel { .. }
            | Error::Workspace { .. } => Class::Caller,
            Error::NoDriver { .. }
            | Error::DriverTooOld { .. }
            | Error::Arch { .. }
            | Error::Ptx { .. }
            | Error::NoLibrary { .. }
            | Error::OutOfMemory { .. }
            | Error::OutOfPages { .. } => Class::Machine,
            Error::Masked { .. }
            | Error::Driver { .. }
            | Error::Launch { .. }
            | Error::Library { .. }
            | Error::DeviceLost { .. } => Class::Run,
            Error::Peer { .. } | Error::Rendezvous { .. } => Class::Peer,
            Error::Weights { .. } => Class::Data,
        }
    }

    /// Whether the process must end before the device can be used again.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Error::DeviceLost { .. })
    }

    /// Whether every output still holds what it held before the call.
    pub fn outputs_untouched(&self) -> bool {
        !matches!(self.class(), Class::Run | Class::Peer)
    }
}

/// Names a cudarc error by where it was seen. Printing a [`DriverError`] itself panics when there is no driver.
pub fn driver(error: DriverError, what: &'static str) -> Error {
    use CUresult as C;
    match error.0 {
        C::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what },
        code @ (C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_LAUNCH_TIMEOUT
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_LAUNCH_FAILED) => {
            Error::DeviceLost { seen_at: what, code, story: crate::emulator::last_fault() }
        }
        code => Error::Driver { what, code },
    }
}
