//! The gradient of the norm.

use super::{OP, Options, check_eps};
use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{BLOCK, Variants, lane_bits, slice_rows},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use lookback_kernels::{Kernel, find};

/// Accesses of a thread that the kernel keeps in registers.
const HELD: usize = 4;

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardShape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements from a row of `s` to the next.
    pub s_stride: i64,
    /// Elements from a row of `dout` to the next.
    pub dout_stride: i64,
    /// Elements from a row of `dsum` to the next.
    pub dsum_stride: i64,
    /// Elements from a row of `ds` to the next.
    pub ds_stride: i64,
    /// Elements from a row of `dx` to the next.
    pub dx_stride: i64,
}

impl BackwardShape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = width as i64;
        Self {
            rows,
            width,
            s_stride: stride,
            dout_stride: stride,
            dsum_stride: stride,
            ds_stride: stride,
            dx_stride: stride,
        }
    }
}

/// What a launch reads besides `s`; an absent gradient counts as zeros, an absent weight as ones.
pub struct BackwardInputs<'a, T> {
    /// `[rows, width]`: the gradient of `out`.
    pub dout: Option<&'a dyn DevicePtr<T>>,
    /// `[rows, width]`: the gradient of `sum`, as the residual stream brings it back.
    pub dsum: Option<&'a dyn DevicePtr<f32>>,
    /// `[width]`.
    pub weight: Option<&'a dyn DevicePtr<f32>>,
}

impl<T> Default for BackwardInputs<'_, T> {
    fn default() -> Self {
        Self { dout: None, dsum: None, weight: None }
    }
}

/// What a launch writes, each where wanted.
pub struct BackwardOutputs<'a, T> {
    /// `[rows, width]`: the gradient of `residual` and of `x`, which is the same.
    pub ds: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// The same in the plan's type.
    pub dx: Option<&'a mut dyn DevicePtrMut<T>>,
    /// `[width]`.
    pub dweight: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[width]`.
    pub dbias: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<T> Default for BackwardOutputs<'_, T> {
    fn default() -> Self {
        Self { ds: None, dx: None, dweight: None, dbias: None }
    }
}

/// Addresses of all tensors for [`BackwardPlan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackwardAddresses {
    /// What was normed: `residual + x`.
    pub s: CUdeviceptr,
    /// See [`BackwardInputs::dout`].
    pub dout: CUdeviceptr,
    /// See [`BackwardInputs::dsum`].
    pub dsum: CUdeviceptr,
    /// See [`BackwardInputs::weight`].
    pub weight: CUdeviceptr,
    /// See [`BackwardOutputs::ds`].
    pub ds: CUdeviceptr,
    /// See [`BackwardOutputs::dx`].
    pub dx: CUdeviceptr,
    /// See [`BackwardOutputs::dweight`].
    pub dweight: CUdeviceptr,
    /// See [`BackwardOutputs::dbias`].
    pub dbias: CUdeviceptr,
    /// [`BackwardPlan::workspace_bytes`]; not used without `dweight` and `dbias`.
    pub workspace: CUdeviceptr,
}

/// A checked gradient of the norm.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: BackwardShape,
    options: Options,
    kernels: Variants,
    sum: &'static Kernel,
    slice_rows: usize,
}

