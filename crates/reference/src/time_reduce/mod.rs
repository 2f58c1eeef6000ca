//! Linear attention over all tokens of a sequence at once: `KV = sum of phi(k_t) v_t^T`, read by every token's `phi(q_t)`.
//!
//! Tensors are flat and dense: `q [B,T,Hq,K]`, `k [B,T,Hk,K]`, `v` and `o [B,T,H,V]`, `kv [N,H,F,V]`, `ksum [N,H,F]`, where `N` is the number of
//! sequences and `F` the number of features that a map makes of `K` entries.

mod backward;
mod maps;
#[cfg(test)]
mod tests;

pub use backward::{Adjoint, Gradients, backward};
pub use maps::{Map, TAYLOR_DIM};

/// What is reduced, apart from the tensors.
#[derive(Debug, Clone, Copy)]
pub struct Reduce<'a> {
    /// Rows `B`.
    pub batch: usize,
    /// Tokens `T` of a row.
    pub seq_len: usize,
    /// Heads `H` of values and outputs.
    pub heads: usize,
    /// Heads of `q`; head `h` reads `h / (heads / q_heads)`.
    pub q_heads: usize,
    /// Heads of `k`, in the same way.
    pub k_heads: usize,
    /// `K`, entries of `q` and `k`.
    pub key_dim: usize,
    /// `V`, entries of `v` and `o`.
    pub value_dim: usize,
    /// Features of keys and queries.
    pub map: Map,
    /// Factor of every read.
    pub scale: f64,
    /// With it `o_t` is divided by `den_t = scale phi(q_t) . ksum + eps`.
    pub normalize: Option<f64>,
    /// `[N+1]` starts of packed sequences in the only row.
    pub cu_seqlens: Option<&'a [i32]>,
    /// `[N]`: tokens of each sequence that are summed; all without.
    pub prefix_len: Option<&'a [i32]>,
}

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,H,V]`.
    pub o: Vec<f64>,
    /// `[B,T,H]`; empty without a normaliser.
    pub den: Vec<f64>,
    /// `[N,H,F,V]`.
    pub kv: Vec<f64>,
    /// `[N,H,F]` sums of features; for [`Map::Softmax`] the logarithm of the sum of `e^k`.
    pub ksum: Vec<f64>,
}

/// One sequence: its number, its rows of `[B,T]`, and how many of them are summed.
struct Sequence {
    number: usize,
    rows: std::ops::Range<usize>,
    summed: usize,
}

impl Reduce<'_> {
    /// Number of sequences: packed ones, or rows.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.map_or(self.batch, |cu| cu.len().saturating_sub(1))
    }

    /// `F`.
    pub fn features(&self) -> usize {
        self.map.features(self.key_dim)
    }

    fn list(&self) -> Vec<Sequence> {
        let range = |n: usize| match self.cu_seqlens {
            Some(cu) => cu[n] as usize..cu[n + 1] as usize,
            None => n * self.seq_len..(n + 1) * self.seq_len,
        };
        let summed = |n: usize, len: usize| self.prefix_len.map_or(len, |p| (p[n].max(0) as usize).min(len));
        (0..self.sequences())
            .map(|n| Sequence { number: n, rows: range(n), summed: summed(n, range(n).len()) })
            .collect()
    }

    fn row<'t>(&self, tensor: &'t [f64], row: usize, head: usize, heads: usize, width: usize) -> &'t [f64] {
        &tensor[(row * heads + head / (self.heads / heads)) * width..][..width]
    }

    /// Features of the keys that are summed, and the logarithms of the sums of a softmax.
    fn key_features(&self, k: &[f64], sequence: &Sequence, head: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
        let tokens = sequence.rows.clone().take(sequence.summed);
        let keys: Vec<&[f64]> = tokens.map(|row| self.row(k, row, head, self.k_heads, self.key_dim)).collect();
        if self.map != Map::Softmax {
            return (keys.iter().map(|k| self.map.of(k)).collect(), Vec::new());
        }
        let log_sum = |i: usize| {
            let top = keys.iter().map(|k| k[i]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = keys.iter().map(|k| (k[i] - top).exp()).sum();
            if keys.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() }
        };
        let logs: Vec<f64> = (0..self.key_dim).map(log_sum).collect();
        (keys.iter().map(|k| k.iter().zip(&logs).map(|(k, log)| (k - log).exp()).collect()).collect(), logs)
    }

    /// Features of a query.
    fn query_features(&self, q: &[f64]) -> Vec<f64> {
        if self.map == Map::Softmax { q.to_vec() } else { self.map.of(q) }
    }
}

/// Sums over the tokens of each sequence, then reads with all of them.
pub fn forward(p: &Reduce<'_>, q: &[f64], k: &[f64], v: &[f64]) -> Forward {
    let (heads, width, features) = (p.heads, p.value_dim, p.features());
    let rows = p.batch * p.seq_len * heads;
    let mut out = Forward {
        o: vec![0.0; rows * width],
        den: vec![0.0; if p.normalize.is_some() { rows } else { 0 }],
        kv: vec![0.0; p.sequences() * heads * features * width],
        ksum: vec![0.0; p.sequences() * heads * features],
    };
    for sequence in p.list() {
        for head in 0..heads {
            let slot = sequence.number * heads + head;
            let kv = &mut out.kv[slot * features * width..][..features * width];
            let ksum = &mut out.ksum[slot * features..][..features];
            let (keys, logs) = p.key_features(k, &sequence, head);
            for (row, key) in sequence.rows.clone().zip(&keys) {
                let value = p.row(v, row, head, heads, width);
                for (f, key) in key.iter().enumerate() {
                    ksum[f] += key;
                    kv[f * width..][..width].iter_mut().zip(value).for_each(|(kv, v)| *kv += key * v);
                }
            }
            for row in sequence.rows.clone() {
                let query = p.query_features(p.row(q, row, head, p.q_heads, p.key_dim));
                let at = row * heads + head;
                let dot: f64 = query.iter().zip(&*ksum).map(|(q, s)| q * s).sum();
                let den = p.normalize.map_or(1.0, |eps| p.scale * dot + eps);
                if p.normalize.is_some() {
                    out.den[at] = den;
                }
                for (j, o) in out.o[at * width..][..width].iter_mut().enumerate() {
                    let sum: f64 = query.iter().enumerate().map(|(f, q)| q * kv[f * width + j]).sum();
                    *o = p.scale * sum / den;
                }
            }
            if p.map == Map::Softmax {
                ksum.copy_from_slice(&logs);
            }
        }
    }
    out
}
