//! Language models of one linear attention mixer and one gated unit a layer, the oracle: GLA, RetNet, LightNet. One sequence.
//!
//! ```text
//! x += out_proj(rms_norm(o) silu(gate))    o[t] = scale S[t]ᵀ q[t]    S[t] = diag(e^g[t]) S[t-1] + k[t] ⊗ v[t]
//! x += W_down (silu(W_gate x) W_up x)
//! ```
//! GLA: `g = log sigmoid(W x) / 16` for each entry of a key. RetNet: `g = log(1 - 2^(-5-h))` for head h, rotary positions. LightNet:
//! `q = silu(W x)`, and its own normalised state.

use crate::layers::{add, gated_unit, product, project, rms_norm, silu, softplus};
use crate::lightnet::{self, Positions};

pub use crate::lightnet::Heads;

/// `[T,H,V]` and the last state `[H,K,V]` of the recurrence: `q`, `k`, `g` are `[T,H,K]`, `v` `[T,H,V]`.
pub fn core(heads: &Heads, q: &[f64], k: &[f64], v: &[f64], g: &[f64], scale: f64) -> (Vec<f64>, Vec<f64>) {
    let Heads { heads, key, value } = *heads;
    let mut state = vec![0.0; heads * key * value];
    let mut o = vec![0.0; v.len()];
    for t in 0..q.len() / (heads * key) {
        for head in 0..heads {
            for n in 0..key {
                let at = (t * heads + head) * key + n;
                for i in 0..value {
                    let s = &mut state[(head * key + n) * value + i];
                    *s = g[at].exp() * *s + k[at] * v[(t * heads + head) * value + i];
                    o[(t * heads + head) * value + i] += scale * q[at] * *s;
                }
            }
        }
    }
    (o, state)
}

/// Where the state's weights come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// `log sigmoid(up (down x) + bias) / normalizer`: `down` is `[rank,width]`, `up` `[H K, rank]`.
    LowRank {
        /// To the low rank.
        down: Vec<f64>,
        /// From it.
        up: Vec<f64>,
        /// `[H K]`.
        bias: Vec<f64>,
        /// Divisor of the log sigmoid.
        normalizer: f64,
    },
    /// One fixed decay a head.
    Retention,
    /// LightNet's running softmax of the keys, or its softmax over all tokens.
    Additive {
        /// Whether every token sees all.
        bidirectional: bool,
    },
}

/// Weights of a layer, matrices `[outputs,inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Sizes of heads.
    pub heads: Heads,
    /// Source of the decays.
    pub source: Source,
    /// Positions of queries and keys.
    pub positions: Option<Positions>,
    /// `[width]`, before the mixer.
    pub mixer_norm: Vec<f64>,
    /// `[H K, width]`.
    pub q: Vec<f64>,
    /// `[H K, width]`.
    pub k: Vec<f64>,
    /// `[H V, width]`.
    pub v: Vec<f64>,
    /// One matrix `[H V, width]`, or two of low rank in a row.
    pub gate: Vec<Vec<f64>>,
    /// `[V]`, the norm of every head; or `[H V]`, of the whole row.
    pub norm: Vec<f64>,
    /// `[width, H V]`.
    pub out: Vec<f64>,
    /// `[width]`, before the gated unit.
    pub unit_norm: Vec<f64>,
    /// `[inner,width]`, `[inner,width]`, `[width,inner]`: gate, up, down.
    pub unit: [Vec<f64>; 3],
}

impl Layer {
    /// The mixer's output, `[T,width]`, for normed rows `x`.
    pub fn mixer(&self, x: &[f64], width: usize, eps: f64) -> Vec<f64> {
        let Heads { heads, key, value } = self.heads;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|weight| project(x, weight, None, width));
        let scale = (key as f64).powf(-0.5);
        let q = if matches!(self.source, Source::Additive { .. }) { silu(&q) } else { q };
        let (weights, g) = match &self.source {
            Source::LowRank { down, up, bias, normalizer } => {
                let low = project(x, down, None, width);
                let g = project(&low, up, Some(bias), down.len() / width);
                (k.clone(), g.iter().map(|g| -softplus(-g) / normalizer).collect())
            }
            Source::Retention => {
                let decay = |at: usize| (1.0 - 2_f64.powi(-5 - ((at / key) % heads) as i32)).ln();
                (k.clone(), (0..q.len()).map(decay).collect())
            }
            Source::Additive { .. } => lightnet::gates(&k, heads * key),
        };
        let o = match (&self.source, &self.positions) {
            (Source::Additive { bidirectional: true }, _) => {
                let q: Vec<f64> = q.iter().map(|q| scale * q).collect();
                lightnet::bidirectional(&self.heads, &q, &k, &v)
            }
            (_, Some(positions)) => {
                // The cosine form has two copies of every entry, which decay alike.
                let copies = if positions.cosine { 2 } else { 1 };
                let g: Vec<f64> = g.chunks_exact(key).flat_map(|g| g.repeat(copies)).collect();
                let [q, k] = [&q, &weights].map(|x| positions.apply(x, heads, key));
                core(&Heads { key: copies * key, ..self.heads }, &q, &k, &v, &g, scale).0
            }
            (_, None) => core(&self.heads, &q, &weights, &v, &g, scale).0,
        };
        let gate = self.gate.iter().fold((x.to_vec(), width), |(x, inputs), weight| {
            (project(&x, weight, None, inputs), weight.len() / inputs)
        });
        let normed = rms_norm(&o, self.norm.len(), &self.norm, eps);
        project(&product(&normed, &silu(&gate.0)), &self.out, None, heads * value)
    }
}

/// Weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Width of the residual.
    pub width: usize,
    /// Added to mean squares.
    pub eps: f64,
    /// `[vocabulary,width]`.
    pub embedding: Vec<f64>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// `[width]`.
    pub norm: Vec<f64>,
    /// `[vocabulary,width]`.
    pub head: Vec<f64>,
}

impl Model {
    /// Logits after every token, `[T,vocabulary]`.
    pub fn logits(&self, tokens: &[usize]) -> Vec<f64> {
        let Self { width, eps, .. } = *self;
        let mut x: Vec<f64> = tokens.iter().flat_map(|id| &self.embedding[id * width..][..width]).copied().collect();
        for layer in &self.layers {
            let mixed = layer.mixer(&rms_norm(&x, width, &layer.mixer_norm, eps), width, eps);
            add(&mut x, &mixed);
            let [gate, up, down] = &layer.unit;
            let unit = gated_unit(&rms_norm(&x, width, &layer.unit_norm, eps), gate, up, down, width);
            add(&mut x, &unit);
        }
        project(&rms_norm(&x, width, &self.norm, eps), &self.head, None, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recurrence_by_hand() {
        let heads = Heads { heads: 1, key: 1, value: 1 };
        let half = 0.5_f64.ln();
        let (o, state) = core(&heads, &[1.0, 2.0], &[1.0, 3.0], &[4.0, 5.0], &[half; 2], 0.5);
        assert_eq!((o, state), (vec![2.0, 17.0], vec![17.0]));
    }
}
