//! Convenience: plan, memory, schedule and launch in one call.

use crate::{DeviceInfo, Element, Inputs, Options, Outputs, Plan, Result, Schedule, Shape, Workspace};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use lookback_device::memory;
use std::sync::Arc;

/// What [`lean_decode`] gives back.
#[derive(Debug)]
pub struct Decoded<O> {
    /// `[B, query_len, H, Dv]` with the strides of the shape.
    pub o: CudaSlice<O>,
    /// `[B, query_len, H]`.
    pub lse: CudaSlice<f32>,
    /// `[B, H, query_len, columns]`, with [`Options::logits`]; zeros where nothing is written.
    pub logits: Option<CudaSlice<f32>>,
}

/// One step of one layer into new memory. `O` is the type that [`Options::output`] says. Waits for the device, to say what was wrong with lengths and tables.
///
/// # Errors
/// Those of [`Plan::new`], [`Plan::schedule`], [`Plan::run`] and [`Plan::status`], and
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn lean_decode<T: Element, O: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
) -> Result<Decoded<O>> {
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let mut schedule = Schedule::new(stream, plan.schedule_bytes())?;
    let mut workspace = Workspace::new(stream, plan.workspace_bytes())?;
    let mut o = memory::allocate::<O>(stream, plan.layout.o.span(), "o")?;
    let mut lse = memory::allocate::<f32>(stream, plan.layout.lse.span(), "lse")?;
    let mut logits = match options.logits {
        Some(_) => Some(memory::allocate::<f32>(stream, plan.layout.logits.span(), "logits")?),
        None => None,
    };
    plan.schedule(stream, &inputs.lengths, &mut schedule)?;
    let outputs =
        Outputs { o: &mut o, lse: Some(&mut lse), logits: logits.as_mut().map(|l| l as &mut dyn DevicePtrMut<f32>) };
    plan.run(stream, inputs, outputs, &schedule, &mut workspace)?;
    plan.status(stream, &mut schedule)?;
    Ok(Decoded { o, lse, logits })
}
