//! The schedule of lean decoding, in whole numbers: who does which tiles, and who hands what to whom.
//!
//! The work of a launch is a list of *output tiles* in the order (request, tile of query rows, key head); each is a *row* of the
//! schedule. Query rows are packed, token by token and head by head of the group, and cut into tiles of `rows`; the keys that a tile of
//! query rows reaches are cut into tiles of `tile`. The key tiles of all rows, one after the other, are numbered `0..total`, and block
//! `c` of `blocks` takes as many consecutive ones as every other, or one more. A block's run crosses from row to row; a row whose
//! tiles lie in several blocks is finished by the last of them that arrives, from partial results in *slots*.

use super::{Attention, Cache};
use std::ops::Range;

/// How the work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Query rows of an output tile.
    pub rows: usize,
    /// Keys of a tile.
    pub tile: usize,
    /// Blocks that a launch has at most.
    pub slots: u64,
    /// Tiles that a block should have at least.
    pub min_tiles: u64,
}

/// Tiles of keys that an output tile visits: two ranges, the first before the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// Tiles of first keys that the windows have passed.
    pub sink: Range<u64>,
    /// Tiles of the windows, or of everything.
    pub window: Range<u64>,
}

/// The tiles of every row, and the share of every block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// `[rows + 1]` number of the first tile of each row; the last entry is the total.
    pub prefix: Vec<u64>,
    /// Blocks that have work.
    pub blocks: u64,
    /// Tiles of a block.
    pub quotient: u64,
    /// The first blocks, this many, have one tile more.
    pub remainder: u64,
    /// `[blocks]` row and tile in that row where each block begins.
    pub start: Vec<(u64, u64)>,
}

/// The part of a row that one block does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Row.
    pub row: u64,
    /// First tile in the row.
    pub from: u64,
    /// Tile after the last.
    pub to: u64,
    /// Where the partial result goes; none for a whole row, which is written at once.
    pub slot: Option<u64>,
}

impl Tiles {
    /// Tiles of the query rows `first_row..` of request `b`, at most `cut.rows` of them; no tiles where there are no such rows, and
    /// one where these rows see no key. `tokens` and `slots` are those of `q` and of the cache.
    pub fn of(
        x: &Attention<'_>,
        cut: &Cut,
        b: usize,
        row_tile: usize,
        key_head: usize,
        tokens: usize,
        slots: usize,
    ) -> Self {
        let group = x.heads / x.key_heads;
        let (queries, n) = (x.queries(b, tokens).len(), x.keys(b, slots));
        let rows = row_tile * cut.rows..(queries * group).min((row_tile + 1) * cut.rows);
        if rows.is_empty() {
            return Self { sink: 0..0, window: 0..0 };
        }
        let tile = cut.tile as u64;
        if let Some(list) = x.list {
            let len = list.len[b * x.key_heads + key_head].clamp(0, list.stride as i32) as u64;
            return Self { sink: 0..0, window: 0..len.div_ceil(tile).max(1) };
        }
        let offset = n as i64 - queries as i64;
        let position = |row: usize| (row / group) as i64 + offset;
        let (first, last) = (position(rows.start), position(rows.end - 1));
        let lo = x.left.map_or(0, |left| (first - i64::from(left)).max(0)) as u64;
        let hi = (last + 1).clamp(0, n as i64) as u64;
        if hi <= lo {
            return Self { sink: 0..0, window: 0..1 };
        }
        let window = lo / tile..hi.div_ceil(tile);
        let sink = u64::from(x.sink_tokens).min(lo);
        Self { sink: 0..sink.div_ceil(tile).min(window.start), window }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        (self.sink.end - self.sink.start) + (self.window.end - self.window.start)
    }

    /// The tile of keys that is tile `t` of the row.
    pub fn key_tile(&self, t: u64) -> u64 {
        if t < self.sink.end { t } else { self.window.start + (t - self.sink.end) }
    }
}

impl Schedule {
    /// The schedule of a request for attention. `tokens` and `slots` are those of `q` and of the cache.
    pub fn of(x: &Attention<'_>, cut: &Cut, tokens: usize, slots: usize) -> Self {
        let row_tiles = (x.query_len * (x.heads / x.key_heads)).div_ceil(cut.rows);
        let mut counts = Vec::new();
        for b in 0..x.batch {
            for row_tile in 0..row_tiles {
                for key_head in 0..x.key_heads {
                    counts.push(Tiles::of(x, cut, b, row_tile, key_head, tokens, slots).count());
                }
            }
        }
        Self::from_counts(&counts, cut)
    }

