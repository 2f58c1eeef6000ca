//! The schedule as it lies in device memory, written on the host: what `kernels/tile/lean_schedule.ptx` says.

use lookback_reference::lean_decode::schedule::Schedule;

/// What a row's record has beside the number of its first tile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row {
    pub keys: u32,
    pub head_tiles: u32,
    pub skip: u32,
}

/// kv_len, first query, queries, start.
pub type Request = [u32; 4];

/// Words of a schedule for `slots` blocks; starts of blocks without work are poisoned.
pub fn words(schedule: &Schedule, rows: &[Row], requests: &[Request], slots: usize) -> Vec<u32> {
    assert_eq!(schedule.prefix.len(), rows.len() + 1);
    let mut words = vec![0; 16];
    let header = [schedule.total(), schedule.blocks, schedule.quotient, schedule.remainder, rows.len() as u64];
    words.iter_mut().zip(header).for_each(|(word, value)| *word = value as u32);
    for (first, row) in schedule.prefix.iter().zip(rows.iter().chain([&Row::default()])) {
        words.extend([*first as u32, row.keys, row.head_tiles, row.skip]);
    }
    requests.iter().for_each(|request| words.extend(request));
    for c in 0..slots {
        let (row, tile) = schedule.start.get(c).copied().unwrap_or((u64::from(u32::MAX), u64::from(u32::MAX)));
        words.extend([row as u32, tile as u32]);
    }
    words
}
