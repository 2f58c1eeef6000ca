//! Sizes and strides.

use crate::Stride;

/// Steps of the tensors; `None`: without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// Of `q`.
    pub q: Option<Stride>,
    /// Of `k`.
    pub k: Option<Stride>,
    /// Of `v`.
    pub v: Option<Stride>,
    /// Of `o`.
    pub o: Option<Stride>,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, `B`. One with packed sequences.
    pub batch: usize,
    /// Queries of a row, `Tq`; of all packed sequences together.
    pub query_len: usize,
    /// Keys of a row, `Tk`; of all packed sequences together.
    pub key_len: usize,
    /// Heads of `q` and `o`, `H`.
    pub heads: usize,
    /// Heads of `k` and `v`, `Hk`; divides `heads`, and `heads / key_heads` neighbouring heads share one.
    pub key_heads: usize,
    /// Entries of a query and a key, `D`: a multiple of 8, at most [`MAX_DIM`](crate::MAX_DIM).
    pub head_dim: usize,
    /// Entries of a value and an output, `Dv`: likewise.
    pub value_dim: usize,
    /// Packed sequences in the only row: `cu_seqlens_q` and `cu_seqlens_k` have one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Steps of the tensors.
    pub strides: Strides,
}

impl Shape {
    /// Queries of a slot of a tile list.
    pub const SLOT_QUERIES: usize = 128;
    /// Keys of a tile of a tile list.
    pub const TILE_KEYS: usize = 64;

    /// Rows of equal length without gaps, every head with its own keys, values as wide as keys.
    pub fn dense(batch: usize, query_len: usize, key_len: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch,
            query_len,
            key_len,
            heads,
            key_heads: heads,
            head_dim,
            value_dim: head_dim,
            packed: None,
            strides: Strides::default(),
        }
    }

    /// `sequences` of any lengths, one after the other in one row of `query_len` queries and one of `key_len` keys.
    pub fn packed(sequences: usize, query_len: usize, key_len: usize, heads: usize, head_dim: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, query_len, key_len, heads, head_dim) }
    }

    /// Sequences, `N`.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads.checked_div(self.key_heads).unwrap_or(1).max(1)
    }

    /// Words of 32 bits of a row of the key bitmap.
    pub fn key_words(&self) -> usize {
        self.key_len.div_ceil(32)
    }

    /// Tiles of `rows` queries of all sequences, when each begins a tile of its own: rows of the batch have equally many, and packed
    /// sequence `n`, which starts at query `lo`, has those from `lo / rows + n` (rounded down) on. A number in between may belong to none.
    pub fn slots(&self, rows: usize) -> usize {
        let rows = rows.max(1);
        match self.packed {
            Some(sequences) => (self.query_len / rows).saturating_add(sequences),
            None => self.query_len.div_ceil(rows).saturating_mul(self.batch),
        }
    }
}
