//! Convenience: plan, memory and launch in one call.

use crate::{DeviceInfo, Element, Inputs, Mode, Options, Outputs, Plan, Result, Shape, memory};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use std::sync::Arc;

/// What [`linear_attention`] gives back.
#[derive(Debug)]
pub struct Forwarded<T> {
    /// `[B,T,H,V]` with the strides of the shape.
    pub o: CudaSlice<T>,
    /// `[N,H,K,V]` final states.
    pub state: CudaSlice<f32>,
    /// `[N,H,K,V]` final states of the reverse direction, in [`Mode::Bidirectional`].
    pub reverse_state: Option<CudaSlice<f32>>,
    /// `[N,H,K]` final sums of keys, with a normaliser.
    pub normalizer: Option<CudaSlice<f32>>,
    /// `[B,T,H]` what the outputs were divided by, with a normaliser.
    pub denominator: Option<CudaSlice<f32>>,
}

/// Linear attention into new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn linear_attention<T: Element>(
    stream: &Arc<CudaStream>,
    shape: &Shape,
    options: &Options,
    inputs: &Inputs<'_, T>,
) -> Result<Forwarded<T>> {
    let plan = Plan::new(shape, options, &DeviceInfo::of(stream.context())?)?;
    let floats = |wanted: bool, tensor: &crate::strided::Strided| {
        wanted.then(|| memory::allocate::<f32>(stream, tensor.span(), "states")).transpose()
    };
    let normalized = options.normalize.is_some();
    let mut o = memory::allocate::<T>(stream, plan.layout.o.span(), "o")?;
    let mut state = memory::allocate::<f32>(stream, plan.layout.states.span(), "final states")?;
    let mut reverse_state = floats(options.mode == Mode::Bidirectional, &plan.layout.states)?;
    let mut normalizer = floats(normalized, &plan.layout.sums)?;
    let mut denominator = floats(normalized, &plan.layout.denominator)?;
    let mut workspace = memory::allocate::<u8>(stream, plan.workspace_bytes(), "workspace")?;
    let outputs = Outputs {
        o: &mut o,
        state: Some(&mut state),
        reverse_state: some(&mut reverse_state),
        normalizer: some(&mut normalizer),
        denominator: some(&mut denominator),
    };
    plan.run(stream, inputs, outputs, Some(&mut workspace))?;
    Ok(Forwarded { o, state, reverse_state, normalizer, denominator })
}

fn some(slice: &mut Option<CudaSlice<f32>>) -> Option<&mut dyn DevicePtrMut<f32>> {
    slice.as_mut().map(|s| s as &mut dyn DevicePtrMut<f32>)
}
