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
    /// Of the log-decays `g`, where they are a tensor over tokens.
    pub g: Option<Stride>,
    /// Of `o`.
    pub o: Option<Stride>,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, `B`. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row, `T`; of all packed sequences together.
    pub seq_len: usize,
    /// Heads of `v`, `g`, `o` and the states, `H`.
    pub heads: usize,
    /// Heads of `q`; divides `heads`, and `heads / query_heads` neighbouring heads share one.
    pub query_heads: usize,
    /// Heads of `k`; divides `heads`, likewise.
    pub key_heads: usize,
    /// Entries of a key, `K`: 1 to 256. States have as many, or what [`Features`](crate::Features) make of them.
    pub key_dim: usize,
    /// Entries of a value, `V`.
    pub value_dim: usize,
    /// Packed sequences in the only row: `cu_seqlens` has one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Steps of the tensors.
    pub strides: Strides,
}

impl Shape {
    /// Rows of equal length without gaps, every head with its own `q` and `k`.
    pub fn dense(batch: usize, seq_len: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self {
            batch,
            seq_len,
            heads,
            query_heads: heads,
            key_heads: heads,
            key_dim,
            value_dim,
            packed: None,
            strides: Strides::default(),
        }
    }

    /// `sequences` of any lengths, one after the other in one row of `total` tokens.
    pub fn packed(sequences: usize, total: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, total, heads, key_dim, value_dim) }
    }

    /// Sequences, `N`: rows of the states.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }
}
