//! Running sums of exponentials, and LightNet's gates: `z[t] = log(e^z[t-1] + e^x[t])`, one loop per channel.
//!
//! A [`Scan`] says what runs over what: `split` is 0 for reverse, the number of channels for forward, and `initial` is `z` before
//! the first token, `-inf` without. A cut starts the sum anew. `x = -inf` masks a token.

use crate::gated_scan::{Scan, Sequence};

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,D]`: logarithms of the sums.
    pub z: Vec<f64>,
    /// `[B,T,D]`: `e^(x[t] - z[t])`.
    pub k: Vec<f64>,
    /// `[B,T,D]`: `z[t-1] - z[t]`, 0 where `z[t-1] = -inf`.
    pub g: Vec<f64>,
    /// `[N,D]`: `z` after the last token of each sequence.
    pub last: Vec<f64>,
}

/// What is known of the adjoints of `z`, `k` and `g`, all `[B,T,D]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adjoint<'a> {
    /// Of `z`.
    pub dz: Option<&'a [f64]>,
    /// Of `k`.
    pub dk: Option<&'a [f64]>,
    /// Of `g`.
    pub dg: Option<&'a [f64]>,
    /// `q` and its adjoint, in place of `dg`: a linear attention made of the gates was read by `q`.
    pub reads: Option<(&'a [f64], &'a [f64])>,
    /// `[N,D]`, of `last`.
    pub d_last: Option<&'a [f64]>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// `[B,T,D]`.
    pub dx: Vec<f64>,
    /// `[N,D]`.
    pub d_initial: Vec<f64>,
}

fn initial(scan: &Scan, sequence: &Sequence, d: usize) -> f64 {
    match (scan.initial, sequence.state) {
        (Some(initial), Some(n)) => initial[n * scan.channels + d],
        _ => f64::NEG_INFINITY,
    }
}

