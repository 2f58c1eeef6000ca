//! Just Read Twice, the oracle: linear attention over Taylor features whose state begins with an encoded prefix, and the gated
//! convolution and the windows of softmax attention between. One sequence.
//!
//! ```text
//! φ(q)·φ(k) = 1 + s + s²/2, s = q·k / √d
//! y[i] = (sum over j < M of φ(q[i])·φ(kᵉ[j]) vᵉ[j] + sum over j <= i of φ(q[i])·φ(k[j]) v[j]) / (the same without v + ε)
//! ```

use crate::layers::{add, columns, convolution, product, project, rms_norm, silu};
use crate::lightnet::Heads;
use crate::llama;
use crate::time_reduce::Map;

/// Taylor features of each row of `key` entries, 153 of them: the inner product of two rows' features is `1 + s + s²/2`.
pub fn features(x: &[f64], key: usize) -> Vec<f64> {
    x.chunks_exact(key).flat_map(|x| Map::Taylor.of(x)).collect()
}

/// What the encoder keeps of the prefix: `[M,H,K]` keys and `[M,H,V]` values.
#[derive(Debug, Clone, Copy)]
pub struct Prefix<'a> {
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
}

/// Prefix linear attention, every score done alone: `q`, `k` are `[T,H,K]`, `v` `[T,H,V]`. Gives `[T,H,V]`.
pub fn core(heads: &Heads, q: &[f64], k: &[f64], v: &[f64], prefix: Option<Prefix<'_>>, eps: f64) -> Vec<f64> {
    let Heads { heads, key, value } = *heads;
    let tokens = q.len() / (heads * key);
    let mut y = vec![0.0; v.len()];
    for t in 0..tokens {
        for head in 0..heads {
            let row = (t * heads + head) * key;
            let score = |k: &[f64], j: usize| {
                let k = &k[(j * heads + head) * key..][..key];
                let s = q[row..row + key].iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (key as f64).sqrt();
                1.0 + s + s * s / 2.0
            };
            let encoded = prefix.map_or(0, |prefix| prefix.k.len() / (heads * key));
            let terms = (0..encoded)
                .filter_map(|j| prefix.map(|p| (score(p.k, j), &p.v[(j * heads + head) * value..][..value])));
            let terms = terms.chain((0..=t).map(|j| (score(k, j), &v[(j * heads + head) * value..][..value])));
            let y = &mut y[(t * heads + head) * value..][..value];
            let mut total = eps;
            for (weight, v) in terms {
                total += weight;
                y.iter_mut().zip(v).for_each(|(y, v)| *y += weight * v);
            }
            y.iter_mut().for_each(|y| *y /= total);
        }
    }
    y
}

/// Weights of a mixer, matrices `[outputs,inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixer {
    /// Linear attention; with an encoder, prefix linear attention.
    Attention {
        /// Sizes of heads.
        heads: Heads,
        /// `[H K, width]`.
        q: Vec<f64>,
        /// `[H K, width]`.
        k: Vec<f64>,
        /// `[H V, width]`.
        v: Vec<f64>,
        /// `[H K, width]` and `[H V, width]`, and the tokens of the prefix.
        encoder: Option<(Vec<f64>, Vec<f64>, usize)>,
        /// `[width, H V]`.
        out: Vec<f64>,
        /// Added to the denominator.
        eps: f64,
    },
    /// Softmax attention to the tokens in a window.
    Window {
        /// Heads, all with keys of their own, and the window.
        heads: llama::Heads,
        /// `[3 width, width]`: rows of q, k, v.
        qkv: llama::Linear,
        /// `[width, width]`.
        out: llama::Linear,
    },
    /// `out_proj(silu(conv(u1)) u2)` with `u1, u2 = in_proj(x)`.
    Convolution {
        /// `[2 inner, width]`.
        in_weight: Vec<f64>,
        /// `[2 inner]`.
        in_bias: Vec<f64>,
        /// `[inner, taps]`.
        conv: Vec<f64>,
        /// `[inner]`.
        conv_bias: Option<Vec<f64>>,
        /// `[width, inner]`.
        out_weight: Vec<f64>,
        /// `[width]`.
        out_bias: Vec<f64>,
    },
}

