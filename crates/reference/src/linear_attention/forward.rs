//! The recurrence.

use super::step::{Step, Walk};
use super::{Attention, Inputs, Read};

/// Outputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[B,T,H,V]`.
    pub o: Vec<f64>,
    /// `[B,T,H]` what each row of `o` was divided by, zero where a shifted row has nothing to read; empty without a normaliser.
    pub den: Vec<f64>,
    /// `[N,H,K,V]` states after the last visited token.
    pub s_final: Vec<f64>,
    /// `[N,H,K]` the same of the normaliser.
    pub z_final: Vec<f64>,
}

/// Walks every sequence.
pub fn forward(attention: &Attention, inputs: &Inputs) -> Forward {
    let (rows, heads) = (attention.batch * attention.seq_len, attention.heads);
    let (kd, vd) = (attention.key_dim, attention.value_dim);
    let mut out = Forward {
        o: vec![0.0; rows * heads * vd],
        den: vec![0.0; if attention.normalize.is_some() { rows * heads } else { 0 }],
        s_final: vec![0.0; attention.state_len()],
        z_final: vec![0.0; attention.sequences() * heads * kd],
    };
    for walk in attention.walks(inputs) {
        for lane in attention.lanes(&walk) {
            let (steps, end) = attention.steps(inputs, &walk, &lane);
            for (i, step) in steps.iter().enumerate() {
                let Some(to) = written_at(walk.read, &steps, i) else { continue };
                let (row, den) = row(attention, &walk, lane.head, step);
                let at = to * heads + lane.head;
                for (o, value) in out.o[at * vd..].iter_mut().zip(row) {
                    *o += value / den;
                }
                if attention.normalize.is_some() {
                    out.den[at] = den;
                }
            }
            if let Some(n) = lane.state {
                let slot = n * heads + lane.head;
                out.s_final[slot * kd * vd..][..kd * vd].copy_from_slice(&end.s);
                out.z_final[slot * kd..][..kd].copy_from_slice(&end.z);
            }
        }
    }
    out
}

/// The row of `o` that gets what the step with this number reads.
pub(super) fn written_at(read: Read, steps: &[Step], number: usize) -> Option<usize> {
    if read != Read::Shifted {
        return Some(steps[number].row);
    }
    steps.get(number + 1).filter(|next| !next.cut).map(|next| next.row)
}

/// The row before the division, and what it is divided by.
pub(super) fn row(attention: &Attention, walk: &Walk, head: usize, step: &Step) -> (Vec<f64>, f64) {
    let state = step.read(walk.read);
    let bonus = bonus(attention, walk, head, step);
    let mut row: Vec<f64> = step.v.iter().map(|v| bonus * v).collect();
    let mut den = bonus;
    for (i, q) in step.q.iter().enumerate() {
        den += q * state.z[i];
        for (j, row) in row.iter_mut().enumerate() {
            *row += q * state.s[i * attention.value_dim + j];
        }
    }
    let den = attention.normalize.map_or(1.0, |eps| attention.scale * den + eps);
    (row.iter().map(|v| attention.scale * v).collect(), den)
}

/// `q . (u k)`, the weight of a token's own value.
fn bonus(attention: &Attention, walk: &Walk, head: usize, step: &Step) -> f64 {
    match (walk.read, walk.bonus) {
        (Read::ExclusiveBonus, Some(u)) => {
            let u = &u[head * attention.key_dim..][..attention.key_dim];
            (0..u.len()).map(|i| step.q[i] * u[i] * step.k[i]).sum()
        }
        _ => 0.0,
    }
}
