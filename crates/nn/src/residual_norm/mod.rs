//! The residual stream in `f32` and its norm: `s = residual + x`, `out = norm(s) weight + bias`, with or without the mean taken off.
//!
//! One launch does what stands between two mixers: the sum, kept in `f32`, and the next mixer's input in the activations' type. With
//! [`Options::post`] the normed row is what goes on, as in models that norm after the sum.

mod backward;

pub use backward::{BackwardAddresses, BackwardInputs, BackwardOutputs, BackwardPlan, BackwardShape};

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Team, Variants},
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};

const OP: &str = "residual_norm";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, over which means are taken.
    pub width: usize,
    /// Elements from a row of `residual` to the next.
    pub residual_stride: i64,
    /// Elements from a row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `sum` to the next.
    pub sum_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(rows: usize, width: usize) -> Self {
        let stride = width as i64;
        Self { rows, width, residual_stride: stride, x_stride: stride, sum_stride: stride, out_stride: stride }
    }
}

/// Element types, constants and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `x` and `out`; `residual` and `sum` are `f32`.
    pub dtype: DType,
    /// Added to the mean of squares; finite and not negative.
    pub eps: f32,
    /// Whether the mean is subtracted: layer norm. Else root-mean-square norm.
    pub center: bool,
    /// Whether `sum` receives the normed row instead of `s`.
    pub post: bool,
}

/// What a launch reads; every absent tensor counts as zeros, but `weight` as ones.
pub struct Inputs<'a, T> {
    /// `[rows, width]`.
    pub residual: Option<&'a dyn DevicePtr<f32>>,
    /// `[rows, width]`.
    pub x: Option<&'a dyn DevicePtr<T>>,
    /// `[width]`.
    pub weight: Option<&'a dyn DevicePtr<f32>>,
    /// `[width]`.
    pub bias: Option<&'a dyn DevicePtr<f32>>,
}

impl<T> Default for Inputs<'_, T> {
    fn default() -> Self {
        Self { residual: None, x: None, weight: None, bias: None }
    }
}

/// Addresses of all tensors for [`Plan::run_raw`]; 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Addresses {
    /// See [`Inputs::residual`].
    pub residual: CUdeviceptr,
    /// See [`Inputs::x`].
    pub x: CUdeviceptr,
    /// See [`Inputs::weight`].
    pub weight: CUdeviceptr,
    /// See [`Inputs::bias`].
    pub bias: CUdeviceptr,
    /// `f32`, receives `s`, or the normed row with [`Options::post`].
    pub sum: CUdeviceptr,
    /// Receives the normed row.
    pub out: CUdeviceptr,
}

