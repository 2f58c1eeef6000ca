//! Which keys a query row sees.

use super::Attention;

/// Farther than any key.
pub const FAR: i64 = 1 << 30;

/// Keys of a row, as at most two intervals and what is taken away from them.
///
/// Query `i` of a sequence with `m` queries and `n` keys stands at position `p = i + offset` among the keys. It sees the keys from
/// `p - left` to `p + right`, both included, and besides the keys below `first` and, if that reaches farther, everything from
/// `p - left` up to the sequence's prefix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask<'a> {
    /// How far back a row sees; negative: it sees only what is at least that far ahead.
    pub left: i64,
    /// How far ahead a row sees; negative: it sees only what is at least that far back.
    pub right: i64,
    /// Keys at the start that every row sees (before its window; the window's own rule holds within it).
    pub first: i64,
    /// Position of query 0 among the keys; `n - m` without.
    pub offset: Option<i64>,
    /// `[N]` keys at the start of a sequence up to which every row of it sees.
    pub prefix_len: Option<&'a [i32]>,
    /// `[B,Tq,4]`: `a_lo a_hi b_lo b_hi`, two half-open intervals of keys of the row's sequence, instead of all the above.
    pub intervals: Option<&'a [i32]>,
    /// `[B,Tk]`: a key where it is 0 is seen by no row.
    pub key_mask: Option<&'a [u8]>,
    /// Blocks of keys that blocks of queries see at most.
    pub tiles: Option<TileList<'a>>,
}

/// Tiles of 64 keys for slots of 128 query rows, as compressed rows.
///
/// Rows of equal length: tile `t` of row `b` has slot `b ceil(Tq / 128) + t`. Packed: sequence `s` that starts at query `lo` has slots
/// from `floor(lo / 128) + s` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileList<'a> {
    /// `[slots + 1]`.
    pub starts: &'a [i32],
    /// Numbers of tiles of the sequence, in ascending order.
    pub keys: &'a [i32],
}

impl TileList<'_> {
    /// Queries of a slot.
    pub const QUERIES: usize = 128;
    /// Keys of a tile.
    pub const KEYS: usize = 64;

    fn lists(&self, slot: usize, key: usize) -> bool {
        let [from, to] = [self.starts[slot], self.starts[slot + 1]].map(|at| at as usize);
        self.keys[from..to].contains(&((key / Self::KEYS) as i32))
    }
}

impl Mask<'static> {
    /// Every row sees every key.
    pub const FULL: Self = Self {
        left: FAR,
        right: FAR,
        first: 0,
        offset: None,
        prefix_len: None,
        intervals: None,
        key_mask: None,
        tiles: None,
    };

    /// A row sees its position and what is before it.
    pub const CAUSAL: Self = Self { right: 0, ..Self::FULL };

    /// A row sees what is after its position.
    pub const ANTI_CAUSAL: Self = Self { left: -1, ..Self::FULL };

    /// A row sees `left` keys before its position and `right` after it, and the `first` of all.
    pub const fn window(left: i64, right: i64, first: i64) -> Self {
        Self { left, right, first, ..Self::FULL }
    }
}

/// A query row and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number of the row among all queries.
    pub query: usize,
    /// Number of its sequence's first key among all keys.
    pub first_key: usize,
    /// Where the query stands among the keys of its sequence.
    pub position: i64,
    /// Keys that it sees, within the sequence, ascending.
    pub keys: Vec<usize>,
}

impl Attention<'_> {
    /// Every query row of every sequence.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for s in 0..self.sequences() {
            let (q0, m) = extent(self.cu_seqlens_q, s, self.query_len);
            let (k0, n) = extent(self.cu_seqlens_k, s, self.key_len);
            let slots = match self.cu_seqlens_q {
                Some(_) => q0 / TileList::QUERIES + s,
                None => s * self.query_len.div_ceil(TileList::QUERIES),
            };
            for i in 0..m {
                let position = i as i64 + self.mask.offset.unwrap_or(n as i64 - m as i64);
                let intervals = self.intervals(s, q0 + i, position, n as i64);
                let seen = |j: &usize| {
                    intervals.iter().any(|[lo, hi]| (*lo..*hi).contains(&(*j as i64)))
                        && self.mask.key_mask.is_none_or(|mask| mask[k0 + j] != 0)
                        && self.mask.tiles.is_none_or(|tiles| tiles.lists(slots + i / TileList::QUERIES, *j))
                };
                let keys = (0..n).filter(seen).collect();
                rows.push(Row { query: q0 + i, first_key: k0, position, keys });
            }
        }
        rows
    }

    /// The two intervals of a query row, where `n` is the number of keys of its sequence.
    fn intervals(&self, sequence: usize, query: usize, position: i64, n: i64) -> [[i64; 2]; 2] {
        let mask = &self.mask;
        if let Some(given) = mask.intervals {
            let at = |i: usize| i64::from(given[query * 4 + i]).clamp(0, n);
            return [[at(0), at(1)], [at(2), at(3)]];
        }
        let prefix = mask.prefix_len.map_or(0, |len| i64::from(len[sequence]));
        let lo = (position - mask.left).max(0);
        let hi = n.min(position + mask.right + 1).max(n.min(prefix));
        [[0, mask.first.min(lo).min(n)], [lo, hi]]
    }
}

/// First row and number of rows of a sequence.
fn extent(starts: Option<&[i32]>, sequence: usize, len: usize) -> (usize, usize) {
    match starts {
        Some(starts) => (starts[sequence] as usize, (starts[sequence + 1] - starts[sequence]) as usize),
        None => (sequence * len, len),
    }
}
