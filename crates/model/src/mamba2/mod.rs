//! Mamba-2: a state space model whose layers are scalar-decay linear attention between a short convolution and a gated norm.
//!
//! [`Mamba2`] loads checkpoints in the published tensor names (`backbone.layers.{i}.mixer.in_proj.weight` ..); the head is the
//! embedding where the file has no `lm_head.weight`.
//!
//! ```no_run
//! use lookback_model::{checkpoint::Checkpoint, mamba2::{Config, Mamba2}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = lookback_device::open(lookback_device::DevicePick::Auto)?.default_stream();
//! let file = Checkpoint::open("mamba2-130m.safetensors")?;
//! let model = Mamba2::<f32>::load(&stream, &file, &Config::of(&file, 1)?)?;
//! let (logits, mut generation) = model.prefill(&[&[12092, 13, 619]])?;
//! let next = model.step(&mut generation, &[1416])?;
//! # let _ = (logits, next);
//! # Ok(())
//! # }
//! ```

mod config;

pub use config::Config;

use crate::checkpoint::Checkpoint;
use crate::decoder::{Decoder, Extent, Frame, FrameNames, Layer, Tokens};
use crate::recurrence::{Recurrence, States};
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_linear::{self as linear, Decay, Stride, Strides};
use lookback_nn::gated_rms_norm::{self, Gate};
use lookback_nn::{Activation, Param, decay_gate, gemm, head_scale, residual_norm, short_convolution};
use std::sync::Arc;

/// A Mamba-2 language model with activations of type `T`.
pub type Mamba2<T> = Decoder<T, Mixer<T>>;

/// A layer: the norm, then the mixer.
pub struct Mixer<T> {
    norm: CudaSlice<f32>,
    /// `[2 inner + 2 G N + H, width]`: rows of z, x, B, C, dt.
    in_proj: CudaSlice<T>,
    conv_weight: CudaSlice<T>,
    conv_bias: CudaSlice<T>,
    dt_bias: CudaSlice<f32>,
    /// `A = -e^A_log`.
    a: CudaSlice<f32>,
    d: CudaSlice<f32>,
    gated_norm: CudaSlice<f32>,
    out_proj: CudaSlice<T>,
}

/// Plans and memory of a pass.
pub struct Work<T> {
    config: Config,
    norm: residual_norm::Plan,
    in_proj: gemm::Plan,
    conv: short_convolution::Plan,
    steps: decay_gate::Plan,
    values: head_scale::Plan,
    attention: Recurrence,
    skip: head_scale::Plan,
    gated_norm: gated_rms_norm::Plan,
    out_proj: gemm::Plan,
    normed: CudaSlice<T>,
    projected: CudaSlice<T>,
    mixed: CudaSlice<T>,
    dt: CudaSlice<f32>,
    g: CudaSlice<f32>,
    v: CudaSlice<T>,
    y: CudaSlice<T>,
    gated: CudaSlice<T>,
}

/// The convolution's last inputs and the state.
pub struct Carry<T> {
    /// `[rows, taps - 1, inner + 2 G N]`.
    taps: CudaSlice<T>,
    /// Where the next ones are written.
    next_taps: CudaSlice<T>,
    states: States,
}

/// q, k, v of one pass: C and B are columns of the convolution's output, values are dense.
fn attention_shape(config: &Config, extent: Extent) -> linear::Shape {
    let Config { state, heads, head_dim, groups, .. } = *config;
    let columns =
        Stride { batch: (extent.len * config.mixed()) as i64, token: config.mixed() as i64, head: state as i64 };
    linear::Shape {
        query_heads: groups,
        key_heads: groups,
        strides: Strides { q: Some(columns), k: Some(columns), ..Strides::default() },
        ..linear::Shape::dense(extent.rows, extent.len, heads, state, head_dim)
    }
}

impl<T: Element> Layer<T> for Mixer<T> {
    type Config = Config;
    type Work = Work<T>;
    type Carry = Carry<T>;

    fn frame(config: &Config) -> Frame {
        let Config { vocabulary, width, layers, eps, .. } = *config;
        Frame { vocabulary, width, layers, eps }
    }

    fn names() -> FrameNames {
        FrameNames { embedding: "backbone.embedding.weight", norm: "backbone.norm_f.weight", head: "lm_head.weight" }
    }

    fn check(config: &Config) -> Result<()> {
        config.check()
    }

    fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, layer: usize) -> Result<Self> {
        let Config { width, taps, heads, .. } = *config;
        let (inner, mixed) = (config.inner(), config.mixed());
        let name = |name: &str| format!("backbone.layers.{layer}.{name}");
        let matrix = |tensor: &str, shape: &[usize]| file.upload::<T>(stream, &name(tensor), shape);
        let vector = |tensor: &str, len: usize| file.upload::<f32>(stream, &name(tensor), &[len]);
        let a: Vec<f32> =
            file.tensor(&name("mixer.A_log"), &[heads])?.iter().map(|a| -f64::from(*a).exp() as f32).collect();
        Ok(Self {
            norm: vector("norm.weight", width)?,
            in_proj: matrix("mixer.in_proj.weight", &[config.projected(), width])?,
            conv_weight: matrix("mixer.conv1d.weight", &[mixed, 1, taps])?,
            conv_bias: matrix("mixer.conv1d.bias", &[mixed])?,
            dt_bias: vector("mixer.dt_bias", heads)?,
            a: stream.clone_htod(&a).map_err(|e| driver(e, "copy weights"))?,
            d: vector("mixer.D", heads)?,
            gated_norm: vector("mixer.norm.weight", inner)?,
            out_proj: matrix("mixer.out_proj.weight", &[width, inner])?,
        })
    }

    fn work(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Work<T>> {
        let Config { width, taps, heads, head_dim, groups, dt_limit, eps, .. } = *config;
        let (inner, mixed, projected) = (config.inner(), config.mixed(), config.projected());
        let (tokens, row) = (extent.tokens(), projected as i64);
        let dtype = T::DTYPE;
        let pre_norm = residual_norm::Options { dtype, eps, center: false, post: false };
        let conv = short_convolution::Shape {
            x_stride_batch: extent.len as i64 * row,
            x_stride_token: row,
            ..short_convolution::Shape::dense(extent.rows, extent.len, mixed, taps)
        };
        let silu = short_convolution::Options { dtype, activation: Activation::Silu };
        let steps = decay_gate::Shape { x_stride: row, ..decay_gate::Shape::dense(tokens, heads) };
        let softplus = decay_gate::Options { dtype, negated: false, bounds: dt_limit, rate: 0.0 };
        let parts = head_scale::Shape { x_stride: mixed as i64, ..head_scale::Shape::dense(tokens, heads, head_dim) };
        let scaled = |accumulate| head_scale::Plan::new(&parts, &head_scale::Options { dtype, accumulate }, device);
        let shape = attention_shape(config, extent);
        let options = linear::Options { decay: Decay::Scalar, scale: 1.0, ..linear::Options::new::<T>(&shape) };
        let gated = gated_rms_norm::Shape {
            z_stride: row,
            ..gated_rms_norm::Shape::dense(tokens, inner).groups_of(inner / groups)
        };
        let gated_options = gated_rms_norm::Options { dtype, gate: Gate::Silu, norm_before_gate: false, eps };
        let residual = gemm::Options { out: DType::F32, ..gemm::Options::new(dtype) };
        let allocated = |e| driver(e, "allocate activations");
        let memory = |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(allocated);
        let wide_memory = |width: usize| stream.alloc_zeros::<f32>(tokens * width).map_err(allocated);
        Ok(Work {
            config: *config,
            norm: residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &pre_norm, device)?,
            in_proj: gemm::Plan::new(
                &gemm::Shape::linear(tokens, projected, width),
                &gemm::Options::new(dtype),
                device,
            )?,
            conv: short_convolution::Plan::new(&conv, &silu, device)?,
            steps: decay_gate::Plan::new(&steps, &softplus, device)?,
            values: scaled(false)?,
            attention: Recurrence::new(stream, device, &shape, &options, extent.stage)?,
            skip: scaled(true)?,
            gated_norm: gated_rms_norm::Plan::new(&gated, &gated_options, device)?,
            out_proj: gemm::Plan::new(&gemm::Shape::linear(tokens, width, inner), &residual, device)?.accumulating(),
            normed: memory(width)?,
            projected: memory(projected)?,
            mixed: memory(mixed)?,
            dt: wide_memory(heads)?,
            g: wide_memory(heads)?,
            v: memory(inner)?,
            y: memory(inner)?,
            gated: memory(inner)?,
        })
    }

    fn carry(&self, stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Carry<T>> {
        let taps = rows * (config.taps - 1) * config.mixed();
        let memory = || stream.alloc_zeros::<T>(taps).map_err(|e| driver(e, "allocate carried state"));
        let one = Extent { rows, len: 1, stage: crate::recurrence::Stage::Step };
        let states = States::new(stream, &attention_shape(config, one), false)?;
        Ok(Carry { taps: memory()?, next_taps: memory()?, states })
    }

    fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        carry: &mut Carry<T>,
    ) -> Result<()> {
        let Work { config, normed, projected, mixed, dt, g, v, y, gated, .. } = work;
        let (inner, bc) = (config.inner(), config.groups * config.state);
        // z, x B C, d = in_proj(rms_norm(residual))
        let inputs = residual_norm::Inputs { residual: Some(residual), weight: Some(&self.norm), ..Default::default() };
        work.norm.run(stream, inputs, None, Some(normed))?;
        work.in_proj.run(stream, normed, &self.in_proj, Param::None, projected)?;
        let (z, xbc) = (projected.slice(..), projected.slice(inner..));
        let d = projected.slice(inner + config.mixed()..);
        // x B C = silu(conv(x B C))
        let flags = tokens.flags.map(|flags| flags as _);
        let before = work.attention.goes_on().then_some(&carry.taps as _);
        let inputs =
            short_convolution::Inputs { bias: Some(&self.conv_bias), flags, state: before, ..Default::default() };
        work.conv.run(stream, &xbc, &self.conv_weight, inputs, mixed, Some(&mut carry.next_taps))?;
        std::mem::swap(&mut carry.taps, &mut carry.next_taps);
        let (x, b, c) = (mixed.slice(..), mixed.slice(inner..), mixed.slice(inner + bc..));
        // Δ = softplus(d + dt_bias)    g = Δ A    v = Δ x
        let params = decay_gate::Params { bias: Some(&self.dt_bias), rate: Some(&self.a) };
        work.steps.run(stream, &d, params, g, Some(dt))?;
        work.values.run(stream, &x, head_scale::Factors { scale: Some(dt), bias: None }, v)?;
        // h[t] = e^g h[t-1] + B ⊗ v    y = hᵀC + D x
        let inputs = linear::Inputs { g: Some(g), flags, ..linear::Inputs::of(&c, &b, v) };
        work.attention.run(stream, &inputs, y, &mut carry.states)?;
        work.skip.run(stream, &x, head_scale::Factors { scale: None, bias: Some(&self.d) }, y)?;
        // residual += out_proj(rms_norm(y silu(z)))
        work.gated_norm.run(stream, y, &z, Param::F32(&self.gated_norm), gated, None)?;
        work.out_proj.run(stream, gated, &self.out_proj, Param::None, residual)
    }
}
