//! Second-order Taylor features: rows whose inner product is `1 + s + s^2 / 2` with `s = x . x' / sqrt dim`, so that linear attention
//! over them stands near softmax attention.
//!
//! The features of `y = x dim^(-1/4)` are `1`, the 16 entries of `y` (0 from `dim` on), and `y_a y_b` for `a <= b`, row by row, those
//! with `a = b` divided by `sqrt 2`: [`FEATURES`] in all, whatever `dim` is.

use crate::check::{self, Placed, Rows};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use lookback_kernels::{Kernel, find};

const OP: &str = "taylor_map";
/// Greatest number of entries of a row.
pub const MAX_DIM: usize = 16;
/// Features of a row.
pub const FEATURES: usize = 1 + MAX_DIM + MAX_DIM * (MAX_DIM + 1) / 2;
/// The driver's limit on the y extent of a grid.
const MAX_HEADS: usize = 65_535;
/// Rows of a block.
const BLOCK_ROWS: usize = 16;

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Heads of a row, one after another.
    pub heads: usize,
    /// Entries of a head, 1 to [`MAX_DIM`].
    pub dim: usize,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, heads: usize, dim: usize) -> Self {
        let stride = |width: usize| heads.saturating_mul(width) as i64;
        Self { rows, heads, dim, x_stride: stride(dim), out_stride: stride(FEATURES) }
    }
}

/// A checked map.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    dtype: DType,
    kernel: &'static Kernel,
}

impl Plan {
    /// Checks sizes and strides and finds the kernel; `dtype` is of `x` and `out`.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or `dim` not 1 to [`MAX_DIM`]; [`Error::Layout`] ← a negative input stride, or rows of
    /// `out` that overlap.
    pub fn new(shape: &Shape, dtype: DType, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "heads", shape.heads, 0, MAX_HEADS)?;
        check::range(OP, "dim", shape.dim, 1, MAX_DIM)?;
        let variant = [("dtype", dtype.name())];
        let request = || Error::NoKernel { op: OP, request: format!("{variant:?}") };
        let plan = Self { shape: *shape, dtype, kernel: find(OP, &variant).ok_or_else(request)? };
        check::readable(OP, "x", &plan.x())?;
        check::writable(OP, "out", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least.
    pub fn bytes_moved(&self) -> u64 {
        self.x().bytes() + self.out().bytes()
    }

    /// Floating-point operations: one or two products a feature.
    pub fn flops(&self) -> u64 {
        self.out().elements()
    }

    fn x(&self) -> Rows {
        let Shape { rows, heads, dim, x_stride, .. } = self.shape;
        Rows::new(rows, heads * dim, x_stride, self.dtype.size())
    }

    fn out(&self) -> Rows {
        let Shape { rows, heads, out_stride, .. } = self.shape;
        Rows::new(rows, heads * FEATURES, out_stride, self.dtype.size())
    }

    /// The features of every head of every row.
    ///
    /// # Shapes
    /// `x`: `[rows, heads, dim]`, `out`: `[rows, heads, FEATURES]`, of the plan's type and row strides.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← `out` overlaps `x`.
    /// Nothing is written on these.
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
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "out", self.out().span(), out.len())?;
        let (x, _x) = x.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, out) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * `x` is readable, and `out` writable, over the plan's extents until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(&self, stream: &CudaStream, x: CUdeviceptr, out: CUdeviceptr) -> Result<()> {
        let Shape { rows, heads, dim, x_stride, out_stride } = self.shape;
        let (x_rows, out_rows) = (self.x(), self.out());
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &x_rows), ("out", out, &out_rows));
        check::addresses(OP, &[x_at, out_at])?;
        check::disjoint(OP, out_at, &[x_at])?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let args = lookback_kernels::args::TaylorMap {
            p_x: x,
            p_out: out,
            rows: rows as u32,
            dim: dim as u32,
            x_stride,
            x_stride_head: dim as i64,
            out_stride,
            out_stride_head: FEATURES as i64,
            root: (dim as f64).powf(-0.25) as f32,
            ..bytemuck::Zeroable::zeroed()
        };
        let grid = [rows.div_ceil(BLOCK_ROWS) as u32, heads as u32, 1];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernel, grid, &args) }
    }
}
