//! From pointers to host addresses without a lock.

use super::{Allocation, MAX_ALLOCATION, OFFSET_BITS};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Allocation numbers on one page of the table.
const PAGE: usize = 512;

/// One allocation number: base and size are copied here so that an access needs nothing else.
#[derive(Debug, Clone)]
struct Slot {
    base: *mut u8,
    bytes: u64,
    owner: Option<Arc<Allocation>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Live,
    Freed,
}

// SAFETY: `base` points into the block that `owner` keeps, and `Allocation` is Send and Sync.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    const UNUSED: Self = Self { base: std::ptr::null_mut(), bytes: 0, owner: None, state: State::Unused };

    fn live(allocation: Arc<Allocation>) -> Self {
        Self { base: allocation.base(), bytes: allocation.bytes(), owner: Some(allocation), state: State::Live }
    }

    /// Size stays, for reports; no access finds an owner.
    fn freed(bytes: u64) -> Self {
        Self { bytes, state: State::Freed, ..Self::UNUSED }
    }
}

/// A run of allocation numbers. Shared between the table and the views; the table copies it before a change.
#[derive(Debug, Clone)]
pub(super) struct Page {
    slots: Box<[Slot]>,
    live: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self { slots: vec![Slot::UNUSED; PAGE].into(), live: 0 }
    }
}

impl Page {
    /// Page and place on it of an allocation number.
    pub(super) fn position(number: usize) -> (usize, usize) {
        (number / PAGE, number % PAGE)
    }

    pub(super) fn occupy(&mut self, slot: usize, allocation: Arc<Allocation>) {
        self.slots[slot] = Slot::live(allocation);
        self.live += 1;
    }

    pub(super) fn vacate(&mut self, slot: usize) {
        self.slots[slot] = Slot::freed(self.slots[slot].bytes);
        self.live -= 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The one page that stands for all that are used up, so that a long life of allocations costs a pointer per page.
    pub(super) fn all_freed() -> Arc<Self> {
        static USED_UP: OnceLock<Arc<Page>> = OnceLock::new();
        let page = || Arc::new(Self { slots: vec![Slot::freed(0); PAGE].into(), live: 0 });
        Arc::clone(USED_UP.get_or_init(page))
    }
}

/// What is wrong with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFaultKind {
    /// No allocation ever had this number; small numbers taken for pointers end here.
    NeverAllocated,
    /// The allocation was freed. Its size is 0 when the record of it is gone.
    Freed {
        /// Size that it had.
        size: u64,
    },
    /// The range passes the end of its allocation.
    OutOfBounds {
        /// Size of the allocation.
        size: u64,
    },
}

/// An address range that is not inside one live allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressFault {
    /// First byte.
    pub pointer: u64,
    /// Length of the access.
    pub bytes: u64,
    /// What is wrong.
    pub kind: AddressFaultKind,
}

impl fmt::Display for AddressFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, offset) = (self.pointer >> OFFSET_BITS, self.pointer & (MAX_ALLOCATION - 1));
        write!(f, "{} bytes at {:#x}: ", self.bytes, self.pointer)?;
        match self.kind {
            AddressFaultKind::NeverAllocated => write!(f, "no allocation has ever had this address"),
            AddressFaultKind::Freed { size: 0 } => write!(f, "allocation {number} was freed long ago"),
            AddressFaultKind::Freed { size } => write!(f, "allocation {number} of {size} bytes was freed"),
            AddressFaultKind::OutOfBounds { size } => {
                write!(f, "offset {offset} in allocation {number} of {size} bytes")?;
                match offset.checked_sub(size) {
                    Some(beyond) => write!(f, ", {beyond} bytes past its end"),
                    None => write!(f, ", {} bytes too long", self.bytes.saturating_sub(size - offset)),
                }
            }
        }
    }
}

impl std::error::Error for AddressFault {}

/// The table of pointers at one moment. Costs a reference count to take, and is free of locks.
#[derive(Debug, Clone)]
pub struct MemoryView {
    pages: Arc<Vec<Arc<Page>>>,
}

impl MemoryView {
    pub(super) fn over(pages: &Arc<Vec<Arc<Page>>>) -> Self {
        Self { pages: Arc::clone(pages) }
    }

    /// Host address of `bytes` at `pointer`, if they are inside one live allocation.
    ///
    /// The address is good as long as this view lives.
    #[inline(always)]
    pub fn resolve(&self, pointer: u64, bytes: u64) -> Result<*mut u8, AddressFault> {
        let (page, slot) = Page::position((pointer >> OFFSET_BITS) as usize);
        let offset = pointer & (MAX_ALLOCATION - 1);
        if let Some(page) = self.pages.get(page) {
            let slot = &page.slots[slot];
            // Offset and length are both far below 2^63, so the sum cannot wrap; dead slots have no owner.
            if offset + bytes <= slot.bytes && slot.owner.is_some() {
                return Ok(slot.base.wrapping_add(offset as usize));
            }
        }
        Err(self.explain(pointer, bytes))
    }

    /// The allocation that `pointer` points into or just behind.
    #[inline]
    pub fn allocation(&self, pointer: u64) -> Result<Arc<Allocation>, AddressFault> {
        self.peek(pointer).map(Arc::clone).ok_or_else(|| self.explain(pointer, 0))
    }

    /// Like [`MemoryView::allocation`], without taking a share.
    #[inline]
    pub fn peek(&self, pointer: u64) -> Option<&Arc<Allocation>> {
        let (page, slot) = Page::position((pointer >> OFFSET_BITS) as usize);
        self.pages.get(page)?.slots[slot].owner.as_ref()
    }

    /// Whether `bytes` at `pointer` are inside one live allocation.
    pub fn check(&self, pointer: u64, bytes: u64) -> Result<(), AddressFault> {
        match self.peek(pointer) {
            Some(live) if (pointer & (MAX_ALLOCATION - 1)).saturating_add(bytes) <= live.bytes() => Ok(()),
            _ => Err(self.explain(pointer, bytes)),
        }
    }

    /// All memory counts as written from now on. A launch without checks says so, because nothing records its stores.
    pub fn assume_initialised(&self) {
        for allocation in self.pages.iter().flat_map(|page| page.slots.iter()).filter_map(|slot| slot.owner.as_ref()) {
            if !allocation.init().is_complete() {
                allocation.init().mark_all();
            }
        }
    }

    #[cold]
    fn explain(&self, pointer: u64, bytes: u64) -> AddressFault {
        let (page, slot) = Page::position((pointer >> OFFSET_BITS) as usize);
        let kind = match self.pages.get(page).map(|page| &page.slots[slot]) {
            Some(Slot { state: State::Live, bytes, .. }) => AddressFaultKind::OutOfBounds { size: *bytes },
            Some(Slot { state: State::Freed, bytes, .. }) if pointer >> OFFSET_BITS != 0 => {
                AddressFaultKind::Freed { size: *bytes }
            }
            _ => AddressFaultKind::NeverAllocated,
        };
        AddressFault { pointer, bytes, kind }
    }
}