impl Mixer {
    /// The mixer's output for every token of `x`, `[T,width]`.
    pub fn forward(&self, x: &[f64], width: usize) -> Vec<f64> {
        match self {
            Mixer::Attention { heads, q, k, v, encoder, out, eps } => {
                let made = [q, k, v].map(|weight| project(x, weight, None, width));
                let encoded = encoder.as_ref().map(|(k, v, tokens)| {
                    let seen = &x[..(tokens * width).min(x.len())];
                    [k, v].map(|weight| project(seen, weight, None, width))
                });
                let prefix = encoded.as_ref().map(|[k, v]| Prefix { k, v });
                let y = core(heads, &made[0], &made[1], &made[2], prefix, *eps);
                project(&y, out, None, heads.heads * heads.value)
            }
            Mixer::Window { heads, qkv, out } => {
                let made = project(x, &qkv.0, qkv.1.as_deref(), width);
                let [q, k, v] = [0, 1, 2].map(|part| columns(&made, 3 * width, part * width, width));
                project(&heads.attend(&q, &k, &v, 0), &out.0, out.1.as_deref(), width)
            }
            Mixer::Convolution { in_weight, in_bias, conv, conv_bias, out_weight, out_bias } => {
                let inner = in_bias.len() / 2;
                let u = project(x, in_weight, Some(in_bias), width);
                let first = columns(&u, 2 * inner, 0, inner);
                let mixed = convolution(&first, conv, conv_bias.as_deref(), inner, conv.len() / inner - 1);
                let gated = product(&silu(&mixed), &columns(&u, 2 * inner, inner, inner));
                project(&gated, out_weight, Some(out_bias), inner)
            }
        }
    }
}

/// Weights of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `[width]`, before the mixer.
    pub mixer_norm: Vec<f64>,
    /// The mixer.
    pub mixer: Mixer,
    /// `[width]`, before the gated unit.
    pub unit_norm: Vec<f64>,
    /// `[2 inner, width]`: rows of the value, then of the gate.
    pub fc1: Vec<f64>,
    /// `[width, inner]`.
    pub fc2: Vec<f64>,
}

/// Weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Width of the residual.
    pub width: usize,
    /// Added to mean squares.
    pub eps: f64,
    /// `[vocabulary,width]`, also the head.
    pub embedding: Vec<f64>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// `[width]`.
    pub norm: Vec<f64>,
}

impl Model {
    /// Logits after every token, `[T,vocabulary]`.
    pub fn logits(&self, tokens: &[usize]) -> Vec<f64> {
        let Self { width, eps, .. } = *self;
        let mut x: Vec<f64> = tokens.iter().flat_map(|id| &self.embedding[id * width..][..width]).copied().collect();
        for layer in &self.layers {
            let mixed = layer.mixer.forward(&rms_norm(&x, width, &layer.mixer_norm, eps), width);
            add(&mut x, &mixed);
            let inner = layer.fc1.len() / (2 * width);
            let made = project(&rms_norm(&x, width, &layer.unit_norm, eps), &layer.fc1, None, width);
            let gate = silu(&columns(&made, 2 * inner, inner, inner));
            let unit = project(&product(&columns(&made, 2 * inner, 0, inner), &gate), &layer.fc2, None, inner);
            add(&mut x, &unit);
        }
        project(&rms_norm(&x, width, &self.norm, eps), &self.embedding, None, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_scores_as_inner_products() {
        let (q, k) = ([0.5, -1.0, 2.0], [1.5, 0.25, -0.75]);
        let s: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / 3_f64.sqrt();
        let (q, k) = (features(&q, 3), features(&k, 3));
        assert_eq!(q.len(), 153);
        let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        assert!((product - (1.0 + s + s * s / 2.0)).abs() < 1e-14);
    }

    #[test]
    fn equal_scores_average_prefix_and_past() {
        let heads = Heads { heads: 1, key: 1, value: 1 };
        let prefix = Prefix { k: &[0.0; 2], v: &[1.0, 3.0] };
        assert_eq!(core(&heads, &[0.0; 2], &[0.0; 2], &[5.0, 7.0], Some(prefix), 0.0), [3.0, 4.0]);
        assert_eq!(core(&heads, &[0.0; 2], &[0.0; 2], &[5.0, 7.0], None, 0.0), [5.0, 6.0]);
    }
}
