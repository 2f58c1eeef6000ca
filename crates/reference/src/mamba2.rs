//! Mamba-2, the oracle: the state space core token by token, the mixer, the whole model. One sequence.
//!
//! ```text
//! z, x B C, d = in_proj(u)      x B C = silu(conv(x B C))      Δ = clamp(softplus(d + dt_bias))      A = -e^A_log
//! h[t] = e^(Δ A) h[t-1] + Δ B ⊗ x      y[t] = hᵀC + D x      out = out_proj(rms_norm(y silu(z)))
//! ```

use crate::layers::{add, columns, convolution, product, project, rms_norm, silu, softplus};

/// Sizes and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Width of the residual.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C, and over which the gated norm takes its means.
    pub groups: usize,
    /// Rows of a head's state.
    pub state: usize,
    /// Bounds of Δ.
    pub dt_limit: (f64, f64),
    /// Added to mean squares.
    pub eps: f64,
}

impl Sizes {
    /// Channels of all heads.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// What the core reads; `x` is `[T,H,P]`, `dt` `[T,H]`, `b` and `c` `[T,G,N]`, `a` and `d` `[H]`.
#[derive(Debug, Clone, Copy)]
pub struct Core<'a> {
    /// Values, before Δ.
    pub x: &'a [f64],
    /// Δ.
    pub dt: &'a [f64],
    /// Decay rates, negative.
    pub a: &'a [f64],
    /// What a token writes with.
    pub b: &'a [f64],
    /// What a token reads with.
    pub c: &'a [f64],
    /// Weight of the token itself.
    pub d: &'a [f64],
}

/// `y` `[T,H,P]`, and the last state `[H,N,P]`.
pub fn core(sizes: &Sizes, core: &Core<'_>) -> (Vec<f64>, Vec<f64>) {
    let Sizes { heads, head_dim, groups, state, .. } = *sizes;
    let tokens = core.dt.len() / heads;
    let mut h = vec![0.0; heads * state * head_dim];
    let mut y = vec![0.0; core.x.len()];
    for t in 0..tokens {
        for head in 0..heads {
            let group = (t * groups + head / (heads / groups)) * state;
            let x = &core.x[(t * heads + head) * head_dim..][..head_dim];
            let y = &mut y[(t * heads + head) * head_dim..][..head_dim];
            let dt = core.dt[t * heads + head];
            for n in 0..state {
                let h = &mut h[(head * state + n) * head_dim..][..head_dim];
                for p in 0..head_dim {
                    h[p] = (dt * core.a[head]).exp() * h[p] + dt * core.b[group + n] * x[p];
                    y[p] += core.c[group + n] * h[p];
                }
            }
            for p in 0..head_dim {
                y[p] += core.d[head] * x[p];
            }
        }
    }
    (y, h)
}

/// Weights of a mixer, matrices `[outputs,inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixer {
    /// `[2 inner + 2 G N + H, width]`: rows of z, x, B, C, d.
    pub in_proj: Vec<f64>,
    /// `[inner + 2 G N, taps]`, the last tap on the token itself.
    pub conv_weight: Vec<f64>,
    /// `[inner + 2 G N]`.
    pub conv_bias: Vec<f64>,
    /// `[H]`.
    pub dt_bias: Vec<f64>,
    /// `[H]`.
    pub a_log: Vec<f64>,
    /// `[H]`.
    pub d: Vec<f64>,
    /// `[inner]`.
    pub norm: Vec<f64>,
    /// `[width, inner]`.
    pub out_proj: Vec<f64>,
}

impl Mixer {
    /// The mixer's output for every token of `u`, `[T,width]`.
    pub fn forward(&self, sizes: &Sizes, u: &[f64]) -> Vec<f64> {
        let (inner, bc, heads) = (sizes.inner(), sizes.groups * sizes.state, sizes.heads);
        let row = 2 * inner + 2 * bc + heads;
        let made = project(u, &self.in_proj, None, sizes.width);
        let z = columns(&made, row, 0, inner);
        let channels = inner + 2 * bc;
        let taps = self.conv_weight.len() / channels;
        let xbc = columns(&made, row, inner, channels);
        let xbc = silu(&convolution(&xbc, &self.conv_weight, Some(&self.conv_bias), channels, taps - 1));
        let raw = columns(&made, row, inner + channels, heads);
        let (lo, hi) = sizes.dt_limit;
        let step = |(at, raw): (usize, &f64)| softplus(raw + self.dt_bias[at % heads]).max(lo).min(hi);
        let dt: Vec<f64> = raw.iter().enumerate().map(step).collect();
        let a: Vec<f64> = self.a_log.iter().map(|a| -a.exp()).collect();
        let inputs = Core {
            x: &columns(&xbc, channels, 0, inner),
            dt: &dt,
            a: &a,
            b: &columns(&xbc, channels, inner, bc),
            c: &columns(&xbc, channels, inner + bc, bc),
            d: &self.d,
        };
        let (y, _) = core(sizes, &inputs);
        let normed = rms_norm(&product(&y, &silu(&z)), inner / sizes.groups, &self.norm, sizes.eps);
        project(&normed, &self.out_proj, None, inner)
    }
}

/// Weights of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Sizes of every mixer.
    pub sizes: Sizes,
    /// `[vocabulary,width]`, also the head.
    pub embedding: Vec<f64>,
    /// The norm before each mixer, `[width]`, and the mixer.
    pub layers: Vec<(Vec<f64>, Mixer)>,
    /// `[width]`.
    pub norm: Vec<f64>,
}

impl Model {
    /// Logits after every token, `[T,vocabulary]`.
    pub fn logits(&self, tokens: &[usize]) -> Vec<f64> {
        let Sizes { width, eps, .. } = self.sizes;
        let mut residual: Vec<f64> =
            tokens.iter().flat_map(|id| &self.embedding[id * width..][..width]).copied().collect();
        for (norm, mixer) in &self.layers {
            let out = mixer.forward(&self.sizes, &rms_norm(&residual, width, norm, eps));
            add(&mut residual, &out);
        }
        project(&rms_norm(&residual, width, &self.norm, eps), &self.embedding, None, width)
    }
}
