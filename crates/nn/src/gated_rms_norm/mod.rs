//! Gated root-mean-square norm, group by group of columns, in both orders: `norm(y) w gate(z)` as in Hydra and LightNet, and
//! `norm(y gate(z)) w` as in Mamba-2.

mod backward;

pub use backward::{BackwardInputs, BackwardPlan, BackwardShape, Gradients, RawGradients};

use crate::{
    Param,
    check::{self, Placed, Rows},
    memory,
    rows::{BLOCK, Variants, lane_bits},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use std::sync::Arc;

const OP: &str = "gated_rms_norm";

/// What is done with `z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gate {
    /// `z sigmoid(z)`.
    #[default]
    Silu,
    /// `1 / (1 + exp(-z))`.
    Sigmoid,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements of a group, over which a mean is taken; divides `width`.
    pub group: usize,
    /// Elements from a row of `y` to the next.
    pub y_stride: i64,
    /// Elements from a row of `z` to the next.
    pub z_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps, each one group.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = i64::try_from(width).unwrap_or(i64::MAX);
        Self { rows, width, group: width, y_stride: stride, z_stride: stride, out_stride: stride }
    }

    /// The same with means over groups of `group` columns.
    pub fn groups_of(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Groups of a row; what `rstd` has for each.
    pub fn groups(&self) -> usize {
        self.width.checked_div(self.group).unwrap_or(0)
    }
}

/// Element types, order and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `y`, `z` and `out`.
    pub dtype: DType,
    /// What is done with `z`.
    pub gate: Gate,
    /// `norm(y) w gate(z)`; otherwise `norm(y gate(z)) w`.
    pub norm_before_gate: bool,
    /// Added to the mean of squares; finite and not negative.
    pub eps: f32,
}

/// A checked gated norm.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    kernels: Variants,
}

/// The name of the order in kernel variants.
fn first(options: &Options) -> &'static str {
    if options.norm_before_gate { "norm" } else { "gate" }
}

/// Checks what forward and backward have in common.
fn check_sizes(rows: usize, width: usize, group: usize, eps: f32) -> Result<()> {
    check::range(OP, "rows", rows, 0, check::MAX_EXTENT)?;
    check::range(OP, "width", width, 0, check::MAX_EXTENT)?;
    check::range(OP, "group", group, usize::from(width > 0), width.max(1))?;
    if width > 0 && !width.is_multiple_of(group) {
        let want = format!("a divisor of the width {width}");
        return Err(Error::Shape { op: OP, arg: "group", want, got: vec![group as u64] });
    }
    if width > 0 {
        check::range(OP, "groups", width / group, 1, 65_535)?;
    }
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::Range { op: OP, arg: "eps", at: None, lo: 0, hi: i64::MAX, got: eps as i64 });
    }
    Ok(())
}

