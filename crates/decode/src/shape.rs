//! Sizes of a decode step, and where its cache keeps keys and values.

use crate::Stride;

/// Sizes and strides of the tensors. Extents count elements; any of `batch`, `query_len`, `heads` may be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Requests `B`.
    pub batch: usize,
    /// Queries of each request, the last of which stands at its last key; with [`packed`](Self::packed) the most that one may have.
    pub query_len: usize,
    /// Tokens of `q` and `o` when the queries of all requests lie one after the other, `[tokens, H, D]`; else they are
    /// `[B, query_len, H, D]`.
    pub packed: Option<usize>,
    /// Heads `H` of queries and outputs.
    pub heads: usize,
    /// Heads `Hk` of keys and values, which divides `heads`: query head `h` reads `h / (H / Hk)`.
    pub key_heads: usize,
    /// `D`, channels of queries and keys, at most 256; a multiple of 16 bytes of the cache's elements, and of 8.
    pub head_dim: usize,
    /// `Dv`, channels of values and outputs, likewise.
    pub value_dim: usize,
    /// Where keys and values are.
    pub cache: Cache,
    /// Strides.
    pub strides: Strides,
}

/// Where key `j` of request `b` is. All caches are `[pages, places, Hk, D]` in memory, with any strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Page `b`, place `j`: `[B, capacity, Hk, D]`.
    Dense {
        /// Keys that a request has room for.
        capacity: usize,
    },
    /// Page 0, place `starts[b] + j`: `[tokens, Hk, D]`.
    Ragged {
        /// Keys of all requests, one request after the other.
        tokens: usize,
    },
    /// Page `kv_indices[kv_indptr[b] + j / page_size]`, place `j % page_size`: `[pages, page_size, Hk, D]`.
    Paged {
        /// Pages of the pool.
        pages: usize,
        /// Places of a page, any number.
        page_size: usize,
        /// Entries of `kv_indices` that may be in use: page tables of all requests.
        table: usize,
    },
}

/// Steps in elements; `None` is without gaps, in the order that the shapes name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// `[B, query_len, H, D]`; packed, the step of `batch` is not used.
    pub q: Option<Stride>,
    /// `[pages, places, Hk, D]`: the step of `batch` is that of pages.
    pub k: Option<Stride>,
    /// `[pages, places, Hk, Dv]`.
    pub v: Option<Stride>,
    /// `[B, query_len, H, Dv]`.
    pub o: Option<Stride>,
    /// `[pages, places, Hk]` scales of tokens.
    pub k_scale: Option<Stride>,
    /// `[pages, places, Hk]` scales of tokens.
    pub v_scale: Option<Stride>,
}

impl Cache {
    /// Pages and places of the cache of this many requests.
    pub(crate) fn extents(&self, batch: usize) -> [usize; 2] {
        match *self {
            Cache::Dense { capacity } => [batch, capacity],
            Cache::Ragged { tokens } => [1, tokens],
            Cache::Paged { pages, page_size, .. } => [pages, page_size],
        }
    }

    /// Keys that a request can have at most.
    pub fn capacity(&self) -> usize {
        match *self {
            Cache::Dense { capacity } => capacity,
            Cache::Ragged { tokens } => tokens,
            Cache::Paged { page_size, table, .. } => table.saturating_mul(page_size),
        }
    }
}

impl Shape {
    /// One query of every request, values as wide as keys, no gaps, tokens before heads ("NHD").
    pub fn new(batch: usize, heads: usize, key_heads: usize, head_dim: usize, cache: Cache) -> Self {
        let strides = Strides::default();
        Self { batch, query_len: 1, packed: None, heads, key_heads, head_dim, value_dim: head_dim, cache, strides }
    }

    /// The same with the heads of a page before its places ("HND"): `[pages, Hk, places, D]`, and scales of tokens likewise.
    pub fn heads_first(self) -> Self {
        let [_, places] = self.cache.extents(self.batch);
        let step = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of = |width: usize| {
            let head = places.saturating_mul(width);
            Some(Stride { batch: step(head.saturating_mul(self.key_heads)), token: step(width), head: step(head) })
        };
        let (k, v, scale) = (of(self.head_dim), of(self.value_dim), of(1));
        Self { strides: Strides { k, v, k_scale: scale, v_scale: scale, ..self.strides }, ..self }
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads.checked_div(self.key_heads).unwrap_or(0)
    }
}
