//! One direction of a backward pass: the forward pass three times, with the roles of its tensors exchanged.
//!
//! With `S` `[K,V]` the state of a walk and `dS` its adjoint over the scale: `dv` reads `dS` with `k`, which takes in `q` and the
//! adjoint of the output, the other way; `dk` reads its transpose with `v`; `dq` reads the transpose of `S` with the adjoint of the
//! output, the way of the forward pass. What a read precedes in one direction it follows in the other, and cuts move from before
//! their token to after it.

use super::{
    launches::{self, Columns, DecayGradient, Prefix, Prepared, dense},
    scratch::{Needs, Scratch},
};
use crate::{
    Decay, Path, Result,
    walk::{Order, Rows, Side, States, Walk, launch},
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};

/// A direction of the forward pass, the adjoints of what it wrote, and where its gradients go; 0 is absent.
pub(super) struct Pass<'a> {
    /// The walk of the forward pass.
    pub forward: Walk,
    pub needs: Needs,
    pub scratch: &'a Scratch,
    pub decay: Decay,
    /// With the strides of `forward.o`.
    pub o: CUdeviceptr,
    pub denominator: CUdeviceptr,
    pub d_o: CUdeviceptr,
    pub d_state: CUdeviceptr,
    pub d_normalizer: CUdeviceptr,
    /// `[B,T,H,K]` f32 or of the walk's type.
    pub dq: Rows,
    pub dk: Rows,
    /// Whether each of them is f32 whatever the type.
    pub in_f32: [bool; 2],
    /// Whether `dq`, `dk` and `dv` are added to.
    pub accumulate: [bool; 3],
    pub dv: Rows,
    pub dg: CUdeviceptr,
    pub d_first: CUdeviceptr,
    pub d_first_sums: CUdeviceptr,
}

/// The three walks of a pass.
pub(super) struct Walks {
    pub dq: Walk,
    pub dk: Walk,
    pub dv: Walk,
}

