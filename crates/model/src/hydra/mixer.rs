//! One mixer: the paper's equations, one operation a line.

use super::Config;
use crate::checkpoint::Checkpoint;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_linear::{self as linear, Decay, Mode, Read, ReverseInputs, Stride, Strides};
use lookback_nn::gated_rms_norm::{self, Gate};
use lookback_nn::{Activation, Param, decay_gate, gemm, head_scale, short_convolution};
use std::sync::Arc;

/// Weights of a mixer on the device.
pub(super) struct Mixer<T> {
    /// `[2 inner + 4 G N + 2 H, width]`: rows of z, x, B→, C→, B←, C←, dt→, dt←.
    in_proj: CudaSlice<T>,
    conv_weight: CudaSlice<T>,
    conv_bias: CudaSlice<T>,
    dt_bias: CudaSlice<f32>,
    /// `A = -e^A_log`.
    a: CudaSlice<f32>,
    d: CudaSlice<f32>,
    /// `[H, inner]`.
    fc_d: CudaSlice<T>,
    norm: CudaSlice<f32>,
    out_proj: CudaSlice<T>,
}

/// Plans and memory of a pass.
pub(super) struct Work<T> {
    config: Config,
    in_proj: gemm::Plan,
    conv: short_convolution::Plan,
    steps: decay_gate::Plan,
    keys: head_scale::Plan,
    attention: linear::Plan,
    diagonal: gemm::Plan,
    skip: head_scale::Plan,
    gated_norm: gated_rms_norm::Plan,
    out_proj: gemm::Plan,
    projected: CudaSlice<T>,
    mixed: CudaSlice<T>,
    dt: CudaSlice<f32>,
    /// Log-decays and keys, forward and reverse.
    g: [CudaSlice<f32>; 2],
    k: [CudaSlice<T>; 2],
    y: CudaSlice<T>,
    own: CudaSlice<f32>,
    gated: CudaSlice<T>,
    workspace: CudaSlice<u8>,
}

impl<T: Element> Mixer<T> {
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, name: &str) -> Result<Self> {
        let Config { width, taps, heads, .. } = *config;
        let (inner, mixed) = (config.inner(), config.mixed());
        let name = |tensor: &str| format!("{name}.{tensor}");
        let matrix = |tensor: &str, shape: &[usize]| file.upload::<T>(stream, &name(tensor), shape);
        let vector = |tensor: &str, len: usize| file.upload::<f32>(stream, &name(tensor), &[len]);
        let a: Vec<f32> = file.tensor(&name("A_log"), &[heads])?.iter().map(|a| -f64::from(*a).exp() as f32).collect();
        Ok(Self {
            in_proj: matrix("in_proj.weight", &[config.projected(), width])?,
            conv_weight: matrix("conv1d.weight", &[mixed, 1, taps])?,
            conv_bias: matrix("conv1d.bias", &[mixed])?,
            dt_bias: vector("dt_bias", heads)?,
            a: stream.clone_htod(&a).map_err(|e| driver(e, "copy weights"))?,
            d: vector("D", heads)?,
            fc_d: matrix("fc_D.weight", &[heads, inner])?,
            norm: vector("norm.weight", inner)?,
            out_proj: matrix("out_proj.weight", &[width, inner])?,
        })
    }

    /// Adds the mixer's output for `hidden` to `residual`, both `[tokens, width]`.
    pub fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        hidden: &CudaSlice<T>,
        flags: &CudaSlice<u8>,
        residual: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let Work { config, projected, mixed, dt, g, k, y, own, gated, workspace, .. } = work;
        let (inner, bc) = (config.inner(), config.groups * config.state);
        // z, x B→ C→ B← C←, d→, d← = in_proj(h)
        work.in_proj.run(stream, hidden, &self.in_proj, Param::None, projected)?;
        let (z, xbc) = (projected.slice(..), projected.slice(inner..));
        // x B C = silu(conv(x B C))
        let inputs =
            short_convolution::Inputs { bias: Some(&self.conv_bias), flags: Some(flags), ..Default::default() };
        work.conv.run(stream, &xbc, &self.conv_weight, inputs, mixed, None)?;
        let x = mixed.slice(..);
        let [c, reverse_c] = [1, 3].map(|part| mixed.slice(inner + part * bc..));
        // Δ = softplus(d + dt_bias)    g = Δ A    k = Δ B, each way
        for way in 0..2 {
            let d = projected.slice(inner + config.mixed() + way * config.heads..);
            let params = decay_gate::Params { bias: Some(&self.dt_bias), rate: Some(&self.a) };
            work.steps.run(stream, &d, params, &mut g[way], Some(dt))?;
            let b = mixed.slice(inner + 2 * way * bc..);
            work.keys.run(stream, &b, head_scale::Factors { scale: Some(dt), bias: None }, &mut k[way])?;
        }
        // y[t] = h→[t-1]ᵀ C→[t-1] + h←[t+1]ᵀ C←[t+1]
        let reverse = ReverseInputs { q: Some(&reverse_c), k: Some(&k[1]), g: Some(&g[1]), state: None };
        let inputs =
            linear::Inputs { g: Some(&g[0]), flags: Some(flags), reverse, ..linear::Inputs::of(&c, &k[0], &x) };
        work.attention.run(stream, &inputs, linear::Outputs::of(y), Some(workspace))?;
        // y += (fc_D(x) + D) x
        work.diagonal.run(stream, &x, &self.fc_d, Param::None, own)?;
        work.skip.run(stream, &x, head_scale::Factors { scale: Some(own), bias: Some(&self.d) }, y)?;
        // residual += out_proj(rms_norm(y) silu(z))
        work.gated_norm.run(stream, y, &z, Param::F32(&self.norm), gated, None)?;
        work.out_proj.run(stream, gated, &self.out_proj, Param::None, residual)
    }
}