/// What is added to a mean of squares is finite and not negative.
fn check_eps(eps: f32) -> Result<()> {
    if eps >= 0.0 && eps.is_finite() {
        return Ok(());
    }
    Err(Error::Range { op: OP, arg: "eps", at: None, lo: 0, hi: i64::MAX, got: eps as i64 })
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
    /// rows of an output that overlap.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "rows", shape.rows, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        check_eps(options.eps)?;
        let team = Team::of(shape.width);
        let kernels = Variants::of_four(OP, "residual_norm", options.dtype, &[("team", team.name())])?;
        let plan = Self { shape: *shape, options: *options, team, kernels };
        check::readable(OP, "residual", &plan.wide(shape.residual_stride))?;
        check::readable(OP, "x", &plan.rows(shape.x_stride))?;
        check::writable(OP, "sum", &plan.wide(shape.sum_stride))?;
        check::writable(OP, "out", &plan.rows(shape.out_stride))?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least when all four matrices are there, without parameters.
    pub fn bytes_moved(&self) -> u64 {
        2 * (self.rows(self.shape.x_stride).bytes() + self.wide(self.shape.sum_stride).bytes())
    }

    /// Floating-point operations: the sum, square and its sum, two products and a sum an element; two more to center.
    pub fn flops(&self) -> u64 {
        (if self.options.center { 8 } else { 6 }) * self.rows(self.shape.x_stride).elements()
    }

    fn rows(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, self.options.dtype.size())
    }

    fn wide(&self, stride: i64) -> Rows {
        Rows::new(self.shape.rows, self.shape.width, stride, 4)
    }

    /// `s = residual + x`; `out = norm(s) weight + bias`; `sum` receives `s`, or the normed row with [`Options::post`].
    ///
    /// # Shapes
    /// Those of [`Inputs`]; `sum`: `[rows, width]` `f32`, `out`: `[rows, width]` of the plan's type; both where wanted. `sum` may be
    /// the residual: see [`run_in_place`](Self::run_in_place).
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← an output overlaps
    /// another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// In `f32`; the mean is taken off before squaring, and then that of what it left, so that a mean however much larger than the
    /// deviation costs nothing. Squares are summed in a tree over threads.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: Inputs<'_, T>,
        sum: Option<&mut dyn DevicePtrMut<f32>>,
        out: Option<&mut dyn DevicePtrMut<T>>,
    ) -> Result<()> {
        if let Some(residual) = inputs.residual {
            check::length(OP, "residual", self.wide(self.shape.residual_stride).span(), residual.len())?;
        }
        if let Some(sum) = &sum {
            check::length(OP, "sum", self.wide(self.shape.sum_stride).span(), sum.len())?;
        }
        let (residual, _residual) = memory::input(inputs.residual, stream);
        let (sum, _sum) = memory::output(sum, stream);
        self.run_over(stream, &inputs, Addresses { residual, sum, ..Addresses::default() }, out)
    }

    /// As [`run`](Self::run), with the residual replaced by the sum (or the normed row, with [`Options::post`]).
    ///
    /// # Errors
    /// Those of [`run`](Self::run), and [`Error::Layout`] ← the plan's strides of `residual` and `sum` differ.
    pub fn run_in_place<T: Element>(
        &self,
        stream: &CudaStream,
        residual: &mut impl DevicePtrMut<f32>,
        inputs: Inputs<'_, T>,
        out: Option<&mut dyn DevicePtrMut<T>>,
    ) -> Result<()> {
        let Shape { residual_stride, sum_stride, .. } = self.shape;
        if residual_stride != sum_stride {
            let need = "equal strides of `residual` and `sum`";
            return Err(Error::Layout { op: OP, arg: "sum", need, stride: vec![sum_stride, 1] });
        }
        check::length(OP, "residual", self.wide(residual_stride).span(), residual.len())?;
        let (residual, _residual) = residual.device_ptr_mut(stream);
        self.run_over(stream, &inputs, Addresses { residual, sum: residual, ..Addresses::default() }, out)
    }

    /// The rest of `run`: `at` has the addresses of `residual` and `sum`, whose lengths are checked and whose guards are held.
    fn run_over<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        at: Addresses,
        out: Option<&mut dyn DevicePtrMut<T>>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        if let Some(x) = inputs.x {
            check::length(OP, "x", self.rows(self.shape.x_stride).span(), x.len())?;
        }
        if let Some(out) = &out {
            check::length(OP, "out", self.rows(self.shape.out_stride).span(), out.len())?;
        }
        for (name, param) in [("weight", inputs.weight), ("bias", inputs.bias)] {
            if let Some(param) = param {
                check::length(OP, name, self.shape.width as u64, param.len())?;
            }
        }
        let (x, _x) = memory::input(inputs.x, stream);
        let (weight, _weight) = memory::input(inputs.weight, stream);
        let (bias, _bias) = memory::input(inputs.bias, stream);
        let (out, _out) = memory::output(out, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &Addresses { x, weight, bias, out, ..at }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable, and `sum` and `out` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, stream: &CudaStream, at: &Addresses) -> Result<()> {
        let Shape { rows, width, residual_stride, x_stride, sum_stride, out_stride } = self.shape;
        let there = |at: CUdeviceptr, rows: Rows| if at == 0 { Rows::new(0, 0, 0, rows.size as usize) } else { rows };
        let param = |at: CUdeviceptr| check::param_rows(width, (at != 0).then_some(DType::F32));
        let residual_rows = there(at.residual, self.wide(residual_stride));
        let x_rows = there(at.x, self.rows(x_stride));
        let (weight_rows, bias_rows) = (param(at.weight), param(at.bias));
        let sum_rows = there(at.sum, self.wide(sum_stride));
        let out_rows = there(at.out, self.rows(out_stride));
        let residual: Placed<'_> = ("residual", at.residual, &residual_rows);
        let x: Placed<'_> = ("x", at.x, &x_rows);
        let params: [Placed<'_>; 2] = [("weight", at.weight, &weight_rows), ("bias", at.bias, &bias_rows)];
        let (sum, out): (Placed<'_>, Placed<'_>) = (("sum", at.sum, &sum_rows), ("out", at.out, &out_rows));
        check::addresses(OP, &[residual, x, sum, out])?;
        check::addresses(OP, &params)?;
        check::disjoint_or_same(OP, sum, residual)?;
        check::disjoint(OP, sum, &[x, params[0], params[1], out])?;
        check::disjoint_or_same(OP, out, x)?;
        check::disjoint(OP, out, &[residual, params[0], params[1]])?;
        if self.rows(x_stride).elements() == 0 || (at.sum == 0 && at.out == 0) {
            return Ok(());
        }
        let (kernel, _) = self.kernels.pick(&[
            (at.residual, &residual_rows),
            (at.x, &x_rows),
            (at.weight, &weight_rows),
            (at.bias, &bias_rows),
            (at.sum, &sum_rows),
            (at.out, &out_rows),
        ]);
        let args = lookback_kernels::args::ResidualNorm {
            p_residual: at.residual,
            p_x: at.x,
            p_weight: at.weight,
            p_bias: at.bias,
            p_sum: at.sum,
            p_out: at.out,
            rows: rows as u32,
            width: width as u32,
            residual_stride,
            x_stride,
            sum_stride,
            out_stride,
            center: u32::from(self.options.center),
            post: u32::from(self.options.post),
            eps: self.options.eps,
            mean_factor: (1.0 / width as f64) as f32,
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [self.team.blocks(rows), 1, 1], &args) }
    }
}
