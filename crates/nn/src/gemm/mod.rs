//! Matrix product: `C = act(A op(B) + bias)` on tensor cores, for any sizes and row strides.

mod policy;

use crate::{
    Activation, Param,
    check::{self, Placed, Rows},
    memory,
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use lookback_kernels::{Kernel, find};
pub use policy::{Policy, Tile};
use std::sync::Arc;

const OP: &str = "gemm";

/// How `B` lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Right {
    /// `B` is `[n, k]`, as the weight of a linear layer: `C = A B^T`.
    #[default]
    Transposed,
    /// `B` is `[k, n]`: `C = A B`.
    Plain,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Right::Transposed => "nk",
            Right::Plain => "kn",
        }
    }
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `C`.
    pub n: usize,
    /// Columns of `A`. With 0, `C` is `act(bias)`.
    pub k: usize,
    /// How `B` lies.
    pub right: Right,
    /// Elements from a row of `A` to the next.
    pub lda: i64,
    /// Elements from a row of `B` as it lies to the next.
    pub ldb: i64,
    /// Elements from a row of `C` to the next.
    pub ldc: i64,
}

impl Shape {
    /// A linear layer without gaps: `A` is `[m, k]`, `B` is `[n, k]`.
    pub fn linear(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, right: Right::Transposed, lda: k as i64, ldb: k as i64, ldc: n as i64 }
    }

    /// A plain product without gaps: `A` is `[m, k]`, `B` is `[k, n]`.
    pub fn plain(m: usize, n: usize, k: usize) -> Self {
        Self { right: Right::Plain, ldb: n as i64, ..Self::linear(m, n, k) }
    }
}

/// Element types and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `A` and `B`.
    pub dtype: DType,
    /// Of `C`: the type of `A`, or `f32`.
    pub out: DType,
    /// Applied to the sum.
    pub activation: Activation,
    /// Tiles, or `None` for [`Policy::of`].
    pub policy: Option<Policy>,
}

impl Options {
    /// Output of the same type, no activation, the policy's tiles.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, out: dtype, activation: Activation::None, policy: None }
    }
}

/// The kernel for these tiles.
fn kernel(shape: &Shape, options: &Options, tile: Tile, access: &str) -> Result<&'static Kernel> {
    let dtype = ("dtype", options.dtype.name());
    let out = ("out", if options.out == options.dtype { "same" } else { "f32" });
    let (name, request) = if tile == Tile::Skinny {
        ("gemm_skinny", vec![dtype, out, ("rows", if shape.m <= 8 { "8" } else { "16" })])
    } else {
        ("gemm", vec![dtype, out, ("right", shape.right.name()), ("tile", tile.name()), ("access", access)])
    };
    find(name, &request).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{name} {request:?}") })
}

/// A checked product.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    policy: Policy,
    /// 16-byte copies.
    wide: &'static Kernel,
    /// One element at a time, for strides or addresses that 16 bytes do not fit.
    single: &'static Kernel,
    accumulate: bool,
}

