//! The softmax and its average.

use super::{Attention, Inputs, state::State};

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,Tq,H,V]`.
    pub o: Vec<f64>,
    /// `[B,Tq,H]` natural logarithms of the sums of exponentials.
    pub lse: Vec<f64>,
}

/// Every row of every head. Rows that belong to no sequence get the state of no keys.
pub fn forward(attention: &Attention, inputs: &Inputs) -> Forward {
    let Attention { heads, key_heads, head_dim, value_dim, .. } = *attention;
    let rows = attention.batch * attention.query_len * heads;
    let mut out = Forward { o: vec![0.0; rows * value_dim], lse: vec![f64::NEG_INFINITY; rows] };
    for row in attention.rows() {
        for h in 0..heads {
            let q = Attention::at(inputs.q, row.query, h, heads, head_dim);
            let hk = attention.key_head(h);
            let mut logits = Vec::with_capacity(row.keys.len());
            let mut values = Vec::with_capacity(row.keys.len());
            for j in &row.keys {
                let k = Attention::at(inputs.k, row.first_key + j, hk, key_heads, head_dim);
                logits.push(attention.logit(h, q, k, *j, row.position));
                values.push(Attention::at(inputs.v, row.first_key + j, hk, key_heads, value_dim));
            }
            let state = State::of(&logits, &values, value_dim);
            let state = attention.sink.map_or(state.clone(), |sink| state.with_sink(sink[h]));
            let at = row.query * heads + h;
            out.o[at * value_dim..][..value_dim].copy_from_slice(&state.o);
            out.lse[at] = state.lse;
        }
    }
    out
}
