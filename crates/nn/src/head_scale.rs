//! A scalar for each row and head times that head's part of the row: `out = (scale + bias) x`, or added to `out`.
//!
//! Mamba-2 makes its values `dt x` with it and adds `D x`; Hydra makes keys `dt B` of every head from the B of its group, and adds
//! its diagonal `(fc_D(x) + D) x`.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Cover, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};

const OP: &str = "head_scale";
/// The driver's limit on the z extent of a grid.
const MAX_HEADS: usize = 65_535;

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Heads of a row of `out`.
    pub heads: usize,
    /// Heads of a row of `x`; divides `heads`, and `heads / x_heads` neighbouring heads share one.
    pub x_heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Elements from a row of `x` to the next. A row's heads lie one after another.
    pub x_stride: i64,
    /// Elements from a row of `scale` to the next.
    pub scale_stride: i64,
    /// Elements from a row of `out` to the next. A row's heads lie one after another.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, heads: usize, dim: usize) -> Self {
        let stride = heads.saturating_mul(dim) as i64;
        Self { rows, heads, x_heads: heads, dim, x_stride: stride, scale_stride: heads as i64, out_stride: stride }
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x` and `out`. Factors are `f32`.
    pub dtype: DType,
    /// Whether the product is added to what `out` holds.
    pub accumulate: bool,
}

/// The two parts of a factor; at least one is there.
#[derive(Clone, Copy, Default)]
pub struct Factors<'a> {
    /// `[rows, heads]`; absent means 0.
    pub scale: Option<&'a dyn DevicePtr<f32>>,
    /// `[heads]`; absent means 0.
    pub bias: Option<&'a dyn DevicePtr<f32>>,
}

/// A checked product.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    kernels: Variants,
    sm_count: u32,
}

impl Plan {
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Shape`] ← `x_heads` does not divide `heads`; [`Error::Layout`] ← a negative
    /// input stride, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "heads", shape.heads, 0, MAX_HEADS)?;
        check::range(OP, "dim", shape.dim, 0, check::MAX_EXTENT)?;
        check::range(OP, "heads dim", shape.heads.saturating_mul(shape.dim), 0, check::MAX_EXTENT)?;
        let shared = shape.x_heads > 0 && shape.x_heads < shape.heads && shape.heads.is_multiple_of(shape.x_heads);
        if shape.x_heads != shape.heads && !shared {
            let want = format!("a divisor of {} heads", shape.heads);
            return Err(Error::Shape { op: OP, arg: "x_heads", want, got: vec![shape.x_heads as u64] });
        }
        let kernels = Variants::find(OP, "head_scale", options.dtype, &[])?;
        let plan = Self { shape: *shape, options: *options, kernels, sm_count: device.sm_count };
        check::readable(OP, "x", &plan.x())?;
        check::readable(OP, "scale", &plan.scale())?;
        check::writable(OP, "out", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, without factors.
    pub fn bytes_moved(&self) -> u64 {
        let outs = if self.options.accumulate { 2 } else { 1 };
        self.x().bytes() + outs * self.out().bytes()
    }

    /// Floating-point operations: one product an element, one sum if accumulating.
    pub fn flops(&self) -> u64 {
        (1 + u64::from(self.options.accumulate)) * self.out().elements()
    }

    fn x(&self) -> Rows {
        let Shape { rows, x_heads, dim, x_stride, .. } = self.shape;
        Rows::new(rows, x_heads * dim, x_stride, self.options.dtype.size())
    }

    fn out(&self) -> Rows {
        let Shape { rows, heads, dim, out_stride, .. } = self.shape;
        Rows::new(rows, heads * dim, out_stride, self.options.dtype.size())
    }

    fn scale(&self) -> Rows {
        Rows::new(self.shape.rows, self.shape.heads, self.shape.scale_stride, 4)
    }

    /// `out[r,h] = (scale[r,h] + bias[h]) x[r,h]`, plus `out[r,h]` if the plan accumulates.
    ///
    /// # Shapes
    /// `x`: `[rows, x_heads, dim]`, `out`: `[rows, heads, dim]`, of the plan's type and row strides. A view into a wider matrix begins at its first column.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← `out` overlaps an
    /// input without being `x`. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`, rounded once.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        factors: Factors<'_>,
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "out", self.out().span(), out.len())?;
        if let Some(scale) = factors.scale {
            check::length(OP, "scale", self.scale().span(), scale.len())?;
        }
        if let Some(bias) = factors.bias {
            check::length(OP, "bias", self.shape.heads as u64, bias.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (scale, _scale) = memory::input(factors.scale, stream);
        let (bias, _bias) = memory::input(factors.bias, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, scale, bias, out) }
    }

    /// As [`run`](Self::run) on device addresses; 0 where `scale` or `bias` is absent.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        scale: CUdeviceptr,
        bias: CUdeviceptr,
        out: CUdeviceptr,
    ) -> Result<()> {
        let Shape { rows, heads, x_heads, dim, x_stride, scale_stride, out_stride } = self.shape;
        let (x_rows, out_rows) = (self.x(), self.out());
        let scale_rows = if scale == 0 { Rows::new(0, 0, 0, 4) } else { self.scale() };
        let bias_rows = check::param_rows(heads, (bias != 0).then_some(DType::F32));
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &x_rows), ("out", out, &out_rows));
        let factors: [Placed<'_>; 2] = [("scale", scale, &scale_rows), ("bias", bias, &bias_rows)];
        check::addresses(OP, &[x_at, out_at])?;
        check::addresses(OP, &factors)?;
        check::disjoint_or_same(OP, out_at, x_at)?;
        check::disjoint(OP, out_at, &factors)?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        // A head, not only a row, must begin and end on 16 bytes.
        let head = |stride| Rows::new(rows, dim, stride, self.options.dtype.size());
        let (x_head, out_head) = (head(x_stride), head(out_stride));
        let (kernel, vec) = self.kernels.pick(&[(x, &x_head), (out, &out_head)]);
        let cover = Cover::new(rows, dim, vec, self.sm_count.div_ceil(heads as u32));
        let args = lookback_kernels::args::HeadScale {
            p_x: x,
            p_scale: scale,
            p_bias: bias,
            p_out: out,
            rows: rows as u32,
            dim: dim as u32,
            x_group: (heads / x_heads) as u32,
            x_stride,
            x_stride_head: dim as i64,
            out_stride,
            out_stride_head: dim as i64,
            scale_stride,
            accumulate: u32::from(self.options.accumulate),
            lane_bits: cover.lane_bits,
            column_step: cover.column_step,
            ..Zeroable::zeroed()
        };
        let grid = [cover.grid[0], cover.grid[1], heads as u32];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}
