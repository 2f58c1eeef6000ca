//! Short convolution over time, channel by channel, causal or centred: `out[t] = act(bias + sum over j of weight[j] x[t - before + j])`,
//! where `before` is `taps - 1` in a causal window and `taps / 2` in a centred one. Nothing crosses from one sequence, or segment
//! of a sequence, into another.

mod backward;
mod shape;

pub use backward::{Adjoints, BackwardPlan, Gradients, RawGradients};
pub use shape::{Shape, Window};

use crate::{
    Activation, check, memory,
    rows::{Cover, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DType, DeviceInfo, Element, Result, launch,
    strided::{self, Placed, Strided},
};
use std::sync::Arc;

const OP: &str = "short_convolution";
/// Threads of a block.
const BLOCK: usize = 128;
/// Bit of a flag that marks the first token of a segment.
pub const SEGMENT_START: u8 = 1;

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of every tensor but the flags and the starts.
    pub dtype: DType,
    /// Applied to the sum.
    pub activation: Activation,
}

/// What a launch reads besides `x` and `weight`.
pub struct Inputs<'a, T> {
    /// `[channels]`; absent means 0.
    pub bias: Option<&'a dyn DevicePtr<T>>,
    /// `[batch, tokens]`; bit [`SEGMENT_START`] of a token parts it from everything before it. Absent means none.
    pub flags: Option<&'a dyn DevicePtr<u8>>,
    /// `[sequences + 1]` of a packed shape: where each sequence begins, from 0 on, and the end of the last. Tokens behind that end
    /// are neither read nor written.
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[sequences, taps - 1, channels]` of a causal window: the inputs before the first token, oldest first. Absent means zeros.
    pub state: Option<&'a dyn DevicePtr<T>>,
}

impl<T> Default for Inputs<'_, T> {
    fn default() -> Self {
        Self { bias: None, flags: None, cu_seqlens: None, state: None }
    }
}

/// Addresses of [`Inputs`], for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawInputs {
    /// See [`Inputs::bias`].
    pub bias: CUdeviceptr,
    /// See [`Inputs::flags`].
    pub flags: CUdeviceptr,
    /// See [`Inputs::cu_seqlens`].
    pub cu_seqlens: CUdeviceptr,
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
    /// One thread walks 2^run_bits tokens.
    run_bits: u32,
}

impl Policy {
    /// Long runs read fewer tokens twice (taps - 1 a run); short ones keep a small problem on every multiprocessor. No run is
    /// shorter than the window.
    fn of(shape: &Shape, device: &DeviceInfo) -> Self {
        let wanted = device.sm_count as usize * 1024;
        let threads = |bits: u32| {
            let runs = shape.batch.saturating_mul(shape.tokens.div_ceil(1 << bits));
            runs.saturating_mul(shape.channels.div_ceil(8))
        };
        let run_bits = [6, 5, 4].into_iter().find(|bits| threads(*bits) >= wanted).unwrap_or(3);
        Self { run_bits }
    }
}

impl Plan {
    /// Checks sizes and strides, finds the kernels and cuts time into runs.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large, or packed sequences in several rows;
    /// [`Error::NoKernel`](crate::Error::NoKernel) ← a width that no kernel has; [`Error::Layout`](crate::Error::Layout) ← a
    /// negative input stride, or tokens or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        shape.check()?;
        let kernels = Variants::find(OP, "short_convolution", options.dtype, &[("taps", shape.taps_name()?)])?;
        let plan = Self { shape: *shape, options: *options, policy: Policy::of(shape, device), kernels };
        plan.x().readable(OP, "x")?;
        plan.out().writable(OP, "out")?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with flags, and with both states of a causal window.
    pub fn bytes_moved(&self) -> u64 {
        let Shape { batch, tokens, channels, taps, window, .. } = self.shape;
        let states = if window == Window::Causal { 2 * self.shape.state(self.options.dtype).bytes() } else { 0 };
        2 * self.x().bytes() + states + (channels * taps * self.options.dtype.size()) as u64 + (batch * tokens) as u64
    }

    /// Floating-point operations: a product and a sum a tap; the activation is not counted.
    pub fn flops(&self) -> u64 {
        let Shape { batch, tokens, channels, taps, .. } = self.shape;
        2 * taps as u64 * batch as u64 * tokens as u64 * channels as u64
    }

    fn x(&self) -> Strided {
        self.shape.tensor(self.options.dtype, self.shape.x_stride_batch, self.shape.x_stride_token)
    }

    fn out(&self) -> Strided {
        self.shape.tensor(self.options.dtype, self.shape.out_stride_batch, self.shape.out_stride_token)
    }

    /// `out[t] = act(bias + sum over j of weight[j] x[t - before + j])`. Without tokens of another sequence or segment: `x` counts as
    /// 0 there. In a causal window the last tap meets the current token; in a centred one the tap `taps / 2` does.
    ///
    /// # Shapes
    /// `x`, `out`: `[batch, tokens, channels]` of the plan's type and strides. `weight`: `[channels, taps]` dense. `state_out`:
    /// `[sequences, taps - 1, channels]`, the inputs that the next call wants as [`Inputs::state`], zero where a segment start hides
    /// them; it may be the same memory only through [`run_raw`](Self::run_raw), and is absent with a centred window.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short, `cu_seqlens` without a packed shape or the other way round, or a state with a centred window;
    /// [`Error::Alias`](crate::Error::Alias) ← an output overlaps another tensor. Nothing is written on these.
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
        let (shape, dtype) = (&self.shape, self.options.dtype);
        check::dtype(OP, "x", dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "weight", shape.weight(dtype).span(), weight.len())?;
        inputs.check(shape, dtype)?;
        check::length(OP, "out", self.out().span(), out.len())?;
        if let Some(state) = &state_out {
            check::length(OP, "state_out", shape.state(dtype).span(), state.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (weight, _weight) = weight.device_ptr(stream);
        let (inputs, _inputs) = inputs.hold(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let (state_out, _state_out) = memory::output(state_out, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, weight, inputs, out, state_out) }
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
        let Shape { batch, tokens, channels, window, .. } = self.shape;
        let dtype = self.options.dtype;
        inputs.check(&self.shape, &[("state_out", state_out)])?;
        let (x_rows, out_rows, weight_rows) = (self.x(), self.out(), self.shape.weight(dtype));
        let [bias_rows, flags_rows, starts_rows, state_rows] = inputs.rows(&self.shape, dtype);
        let state_out_rows = present(state_out, self.shape.state(dtype));
        let read: [Placed<'_>; 5] = [
            ("x", x, &x_rows),
            ("weight", weight, &weight_rows),
            ("bias", inputs.bias, &bias_rows),
            ("flags", inputs.flags, &flags_rows),
            ("cu_seqlens", inputs.cu_seqlens, &starts_rows),
        ];
        let state_at: Placed<'_> = ("state", inputs.state, &state_rows);
        let out_at: Placed<'_> = ("out", out, &out_rows);
        let state_out_at: Placed<'_> = ("state_out", state_out, &state_out_rows);
        for placed in read.into_iter().chain([state_at, out_at, state_out_at]) {
            strided::address(OP, placed, false)?;
        }
        strided::all_disjoint(OP, &[out_at, state_out_at], &read)?;
        strided::disjoint(OP, out_at, &[state_at])?;
        if state_out != inputs.state {
            strided::disjoint(OP, state_out_at, &[state_at])?;
        }
        if batch == 0 || channels == 0 || (tokens == 0 && state_out == 0) {
            return Ok(());
        }
        // Accesses go along channels, so those must fit 16 bytes, and so must every stride.
        let (kernel, vec) = self.kernels.pick_strided(&[
            (x, x_rows),
            (out, out_rows),
            (inputs.state, state_rows),
            (state_out, state_out_rows),
            (weight, weight_rows),
            (inputs.bias, bias_rows),
        ]);
        let cover = Cover::whole(self.shape.runs(self.policy.run_bits), channels, vec, BLOCK);
        let args = lookback_kernels::args::ShortConvolution {
            p_x: x,
            p_weight: weight,
            p_bias: inputs.bias,
            p_flags: inputs.flags,
            p_cu_seqlens: inputs.cu_seqlens,
            p_state: inputs.state,
            p_out: out,
            p_state_out: state_out,
            tokens: tokens as u32,
            sequences: self.shape.sequences() as u32,
            channels: channels as u32,
            x_stride_batch: self.shape.x_stride_batch,
            x_stride_token: self.shape.x_stride_token,
            out_stride_batch: self.shape.out_stride_batch,
            out_stride_token: self.shape.out_stride_token,
            activation: self.options.activation.code(),
            centred: u32::from(window == Window::Centred),
            run_bits: self.policy.run_bits,
            lane_bits: cover.lane_bits,
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [cover.grid[0], cover.grid[1], batch as u32], &args) }
    }
}

/// The guards of the four optional inputs.
type Guards<'a> = [Option<cudarc::driver::SyncOnDrop<'a>>; 4];

impl<'a, T: Element> Inputs<'a, T> {
    /// Lengths of what is there.
    fn check(&self, shape: &Shape, dtype: DType) -> Result<()> {
        let lengths = [
            ("bias", shape.channels as u64, self.bias.map(|s| s.len())),
            ("flags", shape.batch as u64 * shape.tokens as u64, self.flags.map(|s| s.len())),
            ("cu_seqlens", shape.starts().span(), self.cu_seqlens.map(|s| s.len())),
            ("state", shape.state(dtype).span(), self.state.map(|s| s.len())),
        ];
        lengths.into_iter().try_for_each(|(arg, need, got)| got.map_or(Ok(()), |got| check::length(OP, arg, need, got)))
    }

    /// Addresses, and what must live until the launch is queued.
    fn hold(&self, stream: &'a CudaStream) -> (RawInputs, Guards<'a>) {
        let (bias, guard_bias) = memory::input(self.bias, stream);
        let (flags, guard_flags) = memory::input(self.flags, stream);
        let (cu_seqlens, guard_starts) = memory::input(self.cu_seqlens, stream);
        let (state, guard_state) = memory::input(self.state, stream);
        (RawInputs { bias, flags, cu_seqlens, state }, [guard_bias, guard_flags, guard_starts, guard_state])
    }
}

impl RawInputs {
    /// Starts come with packed sequences and states with causal windows only; `states` are those besides the initial one.
    fn check(&self, shape: &Shape, states: &[(&'static str, CUdeviceptr)]) -> Result<()> {
        check::given(OP, "cu_seqlens", shape.packed.is_some(), self.cu_seqlens != 0)?;
        for (arg, address) in [("state", self.state)].iter().chain(states) {
            if shape.window == Window::Centred {
                check::given(OP, arg, false, *address != 0)?;
            }
        }
        Ok(())
    }

    /// Extents of bias, flags, starts and state; nothing where absent.
    fn rows(&self, shape: &Shape, dtype: DType) -> [Strided; 4] {
        [
            present(self.bias, Strided::dense([1; 3], shape.channels, dtype.size())),
            present(self.flags, Strided::dense([1, 1, shape.batch], shape.tokens, 1)),
            present(self.cu_seqlens, shape.starts()),
            present(self.state, shape.state(dtype)),
        ]
    }
}

/// The extent of a tensor that may be absent.
fn present(address: CUdeviceptr, tensor: Strided) -> Strided {
    if address == 0 { Strided { size: tensor.size, ..Strided::NONE } } else { tensor }
}

/// The convolution of dense rows with no state and no flags, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn short_convolution<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    weight: &impl DevicePtr<T>,
    bias: Option<&dyn DevicePtr<T>>,
    shape: &Shape,
    activation: Activation,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let Shape { batch, tokens, channels, taps, window, .. } = *shape;
    let dense = Shape { window, ..Shape::dense(batch, tokens, channels, taps) };
    let plan = Plan::new(&dense, &Options { dtype: T::DTYPE, activation }, &device)?;
    let mut out = memory::allocate(stream, plan.out().span(), OP)?;
    plan.run(stream, x, weight, Inputs { bias, ..Inputs::default() }, &mut out, None)?;
    Ok(out)
}
