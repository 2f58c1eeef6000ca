//! Tuning as data: how sequences are cut into blocks.

use crate::{DeviceInfo, Shape};

/// How a launch is cut up. Results depend on `part_tokens` in the last places, on the rest not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Tokens of a segment that one block sums: a power of two from 32.
    pub part_tokens: usize,
    /// Tokens that one block reads for: a power of two from 64.
    pub apply_tokens: usize,
    /// Heads between summing and reading in the queue, at least 1.
    pub lag: usize,
}

/// Blocks that a multiprocessor holds.
const RESIDENT: usize = 3;
/// Fewest tokens of a segment: below, its sum in memory costs as much as its tokens.
const LEAST_PART: usize = 256;

impl Policy {
    /// Segments so short that there are four times as many blocks as fit on the device, or of `LEAST_PART` tokens; one segment where heads
    /// alone are enough.
    pub fn of(shape: &Shape, device: &DeviceInfo) -> Self {
        let resident = RESIDENT * device.sm_count.max(1) as usize;
        let heads = (shape.batch * shape.heads * shape.value_dim.div_ceil(64)).max(1);
        let tokens = |items: usize, least: usize| {
            let even = shape.seq_len.div_ceil(items.max(1));
            even.next_power_of_two().clamp(least, 1 << 30)
        };
        let items = (4 * resident).div_ceil(heads);
        let part_tokens = if items <= 2 { tokens(1, LEAST_PART) } else { tokens(items, LEAST_PART) };
        let parts = shape.seq_len.div_ceil(part_tokens).max(1);
        let per_head = parts * shape.value_dim.div_ceil(64).max(1);
        Self { part_tokens, apply_tokens: tokens(items.max(2), 256), lag: resident.div_ceil(per_head).max(1) }
    }
}
