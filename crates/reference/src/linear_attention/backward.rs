//! The adjoint of the recurrence, step by step in the opposite order.

use super::forward::{row, written_at};
use super::step::{Lane, State, Step, Walk};
use super::{Attention, Decay, Inputs, Read};

/// Adjoints of what [`super::Forward`] returns, apart from `den`.
#[derive(Debug, Clone, Copy)]
pub struct Adjoint<'a> {
    /// `[B,T,H,V]`.
    pub o: &'a [f64],
    /// `[N,H,K,V]`; zero without.
    pub s_final: Option<&'a [f64]>,
    /// `[N,H,K]`; zero without.
    pub z_final: Option<&'a [f64]>,
}

/// Outputs of [`backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Backward {
    /// Gradients of `q`, `k` and the log decays; those of both walks where they share them.
    pub own: DirectionGradients,
    /// The same of the reverse walk's own tensors, if it has any.
    pub reverse: Option<DirectionGradients>,
    /// `[B,T,H,V]`.
    pub dv: Vec<f64>,
    /// `[H,K]`.
    pub du: Vec<f64>,
    /// `[N,H,K,V]`.
    pub ds0: Vec<f64>,
    /// `[N,H,K]`.
    pub dz0: Vec<f64>,
}

/// Gradients of the tensors of a direction.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectionGradients {
    /// `[B,T,Hq,K]`, summed over the heads that share a row.
    pub dq: Vec<f64>,
    /// `[B,T,Hk,K]`, in the same way.
    pub dk: Vec<f64>,
    /// As the log decays; empty if there are none. Zero at a cut.
    pub dg: Vec<f64>,
}

/// Gradients of `<o, adjoint.o> + <s_final, adjoint.s_final> + <z_final, adjoint.z_final>`.
pub fn backward(attention: &Attention, inputs: &Inputs, adjoint: &Adjoint) -> Backward {
    let zeros = |like: &[f64]| vec![0.0; like.len()];
    let direction = |tensors: super::Direction| DirectionGradients {
        dq: zeros(tensors.q),
        dk: zeros(tensors.k),
        dg: match tensors.decay {
            Decay::None => Vec::new(),
            Decay::Head(g) | Decay::Scalar(g) | Decay::Vector(g) => zeros(g),
        },
    };
    let shared = super::Direction { q: inputs.q, k: inputs.k, decay: inputs.decay };
    let states = attention.sequences() * attention.heads * attention.key_dim;
    let mut out = Backward {
        own: direction(shared),
        reverse: inputs.reverse.map(direction),
        dv: zeros(inputs.v),
        du: vec![0.0; attention.heads * attention.key_dim],
        ds0: vec![0.0; attention.state_len()],
        dz0: vec![0.0; states],
    };
    for walk in attention.walks(inputs) {
        for lane in attention.lanes(&walk) {
            backward_lane(attention, inputs, adjoint, (&walk, &lane), &mut out);
        }
    }
    out
}

fn backward_lane(
    attention: &Attention,
    inputs: &Inputs,
    adjoint: &Adjoint,
    walked: (&Walk, &Lane),
    out: &mut Backward,
) {
    let (walk, lane) = walked;
    let (kd, vd, heads) = (attention.key_dim, attention.value_dim, attention.heads);
    let slot = |tensor: Option<&[f64]>, width: usize| match (tensor, lane.state) {
        (Some(tensor), Some(n)) => tensor[(n * heads + lane.head) * width..][..width].to_vec(),
        _ => vec![0.0; width],
    };
    let mut d = State { s: slot(adjoint.s_final, kd * vd), z: slot(adjoint.z_final, kd) };
    let (steps, _) = attention.steps(inputs, walk, lane);
    let mut grads = Grads { attention, walk, head: lane.head, out };
    for (i, step) in steps.iter().enumerate().rev() {
        let at = written_at(walk.read, &steps, i).map(|row| (row * heads + lane.head) * vd);
        let d_row = at.map_or(vec![0.0; vd], |at| adjoint.o[at..at + vd].to_vec());
        if walk.read == Read::ExclusiveBonus {
            grads.update(step, &mut d);
            grads.read(step, &d_row, &mut d);
        } else {
            grads.read(step, &d_row, &mut d);
            grads.update(step, &mut d);
        }
        if step.cut {
            d = State { s: vec![0.0; kd * vd], z: vec![0.0; kd] };
        }
    }
    for step in steps.iter().filter(|step| step.in_prefix) {
        grads.add(step, &d);
    }
    if let Some(n) = lane.state {
        let at = n * heads + lane.head;
        out.ds0[at * kd * vd..][..kd * vd].copy_from_slice(&d.s);
        out.dz0[at * kd..][..kd].copy_from_slice(&d.z);
    }
}

