//! The gradient of the gated norm.

use super::{Gate, OP, Options, check_sizes, first};
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
    /// Elements of a group, over which a mean is taken; divides `width`.
    pub group: usize,
    /// Elements from a row of `y` to the next.
    pub y_stride: i64,
    /// Elements from a row of `z` to the next.
    pub z_stride: i64,
    /// Elements from a row of `dout` to the next.
    pub dout_stride: i64,
    /// Elements from a row of `dy` to the next.
    pub dy_stride: i64,
    /// Elements from a row of `dz` to the next.
    pub dz_stride: i64,
}

impl BackwardShape {
    /// Rows without gaps, each one group.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = i64::try_from(width).unwrap_or(i64::MAX);
        Self {
            rows,
            width,
            group: width,
            y_stride: stride,
            z_stride: stride,
            dout_stride: stride,
            dy_stride: stride,
            dz_stride: stride,
        }
    }

    /// The same with means over groups of `group` columns.
    pub fn groups_of(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.width.checked_div(self.group).unwrap_or(0)
    }
}

/// What a gradient is made from.
pub struct BackwardInputs<'a, T> {
    /// `[rows, width]`.
    pub y: &'a dyn DevicePtr<T>,
    /// `[rows, width]`.
    pub z: &'a dyn DevicePtr<T>,
    /// By the result: `[rows, width]`.
    pub dout: &'a dyn DevicePtr<T>,
    /// `[width]`; absent means 1.
    pub weight: Param<'a, T>,
    /// `[rows, groups]`, from the forward pass.
    pub rstd: &'a dyn DevicePtr<f32>,
}

/// Where the gradients go.
pub struct Gradients<'a, T> {
    /// `[rows, width]`.
    pub dy: &'a mut dyn DevicePtrMut<T>,
    /// `[rows, width]`.
    pub dz: &'a mut dyn DevicePtrMut<T>,
    /// `[width]`.
    pub dweight: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// Addresses of [`BackwardInputs`] and [`Gradients`], for [`BackwardPlan::run_raw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawGradients {
    /// See [`BackwardInputs::y`].
    pub y: CUdeviceptr,
    /// See [`BackwardInputs::z`].
    pub z: CUdeviceptr,
    /// See [`BackwardInputs::dout`].
    pub dout: CUdeviceptr,
    /// See [`BackwardInputs::weight`]; with its type, `None` for absent.
    pub weight: (CUdeviceptr, Option<DType>),
    /// See [`BackwardInputs::rstd`].
    pub rstd: CUdeviceptr,
    /// See [`Gradients::dy`]; may be `y`, `z` or `dout` itself.
    pub dy: CUdeviceptr,
    /// See [`Gradients::dz`]; may be `y`, `z` or `dout` itself.
    pub dz: CUdeviceptr,
    /// See [`Gradients::dweight`]; 0 for absent.
    pub dweight: CUdeviceptr,
    /// At least [`BackwardPlan::workspace_bytes`]; not used without `dweight`.
    pub workspace: CUdeviceptr,
}

/// A checked gradient of the gated norm.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: BackwardShape,
    options: Options,
    kernels: Variants,
    sum: &'static Kernel,
    slice_rows: usize,
}

/// Accesses of a thread that the kernel keeps in registers.
fn held(vec: u32) -> usize {
    match vec {
        8 => 2,
        4 => 3,
        _ => 4,
    }
}