impl<T: Element> Work<T> {
    pub fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, tokens: usize) -> Result<Self> {
        let Config { width, state, taps, heads, head_dim, groups, eps, .. } = *config;
        let (inner, mixed, projected) = (config.inner(), config.mixed(), config.projected());
        let (row, dtype) = (projected as i64, T::DTYPE);
        let conv = short_convolution::Shape {
            x_stride_batch: tokens as i64 * row,
            x_stride_token: row,
            ..short_convolution::Shape::dense(1, tokens, mixed, taps).centred()
        };
        let silu = short_convolution::Options { dtype, activation: Activation::Silu };
        let steps = decay_gate::Shape { x_stride: row, ..decay_gate::Shape::dense(tokens, heads) };
        let softplus = decay_gate::Options { dtype, negated: false, bounds: (0.0, f32::INFINITY), rate: 0.0 };
        let b = head_scale::Shape {
            x_heads: groups,
            x_stride: mixed as i64,
            ..head_scale::Shape::dense(tokens, heads, state)
        };
        let x = head_scale::Shape { x_stride: mixed as i64, ..head_scale::Shape::dense(tokens, heads, head_dim) };
        let columns =
            |head: usize| Some(Stride { batch: (tokens * mixed) as i64, token: mixed as i64, head: head as i64 });
        let shape = linear::Shape {
            query_heads: groups,
            strides: Strides { q: columns(state), v: columns(head_dim), ..Strides::default() },
            ..linear::Shape::dense(1, tokens, heads, state, head_dim)
        };
        let options = linear::Options {
            decay: Decay::Scalar,
            read: Read::Shifted,
            mode: Mode::Bidirectional,
            scale: 1.0,
            ..linear::Options::new::<T>(&shape)
        };
        let attention = linear::Plan::new(&shape, &options, device)?;
        let gated = gated_rms_norm::Shape { z_stride: row, ..gated_rms_norm::Shape::dense(tokens, inner) };
        let gated_options = gated_rms_norm::Options { dtype, gate: Gate::Silu, norm_before_gate: true, eps };
        let to_f32 = gemm::Options { out: DType::F32, ..gemm::Options::new(dtype) };
        let diagonal = gemm::Shape { lda: mixed as i64, ..gemm::Shape::linear(tokens, heads, inner) };
        let allocated = |e| driver(e, "allocate activations");
        let memory = |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(allocated);
        let wide_memory = |width: usize| stream.alloc_zeros::<f32>(tokens * width).map_err(allocated);
        let workspace = attention.workspace_bytes().max(1) as usize;
        Ok(Self {
            config: *config,
            in_proj: gemm::Plan::new(
                &gemm::Shape::linear(tokens, projected, width),
                &gemm::Options::new(dtype),
                device,
            )?,
            conv: short_convolution::Plan::new(&conv, &silu, device)?,
            steps: decay_gate::Plan::new(&steps, &softplus, device)?,
            keys: head_scale::Plan::new(&b, &head_scale::Options { dtype, accumulate: false }, device)?,
            attention,
            diagonal: gemm::Plan::new(&diagonal, &to_f32, device)?,
            skip: head_scale::Plan::new(&x, &head_scale::Options { dtype, accumulate: true }, device)?,
            gated_norm: gated_rms_norm::Plan::new(&gated, &gated_options, device)?,
            out_proj: gemm::Plan::new(&gemm::Shape::linear(tokens, width, inner), &to_f32, device)?.accumulating(),
            projected: memory(projected)?,
            mixed: memory(mixed)?,
            dt: wide_memory(heads)?,
            g: [wide_memory(heads)?, wide_memory(heads)?],
            k: [memory(heads * state)?, memory(heads * state)?],
            y: memory(inner)?,
            own: wide_memory(heads)?,
            gated: memory(inner)?,
            workspace: stream.alloc_zeros(workspace).map_err(|e| driver(e, "allocate workspace"))?,
        })
    }
}
