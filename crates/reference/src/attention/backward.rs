//! The adjoint, from the final log-sum-exp.

use super::{Attention, Inputs};

/// What [`backward`] starts from: rows of the whole softmax, whatever block of keys is being differentiated.
#[derive(Debug, Clone, Copy)]
pub struct Adjoint<'a> {
    /// `[B,Tq,H,V]` gradient of `o`.
    pub d_o: &'a [f64],
    /// `[B,Tq,H]` the final log-sum-exp, over all keys and the sink.
    pub lse: &'a [f64],
    /// `[B,Tq,H]` from the final output, see [`delta`].
    pub delta: &'a [f64],
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// `[B,Tq,H,D]`.
    pub dq: Vec<f64>,
    /// `[B,Tk,Hk,D]`.
    pub dk: Vec<f64>,
    /// `[B,Tk,Hk,V]`.
    pub dv: Vec<f64>,
    /// `[H]`; empty without a sink. Only one of the blocks of keys has the sink.
    pub dsink: Vec<f64>,
}

/// `[B,Tq,H]`: `sum_d do_d o_d - dlse`, from the final `o`; `d_lse` is the gradient of `lse`, zero without.
pub fn delta(o: &[f64], d_o: &[f64], d_lse: Option<&[f64]>, value_dim: usize) -> Vec<f64> {
    let dots = o.chunks(value_dim).zip(d_o.chunks(value_dim)).map(|(o, d)| o.iter().zip(d).map(|(o, d)| o * d).sum());
    dots.enumerate().map(|(i, dot): (usize, f64)| dot - d_lse.map_or(0.0, |d| d[i])).collect()
}

/// Gradients of one block of queries and keys. Those of several blocks add up.
///
/// `p = exp(x - lse)`, `dv += p do`, `dx = p (do . v - delta)`, through the cap and the scale to `q` and `k`;
/// `dsink = -sum exp(sink - lse) delta`.
pub fn backward(attention: &Attention, inputs: &Inputs, adjoint: &Adjoint) -> Gradients {
    let Attention { heads, key_heads, head_dim, value_dim, .. } = *attention;
    let mut out = Gradients {
        dq: vec![0.0; inputs.q.len()],
        dk: vec![0.0; inputs.k.len()],
        dv: vec![0.0; inputs.v.len()],
        dsink: vec![0.0; attention.sink.map_or(0, <[f64]>::len)],
    };
    for row in attention.rows() {
        for h in 0..heads {
            let at = row.query * heads + h;
            let (lse, delta) = (adjoint.lse[at], adjoint.delta[at]);
            if lse == f64::NEG_INFINITY {
                continue;
            }
            if let Some(sink) = attention.sink {
                out.dsink[h] -= (sink[h] - lse).exp() * delta;
            }
            let q = Attention::at(inputs.q, row.query, h, heads, head_dim);
            let d_o = Attention::at(adjoint.d_o, row.query, h, heads, value_dim);
            for j in &row.keys {
                let key = (row.first_key + j) * key_heads + attention.key_head(h);
                let k = &inputs.k[key * head_dim..][..head_dim];
                let v = &inputs.v[key * value_dim..][..value_dim];
                let (capped, through_cap) = attention.capped(q, k);
                let x = capped + attention.slope(h) * (*j as i64 - row.position) as f64;
                let p = (x - lse).exp();
                let dp: f64 = d_o.iter().zip(v).map(|(d, v)| d * v).sum();
                let ds = attention.scale * through_cap * p * (dp - delta);
                for (dv, d) in out.dv[key * value_dim..].iter_mut().zip(d_o) {
                    *dv += p * d;
                }
                for d in 0..head_dim {
                    out.dq[at * head_dim + d] += ds * k[d];
                    out.dk[key * head_dim + d] += ds * q[d];
                }
            }
        }
    }
    out
}
