//! LightNet, the oracle: weights `e^k` that are summed without forgetting and normalised by their running sum; and the positional
//! encodings that go with it. One sequence.
//!
//! ```text
//! causal          S[t] = sum over j <= t of softmax over j <= t (k)[j] ⊗ v[j]      o[t] = S[t]ᵀ q[t]
//! bidirectional   S    = sum over j of softmax over j (k)[j] ⊗ v[j]                o[t] = Sᵀ q[t]
//! ```

/// Sizes of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads.
    pub heads: usize,
    /// Entries of a key.
    pub key: usize,
    /// Entries of a value.
    pub value: usize,
}

/// What the causal core ends with.
#[derive(Debug, Clone, PartialEq)]
pub struct Causal {
    /// `[T,H,V]`.
    pub o: Vec<f64>,
    /// `[H,K]`: log of the sum of all weights.
    pub z: Vec<f64>,
    /// `[H,K,V]`.
    pub state: Vec<f64>,
}

/// Every token's softmax over the tokens up to it, done anew: `q`, `k` are `[T,H,K]`, `v` `[T,H,V]`.
pub fn causal(heads: &Heads, q: &[f64], k: &[f64], v: &[f64]) -> Causal {
    let tokens = q.len() / (heads.heads * heads.key);
    let mut o = Vec::with_capacity(v.len());
    let (mut z, mut state) = (vec![f64::NEG_INFINITY; heads.heads * heads.key], vec![]);
    for t in 0..tokens {
        (z, state) = pool(heads, k, v, t + 1);
        o.extend(read(heads, q, &state, t));
    }
    Causal { o, z, state }
}

/// All tokens read the same state: `[T,H,V]`.
pub fn bidirectional(heads: &Heads, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let tokens = q.len() / (heads.heads * heads.key);
    let (_, state) = pool(heads, k, v, tokens);
    (0..tokens).flat_map(|t| read(heads, q, &state, t)).collect()
}

/// Log of the sum of weights `[H,K]`, and `sum over j of softmax(k)[j] ⊗ v[j]` `[H,K,V]`, over the first `tokens` tokens.
fn pool(heads: &Heads, k: &[f64], v: &[f64], tokens: usize) -> (Vec<f64>, Vec<f64>) {
    let Heads { heads, key, value } = *heads;
    let mut state = vec![0.0; heads * key * value];
    let mut z = vec![0.0; heads * key];
    for at in 0..heads * key {
        let logit = |j: usize| k[j * heads * key + at];
        let most = (0..tokens).map(logit).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..tokens).map(|j| (logit(j) - most).exp()).sum();
        z[at] = most + sum.ln();
        for j in 0..tokens {
            let weight = (logit(j) - most).exp() / sum;
            for i in 0..value {
                state[at * value + i] += weight * v[(j * heads + at / key) * value + i];
            }
        }
    }
    (z, state)
}

fn read(heads: &Heads, q: &[f64], state: &[f64], t: usize) -> Vec<f64> {
    let Heads { heads, key, value } = *heads;
    let sum = |at: usize| {
        let (head, i) = (at / value, at % value);
        let term = |n: usize| q[(t * heads + head) * key + n] * state[(head * key + n) * value + i];
        (0..key).map(term).sum::<f64>()
    };
    (0..heads * value).map(sum).collect()
}

/// Toeplitz positional encoding along one axis, channel by channel: `y[t,d] = sum over s <= t, i of b[d,i] λ[d,i]^(t-s) x[s,d]`. `x`
/// is `[T,D]`, `b` and `decay` (λ) `[D,e]`.
pub fn toeplitz(x: &[f64], b: &[f64], decay: &[f64], channels: usize) -> Vec<f64> {
    let (tokens, terms) = (x.len() / channels, b.len() / channels);
    let mut y = vec![0.0; x.len()];
    for d in 0..channels {
        for t in 0..tokens {
            for s in 0..=t {
                let weight = |i: usize| b[d * terms + i] * decay[d * terms + i].powi((t - s) as i32);
                y[t * channels + d] += (0..terms).map(weight).sum::<f64>() * x[s * channels + d];
            }
        }
    }
    y
}

/// Relative positions by rotation or cosine, on a grid of one or more axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    /// `[x cos, x sin]`, an angle for each entry; else pairs `(i, i + K/2)` turn.
    pub cosine: bool,
    /// Base of the angles.
    pub base: f64,
    /// Extents of the axes, the slowest first; tokens lie on them in row-major order.
    pub axes: Vec<usize>,
}

