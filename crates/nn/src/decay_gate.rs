//! Steps and log decays of a recurrence from a projection: `step = clamp(softplus(sign (x + bias)))`, `g = rate step`.
//!
//! Mamba-2's `dt` and `dt A` are this with `sign` 1; gated linear attention's `log sigmoid(x) / 16` with `sign` -1, `rate` -1/16.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Cover, Variants},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};

const OP: &str = "decay_gate";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Gates of a row.
    pub width: usize,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `step` and `g` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        Self { rows, width, x_stride: width as i64, out_stride: width as i64 }
    }
}

/// Element type and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `x`. Everything else is `f32`.
    pub dtype: DType,
    /// Whether `x + bias` enters with its sign turned: `softplus(-y) = -log sigmoid(y)`.
    pub negated: bool,
    /// Least and greatest step; `0 <= lo <= hi`, `hi` may be infinite.
    pub bounds: (f32, f32),
    /// Of every column, where no rates are given.
    pub rate: f32,
}

impl Options {
    /// `g = log sigmoid(x + bias) / normalizer`.
    pub fn log_sigmoid(dtype: DType, normalizer: f32) -> Self {
        Self { dtype, negated: true, bounds: (0.0, f32::INFINITY), rate: -1.0 / normalizer }
    }
}

/// Parameters, all `f32`.
#[derive(Clone, Copy, Default)]
pub struct Params<'a> {
    /// `[width]`; absent means 0.
    pub bias: Option<&'a dyn DevicePtr<f32>>,
    /// `[width]`; absent means [`Options::rate`] everywhere.
    pub rate: Option<&'a dyn DevicePtr<f32>>,
}

/// A checked gate.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    kernels: Variants,
    sm_count: u32,
}

impl Plan {
    /// Checks sizes, strides and bounds and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or bounds that are NaN, negative or crossed; [`Error::Layout`] ← a negative input
    /// stride, or rows of an output that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        let (lo, hi) = options.bounds;
        if !(lo >= 0.0 && lo.is_finite() && hi >= lo) {
            return Err(Error::Range { op: OP, arg: "bounds", at: None, lo: 0, hi: i64::MAX, got: lo as i64 });
        }
        let kernels = Variants::of_four(OP, "decay_gate", options.dtype, &[])?;
        let plan = Self { shape: *shape, options: *options, kernels, sm_count: device.sm_count };
        check::readable(OP, "x", &plan.x())?;
        check::writable(OP, "g", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with both outputs and without parameters.
    pub fn bytes_moved(&self) -> u64 {
        self.x().bytes() + 2 * self.out().bytes()
    }

    /// Floating-point operations: bias, sign, rate; the softplus is not counted.
    pub fn flops(&self) -> u64 {
        3 * self.x().elements()
    }

    fn x(&self) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, self.shape.x_stride, self.options.dtype.size())
    }

    fn out(&self) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, self.shape.out_stride, 4)
    }

    /// `step = clamp(softplus(sign (x + bias)))` and `g = rate step`.
    ///
    /// # Shapes
    /// `x`: `[rows, width]` of the plan's type. `g`, `step`: `[rows, width]` `f32`; `step` where wanted. Rows are as far apart as the
    /// plan says.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← an output overlaps
    /// another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`; the softplus is `max(y, 0) + log1p(e^-|y|)`, within 3e-7 of the exact value, relative, over the whole range.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        params: Params<'_>,
        g: &mut impl DevicePtrMut<f32>,
        step: Option<&mut dyn DevicePtrMut<f32>>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "g", self.out().span(), g.len())?;
        for (name, param) in [("bias", params.bias), ("rate", params.rate)] {
            if let Some(param) = param {
                check::length(OP, name, self.shape.width as u64, param.len())?;
            }
        }
        if let Some(step) = &step {
            check::length(OP, "step", self.out().span(), step.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (bias, _bias) = memory::input(params.bias, stream);
        let (rate, _rate) = memory::input(params.rate, stream);
        let (g, _g) = g.device_ptr_mut(stream);
        let (step, _step) = memory::output(step, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, bias, rate, g, step) }
    }

    /// As [`run`](Self::run) on device addresses; 0 where `bias`, `rate` or `step` is absent.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `g` and `step` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        bias: CUdeviceptr,
        rate: CUdeviceptr,
        g: CUdeviceptr,
        step: CUdeviceptr,
    ) -> Result<()> {
        let Shape { rows, width, x_stride, out_stride } = self.shape;
        let (x_rows, out_rows) = (self.x(), self.out());
        let param_rows = |at: CUdeviceptr| check::param_rows(width, (at != 0).then_some(DType::F32));
        let (bias_rows, rate_rows) = (param_rows(bias), param_rows(rate));
        let step_rows = if step == 0 { Rows::new(0, 0, 0, 4) } else { out_rows };
        let inputs: [Placed<'_>; 3] = [("x", x, &x_rows), ("bias", bias, &bias_rows), ("rate", rate, &rate_rows)];
        let (g_at, step_at): (Placed<'_>, Placed<'_>) = (("g", g, &out_rows), ("step", step, &step_rows));
        check::addresses(OP, &inputs)?;
        check::addresses(OP, &[g_at, step_at])?;
        check::disjoint(OP, g_at, &inputs)?;
        check::disjoint(OP, step_at, &inputs)?;
        check::disjoint(OP, g_at, &[step_at])?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let placed = [(x, &x_rows), (bias, &bias_rows), (rate, &rate_rows), (g, &out_rows), (step, &step_rows)];
        let (kernel, vec) = self.kernels.pick(&placed);
        let cover = Cover::new(rows, width, vec, self.sm_count);
        let args = lookback_kernels::args::DecayGate {
            p_x: x,
            p_bias: bias,
            p_rate: rate,
            p_step: step,
            p_g: g,
            rows: rows as u32,
            width: width as u32,
            x_stride,
            out_stride,
            sign: if self.options.negated { -1.0 } else { 1.0 },
            lo: self.options.bounds.0,
            hi: self.options.bounds.1,
            rate: self.options.rate,
            lane_bits: cover.lane_bits,
            column_step: cover.column_step,
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, cover.grid, &args) }
    }
}
