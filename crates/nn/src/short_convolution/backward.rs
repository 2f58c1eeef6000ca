//! The gradient of the convolution.

use super::{BLOCK, Inputs, OP, Options, RawInputs, Shape, Window, present};
use crate::{
    check, memory,
    rows::{BLOCK as COLUMNS, Cover, Variants},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DeviceInfo, Element, Error, Result, launch,
    strided::{self, Placed, Strided},
};
use lookback_kernels::{Kernel, find};

/// At most so many lanes have a run: the block's runs add up what they leave behind.
const LANE_BITS: u32 = 5;

/// A checked gradient of the convolution.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: Shape,
    options: Options,
    dx: Strided,
    run_bits: u32,
    kernels: Variants,
    sum: &'static Kernel,
}

/// What a gradient is given besides `x`, `weight` and the forward pass's other inputs.
pub struct Adjoints<'a, T> {
    /// By `out`: `[batch, tokens, channels]` of the shape's strides of `out`.
    pub dout: &'a dyn DevicePtr<T>,
    /// By the final state of a causal window: `[sequences, taps - 1, channels]`. Absent means zeros.
    pub dstate_out: Option<&'a dyn DevicePtr<T>>,
}

/// Where the gradients go.
pub struct Gradients<'a, T> {
    /// `[batch, tokens, channels]` of the plan's strides.
    pub dx: &'a mut dyn DevicePtrMut<T>,
    /// `[channels, taps]`.
    pub dweight: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[channels]`.
    pub dbias: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// By the initial state of a causal window, whether it was given or zeros: `[sequences, taps - 1, channels]`.
    pub dstate: Option<&'a mut dyn DevicePtrMut<T>>,
}

/// Addresses of [`Adjoints`] and [`Gradients`], for [`BackwardPlan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawGradients {
    /// See [`Adjoints::dout`].
    pub dout: CUdeviceptr,
    /// See [`Adjoints::dstate_out`].
    pub dstate_out: CUdeviceptr,
    /// See [`Gradients::dx`].
    pub dx: CUdeviceptr,
    /// See [`Gradients::dweight`].
    pub dweight: CUdeviceptr,
    /// See [`Gradients::dbias`].
    pub dbias: CUdeviceptr,
    /// See [`Gradients::dstate`].
    pub dstate: CUdeviceptr,
    /// At least [`BackwardPlan::workspace_bytes`], aligned to 16 bytes; not used without `dweight` and `dbias`.
    pub workspace: CUdeviceptr,
}

impl BackwardPlan {
    /// As [`Plan::new`](super::Plan::new): the strides of `out` are those of its gradient. `dx` has its own, from a row to the next and
    /// from a token to the next.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new), of `dx` for `out`.
    pub fn new(shape: &Shape, dx_strides: (i64, i64), options: &Options, device: &DeviceInfo) -> Result<Self> {
        shape.check()?;
        check::range(OP, "channels", shape.channels, 0, 65_535 << LANE_BITS)?;
        let missing = || Error::NoKernel { op: OP, request: "column_sum".into() };
        let plan = Self {
            shape: *shape,
            options: *options,
            dx: shape.tensor(options.dtype, dx_strides.0, dx_strides.1),
            run_bits: run_bits(shape, device),
            kernels: Variants::of_four(OP, "short_convolution_bwd", options.dtype, &[("taps", shape.taps_name()?)])?,
            sum: find("column_sum", &[]).ok_or_else(missing)?,
        };
        plan.x().readable(OP, "x")?;
        plan.dout().readable(OP, "dout")?;
        plan.dx.writable(OP, "dx")?;
        Ok(plan)
    }

    /// Without gaps in `dx`.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn dense(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let dense = Shape::dense(shape.batch, shape.tokens, shape.channels, shape.taps);
        Self::new(shape, (dense.x_stride_batch, dense.x_stride_token), options, device)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, when `dweight` or `dbias` is wanted.
    pub fn workspace_bytes(&self) -> u64 {
        [1, 4].map(|vec| self.parts(vec).map(|rows| rows.bytes()).iter().sum()).into_iter().max().unwrap_or(0)
    }

    /// Bytes that must cross the memory bus at least, with flags and weights, without states and workspace.
    pub fn bytes_moved(&self) -> u64 {
        let Shape { batch, tokens, channels, taps, .. } = self.shape;
        3 * self.dx.bytes() + (channels * taps * self.options.dtype.size()) as u64 + (batch * tokens) as u64
    }

    /// Floating-point operations: the forward pass's once more, and as many for `dx` and for `dweight`.
    pub fn flops(&self) -> u64 {
        let Shape { batch, tokens, channels, taps, .. } = self.shape;
        6 * taps as u64 * batch as u64 * tokens as u64 * channels as u64
    }

    fn x(&self) -> Strided {
        self.shape.tensor(self.options.dtype, self.shape.x_stride_batch, self.shape.x_stride_token)
    }