impl Positions {
    /// `[T,H,K]` with positions: of the same width, or twice as wide with the cosine form.
    pub fn apply(&self, x: &[f64], heads: usize, key: usize) -> Vec<f64> {
        let turned = if self.cosine { key } else { key / 2 };
        let row = |(at, x): (usize, &[f64])| {
            let angles: Vec<f64> = (0..turned).map(|i| self.angle(at / heads, i, turned, key)).collect();
            let cos = |i: usize| x[i] * angles[i % turned].cos();
            let sin = |i: usize| x[i] * angles[i % turned].sin();
            if self.cosine {
                (0..key).map(cos).chain((0..key).map(sin)).collect::<Vec<f64>>()
            } else {
                let first = (0..turned).map(|i| cos(i) - sin(i + turned));
                first.chain((0..turned).map(|i| cos(i + turned) + sin(i))).collect()
            }
        };
        x.chunks_exact(key).enumerate().flat_map(row).collect()
    }

    /// Angle `i` of `turned` at a token: axes share the angles in order, every axis with the first frequencies.
    fn angle(&self, token: usize, i: usize, turned: usize, key: usize) -> f64 {
        let each = turned.div_ceil(self.axes.len());
        let (axis, i) = (i / each, i % each);
        let after: usize = self.axes[axis + 1..].iter().product();
        let at = if axis == 0 { token / after } else { token / after % self.axes[axis] };
        at as f64 * self.base.powf(-2.0 * i as f64 / key as f64)
    }
}

/// What LightNet's recurrence runs on: `e^(k - z)` and `g = z[t-1] - z[t]`, 0 at the first token, with `z` the log of the sum so far.
pub fn gates(k: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let tokens = k.len() / channels;
    let z = |t: usize, c: usize| {
        let most = (0..=t).map(|j| k[j * channels + c]).fold(f64::NEG_INFINITY, f64::max);
        most + (0..=t).map(|j| (k[j * channels + c] - most).exp()).sum::<f64>().ln()
    };
    let at = |f: &dyn Fn(usize, usize) -> f64| {
        (0..tokens * channels).map(|i| f(i / channels, i % channels)).collect::<Vec<f64>>()
    };
    let g = |t: usize, c: usize| if t == 0 { 0.0 } else { z(t - 1, c) - z(t, c) };
    (at(&|t, c| (k[t * channels + c] - z(t, c)).exp()), at(&g))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_average() {
        let heads = Heads { heads: 1, key: 1, value: 1 };
        let causal = causal(&heads, &[1.0; 3], &[2.0; 3], &[3.0, 5.0, 10.0]);
        assert_eq!(causal.o, [3.0, 4.0, 6.0]);
        assert!((causal.z[0] - 2.0 - 3_f64.ln()).abs() < 1e-15);
        assert_eq!(bidirectional(&heads, &[1.0, 2.0], &[7.0; 2], &[3.0, 5.0]), [4.0, 8.0]);
    }

    #[test]
    fn gates_make_the_softmax_recurrent() {
        let heads = Heads { heads: 1, key: 2, value: 1 };
        let (q, k, v) = ([1.0, 0.5, -1.0, 2.0, 0.3, 0.7], [0.1, 3.0, -2.0, 0.5, 1.0, 1.5], [1.0, -2.0, 4.0]);
        let (weights, g) = gates(&k, 2);
        let (o, _) = crate::gla::core(&heads, &q, &weights, &v, &g, 1.0);
        for (o, wanted) in o.iter().zip(causal(&heads, &q, &k, &v).o) {
            assert!((o - wanted).abs() < 1e-14);
        }
    }

    #[test]
    fn positions_keep_lengths_and_turn_by_their_axis() {
        let half = Positions { cosine: false, base: 1e4, axes: vec![9] };
        let turned = half.apply(&[1.0, 0.0, 0.0, 1.0], 1, 2);
        let (sin, cos) = 1_f64.sin_cos();
        assert_eq!(turned, [1.0, 0.0, -sin, cos]);
        // Token 4 of a grid of rows of 3 stands at (1, 1).
        let cosine = Positions { cosine: true, base: 1e4, axes: vec![2, 3] };
        assert_eq!(cosine.apply(&[1.0; 10], 1, 2)[16..], [cos, cos, sin, sin]);
    }

    #[test]
    fn toeplitz_by_hand() {
        // One channel, weights 1 λ=1/2 and 10 λ=0: y = x[t] 11 + x[t-1] / 2 + ..
        assert_eq!(toeplitz(&[1.0, 2.0], &[1.0, 10.0], &[0.5, 0.0], 1), [11.0, 22.5]);
    }
}
