//! The gradient of the norm.

use super::OP;
use crate::{
    Param,
    check::{self, Placed, Rows},
    memory,
    rows::{BLOCK, Variants, lane_bits, slice_rows},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use lookback_kernels::{Kernel, find};

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardShape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `dout` to the next.
    pub dout_stride: i64,
    /// Elements from a row of `dx` to the next.
    pub dx_stride: i64,
}

impl BackwardShape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = width as i64;
        Self { rows, width, x_stride: stride, dout_stride: stride, dx_stride: stride }
    }
}

/// A checked gradient of the norm, for `x`, `dout` and `dx` of one type.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: BackwardShape,
    dtype: DType,
    kernels: Variants,
    sum: &'static Kernel,
    slice_rows: usize,
}

/// Accesses of a thread that the kernel keeps in registers.
fn held(vec: u32) -> usize {
    if vec == 8 { 3 } else { 4 }
}

impl BackwardPlan {
    /// Checks sizes and strides, finds the kernels and cuts the rows up.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Layout`] ← a negative input stride, or rows of `dx` that overlap.
    pub fn new(shape: &BackwardShape, dtype: DType, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, 65_535 * BLOCK)?;
        let vec = 16 / dtype.size() as u32;
        let teams = BLOCK >> lane_bits(shape.width, vec, held(vec));
        let missing = || Error::NoKernel { op: OP, request: "column_sum".into() };
        let plan = Self {
            shape: *shape,
            dtype,
            kernels: Variants::find(OP, "rms_norm_bwd", dtype, &[])?,
            sum: find("column_sum", &[]).ok_or_else(missing)?,
            slice_rows: slice_rows(shape.rows, 1, teams, device.sm_count),
        };
        check::readable(OP, "x", &plan.rows(shape.x_stride))?;
        check::readable(OP, "dout", &plan.rows(shape.dout_stride))?;
        check::writable(OP, "dx", &plan.rows(shape.dx_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, when `dweight` is wanted.
    pub fn workspace_bytes(&self) -> u64 {
        self.parts().bytes()
    }

    /// Bytes that must cross the memory bus at least, without `weight` and `dweight`.
    pub fn bytes_moved(&self) -> u64 {
        3 * self.rows(self.shape.x_stride).bytes() + 4 * self.shape.rows as u64
    }

    /// Floating-point operations of both gradients.
    pub fn flops(&self) -> u64 {
        9 * self.rows(self.shape.x_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.dtype.size())
    }

    fn parts(&self) -> Rows {
        let slices = self.shape.rows.div_ceil(self.slice_rows.max(1));
        Rows::new(slices, self.shape.width, self.shape.width as i64, 4)
    }

    /// The gradients of a loss by `x` and `weight`, given that by the output: with `y = x rstd` and `g = dout weight`,
    /// `dx = rstd (g - y mean(g y))` and `dweight = sum over rows of dout y`.
    ///
    /// # Shapes
    /// `x`, `dout`, `dx`: `[rows, width]` of the plan's type and strides. `weight`: `[width]`, absent means 1. `rstd`: `[rows]`, from
    /// the forward pass. `dweight`: `[width]` in `f32`, where wanted. `workspace`: at least
    /// [`workspace_bytes`](Self::workspace_bytes), as `f32`; may be empty without `dweight`.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Workspace`] ← the workspace
    /// is; [`Error::Alias`] ← an output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`.
    ///
    /// # Determinism
    /// Bitwise; `dweight` for one number of multiprocessors.
    ///
    /// # Cost
    /// One launch that reads `x` and `dout` once, and for `dweight` another that adds up the workspace.
    #[expect(clippy::too_many_arguments, reason = "a gradient has this many tensors")]
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        dout: &impl DevicePtr<T>,
        weight: Param<'_, T>,
        rstd: &impl DevicePtr<f32>,
        dx: &mut impl DevicePtrMut<T>,
        dweight: Option<&mut dyn DevicePtrMut<f32>>,
        workspace: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let BackwardShape { rows, width, x_stride, dout_stride, dx_stride } = self.shape;
        check::dtype(OP, "x", self.dtype, T::DTYPE)?;
        check::length(OP, "x", self.rows(x_stride).span(), x.len())?;
        check::length(OP, "dout", self.rows(dout_stride).span(), dout.len())?;
        let weight_dtype = weight.dtype();
        if weight_dtype.is_some() {
            check::length(OP, "weight", width as u64, weight.len())?;
        }
        check::length(OP, "rstd", rows as u64, rstd.len())?;
        check::length(OP, "dx", self.rows(dx_stride).span(), dx.len())?;
        if let Some(dweight) = &dweight {
            check::length(OP, "dweight", width as u64, dweight.len())?;
            let (need, got) = (self.workspace_bytes(), workspace.num_bytes() as u64);
            if got < need {
                return Err(Error::Workspace { op: OP, need, got });
            }
        }
        let (x, _x) = x.device_ptr(stream);
        let (dout, _dout) = dout.device_ptr(stream);
        let (weight, _weight) = memory::param(weight, stream);
        let (rstd, _rstd) = rstd.device_ptr(stream);
        let (dx, _dx) = dx.device_ptr_mut(stream);
        let (dweight, _dweight) = memory::output(dweight, stream);
        let (workspace, _workspace) = workspace.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launches are queued.
        unsafe { self.run_raw(stream, x, dout, (weight, weight_dtype), rstd, dx, dweight, workspace) }
    }

    /// As [`run`](Self::run) on device addresses. `weight` comes with its type, `None` for absent; `dweight` may be 0 for absent,
    /// and then `workspace` is not used. Here `dx` may be `x` or `dout` itself.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← the weight's type is neither the plan's nor `f32`; [`Error::Align`], [`Error::Alias`], and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `dx`, `dweight` and `workspace` writable, over the plan's extents until the launches have
    ///   ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    #[expect(clippy::too_many_arguments, reason = "a gradient has this many tensors")]
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        dout: CUdeviceptr,
        (weight, weight_dtype): (CUdeviceptr, Option<DType>),
        rstd: CUdeviceptr,
        dx: CUdeviceptr,
        dweight: CUdeviceptr,
        workspace: CUdeviceptr,
    ) -> Result<()> {
        let BackwardShape { rows, width, x_stride, dout_stride, dx_stride } = self.shape;
        let weight_dtype = check::param_dtype(OP, "weight", self.dtype, weight_dtype)?;
        let weight = if weight_dtype.is_some() { weight } else { 0 };
        let workspace = if dweight == 0 { 0 } else { workspace };
        let present = |address: CUdeviceptr, rows: Rows| if address == 0 { Rows::new(0, 0, 0, 1) } else { rows };
        let (x_rows, dout_rows, dx_rows) = (self.rows(x_stride), self.rows(dout_stride), self.rows(dx_stride));
        let (weight_rows, rstd_rows) = (check::param_rows(width, weight_dtype), Rows::new(1, rows, 0, 4));
        let dweight_rows = present(dweight, Rows::new(1, width, 0, 4));
        let parts_rows = if dweight == 0 { Rows::new(0, 0, 0, 4) } else { self.parts() };
        let x_at: Placed<'_> = ("x", x, &x_rows);
        let dout_at: Placed<'_> = ("dout", dout, &dout_rows);
        let small: [Placed<'_>; 2] = [("weight", weight, &weight_rows), ("rstd", rstd, &rstd_rows)];
        let dx_at: Placed<'_> = ("dx", dx, &dx_rows);
        let dweight_at: Placed<'_> = ("dweight", dweight, &dweight_rows);
        let parts_at: Placed<'_> = ("workspace", workspace, &parts_rows);
        check::addresses(OP, &[x_at, dout_at, dx_at, dweight_at, parts_at])?;
        check::addresses(OP, &small)?;
        check::disjoint(OP, dx_at, &small)?;
        for input in [x_at, dout_at] {
            check::disjoint_or_same(OP, dx_at, input)?;
        }
        check::disjoint(OP, dweight_at, &[x_at, dout_at, small[0], small[1], dx_at])?;
        check::disjoint(OP, parts_at, &[x_at, dout_at, small[0], small[1], dx_at, dweight_at])?;
        if width == 0 {
            return Ok(());
        }
        if rows > 0 {
            let (kernel, vec) = self.kernels.pick(&[
                (x, &x_rows),
                (dout, &dout_rows),
                (dx, &dx_rows),
                (weight, &weight_rows),
                (workspace, &parts_rows),
            ]);
            let args = lookback_kernels::args::RmsNormBwd {
                p_x: x,
                p_dout: dout,
                p_weight: weight,
                p_rstd: rstd,
                p_dx: dx,
                p_parts: workspace,
                rows: rows as u32,
                width: width as u32,
                x_stride,
                dout_stride,
                dx_stride,
                weight_f32: u32::from(weight_dtype == Some(DType::F32)),
                mean_factor: (1.0 / width as f64) as f32,
                slice_rows: self.slice_rows as u32,
                lane_bits: lane_bits(width, vec, held(vec)),
            };
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            unsafe { launch(stream, kernel, [self.parts().rows as u32, 1, 1], &args) }?;
        }
        if dweight == 0 {
            return Ok(());
        }
        let args = lookback_kernels::args::ColumnSum {
            p_parts: workspace,
            p_out: dweight,
            slices: self.parts().rows as u32,
            width: width as u32,
        };
        // SAFETY: as above; the launch before on the same stream wrote every part.
        unsafe { launch(stream, self.sum, [width.div_ceil(BLOCK) as u32, 1, 1], &args) }
    }
}
