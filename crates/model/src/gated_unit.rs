//! The gated unit that follows a mixer: `residual += W_down (silu(gate) up)`, where `gate` and `up` are halves of one projection of the
//! normed residual.

use crate::decoder::Extent;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_nn::{Activation, Param, gate, gemm, residual_norm};
use std::sync::Arc;

/// Weights of a unit on the device.
pub(crate) struct GatedUnit<T> {
    pub norm: CudaSlice<f32>,
    /// `[2 inner, width]`.
    pub both: CudaSlice<T>,
    /// Whether the first half of `both` is the gate's; else the last.
    pub gate_first: bool,
    /// `[width, inner]`.
    pub down: CudaSlice<T>,
}

/// Plans and memory of a pass.
pub(crate) struct Work<T> {
    inner: usize,
    norm: residual_norm::Plan,
    both: gemm::Plan,
    gate: gate::Plan,
    down: gemm::Plan,
    normed: CudaSlice<T>,
    made: CudaSlice<T>,
    gated: CudaSlice<T>,
}

impl<T: Element> Work<T> {
    pub fn new(
        stream: &Arc<CudaStream>,
        device: &DeviceInfo,
        (width, inner, eps): (usize, usize, f32),
        extent: Extent,
    ) -> Result<Self> {
        let (tokens, dtype) = (extent.tokens(), T::DTYPE);
        let norm = residual_norm::Options { dtype, eps, center: false, post: false };
        let half = 2 * inner as i64;
        let halves = gate::Shape { x_stride: half, y_stride: half, ..gate::Shape::dense(tokens, inner) };
        let residual = gemm::Options { out: DType::F32, ..gemm::Options::new(dtype) };
        let memory =
            |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(|e| driver(e, "allocate activations"));
        Ok(Self {
            inner,
            norm: residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &norm, device)?,
            both: gemm::Plan::new(&gemm::Shape::linear(tokens, 2 * inner, width), &gemm::Options::new(dtype), device)?,
            gate: gate::Plan::new(&halves, &gate::Options { dtype, activation: Activation::Silu }, device)?,
            down: gemm::Plan::new(&gemm::Shape::linear(tokens, width, inner), &residual, device)?.accumulating(),
            normed: memory(width)?,
            made: memory(2 * inner)?,
            gated: memory(inner)?,
        })
    }
}

impl<T: Element> GatedUnit<T> {
    /// Adds the unit's output to `residual`.
    pub fn run(&self, stream: &CudaStream, work: &mut Work<T>, residual: &mut CudaSlice<f32>) -> Result<()> {
        let Work { inner, normed, made, gated, .. } = work;
        let inputs = residual_norm::Inputs { residual: Some(residual), weight: Some(&self.norm), ..Default::default() };
        work.norm.run(stream, inputs, None, Some(normed))?;
        work.both.run(stream, normed, &self.both, Param::None, made)?;
        let halves = (made.slice(..), made.slice(*inner..));
        let (gate, up) = if self.gate_first { halves } else { (halves.1, halves.0) };
        work.gate.run(stream, &gate, &up, gated)?;
        work.down.run(stream, gated, &self.down, Param::None, residual)
    }
}
