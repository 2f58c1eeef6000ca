//! Short causal convolution over time, channel by channel: `out[t] = act(bias + sum over j of weight[j] x[t - (taps - 1) + j])`.

use crate::{
    Activation,
    check::{self, Placed, Rows},
    memory,
    rows::{Cover, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Result, launch};
use std::sync::Arc;

const OP: &str = "short_conv";
/// Threads of a block.
const BLOCK: usize = 128;
/// Bit of a flag that marks the first token of a segment.
pub const SEGMENT_START: u8 = 1;

/// Sizes and strides. Channels are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Channels.
    pub channels: usize,
    /// Width of the window: 2, 3 or 4.
    pub taps: usize,
    /// Elements of `x` from a sequence to the next.
    pub x_stride_batch: i64,
    /// Elements of `x` from a token to the next.
    pub x_stride_token: i64,
    /// Elements of `out` from a sequence to the next.
    pub out_stride_batch: i64,
    /// Elements of `out` from a token to the next.
    pub out_stride_token: i64,
}

impl Shape {
    /// Tensors without gaps.
    pub fn dense(batch: usize, tokens: usize, channels: usize, taps: usize) -> Self {
        let (token, sequence) = (channels as i64, (tokens as i64).saturating_mul(channels as i64));
        Self {
            batch,
            tokens,
            channels,
            taps,
            x_stride_batch: sequence,
            x_stride_token: token,
            out_stride_batch: sequence,
            out_stride_token: token,
        }
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of every tensor but the flags.
    pub dtype: DType,
    /// Applied to the sum.
    pub activation: Activation,
}

/// What a launch reads besides `x` and `weight`.
pub struct Inputs<'a, T> {
    /// `[channels]`; absent means 0.
    pub bias: Option<&'a dyn DevicePtr<T>>,
    /// `[batch, tokens]`; bit [`SEGMENT_START`] of a token hides everything before it. Absent means none.
    pub flags: Option<&'a dyn DevicePtr<u8>>,
    /// `[batch, taps - 1, channels]`: the inputs before the first token, oldest first. Absent means zeros.
    pub state: Option<&'a dyn DevicePtr<T>>,
}

impl<T> Default for Inputs<'_, T> {
    fn default() -> Self {
        Self { bias: None, flags: None, state: None }
    }
}

/// Addresses of [`Inputs`] and of the state that comes out, for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawInputs {
    /// See [`Inputs::bias`].
    pub bias: CUdeviceptr,
    /// See [`Inputs::flags`].
    pub flags: CUdeviceptr,
    /// See [`Inputs::state`].
    pub state: CUdeviceptr,
}

/// A checked convolution.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    policy: Policy,
    kernels: Variants,
}

/// How a launch is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    /// Tokens that one thread walks.
    run: usize,
}

impl Policy {
    /// Long runs read fewer tokens twice (taps - 1 a run); short ones keep a small problem on every multiprocessor.
    fn of(shape: &Shape, device: &DeviceInfo) -> Self {
        let wanted = device.sm_count as usize * 1024;
        let threads = |run: usize| shape.batch * shape.tokens.div_ceil(run) * shape.channels.div_ceil(8);
        let run = [64, 32, 16].into_iter().find(|run| threads(*run) >= wanted).unwrap_or(8);
        Self { run }
    }
}

