//! Gate: `out = act(x) y`, row by row.

use crate::{
    Activation,
    check::{self, Rows},
    memory,
    rows::{Cover, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Result, launch};
use std::sync::Arc;

const OP: &str = "gate";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `y` to the next.
    pub y_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = width as i64;
        Self { rows, width, x_stride: stride, y_stride: stride, out_stride: stride }
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x`, `y` and `out`.
    pub dtype: DType,
    /// Function of `x`.
    pub activation: Activation,
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
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large; [`Error::Layout`](crate::Error::Layout) ← a negative input
    /// stride, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        let plan = Self {
            shape: *shape,
            options: *options,
            kernels: Variants::find(OP, "gate", options.dtype, &[])?,
            sm_count: device.sm_count,
        };
        check::readable(OP, "x", &plan.rows(shape.x_stride))?;
        check::readable(OP, "y", &plan.rows(shape.y_stride))?;
        check::writable(OP, "out", &plan.rows(shape.out_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least.
    pub fn bytes_moved(&self) -> u64 {
        3 * self.rows(self.shape.x_stride).bytes()
    }

    /// Floating-point operations: one product an element; the activation is not counted.
    pub fn flops(&self) -> u64 {
        self.rows(self.shape.x_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    /// `out = act(x) y`.
    ///
    /// # Shapes
    /// `x`, `y`, `out`: `[rows, width]` of the plan's type and strides. A view into a wider matrix begins at its first column.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short; [`Error::Alias`](crate::Error::Alias) ← `out` overlaps an input without being it. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`, rounded once. Sigmoid and gelu are within 4e-7 of the exact value, relative; gelu with erf
    /// within 6e-7 from -3 on, and 4e-6 below, where it is nearer to 0 than 5e-3.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        y: &impl DevicePtr<T>,
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.rows(self.shape.x_stride).span(), x.len())?;
        check::length(OP, "y", self.rows(self.shape.y_stride).span(), y.len())?;
        check::length(OP, "out", self.rows(self.shape.out_stride).span(), out.len())?;
        let (x, _x) = x.device_ptr(stream);
        let (y, _y) = y.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the three slices live on the stream's context, have the elements that the plan's strides reach, and their
        // guards are held until the launch is queued.
        unsafe { self.run_raw(stream, x, y, out) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * `x`, `y` and `out` are readable, and `out` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(&self, stream: &CudaStream, x: CUdeviceptr, y: CUdeviceptr, out: CUdeviceptr) -> Result<()> {
        let Shape { rows, width, x_stride, y_stride, out_stride } = self.shape;
        let (x_rows, y_rows, out_rows) = (self.rows(x_stride), self.rows(y_stride), self.rows(out_stride));
        check::address(OP, "x", x, &x_rows)?;
        check::address(OP, "y", y, &y_rows)?;
        check::address(OP, "out", out, &out_rows)?;
        check::disjoint_or_same(OP, ("out", out, &out_rows), ("x", x, &x_rows))?;
        check::disjoint_or_same(OP, ("out", out, &out_rows), ("y", y, &y_rows))?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let (kernel, vec) = self.kernels.pick(&[(x, &x_rows), (y, &y_rows), (out, &out_rows)]);
        let cover = Cover::new(rows, width, vec, self.sm_count);
        let args = lookback_kernels::args::Gate {
            p_x: x,
            p_y: y,
            p_out: out,
            rows: rows as u32,
            width: width as u32,
            x_stride,
            y_stride,
            out_stride,
            activation: self.options.activation.code(),
            lane_bits: cover.lane_bits,
            column_step: cover.column_step,
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, cover.grid, &args) }
    }
}

/// `act(x) y` over dense rows, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn gate<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    y: &impl DevicePtr<T>,
    (rows, width): (usize, usize),
    activation: Activation,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let plan = Plan::new(&Shape::dense(rows, width), &Options { dtype: T::DTYPE, activation }, &device)?;
    let mut out = memory::allocate(stream, rows.saturating_mul(width) as u64, OP)?;
    plan.run(stream, x, y, &mut out)?;
    Ok(out)
}