impl Pass<'_> {
    fn normalized(&self) -> bool {
        self.forward.normalize.is_some()
    }

    fn has_final_adjoint(&self) -> bool {
        self.d_state != 0 || self.d_normalizer != 0
    }

    /// Adjoint of the read rows, and the values, as the walks see them.
    fn rows(&self) -> (Rows, Rows) {
        let forward = &self.forward;
        let d_o = Rows { at: self.d_o, ..forward.o };
        let wide = |at| dense(at, forward, forward.heads, self.needs.width);
        let d_rows = if self.needs.prepared { wide(self.scratch.d_rows) } else { d_o };
        (d_rows, if self.normalized() { wide(self.scratch.v_rows) } else { forward.v })
    }

    pub fn walks(&self) -> Walks {
        let Self { forward, needs, scratch, .. } = self;
        let (d_rows, v_rows) = self.rows();
        let none = States::default();
        let wide = |at| States::dense(at, forward.heads, forward.key_dim, needs.width);
        let narrow = |at| States::dense(at, forward.heads, forward.key_dim, forward.value_dim);
        let d_last = match self.has_final_adjoint() {
            true if needs.states => wide(scratch.d_state),
            _ => narrow(self.d_state),
        };
        let plain = Walk {
            prefix_len: 0,
            z0: 0,
            z_final: 0,
            den: 0,
            normalize: None,
            shift: false,
            accumulate: false,
            h0: none,
            h_final: none,
            ..*forward
        };
        let adjoint = Walk {
            reverse: !forward.reverse,
            late_cut: true,
            order: match forward.order {
                Order::DecayAddRead => Order::AddReadDecay,
                Order::AddReadDecay => Order::DecayAddRead,
                Order::ReadDecayAdd => Order::ReadDecayAdd,
            },
            ..plain
        };
        let dv = Walk {
            q: forward.k,
            k: forward.q,
            v: d_rows,
            o: self.dv,
            out_f32: false,
            accumulate: self.accumulate[2],
            h0: d_last,
            h_final: narrow(self.d_first),
            ..adjoint
        };
        let transposed = Walk {
            key_dim: needs.width,
            value_dim: forward.key_dim,
            bonus: 0,
            // The decay's gradient is a sum over time of what dq and dk differ by.
            exact: self.decay != Decay::None,
            gate: crate::walk::Gate {
                side: if forward.gate.side == Side::Key { Side::Value } else { forward.gate.side },
                ..forward.gate
            },
            ..plain
        };
        let dk = Walk {
            q: v_rows,
            k: d_rows,
            v: forward.q,
            o: self.dk,
            out_f32: self.in_f32[1],
            accumulate: self.accumulate[1],
            h0: d_last.transposed(),
            h_final: if self.d_first_sums == 0 { none } else { wide(scratch.d_first).transposed() },
            reverse: adjoint.reverse,
            late_cut: true,
            order: adjoint.order,
            ..transposed
        };
        let has_first = forward.h0.at != 0 || forward.z0 != 0;
        let first = match self.normalized() {
            true if has_first => wide(scratch.state),
            true => none,
            false => forward.h0,
        };
        let wants_last = self.decay != Decay::None && self.has_final_adjoint();
        let dq = Walk {
            q: d_rows,
            k: v_rows,
            v: forward.k,
            o: self.dq,
            out_f32: self.in_f32[0],
            accumulate: self.accumulate[0],
            h0: first.transposed(),
            h_final: if wants_last { wide(scratch.last).transposed() } else { none },
            prefix_len: forward.prefix_len,
            ..transposed
        };
        Walks { dq, dk, dv }
    }

    /// Queues everything of this direction. The walks take `paths` (dq, dk, dv), which are resolved.
    ///
    /// # Safety
    /// Addresses are readable and writable over their extents until the launches have ended, and nothing else writes or reads what
    /// they write meanwhile.
    pub unsafe fn run(&self, stream: &CudaStream, paths: [Path; 3]) -> Result<()> {
        let Self { forward, needs, scratch, .. } = self;
        if needs.prepared || (forward.bonus != 0 && scratch.weight != 0) {
            let prepared = Prepared {
                d_o: Rows { at: self.d_o, ..forward.o },
                o: Rows { at: self.o, ..forward.o },
                denominator: self.denominator,
                d_rows: scratch.d_rows,
                v_rows: scratch.v_rows,
                weight: if forward.bonus != 0 { scratch.weight } else { 0 },
                width: needs.width,
            };
            // SAFETY: the caller's promise; the scratch has room for rows of this width.
            unsafe { launches::prepare(stream, forward, &prepared) }?;
        }
        if needs.states && self.has_final_adjoint() {
            // A read multiplies by the scale, which the final state's adjoint has not.
            let columns = Columns {
                s: self.d_state,
                s_stride: forward.value_dim,
                z: self.d_normalizer,
                out: scratch.d_state,
                out_width: needs.width,
                z_out: 0,
                factor: 1.0 / forward.scale,
                twice: false,
            };
            // SAFETY: as above.
            unsafe { launches::state_column(stream, forward, &columns) }?;
        }
        if self.normalized() && (forward.h0.at != 0 || forward.z0 != 0) {
            let columns = Columns {
                s: forward.h0.at,
                s_stride: forward.value_dim,
                z: forward.z0,
                out: scratch.state,
                out_width: needs.width,
                z_out: 0,
                factor: 1.0,
                // Both columns of ones take in the keys.
                twice: true,
            };
            // SAFETY: as above.
            unsafe { launches::state_column(stream, forward, &columns) }?;
        }
        let walks = self.walks();
        for (walk, path) in [&walks.dv, &walks.dk, &walks.dq].into_iter().zip([paths[2], paths[1], paths[0]]) {
            // SAFETY: as above; the walks follow each other on the stream, so all may use the same workspace.
            unsafe { launch(stream, walk, walk.aligned_path(path), scratch.walks) }?;
        }
        if self.d_first != 0 && forward.scale != 1.0 {
            let columns = Columns {
                s: self.d_first,
                s_stride: forward.value_dim,
                z: 0,
                out: self.d_first,
                out_width: forward.value_dim,
                z_out: 0,
                factor: forward.scale,
                twice: false,
            };
            // SAFETY: as above; rows are scaled where they are.
            unsafe { launches::state_column(stream, forward, &columns) }?;
        }
        if self.d_first_sums != 0 {
            let columns = Columns {
                s: scratch.d_first,
                s_stride: needs.width,
                z: 0,
                out: 0,
                out_width: 0,
                z_out: self.d_first_sums,
                factor: forward.scale,
                twice: false,
            };
            // SAFETY: as above.
            unsafe { launches::state_column(stream, forward, &columns) }?;
        }
        if forward.prefix_len != 0 {
            let prefix = Prefix {
                d_state: self.d_first,
                d_sums: self.d_first_sums,
                prefix_len: forward.prefix_len,
                dk: self.dk.at,
                in_f32: self.in_f32[1],
                dv: self.dv.at,
            };
            // SAFETY: as above; the walks before have written these rows as if their keys came at their tokens.
            unsafe { launches::prefix(stream, forward, &prefix) }?;
        }
        if self.decay == Decay::None {
            return Ok(());
        }
        let adjoint = if self.has_final_adjoint() { self.d_last() } else { 0 };
        let gradient = DecayGradient {
            dq: self.dq,
            dk: self.dk,
            last: scratch.last,
            d_last: adjoint,
            width: needs.width,
            dg: self.dg,
        };
        // SAFETY: as above.
        unsafe { launches::decay(stream, forward, self.decay, &gradient) }
    }

    /// Dense adjoint of the final state with the columns of `scratch.last`.
    fn d_last(&self) -> CUdeviceptr {
        if self.needs.states { self.scratch.d_state } else { self.d_state }
    }
}
