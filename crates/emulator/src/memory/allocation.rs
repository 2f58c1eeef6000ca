//! One block of device memory.

use super::{InitMap, POISON};
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// What a device promises of every allocation's start.
const ALIGNMENT: usize = 256;

/// Bytes of device memory, and which of them have been written.
#[derive(Debug)]
pub struct Allocation {
    base: NonNull<u8>,
    bytes: u64,
    layout: Layout,
    init: InitMap,
}

// SAFETY: the block is owned by this value alone and freed once, by whichever thread drops the last Arc.
unsafe impl Send for Allocation {}
// SAFETY: no method reads or writes the block; whoever does through `base` answers for the order of accesses.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// A poisoned block, or nothing when the host has no memory for it.
    pub(super) fn new(bytes: u64) -> Option<Arc<Self>> {
        let layout = Layout::from_size_align(usize::try_from(bytes.max(1)).ok()?, ALIGNMENT).ok()?;
        let init = InitMap::new(bytes)?;
        // SAFETY: the layout has a size of at least 1.
        let base = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the block has `layout.size()` bytes.
        unsafe { base.as_ptr().write_bytes(POISON, layout.size()) };
        Some(Arc::new(Self { base, bytes, layout, init }))
    }

    /// Where the block is on the host.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Which bytes have been written.
    pub fn init(&self) -> &InitMap {
        &self.init
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc` with this layout, and nobody else frees it.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
