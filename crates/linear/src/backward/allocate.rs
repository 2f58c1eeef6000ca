//! Convenience: plan, memory and launches in one call.

use super::{BackwardInputs, BackwardOutputs, BackwardPlan, ReverseGradients};
use crate::{Decay, DeviceInfo, Element, Mode, Options, Result, Shape, memory};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use std::sync::Arc;

/// What [`linear_attention_backward`] gives back; each as [`BackwardOutputs`] says.
#[derive(Debug)]
pub struct Gradients<T> {
    /// `[B,T,query_heads,K]`.
    pub dq: CudaSlice<T>,
    /// `[B,T,key_heads,K]`.
    pub dk: CudaSlice<T>,
    /// `[B,T,H,V]`.
    pub dv: CudaSlice<T>,
    /// As `g`, with a decay.
    pub dg: Option<CudaSlice<f32>>,
    /// `[H,K]`, with a bonus.
    pub d_bonus: Option<CudaSlice<f32>>,
    /// `[N,H,K,V]`.
    pub d_state: CudaSlice<f32>,
    /// `[N,H,K]`, with a normaliser.
    pub d_normalizer: Option<CudaSlice<f32>>,
    /// Of the reverse direction's own queries.
    pub reverse_dq: Option<CudaSlice<T>>,
    /// Of the reverse direction's own keys.
    pub reverse_dk: Option<CudaSlice<T>>,
    /// Of the reverse direction's own log-decays.
    pub reverse_dg: Option<CudaSlice<f32>>,
    /// `[N,H,K,V]` of the reverse direction, in [`Mode::Bidirectional`].
    pub reverse_d_state: Option<CudaSlice<f32>>,
}

/// The backward pass into new memory.
///
/// # Errors
/// Those of [`BackwardPlan::new`] and [`BackwardPlan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn linear_attention_backward<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &BackwardInputs<'_, T>,
) -> Result<Gradients<T>> {
    let plan = BackwardPlan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let (layout, wide) = (&plan.layout, &plan.forward.layout);
    let reverse = &inputs.forward.reverse;
    let elements = |len: u64| memory::allocate::<T>(stream, len, "gradients");
    let floats = |wanted: bool, len: u64| wanted.then(|| memory::allocate::<f32>(stream, len, "gradients")).transpose();
    let mut out = Gradients {
        dq: elements(layout.dq.span())?,
        dk: elements(layout.dk.span())?,
        dv: elements(layout.dv.span())?,
        dg: floats(options.decay != Decay::None, layout.dg.span())?,
        d_bonus: floats(inputs.forward.bonus.is_some(), wide.bonus.span())?,
        d_state: memory::allocate(stream, wide.states.span(), "gradients")?,
        d_normalizer: floats(options.normalize.is_some(), wide.sums.span())?,
        reverse_dq: reverse.q.map(|_| elements(layout.dq.span())).transpose()?,
        reverse_dk: reverse.k.map(|_| elements(layout.dk.span())).transpose()?,
        reverse_dg: floats(reverse.g.is_some(), layout.dg.span())?,
        reverse_d_state: floats(options.mode == Mode::Bidirectional, wide.states.span())?,
    };
    let mut workspace = memory::allocate::<u8>(stream, plan.workspace_bytes(), "workspace")?;
    let outputs = BackwardOutputs {
        dq: &mut out.dq,
        dk: &mut out.dk,
        dv: &mut out.dv,
        dg: some(&mut out.dg),
        d_bonus: some(&mut out.d_bonus),
        d_state: Some(&mut out.d_state),
        d_normalizer: some(&mut out.d_normalizer),
        reverse: ReverseGradients {
            dq: some(&mut out.reverse_dq),
            dk: some(&mut out.reverse_dk),
            dg: some(&mut out.reverse_dg),
            d_state: some(&mut out.reverse_d_state),
        },
    };
    plan.run(stream, inputs, outputs, Some(&mut workspace))?;
    Ok(out)
}

fn some<T>(slice: &mut Option<CudaSlice<T>>) -> Option<&mut dyn DevicePtrMut<T>> {
    slice.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>)
}
