//! The memory through which blocks of a reduction talk to each other.
//!
//! Layout for a workspace of `bytes` bytes, whatever plans use it: a header, control words of `capacity` units, then cells. It depends on the
//! size alone, because a flag must never be read where an earlier launch, of another shape, left something else.

use crate::{Error, Result};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop, sys::CUdeviceptr};
use lookback_device::driver;
use std::sync::Arc;

const HEADER: u64 = 256;
/// Cells begin at a multiple of this, and so does the workspace.
pub(super) const ALIGN: u64 = 128;
/// Control words of a unit.
const CONTROL: u64 = 16;
/// Bytes of the smallest cell: a unit has at least one.
const LEAST_CELL: u64 = 264 * 64;

/// Bytes for this many bytes of cells, at least one cell a unit.
pub(super) fn bytes_for(cells: u64) -> u64 {
    (HEADER + ALIGN).saturating_add(cells.div_ceil(LEAST_CELL).saturating_mul(CONTROL + LEAST_CELL))
}

/// Addresses of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    pub header: CUdeviceptr,
    pub control: CUdeviceptr,
    pub cells: CUdeviceptr,
}

/// A workspace by its address, for [`Plan::run_raw`](super::Plan::run_raw).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawWorkspace {
    /// Address, a multiple of 128.
    pub address: CUdeviceptr,
    /// Bytes: the same number from the time it was zeroed on, since it says where the flags are.
    pub bytes: u64,
}

impl RawWorkspace {
    pub(super) fn parts(&self, op: &'static str, need: u64) -> Result<Parts> {
        if self.bytes < need {
            return Err(Error::Workspace { op, need, got: self.bytes });
        }
        if self.address == 0 || !self.address.is_multiple_of(ALIGN) {
            return Err(Error::Align { op, arg: "workspace", need: ALIGN, addr: self.address });
        }
        let capacity = (self.bytes - HEADER - ALIGN) / (CONTROL + LEAST_CELL);
        let control = self.address + HEADER;
        Ok(Parts { header: self.address, control, cells: (control + CONTROL * capacity).next_multiple_of(ALIGN) })
    }
}

/// Device memory for partial sums and flags, zeroed when it is made and kept between launches.
///
/// One may serve any number of plans, forward and backward, one launch at a time. Its size must be at least the plan's
/// `workspace_bytes()`.
#[derive(Debug)]
pub struct Workspace {
    slice: CudaSlice<u8>,
}

impl Workspace {
    /// Allocates and zeroes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(stream: &Arc<CudaStream>, bytes: u64) -> Result<Self> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
        let slice = stream.alloc_zeros::<u8>(bytes).map_err(|e| driver(e, "reduction workspace"))?;
        Ok(Self { slice })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.slice.len() as u64
    }

    /// Zeroes it again: needed after a launch that did not end, and never otherwise.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        stream.memset_zeros(&mut self.slice).map_err(|e| driver(e, "reduction workspace"))
    }

    /// Its address, with the guard that must outlive the launch.
    pub(super) fn hold<'a>(&'a mut self, stream: &'a CudaStream) -> (RawWorkspace, SyncOnDrop<'a>) {
        let bytes = self.bytes();
        let (address, guard) = self.slice.device_ptr_mut(stream);
        (RawWorkspace { address, bytes }, guard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_the_size_promises() {
        for cells in [1, LEAST_CELL, 3 * LEAST_CELL + 1, 1_000_000] {
            let bytes = bytes_for(cells);
            let parts = RawWorkspace { address: 4096, bytes }.parts("op", bytes).expect("large enough");
            assert!(parts.cells >= parts.control + CONTROL * cells.div_ceil(LEAST_CELL));
            assert!(parts.cells + cells <= 4096 + bytes && parts.cells.is_multiple_of(128));
        }
    }

    #[test]
    fn parts_refuse_too_little_and_misaligned_memory() {
        let small = RawWorkspace { address: 4096, bytes: 100 };
        assert!(matches!(small.parts("op", 20_000), Err(Error::Workspace { need: 20_000, got: 100, .. })));
        let odd = RawWorkspace { address: 4100, bytes: 100_000 };
        assert!(matches!(odd.parts("op", 20_000), Err(Error::Align { need: 128, .. })));
    }
}
