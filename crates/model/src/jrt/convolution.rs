//! The gated convolution: `out_proj(silu(conv(u1)) u2)`, `u1, u2 = in_proj(x)`.

use super::Config;
use crate::checkpoint::Checkpoint;
use crate::decoder::{Extent, Tokens};
use crate::recurrence::Stage;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_nn::{Activation, Param, gate, gemm, short_convolution};
use std::sync::Arc;

/// Weights of a gated convolution on the device.
pub struct Convolution<T> {
    in_weight: CudaSlice<T>,
    in_bias: CudaSlice<T>,
    conv: CudaSlice<T>,
    conv_bias: Option<CudaSlice<T>>,
    out_weight: CudaSlice<T>,
    out_bias: CudaSlice<T>,
}

/// Plans and memory of a pass.
pub(super) struct Work<T> {
    channels: usize,
    stage: Stage,
    in_proj: gemm::Plan,
    conv: short_convolution::Plan,
    gate: gate::Plan,
    out_proj: gemm::Plan,
    made: CudaSlice<T>,
    mixed: CudaSlice<T>,
    gated: CudaSlice<T>,
}

/// The convolution's last inputs, `[rows, taps - 1, channels]`, and where the next are written.
pub struct Carry<T> {
    taps: CudaSlice<T>,
    next_taps: CudaSlice<T>,
}

impl<T: Element> Carry<T> {
    pub(super) fn new(stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Self> {
        let taps = rows * (config.taps - 1) * config.channels;
        let memory = || stream.alloc_zeros::<T>(taps).map_err(|e| driver(e, "allocate carried state"));
        Ok(Self { taps: memory()?, next_taps: memory()? })
    }
}

impl<T: Element> Work<T> {
    pub fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Self> {
        let Config { width, channels, taps, .. } = *config;
        let (tokens, dtype, row) = (extent.tokens(), T::DTYPE, 2 * channels as i64);
        let conv = short_convolution::Shape {
            x_stride_batch: extent.len as i64 * row,
            x_stride_token: row,
            ..short_convolution::Shape::dense(extent.rows, extent.len, channels, taps)
        };
        let silu = short_convolution::Options { dtype, activation: Activation::Silu };
        let halves = gate::Shape { y_stride: row, ..gate::Shape::dense(tokens, channels) };
        let product = gate::Options { dtype, activation: Activation::None };
        let residual = gemm::Options { out: DType::F32, ..gemm::Options::new(dtype) };
        let memory =
            |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(|e| driver(e, "allocate activations"));
        let in_proj = gemm::Shape::linear(tokens, 2 * channels, width);
        Ok(Self {
            channels,
            stage: extent.stage,
            in_proj: gemm::Plan::new(&in_proj, &gemm::Options::new(dtype), device)?,
            conv: short_convolution::Plan::new(&conv, &silu, device)?,
            gate: gate::Plan::new(&halves, &product, device)?,
            out_proj: gemm::Plan::new(&gemm::Shape::linear(tokens, width, channels), &residual, device)?.accumulating(),
            made: memory(2 * channels)?,
            mixed: memory(channels)?,
            gated: memory(channels)?,
        })
    }
}

impl<T: Element> Convolution<T> {
    pub(super) fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, name: &str) -> Result<Self> {
        let Config { width, channels, taps, .. } = *config;
        let load = |tensor: &str, shape: &[usize]| file.upload::<T>(stream, &format!("{name}.{tensor}"), shape);
        // Only convolutions that were trained with a fused kernel have a bias.
        let has_bias = file.contains(&format!("{name}.conv1.conv.bias"));
        Ok(Self {
            in_weight: load("in_proj.weight", &[2 * channels, width])?,
            in_bias: load("in_proj.bias", &[2 * channels])?,
            conv: load("conv1.conv.weight", &[channels, 1, taps])?,
            conv_bias: has_bias.then(|| load("conv1.conv.bias", &[channels])).transpose()?,
            out_weight: load("out_proj.weight", &[width, channels])?,
            out_bias: load("out_proj.bias", &[width])?,
        })
    }

    /// Adds the mixer's output for `normed` to `residual`.
    pub(super) fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        normed: &CudaSlice<T>,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        carry: &mut Carry<T>,
    ) -> Result<()> {
        let Work { channels, made, mixed, gated, .. } = work;
        work.in_proj.run(stream, normed, &self.in_weight, Param::Same(&self.in_bias), made)?;
        let (u1, u2) = (made.slice(..), made.slice(*channels..));
        let inputs = short_convolution::Inputs {
            bias: self.conv_bias.as_ref().map(|bias| bias as _),
            flags: tokens.flags.map(|flags| flags as _),
            state: (work.stage == Stage::Step).then_some(&carry.taps as _),
            ..Default::default()
        };
        work.conv.run(stream, &u1, &self.conv, inputs, mixed, Some(&mut carry.next_taps))?;
        std::mem::swap(&mut carry.taps, &mut carry.next_taps);
        work.gate.run(stream, mixed, &u2, gated)?;
        work.out_proj.run(stream, gated, &self.out_weight, Param::Same(&self.out_bias), residual)
    }
}
