//! Decode attention, the oracle: every query of a request reads the keys of its cache, wherever the cache keeps them.
//!
//! A request `b` has `kv_len[b]` keys and some queries, the last of which stands at the last key: query `i` of `m` has position
//! `p = i + kv_len[b] - m` and sees the keys `j <= p`; of these, with a window, only the last `left + 1` and the first
//! `sink_tokens`; and with a list only those that it names. The logit of a key is
//! `softcap tanh(scale q.k / softcap) + slope (j - p)`.
//!
//! Caches are flat arrays of token slots `[slots, Hk, D]`; [`Cache`] says which slot holds key `j` of a request. Lengths and tables
//! that point outside are read as the kernels read them: lengths are clamped, and keys without a slot are not seen.

pub mod schedule;
#[cfg(test)]
mod tests;

/// What is asked for, apart from the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Requests `B`.
    pub batch: usize,
    /// Queries of a request, or the most that one may have when they are packed.
    pub query_len: usize,
    /// Heads `H` of queries and outputs.
    pub heads: usize,
    /// Heads `Hk` of keys and values; query head `h` reads `h / (H / Hk)`.
    pub key_heads: usize,
    /// `D`, channels of queries and keys.
    pub head_dim: usize,
    /// `Dv`, channels of values and outputs.
    pub value_dim: usize,
    /// `[B+1]` starts of the requests' queries, when they are packed.
    pub cu_seqlens_q: Option<&'a [i32]>,
    /// `[B]` keys of each request.
    pub kv_len: &'a [i32],
    /// Where a key is.
    pub cache: Cache<'a>,
    /// Factor of every product.
    pub scale: f64,
    /// Greatest magnitude of a logit before the slopes.
    pub softcap: Option<f64>,
    /// Keys before its own that a query sees; all without.
    pub left: Option<u32>,
    /// First keys that every query sees although its window has passed them.
    pub sink_tokens: u32,
    /// The only keys that a key head reads.
    pub list: Option<List<'a>>,
    /// `[H]` slopes of the distance between key and query.
    pub alibi_slopes: Option<&'a [f64]>,
    /// `[H]` logits of a key without a value, in every sum.
    pub sink: Option<&'a [f64]>,
    /// Columns of [`Output::logits`]; 0 for none.
    pub logits_stride: usize,
}

/// Which slot holds key `j` of request `b`.
#[derive(Debug, Clone, Copy)]
pub enum Cache<'a> {
    /// Slot `b * capacity + j`.
    Dense {
        /// Slots of each request.
        capacity: usize,
    },
    /// Slot `starts[b] + j`, up to `starts[b + 1]`.
    Ragged {
        /// `[B+1]`.
        starts: &'a [i32],
    },
    /// Slot `indices[indptr[b] + j / page_size] * page_size + j % page_size`.
    Paged {
        /// Slots of a page.
        page_size: usize,
        /// `[B+1]` starts of the requests' page tables.
        indptr: &'a [i32],
        /// Page tables, one after the other.
        indices: &'a [i32],
    },
}

/// Key positions that a key head reads, in any order; a position named twice counts twice.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    /// `[B, Hk, stride]`; negative entries name no key.
    pub positions: &'a [i32],
    /// `[B, Hk]` entries in use.
    pub len: &'a [i32],
    /// Entries of a row.
    pub stride: usize,
}

/// Tensors.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[B, query_len, H, D]`, or `[total, H, D]` packed.
    pub q: &'a [f64],
    /// `[slots, Hk, D]`.
    pub k: &'a [f64],
    /// `[slots, Hk, Dv]`.
    pub v: &'a [f64],
}

/// What [`forward`] returns.
#[derive(Debug, Clone)]
pub struct Output {
    /// Like `q` with `Dv` channels; zero where a query sees nothing.
    pub o: Vec<f64>,
    /// Natural logarithms of the sums, like `o` without channels; `-inf` where a query sees nothing and there is no sink logit.
    pub lse: Vec<f64>,
    /// `[B, H, query_len, logits_stride]`: logits by key position, or by list entry; `-inf` for keys that are not seen.
    pub logits: Vec<f64>,
}

impl Cache<'_> {
    /// Keys that request `b` can have at most, in a cache of `slots` slots.
    pub fn capacity(&self, b: usize, slots: usize) -> usize {
        match *self {
            Cache::Dense { capacity } => capacity,
            Cache::Ragged { starts } => within(starts, b, slots).len(),
            Cache::Paged { page_size, indptr, indices } => within(indptr, b, indices.len()).len() * page_size,
        }
    }

    /// The slot of key `j < capacity(b)` of request `b`; none where its table names a page that does not exist.
    pub fn slot(&self, b: usize, j: usize, slots: usize) -> Option<usize> {
        let slot = match *self {
            Cache::Dense { capacity } => b * capacity + j,
            Cache::Ragged { starts } => within(starts, b, slots).start + j,
            Cache::Paged { page_size, indptr, indices } => {
                let entry = within(indptr, b, indices.len()).start + j / page_size;
                usize::try_from(indices[entry]).ok()? * page_size + j % page_size
            }
        };
        (slot < slots).then_some(slot)
    }
}

