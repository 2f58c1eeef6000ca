//! BERT's encoder, the oracle: post-norm layers of attention that sees everything and a unit of two matrices. One sequence.
//!
//! ```text
//! h = layer_norm(word + position + type)
//! h = layer_norm(h + W_o attention(W_q h + b_q, W_k h + b_k, W_v h + b_v) + b_o)
//! h = layer_norm(h + W_down act(W_up h + b_up) + b_down)
//! ```

use crate::activation::Activation;
use crate::attention::{self, Attention, Inputs};
use crate::layers::{add, layer_norm, project};

/// Sizes and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Width of the residual.
    pub width: usize,
    /// Heads; divides the width.
    pub heads: usize,
    /// Added to variances.
    pub eps: f64,
    /// Between the unit's matrices.
    pub activation: Activation,
}

/// Weight `[outputs,inputs]` and bias `[outputs]`; or those of a norm, `[width]` each.
pub type Affine = [Vec<f64>; 2];

/// Weights of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Queries, keys and values.
    pub qkv: [Affine; 3],
    /// After the heads.
    pub out: Affine,
    /// The norm after the attention.
    pub attention_norm: Affine,
    /// Into the unit.
    pub up: Affine,
    /// Out of it.
    pub down: Affine,
    /// The norm after the unit.
    pub unit_norm: Affine,
}

fn linear(x: &[f64], [weight, bias]: &Affine) -> Vec<f64> {
    project(x, weight, Some(bias), weight.len() / bias.len())
}

impl Layer {
    /// The rows after the layer, `[T,width]`.
    pub fn forward(&self, sizes: &Sizes, h: &[f64]) -> Vec<f64> {
        let tokens = h.len() / sizes.width;
        let norm = |x: &[f64], [weight, bias]: &Affine| layer_norm(x, weight, bias, sizes.eps);
        let [q, k, v] = self.qkv.each_ref().map(|affine| linear(h, affine));
        let dense = Attention::dense(1, tokens, tokens, sizes.heads, sizes.width / sizes.heads);
        let o = attention::forward(&dense, &Inputs { q: &q, k: &k, v: &v }).o;
        let mut sum = linear(&o, &self.out);
        add(&mut sum, h);
        let h = norm(&sum, &self.attention_norm);
        let mut made = linear(&h, &self.up);
        made.iter_mut().for_each(|made| *made = sizes.activation.of(*made));
        let mut sum = linear(&made, &self.down);
        add(&mut sum, &h);
        norm(&sum, &self.unit_norm)
    }
}

/// Weights of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// Sizes of every layer.
    pub sizes: Sizes,
    /// `[vocabulary,width]`.
    pub words: Vec<f64>,
    /// `[positions,width]`.
    pub positions: Vec<f64>,
    /// `[types,width]`.
    pub types: Vec<f64>,
    /// The norm over embeddings.
    pub norm: Affine,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
}

impl Encoder {
    /// The last layer's row of every token, `[T,width]`, for tokens as (word, type).
    pub fn forward(&self, tokens: &[(usize, usize)]) -> Vec<f64> {
        let width = self.sizes.width;
        let row = |table: &[f64], at: usize| table[at * width..][..width].to_vec();
        let embed = |(position, (word, kind)): (usize, &(usize, usize))| {
            let mut sum = row(&self.words, *word);
            add(&mut sum, &row(&self.positions, position));
            add(&mut sum, &row(&self.types, *kind));
            sum
        };
        let h: Vec<f64> = tokens.iter().enumerate().flat_map(embed).collect();
        let h = layer_norm(&h, &self.norm[0], &self.norm[1], self.sizes.eps);
        self.layers.iter().fold(h, |h, layer| layer.forward(&self.sizes, &h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of one number on the diagonal.
    fn diagonal(n: usize, value: f64) -> Vec<f64> {
        (0..n * n).map(|at| if at / n == at % n { value } else { 0.0 }).collect()
    }

    #[test]
    fn by_hand() {
        let ones = || [vec![1.0; 2], vec![0.0; 2]];
        let affine = |value: f64| [diagonal(2, value), vec![0.0; 2]];
        let sizes = Sizes { width: 2, heads: 1, eps: 0.0, activation: Activation::Relu };
        // Queries of zeros: every token gets the mean of all values.
        let layer = Layer {
            qkv: [affine(0.0), affine(1.0), affine(2.0)],
            out: affine(1.0),
            attention_norm: [vec![3.0; 2], vec![0.0, 1.0]],
            up: affine(1.0),
            down: [diagonal(2, 0.0), vec![0.0, 1.0]],
            unit_norm: ones(),
        };
        let encoder = Encoder {
            sizes,
            words: vec![0.0, 0.0, 4.0, 1.0],
            positions: vec![0.0, 0.0, -1.0, 0.0],
            types: vec![0.0, 0.0, 1.0, 2.0],
            norm: ones(),
            layers: vec![layer],
        };
        // Embeddings (4, 1) and (0, 2) become (1, -1) and (-1, 1), whose mean is 0: the sums stay. The norm gives 3 (1, -1) + (0, 1) and
        // 3 (-1, 1) + (0, 1), the unit's bias adds 1 to the second elements: (3, -1) and (-3, 5).
        assert_eq!(encoder.forward(&[(1, 0), (0, 1)]), [1.0, -1.0, -1.0, 1.0]);
    }
}