/// `log(e^a + e^b)`.
fn log_add_exp(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// The sums and the gates.
pub fn forward(scan: &Scan, x: &[f64]) -> Forward {
    let zeros = vec![0.0; x.len()];
    let mut out =
        Forward { z: zeros.clone(), k: zeros.clone(), g: zeros, last: vec![0.0; scan.states() * scan.channels] };
    for sequence in scan.sequences() {
        for d in 0..scan.channels {
            let mut z = initial(scan, &sequence, d);
            for t in scan.order(&sequence, d) {
                let i = scan.at(sequence.row, t, d);
                let before = if scan.is_cut(sequence.row, t, d) { f64::NEG_INFINITY } else { z };
                z = log_add_exp(before, x[i]);
                out.z[i] = z;
                out.k[i] = if z == f64::NEG_INFINITY { 0.0 } else { (x[i] - z).exp() };
                out.g[i] = if before == f64::NEG_INFINITY { 0.0 } else { -(x[i] - before).exp().ln_1p() };
            }
            if let Some(n) = sequence.state {
                out.last[n * scan.channels + d] = z;
            }
        }
    }
    out
}

/// Adjoint of [`forward`] for its `x` and `z`: walks against the forward direction with `r`, the adjoint of `z`.
pub fn backward(scan: &Scan, x: &[f64], z: &[f64], adjoint: &Adjoint) -> Backward {
    let at = |values: Option<&[f64]>, i: usize| values.map_or(0.0, |v| v[i]);
    let mut out = Backward { dx: vec![0.0; x.len()], d_initial: vec![0.0; scan.states() * scan.channels] };
    for sequence in scan.sequences() {
        for d in 0..scan.channels {
            let order = scan.order(&sequence, d);
            let mut carry = sequence.state.map_or(0.0, |n| at(adjoint.d_last, n * scan.channels + d));
            for step in (0..order.len()).rev() {
                let i = scan.at(sequence.row, order[step], d);
                let before = match step {
                    _ if scan.is_cut(sequence.row, order[step], d) => f64::NEG_INFINITY,
                    0 => initial(scan, &sequence, d),
                    _ => z[scan.at(sequence.row, order[step - 1], d)],
                };
                let k = if x[i] == f64::NEG_INFINITY { 0.0 } else { (x[i] - z[i]).exp() };
                let dg = if before == f64::NEG_INFINITY { 0.0 } else { at(adjoint.dg, i) };
                let dk = at(adjoint.dk, i);
                let own = adjoint.reads.map_or(k * dk + dg, |(q, dq)| q[i] * dq[i]);
                let r = at(adjoint.dz, i) - own + carry;
                out.dx[i] = k * (dk + r);
                carry = if before == f64::NEG_INFINITY { 0.0 } else { (before - z[i]).exp() * r + dg };
            }
            if let Some(n) = sequence.state {
                out.d_initial[n * scan.channels + d] = carry;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(phase: f64, n: usize) -> Vec<f64> {
        (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
    }

    fn scan(seq_len: usize, channels: usize) -> Scan<'static> {
        Scan { batch: 1, seq_len, channels, split: channels, flags: None, cu_seqlens: None, initial: None }
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Sum, sum of absolute values, last element, as the golden table lists them.
    fn check(name: &str, values: &[f64], [sum, abs, last]: [f64; 3]) {
        let got = [values.iter().sum(), values.iter().map(|v| v.abs()).sum(), values[values.len() - 1]];
        for (got, want) in got.into_iter().zip([sum, abs, last]) {
            assert!((got - want).abs() < 1e-8, "{name}: {got} is not {want}");
        }
    }

    /// The state of a linear attention with these gates, walked token by token: `(o, S)`.
    fn attend(q: &[f64], gates: &Forward, v: &[f64], [t, k, m]: [usize; 3]) -> (Vec<f64>, Vec<f64>) {
        let (mut state, mut o) = (vec![0.0; k * m], vec![0.0; t * m]);
        for t in 0..t {
            for (c, state) in state.iter_mut().enumerate() {
                let (key, value) = (t * k + c / m, t * m + c % m);
                *state = gates.g[key].exp() * *state + gates.k[key] * v[value];
                o[value] += q[key] * *state;
            }
        }
        (o, state)
    }

    #[test]
    fn light_net_matches_the_golden_vector() {
        let dims = [9, 4, 3];
        let logits: Vec<f64> = golden(2.0, 36).iter().map(|v| 2.0 * v).collect();
        let gates = forward(&scan(9, 4), &logits);
        check("z", &gates.last, [12.079664112, 12.079664112, 2.955628238]);
        let (o, state) = attend(&golden(1.0, 36), &gates, &golden(3.0, 27), dims);
        check("o", &o, [0.003362112, 10.739821739, -0.132655940]);
        check("S", &state, [0.141833577, 1.761570597, -0.236314848]);
    }

    #[test]
    fn masked_tokens_add_nothing() {
        let masked = f64::NEG_INFINITY;
        let out = forward(&scan(4, 1), &[masked, 1.0, masked, 2.0]);
        assert_eq!(out.k[..3], [0.0, 1.0, 0.0]);
        assert_eq!(out.g[..3], [0.0, 0.0, 0.0]);
        assert_eq!((out.z[0], out.z[2]), (masked, 1.0));
        let (x, dz) = ([masked, 1.0, masked, 2.0], [1.0; 4]);
        let dx = backward(&scan(4, 1), &x, &out.z, &Adjoint { dz: Some(&dz), ..Adjoint::default() }).dx;
        let share = (1.0 - out.z[3]).exp();
        assert_eq!([dx[0], dx[2]], [0.0, 0.0]);
        assert!((dx[1] - (2.0 + share)).abs() < 1e-12 && (dx[3] - (1.0 - share)).abs() < 1e-12, "{dx:?}");
    }

    /// Central differences of a weighted sum of every output, for every input, with flags, packing and states, both ways.
    #[test]
    fn backward_is_the_slope() {
        let (t, d) = (11, 3);
        let flags = [0, 0, 1, 2, 0, 0, 3, 0, 0, 1, 0];
        let (h0, cu) = (golden(4.0, 3 * d), [0, 5, 5, 9]);
        for split in [0, d] {
            for cu_seqlens in [None, Some(cu.as_slice())] {
                let states = if cu_seqlens.is_some() { 3 } else { 1 };
                let h0 = &h0[..states * d];
                let scan =
                    Scan { split, flags: Some(&flags), cu_seqlens, initial: Some(h0), ..super::tests::scan(t, d) };
                let x = golden(1.0, t * d);
                let [dz, dk, dg] = [5.0, 6.0, 7.0].map(|phase| golden(phase, t * d));
                let d_last = golden(8.0, states * d);
                let loss = |scan: &Scan, x: &[f64]| {
                    let out = forward(scan, x);
                    dot(&out.z, &dz) + dot(&out.k, &dk) + dot(&out.g, &dg) + dot(&out.last, &d_last)
                };
                let adjoint =
                    Adjoint { dz: Some(&dz), dk: Some(&dk), dg: Some(&dg), reads: None, d_last: Some(&d_last) };
                let got = backward(&scan, &x, &forward(&scan, &x).z, &adjoint);
                let step = 1e-5;
                for i in 0..x.len() {
                    let moved = |by: f64| {
                        let mut x = x.clone();
                        x[i] += by;
                        loss(&scan, &x)
                    };
                    let slope = (moved(step) - moved(-step)) / (2.0 * step);
                    assert!((slope - got.dx[i]).abs() < 1e-8, "split {split}, dx[{i}]: {} is not {slope}", got.dx[i]);
                }
                for i in 0..h0.len() {
                    let moved = |by: f64| {
                        let mut h0 = h0.to_vec();
                        h0[i] += by;
                        loss(&Scan { initial: Some(&h0), ..scan }, &x)
                    };
                    let slope = (moved(step) - moved(-step)) / (2.0 * step);
                    assert!((slope - got.d_initial[i]).abs() < 1e-8, "split {split}, d_initial[{i}]");
                }
            }
        }
    }

    /// `q dq` in place of `dg` gives the gradient of the whole attention.
    #[test]
    fn reads_stand_for_the_adjoint_of_the_decay() {
        let dims @ [t, k, m] = [9, 4, 3];
        let (q, x, v, d_o) = (golden(1.0, t * k), golden(2.0, t * k), golden(3.0, t * m), golden(5.0, t * m));
        let z0 = golden(6.0, k);
        for initial in [None, Some(z0.as_slice())] {
            let scan = Scan { initial, ..scan(t, k) };
            let loss = |x: &[f64]| dot(&attend(&q, &forward(&scan, x), &v, dims).0, &d_o);
            let gates = forward(&scan, &x);
            // dq reads the state; dk reads the adjoint of the state, which walks back.
            let (mut state, mut dq) = (vec![0.0; k * m], vec![0.0; t * k]);
            for t in 0..t {
                for (c, state) in state.iter_mut().enumerate() {
                    let (key, value) = (t * k + c / m, t * m + c % m);
                    *state = gates.g[key].exp() * *state + gates.k[key] * v[value];
                    dq[key] += d_o[value] * *state;
                }
            }
            let (mut d_state, mut dk) = (vec![0.0; k * m], vec![0.0; t * k]);
            for t in (0..t).rev() {
                for (c, d_state) in d_state.iter_mut().enumerate() {
                    let (key, value) = (t * k + c / m, t * m + c % m);
                    *d_state += q[key] * d_o[value];
                    dk[key] += *d_state * v[value];
                    *d_state *= gates.g[key].exp();
                }
            }
            let adjoint = Adjoint { dk: Some(&dk), reads: Some((&q, &dq)), ..Adjoint::default() };
            let got = backward(&scan, &x, &gates.z, &adjoint).dx;
            for i in 0..x.len() {
                let moved = |by: f64| {
                    let mut x = x.clone();
                    x[i] += by;
                    loss(&x)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - got[i]).abs() < 1e-8, "dx[{i}]: {} is not {slope}", got[i]);
            }
        }
    }
}