impl BackwardPlan {
    /// Checks sizes and strides, finds the kernels and cuts the rows up. `options` are those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, or `eps` negative or not finite; [`Error::Layout`] ← a negative input stride, or rows
    /// of an output that overlap.
    pub fn new(shape: &BackwardShape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, 65_535 * BLOCK)?;
        check_eps(options.eps)?;
        let teams = BLOCK >> lane_bits(shape.width, 4, HELD);
        let missing = || Error::NoKernel { op: OP, request: "column_sum".into() };
        let plan = Self {
            shape: *shape,
            options: *options,
            kernels: Variants::of_four(OP, "residual_norm_bwd", options.dtype, &[])?,
            sum: find("column_sum", &[]).ok_or_else(missing)?,
            slice_rows: slice_rows(shape.rows, 1, teams, device.sm_count),
        };
        check::readable(OP, "s", &plan.wide(shape.s_stride))?;
        check::readable(OP, "dout", &plan.rows(shape.dout_stride))?;
        check::readable(OP, "dsum", &plan.wide(shape.dsum_stride))?;
        check::writable(OP, "ds", &plan.wide(shape.ds_stride))?;
        check::writable(OP, "dx", &plan.rows(shape.dx_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, when `dweight` or `dbias` is wanted.
    pub fn workspace_bytes(&self) -> u64 {
        2 * self.parts().bytes()
    }

    /// Bytes that must cross the memory bus at least when all five matrices are there, without parameters and their gradients.
    pub fn bytes_moved(&self) -> u64 {
        2 * self.rows(self.shape.dx_stride).bytes() + 3 * self.wide(self.shape.s_stride).bytes()
    }

    /// Floating-point operations of all gradients.
    pub fn flops(&self) -> u64 {
        (if self.options.center { 16 } else { 13 }) * self.wide(self.shape.s_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    fn wide(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, 4)
    }

    /// Parts of the gradient of the weight, or of the bias.
    fn parts(&self) -> Rows {
        let slices = self.shape.rows.div_ceil(self.slice_rows.max(1));
        Rows::new(slices, self.shape.width, self.shape.width as i64, 4)
    }

    /// The gradients of a loss by what was added up and by the parameters, given those by `out` and `sum`.
    ///
    /// With `c = s - mean(s)` (or `s` without [`Options::center`]), `y = c / sqrt(mean(c^2) + eps)` and `g = dout weight`,
    /// `ds = rstd (g - mean(g) - y mean(g y)) + dsum`, without `mean(g)` where nothing is centred; `dweight = sum over rows of dout y`,
    /// `dbias = sum over rows of dout`. With [`Options::post`], where `sum` was the normed row, `dsum` is added to `dout` instead.
    ///
    /// # Shapes
    /// `s`: `[rows, width]` in `f32`, the sum that was normed: the forward pass' `sum` without [`Options::post`]. Those of
    /// [`BackwardInputs`] and [`BackwardOutputs`]. `workspace`: at least [`workspace_bytes`](Self::workspace_bytes), as `f32`; may be
    /// empty without `dweight` and `dbias`.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Workspace`] ← the workspace
    /// is; [`Error::Alias`] ← an output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`; means and deviations are computed anew from `s`, as in the forward pass.
    ///
    /// # Determinism
    /// Bitwise; `dweight` and `dbias` for one number of multiprocessors.
    ///
    /// # Cost
    /// One launch that reads everything once, and one each for `dweight` and `dbias` that adds up the workspace.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        s: &impl DevicePtr<f32>,
        inputs: BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let BackwardShape { width, s_stride, dout_stride, dsum_stride, ds_stride, dx_stride, .. } = self.shape;
        check::dtype(OP, "dout", self.options.dtype, T::DTYPE)?;
        let lengths = [
            ("s", self.wide(s_stride).span(), Some(s.len())),
            ("dout", self.rows(dout_stride).span(), inputs.dout.map(|t| t.len())),
            ("dsum", self.wide(dsum_stride).span(), inputs.dsum.map(|t| t.len())),
            ("weight", width as u64, inputs.weight.map(|t| t.len())),
            ("ds", self.wide(ds_stride).span(), outputs.ds.as_ref().map(|t| t.len())),
            ("dx", self.rows(dx_stride).span(), outputs.dx.as_ref().map(|t| t.len())),
            ("dweight", width as u64, outputs.dweight.as_ref().map(|t| t.len())),
            ("dbias", width as u64, outputs.dbias.as_ref().map(|t| t.len())),
        ];
        for (arg, need, got) in lengths {
            got.map_or(Ok(()), |got| check::length(OP, arg, need, got))?;
        }
        if outputs.dweight.is_some() || outputs.dbias.is_some() {
            let (need, got) = (self.workspace_bytes(), workspace.num_bytes() as u64);
            if got < need {
                return Err(Error::Workspace { op: OP, need, got });
            }
        }
        let (s, _s) = s.device_ptr(stream);
        let (dout, _dout) = memory::input(inputs.dout, stream);
        let (dsum, _dsum) = memory::input(inputs.dsum, stream);
        let (weight, _weight) = memory::input(inputs.weight, stream);
        let (ds, _ds) = memory::output(outputs.ds, stream);
        let (dx, _dx) = memory::output(outputs.dx, stream);
        let (dweight, _dweight) = memory::output(outputs.dweight, stream);
        let (dbias, _dbias) = memory::output(outputs.dbias, stream);
        let (workspace, _workspace) = workspace.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launches are queued.
        unsafe { self.run_raw(stream, &BackwardAddresses { s, dout, dsum, weight, ds, dx, dweight, dbias, workspace }) }
    }

    /// As [`run`](Self::run) on device addresses. Here `ds` may be `s` or `dsum` itself, and `dx` `dout`.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable, and outputs and `workspace` are writable, over the plan's extents until the launches
    ///   have ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, stream: &CudaStream, at: &BackwardAddresses) -> Result<()> {
        let BackwardShape { rows, width, s_stride, dout_stride, dsum_stride, ds_stride, dx_stride } = self.shape;
        let there = |at: CUdeviceptr, rows: Rows| if at == 0 { Rows::new(0, 0, 0, rows.size as usize) } else { rows };
        let param = |at: CUdeviceptr| check::param_rows(width, (at != 0).then_some(DType::F32));
        let sums = at.dweight != 0 || at.dbias != 0;
        let workspace = if sums { at.workspace } else { 0 };
        let parts_rows = self.parts();
        let bias_parts = workspace.saturating_add(parts_rows.bytes());
        let both_rows = Rows { rows: if sums { 2 * parts_rows.rows } else { 0 }, ..parts_rows };
        let s_rows = self.wide(s_stride);
        let (dout_rows, dsum_rows) = (there(at.dout, self.rows(dout_stride)), there(at.dsum, self.wide(dsum_stride)));
        let (ds_rows, dx_rows) = (there(at.ds, self.wide(ds_stride)), there(at.dx, self.rows(dx_stride)));
        let (weight_rows, dweight_rows, dbias_rows) = (param(at.weight), param(at.dweight), param(at.dbias));
        let (s, dout, dsum): (Placed<'_>, Placed<'_>, Placed<'_>) =
            (("s", at.s, &s_rows), ("dout", at.dout, &dout_rows), ("dsum", at.dsum, &dsum_rows));
        let weight: Placed<'_> = ("weight", at.weight, &weight_rows);
        let (ds, dx): (Placed<'_>, Placed<'_>) = (("ds", at.ds, &ds_rows), ("dx", at.dx, &dx_rows));
        let (dweight, dbias): (Placed<'_>, Placed<'_>) =
            (("dweight", at.dweight, &dweight_rows), ("dbias", at.dbias, &dbias_rows));
        let scratch: Placed<'_> = ("workspace", workspace, &both_rows);
        check::addresses(OP, &[s, dout, dsum, weight, ds, dx, dweight, dbias, scratch])?;
        check::disjoint_or_same(OP, ds, s)?;
        check::disjoint_or_same(OP, ds, dsum)?;
        check::disjoint(OP, ds, &[dout, weight])?;
        check::disjoint_or_same(OP, dx, dout)?;
        check::disjoint(OP, dx, &[s, dsum, weight, ds])?;
        check::disjoint(OP, dweight, &[s, dout, dsum, weight, ds, dx])?;
        check::disjoint(OP, dbias, &[s, dout, dsum, weight, ds, dx, dweight])?;
        check::disjoint(OP, scratch, &[s, dout, dsum, weight, ds, dx, dweight, dbias])?;
        if width == 0 || (at.ds == 0 && at.dx == 0 && !sums) {
            return Ok(());
        }
        if rows > 0 {
            let (kernel, vec) = self.kernels.pick(&[
                (at.s, &s_rows),
                (at.dout, &dout_rows),
                (at.dsum, &dsum_rows),
                (at.weight, &weight_rows),
                (at.ds, &ds_rows),
                (at.dx, &dx_rows),
                (workspace, &both_rows),
            ]);
            let args = lookback_kernels::args::ResidualNormBwd {
                p_s: at.s,
                p_dout: at.dout,
                p_dsum: at.dsum,
                p_weight: at.weight,
                p_ds: at.ds,
                p_dx: at.dx,
                p_parts: if at.dweight == 0 { 0 } else { workspace },
                p_bias_parts: if at.dbias == 0 { 0 } else { bias_parts },
                rows: rows as u32,
                width: width as u32,
                s_stride,
                dout_stride,
                dsum_stride,
                ds_stride,
                dx_stride,
                center: u32::from(self.options.center),
                post: u32::from(self.options.post),
                eps: self.options.eps,
                mean_factor: (1.0 / width as f64) as f32,
                slice_rows: self.slice_rows as u32,
                lane_bits: lane_bits(width, vec, HELD),
            };
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            unsafe { launch(stream, kernel, [parts_rows.rows as u32, 1, 1], &args) }?;
        }
        for (parts, out) in [(workspace, at.dweight), (bias_parts, at.dbias)] {
            if out == 0 {
                continue;
            }
            let args = lookback_kernels::args::ColumnSum {
                p_parts: parts,
                p_out: out,
                slices: parts_rows.rows as u32,
                width: width as u32,
            };
            // SAFETY: as above; the launch before on the same stream wrote every part.
            unsafe { launch(stream, self.sum, [width.div_ceil(BLOCK) as u32, 1, 1], &args) }?;
        }
        Ok(())
    }
}
