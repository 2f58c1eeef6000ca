//! One operation on one shape.

use crate::{Memory, Tensor};
use lookback_device::{Result, cudarc::driver::CudaStream};
use std::sync::Arc;

/// Bytes that the rotating sets of tensors take together: more than three times the L2 cache of an H200.
pub const ROTATION_BYTES: u64 = 200_000_000;

/// How large the shapes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Those that models are made of: what a GPU is timed on.
    Full,
    /// A few hundred tokens: what the emulator counts in milliseconds.
    Small,
}

/// What is known of a case before anything is allocated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Unique within a scale: operation, what is special, element type, sizes.
    pub name: String,
    /// As `lookback run --list` names it.
    pub operation: &'static str,
    /// Crate of the operation: `scan`, `nn`, `linear`, `attention` or `decode`.
    pub family: &'static str,
    /// Extents by name, in the order in which one says them.
    pub shape: Vec<(&'static str, usize)>,
    /// Of the tensors that are large: `f32`, `bf16`, `e4m3`.
    pub dtype: &'static str,
    /// Bytes that must cross the memory bus at least.
    pub bytes: u64,
    /// Multiplications and additions on tensor cores, at least; 0 where bytes alone are looked at.
    pub flops: u64,
}

impl Facts {
    /// An operation of `family`; `what` is special about it, or empty. [`Case::planned`] fills in the work.
    pub(crate) fn new(
        family: &'static str,
        operation: &'static str,
        what: &str,
        dtype: &'static str,
        shape: &[(&'static str, usize)],
    ) -> Self {
        let sizes: Vec<String> = shape.iter().map(|(_, extent)| extent.to_string()).collect();
        let words = [operation, what, dtype, &sizes.join("x")];
        let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        Self { name, operation, family, shape: shape.to_vec(), dtype, bytes: 0, flops: 0 }
    }

    /// How many sets of tensors together exceed every cache.
    pub fn sets(&self) -> usize {
        usize::try_from(ROTATION_BYTES.div_ceil(self.bytes.max(1))).unwrap_or(usize::MAX).clamp(1, 512)
    }
}

/// Launches an operation on one of the sets of tensors.
pub type Launch = Box<dyn FnMut(usize) -> Result<()>>;

/// Allocates and gives the launch.
type Maker = Box<dyn FnOnce(&mut Memory) -> Result<Launch>>;

/// An operation on one shape: what is known of it, and how to get it.
pub struct Case {
    /// What is known before anything is allocated.
    pub facts: Facts,
    maker: Maker,
}

impl Case {
    /// A case of a plan: `work` gives its bytes and tensor flops, `maker` allocates its tensors. Where the device has no kernel for the
    /// plan, the case is there without work, and making it says why.
    pub(crate) fn planned<P: 'static>(
        mut facts: Facts,
        plan: Result<P>,
        work: impl FnOnce(&P) -> [u64; 2],
        maker: impl FnOnce(P, &mut Memory) -> Result<Launch> + 'static,
    ) -> Self {
        if let Ok(plan) = &plan {
            [facts.bytes, facts.flops] = work(plan);
        }
        Self { facts, maker: Box::new(move |memory| maker(plan?, memory)) }
    }

    /// Allocates `sets` sets of tensors ([`Facts::sets`] of them exceed every cache) and fills them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](lookback_device::Error::OutOfMemory) and what else allocating, copying and planning bring.
    pub fn make(self, stream: &Arc<CudaStream>, sets: usize) -> Result<Work> {
        let Self { facts, maker } = self;
        let mut memory = Memory::new(stream, sets);
        let launch = maker(&mut memory)?;
        Ok(Work { facts, stream: stream.clone(), sets: sets.max(1), tensors: memory.into_tensors(), launch })
    }
}

/// A case with its tensors.
pub struct Work {
    /// What it is.
    pub facts: Facts,
    stream: Arc<CudaStream>,
    sets: usize,
    tensors: Vec<Tensor>,
    launch: Launch,
}

impl Work {
    /// Launches the operation on set `set`, modulo their number, on the stream that it was made for. Waits for nothing.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn launch(&mut self, set: usize) -> Result<()> {
        (self.launch)(set % self.sets)
    }

    /// The stream that it launches on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Sets of tensors.
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// The tensors of set 0, and those that all sets share. Workspaces that a family crate keeps to itself are not among them.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}
