//! Which bytes of global memory a launch has touched: a bit per byte, per allocation, made at the first touch.

use crate::memory::{MAX_ALLOCATION, MemoryView, OFFSET_BITS};
use std::collections::HashMap;

/// Distinct bytes touched so far.
#[derive(Debug, Default)]
pub(super) struct UniqueBytes {
    maps: HashMap<u64, Vec<u64>>,
    last: (u64, Vec<u64>),
    count: u64,
}

impl UniqueBytes {
    /// Touch `bytes` from `pointer`, which lie in one allocation of `view`.
    #[inline]
    pub(super) fn touch(&mut self, view: &MemoryView, pointer: u64, bytes: u64) {
        let number = pointer >> OFFSET_BITS;
        if self.last.0 != number {
            self.switch(view, pointer);
        }
        let map = &mut self.last.1;
        let start = pointer & (MAX_ALLOCATION - 1);
        let end = (start + bytes).min(map.len() as u64 * 64);
        let mut at = start;
        while at < end {
            let low = at % 64;
            let width = (64 - low).min(end - at);
            let mask = (u64::MAX >> (64 - width)) << low;
            let word = &mut map[(at / 64) as usize];
            self.count += u64::from((mask & !*word).count_ones());
            *word |= mask;
            at += width;
        }
    }

    /// Distinct bytes so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    #[cold]
    fn switch(&mut self, view: &MemoryView, pointer: u64) {
        let number = pointer >> OFFSET_BITS;
        let size = view.peek(pointer).map_or(0, |allocation| allocation.bytes());
        let map = self.maps.remove(&number).unwrap_or_else(|| vec![0; size.div_ceil(64) as usize]);
        let (previous, map_before) = std::mem::replace(&mut self.last, (number, map));
        if previous != 0 {
            self.maps.insert(previous, map_before);
        }
    }
}
