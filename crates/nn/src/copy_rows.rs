//! Rows copied from one strided tensor to another, rounded to its type on the way, or added to what stands there.
//!
//! Packs a part of the heads into a message and unpacks it, turns f32 sums into 16 bits, and adds gradients that come from elsewhere.

use crate::rows::Cover;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DType, DeviceInfo, Element, Error, Result, launch,
    strided::{self, MAX_EXTENT, Placed, Stride, Strided},
};
use lookback_kernels::{Kernel, args::CopyRows, find};

const OP: &str = "copy_rows";
/// Greatest extent of the grid's z.
const MAX_BATCH: usize = 65_535;

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `B`, at most 65 535.
    pub batch: usize,
    /// `T`.
    pub tokens: usize,
    /// `H`; `T H` is below 2^31 - 1024.
    pub heads: usize,
    /// Elements of a row.
    pub width: usize,
    /// Steps of `x` in elements; `None`: without gaps.
    pub x_stride: Option<Stride>,
    /// Of `out`, likewise.
    pub out_stride: Option<Stride>,
}

impl Shape {
    /// Both without gaps.
    pub fn dense(batch: usize, tokens: usize, heads: usize, width: usize) -> Self {
        Self { batch, tokens, heads, width, x_stride: None, out_stride: None }
    }
}

/// Element types and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x`.
    pub dtype: DType,
    /// Of `out`: that of `x`, or one of the two is f32.
    pub out: DType,
    /// Whether `x` is added to what `out` holds.
    pub accumulate: bool,
}

/// A checked copy.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    wide: &'static Kernel,
    single: &'static Kernel,
    sm_count: u32,
}

impl Plan {
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Layout`] ← a negative stride, or rows of `out` that overlap;
    /// [`Error::NoKernel`] ← from one 16-bit type to the other; [`Error::Arch`] ← a device too old.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        strided::range(OP, "batch", shape.batch, 0, MAX_BATCH)?;
        strided::range(OP, "tokens heads", shape.tokens.saturating_mul(shape.heads), 0, MAX_EXTENT)?;
        strided::range(OP, "width", shape.width, 0, MAX_EXTENT)?;
        let kernel = |vec: usize| {
            let vec = vec.to_string();
            let variant = [("dtype", options.dtype.name()), ("out", options.out.name()), ("vec", vec.as_str())];
            find(OP, &variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{OP} {variant:?}") })
        };
        let (wide, single) = (kernel(options.wide())?, kernel(1)?);
        if !wide.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: wide.entry, need: wide.target.to_string(), got });
        }
        let plan = Self { shape: *shape, options: *options, wide, single, sm_count: device.sm_count };
        plan.x().readable(OP, "x")?;
        plan.out().writable(OP, "out")?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least.
    pub fn bytes_moved(&self) -> u64 {
        self.x().bytes() + (1 + u64::from(self.options.accumulate)) * self.out().bytes()
    }

    /// Floating-point operations: a sum for each element if accumulating.
    pub fn flops(&self) -> u64 {
        u64::from(self.options.accumulate) * self.out().elements()
    }

    fn tensor(&self, stride: Option<Stride>, dtype: DType) -> Strided {
        let Shape { batch, tokens, heads, width, .. } = self.shape;
        match stride {
            None => Strided::dense([batch, tokens, heads], width, dtype.size()),
            Some(s) => Strided::new([batch, tokens, heads], [s.batch, s.token, s.head], width, dtype.size()),
        }
    }

    fn x(&self) -> Strided {
        self.tensor(self.shape.x_stride, self.options.dtype)
    }

    fn out(&self) -> Strided {
        self.tensor(self.shape.out_stride, self.options.out)
    }

    /// `out = x`, or `out += x` if the plan accumulates.
    ///
    /// # Shapes
    /// Both `[B,T,H,width]` of the plan's types and strides. A view into a wider tensor begins at its first element.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` or `U` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← they overlap.
    /// Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in f32, rounded once.
    ///
    /// # Determinism
    /// Bitwise.
    ///
    /// # Cost
    /// One launch; every byte crosses the bus once, 16 bytes a thread where widths, strides and addresses allow it.
    pub fn run<T: Element, U: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        out: &mut impl DevicePtrMut<U>,
    ) -> Result<()> {
        strided::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        strided::dtype(OP, "out", self.options.out, U::DTYPE)?;
        strided::length(OP, "x", &self.x(), x.len())?;
        strided::length(OP, "out", &self.out(), out.len())?;
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
    /// * `x` is readable and `out` readable and writable over the plan's shape until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(&self, stream: &CudaStream, x: CUdeviceptr, out: CUdeviceptr) -> Result<()> {
        let Shape { batch, tokens, heads, width, .. } = self.shape;
        let (from, to) = (self.x(), self.out());
        let (x_at, out_at): (Placed<'_>, Placed<'_>) = (("x", x, &from), ("out", out, &to));
        strided::address(OP, x_at, false)?;
        strided::address(OP, out_at, false)?;
        strided::disjoint(OP, out_at, &[x_at])?;
        if to.elements() == 0 {
            return Ok(());
        }
        let wide = self.options.wide();
        let fits = |tensor: &Strided, address: CUdeviceptr| {
            tensor.steps_by(wide) && address.is_multiple_of(wide as u64 * tensor.size)
        };
        let is_wide = width.is_multiple_of(wide) && fits(&from, x) && fits(&to, out);
        let (kernel, vec) = if is_wide { (self.wide, wide as u32) } else { (self.single, 1) };
        let rows = tokens * heads;
        let cover = Cover::new(rows, width, vec, self.sm_count.div_ceil(batch as u32));
        let args = CopyRows {
            p_x: x,
            p_out: out,
            x_stride_batch: from.strides[0],
            x_stride_token: from.strides[1],
            x_stride_head: from.strides[2],
            out_stride_batch: to.strides[0],
            out_stride_token: to.strides[1],
            out_stride_head: to.strides[2],
            rows: rows as u32,
            heads: heads as u32,
            width: width as u32,
            accumulate: u32::from(self.options.accumulate),
            lane_bits: cover.lane_bits,
            column_step: cover.column_step,
        };
        let grid = [cover.grid[0], cover.grid[1], batch as u32];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

impl Options {
    /// Elements of a wide access: 16 bytes of the wider type.
    fn wide(&self) -> usize {
        if self.dtype == DType::F32 || self.out == DType::F32 { 4 } else { 8 }
    }
}
