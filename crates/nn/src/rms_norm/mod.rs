//! Root-mean-square norm: `out = x w / sqrt(mean(x^2) + eps)`, row by row.

mod backward;

use crate::{
    Param,
    check::{self, Placed, Rows},
    memory,
    rows::{Team, Variants},
};
pub use backward::{BackwardPlan, BackwardShape};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use std::sync::Arc;

const OP: &str = "rms_norm";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, over which the mean is taken.
    pub width: usize,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        Self { rows, width, x_stride: width as i64, out_stride: width as i64 }
    }
}

/// Element types and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `x` and `out`.
    pub dtype: DType,
    /// Added to the mean of squares; finite and not negative.
    pub eps: f32,
}

/// A checked norm.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    team: Team,
    kernels: Variants,
}

impl Plan {
    /// Checks sizes, strides and `eps` and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or `eps` negative or not finite; [`Error::Layout`] ← a negative input stride, or
    /// rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        if !(options.eps >= 0.0 && options.eps.is_finite()) {
            return Err(Error::Range { op: OP, arg: "eps", at: None, lo: 0, hi: i64::MAX, got: options.eps as i64 });
        }
        let team = Team::of(shape.width);
        let kernels = Variants::find(OP, "rms_norm", options.dtype, &[("team", team.name())])?;
        let plan = Self { shape: *shape, options: *options, team, kernels };
        check::readable(OP, "x", &plan.rows(shape.x_stride))?;
        check::writable(OP, "out", &plan.rows(shape.out_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, without `weight` and `rstd`.
    pub fn bytes_moved(&self) -> u64 {
        2 * self.rows(self.shape.x_stride).bytes()
    }

    /// Floating-point operations: square, sum and two products an element.
    pub fn flops(&self) -> u64 {
        4 * self.rows(self.shape.x_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    /// `out = x weight / sqrt(mean(x^2) + eps)`.
    ///
    /// # Shapes
    /// `x`, `out`: `[rows, width]` of the plan's type and strides. `weight`: `[width]`, absent means 1. `rstd`: `[rows]` `f32`,
    /// receives `1 / sqrt(mean(x^2) + eps)` for a backward pass.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← `out` overlaps
    /// an input without being `x`. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`, a tree over threads. A row whose squares overflow `f32` gives zeros.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        weight: Param<'_, T>,
        out: &mut impl DevicePtrMut<T>,
        rstd: Option<&mut dyn DevicePtrMut<f32>>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.rows(self.shape.x_stride).span(), x.len())?;
        let weight_dtype = weight.dtype();
        if weight_dtype.is_some() {
            check::length(OP, "weight", self.shape.width as u64, weight.len())?;
        }
        check::length(OP, "out", self.rows(self.shape.out_stride).span(), out.len())?;
        if let Some(rstd) = &rstd {
            check::length(OP, "rstd", self.shape.rows as u64, rstd.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (weight, _weight) = memory::param(weight, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let (rstd, _rstd) = memory::output(rstd, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, weight, weight_dtype, out, rstd) }
    }

    /// As [`run`](Self::run) on device addresses; `weight` and `rstd` may be 0 for absent.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← the weight's type is neither the plan's nor `f32`; [`Error::Align`], [`Error::Alias`], and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` and `rstd` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        weight: CUdeviceptr,
        weight_dtype: Option<DType>,
        out: CUdeviceptr,
        rstd: CUdeviceptr,
    ) -> Result<()> {
        let Shape { rows, width, x_stride, out_stride } = self.shape;
        let weight_dtype = check::param_dtype(OP, "weight", self.options.dtype, weight_dtype)?;
        let weight = if weight_dtype.is_some() { weight } else { 0 };
        let (x_rows, out_rows) = (self.rows(x_stride), self.rows(out_stride));
        let weight_rows = check::param_rows(width, weight_dtype);
        let rstd_rows = Rows::new(1, if rstd == 0 { 0 } else { rows }, 0, 4);
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &x_rows), ("out", out, &out_rows));
        let (weight_at, rstd_at) = (("weight", weight, &weight_rows), ("rstd", rstd, &rstd_rows));
        check::addresses(OP, &[x_at, weight_at, out_at, rstd_at])?;
        check::disjoint_or_same(OP, out_at, x_at)?;
        check::disjoint(OP, out_at, &[weight_at, rstd_at])?;
        check::disjoint(OP, rstd_at, &[x_at, weight_at])?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let (kernel, _) = self.kernels.pick(&[(x, &x_rows), (out, &out_rows), (weight, &weight_rows)]);
        let args = lookback_kernels::args::RmsNorm {
            p_x: x,
            p_weight: weight,
            p_out: out,
            p_rstd: rstd,
            rows: rows as u32,
            width: width as u32,
            x_stride,
            out_stride,
            weight_f32: u32::from(weight_dtype == Some(DType::F32)),
            eps: self.options.eps,
            mean_factor: (1.0 / width as f64) as f32,
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [self.team.blocks(rows), 1, 1], &args) }
    }
}

/// The norm of dense rows, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`].
pub fn rms_norm<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    weight: Param<'_, T>,
    (rows, width): (usize, usize),
    eps: f32,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let plan = Plan::new(&Shape::dense(rows, width), &Options { dtype: T::DTYPE, eps }, &device)?;
    let mut out = memory::allocate(stream, rows.saturating_mul(width) as u64, OP)?;
    plan.run(stream, x, weight, &mut out, None)?;
    Ok(out)
}