impl Plan {
    /// Checks sizes, strides and `eps` and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or `eps` negative or not finite; [`Error::Shape`] ← a group that does not divide
    /// the width; [`Error::Layout`] ← a negative input stride, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check_sizes(shape.rows, shape.width, shape.group, options.eps)?;
        let kernels = Variants::find(OP, "gated_rms_norm", options.dtype, &[("first", first(options))])?;
        let plan = Self { shape: *shape, options: *options, kernels };
        check::readable(OP, "y", &plan.rows(shape.y_stride))?;
        check::readable(OP, "z", &plan.rows(shape.z_stride))?;
        check::writable(OP, "out", &plan.rows(shape.out_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, without `weight` and `rstd`.
    pub fn bytes_moved(&self) -> u64 {
        3 * self.rows(0).bytes()
    }

    /// Floating-point operations: square, sum and three products an element; the gate is not counted.
    pub fn flops(&self) -> u64 {
        5 * self.rows(0).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    /// `out = y rstd w gate(z)` with `rstd = 1 / sqrt(mean(y^2) + eps)`, or `out = p rstd w` with `p = y gate(z)` and
    /// `rstd = 1 / sqrt(mean(p^2) + eps)`; means over each group of a row.
    ///
    /// # Shapes
    /// `y`, `z`, `out`: `[rows, width]` of the plan's type and strides. `weight`: `[width]`, absent means 1. `rstd`:
    /// `[rows, groups]` `f32`, for a backward pass.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← `out` overlaps
    /// an input without being `y` or `z`. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`, rounded once; sums are a tree over threads. A group whose squares overflow `f32` gives zeros.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        y: &impl DevicePtr<T>,
        z: &impl DevicePtr<T>,
        weight: Param<'_, T>,
        out: &mut impl DevicePtrMut<T>,
        rstd: Option<&mut dyn DevicePtrMut<f32>>,
    ) -> Result<()> {
        let Shape { rows, width, y_stride, z_stride, out_stride, .. } = self.shape;
        check::dtype(OP, "y", self.options.dtype, T::DTYPE)?;
        check::length(OP, "y", self.rows(y_stride).span(), y.len())?;
        check::length(OP, "z", self.rows(z_stride).span(), z.len())?;
        let weight_dtype = weight.dtype();
        if weight_dtype.is_some() {
            check::length(OP, "weight", width as u64, weight.len())?;
        }
        check::length(OP, "out", self.rows(out_stride).span(), out.len())?;
        if let Some(rstd) = &rstd {
            check::length(OP, "rstd", rows as u64 * self.shape.groups() as u64, rstd.len())?;
        }
        let (y, _y) = y.device_ptr(stream);
        let (z, _z) = z.device_ptr(stream);
        let (weight, _weight) = memory::param(weight, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let (rstd, _rstd) = memory::output(rstd, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, y, z, (weight, weight_dtype), out, rstd) }
    }

    /// As [`run`](Self::run) on device addresses. `weight` comes with its type, `None` for absent; `rstd` may be 0 for absent.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← the weight's type is neither the plan's nor `f32`; [`Error::Align`], [`Error::Alias`], and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` and `rstd` writable, over the plan's extents until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        y: CUdeviceptr,
        z: CUdeviceptr,
        (weight, weight_dtype): (CUdeviceptr, Option<DType>),
        out: CUdeviceptr,
        rstd: CUdeviceptr,
    ) -> Result<()> {
        let Shape { rows, width, group, y_stride, z_stride, out_stride } = self.shape;
        let weight_dtype = check::param_dtype(OP, "weight", self.options.dtype, weight_dtype)?;
        let weight = if weight_dtype.is_some() { weight } else { 0 };
        let (y_rows, z_rows, out_rows) = (self.rows(y_stride), self.rows(z_stride), self.rows(out_stride));
        let weight_rows = check::param_rows(width, weight_dtype);
        let rstd_rows = Rows::new(usize::from(rstd != 0), rows * self.shape.groups(), 0, 4);
        let y_at: Placed<'_> = ("y", y, &y_rows);
        let z_at: Placed<'_> = ("z", z, &z_rows);
        let weight_at: Placed<'_> = ("weight", weight, &weight_rows);
        let out_at: Placed<'_> = ("out", out, &out_rows);
        let rstd_at: Placed<'_> = ("rstd", rstd, &rstd_rows);
        check::addresses(OP, &[y_at, z_at, weight_at, out_at, rstd_at])?;
        check::disjoint_or_same(OP, out_at, y_at)?;
        check::disjoint_or_same(OP, out_at, z_at)?;
        check::disjoint(OP, out_at, &[weight_at])?;
        check::disjoint(OP, rstd_at, &[y_at, z_at, weight_at, out_at])?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        // Groups must begin on whole accesses too.
        let groups = Rows::new(2, group, group as i64, self.options.dtype.size());
        let (kernel, vec) =
            self.kernels.pick(&[(y, &y_rows), (z, &z_rows), (out, &out_rows), (out, &groups), (weight, &weight_rows)]);
        let lane_bits = lane_bits(group, vec, HELD);
        let args = lookback_kernels::args::GatedRmsNorm {
            p_y: y,
            p_z: z,
            p_weight: weight,
            p_out: out,
            p_rstd: rstd,
            rows: rows as u32,
            group: group as u32,
            y_stride,
            z_stride,
            out_stride,
            weight_f32: u32::from(weight_dtype == Some(DType::F32)),
            silu: u32::from(self.options.gate == Gate::Silu),
            eps: self.options.eps,
            mean_factor: (1.0 / group as f64) as f32,
            lane_bits,
            ..bytemuck::Zeroable::zeroed()
        };
        let grid = [rows.div_ceil(BLOCK >> lane_bits) as u32, self.shape.groups() as u32, 1];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

/// Accesses of a thread that the forward kernel keeps in registers.
const HELD: usize = 4;

/// The gated norm of dense rows, each one group, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`].
pub fn gated_rms_norm<T: Element>(
    stream: &Arc<CudaStream>,
    y: &impl DevicePtr<T>,
    z: &impl DevicePtr<T>,
    weight: Param<'_, T>,
    (rows, width): (usize, usize),
    options: &Options,
) -> Result<CudaSlice<T>> {
    let plan = Plan::new(&Shape::dense(rows, width), options, &DeviceInfo::of(stream.context())?)?;
    let mut out = memory::allocate(stream, rows.saturating_mul(width) as u64, OP)?;
    plan.run(stream, y, z, weight, &mut out, None)?;
    Ok(out)
}
