//! Convenience: plan, memory and launch in one call.

use crate::{
    BackwardInputs, BackwardOutputs, BackwardPlan, DeviceInfo, Element, GateGradients, Inputs, Options, Outputs, Plan,
    Result, Shape, Workspace, memory,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use std::sync::Arc;

/// What [`gated_scan`] gives back.
#[derive(Debug)]
pub struct Forwarded<T> {
    /// `[B,T,D]` states with the strides of the shape.
    pub h: CudaSlice<T>,
    /// `[N,D]` final states.
    pub last: CudaSlice<f32>,
}

/// What [`gated_scan_backward`] gives back. A gradient that the source does not have is absent.
#[derive(Debug)]
pub struct Gradients<T> {
    /// Of `a`, `ln a`, `f` or `r`.
    pub a: Option<CudaSlice<T>>,
    /// Of `b` or `i`.
    pub b: CudaSlice<T>,
    /// Of `z` or `x`.
    pub x: Option<CudaSlice<T>>,
    /// `[D]`: of the decays or of `Λ`.
    pub channel: Option<CudaSlice<f32>>,
    /// `[N,D]`, adjoint of the initial states.
    pub d_initial: CudaSlice<f32>,
}

/// `h[t] = a[t] h[t-1] + b[t]` into new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn gated_scan<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
) -> Result<Forwarded<T>> {
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let mut h = memory::allocate::<T>(stream, plan.h.span(), "h")?;
    let mut last = memory::allocate::<f32>(stream, plan.frame.states().span(), "final states")?;
    let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
    plan.run(stream, inputs, Outputs { h: &mut h, last: Some(&mut last) }, &mut workspace)?;
    Ok(Forwarded { h, last })
}

/// Gradients of everything that the forward pass read, into new memory.
///
/// # Errors
/// Those of [`BackwardPlan::new`] and [`BackwardPlan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn gated_scan_backward<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &BackwardInputs<'_, T>,
) -> Result<Gradients<T>> {
    let plan = BackwardPlan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let source = options.source;
    let [da, db, dx] = plan.gradient_spans();
    let tensor = |wanted: bool, len| wanted.then(|| memory::allocate::<T>(stream, len, "gradients")).transpose();
    let mut a = tensor(source.has_a(), da)?;
    let mut b = memory::allocate::<T>(stream, db, "gradients")?;
    let mut x = tensor(source.is_producer(), dx)?;
    let floats = |len| memory::allocate::<f32>(stream, len, "gradients");
    let mut channel = source.has_channel().then(|| floats(shape.channels as u64)).transpose()?;
    let mut d_initial = floats(shape.sequences().saturating_mul(shape.channels) as u64)?;
    let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
    let gates = GateGradients { a: some(&mut a), b: Some(&mut b), x: some(&mut x), channel: some(&mut channel) };
    plan.run(stream, inputs, BackwardOutputs { gates, d_initial: Some(&mut d_initial) }, &mut workspace)?;
    Ok(Gradients { a, b, x, channel, d_initial })
}

fn some<T>(slice: &mut Option<CudaSlice<T>>) -> Option<&mut dyn DevicePtrMut<T>> {
    slice.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>)
}
