//! The identity that the device's backward pass rests on: its three gradients are three walks with the roles of `q`, `k`, `v` and the
//! output's adjoint swapped, and the gradient of the decay follows from two of them. Here in f64 against the adjoint of the recurrence.

use super::tests::{Data, data, flags_of};
use super::*;

/// When a walk reads.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    DecayAddRead,
    AddReadDecay,
    ReadDecayAdd,
}

/// A walk over one sequence and head; `late` cuts follow a token instead of preceding it.
struct Roles<'a> {
    q: &'a [f64],
    k: &'a [f64],
    v: &'a [f64],
    /// `[T,K]`, or `[T,V]` if `by_value`.
    g: &'a [f64],
    by_value: bool,
    order: Order,
    late: bool,
    reverse: bool,
    cuts: &'a [bool],
    scale: f64,
}

/// `[K,V]` states before and after, rows `[T,V]`.
fn walk(roles: &Roles, mut state: Vec<f64>, keys: usize, values: usize) -> (Vec<f64>, Vec<f64>) {
    let tokens = roles.cuts.len();
    let mut out = vec![0.0; tokens * values];
    let visit: Vec<usize> = if roles.reverse { (0..tokens).rev().collect() } else { (0..tokens).collect() };
    for t in visit {
        let (q, k, v) = (&roles.q[t * keys..], &roles.k[t * keys..], &roles.v[t * values..]);
        let decay = |state: &mut [f64]| {
            for (at, s) in state.iter_mut().enumerate() {
                let (i, j) = (at / values, at % values);
                *s *= if roles.by_value { roles.g[t * values + j] } else { roles.g[t * keys + i] }.exp();
            }
        };
        let add = |state: &mut [f64]| (0..keys * values).for_each(|at| state[at] += k[at / values] * v[at % values]);
        let mut read = |state: &[f64]| {
            for at in 0..keys * values {
                out[t * values + at % values] += roles.scale * q[at / values] * state[at];
            }
        };
        if roles.cuts[t] && !roles.late {
            state.fill(0.0);
        }
        match roles.order {
            Order::DecayAddRead => {
                decay(&mut state);
                add(&mut state);
                read(&state);
            }
            Order::AddReadDecay => {
                add(&mut state);
                read(&state);
                decay(&mut state);
            }
            Order::ReadDecayAdd => {
                read(&state);
                decay(&mut state);
                add(&mut state);
            }
        }
        if roles.cuts[t] && roles.late {
            state.fill(0.0);
        }
    }
    (out, state)
}

fn transpose(matrix: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| matrix.iter().skip(j).step_by(columns).copied().collect::<Vec<_>>()).collect()
}

/// `[rows, width]` with one more column.
fn extend(rows: &[f64], width: usize, column: &[f64]) -> Vec<f64> {
    rows.chunks(width).zip(column).flat_map(|(row, last)| row.iter().copied().chain([*last])).collect()
}

fn close(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() < 1e-11, "{what}[{i}]: {got} is not {want}");
    }
}

