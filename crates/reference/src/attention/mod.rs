//! Softmax attention, the oracle: every query row sees a set of keys, and averages their values by the softmax of its logits.
//!
//! `o_i = sum_j p_ij v_j` with `p_ij = exp(x_ij - lse_i)` and `lse_i = ln sum_j exp(x_ij)`, where the logit `x_ij` is
//! `scale q_i . k_j`, then capped, then sloped by the distance ([`Attention::logit`]). What a row sees is at most two intervals of
//! keys ([`Mask`]), less what a bitmap hides and what a list of tiles leaves out. A row that sees nothing has `o = 0` and
//! `lse = -inf`, exactly. [`backward()`] takes the *final* `lse`, so that its results over blocks of keys and of queries add up;
//! [`state`] merges the results of the forward over sets of keys.
//!
//! Tensors are flat and dense: `q [B,Tq,H,D]`, `k [B,Tk,Hk,D]`, `v [B,Tk,Hk,V]`, `o [B,Tq,H,V]`, `lse [B,Tq,H]`; query head `h` reads
//! key head `h / (H / Hk)`. Packed sequences lie one after the other in the only row.

mod backward;
mod forward;
mod mask;
pub mod state;
#[cfg(test)]
mod tests;

pub use backward::{Adjoint, Gradients, backward, delta};
pub use forward::{Forward, forward};
pub use mask::{FAR, Mask, Row, TileList};

/// What is computed, apart from the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Rows `B`.
    pub batch: usize,
    /// Queries `Tq` of a row; of all packed sequences together.
    pub query_len: usize,
    /// Keys `Tk` of a row, likewise.
    pub key_len: usize,
    /// Heads `H` of queries and outputs.
    pub heads: usize,
    /// Heads `Hk` of keys and values; divides `H`.
    pub key_heads: usize,
    /// `D`, channels of queries and keys.
    pub head_dim: usize,
    /// `V`, channels of values and outputs.
    pub value_dim: usize,
    /// Factor of `q . k`.
    pub scale: f64,
    /// `x <- cap tanh(x / cap)` after the scale.
    pub softcap: Option<f64>,
    /// `[H]`: `x += slope (j - p)`, where `p` is the query's position among the keys.
    pub alibi_slopes: Option<&'a [f64]>,
    /// `[H]`: one more logit of every row, without a value. It counts in `lse`.
    pub sink: Option<&'a [f64]>,
    /// Which keys a row sees.
    pub mask: Mask<'a>,
    /// `[N+1]` starts of packed sequences of queries, in the only row.
    pub cu_seqlens_q: Option<&'a [i32]>,
    /// `[N+1]` starts of packed sequences of keys, in the only row.
    pub cu_seqlens_k: Option<&'a [i32]>,
}

/// The tensors.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[B,Tq,H,D]`.
    pub q: &'a [f64],
    /// `[B,Tk,Hk,D]`.
    pub k: &'a [f64],
    /// `[B,Tk,Hk,V]`.
    pub v: &'a [f64],
}

impl Attention<'_> {
    /// Rows of equal length, every head with its own keys, every key seen; scale `1 / sqrt(D)`.
    pub fn dense(batch: usize, query_len: usize, key_len: usize, heads: usize, dim: usize) -> Self {
        Self {
            batch,
            query_len,
            key_len,
            heads,
            key_heads: heads,
            head_dim: dim,
            value_dim: dim,
            scale: 1.0 / (dim as f64).sqrt(),
            softcap: None,
            alibi_slopes: None,
            sink: None,
            mask: Mask::FULL,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
        }
    }

    /// Number of sequences: packed ones, or rows.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens_q.or(self.cu_seqlens_k).map_or(self.batch, |cu| cu.len().saturating_sub(1))
    }

    /// The key head that query head `h` reads.
    pub fn key_head(&self, h: usize) -> usize {
        h * self.key_heads / self.heads
    }

    /// The scaled and capped product of a query and a key, and what the cap makes of a small change of the scaled product.
    fn capped(&self, q: &[f64], k: &[f64]) -> (f64, f64) {
        let x = self.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
        match self.softcap {
            None => (x, 1.0),
            Some(cap) => {
                let t = (x / cap).tanh();
                (cap * t, 1.0 - t * t)
            }
        }
    }

    /// The logit of key `j` for a query at position `p` among the keys.
    pub fn logit(&self, head: usize, q: &[f64], k: &[f64], j: usize, p: i64) -> f64 {
        self.capped(q, k).0 + self.slope(head) * (j as i64 - p) as f64
    }

    fn slope(&self, head: usize) -> f64 {
        self.alibi_slopes.map_or(0.0, |slopes| slopes[head])
    }

    /// Row `row` of head `head` in a tensor of `heads` heads of `width`.
    fn at(tensor: &[f64], row: usize, head: usize, heads: usize, width: usize) -> &[f64] {
        &tensor[(row * heads + head) * width..][..width]
    }
}
