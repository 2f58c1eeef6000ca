//! The adjoint, token by token from the definition.

use super::{Forward, Map, Reduce};

/// Adjoints of what [`forward`](super::forward) gives.
#[derive(Debug, Clone, Copy)]
pub struct Adjoint<'a> {
    /// Of `o`.
    pub o: &'a [f64],
    /// Of `kv`; zero without.
    pub kv: Option<&'a [f64]>,
    /// Of `ksum`; zero without. Not for [`Map::Softmax`].
    pub ksum: Option<&'a [f64]>,
}

/// Adjoints of the inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `[B,T,Hq,K]`.
    pub q: Vec<f64>,
    /// `[B,T,Hk,K]`.
    pub k: Vec<f64>,
    /// `[B,T,H,V]`.
    pub v: Vec<f64>,
}

/// Gradients of `q`, `k` and `v`; `out` is what [`forward`](super::forward) gave.
pub fn backward(p: &Reduce<'_>, q: &[f64], k: &[f64], v: &[f64], out: &Forward, adjoint: &Adjoint<'_>) -> Gradients {
    let (heads, width, features) = (p.heads, p.value_dim, p.features());
    let mut grad = Gradients { q: vec![0.0; q.len()], k: vec![0.0; k.len()], v: vec![0.0; v.len()] };
    for sequence in p.list() {
        for head in 0..heads {
            let slot = sequence.number * heads + head;
            let kv = &out.kv[slot * features * width..][..features * width];
            let mut d_kv = vec![0.0; features * width];
            let mut d_ksum = vec![0.0; features];
            if let Some(d) = adjoint.kv {
                d_kv.copy_from_slice(&d[slot * features * width..][..features * width]);
            }
            if let Some(d) = adjoint.ksum {
                d_ksum.copy_from_slice(&d[slot * features..][..features]);
            }
            for row in sequence.rows.clone() {
                let at = row * heads + head;
                let (o, d_o) = (&out.o[at * width..][..width], &adjoint.o[at * width..][..width]);
                let den = if p.normalize.is_some() { out.den[at] } else { 1.0 };
                let d_num: Vec<f64> = d_o.iter().map(|d| d / den).collect();
                let d_den = match p.normalize {
                    Some(_) => -o.iter().zip(&d_num).map(|(o, d)| o * d).sum::<f64>(),
                    None => 0.0,
                };
                let x = p.row(q, row, head, p.q_heads, p.key_dim);
                let query = p.query_features(x);
                let mut d_query = vec![0.0; features];
                for f in 0..features {
                    let ksum = if p.normalize.is_some() { out.ksum[slot * features + f] } else { 0.0 };
                    d_query[f] = p.scale * d_den * ksum;
                    d_ksum[f] += p.scale * d_den * query[f];
                    for j in 0..width {
                        d_query[f] += p.scale * d_num[j] * kv[f * width + j];
                        d_kv[f * width + j] += p.scale * d_num[j] * query[f];
                    }
                }
                let into = (row * p.q_heads + head / (heads / p.q_heads)) * p.key_dim;
                let d_x = p.map.adjoint(x, &d_query);
                grad.q[into..][..p.key_dim].iter_mut().zip(d_x).for_each(|(g, d)| *g += d);
            }

            let (keys, _) = p.key_features(k, &sequence, head);
            let d_key = |row: usize, f: usize| {
                let value = p.row(v, row, head, heads, width);
                d_ksum[f] + value.iter().enumerate().map(|(j, v)| v * d_kv[f * width + j]).sum::<f64>()
            };
            // Softmax: sum over tokens of p dp, for each entry.
            let mean: Vec<f64> = (0..features)
                .map(|f| sequence.rows.clone().zip(&keys).map(|(row, key)| key[f] * d_key(row, f)).sum())
                .collect();
            for (row, key) in sequence.rows.clone().zip(&keys) {
                let d: Vec<f64> = (0..features).map(|f| d_key(row, f)).collect();
                let x = p.row(k, row, head, p.k_heads, p.key_dim);
                let d_x = match p.map {
                    Map::Softmax => (0..features).map(|f| key[f] * (d[f] - mean[f])).collect(),
                    map => map.adjoint(x, &d),
                };
                let into = (row * p.k_heads + head / (heads / p.k_heads)) * p.key_dim;
                grad.k[into..][..p.key_dim].iter_mut().zip(d_x).for_each(|(g, d)| *g += d);
                for j in 0..width {
                    let sum: f64 = (0..features).map(|f| key[f] * d_kv[f * width + j]).sum();
                    grad.v[(row * heads + head) * width + j] += sum;
                }
            }
        }
    }
    grad
}
