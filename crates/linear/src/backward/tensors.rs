//! The tensors of a backward pass: as the caller's memory, and as device addresses.

use crate::{Inputs, RawInputs};
use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// Inputs of a backward pass. `q`, `k`, `v`, `g`, `o` and `d_o` have the strides of the shape, `d_o` those of `o`.
pub struct BackwardInputs<'a, T> {
    /// What the forward pass read.
    pub forward: Inputs<'a, T>,
    /// `[B,T,H,V]`, what the forward pass wrote; needed with a normaliser, else not read.
    pub o: Option<&'a dyn DevicePtr<T>>,
    /// `[B,T,H]`, what the forward pass divided by; needed with a normaliser.
    pub denominator: Option<&'a dyn DevicePtr<f32>>,
    /// `[B,T,H,V]` adjoint of the output.
    pub d_o: &'a dyn DevicePtr<T>,
    /// `[N,H,K,V]` adjoint of the final states; zero without.
    pub d_state: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,K,V]` adjoint of the final states of the reverse direction of [`Mode::Bidirectional`](crate::Mode::Bidirectional).
    pub d_reverse_state: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,K]` adjoint of the final sums of keys, with a normaliser; zero without.
    pub d_normalizer: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> BackwardInputs<'a, T> {
    /// The adjoint of the output alone.
    pub fn of(forward: Inputs<'a, T>, d_o: &'a dyn DevicePtr<T>) -> Self {
        Self { forward, o: None, denominator: None, d_o, d_state: None, d_reverse_state: None, d_normalizer: None }
    }
}

/// Gradients of [`ReverseInputs`](crate::ReverseInputs): each is wanted exactly where its tensor is given.
pub struct ReverseGradients<'a, T> {
    /// As `dq`.
    pub dq: Option<&'a mut dyn DevicePtrMut<T>>,
    /// As `dk`.
    pub dk: Option<&'a mut dyn DevicePtrMut<T>>,
    /// As `dg`.
    pub dg: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// As `d_state`; may be left out.
    pub d_state: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<T> Default for ReverseGradients<'_, T> {
    fn default() -> Self {
        Self { dq: None, dk: None, dg: None, d_state: None }
    }
}

/// Outputs of a backward pass, all without gaps.
pub struct BackwardOutputs<'a, T> {
    /// `[B,T,query_heads,K]`, summed over the heads that share a query.
    pub dq: &'a mut dyn DevicePtrMut<T>,
    /// `[B,T,key_heads,K]`, likewise.
    pub dk: &'a mut dyn DevicePtrMut<T>,
    /// `[B,T,H,V]`.
    pub dv: &'a mut dyn DevicePtrMut<T>,
    /// As `g`: `[H]`, `[B,T,H]` or `[B,T,H,K]`; 0 at a cut. With a decay.
    pub dg: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[H,K]`, with a bonus.
    pub d_bonus: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K,V]` gradient of the initial states, given or not.
    pub d_state: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K]` gradient of the initial sums of keys, with a normaliser.
    pub d_normalizer: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// Gradients of the reverse direction's own tensors.
    pub reverse: ReverseGradients<'a, T>,
}

impl<'a, T> BackwardOutputs<'a, T> {
    /// The gradients that there always are.
    pub fn of(
        dq: &'a mut dyn DevicePtrMut<T>,
        dk: &'a mut dyn DevicePtrMut<T>,
        dv: &'a mut dyn DevicePtrMut<T>,
    ) -> Self {
        let reverse = ReverseGradients::default();
        Self { dq, dk, dv, dg: None, d_bonus: None, d_state: None, d_normalizer: None, reverse }
    }
}

/// [`BackwardInputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardInputs {
    /// What the forward pass read.
    pub forward: RawInputs,
    /// Output of the forward pass.
    pub o: CUdeviceptr,
    /// Denominators of the forward pass.
    pub denominator: CUdeviceptr,
    /// Adjoint of the output.
    pub d_o: CUdeviceptr,
    /// Adjoint of the final states.
    pub d_state: CUdeviceptr,
    /// Adjoint of the final states of the reverse direction.
    pub d_reverse_state: CUdeviceptr,
    /// Adjoint of the final sums of keys.
    pub d_normalizer: CUdeviceptr,
}

/// [`BackwardOutputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardOutputs {
    /// Gradient of the queries.
    pub dq: CUdeviceptr,
    /// Gradient of the keys.
    pub dk: CUdeviceptr,
    /// Gradient of the values.
    pub dv: CUdeviceptr,
    /// Gradient of the log-decays.
    pub dg: CUdeviceptr,
    /// Gradient of the bonus.
    pub d_bonus: CUdeviceptr,
    /// Gradient of the initial states.
    pub d_state: CUdeviceptr,
    /// Gradient of the initial sums of keys.
    pub d_normalizer: CUdeviceptr,
    /// Gradient of the reverse direction's own queries.
    pub reverse_dq: CUdeviceptr,
    /// Gradient of the reverse direction's own keys.
    pub reverse_dk: CUdeviceptr,
    /// Gradient of the reverse direction's own log-decays.
    pub reverse_dg: CUdeviceptr,
    /// Gradient of the initial states of the reverse direction.
    pub reverse_d_state: CUdeviceptr,
}
