//! Convenience: plan, memory and launch in one call.

use crate::{DeviceInfo, Element, Error, Inputs, Options, Output, Outputs, Plan, Result, Shape, memory};
use cudarc::driver::{CudaSlice, CudaStream};
use std::sync::Arc;

/// What [`attention`] gives back.
#[derive(Debug)]
pub struct Attended<O> {
    /// `[B,Tq,H,Dv]` with the strides of the shape.
    pub o: CudaSlice<O>,
    /// `[B,Tq,H]` natural logarithms of the sums of exponentials.
    pub lse: CudaSlice<f32>,
}

/// Softmax attention into new memory. `O` is the type that [`Options::output`] says.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], [`Error::NoKernel`] ← [`Output::Merge`], which needs a state to merge with, and
/// [`Error::OutOfMemory`].
pub fn attention<T: Element, O: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
) -> Result<Attended<O>> {
    if options.output == Output::Merge {
        return Err(Error::NoKernel { op: Plan::OP, request: "merging into new memory: run a plan".into() });
    }
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let mut o = memory::allocate::<O>(stream, plan.layout.o.span(), "o")?;
    let mut lse = memory::allocate::<f32>(stream, plan.layout.lse.span(), "lse")?;
    plan.run(stream, inputs, Outputs::with_lse(&mut o, &mut lse))?;
    Ok(Attended { o, lse })
}
