//! Convenience: plan, memory and launches in one call.

use super::{BackwardInputs, BackwardOptions, BackwardPlan, Gradient, Gradients, plan::OP};
use crate::{DeviceInfo, Element, Error, Result, Shape, memory};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use std::sync::Arc;

/// What [`attention_backward`] gives back.
#[derive(Debug)]
pub struct BackwardResult<G> {
    /// `[B,Tq,H,D]` with the strides of the options.
    pub dq: CudaSlice<G>,
    /// `[B,Tk,Hk,D]`.
    pub dk: CudaSlice<G>,
    /// `[B,Tk,Hk,Dv]`.
    pub dv: CudaSlice<G>,
    /// `[H]`, if there is a sink.
    pub d_sink: Option<CudaSlice<f32>>,
}

/// The gradient of [`attention`](crate::attention()) into new memory. `G` is the type that [`BackwardOptions::gradient`] says.
///
/// # Errors
/// Those of [`BackwardPlan::new`] and [`BackwardPlan::run`], [`Error::NoKernel`] ← [`Gradient::Accumulate`], which needs something to add to,
/// and [`Error::OutOfMemory`].
pub fn attention_backward<T: Element, O: Element, G: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &BackwardOptions,
    given: &BackwardInputs<'_, T, O>,
) -> Result<BackwardResult<G>> {
    if options.gradient == Gradient::Accumulate {
        return Err(Error::NoKernel { op: OP, request: "adding to new memory: run a plan".into() });
    }
    let plan = BackwardPlan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let mut dq = memory::allocate::<G>(stream, plan.layout.dq.span(), "dq")?;
    let mut dk = memory::allocate::<G>(stream, plan.layout.dk.span(), "dk")?;
    let mut dv = memory::allocate::<G>(stream, plan.layout.dv.span(), "dv")?;
    let heads = plan.layout.forward.heads.span();
    let mut d_sink = given.inputs.sink.map(|_| memory::allocate::<f32>(stream, heads, "d_sink")).transpose()?;
    let mut workspace = memory::allocate::<f32>(stream, plan.workspace_bytes().div_ceil(4), "workspace")?;
    let gradients = Gradients {
        d_sink: d_sink.as_mut().map(|d| d as &mut dyn DevicePtrMut<f32>),
        ..Gradients::of(&mut dq, &mut dk, &mut dv)
    };
    plan.run(stream, given, gradients, &mut workspace)?;
    Ok(BackwardResult { dq, dk, dv, d_sink })
}
