//! Which bytes of an allocation have been written: one bit per byte, shared by threads without a lock.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One bit per byte, set by the first write.
///
/// All operations are relaxed: a bit says that some write happened, the order between that write and a read is what
/// the race checks are for.
#[derive(Debug)]
pub struct InitMap {
    bits: NonNull<AtomicU64>,
    layout: Layout,
    bytes: u64,
    complete: AtomicBool,
}

// SAFETY: the words are atomics, owned by this value and freed once.
unsafe impl Send for InitMap {}
// SAFETY: the words are only reached as shared atomics.
unsafe impl Sync for InitMap {}

impl InitMap {
    /// Nothing written yet; nothing when the host has no memory for the bits.
    ///
    /// The bits come zeroed from the system's allocator, so that pages of a map that nobody touches cost nothing.
    pub(super) fn new(bytes: u64) -> Option<Self> {
        let words = usize::try_from(bytes.div_ceil(64)).ok()?.max(1);
        let layout = Layout::array::<AtomicU64>(words).ok()?;
        // SAFETY: the layout has a size of at least 8.
        let bits = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast();
        Some(Self { bits, layout, bytes, complete: AtomicBool::new(bytes == 0) })
    }

    /// Every byte counts as written from now on.
    pub fn mark_all(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// Whether every byte is known to be written. False does not mean that one is missing.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// `bytes` from `offset` have been written. What lies outside is ignored.
    #[inline]
    pub fn mark(&self, offset: u64, bytes: u64) {
        if self.is_complete() || bytes == 0 {
            return;
        }
        if offset == 0 && bytes >= self.bytes {
            return self.mark_all();
        }
        for (word, mask) in self.words(offset, bytes) {
            if mask == u64::MAX {
                word.store(mask, Ordering::Relaxed);
            } else if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// The first of `bytes` from `offset` that nobody has written.
    #[inline]
    pub fn first_missing(&self, offset: u64, bytes: u64) -> Option<u64> {
        if self.is_complete() {
            return None;
        }
        for (index, (word, mask)) in self.words(offset, bytes).enumerate() {
            let missing = mask & !word.load(Ordering::Relaxed);
            if missing != 0 {
                return Some((offset / 64 + index as u64) * 64 + u64::from(missing.trailing_zeros()));
            }
        }
        None
    }

    /// What has been written, as offsets and lengths in ascending order.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        if self.is_complete() {
            return if self.bytes == 0 { Vec::new() } else { vec![(0, self.bytes)] };
        }
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (index, (word, mask)) in self.words(0, self.bytes).enumerate() {
            let mut left = word.load(Ordering::Relaxed) & mask;
            let mut at = index as u64 * 64;
            while left != 0 {
                at += u64::from(left.trailing_zeros());
                left >>= left.trailing_zeros();
                let length = left.trailing_ones();
                match runs.last_mut() {
                    Some((start, bytes)) if *start + *bytes == at => *bytes += u64::from(length),
                    _ => runs.push((at, length.into())),
                }
                left = left.checked_shr(length).unwrap_or(0);
                at += u64::from(length);
            }
        }
        runs
    }

    /// Take over the marks of another range; a mark that is already here stays only if the source has it too.
    pub(super) fn copy_from(&self, offset: u64, source: &InitMap, from: u64, bytes: u64) {
        if source.first_missing(from, bytes).is_none() {
            return self.mark(offset, bytes);
        }
        // Read all before writing any: the ranges may overlap.
        let marks: Vec<u64> = (0..bytes).step_by(64).map(|at| source.marks(from + at)).collect();
        if self.complete.swap(false, Ordering::Relaxed) {
            for (word, mask) in self.words(0, self.bytes) {
                word.store(mask, Ordering::Relaxed);
            }
        }
        for (at, marks) in (0..bytes).step_by(64).zip(marks) {
            let width = (bytes - at).min(64);
            let mut shift = 0;
            for (word, mask) in self.words(offset + at, width) {
                let low = mask.trailing_zeros();
                let here = (marks >> shift) << low & mask;
                word.fetch_and(!mask | here, Ordering::Relaxed);
                word.fetch_or(here, Ordering::Relaxed);
                shift += mask.count_ones();
            }
        }
    }

    /// The marks of 64 bytes from `offset`, as bits; none beyond the end.
    fn marks(&self, offset: u64) -> u64 {
        let mut marks = 0;
        let mut shift = 0;
        for (word, mask) in self.words(offset, 64) {
            let here = if self.is_complete() { mask } else { word.load(Ordering::Relaxed) & mask };
            marks |= here >> mask.trailing_zeros() << shift;
            shift += mask.count_ones();
        }
        marks
    }

    /// The words that hold a range, each with the bits of the range; clipped to the map.
    #[inline]
    fn words(&self, offset: u64, bytes: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let start = offset.min(self.bytes);
        let end = offset.saturating_add(bytes).min(self.bytes);
        let last = if start == end { start / 64 } else { end.div_ceil(64) };
        (start / 64..last).map(move |index| {
            let low = start.max(index * 64) - index * 64;
            let high = end.min(index * 64 + 64) - index * 64;
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            // SAFETY: index < ceil(bytes / 64), which is how many words there are.
            (unsafe { &*self.bits.as_ptr().add(index as usize) }, mask)
        })
    }
}

impl Drop for InitMap {
    fn drop(&mut self) {
        // SAFETY: `bits` came from `alloc_zeroed` with this layout, and nobody else frees it.
        unsafe { dealloc(self.bits.as_ptr().cast(), self.layout) };
    }
}
