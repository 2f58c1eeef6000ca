//! Argmax: the column of the greatest element of each row.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Team, Variants},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Result, launch};
use std::sync::Arc;

const OP: &str = "argmax";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row; at least 1.
    pub width: usize,
    /// Elements from a row to the next.
    pub x_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        Self { rows, width, x_stride: width as i64 }
    }
}

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x`.
    pub dtype: DType,
}

/// A checked argmax.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    team: Team,
    kernels: Variants,
}

impl Plan {
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← an extent too large, or rows without elements; [`Error::Layout`](crate::Error::Layout)
    /// ← a negative stride.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 1, check::MAX_EXTENT)?;
        let team = Team::of(shape.width);
        let kernels = Variants::find(OP, "argmax", options.dtype, &[("team", team.name())])?;
        let plan = Self { shape: *shape, options: *options, team, kernels };
        check::readable(OP, "x", &plan.x())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least.
    pub fn bytes_moved(&self) -> u64 {
        self.x().bytes() + 4 * self.shape.rows as u64
    }

    /// Comparisons.
    pub fn flops(&self) -> u64 {
        self.x().elements()
    }

    fn x(&self) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, self.shape.x_stride, self.options.dtype.size())
    }

    /// `out[r]` = the first column of row `r` that holds its greatest element. NaN counts as greater than everything else, so a
    /// row with a NaN gives the first of them; -0 equals +0.
    ///
    /// # Shapes
    /// `x`: `[rows, width]` of the plan's type and stride. `out`: `[rows]`.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short; [`Error::Alias`](crate::Error::Alias) ← `out` overlaps `x`. Nothing is written on these.
    ///
    /// # Numerics
    /// Exact.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        out: &mut impl DevicePtrMut<i32>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "out", self.shape.rows as u64, out.len())?;
        let (x, _x) = x.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, out) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * `x` is readable and `out` writable over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(&self, stream: &CudaStream, x: CUdeviceptr, out: CUdeviceptr) -> Result<()> {
        let (x_rows, out_rows) = (self.x(), Rows::new(1, self.shape.rows, 0, 4));
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &x_rows), ("out", out, &out_rows));
        check::addresses(OP, &[x_at, out_at])?;
        check::disjoint(OP, out_at, &[x_at])?;
        let (kernel, _) = self.kernels.pick(&[(x, &x_rows)]);
        let args = lookback_kernels::args::Argmax {
            p_x: x,
            p_out: out,
            rows: self.shape.rows as u32,
            width: self.shape.width as u32,
            x_stride: self.shape.x_stride,
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [self.team.blocks(self.shape.rows), 1, 1], &args) }
    }
}

/// The argmax of dense rows, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn argmax<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    (rows, width): (usize, usize),
) -> Result<CudaSlice<i32>> {
    let device = DeviceInfo::of(stream.context())?;
    let plan = Plan::new(&Shape::dense(rows, width), &Options { dtype: T::DTYPE }, &device)?;
    let mut out = memory::allocate(stream, rows as u64, OP)?;
    plan.run(stream, x, &mut out)?;
    Ok(out)
}
