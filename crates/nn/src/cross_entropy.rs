//! Cross-entropy of logits against labels: `loss[r] = log(sum over c of exp(x[r, c])) - x[r, label[r]]`, and its gradient.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Team, Variants},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use std::sync::Arc;

const OP: &str = "cross_entropy";
/// The label of a row that does not count.
pub const IGNORED: i32 = -100;

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Logits of a row; at least 1.
    pub classes: usize,
    /// Elements from a row of `logits` to the next.
    pub x_stride: i64,
    /// Elements from a row of `dlogits` to the next.
    pub dx_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, classes: usize) -> Self {
        Self { rows, classes, x_stride: classes as i64, dx_stride: classes as i64 }
    }
}

/// Element type and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `logits` and `dlogits`.
    pub dtype: DType,
    /// Factor of `dlogits`: 1 / rows for the gradient of a mean. Finite.
    pub scale: f32,
}

/// What a launch writes besides the losses.
pub struct Outputs<'a, T> {
    /// `[rows]`: log of the sum of exponentials.
    pub lse: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[rows, classes]`: `scale (softmax(x) - onehot(label))`, zero for an ignored row.
    pub dlogits: Option<&'a mut dyn DevicePtrMut<T>>,
    /// One word; it becomes 1 if a label is neither [`IGNORED`] nor a class, and is left alone otherwise.
    pub fault: Option<&'a mut dyn DevicePtrMut<u32>>,
}

impl<T> Default for Outputs<'_, T> {
    fn default() -> Self {
        Self { lse: None, dlogits: None, fault: None }
    }
}

/// Addresses of [`Outputs`] for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawOutputs {
    /// See [`Outputs::lse`].
    pub lse: CUdeviceptr,
    /// See [`Outputs::dlogits`].
    pub dlogits: CUdeviceptr,
    /// See [`Outputs::fault`].
    pub fault: CUdeviceptr,
}

/// A checked cross-entropy.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    team: Team,
    kernels: Variants,
}

impl Plan {
    /// Checks sizes, strides and `scale` and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large, rows without classes, or `scale` not finite; [`Error::Layout`] ← a negative
    /// stride, or rows of `dlogits` that overlap.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "classes", shape.classes, 1, check::MAX_EXTENT)?;
        if !options.scale.is_finite() {
            let (lo, hi) = (i64::MIN, i64::MAX);
            return Err(Error::Range { op: OP, arg: "scale", at: None, lo, hi, got: options.scale as i64 });
        }
        let team = Team::of(shape.classes);
        let kernels = Variants::find(OP, "cross_entropy", options.dtype, &[("team", team.name())])?;
        let plan = Self { shape: *shape, options: *options, team, kernels };
        check::readable(OP, "logits", &plan.rows(shape.x_stride))?;
        check::writable(OP, "dlogits", &plan.rows(shape.dx_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, with `dlogits`.
    pub fn bytes_moved(&self) -> u64 {
        2 * self.rows(self.shape.x_stride).bytes() + 8 * self.shape.rows as u64
    }

    /// Floating-point operations: difference, exponential, sum, and again for the gradient.
    pub fn flops(&self) -> u64 {
        6 * self.rows(self.shape.x_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.classes, stride, self.options.dtype.size())
    }

    /// The loss of each row, and what `outputs` asks for.
    ///
    /// # Shapes
    /// `logits`: `[rows, classes]` of the plan's type and stride. `labels`: `[rows]`, a class or [`IGNORED`]; a row with another
    /// label is treated as ignored and reported in `fault`. `loss`: `[rows]`, 0 for an ignored row.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← an output
    /// overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// A running maximum is subtracted before every exponential; sums in `f32`. A NaN, a +inf, or nothing but -inf in a row makes
    /// its loss and gradient NaN.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        logits: &impl DevicePtr<T>,
        labels: &impl DevicePtr<i32>,
        loss: &mut impl DevicePtrMut<f32>,
        outputs: Outputs<'_, T>,
    ) -> Result<()> {
        let rows = self.shape.rows as u64;
        check::dtype(OP, "logits", self.options.dtype, T::DTYPE)?;
        check::length(OP, "logits", self.rows(self.shape.x_stride).span(), logits.len())?;
        check::length(OP, "labels", rows, labels.len())?;
        check::length(OP, "loss", rows, loss.len())?;
        if let Some(lse) = &outputs.lse {
            check::length(OP, "lse", rows, lse.len())?;
        }
        if let Some(dlogits) = &outputs.dlogits {
            check::length(OP, "dlogits", self.rows(self.shape.dx_stride).span(), dlogits.len())?;
        }
        if let Some(fault) = &outputs.fault {
            check::length(OP, "fault", 1, fault.len())?;
        }
        let (logits, _logits) = logits.device_ptr(stream);
        let (labels, _labels) = labels.device_ptr(stream);
        let (loss, _loss) = loss.device_ptr_mut(stream);
        let (lse, _lse) = memory::output(outputs.lse, stream);
        let (dlogits, _dlogits) = memory::output(outputs.dlogits, stream);
        let (fault, _fault) = memory::output(outputs.fault, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, logits, labels, loss, RawOutputs { lse, dlogits, fault }) }
    }

    /// As [`run`](Self::run) on device addresses. Here `dlogits` may be `logits` itself.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and the outputs writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        logits: CUdeviceptr,
        labels: CUdeviceptr,
        loss: CUdeviceptr,
        outputs: RawOutputs,
    ) -> Result<()> {
        let Shape { rows, classes, x_stride, dx_stride } = self.shape;
        let RawOutputs { lse, dlogits, fault } = outputs;
        let (x_rows, row) = (self.rows(x_stride), Rows::new(1, rows, 0, 4));
        let present = |address: CUdeviceptr, rows: Rows| if address == 0 { Rows::new(0, 0, 0, 1) } else { rows };
        let (lse_rows, dx_rows) = (present(lse, row), present(dlogits, self.rows(dx_stride)));
        let fault_rows = present(fault, Rows::new(1, 1, 0, 4));
        let logits_at: Placed<'_> = ("logits", logits, &x_rows);
        let labels_at: Placed<'_> = ("labels", labels, &row);
        let loss_at: Placed<'_> = ("loss", loss, &row);
        let lse_at: Placed<'_> = ("lse", lse, &lse_rows);
        let dlogits_at: Placed<'_> = ("dlogits", dlogits, &dx_rows);
        let fault_at: Placed<'_> = ("fault", fault, &fault_rows);
        check::addresses(OP, &[logits_at, labels_at, loss_at, lse_at, dlogits_at, fault_at])?;
        check::disjoint(OP, loss_at, &[logits_at, labels_at, lse_at, dlogits_at, fault_at])?;
        check::disjoint(OP, lse_at, &[logits_at, labels_at, dlogits_at, fault_at])?;
        check::disjoint(OP, fault_at, &[logits_at, labels_at, dlogits_at])?;
        check::disjoint(OP, dlogits_at, &[labels_at])?;
        check::disjoint_or_same(OP, dlogits_at, logits_at)?;
        let (kernel, _) = self.kernels.pick(&[(logits, &x_rows), (dlogits, &dx_rows)]);
        let args = lookback_kernels::args::CrossEntropy {
            p_logits: logits,
            p_labels: labels,
            p_loss: loss,
            p_lse: lse,
            p_dlogits: dlogits,
            p_fault: fault,
            rows: rows as u32,
            classes: classes as u32,
            x_stride,
            dx_stride,
            scale: self.options.scale,
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [self.team.blocks(rows), 1, 1], &args) }
    }
}

/// The losses of dense rows, in new memory.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`].
pub fn cross_entropy<T: Element>(
    stream: &Arc<CudaStream>,
    logits: &impl DevicePtr<T>,
    labels: &impl DevicePtr<i32>,
    (rows, classes): (usize, usize),
) -> Result<CudaSlice<f32>> {
    let device = DeviceInfo::of(stream.context())?;
    let plan = Plan::new(&Shape::dense(rows, classes), &Options { dtype: T::DTYPE, scale: 1.0 }, &device)?;
    let mut loss = memory::allocate(stream, rows as u64, OP)?;
    plan.run(stream, logits, labels, &mut loss, Outputs::default())?;
    Ok(loss)
}
