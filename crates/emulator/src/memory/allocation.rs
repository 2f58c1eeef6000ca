//! One block of device memory.

use super::{InitMap, POISON};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// What a device promises of every allocation's start.
const ALIGNMENT: usize = 256;

/// Bytes of device memory, and which of them have been written.
#[derive(Debug)]
pub struct Allocation {
    base: *mut u8,
    bytes: u64,
    charge: u64,
    block: NonNull<u8>,
    layout: Layout,
    init: InitMap,
}

// SAFETY: the block is owned by this value alone and freed once, by whichever thread drops the last Arc.
unsafe impl Send for Allocation {}
// SAFETY: no method reads or writes the block; whoever does through `base` answers for the order of accesses.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// A poisoned block that `charge` bytes of the device are charged for, or nothing when the host has no memory for it.
    pub(super) fn new(bytes: u64, charge: u64) -> Option<Arc<Self>> {
        let layout = Layout::from_size_align(usize::try_from(bytes.max(1)).ok()?, ALIGNMENT).ok()?;
        let init = InitMap::new(bytes)?;
        // SAFETY: the layout has a size of at least 1.
        let block = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the block has `layout.size()` bytes.
        unsafe { block.as_ptr().write_bytes(POISON, layout.size()) };
        Some(Arc::new(Self { base: block.as_ptr(), bytes, charge, block, layout, init }))
    }

    /// A block of zeros, free of charge: of a long one, the host gives only the pages that are touched. Only a block of the
    /// plainest alignment comes so from the system, and the start is found in it.
    pub(super) fn reserved(bytes: u64) -> Option<Arc<Self>> {
        let room = usize::try_from(bytes).ok()?.checked_add(ALIGNMENT)?;
        let layout = Layout::from_size_align(room, align_of::<u64>()).ok()?;
        let init = InitMap::new(bytes)?;
        // SAFETY: the layout has a size of at least `ALIGNMENT`.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let before = block.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        // SAFETY: `before` is at most `ALIGNMENT`, and the block has that many bytes and `bytes` more.
        let base = unsafe { block.as_ptr().add(before) };
        Some(Arc::new(Self { base, bytes, charge: 0, block, layout, init }))
    }

    /// Where the block is on the host.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the device that are charged for it.
    pub(super) fn charge(&self) -> u64 {
        self.charge
    }

    /// Which bytes have been written.
    pub fn init(&self) -> &InitMap {
        &self.init
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `block` came from the allocator with this layout, and nobody else frees it.
        unsafe { dealloc(self.block.as_ptr(), self.layout) };
    }
}