    /// The schedule of rows with these numbers of tiles.
    pub fn from_counts(counts: &[u64], cut: &Cut) -> Self {
        let mut prefix = vec![0];
        for count in counts {
            prefix.push(prefix[prefix.len() - 1] + count);
        }
        let total = prefix[counts.len()];
        let blocks = if total == 0 { 0 } else { (total / cut.min_tiles.max(1)).clamp(1, cut.slots) };
        let (quotient, remainder) = (total.checked_div(blocks).unwrap_or(0), total.checked_rem(blocks).unwrap_or(0));
        let mut schedule = Self { prefix, blocks, quotient, remainder, start: Vec::new() };
        schedule.start = (0..blocks).map(|c| schedule.place(schedule.begin(c))).collect();
        schedule
    }

    /// All tiles.
    pub fn total(&self) -> u64 {
        self.prefix[self.prefix.len() - 1]
    }

    /// The first tile of block `c`; its last is before `begin(c + 1)`.
    pub fn begin(&self, c: u64) -> u64 {
        c * self.quotient + c.min(self.remainder)
    }

    /// The block that does tile `t < total`.
    pub fn block_of(&self, t: u64) -> u64 {
        let long = self.remainder * (self.quotient + 1);
        if t < long { t / (self.quotient + 1) } else { self.remainder + (t - long) / self.quotient }
    }

    /// Row and tile in that row of tile `t < total`: the last row that begins at or before it, which is one that has tiles.
    pub fn place(&self, t: u64) -> (u64, u64) {
        let row = self.prefix.partition_point(|first| *first <= t) - 1;
        (row as u64, t - self.prefix[row])
    }

    /// The blocks that do tiles of a row; empty for a row without tiles.
    pub fn contributors(&self, row: u64) -> Range<u64> {
        let (first, end) = (self.prefix[row as usize], self.prefix[row as usize + 1]);
        if first == end { 0..0 } else { self.block_of(first)..self.block_of(end - 1) + 1 }
    }

    /// The slot of a contributor of a row that has several. The first of them ends there, so it is its block's last segment; for the
    /// others it is their block's first.
    pub fn slot(&self, row: u64, block: u64) -> u64 {
        2 * block + u64::from(block == self.contributors(row).start)
    }

    /// What block `c` does, in order.
    pub fn segments(&self, c: u64) -> Vec<Segment> {
        let (mut t, end) = (self.begin(c), self.begin(c + 1));
        let mut segments = Vec::new();
        while t < end {
            let (row, from) = self.place(t);
            let to = (self.prefix[row as usize + 1] - self.prefix[row as usize]).min(from + end - t);
            let slot = (self.contributors(row).count() > 1).then(|| self.slot(row, c));
            segments.push(Segment { row, from, to, slot });
            t += to - from;
        }
        segments
    }
}

/// Whether a cache's tables and a request's lengths are such that nothing has to be clamped or left out.
pub fn sound(x: &Attention<'_>, tokens: usize, slots: usize) -> bool {
    let lengths = (0..x.batch).all(|b| i64::from(x.kv_len[b]) == x.keys(b, slots) as i64);
    let starts = |starts: &[i32], len: usize, most: usize| {
        (0..x.batch).all(|b| {
            let (lo, hi) = (i64::from(starts[b]), i64::from(starts[b + 1]));
            0 <= lo && lo <= hi && hi <= len as i64 && hi - lo <= most as i64
        })
    };
    let queries = x.cu_seqlens_q.is_none_or(|cu| starts(cu, tokens, x.query_len));
    let tables = match x.cache {
        Cache::Dense { .. } => true,
        Cache::Ragged { starts: table } => starts(table, slots, usize::MAX >> 1),
        Cache::Paged { indptr, indices, .. } => starts(indptr, indices.len(), usize::MAX >> 1),
    };
    let pages = (0..x.batch).all(|b| (0..x.keys(b, slots)).all(|j| x.cache.slot(b, j, slots).is_some()));
    let lists =
        x.list.is_none_or(|list| list.len.iter().all(|len| (0..=list.stride as i64).contains(&i64::from(*len))));
    lengths && queries && tables && pages && lists
}
