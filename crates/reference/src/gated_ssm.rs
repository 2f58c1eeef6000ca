//! A whole Gated SSM model, the oracle: embedding, blocks, head. Every token of every packed sample at once.
//!
//! One block, with `x` the residual's norm after a causal depthwise convolution:
//! ```text
//! i = σ(W_i x)   z = W_z x   o = gelu(W_o x)   f = σ(W_f x)
//! h[t] = f[t] h[t-1] + i[t] z[t] √(1 - f[t]² + ε)        residual += W_out (o h)
//! ```
//! In a half-reversed block the second half of the state runs from right to left.

use crate::gated_scan::{Scan, forward, gated_ssm};

/// Weights of one block. Matrices are row-major, `[outputs, inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Whether channels from `state / 2` on run in reverse.
    pub half_reversed: bool,
    /// `[width]`.
    pub norm: Vec<f64>,
    /// `[width, taps]`, the last tap on the current token.
    pub conv: Vec<f64>,
    /// `[4 state, width]`: rows of i, then z, o, f.
    pub in_weight: Vec<f64>,
    /// `[4 state]`.
    pub in_bias: Vec<f64>,
    /// `[width, state]`.
    pub out_weight: Vec<f64>,
}

/// Weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Width of the residual.
    pub width: usize,
    /// State channels of a block.
    pub state: usize,
    /// Added to mean squares.
    pub eps: f64,
    /// `[ids, width]`: a token is the sum of some rows.
    pub table: Vec<f64>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// `[width]`.
    pub norm: Vec<f64>,
    /// `[classes, width]`.
    pub head: Vec<f64>,
}

impl Model {
    /// Logits `[tokens, classes]`. A token is given by the rows of the table that it sums; `flags` has a byte per token:
    /// bit 0 where a sample starts, bit 1 where the reverse channels start from nothing.
    pub fn logits(&self, tokens: &[Vec<usize>], flags: &[u8]) -> Vec<f64> {
        let mut residual: Vec<f64> = Vec::with_capacity(tokens.len() * self.width);
        for rows in tokens {
            let sum = |channel| rows.iter().map(|row| self.table[row * self.width + channel]).sum::<f64>();
            residual.extend((0..self.width).map(sum));
        }
        for block in &self.blocks {
            let out = self.block(block, &residual, flags);
            residual.iter_mut().zip(out).for_each(|(r, out)| *r += out);
        }
        project(&rms_norm(&residual, &self.norm, self.eps), &self.head, self.width)
    }

    /// What a block adds to the residual.
    fn block(&self, block: &Block, residual: &[f64], flags: &[u8]) -> Vec<f64> {
        let state = self.state;
        let x = rms_norm(residual, &block.norm, self.eps);
        let x = causal_convolution(&x, &block.conv, self.width, flags);
        let mut gates = project(&x, &block.in_weight, self.width);
        for token in gates.chunks_exact_mut(4 * state) {
            token.iter_mut().zip(&block.in_bias).for_each(|(gate, bias)| *gate += bias);
        }
        let part = |n: usize| -> Vec<f64> {
            gates.chunks_exact(4 * state).flat_map(|token| &token[n * state..][..state]).copied().collect()
        };
        let [i, z, o, f] = [0, 1, 2, 3].map(part);
        let scan = Scan {
            batch: 1,
            seq_len: flags.len(),
            channels: state,
            split: if block.half_reversed { state / 2 } else { state },
            flags: Some(flags),
            cu_seqlens: None,
            initial: None,
        };
        let (decay, input) = gated_ssm(&f, &i, &z, true);
        let h = forward(&scan, &decay, &input).h;
        let y: Vec<f64> = o.iter().zip(h).map(|(&o, h)| gelu(o) * h).collect();
        project(&y, &block.out_weight, state)
    }
}

/// Every row divided by the root of its mean square, times a weight per channel.
fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let width = weight.len();
    let row = |row: &[f64]| {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean_square + eps).sqrt();
        row.iter().zip(weight).map(|(x, w)| x * scale * w).collect::<Vec<f64>>()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

/// Each channel's last tokens weighed by its taps; tokens before the sample's first count as zero.
fn causal_convolution(x: &[f64], taps: &[f64], width: usize, flags: &[u8]) -> Vec<f64> {
    let count = taps.len() / width;
    let mut y = vec![0.0; x.len()];
    for t in 0..flags.len() {
        for age in 0..count.min(t + 1) {
            for c in 0..width {
                y[t * width + c] += taps[c * count + count - 1 - age] * x[(t - age) * width + c];
            }
            if flags[t - age] & 1 == 1 {
                break;
            }
        }
    }
    y
}

/// `x Wᵀ`.
fn project(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(inputs).flat_map(|x| weight.chunks_exact(inputs).map(move |w| dot(x, w))).collect()
}

/// The tanh form.
fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(seed: usize, n: usize) -> Vec<f64> {
        (0..n).map(|i| (seed as f64 + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
    }

    fn model() -> Model {
        let (width, state) = (4, 6);
        let block = |n: usize| Block {
            half_reversed: n == 0,
            norm: wave(n, width),
            conv: wave(n + 1, width * 4),
            in_weight: wave(n + 2, 4 * state * width),
            in_bias: wave(n + 3, 4 * state),
            out_weight: wave(n + 4, width * state),
        };
        let blocks = vec![block(0), block(1)];
        Model {
            width,
            state,
            eps: 1e-6,
            table: wave(9, 5 * width),
            blocks,
            norm: wave(8, width),
            head: wave(7, 3 * width),
        }
    }

    #[test]
    fn packed_samples_equal_each_alone() {
        let tokens: Vec<Vec<usize>> = (0..9).map(|t| vec![t % 3, 3 + t % 2]).collect();
        let flags = [1, 0, 0, 2, 2, 1, 0, 2, 2];
        let model = model();
        let alone = [model.logits(&tokens[..5], &flags[..5]), model.logits(&tokens[5..], &flags[5..])].concat();
        assert_eq!(model.logits(&tokens, &flags), alone);
    }

    #[test]
    fn a_causal_token_changes_nothing_before_it() {
        let mut tokens: Vec<Vec<usize>> = (0..7).map(|t| vec![t % 5]).collect();
        let flags = [1, 0, 0, 2, 2, 2, 2];
        let model = model();
        let before = model.logits(&tokens, &flags);
        tokens[5] = vec![4];
        let after = model.logits(&tokens, &flags);
        assert_eq!(before[..5 * 3], after[..5 * 3]);
        assert_ne!(before[5 * 3..], after[5 * 3..]);
        tokens[1] = vec![0];
        assert_ne!(model.logits(&tokens, &flags)[..3], after[..3], "a prefix token must change what stands before it");
    }
}
