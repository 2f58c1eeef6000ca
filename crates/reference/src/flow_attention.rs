//! Flow-Attention (Wu et al., Flowformer): linear attention whose queries and keys conserve flow, the oracle.
//!
//! Per sequence and head, with `q` and `k` mapped to positive numbers by a sigmoid and `e` added to both sides of every product:
//! the flow into a query is its product with the sum of all keys, the flow out of a key its product with the sum of all queries.
//! Divided by them, the other side's sum gives what a query receives (`allocation`, a sigmoid) and what a key sends
//! (`competition`, a softmax over keys). Causal sums go as far as the token, and are averages: divided by their number.

use std::ops::Range;

/// Added to both factors of every product.
pub const EPSILON: f64 = 1e-6;

/// What an attention runs over, and its variants.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Rows.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens of a row of `q`.
    pub queries: usize,
    /// Tokens of a row of `k` and `v`; as many as queries if causal.
    pub keys: usize,
    /// Entries of a query or key.
    pub key_dim: usize,
    /// Entries of a value.
    pub value_dim: usize,
    /// A token sees itself and those before it, else all.
    pub causal: bool,
    /// Bound of the conserved flow out of a key, from both sides.
    pub clamp: Option<f64>,
    /// Added to every product once more.
    pub extra_eps: f64,
    /// `q` and `k` are positive already.
    pub mapped: bool,
    /// `[N+1]` starts of packed sequences of queries in the only row.
    pub cu_seqlens: Option<&'a [i32]>,
    /// The same of keys; those of queries without.
    pub cu_seqlens_k: Option<&'a [i32]>,
}

/// Adjoints of the inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[B,L,H,K]`.
    pub dq: Vec<f64>,
    /// `[B,S,H,K]`.
    pub dk: Vec<f64>,
    /// `[B,S,H,V]`.
    pub dv: Vec<f64>,
}

type Matrix = Vec<Vec<f64>>;

/// Everything that a forward pass of one sequence and head computes on its way.
struct Pass {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// Tokens that a query, or a key, sees.
    n: Vec<f64>,
    source_in: Vec<f64>,
    source_out: Vec<f64>,
    allocation: Vec<f64>,
    /// Flow out of each key, conserved, before the clamp.
    flow_out: Vec<f64>,
    /// Logarithm of the softmax's denominator at each key.
    lse: Vec<f64>,
    competition: Vec<f64>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Each row `sum over i <= t of weight[i] rows[i]`, or over all.
fn sums(rows: &Matrix, weight: &[f64], width: usize, running: bool) -> Matrix {
    let mut sum = vec![0.0; width];
    let mut out = Matrix::new();
    for (row, w) in rows.iter().zip(weight) {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += w * x);
        out.push(sum.clone());
    }
    if running { out } else { vec![sum] }
}

/// The adjoint: what follows, or all.
fn sums_back(rows: &Matrix, weight: &[f64], width: usize, running: bool) -> Matrix {
    let backwards = rows.iter().rev().cloned().collect();
    let weight: Vec<f64> = weight.iter().rev().copied().collect();
    let mut out = sums(&backwards, &weight, width, running);
    out.reverse();
    out
}

fn row(sums: &Matrix, t: usize) -> &[f64] {
    &sums[if sums.len() == 1 { 0 } else { t }]
}