/// Where one head of one walk adds its gradients.
struct Grads<'a, 'b> {
    attention: &'a Attention<'a>,
    walk: &'a Walk<'a>,
    head: usize,
    out: &'b mut Backward,
}

impl Grads<'_, '_> {
    fn direction(&mut self) -> &mut DirectionGradients {
        match &mut self.out.reverse {
            Some(reverse) if self.walk.own => reverse,
            _ => &mut self.out.own,
        }
    }

    fn dq(&mut self, row: usize) -> &mut [f64] {
        let (kd, at) =
            (self.attention.key_dim, self.attention.at(row, self.head, self.attention.q_heads, self.attention.key_dim));
        &mut self.direction().dq[at..at + kd]
    }

    fn dk(&mut self, row: usize) -> &mut [f64] {
        let (kd, at) =
            (self.attention.key_dim, self.attention.at(row, self.head, self.attention.k_heads, self.attention.key_dim));
        &mut self.direction().dk[at..at + kd]
    }

    fn dv(&mut self, row: usize) -> &mut [f64] {
        let (vd, at) = (
            self.attention.value_dim,
            self.attention.at(row, self.head, self.attention.heads, self.attention.value_dim),
        );
        &mut self.out.dv[at..at + vd]
    }

    /// Adjoint of `o = scale (S^T q + (q . (u k)) v) / den`; adds to the adjoint of the state that was read.
    fn read(&mut self, step: &Step, d_row: &[f64], d: &mut State) {
        let (kd, vd, scale) = (self.attention.key_dim, self.attention.value_dim, self.attention.scale);
        let (numerator, den) = row(self.attention, self.walk, self.head, step);
        let d_numerator: Vec<f64> = d_row.iter().map(|v| scale * v / den).collect();
        let along: f64 = d_numerator.iter().zip(&numerator).map(|(d, o)| d * o / den).sum();
        let d_den = if self.attention.normalize.is_some() { -along } else { 0.0 };
        let state = step.read(self.walk.read);
        for i in 0..kd {
            let from_state = &state.s[i * vd..(i + 1) * vd];
            let read: f64 = from_state.iter().zip(&d_numerator).map(|(s, d)| s * d).sum();
            self.dq(step.row)[i] += read + d_den * state.z[i];
            d.z[i] += step.q[i] * d_den;
            for (j, dn) in d_numerator.iter().enumerate() {
                d.s[i * vd + j] += step.q[i] * dn;
            }
        }
        let (Read::ExclusiveBonus, Some(u)) = (self.walk.read, self.walk.bonus) else { return };
        let u = &u[self.head * kd..][..kd];
        let weight: f64 = (0..kd).map(|i| step.q[i] * u[i] * step.k[i]).sum();
        let d_weight = d_den + d_numerator.iter().zip(step.v).map(|(d, v)| d * v).sum::<f64>();
        for (dv, dn) in self.dv(step.row).iter_mut().zip(&d_numerator) {
            *dv += weight * dn;
        }
        for (i, u) in u.iter().enumerate() {
            self.dq(step.row)[i] += d_weight * u * step.k[i];
            self.dk(step.row)[i] += d_weight * u * step.q[i];
            self.out.du[self.head * kd + i] += d_weight * step.q[i] * step.k[i];
        }
    }

    /// Adjoint of `S = e^g S_before + k v^T`; turns the adjoint of `S` into that of `S_before`.
    fn update(&mut self, step: &Step, d: &mut State) {
        if !step.in_prefix {
            self.add(step, d);
        }
        let (kd, vd, heads, head) = (self.attention.key_dim, self.attention.value_dim, self.attention.heads, self.head);
        let decay = self.walk.tensors.decay;
        for i in 0..kd {
            let row = i * vd..(i + 1) * vd;
            let kept: f64 = d.s[row.clone()].iter().zip(&step.before.s[row.clone()]).map(|(d, s)| d * s).sum();
            let d_log = step.factor[i] * (kept + d.z[i] * step.before.z[i]);
            match decay {
                Decay::None => {}
                Decay::Head(_) => self.direction().dg[head] += d_log,
                Decay::Scalar(_) => self.direction().dg[step.row * heads + head] += d_log,
                Decay::Vector(_) => self.direction().dg[(step.row * heads + head) * kd + i] += d_log,
            }
            d.z[i] *= step.factor[i];
            d.s[row].iter_mut().for_each(|s| *s *= step.factor[i]);
        }
    }

    /// Adjoint of `S += k v^T`.
    fn add(&mut self, step: &Step, d: &State) {
        let vd = self.attention.value_dim;
        for (i, k) in step.k.iter().enumerate() {
            let row = &d.s[i * vd..(i + 1) * vd];
            self.dk(step.row)[i] += d.z[i] + row.iter().zip(step.v).map(|(d, v)| d * v).sum::<f64>();
            for (dv, d) in self.dv(step.row).iter_mut().zip(row) {
                *dv += k * d;
            }
        }
    }
}