impl Plan {
    /// Checks sizes and strides, finds the kernels and cuts time into runs.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large, or `taps` not 2, 3 or 4; [`Error::Layout`](crate::Error::Layout) ← a negative input stride, or tokens or
    /// sequences of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "batch", shape.batch, 0, 65_535)?;
        check::range(OP, "tokens", shape.tokens, 0, check::MAX_EXTENT)?;
        check::range(OP, "channels", shape.channels, 0, 65_535 * BLOCK)?;
        check::range(OP, "taps", shape.taps, 2, 4)?;
        let taps = ["2", "3", "4"][shape.taps - 2];
        let kernels = Variants::find(OP, "short_conv", options.dtype, &[("taps", taps)])?;
        let plan = Self { shape: *shape, options: *options, policy: Policy::of(shape, device), kernels };
        if shape.batch == 0 || shape.tokens == 0 {
            return Ok(plan);
        }
        // The inner rows first: the extent of the outer ones is computed from them.
        check::readable(OP, "x", &plan.sequence(shape.x_stride_token))?;
        check::readable(OP, "x", &plan.sequences(shape.x_stride_batch))?;
        check::readable(OP, "x", &plan.x())?;
        check::writable(OP, "out", &plan.sequence(shape.out_stride_token))?;
        check::writable(OP, "out", &plan.sequences(shape.out_stride_batch))?;
        check::writable(OP, "out", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with flags and both states.
    pub fn bytes_moved(&self) -> u64 {
        let Shape { batch, tokens, channels, taps, .. } = self.shape;
        2 * self.sequence(0).bytes() * batch as u64
            + 2 * self.state().bytes()
            + (channels * taps * self.options.dtype.size() + batch * tokens) as u64
    }

    /// Floating-point operations: a product and a sum a tap; the activation is not counted.
    pub fn flops(&self) -> u64 {
        2 * self.shape.taps as u64 * self.sequence(0).elements() * self.shape.batch as u64
    }

    /// One sequence, token by token.
    fn sequence(&self, stride: i64) -> Rows {
        Rows::new(self.shape.tokens, self.shape.channels, stride, self.options.dtype.size())
    }

    /// One token of each sequence.
    fn sequences(&self, stride: i64) -> Rows {
        Rows::new(self.shape.batch, self.shape.channels, stride, self.options.dtype.size())
    }

    /// A whole tensor as rows of the smaller stride, gaps between them included, at the larger stride.
    fn tensor(&self, stride_batch: i64, stride_token: i64) -> Rows {
        let Shape { batch, tokens, channels, .. } = self.shape;
        let size = self.options.dtype.size();
        let ((outer, outer_stride), (inner, inner_stride)) = if stride_batch >= stride_token {
            ((batch, stride_batch), (tokens, stride_token))
        } else {
            ((tokens, stride_token), (batch, stride_batch))
        };
        let inner = Rows::new(inner, channels, inner_stride, size);
        let width = usize::try_from(inner.span()).unwrap_or(usize::MAX);
        Rows::new(outer, width, outer_stride, size)
    }

    fn x(&self) -> Rows {
        self.tensor(self.shape.x_stride_batch, self.shape.x_stride_token)
    }

    fn out(&self) -> Rows {
        self.tensor(self.shape.out_stride_batch, self.shape.out_stride_token)
    }

    fn state(&self) -> Rows {
        let Shape { batch, channels, taps, .. } = self.shape;
        Rows::new(batch * (taps - 1), channels, channels as i64, self.options.dtype.size())
    }

    fn weight(&self) -> Rows {
        let Shape { channels, taps, .. } = self.shape;
        Rows::new(1, channels * taps, 0, self.options.dtype.size())
    }

    /// `out[t] = act(bias + sum over j of weight[j] x[t - (taps - 1) + j])`; the last tap meets the current token.
    ///
    /// # Shapes
    /// `x`, `out`: `[batch, tokens, channels]` of the plan's type and strides. `weight`: `[channels, taps]` dense. `state_out`:
    /// `[batch, taps - 1, channels]`, the inputs that the next call wants as [`Inputs::state`], zero where a segment start hides
    /// them; it may be the same memory only through [`run_raw`](Self::run_raw).
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too short; [`Error::Alias`](crate::Error::Alias) ← an output
    /// overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32` from the bias, oldest tap first, rounded once. States are copies.
    ///
    /// # Determinism
    /// Bitwise, and the same whether a sequence comes whole or in pieces.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        weight: &impl DevicePtr<T>,
        inputs: Inputs<'_, T>,
        out: &mut impl DevicePtrMut<T>,
        state_out: Option<&mut dyn DevicePtrMut<T>>,
    ) -> Result<()> {
        let Shape { batch, tokens, channels, .. } = self.shape;
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "weight", self.weight().span(), weight.len())?;
        if let Some(bias) = inputs.bias {
            check::length(OP, "bias", channels as u64, bias.len())?;
        }
        if let Some(flags) = inputs.flags {
            check::length(OP, "flags", batch as u64 * tokens as u64, flags.len())?;
        }
        if let Some(state) = inputs.state {
            check::length(OP, "state", self.state().span(), state.len())?;
        }
        check::length(OP, "out", self.out().span(), out.len())?;
        if let Some(state) = &state_out {
            check::length(OP, "state_out", self.state().span(), state.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (weight, _weight) = weight.device_ptr(stream);
        let (bias, _bias) = memory::input(inputs.bias, stream);
        let (flags, _flags) = memory::input(inputs.flags, stream);
        let (state, _state) = memory::input(inputs.state, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let (state_out, _state_out) = memory::output(state_out, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, weight, RawInputs { bias, flags, state }, out, state_out) }
    }

    /// As [`run`](Self::run) on device addresses; `state_out` may be 0 for absent, or `inputs.state` itself.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` and `state_out` writable, over the plan's extents until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        weight: CUdeviceptr,
        inputs: RawInputs,
        out: CUdeviceptr,
        state_out: CUdeviceptr,
    ) -> Result<()> {
        let Shape { batch, tokens, channels, .. } = self.shape;
        let RawInputs { bias, flags, state } = inputs;
        let size = self.options.dtype.size();
        let present = |address: CUdeviceptr, rows: Rows| if address == 0 { Rows::new(0, 0, 0, 1) } else { rows };
        let (x_rows, out_rows, weight_rows) = (self.x(), self.out(), self.weight());
        let bias_rows = present(bias, Rows::new(1, channels, 0, size));
        let flags_rows = present(flags, Rows::new(1, batch * tokens, 0, 1));
        let (state_rows, state_out_rows) = (present(state, self.state()), present(state_out, self.state()));
        let read: [Placed<'_>; 4] = [
            ("x", x, &x_rows),
            ("weight", weight, &weight_rows),
            ("bias", bias, &bias_rows),
            ("flags", flags, &flags_rows),
        ];
        let state_at: Placed<'_> = ("state", state, &state_rows);
        let out_at: Placed<'_> = ("out", out, &out_rows);
        let state_out_at: Placed<'_> = ("state_out", state_out, &state_out_rows);
        check::addresses(OP, &read)?;
        check::addresses(OP, &[state_at, out_at, state_out_at])?;
        check::disjoint(OP, out_at, &read)?;
        check::disjoint(OP, out_at, &[state_at, state_out_at])?;
        check::disjoint(OP, state_out_at, &read)?;
        check::disjoint_or_same(OP, state_out_at, state_at)?;
        if batch == 0 || channels == 0 || (tokens == 0 && state_out == 0) {
            return Ok(());
        }
        // Accesses go along channels, so those must fit 16 bytes, and so must every stride.
        let x_tokens = self.sequence(self.shape.x_stride_token);
        let out_tokens = self.sequence(self.shape.out_stride_token);
        let (kernel, vec) = self.kernels.pick(&[
            (x, &x_tokens),
            (x, &self.sequences(self.shape.x_stride_batch)),
            (out, &out_tokens),
            (out, &self.sequences(self.shape.out_stride_batch)),
            (state, &state_rows),
            (state_out, &state_out_rows),
            (weight, &weight_rows),
            (bias, &bias_rows),
        ]);
        let runs = tokens.div_ceil(self.policy.run).max(1);
        let cover = Cover::whole(runs, channels, vec, BLOCK);
        let args = lookback_kernels::args::ShortConv {
            p_x: x,
            p_weight: weight,
            p_bias: bias,
            p_flags: flags,
            p_state: state,
            p_out: out,
            p_state_out: state_out,
            tokens: tokens as u32,
            channels: channels as u32,
            x_stride_batch: self.shape.x_stride_batch,
            x_stride_token: self.shape.x_stride_token,
            out_stride_batch: self.shape.out_stride_batch,
            out_stride_token: self.shape.out_stride_token,
            activation: self.options.activation.code(),
            run: self.policy.run as u32,
            lane_bits: cover.lane_bits,
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [cover.grid[0], cover.grid[1], batch as u32], &args) }
    }
}

/// The convolution of dense sequences with no state and no flags, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn short_conv<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    weight: &impl DevicePtr<T>,
    bias: Option<&dyn DevicePtr<T>>,
    shape: &Shape,
    activation: Activation,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let dense = Shape::dense(shape.batch, shape.tokens, shape.channels, shape.taps);
    let plan = Plan::new(&dense, &Options { dtype: T::DTYPE, activation }, &device)?;
    let mut out = memory::allocate(stream, usize::try_from(plan.out().span()).unwrap_or(usize::MAX), OP)?;
    plan.run(stream, x, weight, Inputs { bias, ..Inputs::default() }, &mut out, None)?;
    Ok(out)
}
