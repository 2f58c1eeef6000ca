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
    fn toeplitz_by_hand() {
        // One channel, weights 1 λ=1/2 and 10 λ=0: y = x[t] 11 + x[t-1] / 2 + ..
        assert_eq!(toeplitz(&[1.0, 2.0], &[1.0, 10.0], &[0.5, 0.0], 1), [11.0, 22.5]);
    }
}