/// The gradients of `data` by three walks, and the same by the adjoint of the recurrence.
fn check(attention: &Attention, data: &Data) {
    let (tokens, kd, vd) = (attention.seq_len, attention.key_dim, attention.value_dim);
    let inputs = Inputs { u: None, ..data.inputs(Decay::Vector(&data.g)) };
    let out = forward(attention, &inputs);
    let want = backward(attention, &inputs, &data.adjoint());
    let reverse = attention.mode == Mode::Reverse;
    let bit = if reverse { 2 } else { 1 };
    let cuts: Vec<bool> = (0..tokens).map(|t| attention.flags.is_some_and(|f| f[t] & bit != 0)).collect();

    // Where a row of o was read, if it is handed on; then the walk is inclusive.
    let next = |t: usize| if reverse { t.checked_sub(1) } else { Some(t + 1).filter(|t| *t < tokens) };
    let from = |t: usize| match attention.read {
        Read::Shifted => next(t).filter(|t| !cuts[*t]),
        _ => Some(t),
    };
    let row = |tensor: &[f64], t: usize| from(t).map_or(vec![0.0; vd], |t| tensor[t * vd..(t + 1) * vd].to_vec());
    let den = |t: usize| if attention.normalize.is_some() { from(t).map_or(1.0, |t| out.den[t]) } else { 1.0 };
    let mut d_o = Vec::new();
    let mut d_den = Vec::new();
    for t in 0..tokens {
        let (d, o) = (row(&data.d_o, t), row(&out.o, t));
        d_den.push(-d.iter().zip(&o).map(|(d, o)| d * o).sum::<f64>() / den(t));
        d_o.extend(d.iter().map(|d| d / den(t)));
    }
    let normalized = attention.normalize.is_some();
    let with = |tensor: &[f64], column: &[f64]| if normalized { extend(tensor, vd, column) } else { tensor.to_vec() };
    let (d_ext, v_ext) = (with(&d_o, &d_den), with(&data.v, &vec![1.0; tokens]));
    let (s0, ds) = (with(&data.s0, &data.z0), with(&data.ds, &data.dz));
    let wide = vd + usize::from(normalized);

    let exclusive = attention.read == Read::ExclusiveBonus;
    let (order, adjoint) =
        if exclusive { (Order::ReadDecayAdd, Order::ReadDecayAdd) } else { (Order::DecayAddRead, Order::AddReadDecay) };
    let common = Roles {
        q: &data.k,
        k: &data.q,
        v: &d_o,
        g: &data.g,
        by_value: false,
        order: adjoint,
        late: true,
        reverse: !reverse,
        cuts: &cuts,
        scale: attention.scale,
    };
    // States of a swapped walk are in units of the scale, which a read multiplies by.
    let unit = |state: &[f64]| state.iter().map(|s| s / attention.scale).collect::<Vec<_>>();
    let scaled = |state: &[f64]| state.iter().map(|s| s * attention.scale).collect::<Vec<_>>();
    let (dv, ds0) = walk(&common, unit(&data.ds), kd, vd);
    close("dv", &dv, &want.dv);
    close("ds0", &scaled(&ds0), &want.ds0);

    let roles = Roles { q: &v_ext, k: &d_ext, v: &data.q, by_value: true, ..common };
    let (dk, ds0) = walk(&roles, unit(&transpose(&ds, wide)), wide, kd);
    close("dk", &dk, &want.own.dk);
    let ds0 = scaled(&ds0);
    close("ds0 of dk", &transpose(&ds0[..vd * kd], kd), &want.ds0);
    if normalized {
        close("dz0", &ds0[vd * kd..], &want.dz0);
    }

    let roles = Roles { q: &d_ext, k: &v_ext, v: &data.k, order, late: false, reverse, ..roles };
    let (dq, last) = walk(&roles, transpose(&s0, wide), wide, kd);
    close("dq", &dq, &want.own.dq);
    close("s_final", &transpose(&last[..vd * kd], kd), &out.s_final);

    // The decay: what is read behind a token, less what was written behind it, as far as the next cut; the final state counts last.
    let visit: Vec<usize> = if reverse { (0..tokens).rev().collect() } else { (0..tokens).collect() };
    let mut dg = vec![0.0; tokens * kd];
    for i in 0..kd {
        let mut carry: f64 = (0..wide).map(|j| last[j * kd + i] * ds[i * wide + j]).sum();
        for &t in visit.iter().rev() {
            let at = t * kd + i;
            let read = data.q[at] * dq[at];
            carry += if exclusive { 0.0 } else { read } - data.k[at] * dk[at];
            dg[at] = if cuts[t] { 0.0 } else { carry };
            carry = if cuts[t] { 0.0 } else { carry + if exclusive { read } else { 0.0 } };
        }
    }
    close("dg", &dg, &want.own.dg);
}

#[test]
fn three_walks_with_swapped_roles_are_the_backward_pass() {
    for mode in [Mode::Causal, Mode::Reverse] {
        for read in [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted] {
            for normalize in [None, Some(40.0)] {
                for flags in [None, Some(flags_of(9))] {
                    let flags = flags.as_deref();
                    let attention = Attention { mode, read, normalize, flags, ..tests::GOLDEN };
                    let mut data = data(&attention, 36);
                    if normalize.is_none() {
                        data.dz.fill(0.0);
                    }
                    check(&attention, &data);
                }
            }
        }
    }
}