impl Flow<'_> {
    fn sequences(&self) -> Vec<(usize, Range<usize>, Range<usize>)> {
        let Some(cu) = self.cu_seqlens else {
            return (0..self.batch).map(|b| (b, 0..self.queries, 0..self.keys)).collect();
        };
        let range = |w: &[i32]| w[0] as usize..w[1] as usize;
        let keys = self.cu_seqlens_k.unwrap_or(cu);
        cu.windows(2).zip(keys.windows(2)).map(|(q, k)| (0, range(q), range(k))).collect()
    }

    /// First element of a row of a `[B,T,H,width]` tensor.
    fn at(&self, tokens: usize, width: usize, [b, t, h]: [usize; 3]) -> usize {
        ((b * tokens + t) * self.heads + h) * width
    }

    fn gather(&self, x: &[f64], tokens: usize, width: usize, (b, range, h): (usize, &Range<usize>, usize)) -> Matrix {
        range.clone().map(|t| x[self.at(tokens, width, [b, t, h])..][..width].to_vec()).collect()
    }

    fn map(&self, rows: Matrix) -> Matrix {
        let of = |x: f64| if self.mapped { x } else { sigmoid(x) };
        rows.into_iter().map(|row| row.into_iter().map(of).collect()).collect()
    }

    /// A product with both factors raised, and the extra.
    fn product(&self, x: &[f64], sum: &[f64]) -> f64 {
        x.iter().zip(sum).map(|(x, s)| (x + EPSILON) * (s + EPSILON)).sum::<f64>() + self.extra_eps
    }

    fn clamped(&self, x: f64) -> f64 {
        self.clamp.map_or(x, |c| x.clamp(-c, c))
    }

    fn pass(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        b: usize,
        (lq, lk): (&Range<usize>, &Range<usize>),
        h: usize,
    ) -> Pass {
        let (d, running) = (self.key_dim, self.causal);
        let q = self.map(self.gather(q, self.queries, d, (b, lq, h)));
        let k = self.map(self.gather(k, self.keys, d, (b, lk, h)));
        let v = self.gather(v, self.keys, self.value_dim, (b, lk, h));
        let (l, s) = (q.len(), k.len());
        // Causal averages are over as many tokens as are seen; the others are sums.
        let n: Vec<f64> = (0..l.max(s)).map(|t| if running { t as f64 + 1.0 } else { 1.0 }).collect();
        let (sum_k, sum_q) = (sums(&k, &vec![1.0; s], d, running), sums(&q, &vec![1.0; l], d, running));
        let source_in: Vec<f64> = (0..l).map(|t| n[t] / self.product(&q[t], row(&sum_k, t))).collect();
        let source_out: Vec<f64> = (0..s).map(|t| n[t] / self.product(&k[t], row(&sum_q, t))).collect();
        let (sum_k, sum_q) = (sums(&k, &source_out, d, running), sums(&q, &source_in, d, running));
        let ratio = if running || s == 0 { 1.0 } else { l as f64 / s as f64 };
        let allocation = (0..l).map(|t| sigmoid(self.product(&q[t], row(&sum_k, t)) / n[t] * ratio)).collect();
        let flow_out: Vec<f64> = (0..s).map(|t| self.product(&k[t], row(&sum_q, t)) / n[t]).collect();
        let mut lse = Vec::new();
        let mut so_far = f64::NEG_INFINITY;
        for flow in &flow_out {
            let (x, top) = (self.clamped(*flow), so_far.max(self.clamped(*flow)));
            so_far = top + ((so_far - top).exp() + (x - top).exp()).ln();
            lse.push(so_far);
        }
        if !running {
            lse.fill(so_far);
        }
        let weigh = |t: usize| (self.clamped(flow_out[t]) - lse[t]).exp() * if running { n[t] } else { s as f64 };
        let competition = (0..s).map(weigh).collect();
        Pass { q, k, v, n, source_in, source_out, allocation, flow_out, lse, competition }
    }
}

