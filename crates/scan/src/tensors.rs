//! The tensors of a scan: as the caller's slices, and as device addresses.

use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// What the source reads, by slices. Tensors are `[B,T,D]` with the plan's strides; a view into a wider tensor begins at its
/// first element.
pub struct Gates<'a, T> {
    /// `a`, `ln a`, `f` or `r`.
    pub a: Option<&'a dyn DevicePtr<T>>,
    /// `b` or `i`.
    pub b: Option<&'a dyn DevicePtr<T>>,
    /// `z` or `x`.
    pub x: Option<&'a dyn DevicePtr<T>>,
    /// `[D]`: decays or `Λ`.
    pub channel: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> Gates<'a, T> {
    /// Of [`Source::Tensor`](crate::Source::Tensor), and of [`Source::Log`](crate::Source::Log) with `ln a`.
    pub fn tensor(a: &'a dyn DevicePtr<T>, b: &'a dyn DevicePtr<T>) -> Self {
        Self { a: Some(a), b: Some(b), x: None, channel: None }
    }

    /// Of [`Source::Channel`](crate::Source::Channel).
    pub fn channel(decay: &'a dyn DevicePtr<f32>, b: &'a dyn DevicePtr<T>) -> Self {
        Self { a: None, b: Some(b), x: None, channel: Some(decay) }
    }

    /// Of [`Source::Cumsum`](crate::Source::Cumsum).
    pub fn cumsum(b: &'a dyn DevicePtr<T>) -> Self {
        Self { a: None, b: Some(b), x: None, channel: None }
    }

    /// Of [`Source::GatedSsm`](crate::Source::GatedSsm).
    pub fn gated_ssm(f: &'a dyn DevicePtr<T>, i: &'a dyn DevicePtr<T>, z: &'a dyn DevicePtr<T>) -> Self {
        Self { a: Some(f), b: Some(i), x: Some(z), channel: None }
    }

    /// Of [`Source::RgLru`](crate::Source::RgLru).
    pub fn rg_lru(
        r: &'a dyn DevicePtr<T>,
        i: &'a dyn DevicePtr<T>,
        x: &'a dyn DevicePtr<T>,
        lambda: &'a dyn DevicePtr<f32>,
    ) -> Self {
        Self { a: Some(r), b: Some(i), x: Some(x), channel: Some(lambda) }
    }
}

/// Inputs of a forward pass.
pub struct Inputs<'a, T> {
    /// What the source reads.
    pub gates: Gates<'a, T>,
    /// `[B,T]`: bit 0 cuts the carry into a forward channel at this token, bit 1 into a reverse one. The decay of a cut token
    /// is not used.
    pub flags: Option<&'a dyn DevicePtr<u8>>,
    /// `[N+1]`, for a packed shape; see [`check::cu_seqlens`](crate::check::cu_seqlens).
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[N,D]` states before the first step of each sequence; zero without.
    pub initial: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// Gates alone.
    pub fn of(gates: Gates<'a, T>) -> Self {
        Self { gates, flags: None, cu_seqlens: None, initial: None }
    }
}

/// Outputs of a forward pass.
pub struct Outputs<'a, T> {
    /// `[B,T,D]` states.
    pub h: &'a mut dyn DevicePtrMut<T>,
    /// `[N,D]` states after the last step of each sequence.
    pub last: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Inputs of a backward pass.
pub struct BackwardInputs<'a, T> {
    /// Those of the forward pass. `b` of a source that computes no gates is not read and may be left out.
    pub forward: Inputs<'a, T>,
    /// `[B,T,D]`, as the forward pass wrote it.
    pub h: &'a dyn DevicePtr<T>,
    /// `[B,T,D]`, adjoint of `h`.
    pub dh: &'a dyn DevicePtr<T>,
    /// `[N,D]`, adjoint of the final states; zero without.
    pub d_last: Option<&'a dyn DevicePtr<f32>>,
}

/// Gradients of what the source reads: the same members, wanted wherever the source has the tensor. Only `channel` of
/// [`Source::Channel`](crate::Source::Channel) may be left out.
pub struct GateGradients<'a, T> {
    /// Of `a`, `ln a`, `f` or `r`.
    pub a: Option<&'a mut dyn DevicePtrMut<T>>,
    /// Of `b` or `i`.
    pub b: Option<&'a mut dyn DevicePtrMut<T>>,
    /// Of `z` or `x`.
    pub x: Option<&'a mut dyn DevicePtrMut<T>>,
    /// `[D]`: of the decays (their logarithms, if the source has those) or of `Λ`.
    pub channel: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Outputs of a backward pass.
pub struct BackwardOutputs<'a, T> {
    /// Gradients of what the source reads.
    pub gates: GateGradients<'a, T>,
    /// `[N,D]`, adjoint of the initial states.
    pub d_initial: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawInputs {
    /// `a`, `ln a`, `f` or `r`.
    pub a: CUdeviceptr,
    /// `b` or `i`.
    pub b: CUdeviceptr,
    /// `z` or `x`.
    pub x: CUdeviceptr,
    /// Decays or `Λ`.
    pub channel: CUdeviceptr,
    /// Cuts.
    pub flags: CUdeviceptr,
    /// Starts of packed sequences.
    pub cu_seqlens: CUdeviceptr,
    /// Initial states.
    pub initial: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// States.
    pub h: CUdeviceptr,
    /// Final states.
    pub last: CUdeviceptr,
}

/// [`BackwardInputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardInputs {
    /// Those of the forward pass.
    pub forward: RawInputs,
    /// States.
    pub h: CUdeviceptr,
    /// Their adjoint.
    pub dh: CUdeviceptr,
    /// Adjoint of the final states.
    pub d_last: CUdeviceptr,
}

/// [`BackwardOutputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardOutputs {
    /// Gradient of `a`, `ln a`, `f` or `r`.
    pub a: CUdeviceptr,
    /// Gradient of `b` or `i`.
    pub b: CUdeviceptr,
    /// Gradient of `z` or `x`.
    pub x: CUdeviceptr,
    /// Gradient of the decays or of `Λ`.
    pub channel: CUdeviceptr,
    /// Adjoint of the initial states.
    pub d_initial: CUdeviceptr,
}
