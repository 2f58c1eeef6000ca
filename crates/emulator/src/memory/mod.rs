//! Device memory: allocations with their number in the pointer.
//!
//! A device pointer is `number << 36 | offset`, numbers count from 1 and are never used twice, so every address below
//! 2^36 is invalid, a neighbour is never one byte away, and a freed pointer stays invalid for ever. To check an access
//! is a shift, a look-up and a compare.
//!
//! [`DeviceMemory`] is shared by host threads. A launch takes a [`MemoryView`] once and then resolves pointers without
//! a lock; the view keeps freed allocations alive until the launch ends, as a stream-ordered device would.
//!
//! The bytes themselves are plain memory that host threads and launches reach through raw pointers. As on a device,
//! what two unordered accesses to one byte do is the program's business; nothing here takes a reference to them.

mod allocation;
mod init;
#[cfg(test)]
mod tests;
mod view;

pub use allocation::Allocation;
pub use init::InitMap;
pub use view::{AddressFault, AddressFaultKind, MemoryView};

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use view::Page;

/// Bits of a pointer that are the offset into its allocation.
pub const OFFSET_BITS: u32 = 36;

/// Largest allocation, in bytes.
pub const MAX_ALLOCATION: u64 = 1 << OFFSET_BITS;

/// Every fresh allocation is full of this byte, so that a read of what nobody wrote shows in the result.
pub const POISON: u8 = 0xCD;

/// Allocation numbers that exist; keeps pointers positive when read as signed.
const MAX_NUMBERS: usize = 1 << 27;

/// Allocations are charged in these units, as a device's allocator would.
const GRANULE: u64 = 256;

/// Why a request on memory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The limit, the host's memory or the pointer space is exhausted.
    #[error("out of device memory: {requested} bytes asked for, {free} of {total} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left under the limit.
        free: u64,
        /// The limit.
        total: u64,
    },
    /// The range is not inside one live allocation.
    #[error(transparent)]
    Address(#[from] AddressFault),
    /// `free` of a pointer that is not the start of an allocation.
    #[error("free of {pointer:#x}, which is {offset} bytes inside allocation {number}")]
    InteriorFree {
        /// What was passed.
        pointer: u64,
        /// The allocation's number.
        number: u64,
        /// Distance from its start.
        offset: u64,
    },
}

/// The memory of one emulated device.
#[derive(Debug)]
pub struct DeviceMemory {
    limit: u64,
    table: RwLock<Table>,
}

#[derive(Debug)]
struct Table {
    /// Views share the whole; it is copied before a change only while a view is alive.
    pages: Arc<Vec<Arc<Page>>>,
    next: usize,
    used: u64,
}

impl Table {
    /// A page, to be changed.
    fn page(&mut self, page: usize) -> &mut Page {
        Arc::make_mut(&mut Arc::make_mut(&mut self.pages)[page])
    }

    /// Forget a page whose numbers are all given out and all freed.
    fn retire(&mut self, page: usize) {
        if self.pages[page].is_empty() {
            Arc::make_mut(&mut self.pages)[page] = Page::all_freed();
        }
    }
}

impl DeviceMemory {
    /// A device with `limit` bytes.
    pub fn new(limit: u64) -> Self {
        let table = Table { pages: Arc::new(vec![Arc::new(Page::default())]), next: 1, used: 0 };
        Self { limit, table: RwLock::new(table) }
    }

    /// A fresh allocation, poisoned and not initialised. Its pointer is a multiple of 2^36.
    ///
    /// Zero bytes are allowed and give a pointer that nothing may be read from; drivers refuse them before.
    pub fn alloc(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.add(&mut self.write(), bytes)
    }

    /// A fresh allocation of zeros that no kernel is going to use: of a long one the host pays only what is touched, so it
    /// does not count against the limit. Nothing in it is initialised.
    pub fn reserve(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.add_as(&mut self.write(), bytes, 0, || Allocation::reserved(bytes))
    }

    fn add(&self, table: &mut Table, bytes: u64) -> Result<u64, MemoryError> {
        let charge = bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
        self.add_as(table, bytes, charge, || Allocation::new(bytes, charge))
    }

    fn add_as(
        &self,
        table: &mut Table,
        bytes: u64,
        charge: u64,
        make: impl FnOnce() -> Option<Arc<Allocation>>,
    ) -> Result<u64, MemoryError> {
        let free = self.limit.saturating_sub(table.used);
        let exhausted = MemoryError::OutOfMemory { requested: bytes, free, total: self.limit };
        if bytes > MAX_ALLOCATION || charge > free || table.next >= MAX_NUMBERS {
            return Err(exhausted);
        }
        let allocation = make().ok_or(exhausted)?;
        let number = table.next;
        table.next += 1;
        table.used += charge;
        let (page, slot) = Page::position(number);
        if page == table.pages.len() {
            table.retire(page - 1);
            Arc::make_mut(&mut table.pages).push(Arc::new(Page::default()));
        }
        table.page(page).occupy(slot, allocation);
        Ok((number as u64) << OFFSET_BITS)
    }

