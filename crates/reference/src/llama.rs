//! Language models of softmax attention with rotary positions and a gated unit a layer, the oracle: LLaMA, Mistral, Qwen2. One sequence.
//!
//! ```text
//! x += W_o softmax(q kᵀ / √D) v    q, k, v = W x + b, q and k turned by their positions
//! x += W_down (silu(W_gate x) W_up x)
//! ```

use crate::attention::{self, Attention, Inputs, Mask};
use crate::e4m3;
use crate::kv_append::codes;
use crate::layers::{add, gated_unit, project, rms_norm};
use crate::rotary::{Rotary, Style, forward as turn};

/// Heads of softmax attention, and what they see.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Entries of a head.
    pub head_dim: usize,
    /// Base of the angles; the first `rotary_dim` entries turn.
    pub base: f64,
    /// See `base`.
    pub rotary_dim: usize,
    /// Angles of position 1, instead of the powers of `base`.
    pub frequencies: Option<Vec<f64>>,
    /// Tokens before itself that a token sees; all of them without.
    pub window: Option<usize>,
    /// Tokens from this one on see keys and values in 8 bits, with a scale for each token and head.
    pub coded_from: Option<usize>,
}

impl Heads {
    /// `[T,H,D]` of `q` `[T,H,D]` and `k`, `v` `[T,Hk,D]`, before they are turned. The first `prefix` tokens see one another; all see what
    /// was before them.
    pub fn attend(&self, q: &[f64], k: &[f64], v: &[f64], prefix: usize) -> Vec<f64> {
        let Self { heads, key_heads, head_dim, .. } = *self;
        let tokens = q.len() / (heads * head_dim);
        let turned = |x: &[f64], heads: usize| {
            let rotary = Rotary {
                batch: 1,
                tokens,
                heads,
                head_dim,
                style: Style::Half,
                base: self.base,
                rotary_dim: self.rotary_dim,
                theta_dim: self.rotary_dim,
                extents: &[],
                prefix: 0,
                positions: None,
                starts: None,
                offset: 0,
                frequencies: self.frequencies.as_deref(),
            };
            turn(&rotary, x)
        };
        let prefix_len = [prefix as i32];
        let mask = match self.window {
            Some(window) => Mask::window(window as i64, 0, 0),
            None => Mask { prefix_len: Some(&prefix_len), ..Mask::CAUSAL },
        };
        let shape = Attention { key_heads, mask, ..Attention::dense(1, tokens, tokens, heads, head_dim) };
        let (q, k) = (turned(q, heads), turned(k, key_heads));
        let mut o = attention::forward(&shape, &Inputs { q: &q, k: &k, v }).o;
        if let Some(from) = self.coded_from {
            let coded = |x: &[f64]| -> Vec<f64> { x.chunks_exact(head_dim).flat_map(coded).collect() };
            let (k, v) = (coded(&k), coded(v));
            let all = attention::forward(&shape, &Inputs { q: &q, k: &k, v: &v }).o;
            let from = (from * heads * head_dim).min(o.len());
            o[from..].copy_from_slice(&all[from..]);
        }
        o
    }
}

/// What a row's codes stand for.
fn coded(row: &[f64]) -> Vec<f64> {
    let (codes, scale) = codes(row, None);
    codes.into_iter().map(|code| e4m3::decode(code) * scale).collect()
}

/// Angles of position 1 of LLaMA 3.1: wavelengths above `original / low` are `factor` times longer than `base` says, those below
/// `original / high` stay, and between them frequencies are mixed by how many of theirs fit into `original` positions.
pub fn llama3_frequencies(base: f64, dim: usize, factor: f64, [low, high]: [f64; 2], original: f64) -> Vec<f64> {
    let scaled = |i: usize| {
        let frequency = base.powf(-2.0 * i as f64 / dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            return frequency;
        }
        if wavelength > original / low {
            return frequency / factor;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    };
    (0..dim / 2).map(scaled).collect()
}

/// A matrix `[outputs,inputs]`, and what is added to each output.
pub type Linear = (Vec<f64>, Option<Vec<f64>>);

/// Weights of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `[width]`, before attention.
    pub norm: Vec<f64>,
    /// To `[H D]`, `[Hk D]` and `[Hk D]`: queries, keys, values.
    pub qkv: [Linear; 3],
    /// `[width, H D]`.
    pub out: Vec<f64>,
    /// `[width]`, before the gated unit.
    pub unit_norm: Vec<f64>,
    /// `[inner,width]`, `[inner,width]`, `[width,inner]`: gate, up, down.
    pub unit: [Vec<f64>; 3],
}

/// Weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Heads of every layer.
    pub heads: Heads,
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
    /// Logits after every token, `[T,vocabulary]`, where the first `prefix` tokens see one another.
    pub fn logits(&self, tokens: &[usize], prefix: usize) -> Vec<f64> {
        let Self { ref heads, width, eps, .. } = *self;
        let mut x: Vec<f64> = tokens.iter().flat_map(|id| &self.embedding[id * width..][..width]).copied().collect();
        for layer in &self.layers {
            let normed = rms_norm(&x, width, &layer.norm, eps);
            let [q, k, v] = layer.qkv.each_ref().map(|(weight, bias)| project(&normed, weight, bias.as_deref(), width));
            let o = heads.attend(&q, &k, &v, prefix);
            add(&mut x, &project(&o, &layer.out, None, heads.heads * heads.head_dim));
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

    const HEADS: Heads = Heads {
        heads: 2,
        key_heads: 1,
        head_dim: 2,
        base: 1e4,
        rotary_dim: 2,
        frequencies: None,
        window: None,
        coded_from: None,
    };

    #[test]
    fn equal_scores_average_what_is_seen() {
        let (q, k) = ([0.0; 16], [0.0; 8]);
        let v = [1.0, 0.0, 3.0, 0.0, 8.0, 0.0, 4.0, 2.0];
        let first = |heads: Heads, prefix| {
            let o = heads.attend(&q, &k, &v, prefix);
            assert!(o.chunks_exact(4).all(|token| token[..2] == token[2..]), "both heads read one");
            o.chunks_exact(4).map(|token| token[0]).collect::<Vec<_>>()
        };
        assert_eq!(first(HEADS, 0), [1.0, 2.0, 4.0, 4.0]);
        assert_eq!(first(HEADS, 3), [4.0, 4.0, 4.0, 4.0]);
        assert_eq!(first(Heads { window: Some(1), ..HEADS }, 0), [1.0, 2.0, 5.5, 6.0]);
        // 448 becomes 4 and 2 half as much: all but the second entry of the last value are codes already.
        let fine = Heads { coded_from: Some(2), ..HEADS }.attend(&q, &k, &[1.0, 0.01, 3.0, 0.0, 8.0, 0.0, 4.0, 2.1], 0);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(close(fine[1], 0.01) && close(fine[5], 0.005) && close(fine[8], 4.0), "{fine:?}");
        assert!((fine[13] - (0.01_f64 + 2.1) / 4.0).abs() > 1e-3 && (fine[13] - 0.53).abs() < 0.02, "{}", fine[13]);
    }

    #[test]
    fn wavelengths_are_stretched_where_they_are_long() {
        let wide = llama3_frequencies(1e6, 8, 2.0, [1.0, 4.0], 100.0);
        // Wavelengths 6.3, 199, 6283 and 198692.
        assert_eq!((wide[0], wide[3]), (1.0, 0.5 * 1e6_f64.powf(-0.75)));
        let mixed = llama3_frequencies(1e6, 8, 2.0, [0.25, 0.75], 100.0)[1];
        let smooth = (100.0 / (2.0 * std::f64::consts::PI * 1e6_f64.powf(0.25)) - 0.25) / 0.5;
        assert!((mixed * 1e6_f64.powf(0.25) - (0.5 + 0.5 * smooth)).abs() < 1e-12 && smooth > 0.1 && smooth < 0.9);
    }

    #[test]
    fn positions_count() {
        // The query agrees with key 1 as it stands; one turn further it does not.
        let k = [1.0, 0.0, 1.0, 0.0];
        let q = [0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 9.0, 0.0];
        let turned = HEADS.attend(&q, &k, &[0.0, 0.0, 1.0, 0.0], 0)[4];
        let p = 9.0 / 2_f64.sqrt();
        let wanted = p.exp() / (p.exp() + (p * 1_f64.cos()).exp());
        assert!((turned - wanted).abs() < 1e-14, "{turned} {wanted}");
        let still = Heads { rotary_dim: 0, ..HEADS }.attend(&q, &k, &[0.0, 0.0, 1.0, 0.0], 0)[4];
        assert!((still - 0.5).abs() < 1e-14);
    }
}
