//! Device memory that launches keep between them: the schedule of a step, and the workspace of a layer.

use crate::{Error, Result, plan::Key};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    driver,
    memory::{Guard, allocate},
};
use std::sync::Arc;

/// Memory by its address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawMemory {
    /// A multiple of 16.
    pub address: CUdeviceptr,
    /// Its length: the same number from the time it was zeroed on, since it says where counters are.
    pub bytes: u64,
}

/// Where the parts of a workspace are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    /// One `u32` a row, zero between launches.
    pub counters: CUdeviceptr,
    /// Partial states, of which only what a launch wrote means anything.
    pub partials: CUdeviceptr,
}

/// Counters have this part of a workspace, whatever plans use it: one must never be where a launch of another shape left something.
const COUNTER_PART: u64 = 16;
/// Parts are multiples of this.
const ALIGN: u64 = 256;

/// Bytes of the counters of a workspace.
fn counter_bytes(bytes: u64) -> u64 {
    bytes / COUNTER_PART / ALIGN * ALIGN
}

/// The least workspace with room for these counters and partial states.
pub(crate) fn workspace_bytes(counters: u64, partials: u64) -> u64 {
    let counters = counters.next_multiple_of(ALIGN);
    let (for_counters, for_partials) = (counters.saturating_mul(COUNTER_PART), partials.saturating_mul(COUNTER_PART));
    for_counters.max(for_partials.div_ceil(COUNTER_PART - 1).next_multiple_of(ALIGN))
}

impl RawMemory {
    /// Large enough and aligned.
    pub(crate) fn check(self, op: &'static str, arg: &'static str, need: u64) -> Result<()> {
        let Self { address, bytes } = self;
        if bytes < need {
            return Err(Error::Workspace { op, need, got: bytes });
        }
        if need > 0 && (address == 0 || !address.is_multiple_of(16)) {
            return Err(Error::Align { op, arg, need: 16, addr: address });
        }
        Ok(())
    }

    /// As a workspace.
    pub(crate) fn parts(self) -> Parts {
        Parts { counters: self.address, partials: self.address + counter_bytes(self.bytes) }
    }
}

fn zeroed(stream: &Arc<CudaStream>, bytes: u64) -> Result<CudaSlice<u8>> {
    allocate(stream, bytes, "memory of lean decoding")
}

fn zero(slice: &mut CudaSlice<u8>, stream: &Arc<CudaStream>) -> Result<()> {
    stream.memset_zeros(slice).map_err(|e| driver(e, "memory of lean decoding"))
}

fn changed<'a>(slice: &'a mut CudaSlice<u8>, stream: &'a CudaStream) -> (RawMemory, Guard<'a>) {
    let bytes = slice.len() as u64;
    let (address, guard) = slice.device_ptr_mut(stream);
    (RawMemory { address, bytes }, Some(guard))
}

/// Which tiles each block does, and a word of what was wrong with lengths and tables: written by
/// [`Plan::schedule`](crate::Plan::schedule) once a step, read by every layer's [`Plan::run`](crate::Plan::run).
#[derive(Debug)]
pub struct Schedule {
    slice: CudaSlice<u8>,
    /// What the plan that wrote it was made for.
    pub(crate) key: Option<Key>,
}

impl Schedule {
    /// Zeroed memory of [`Plan::schedule_bytes`](crate::Plan::schedule_bytes), without a schedule yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(stream: &Arc<CudaStream>, bytes: u64) -> Result<Self> {
        Ok(Self { slice: zeroed(stream, bytes)?, key: None })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.slice.len() as u64
    }

    /// The memory, to look at; `docs/lean_decode.md` says what is where.
    pub fn slice(&self) -> &CudaSlice<u8> {
        &self.slice
    }

    pub(crate) fn slice_mut(&mut self) -> &mut CudaSlice<u8> {
        &mut self.slice
    }

    pub(crate) fn hold<'a>(&'a mut self, stream: &'a CudaStream) -> (RawMemory, Guard<'a>) {
        changed(&mut self.slice, stream)
    }

    pub(crate) fn look<'a>(&'a self, stream: &'a CudaStream) -> (RawMemory, Guard<'a>) {
        let (address, guard) = self.slice.device_ptr(stream);
        (RawMemory { address, bytes: self.bytes() }, Some(guard))
    }
}

/// What the blocks of one launch leave each other. Any number of plans may share one that has the most of their
/// [`Plan::workspace_bytes`](crate::Plan::workspace_bytes), one launch at a time.
#[derive(Debug)]
pub struct Workspace {
    slice: CudaSlice<u8>,
}

impl Workspace {
    /// Allocates and zeroes. Launches leave its counters as they found them, at zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(stream: &Arc<CudaStream>, bytes: u64) -> Result<Self> {
        Ok(Self { slice: zeroed(stream, bytes)? })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.slice.len() as u64
    }

    /// The memory, to look at: counters in its first sixteenth, partial states behind.
    pub fn slice(&self) -> &CudaSlice<u8> {
        &self.slice
    }

    /// Zeroes it again: needed after a launch that did not end, and never otherwise.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        zero(&mut self.slice, stream)
    }

    pub(crate) fn hold<'a>(&'a mut self, stream: &'a CudaStream) -> (RawMemory, Guard<'a>) {
        changed(&mut self.slice, stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_the_size_promises() {
        for (counters, partials) in [(4, 16), (4, 5_000_000), (1_000_000, 16), (256, 3840), (257, 3841)] {
            let need = workspace_bytes(counters, partials);
            for bytes in [need, need + 1, need + 12_345] {
                let Parts { counters: first, partials: second } = RawMemory { address: 4096, bytes }.parts();
                assert_eq!(first, 4096);
                assert!(second >= first + counters && second.is_multiple_of(ALIGN), "{counters} {partials} {bytes}");
                assert!(second + partials <= 4096 + bytes, "{counters} {partials} {bytes}");
            }
        }
    }
}
