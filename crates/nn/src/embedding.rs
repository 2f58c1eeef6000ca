//! Embedding: `out[t] = sum over j of table[ids[t, j]]`.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Cover, Variants},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Result, launch};
use std::sync::Arc;

const OP: &str = "embedding";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of `out`.
    pub tokens: usize,
    /// Rows of the table that are added up for a token; 1 for a plain look-up.
    pub ids_per_token: usize,
    /// Rows of the table.
    pub vocabulary: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements from a row of the table to the next.
    pub table_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// Rows without gaps.
    pub fn dense(tokens: usize, ids_per_token: usize, vocabulary: usize, width: usize) -> Self {
        let stride = width as i64;
        Self { tokens, ids_per_token, vocabulary, width, table_stride: stride, out_stride: stride }
    }
}

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `table` and `out`.
    pub dtype: DType,
}

/// A checked embedding.
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
    /// [`Error::Range`](crate::Error::Range) ← an extent too large; [`Error::Layout`](crate::Error::Layout) ← a negative table
    /// stride, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "tokens", shape.tokens, 0, check::MAX_EXTENT)?;
        check::range(OP, "ids_per_token", shape.ids_per_token, 0, check::MAX_EXTENT)?;
        check::range(OP, "vocabulary", shape.vocabulary, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        let kernels = Variants::find(OP, "embedding", options.dtype, &[])?;
        let plan = Self { shape: *shape, options: *options, kernels, sm_count: device.sm_count };
        check::readable(OP, "table", &plan.table())?;
        check::writable(OP, "out", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least, when every id names another row.
    pub fn bytes_moved(&self) -> u64 {
        self.out().bytes() * (1 + self.shape.ids_per_token as u64) + self.ids().bytes()
    }

    /// Floating-point operations: one addition for each id and element.
    pub fn flops(&self) -> u64 {
        self.out().elements() * self.shape.ids_per_token as u64
    }

    fn table(&self) -> Rows {
        Rows::new(self.shape.vocabulary, self.shape.width, self.shape.table_stride, self.options.dtype.size())
    }

    fn ids(&self) -> Rows {
        Rows::new(self.shape.tokens, self.shape.ids_per_token, self.shape.ids_per_token as i64, 4)
    }

    fn out(&self) -> Rows {
        Rows::new(self.shape.tokens, self.shape.width, self.shape.out_stride, self.options.dtype.size())
    }

    /// `out[t] = sum over j of table[ids[t, j]]`.
    ///
    /// # Shapes
    /// `table`: `[vocabulary, width]`. `ids`: `[tokens, ids_per_token]` dense; -1 means none and adds nothing. `out`:
    /// `[tokens, width]`. `fault`: one word; it becomes 1 if an id is neither -1 nor a row of the table (such an id also adds
    /// nothing), and is left alone otherwise, so that one word can watch many launches.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too
    /// short; [`Error::Alias`](crate::Error::Alias) ← an output overlaps another tensor. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32` in the order of `j`, rounded once; one id copies its row exactly.
    ///
    /// # Determinism
    /// Bitwise.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        table: &impl DevicePtr<T>,
        ids: &impl DevicePtr<i32>,
        out: &mut impl DevicePtrMut<T>,
        fault: Option<&mut dyn DevicePtrMut<u32>>,
    ) -> Result<()> {
        check::dtype(OP, "table", self.options.dtype, T::DTYPE)?;
        check::length(OP, "table", self.table().span(), table.len())?;
        check::length(OP, "ids", self.ids().span(), ids.len())?;
        check::length(OP, "out", self.out().span(), out.len())?;
        if let Some(fault) = &fault {
            check::length(OP, "fault", 1, fault.len())?;
        }
        let (table, _table) = table.device_ptr(stream);
        let (ids, _ids) = ids.device_ptr(stream);
        let (out, _out) = out.device_ptr_mut(stream);
        let (fault, _fault) = memory::output(fault, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, table, ids, out, fault) }
    }

    /// As [`run`](Self::run) on device addresses; `fault` may be 0 for absent.
    ///
    /// # Errors
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), and those of
    /// [`launch`].
    ///
    /// # Safety
    /// * Every address is readable, and `out` and `fault` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        table: CUdeviceptr,
        ids: CUdeviceptr,
        out: CUdeviceptr,
        fault: CUdeviceptr,
    ) -> Result<()> {
        let Shape { tokens, ids_per_token, vocabulary, width, table_stride, out_stride } = self.shape;
        let (table_rows, ids_rows, out_rows) = (self.table(), self.ids(), self.out());
        let fault_rows = Rows::new(1, usize::from(fault != 0), 0, 4);
        let out_at: Placed<'_> = ("out", out, &out_rows);
        let fault_at: Placed<'_> = ("fault", fault, &fault_rows);
        let inputs = [("table", table, &table_rows), ("ids", ids, &ids_rows)];
        check::addresses(OP, &[inputs[0], inputs[1], out_at, fault_at])?;
        check::disjoint(OP, out_at, &[inputs[0], inputs[1], fault_at])?;
        check::disjoint(OP, fault_at, &inputs)?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let (kernel, vec) = self.kernels.pick(&[(table, &table_rows), (out, &out_rows)]);
        let cover = Cover::new(tokens, width, vec, self.sm_count);
        let args = lookback_kernels::args::Embedding {
            p_table: table,
            p_ids: ids,
            p_out: out,
            p_fault: fault,
            tokens: tokens as u32,
            ids_per_token: ids_per_token as u32,
            vocabulary: vocabulary as u32,
            width: width as u32,
            table_stride,
            out_stride,
            lane_bits: cover.lane_bits,
            column_step: cover.column_step,
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, cover.grid, &args) }
    }
}

/// A plain look-up, one id a token, in new memory. An id outside the table gives zeros.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn embedding<T: Element>(
    stream: &Arc<CudaStream>,
    table: &impl DevicePtr<T>,
    ids: &impl DevicePtr<i32>,
    (vocabulary, width): (usize, usize),
) -> Result<CudaSlice<T>> {
    let device = DeviceInfo::of(stream.context())?;
    let shape = Shape::dense(ids.len(), 1, vocabulary, width);
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE }, &device)?;
    let mut out = memory::allocate(stream, ids.len().saturating_mul(width) as u64, OP)?;
    plan.run(stream, table, ids, &mut out, None)?;
    Ok(out)
}
