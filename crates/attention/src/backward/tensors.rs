//! The tensors of a backward pass: as the caller's memory, and as device addresses.

use crate::{Inputs, RawInputs};
use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// What a backward pass starts from besides queries, keys and values: of the whole softmax, whatever block of keys it is for. `O` is the
/// type of `o`, as the plan's [`Options::output`](crate::Options::output) says.
pub struct Adjoint<'a, T, O> {
    /// `[B,Tq,H,Dv]` the gradient of `o`.
    pub d_o: &'a dyn DevicePtr<T>,
    /// What is known of the rows' results.
    pub rows: Rows<'a, O>,
}

/// Results of rows.
pub enum Rows<'a, O> {
    /// From the final output.
    Final(Final<'a, O>),
    /// `[B,H,Tq,2]` of [`BackwardPlan::prepare`](super::BackwardPlan::prepare): several blocks of keys share them.
    Prepared(&'a dyn DevicePtr<f32>),
}

/// The final output of the forward pass, after all merges.
pub struct Final<'a, O> {
    /// `[B,Tq,H,Dv]`.
    pub o: &'a dyn DevicePtr<O>,
    /// `[B,Tq,H]`.
    pub lse: &'a dyn DevicePtr<f32>,
    /// `[B,Tq,H]` the gradient of `lse`; zero without.
    pub d_lse: Option<&'a dyn DevicePtr<f32>>,
}

/// What a backward pass writes. `G` is the type that [`Gradient`](super::Gradient) says: that of the inputs, or f32.
pub struct Gradients<'a, G> {
    /// `[B,Tq,H,D]`; not computed without.
    pub dq: Option<&'a mut dyn DevicePtrMut<G>>,
    /// `[B,Tk,Hk,D]`; both of `dk` and `dv` or none.
    pub dk: Option<&'a mut dyn DevicePtrMut<G>>,
    /// `[B,Tk,Hk,Dv]`.
    pub dv: Option<&'a mut dyn DevicePtrMut<G>>,
    /// `[H]`, of [`Inputs::sink`]. Several blocks of keys have the sink in common: only one of them should give its gradient.
    pub d_sink: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<'a, G> Gradients<'a, G> {
    /// Of queries, keys and values.
    pub fn of(
        dq: &'a mut dyn DevicePtrMut<G>,
        dk: &'a mut dyn DevicePtrMut<G>,
        dv: &'a mut dyn DevicePtrMut<G>,
    ) -> Self {
        Self { dq: Some(dq), dk: Some(dk), dv: Some(dv), d_sink: None }
    }
}

/// Everything of a backward pass by its address; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackward {
    /// What the forward pass read.
    pub inputs: RawInputs,
    /// See [`Adjoint::d_o`].
    pub d_o: CUdeviceptr,
    /// See [`Final::o`]; not read if `prepared`.
    pub o: CUdeviceptr,
    /// See [`Final::lse`]; likewise.
    pub lse: CUdeviceptr,
    /// See [`Final::d_lse`]; likewise.
    pub d_lse: CUdeviceptr,
    /// See [`Rows::Prepared`]; 0: from the output.
    pub prepared: CUdeviceptr,
    /// See [`Gradients::dq`].
    pub dq: CUdeviceptr,
    /// See [`Gradients::dk`].
    pub dk: CUdeviceptr,
    /// See [`Gradients::dv`].
    pub dv: CUdeviceptr,
    /// See [`Gradients::d_sink`].
    pub d_sink: CUdeviceptr,
    /// Memory for what launches leave each other, at a multiple of 16.
    pub workspace: CUdeviceptr,
    /// Its length.
    pub workspace_bytes: u64,
}

/// All inputs of a backward pass.
pub struct BackwardInputs<'a, T, O> {
    /// What the forward pass read.
    pub inputs: Inputs<'a, T>,
    /// Its results and their gradients.
    pub adjoint: Adjoint<'a, T, O>,
}
