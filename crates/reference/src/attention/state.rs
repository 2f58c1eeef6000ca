//! What a row knows after some of its keys: an average of values and the logarithm of its weight.
//!
//! States of disjoint sets of keys merge to that of their union, in any order and grouping. The state of no keys is
//! `o = 0, lse = -inf`, and changes nothing.

/// A row's average over a set of keys, with the logarithm of the sum of their exponentials.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `[V]`, the average; zero for no keys.
    pub o: Vec<f64>,
    /// Natural logarithm of the sum of exponentials of the logits; minus infinity for no keys.
    pub lse: f64,
}

impl State {
    /// Of no keys.
    pub fn empty(value_dim: usize) -> Self {
        Self { o: vec![0.0; value_dim], lse: f64::NEG_INFINITY }
    }

    /// Of a set of keys, by their logits and values.
    pub fn of(logits: &[f64], values: &[&[f64]], value_dim: usize) -> Self {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, larger);
        if max == f64::NEG_INFINITY {
            return Self::empty(value_dim);
        }
        let weights: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut o = vec![0.0; value_dim];
        for (weight, value) in weights.iter().zip(values) {
            for (o, v) in o.iter_mut().zip(*value) {
                *o += weight * v;
            }
        }
        o.iter_mut().for_each(|o| *o /= sum);
        Self { o, lse: max + sum.ln() }
    }

    /// With one more logit that has no value.
    pub fn with_sink(&self, sink: f64) -> Self {
        merge_pair(self, &Self { o: vec![0.0; self.o.len()], lse: sink })
    }
}

/// The state of the union of disjoint sets: the softmax of the `lse` weighs the averages. A state of no keys is not looked at.
///
/// `value_dim` is for the case that there are no states.
pub fn merge(states: &[State], value_dim: usize) -> State {
    let states: Vec<&State> = states.iter().filter(|s| s.lse != f64::NEG_INFINITY).collect();
    let logits: Vec<f64> = states.iter().map(|s| s.lse).collect();
    let values: Vec<&[f64]> = states.iter().map(|s| s.o.as_slice()).collect();
    State::of(&logits, &values, value_dim)
}

/// The same of two, as kernels do it in place: `o_a - sigmoid(lse_b - lse_a) (o_a - o_b)`, and the larger `lse` plus
/// `ln(1 + exp(-|difference|))`.
pub fn merge_pair(a: &State, b: &State) -> State {
    if b.lse == f64::NEG_INFINITY {
        return a.clone();
    }
    if a.lse == f64::NEG_INFINITY {
        return b.clone();
    }
    let difference = b.lse - a.lse;
    let share = 1.0 / (1.0 + (-difference).exp());
    let o = a.o.iter().zip(&b.o).map(|(a, b)| a - share * (a - b)).collect();
    State { o, lse: larger(a.lse, b.lse) + (-difference.abs()).exp().ln_1p() }
}

/// The larger one; NaN if either is.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