impl Plan {
    /// Checks sizes and strides, picks the tiles and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Layout`] ← a negative stride, or rows of `C` that overlap;
    /// [`Error::Dtype`] ← `out` is neither `dtype` nor `f32`; [`Error::NoKernel`] ← skinny tiles were asked for what they cannot do.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let dtype = options.dtype;
        check::range(OP, "n", shape.n, 0, check::MAX_EXTENT)?;
        check::range(OP, "k", shape.k, 0, check::MAX_EXTENT)?;
        if options.out != dtype && options.out != DType::F32 {
            return Err(Error::Dtype { op: OP, arg: "out", want: dtype, got: options.out });
        }
        let policy = options.policy.unwrap_or_else(|| Policy::of(dtype, shape, device));
        let (max_m, max_n) = policy.max_extents(dtype);
        check::range(OP, "m", shape.m, 0, max_m)?;
        check::range(OP, "n", shape.n, 0, max_n)?;
        if policy.tile == Tile::Skinny && !Policy::allows_skinny(dtype, shape) {
            let request =
                "skinny tiles beyond 16 rows, with a plain B, or with rows that are no multiple of 16 bytes".into();
            return Err(Error::NoKernel { op: OP, request });
        }
        let (wide, single) =
            (kernel(shape, options, policy.tile, "wide")?, kernel(shape, options, Tile::Small, "single")?);
        let plan = Self { shape: *shape, options: *options, policy, wide, single, accumulate: false };
        check::readable(OP, "a", &plan.a())?;
        check::readable(OP, "b", &plan.b())?;
        check::writable(OP, "c", &plan.c())?;
        Ok(plan)
    }

    /// The same product added to what `C` holds: `C += act(A op(B) + bias)`, as a residual stream wants it. Rounded once.
    pub fn accumulating(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// The tiles in use.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, without the bias.
    pub fn bytes_moved(&self) -> u64 {
        let c = self.c().bytes();
        self.a().bytes() + self.b().bytes() + if self.accumulate { 2 * c } else { c }
    }

    /// Floating-point operations: a product and a sum for each of `m n k`. The kernels for `f32` do three times as many.
    pub fn flops(&self) -> u64 {
        2 * self.shape.m as u64 * self.shape.n as u64 * self.shape.k as u64
    }

    fn a(&self) -> Rows {
        Rows::new(self.shape.m, self.shape.k, self.shape.lda, self.options.dtype.size())
    }

    fn b(&self) -> Rows {
        let Shape { n, k, ldb, right, .. } = self.shape;
        let (rows, width) = if right == Right::Transposed { (n, k) } else { (k, n) };
        Rows::new(rows, width, ldb, self.options.dtype.size())
    }

    fn c(&self) -> Rows {
        Rows::new(self.shape.m, self.shape.n, self.shape.ldc, self.options.out.size())
    }

    /// `C = act(A op(B) + bias)`, plus `C` if [`accumulating`](Self::accumulating).
    ///
    /// # Shapes
    /// `a`: `[m, k]` of the plan's type. `b`: `[n, k]` or `[k, n]` as the plan says, same type. `bias`: `[n]`. `c`: `[m, n]` of the
    /// plan's output type. Rows are as far apart as the plan says.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` or `O` is not the plan's type; [`Error::Shape`] ← a slice is too short; [`Error::Alias`] ← `c`
    /// overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`, rounded once. `f32` inputs are split into two TF32 parts and multiplied thrice, which is as exact as plain
    /// `f32`; elements that come out infinite or NaN are summed again in plain `f32`, so that infinities come out as they should.
    ///
    /// # Determinism
    /// Bitwise on one kind of device; the order of a sum depends on `k` and on whether the tiles are skinny.
    ///
    /// # Cost
    /// One launch.
    pub fn run<T: Element, O: Element>(
        &self,
        stream: &CudaStream,
        a: &impl DevicePtr<T>,
        b: &impl DevicePtr<T>,
        bias: Param<'_, T>,
        c: &mut impl DevicePtrMut<O>,
    ) -> Result<()> {
        check::dtype(OP, "a", self.options.dtype, T::DTYPE)?;
        check::dtype(OP, "c", self.options.out, O::DTYPE)?;
        check::length(OP, "a", self.a().span(), a.len())?;
        check::length(OP, "b", self.b().span(), b.len())?;
        let bias_dtype = bias.dtype();
        if bias_dtype.is_some() {
            check::length(OP, "bias", self.shape.n as u64, bias.len())?;
        }
        check::length(OP, "c", self.c().span(), c.len())?;
        let (a, _a) = a.device_ptr(stream);
        let (b, _b) = b.device_ptr(stream);
        let (bias, _bias) = memory::param(bias, stream);
        let (c, _c) = c.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, a, b, bias, bias_dtype, c) }
    }

    /// As [`run`](Self::run) on device addresses; `bias` is read if it has a type.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← the bias' type is neither the plan's nor `f32`; [`Error::Align`], [`Error::Alias`], and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `c` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `c`.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        a: CUdeviceptr,
        b: CUdeviceptr,
        bias: CUdeviceptr,
        bias_dtype: Option<DType>,
        c: CUdeviceptr,
    ) -> Result<()> {
        let Shape { m, n, k, lda, ldb, ldc, .. } = self.shape;
        let bias_dtype = check::param_dtype(OP, "bias", self.options.dtype, bias_dtype)?;
        let (a_rows, b_rows, c_rows) = (self.a(), self.b(), self.c());
        let bias_rows = check::param_rows(n, bias_dtype);
        let inputs: [Placed<'_>; 3] = [("a", a, &a_rows), ("b", b, &b_rows), ("bias", bias, &bias_rows)];
        let out: Placed<'_> = ("c", c, &c_rows);
        check::addresses(OP, &inputs)?;
        check::addresses(OP, &[out])?;
        check::disjoint(OP, out, &inputs)?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let (kernel, tile) =
            if a_rows.wide(a) && b_rows.wide(b) { (self.wide, self.policy.tile) } else { (self.single, Tile::Small) };
        let grid = self.policy.grid(self.options.dtype, tile, m, n);
        let activation = self.options.activation.code();
        let bias_kind = match bias_dtype {
            None => 0,
            Some(DType::F32) => 1,
            Some(_) => 2,
        };
        if tile == Tile::Skinny {
            let args = lookback_kernels::args::GemmSkinny {
                p_a: a,
                p_b: b,
                p_bias: bias,
                p_c: c,
                m: m as u32,
                n: n as u32,
                k: k as u32,
                lda,
                ldb,
                ldc,
                activation,
                bias_kind,
                accumulate: u32::from(self.accumulate),
                ..Zeroable::zeroed()
            };
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            return unsafe { launch(stream, kernel, grid, &args) };
        }
        let args = lookback_kernels::args::Gemm {
            p_a: a,
            p_b: b,
            p_bias: bias,
            p_c: c,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            lda,
            ldb,
            ldc,
            activation,
            bias_kind,
            wide_stores: u32::from(c_rows.wide(c)),
            accumulate: u32::from(self.accumulate),
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

/// `act(x weight^T + bias)` of dense matrices, in new memory: `x` is `[m, k]`, `weight` `[n, k]`.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`].
pub fn linear<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    weight: &impl DevicePtr<T>,
    bias: Param<'_, T>,
    (m, n, k): (usize, usize, usize),
    activation: Activation,
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let options = Options { activation, ..Options::new(T::DTYPE) };
    let plan = Plan::new(&Shape::linear(m, n, k), &options, &device)?;
    let mut c = memory::allocate::<T>(stream, m.saturating_mul(n) as u64, OP)?;
    plan.run(stream, x, weight, bias, &mut c)?;
    Ok(c)
}