impl BackwardPlan {
    /// Checks sizes, strides and `eps` and finds the kernels. `eps` itself is in `rstd` already.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new), and [`Error::Layout`] ← rows of `dy` or `dz` that overlap.
    pub fn new(shape: &BackwardShape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check_sizes(shape.rows, shape.width, shape.group, options.eps)?;
        let missing = || Error::NoKernel { op: OP, request: "column_sum".into() };
        let vec = 16 / options.dtype.size() as u32;
        let teams = BLOCK >> lane_bits(shape.group, vec, held(vec));
        let plan = Self {
            shape: *shape,
            options: *options,
            kernels: Variants::find(OP, "gated_rms_norm_bwd", options.dtype, &[("first", first(options))])?,
            sum: find("column_sum", &[]).ok_or_else(missing)?,
            slice_rows: slice_rows(shape.rows, shape.groups(), teams, device.sm_count),
        };
        check::readable(OP, "y", &plan.rows(shape.y_stride))?;
        check::readable(OP, "z", &plan.rows(shape.z_stride))?;
        check::readable(OP, "dout", &plan.rows(shape.dout_stride))?;
        check::writable(OP, "dy", &plan.rows(shape.dy_stride))?;
        check::writable(OP, "dz", &plan.rows(shape.dz_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors, when `dweight` is wanted.
    pub fn workspace_bytes(&self) -> u64 {
        self.parts().bytes()
    }

    /// Bytes that must cross the memory bus at least, without `weight`, `rstd` and `dweight`.
    pub fn bytes_moved(&self) -> u64 {
        5 * self.rows(0).bytes()
    }

    /// Floating-point operations of the three gradients; the gate is not counted.
    pub fn flops(&self) -> u64 {
        15 * self.rows(0).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    fn parts(&self) -> Rows {
        let slices = self.shape.rows.div_ceil(self.slice_rows.max(1));
        Rows::new(slices, self.shape.width, self.shape.width as i64, 4)
    }

    /// The gradients of a loss by `y`, `z` and `weight`, given that by the result of [`Plan::run`](super::Plan::run).
    ///
    /// # Shapes
    /// [`BackwardInputs`] and [`Gradients`], of the plan's type and strides. `workspace`: at least
    /// [`workspace_bytes`](Self::workspace_bytes), as `f32`; may be empty without `dweight`.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Workspace`] ← the workspace
    /// is; [`Error::Alias`] ← an output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`, rounded once.
    ///
    /// # Determinism
    /// Bitwise; `dweight` for one number of multiprocessors.
    ///
    /// # Cost
    /// One launch that reads the three tensors once, and for `dweight` another that adds up the workspace.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: BackwardInputs<'_, T>,
        gradients: Gradients<'_, T>,
        workspace: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let BackwardShape { rows, width, y_stride, z_stride, dout_stride, dy_stride, dz_stride, .. } = self.shape;
        check::dtype(OP, "y", self.options.dtype, T::DTYPE)?;
        for (arg, stride, got) in [
            ("y", y_stride, inputs.y.len()),
            ("z", z_stride, inputs.z.len()),
            ("dout", dout_stride, inputs.dout.len()),
            ("dy", dy_stride, gradients.dy.len()),
            ("dz", dz_stride, gradients.dz.len()),
        ] {
            check::length(OP, arg, self.rows(stride).span(), got)?;
        }
        let weight_dtype = inputs.weight.dtype();
        if weight_dtype.is_some() {
            check::length(OP, "weight", width as u64, inputs.weight.len())?;
        }
        check::length(OP, "rstd", rows as u64 * self.shape.groups() as u64, inputs.rstd.len())?;
        if let Some(dweight) = &gradients.dweight {
            check::length(OP, "dweight", width as u64, dweight.len())?;
            let (need, got) = (self.workspace_bytes(), workspace.num_bytes() as u64);
            if got < need {
                return Err(Error::Workspace { op: OP, need, got });
            }
        }
        let (y, _y) = inputs.y.device_ptr(stream);
        let (z, _z) = inputs.z.device_ptr(stream);
        let (dout, _dout) = inputs.dout.device_ptr(stream);
        let (weight, _weight) = memory::param(inputs.weight, stream);
        let (rstd, _rstd) = inputs.rstd.device_ptr(stream);
        let (dy, _dy) = gradients.dy.device_ptr_mut(stream);
        let (dz, _dz) = gradients.dz.device_ptr_mut(stream);
        let (dweight, _dweight) = memory::output(gradients.dweight, stream);
        let (workspace, _workspace) = workspace.device_ptr_mut(stream);
        let weight = (weight, weight_dtype);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launches are queued.
        unsafe { self.run_raw(stream, RawGradients { y, z, dout, weight, rstd, dy, dz, dweight, workspace }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← the weight's type is neither the plan's nor `f32`; [`Error::Align`], [`Error::Alias`], and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and those of gradients and workspace writable, over the plan's extents until the launches have
    ///   ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, stream: &CudaStream, raw: RawGradients) -> Result<()> {
        let RawGradients { y, z, dout, rstd, dy, dz, dweight, .. } = raw;
        let BackwardShape { rows, width, group, y_stride, z_stride, dout_stride, dy_stride, dz_stride } = self.shape;
        let weight_dtype = check::param_dtype(OP, "weight", self.options.dtype, raw.weight.1)?;
        let weight = if weight_dtype.is_some() { raw.weight.0 } else { 0 };
        let parts = if dweight == 0 { 0 } else { raw.workspace };
        let (y_rows, z_rows, dout_rows) = (self.rows(y_stride), self.rows(z_stride), self.rows(dout_stride));
        let (dy_rows, dz_rows) = (self.rows(dy_stride), self.rows(dz_stride));
        let weight_rows = check::param_rows(width, weight_dtype);
        let rstd_rows = Rows::new(1, rows * self.shape.groups(), 0, 4);
        let wanted = |rows: Rows| if dweight == 0 { Rows::new(0, 0, 0, 4) } else { rows };
        let (dweight_rows, parts_rows) = (wanted(Rows::new(1, width, 0, 4)), wanted(self.parts()));
        let big: [Placed<'_>; 3] = [("y", y, &y_rows), ("z", z, &z_rows), ("dout", dout, &dout_rows)];
        let small: [Placed<'_>; 2] = [("weight", weight, &weight_rows), ("rstd", rstd, &rstd_rows)];
        let written: [Placed<'_>; 4] = [
            ("dy", dy, &dy_rows),
            ("dz", dz, &dz_rows),
            ("dweight", dweight, &dweight_rows),
            ("workspace", parts, &parts_rows),
        ];
        check::addresses(OP, &big)?;
        check::addresses(OP, &small)?;
        check::addresses(OP, &written)?;
        for (at, output) in written.iter().enumerate() {
            check::disjoint(OP, *output, &small)?;
            check::disjoint(OP, *output, &written[..at])?;
            for input in big {
                if at < 2 {
                    check::disjoint_or_same(OP, *output, input)?;
                } else {
                    check::disjoint(OP, *output, &[input])?;
                }
            }
        }
        if width == 0 {
            return Ok(());
        }
        if rows > 0 {
            // Groups must begin on whole accesses too.
            let groups = Rows::new(2, group, group as i64, self.options.dtype.size());
            let (kernel, vec) = self.kernels.pick(&[
                (y, &y_rows),
                (z, &z_rows),
                (dout, &dout_rows),
                (dy, &dy_rows),
                (dz, &dz_rows),
                (dy, &groups),
                (weight, &weight_rows),
                (parts, &parts_rows),
            ]);
            let args = lookback_kernels::args::GatedRmsNormBwd {
                p_y: y,
                p_z: z,
                p_dout: dout,
                p_weight: weight,
                p_rstd: rstd,
                p_dy: dy,
                p_dz: dz,
                p_parts: parts,
                rows: rows as u32,
                group: group as u32,
                y_stride,
                z_stride,
                dout_stride,
                dy_stride,
                dz_stride,
                weight_f32: u32::from(weight_dtype == Some(DType::F32)),
                silu: u32::from(self.options.gate == Gate::Silu),
                mean_factor: (1.0 / group as f64) as f32,
                slice_rows: self.slice_rows as u32,
                lane_bits: lane_bits(group, vec, held(vec)),
                ..bytemuck::Zeroable::zeroed()
            };
            let grid = [self.parts().rows as u32, self.shape.groups() as u32, 1];
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            unsafe { launch(stream, kernel, grid, &args) }?;
        }
        if dweight == 0 {
            return Ok(());
        }
        let args = lookback_kernels::args::ColumnSum {
            p_parts: parts,
            p_out: dweight,
            slices: self.parts().rows as u32,
            width: width as u32,
        };
        // SAFETY: as above; the launch before on the same stream wrote every part.
        unsafe { launch(stream, self.sum, [width.div_ceil(BLOCK) as u32, 1, 1], &args) }
    }
}
