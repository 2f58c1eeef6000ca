//! The memory through which tiles talk to each other.
//!
//! Layout for a workspace of `bytes` bytes, whatever plans use it: a header, `capacity` flags, `capacity` counts, and
//! `capacity` slots of 512 bytes. It depends on the size alone, because a flag must never be read where an earlier launch, of
//! another shape, left something else.

use crate::{Result, check};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::driver;
use std::sync::Arc;

const HEADER: u64 = 256;
const SLOT: u64 = 512;
/// A flag, a count and a slot.
const UNIT: u64 = 4 + 4 + SLOT;
/// Slots begin at a multiple of this.
const ALIGN: u64 = 128;

/// Bytes for this many slots.
pub(crate) fn bytes_for(slots: u64) -> u64 {
    if slots == 0 { 0 } else { (HEADER + ALIGN).saturating_add(slots.saturating_mul(UNIT)) }
}

/// Addresses of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub header: CUdeviceptr,
    pub tile_flags: CUdeviceptr,
    pub counts: CUdeviceptr,
    pub slots: CUdeviceptr,
}

/// A workspace by its address, for [`Plan::run_raw`](crate::Plan::run_raw).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawWorkspace {
    /// Address, a multiple of 128; 0 where a plan needs no workspace.
    pub address: CUdeviceptr,
    /// Bytes: the same number from the time it was zeroed on, since it says where the flags are.
    pub bytes: u64,
}

impl RawWorkspace {
    pub(crate) fn parts(&self, op: &'static str, need: u64) -> Result<Parts> {
        if need == 0 {
            return Ok(Parts { header: 0, tile_flags: 0, counts: 0, slots: 0 });
        }
        check::workspace(op, need, self.bytes)?;
        check::aligned(op, "workspace", ALIGN, self.address)?;
        let capacity = (self.bytes - HEADER - ALIGN) / UNIT;
        let tile_flags = self.address + HEADER;
        let counts = tile_flags + 4 * capacity;
        Ok(Parts { header: self.address, tile_flags, counts, slots: (counts + 4 * capacity).next_multiple_of(ALIGN) })
    }
}

/// Device memory for the look-back, zeroed when it is made and kept between launches.
///
/// One may serve any number of plans, forward and backward, one launch at a time. Its size must be at least the plan's
/// `workspace_bytes()`.
#[derive(Debug)]
pub struct Workspace {
    slice: Option<CudaSlice<u8>>,
}

impl Workspace {
    /// Allocates and zeroes; 0 bytes allocate nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Driver`](crate::Error::Driver).
    pub fn new(stream: &Arc<CudaStream>, bytes: u64) -> Result<Self> {
        let allocate = |bytes| stream.alloc_zeros::<u8>(bytes).map_err(|e| driver(e, "scan workspace"));
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let slice = if bytes == 0 { None } else { Some(allocate(bytes)?) };
        Ok(Self { slice })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.slice.as_ref().map_or(0, |s| s.len() as u64)
    }

    /// Zeroes it again: needed after a launch that did not end, and never otherwise.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver).
    pub fn reset(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let Some(slice) = &mut self.slice else { return Ok(()) };
        stream.memset_zeros(slice).map_err(|e| driver(e, "scan workspace"))
    }

    /// Its address, with the guard that must outlive the launch.
    pub(crate) fn hold<'a>(&'a mut self, stream: &'a CudaStream) -> (RawWorkspace, crate::memory::Guard<'a>) {
        let bytes = self.bytes();
        match &mut self.slice {
            None => (RawWorkspace { address: 0, bytes: 0 }, None),
            Some(slice) => {
                let (address, guard) = slice.device_ptr_mut(stream);
                (RawWorkspace { address, bytes }, Some(guard))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn parts_hold_what_the_size_promises() {
        for slots in [1, 2, 31, 32, 1000, 12_345] {
            let bytes = bytes_for(slots);
            let parts = RawWorkspace { address: 4096, bytes }.parts("op", bytes).expect("large enough");
            assert_eq!(parts.tile_flags, 4096 + 256);
            assert!(parts.counts >= parts.tile_flags + 4 * slots);
            assert!(parts.slots >= parts.counts + 4 * slots && parts.slots.is_multiple_of(128));
            assert!(parts.slots + 512 * slots <= 4096 + bytes);
        }
    }

    #[test]
    fn parts_refuse_too_little_and_misaligned_memory() {
        let small = RawWorkspace { address: 4096, bytes: 100 };
        assert!(matches!(small.parts("op", 101), Err(Error::Workspace { need: 101, got: 100, .. })));
        let odd = RawWorkspace { address: 4100, bytes: 10_000 };
        assert!(matches!(odd.parts("op", 10_000), Err(Error::Align { need: 128, .. })));
        assert!(RawWorkspace { address: 0, bytes: 0 }.parts("op", 0).is_ok());
    }
}