    /// An allocation at a pointer that an earlier run has had: for memory that is made anew. Its number must be above all
    /// that were given out; those between count as freed.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`] as for [`DeviceMemory::alloc`], and for a number that is in use or was.
    pub fn alloc_at(&self, pointer: u64, bytes: u64) -> Result<(), MemoryError> {
        let mut table = self.write();
        let number = (pointer >> OFFSET_BITS) as usize;
        if number < table.next || number >= MAX_NUMBERS {
            let free = self.limit.saturating_sub(table.used);
            return Err(MemoryError::OutOfMemory { requested: bytes, free, total: self.limit });
        }
        let (page, _) = Page::position(number);
        while table.pages.len() <= page {
            let last = table.pages.len() - 1;
            table.retire(last);
            Arc::make_mut(&mut table.pages).push(Page::all_freed());
        }
        table.next = number;
        self.add(&mut table, bytes).map(drop)
    }

    /// Give an allocation back. The pointer must be the one that [`DeviceMemory::alloc`] returned.
    pub fn free(&self, pointer: u64) -> Result<(), MemoryError> {
        let mut table = self.write();
        let view = MemoryView::over(&table.pages);
        let allocation = view.allocation(pointer)?;
        let (number, offset) = (pointer >> OFFSET_BITS, pointer & (MAX_ALLOCATION - 1));
        if offset != 0 {
            return Err(MemoryError::InteriorFree { pointer, number, offset });
        }
        table.used -= allocation.charge();
        drop(view);
        let (page, slot) = Page::position(number as usize);
        table.page(page).vacate(slot);
        if page + 1 < table.pages.len() {
            table.retire(page);
        }
        Ok(())
    }

    /// Bytes free and bytes in total.
    pub fn info(&self) -> (u64, u64) {
        (self.limit.saturating_sub(self.read().used), self.limit)
    }

    /// Start and size of the live allocation that holds `pointer`.
    pub fn range(&self, pointer: u64) -> Result<(u64, u64), MemoryError> {
        let allocation = self.view().allocation(pointer)?;
        Ok((pointer >> OFFSET_BITS << OFFSET_BITS, allocation.bytes()))
    }

    /// The table of pointers as it is now, for a launch.
    pub fn view(&self) -> MemoryView {
        MemoryView::over(&self.read().pages)
    }

    /// Copy `source` to the device; the bytes become initialised.
    pub fn copy_from_host(&self, to: u64, source: &[u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.span(to, source.len() as u64)?;
        // SAFETY: `span` found the whole range inside this allocation, which the Arc keeps; `source` is host memory.
        unsafe { allocation.base().add(offset).copy_from_nonoverlapping(source.as_ptr(), source.len()) };
        allocation.init().mark(offset as u64, source.len() as u64);
        Ok(())
    }

    /// Copy from the device to `target`. Bytes that nobody wrote arrive as poison.
    pub fn copy_to_host(&self, target: &mut [u8], from: u64) -> Result<(), MemoryError> {
        let (allocation, offset) = self.span(from, target.len() as u64)?;
        // SAFETY: `span` found the whole range inside this allocation, which the Arc keeps; `target` is host memory.
        unsafe { allocation.base().add(offset).copy_to_nonoverlapping(target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    /// Copy between two places of the device, which may overlap. What was not initialised stays so at its new place.
    pub fn copy_within(&self, to: u64, from: u64, bytes: u64) -> Result<(), MemoryError> {
        let (source, source_offset) = self.span(from, bytes)?;
        let (target, target_offset) = self.span(to, bytes)?;
        // SAFETY: both ranges are inside allocations kept by their Arcs; `copy` allows overlap.
        unsafe { target.base().add(target_offset).copy_from(source.base().add(source_offset), bytes as usize) };
        target.init().copy_from(target_offset as u64, source.init(), source_offset as u64, bytes);
        Ok(())
    }

    /// Write `count` copies of `pattern`, which is 1, 2 or 4 bytes in the device's order; they become initialised.
    pub fn fill<const N: usize>(&self, to: u64, pattern: [u8; N], count: u64) -> Result<(), MemoryError> {
        let bytes = count.saturating_mul(N as u64);
        let (allocation, offset) = self.span(to, bytes)?;
        // SAFETY: `span` found the whole range inside this allocation, which the Arc keeps.
        let start = unsafe { allocation.base().add(offset) };
        if pattern.iter().all(|byte| *byte == pattern[0]) {
            // SAFETY: as above, `bytes` from `start` are inside.
            unsafe { start.write_bytes(pattern[0], bytes as usize) };
        } else {
            for index in 0..count as usize {
                // SAFETY: as above; `[u8; N]` needs no alignment.
                unsafe { start.cast::<[u8; N]>().add(index).write_unaligned(pattern) };
            }
        }
        allocation.init().mark(offset as u64, bytes);
        Ok(())
    }

    /// The allocation that holds `bytes` at `pointer`, and where in it.
    fn span(&self, pointer: u64, bytes: u64) -> Result<(Arc<Allocation>, usize), AddressFault> {
        let view = self.view();
        let allocation = view.allocation(pointer)?;
        view.check(pointer, bytes)?;
        Ok((allocation, (pointer & (MAX_ALLOCATION - 1)) as usize))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}