/// `[B,L,H,V]`: `out[i] = allocation[i] (q[i] source_in[i])^T sum over j of k[j] competition[j] v[j]^T`, over all keys, or, divided by
/// their number, over those up to `i`. `q` is `[B,L,H,K]`, `k` `[B,S,H,K]`, `v` `[B,S,H,V]`.
pub fn forward(flow: &Flow, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let m = flow.value_dim;
    let mut out = vec![0.0; flow.batch * flow.queries * flow.heads * m];
    for (b, lq, lk) in flow.sequences() {
        for h in 0..flow.heads {
            let pass = flow.pass(q, k, v, b, (&lq, &lk), h);
            for (i, t) in lq.clone().enumerate() {
                let seen = if flow.causal { i + 1 } else { pass.k.len() };
                let factor = pass.allocation[i] * pass.source_in[i] / pass.n[i];
                let out = &mut out[flow.at(flow.queries, m, [b, t, h])..][..m];
                for j in 0..seen {
                    let weight = factor * dot(&pass.q[i], &pass.k[j]) * pass.competition[j];
                    out.iter_mut().zip(&pass.v[j]).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    out
}

/// Adjoint of [`forward`].
pub fn backward(flow: &Flow, q: &[f64], k: &[f64], v: &[f64], d_out: &[f64]) -> Backward {
    let (d, m) = (flow.key_dim, flow.value_dim);
    let mut out = Backward { dq: vec![0.0; q.len()], dk: vec![0.0; k.len()], dv: vec![0.0; v.len()] };
    for (b, lq, lk) in flow.sequences() {
        for h in 0..flow.heads {
            let pass = flow.pass(q, k, v, b, (&lq, &lk), h);
            let d_out = flow.gather(d_out, flow.queries, m, (b, &lq, h));
            let (dq, dk, dv) = flow.pass_backward(&pass, &d_out);
            for (gradient, values, range, tokens, width) in [
                (&mut out.dq, dq, &lq, flow.queries, d),
                (&mut out.dk, dk, &lk, flow.keys, d),
                (&mut out.dv, dv, &lk, flow.keys, m),
            ] {
                for (row, t) in values.iter().zip(range.clone()) {
                    gradient[flow.at(tokens, width, [b, t, h])..][..width].copy_from_slice(row);
                }
            }
        }
    }
    out
}

impl Flow<'_> {
    fn pass_backward(&self, pass: &Pass, d_out: &Matrix) -> (Matrix, Matrix, Matrix) {
        let Pass { q, k, v, n, source_in, source_out, allocation, flow_out, lse, competition } = pass;
        let (d, running, l, s) = (self.key_dim, self.causal, q.len(), k.len());
        let add = |to: &mut [f64], factor: f64, x: &[f64]| to.iter_mut().zip(x).for_each(|(t, x)| *t += factor * x);
        let raised =
            |rows: &Matrix| -> Matrix { rows.iter().map(|r| r.iter().map(|x| x + EPSILON).collect()).collect() };
        let raise = |row: &[f64]| -> Vec<f64> { row.iter().map(|x| x + EPSILON).collect() };

        // The weights of pairs: w_ij = factor_i (q_i . k_j) competition_j.
        let (mut dq, mut dk) = (vec![vec![0.0; d]; l], vec![vec![0.0; d]; s]);
        let mut dv = vec![vec![0.0; self.value_dim]; s];
        let (mut d_factor, mut d_competition) = (vec![0.0; l], vec![0.0; s]);
        for i in 0..l {
            let factor = allocation[i] * source_in[i] / n[i];
            for j in 0..if running { i + 1 } else { s } {
                let (score, dw) = (dot(&q[i], &k[j]), dot(&d_out[i], &v[j]));
                add(&mut dv[j], factor * score * competition[j], &d_out[i]);
                add(&mut dq[i], dw * factor * competition[j], &k[j]);
                add(&mut dk[j], dw * factor * competition[j], &q[i]);
                d_factor[i] += dw * score * competition[j];
                d_competition[j] += dw * factor * score;
            }
        }

        // The softmax: competition_j = count_j e^(x_j - lse_j).
        let pull: Vec<f64> = (0..s).map(|j| d_competition[j] * competition[j]).collect();
        let last = |j: usize| if running { j } else { 0 };
        let d_flow: Vec<f64> = (0..s)
            .map(|j| {
                let x = self.clamped(flow_out[j]);
                let back: f64 = (last(j)..s).map(|i| pull[i] * (x - lse[i]).exp()).sum();
                if self.clamp.is_some_and(|c| flow_out[j].abs() > c) { 0.0 } else { pull[j] - back }
            })
            .collect();
        let ratio = if running || s == 0 { 1.0 } else { l as f64 / s as f64 };
        let d_sink: Vec<f64> =
            (0..l).map(|i| d_factor[i] * source_in[i] / n[i] * allocation[i] * (1.0 - allocation[i]) * ratio).collect();

        // Conserved flows, then the flows themselves.
        let over_n = |x: &[f64]| -> Vec<f64> { x.iter().zip(n).map(|(x, n)| x / n).collect() };
        let (sum_k, sum_q) = (sums(k, source_out, d, running), sums(q, source_in, d, running));
        let (by_flow, by_sink) = (over_n(&d_flow), over_n(&d_sink));
        let (d_sum_q, d_sum_k) =
            (sums_back(&raised(k), &by_flow, d, running), sums_back(&raised(q), &by_sink, d, running));
        let (mut d_in, mut d_out) = (vec![0.0; l], vec![0.0; s]);
        for i in 0..l {
            add(&mut dq[i], by_sink[i], &raise(row(&sum_k, i)));
            add(&mut dq[i], source_in[i], row(&d_sum_q, i));
            d_in[i] = d_factor[i] * allocation[i] / n[i] + dot(&q[i], row(&d_sum_q, i));
            d_in[i] *= -source_in[i] * source_in[i] / n[i];
        }
        for j in 0..s {
            add(&mut dk[j], by_flow[j], &raise(row(&sum_q, j)));
            add(&mut dk[j], source_out[j], row(&d_sum_k, j));
            d_out[j] = dot(&k[j], row(&d_sum_k, j)) * -source_out[j] * source_out[j] / n[j];
        }
        let (sum_k, sum_q) = (sums(k, &vec![1.0; s], d, running), sums(q, &vec![1.0; l], d, running));
        let (back_k, back_q) = (sums_back(&raised(q), &d_in, d, running), sums_back(&raised(k), &d_out, d, running));
        for i in 0..l {
            add(&mut dq[i], d_in[i], &raise(row(&sum_k, i)));
            add(&mut dq[i], 1.0, row(&back_q, i));
        }
        for j in 0..s {
            add(&mut dk[j], d_out[j], &raise(row(&sum_q, j)));
            add(&mut dk[j], 1.0, row(&back_k, j));
        }
        if !self.mapped {
            for (gradient, mapped) in dq.iter_mut().zip(q).chain(dk.iter_mut().zip(k)) {
                gradient.iter_mut().zip(mapped).for_each(|(g, x)| *g *= x * (1.0 - x));
            }
        }
        (dq, dk, dv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(phase: f64, n: usize) -> Vec<f64> {
        (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
    }

    const CAUSAL: Flow<'_> = Flow {
        batch: 1,
        heads: 1,
        queries: 9,
        keys: 9,
        key_dim: 4,
        value_dim: 3,
        causal: true,
        clamp: Some(1.0),
        extra_eps: 0.0,
        mapped: false,
        cu_seqlens: None,
        cu_seqlens_k: None,
    };

    fn check(flow: Flow, [sum, abs, last]: [f64; 3]) {
        let q = &golden(1.0, 36)[..flow.queries * 4];
        let out = forward(&flow, q, &golden(2.0, 36), &golden(3.0, 27));
        let got = [out.iter().sum(), out.iter().map(|v| v.abs()).sum(), out[out.len() - 1]];
        for (got, want) in got.into_iter().zip([sum, abs, last]) {
            assert!((got - want).abs() < 1e-8, "{flow:?}: {got} is not {want}");
        }
    }

    #[test]
    fn forward_matches_the_golden_vectors() {
        check(CAUSAL, [-0.772745250, 3.209217837, -0.037487846]);
        check(Flow { clamp: Some(10.0), ..CAUSAL }, [-0.996834504, 3.506928400, -0.078110609]);
        check(Flow { causal: false, queries: 6, ..CAUSAL }, [-0.246299359, 0.961506544, -0.049963929]);
    }

    #[test]
    fn packed_sequences_equal_a_loop_over_sequences() {
        let (cu, cu_k) = ([0, 4, 4, 9], [0, 2, 3, 9]);
        let (q, k, v) = (golden(1.0, 9 * 8), golden(2.0, 9 * 8), golden(3.0, 9 * 6));
        for causal in [true, false] {
            let cu_seqlens_k = (!causal).then_some(cu_k.as_slice());
            let packed = Flow { heads: 2, causal, cu_seqlens: Some(&cu), cu_seqlens_k, ..CAUSAL };
            let whole = forward(&packed, &q, &k, &v);
            for n in 0..3 {
                let range = |cu: &[i32]| cu[n] as usize..cu[n + 1] as usize;
                let (lq, lk) = (range(&cu), range(cu_seqlens_k.unwrap_or(&cu)));
                let one = Flow { cu_seqlens: None, cu_seqlens_k: None, queries: lq.len(), keys: lk.len(), ..packed };
                let cut = |x: &[f64], r: &Range<usize>, w: usize| x[r.start * w..r.end * w].to_vec();
                let alone = forward(&one, &cut(&q, &lq, 8), &cut(&k, &lk, 8), &cut(&v, &lk, 6));
                assert_eq!(alone, cut(&whole, &lq, 6), "sequence {n}");
            }
        }
    }

    /// Central differences of a weighted sum of the output, away from the clamp's edge.
    #[test]
    fn backward_is_the_slope() {
        let variants = [
            CAUSAL,
            Flow { clamp: Some(10.0), extra_eps: 1e-3, ..CAUSAL },
            Flow { clamp: None, heads: 2, key_dim: 2, ..CAUSAL },
            Flow { causal: false, queries: 6, ..CAUSAL },
            Flow { causal: false, queries: 6, clamp: None, extra_eps: 1e-3, ..CAUSAL },
            Flow { causal: false, clamp: Some(1.1), keys: 5, batch: 2, ..CAUSAL },
            Flow { causal: true, mapped: true, ..CAUSAL },
        ];
        for flow in variants {
            let rows = flow.batch * flow.heads;
            let positive =
                |x: Vec<f64>| -> Vec<f64> { if flow.mapped { x.iter().map(|x| x.abs() + 0.1).collect() } else { x } };
            let mut inputs = [
                positive(golden(1.0, rows * flow.queries * flow.key_dim)),
                positive(golden(2.0, rows * flow.keys * flow.key_dim)),
                golden(3.0, rows * flow.keys * flow.value_dim),
            ];
            let d_out = golden(5.0, rows * flow.queries * flow.value_dim);
            let got = backward(&flow, &inputs[0], &inputs[1], &inputs[2], &d_out);
            for (which, gradient) in [got.dq, got.dk, got.dv].into_iter().enumerate() {
                for i in 0..gradient.len() {
                    let there = inputs[which][i];
                    let mut loss = |x: f64| {
                        inputs[which][i] = x;
                        dot(&forward(&flow, &inputs[0], &inputs[1], &inputs[2]), &d_out)
                    };
                    let slope = (loss(there + 1e-5) - loss(there - 1e-5)) / 2e-5;
                    inputs[which][i] = there;
                    let off = (slope - gradient[i]).abs();
                    assert!(off < 1e-7, "{flow:?}: input {which}, {i}: {} is not {slope}", gradient[i]);
                }
            }
        }
    }
}
