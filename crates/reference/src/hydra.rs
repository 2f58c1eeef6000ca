//! Hydra, the oracle: a quasiseparable mixer that reads both ways, in a post-norm encoder. One sequence.
//!
//! ```text
//! z, x, B→ C→, B← C←, d→, d← = in_proj(u)      x, B, C = silu(centred conv)      Δ = softplus(d + dt_bias)      A = -e^A_log
//! y[t] = h→[t-1]ᵀ C→[t-1] + h←[t+1]ᵀ C←[t+1] + (fc_D(x) + D) x      out = out_proj(rms_norm(y) silu(z))
//! ```
//! The state that reaches a token is read with the C of the neighbour it comes from.

use crate::layers::{add, columns, convolution, layer_norm, product, project, rms_norm, silu, softplus};

/// Sizes and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Width of the residual.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C.
    pub groups: usize,
    /// Rows of a head's state.
    pub state: usize,
    /// Added to mean squares.
    pub eps: f64,
}

/// What one direction reads: `dt` is `[T,H]`, `b` and `c` `[T,G,N]`.
#[derive(Debug, Clone, Copy)]
pub struct Direction<'a> {
    /// Δ.
    pub dt: &'a [f64],
    /// What a token writes with.
    pub b: &'a [f64],
    /// What a token reads with, for its neighbour.
    pub c: &'a [f64],
}

/// Both directions and the diagonal: `x` is `[T,H,P]`, `a` `[H]`, `diagonal` `[T,H]`. Gives `[T,H,P]`.
pub fn core(
    sizes: &Sizes,
    x: &[f64],
    a: &[f64],
    forward: Direction<'_>,
    reverse: Direction<'_>,
    diagonal: &[f64],
) -> Vec<f64> {
    let (heads, p) = (sizes.heads, sizes.head_dim);
    let tokens = x.len() / (heads * p);
    let mut y = vec![0.0; x.len()];
    for (at, y) in y.iter_mut().enumerate() {
        *y = diagonal[at / p] * x[at];
    }
    let visits: [Vec<usize>; 2] = [(0..tokens).collect(), (0..tokens).rev().collect()];
    for (visit, direction) in visits.iter().zip([forward, reverse]) {
        for head in 0..heads {
            let group = head / (heads / sizes.groups);
            let mut h = vec![0.0; sizes.state * p];
            // The state is read with the neighbour's C and lands one visited token later.
            let mut passed_on: Option<Vec<f64>> = None;
            for &t in visit {
                if let Some(read) = passed_on {
                    add(&mut y[(t * heads + head) * p..][..p], &read);
                }
                let dt = direction.dt[t * heads + head];
                let mut read = vec![0.0; p];
                for n in 0..sizes.state {
                    let at = (t * sizes.groups + group) * sizes.state + n;
                    for i in 0..p {
                        let x = x[(t * heads + head) * p + i];
                        h[n * p + i] = (dt * a[head]).exp() * h[n * p + i] + dt * direction.b[at] * x;
                        read[i] += direction.c[at] * h[n * p + i];
                    }
                }
                passed_on = Some(read);
            }
        }
    }
    y
}

/// Weights of a layer, matrices `[outputs,inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// `[2 inner + 4 G N + 2 H, width]`: rows of z, x, B→, C→, B←, C←, d→, d←.
    pub in_proj: Vec<f64>,
    /// `[inner + 4 G N, taps]`, the middle tap on the token itself.
    pub conv_weight: Vec<f64>,
    /// `[inner + 4 G N]`.
    pub conv_bias: Vec<f64>,
    /// `[H]`, of both directions.
    pub dt_bias: Vec<f64>,
    /// `[H]`, of both directions.
    pub a_log: Vec<f64>,
    /// `[H]`.
    pub d: Vec<f64>,
    /// `[H, inner]`.
    pub fc_d: Vec<f64>,
    /// `[inner]`.
    pub norm: Vec<f64>,
    /// `[width, inner]`.
    pub out_proj: Vec<f64>,
    /// `[width]`, weight and bias of the layer norm after the sum.
    pub post_norm: [Vec<f64>; 2],
}

impl Layer {
    /// The mixer's output for every token of `u`, `[T,width]`.
    pub fn mixer(&self, sizes: &Sizes, u: &[f64]) -> Vec<f64> {
        let (heads, inner, bc) = (sizes.heads, sizes.heads * sizes.head_dim, sizes.groups * sizes.state);
        let channels = inner + 4 * bc;
        let row = inner + channels + 2 * heads;
        let made = project(u, &self.in_proj, None, sizes.width);
        let z = columns(&made, row, 0, inner);
        let taps = self.conv_weight.len() / channels;
        let mixed = columns(&made, row, inner, channels);
        let mixed = silu(&convolution(&mixed, &self.conv_weight, Some(&self.conv_bias), channels, taps / 2));
        let x = columns(&mixed, channels, 0, inner);
        let steps = |from: usize| -> Vec<f64> {
            let raw = columns(&made, row, from, heads);
            raw.iter().enumerate().map(|(at, raw)| softplus(raw + self.dt_bias[at % heads])).collect()
        };
        let part = |n: usize| columns(&mixed, channels, inner + n * bc, bc);
        let a: Vec<f64> = self.a_log.iter().map(|a| -a.exp()).collect();
        let mut diagonal = project(&x, &self.fc_d, None, inner);
        diagonal.chunks_exact_mut(heads).for_each(|row| add(row, &self.d));
        let forward = Direction { dt: &steps(inner + channels), b: &part(0), c: &part(1) };
        let reverse = Direction { dt: &steps(inner + channels + heads), b: &part(2), c: &part(3) };
        let y = core(sizes, &x, &a, forward, reverse, &diagonal);
        let normed = rms_norm(&y, inner, &self.norm, sizes.eps);
        project(&product(&normed, &silu(&z)), &self.out_proj, None, inner)
    }

    /// `layer_norm(mixer(h) + h)`.
    pub fn forward(&self, sizes: &Sizes, h: &[f64]) -> Vec<f64> {
        let mut sum = self.mixer(sizes, h);
        add(&mut sum, h);
        layer_norm(&sum, &self.post_norm[0], &self.post_norm[1], sizes.eps)
    }
}

/// Weights of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// Sizes of every mixer.
    pub sizes: Sizes,
    /// `[vocabulary,width]`.
    pub words: Vec<f64>,
    /// `[width]`: the row of token type 0.
    pub token_type: Vec<f64>,
    /// `[width]`, weight and bias of the layer norm over embeddings.
    pub norm: [Vec<f64>; 2],
    /// The layers, first to last.
    pub layers: Vec<Layer>,
}

impl Encoder {
    /// The last layer's row of every token, `[T,width]`.
    pub fn forward(&self, tokens: &[usize]) -> Vec<f64> {
        let width = self.sizes.width;
        let mut h: Vec<f64> = tokens.iter().flat_map(|id| &self.words[id * width..][..width]).copied().collect();
        h.chunks_exact_mut(width).for_each(|row| add(row, &self.token_type));
        let h = layer_norm(&h, &self.norm[0], &self.norm[1], self.sizes.eps);
        self.layers.iter().fold(h, |h, layer| layer.forward(&self.sizes, &h))
    }
}