    fn dout(&self) -> Strided {
        self.shape.tensor(self.options.dtype, self.shape.out_stride_batch, self.shape.out_stride_token)
    }

    /// Blocks that share out the runs of a row and the channels, with accesses of so many elements.
    fn cover(&self, vec: u32) -> Cover {
        Cover::narrow(self.shape.runs(self.run_bits), self.shape.channels, vec, BLOCK, LANE_BITS)
    }

    /// What the blocks leave behind: gradients of the weights and of the bias.
    fn parts(&self, vec: u32) -> [Strided; 2] {
        let slices = self.cover(vec).grid[0] as usize * self.shape.batch;
        let of = |width: usize| Strided::dense([1, 1, slices], width, 4);
        [of(self.shape.channels * self.shape.taps), of(self.shape.channels)]
    }

    /// The gradients of a loss by every input, given those by the outputs of [`Plan::run`](super::Plan::run): with `s` the sum before the
    /// activation, computed again, and `ds = dout act'(s)`, `dx[t] = sum over j of weight[j] ds[t + before - j]`,
    /// `dweight[j] = sum over t of ds[t] x[t - before + j]` and `dbias = sum over t of ds[t]`, within sequences and segments.
    ///
    /// # Shapes
    /// `x`, `weight`, `inputs` as in the forward pass; [`Adjoints`], [`Gradients`]. `workspace`: at least
    /// [`workspace_bytes`](Self::workspace_bytes), as `f32`; may be empty without `dweight` and `dbias`.
    ///
    /// # Errors
    /// Those of [`Plan::run`](super::Plan::run), and [`Error::Workspace`] ← the workspace is too short.
    ///
    /// # Numerics
    /// Sums in `f32`; `dx` is rounded once.
    ///
    /// # Determinism
    /// Bitwise; `dweight` and `dbias` for one number of multiprocessors.
    ///
    /// # Cost
    /// One launch that reads `x` and `dout` once, and one more each for `dweight` and `dbias`, which add up the workspace.
    #[expect(clippy::too_many_arguments, reason = "a gradient has this many tensors")]
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        weight: &impl DevicePtr<T>,
        inputs: Inputs<'_, T>,
        adjoints: Adjoints<'_, T>,
        gradients: Gradients<'_, T>,
        workspace: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let (shape, dtype) = (&self.shape, self.options.dtype);
        check::dtype(OP, "x", dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "weight", shape.weight(dtype).span(), weight.len())?;
        inputs.check(shape, dtype)?;
        check::length(OP, "dout", self.dout().span(), adjoints.dout.len())?;
        check::length(OP, "dx", self.dx.span(), gradients.dx.len())?;
        let state = shape.state(dtype).span();
        for (arg, need, got) in [
            ("dstate_out", state, adjoints.dstate_out.map(|s| s.len())),
            ("dstate", state, gradients.dstate.as_ref().map(|s| s.len())),
            ("dweight", shape.weight(dtype).span(), gradients.dweight.as_ref().map(|s| s.len())),
            ("dbias", shape.channels as u64, gradients.dbias.as_ref().map(|s| s.len())),
        ] {
            got.map_or(Ok(()), |got| check::length(OP, arg, need, got))?;
        }
        if gradients.dweight.is_some() || gradients.dbias.is_some() {
            let (need, got) = (self.workspace_bytes(), workspace.num_bytes() as u64);
            if got < need {
                return Err(Error::Workspace { op: OP, need, got });
            }
        }
        let (x, _x) = x.device_ptr(stream);
        let (weight, _weight) = weight.device_ptr(stream);
        let (inputs, _inputs) = inputs.hold(stream);
        let (dout, _dout) = adjoints.dout.device_ptr(stream);
        let (dstate_out, _dstate_out) = memory::input(adjoints.dstate_out, stream);
        let (dx, _dx) = gradients.dx.device_ptr_mut(stream);
        let (dweight, _dweight) = memory::output(gradients.dweight, stream);
        let (dbias, _dbias) = memory::output(gradients.dbias, stream);
        let (dstate, _dstate) = memory::output(gradients.dstate, stream);
        let (workspace, _workspace) = workspace.device_ptr_mut(stream);
        let raw = RawGradients { dout, dstate_out, dx, dweight, dbias, dstate, workspace };
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launches are queued.
        unsafe { self.run_raw(stream, x, weight, inputs, raw) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and those of gradients and workspace writable, over the plan's extents until the launches have
    ///   ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        weight: CUdeviceptr,
        inputs: RawInputs,
        gradients: RawGradients,
    ) -> Result<()> {
        let Shape { batch, tokens, channels, taps, window, .. } = self.shape;
        let dtype = self.options.dtype;
        let RawGradients { dout, dstate_out, dx, dweight, dbias, dstate, .. } = gradients;
        inputs.check(&self.shape, &[("dstate_out", dstate_out), ("dstate", dstate)])?;
        let parts = if dweight == 0 && dbias == 0 { 0 } else { gradients.workspace };
        let (x_rows, dout_rows, dx_rows) = (self.x(), self.dout(), self.dx);
        let weight_rows = self.shape.weight(dtype);
        let [bias_rows, flags_rows, starts_rows, state_rows] = inputs.rows(&self.shape, dtype);
        let dstate_out_rows = present(dstate_out, self.shape.state(dtype));
        let dstate_rows = present(dstate, self.shape.state(dtype));
        let dweight_rows = present(dweight, Strided::dense([1; 3], channels * taps, 4));
        let dbias_rows = present(dbias, Strided::dense([1; 3], channels, 4));
        let workspace = if dweight == 0 && dbias == 0 { 0 } else { self.workspace_bytes() as usize / 4 };
        let workspace_rows = Strided::dense([1; 3], workspace, 4);
        let read: [Placed<'_>; 8] = [
            ("x", x, &x_rows),
            ("weight", weight, &weight_rows),
            ("bias", inputs.bias, &bias_rows),
            ("flags", inputs.flags, &flags_rows),
            ("cu_seqlens", inputs.cu_seqlens, &starts_rows),
            ("state", inputs.state, &state_rows),
            ("dout", dout, &dout_rows),
            ("dstate_out", dstate_out, &dstate_out_rows),
        ];
        let written: [Placed<'_>; 5] = [
            ("dx", dx, &dx_rows),
            ("dweight", dweight, &dweight_rows),
            ("dbias", dbias, &dbias_rows),
            ("dstate", dstate, &dstate_rows),
            ("workspace", parts, &workspace_rows),
        ];
        for placed in read.iter().chain(&written) {
            strided::address(OP, *placed, false)?;
        }
        strided::all_disjoint(OP, &written, &read)?;
        if channels == 0 {
            return Ok(());
        }
        let (kernel, vec) = self.kernels.pick_strided(&[
            (x, x_rows),
            (dout, dout_rows),
            (dx, dx_rows),
            (inputs.state, state_rows),
            (dstate_out, dstate_out_rows),
            (dstate, dstate_rows),
            (weight, weight_rows),
            (inputs.bias, bias_rows),
        ]);
        // Parts are written 16 bytes at a time, whatever the type.
        let (kernel, vec) = if parts.is_multiple_of(16) { (kernel, vec) } else { self.kernels.single() };
        let [weight_parts, bias_parts] = self.parts(vec);
        let bias_at = if parts == 0 { 0 } else { parts + weight_parts.bytes() };
        if batch > 0 {
            let cover = self.cover(vec);
            let args = lookback_kernels::args::ShortConvolutionBwd {
                p_x: x,
                p_weight: weight,
                p_bias: inputs.bias,
                p_flags: inputs.flags,
                p_cu_seqlens: inputs.cu_seqlens,
                p_state: inputs.state,
                p_dout: dout,
                p_dlast: dstate_out,
                p_dx: dx,
                p_dstate: dstate,
                p_parts: parts,
                p_bias_parts: bias_at,
                tokens: tokens as u32,
                sequences: self.shape.sequences() as u32,
                channels: channels as u32,
                runs: self.shape.runs(self.run_bits) as u32,
                x_stride_batch: self.shape.x_stride_batch,
                x_stride_token: self.shape.x_stride_token,
                dout_stride_batch: self.shape.out_stride_batch,
                dout_stride_token: self.shape.out_stride_token,
                dx_stride_batch: self.dx.strides[0],
                dx_stride_token: self.dx.strides[1],
                activation: self.options.activation.code(),
                centred: u32::from(window == Window::Centred),
                run_bits: self.run_bits,
                lane_bits: cover.lane_bits,
            };
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            unsafe { launch(stream, kernel, [cover.grid[0], cover.grid[1], batch as u32], &args) }?;
        }
        for (out, parts, rows) in [(dweight, parts, weight_parts), (dbias, bias_at, bias_parts)] {
            if out == 0 {
                continue;
            }
            let args = lookback_kernels::args::ColumnSum {
                p_parts: parts,
                p_out: out,
                slices: rows.extents[2] as u32,
                width: rows.width as u32,
            };
            // SAFETY: as above; the launch before on the same stream wrote every part.
            unsafe { launch(stream, self.sum, [rows.width.div_ceil(COLUMNS) as u32, 1, 1], &args) }?;
        }
        Ok(())
    }
}

/// Runs as long as they may be with some warps left for every multiprocessor: four of them leave `taps + 1` floats a channel.
fn run_bits(shape: &Shape, device: &DeviceInfo) -> u32 {
    let wanted = device.sm_count as usize * 768;
    let threads = |bits: &u32| {
        let runs = shape.batch.saturating_mul(shape.tokens.div_ceil(1 << bits));
        runs.saturating_mul(shape.channels.div_ceil(4))
    };
    (4..=10).rev().find(|bits| threads(bits) >= wanted).unwrap_or(3)
}
