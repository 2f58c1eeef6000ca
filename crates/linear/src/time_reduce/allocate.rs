//! Convenience: plan, memory and launch in one call.

use super::{Inputs, Options, Outputs, Plan, Workspace};
use crate::{DeviceInfo, Element, Result, Shape, memory};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use std::sync::Arc;

/// What [`time_reduce`] gives back.
#[derive(Debug)]
pub struct Reduced<T> {
    /// `[B,T,H,V]` with the strides of the shape, if there were queries.
    pub o: Option<CudaSlice<T>>,
    /// `[B,T,H]` what the outputs were divided by, if there were queries and a normaliser.
    pub den: Option<CudaSlice<f32>>,
    /// `[N,H,F,V]`.
    pub kv: CudaSlice<f32>,
    /// `[N,H,F]`.
    pub ksum: CudaSlice<f32>,
}

/// A reduction over time into new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn time_reduce<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
) -> Result<Reduced<T>> {
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let reads = inputs.q.is_some();
    let normalizes = reads && options.normalize.is_some();
    let mut o = reads.then(|| memory::allocate::<T>(stream, plan.layout.o.span(), "o")).transpose()?;
    let mut den = normalizes.then(|| memory::allocate::<f32>(stream, plan.layout.den.span(), "den")).transpose()?;
    let mut kv = memory::allocate::<f32>(stream, plan.layout.kv.span(), "kv")?;
    let mut ksum = memory::allocate::<f32>(stream, plan.layout.ksum.span(), "ksum")?;
    let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
    let outputs = Outputs {
        o: o.as_mut().map(|o| o as &mut dyn DevicePtrMut<T>),
        den: den.as_mut().map(|d| d as &mut dyn DevicePtrMut<f32>),
        kv: Some(&mut kv),
        ksum: Some(&mut ksum),
    };
    plan.run(stream, inputs, outputs, &mut workspace)?;
    Ok(Reduced { o, den, kv, ksum })
}