/// The part of `0..len` that entry `b` of a table of starts names; empty where it leaves that range or runs backwards.
pub fn within(starts: &[i32], b: usize, len: usize) -> std::ops::Range<usize> {
    match (usize::try_from(starts[b]), usize::try_from(starts[b + 1])) {
        (Ok(lo), Ok(hi)) if lo <= hi && hi <= len => lo..hi,
        _ => 0..0,
    }
}

impl Attention<'_> {
    /// Queries of request `b`, as indices of tokens of `q`.
    pub fn queries(&self, b: usize, tokens: usize) -> std::ops::Range<usize> {
        match self.cu_seqlens_q {
            None => b * self.query_len..(b + 1) * self.query_len,
            Some(starts) => {
                let all = within(starts, b, tokens);
                all.start..all.end.min(all.start + self.query_len)
            }
        }
    }

    /// Keys of request `b`, in a cache of `slots` slots.
    pub fn keys(&self, b: usize, slots: usize) -> usize {
        usize::try_from(self.kv_len[b]).unwrap_or(0).min(self.cache.capacity(b, slots))
    }

    /// Whether a query at position `p` of `n` keys sees key `j`.
    pub fn sees(&self, p: i64, n: usize, j: i64) -> bool {
        let in_window = self.left.is_none_or(|left| j >= p - i64::from(left)) || j < i64::from(self.sink_tokens);
        (0..n as i64).contains(&j) && j <= p && in_window
    }

    /// Candidates of a key head of request `b`: positions in the order of the list, or all of them.
    fn candidates(&self, b: usize, key_head: usize, n: usize) -> Vec<i64> {
        match self.list {
            None => (0..n as i64).collect(),
            Some(List { positions, len, stride }) => {
                let row = b * self.key_heads + key_head;
                let len = usize::try_from(len[row]).unwrap_or(0).min(stride);
                positions[row * stride..][..len].iter().map(|j| i64::from(*j)).collect()
            }
        }
    }
}

/// Attention of every query over its request's cache.
pub fn forward(x: &Attention<'_>, t: &Inputs<'_>) -> Output {
    let (heads, key_heads, dim, value_dim) = (x.heads, x.key_heads, x.head_dim, x.value_dim);
    let group = heads.checked_div(key_heads).unwrap_or(1);
    let tokens = t.q.len().checked_div(heads * dim).unwrap_or(0);
    let slots = t.k.len().checked_div(key_heads * dim).unwrap_or(0);
    let mut out = Output {
        o: vec![0.0; tokens * heads * value_dim],
        lse: vec![f64::NEG_INFINITY; tokens * heads],
        logits: vec![f64::NEG_INFINITY; x.batch * heads * x.query_len * x.logits_stride],
    };
    for b in 0..x.batch {
        let (queries, n) = (x.queries(b, tokens), x.keys(b, slots));
        for (i, token) in queries.clone().enumerate() {
            let p = i as i64 + n as i64 - queries.len() as i64;
            for h in 0..heads {
                let key_head = h / group;
                let q = &t.q[(token * heads + h) * dim..][..dim];
                let mut logits = Vec::new();
                for (at, j) in x.candidates(b, key_head, n).into_iter().enumerate() {
                    let seen = if x.sees(p, n, j) { x.cache.slot(b, j as usize, slots) } else { None };
                    let Some(slot) = seen else { continue };
                    let k = &t.k[(slot * key_heads + key_head) * dim..][..dim];
                    let product = x.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                    let capped = x.softcap.map_or(product, |cap| cap * (product / cap).tanh());
                    let logit = capped + x.alibi_slopes.map_or(0.0, |slope| slope[h] * (j - p) as f64);
                    if at < x.logits_stride {
                        out.logits[((b * heads + h) * x.query_len + i) * x.logits_stride + at] = logit;
                    }
                    logits.push((slot, logit));
                }
                let sink = x.sink.map_or(f64::NEG_INFINITY, |sink| sink[h]);
                let max = logits.iter().fold(sink, |m, (_, logit)| if logit.is_nan() { *logit } else { m.max(*logit) });
                if max == f64::NEG_INFINITY {
                    continue;
                }
                let sum = (sink - max).exp() + logits.iter().map(|(_, logit)| (logit - max).exp()).sum::<f64>();
                let o = &mut out.o[(token * heads + h) * value_dim..][..value_dim];
                for (slot, logit) in &logits {
                    let v = &t.v[(slot * key_heads + key_head) * value_dim..][..value_dim];
                    let weight = (logit - max).exp() / sum;
                    o.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
                }
                out.lse[token * heads + h] = max + sum.ln();
            }
        }
    }
    out
}
