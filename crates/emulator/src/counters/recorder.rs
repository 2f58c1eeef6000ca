//! Fills [`Counters`] during one launch.

use super::unique::UniqueBytes;
use super::{Class, Counters, GlobalTraffic, Sectors, SharedTraffic, Wavefronts};
use crate::memory::MemoryView;

/// How much is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counting {
    /// All but distinct bytes.
    #[default]
    Basic,
    /// Distinct bytes too, at the cost of a bit per byte of the allocations that a launch touches.
    Full,
}

/// What a memory request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Load,
    /// Writes.
    Store,
    /// Reads and writes at once.
    Atomic,
}

/// The counters of a launch that is running.
#[derive(Debug)]
pub struct Recorder {
    /// The sums so far. The interpreter adds the simple ones itself.
    pub counters: Counters,
    unique: Option<Box<Unique>>,
}

#[derive(Debug)]
struct Unique {
    view: MemoryView,
    read: UniqueBytes,
    written: UniqueBytes,
}

impl Recorder {
    /// Start counting one launch over the memory of `view`.
    pub fn new(counting: Counting, view: &MemoryView) -> Self {
        let counters = Counters { launches: 1, ..Counters::default() };
        let unique = (counting == Counting::Full).then(|| {
            Box::new(Unique { view: view.clone(), read: UniqueBytes::default(), written: UniqueBytes::default() })
        });
        Self { counters, unique }
    }

    /// One warp instruction with the lanes of `mask`.
    #[inline(always)]
    pub fn instruction(&mut self, class: Class, mask: u32) {
        self.counters.instructions[class as usize] += 1;
        self.counters.lanes += u64::from(mask.count_ones());
    }

    /// One warp request to global memory, `bytes` (1 to 16) per lane of `mask`, all inside live allocations.
    #[inline]
    pub fn global_request(&mut self, direction: Direction, mask: u32, addresses: &[u64; 32], bytes: u32) {
        if mask == 0 {
            return;
        }
        let traffic = self.global(direction);
        let sectors = Sectors::of(mask, addresses, bytes);
        traffic.requests += 1;
        traffic.bytes += u64::from(mask.count_ones() * bytes);
        traffic.sectors += u64::from(sectors.touched);
        traffic.ideal_sectors += u64::from(sectors.ideal);
        if let Some(unique) = &mut self.unique {
            unique.touch(direction, mask, addresses, u64::from(bytes));
        }
    }

    /// One warp request to shared memory, `bytes` (1 to 16) per lane of `mask`.
    #[inline]
    pub fn shared_request(&mut self, direction: Direction, mask: u32, addresses: &[u32; 32], bytes: u32) {
        if mask == 0 {
            return;
        }
        let wavefronts = Wavefronts::of(mask, addresses, bytes);
        let traffic = match direction {
            Direction::Load => &mut self.counters.shared_loads,
            Direction::Store => &mut self.counters.shared_stores,
            Direction::Atomic => &mut self.counters.shared_atomics,
        };
        add(traffic, u64::from(mask.count_ones() * bytes), wavefronts);
    }

    /// One `ldmatrix` or `stmatrix` of `matrices` 8 by 8 matrices; lanes give row addresses as the instruction says.
    #[inline]
    pub fn matrix_request(&mut self, addresses: &[u32; 32], matrices: u32) {
        let wavefronts = Wavefronts::of_matrices(addresses, matrices);
        add(&mut self.counters.matrix_loads, u64::from(matrices) * 128, wavefronts);
    }

    /// One matrix instruction.
    #[inline]
    pub fn tensor_op(&mut self, m: u32, n: u32, k: u32, input: &'static str) {
        *self.counters.tensor_entry(m, n, k, input) += 1;
    }

    /// The launch is over.
    pub fn finish(mut self) -> Counters {
        if let Some(unique) = self.unique {
            self.counters.global_loads.unique_bytes = unique.read.count();
            self.counters.global_stores.unique_bytes = unique.written.count();
        }
        self.counters
    }

    fn global(&mut self, direction: Direction) -> &mut GlobalTraffic {
        match direction {
            Direction::Load => &mut self.counters.global_loads,
            Direction::Store => &mut self.counters.global_stores,
            Direction::Atomic => &mut self.counters.global_atomics,
        }
    }
}

impl Unique {
    fn touch(&mut self, direction: Direction, mask: u32, addresses: &[u64; 32], bytes: u64) {
        let mut lanes = (0..32).filter(|lane| mask >> lane & 1 == 1).map(|lane| addresses[lane]);
        let Some(mut start) = lanes.next() else { return };
        let mut end = start + bytes;
        for address in lanes {
            if address == end {
                end += bytes;
            } else {
                self.touch_run(direction, start, end - start);
                (start, end) = (address, address + bytes);
            }
        }
        self.touch_run(direction, start, end - start);
    }

    fn touch_run(&mut self, direction: Direction, pointer: u64, bytes: u64) {
        if direction != Direction::Store {
            self.read.touch(&self.view, pointer, bytes);
        }
        if direction != Direction::Load {
            self.written.touch(&self.view, pointer, bytes);
        }
    }
}

fn add(traffic: &mut SharedTraffic, bytes: u64, wavefronts: Wavefronts) {
    traffic.requests += 1;
    traffic.bytes += bytes;
    traffic.wavefronts += u64::from(wavefronts.passes);
    traffic.ideal_wavefronts += u64::from(wavefronts.ideal);
}
