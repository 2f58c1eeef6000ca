//! Pooling: the tokens of each sequence to one row, their mean or the first, of length 1 where wanted.

use crate::{
    check::{self, Placed, Rows},
    memory,
    rows::{Variants, lane_bits},
};
use bytemuck::Zeroable;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, launch};
use std::sync::Arc;

const OP: &str = "pool";

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences: rows of `out`.
    pub sequences: usize,
    /// Tokens of a sequence, all of them as long; or of all sequences together if packed.
    pub tokens: usize,
    /// Whether sequences of any lengths lie one after another, as `cu_seqlens` says.
    pub packed: bool,
    /// Elements of a row.
    pub width: usize,
    /// Elements from a token's row of `x` to the next.
    pub x_stride: i64,
    /// Elements from a row of `out` to the next.
    pub out_stride: i64,
}

impl Shape {
    /// `x` is `[sequences, tokens, width]` without gaps.
    pub fn dense(sequences: usize, tokens: usize, width: usize) -> Self {
        Self { sequences, tokens, packed: false, width, x_stride: width as i64, out_stride: width as i64 }
    }

    /// `x` is `[tokens, width]` without gaps, with the tokens of all sequences.
    pub fn packed(sequences: usize, tokens: usize, width: usize) -> Self {
        Self { packed: true, ..Self::dense(sequences, tokens, width) }
    }
}

/// What a sequence is reduced to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Pooling {
    /// The mean of the tokens that count; zeros where none does.
    #[default]
    Mean,
    /// The first token, which BERT's tokenizers call `[CLS]`; zeros where it does not count.
    First,
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x`; `out` is `f32`.
    pub dtype: DType,
    /// What a sequence is reduced to.
    pub pooling: Pooling,
    /// Whether rows of `out` are divided by their Euclidean norm, or by 1e-12 where that is greater.
    pub normalize: bool,
}

/// What a launch reads besides `x`.
#[derive(Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// One for each row of `x`: not 0 where the token counts. Absent means that all do.
    pub mask: Option<&'a dyn DevicePtr<u8>>,
    /// `[sequences + 1]`, exactly if packed: where each sequence begins, and after the last where it ends. See
    /// [`lookback_device::cu_seqlens`].
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
}

/// A checked pooling.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    kernels: Variants,
}

impl Plan {
    /// Checks sizes and strides and finds the kernels.
    ///
    /// # Errors
    /// [`Error::Range`] ← an extent too large; [`Error::Layout`] ← a negative input stride, or rows of `out` that overlap.
    pub fn new(shape: &Shape, options: &Options, _device: &DeviceInfo) -> Result<Self> {
        check::range(OP, "sequences", shape.sequences, 0, check::MAX_EXTENT)?;
        check::range(OP, "tokens", shape.tokens, 0, check::MAX_EXTENT)?;
        check::range(OP, "width", shape.width, 0, check::MAX_EXTENT)?;
        let kernels = Variants::find(OP, "pool", options.dtype, &[])?;
        let plan = Self { shape: *shape, options: *options, kernels };
        check::readable(OP, "x", &plan.x())?;
        check::writable(OP, "out", &plan.out())?;
        Ok(plan)
    }

    /// Device memory that [`run`](Self::run) needs besides its tensors: none.
    pub fn workspace_bytes(&self) -> u64 {
        0
    }

    /// Bytes that must cross the memory bus at least when all tokens count, without mask and starts.
    pub fn bytes_moved(&self) -> u64 {
        let read = match self.options.pooling {
            Pooling::Mean => self.x().bytes(),
            Pooling::First => (self.out().elements() * self.x().size).min(self.x().bytes()),
        };
        read + self.out().bytes()
    }

    /// Floating-point operations: an addition for an element of `x`, and three for one of `out` if normalised.
    pub fn flops(&self) -> u64 {
        self.x().elements() + if self.options.normalize { 3 * self.out().elements() } else { 0 }
    }

    /// Rows of `x`.
    fn rows(&self) -> usize {
        let Shape { sequences, tokens, packed, .. } = self.shape;
        if packed { tokens } else { sequences.saturating_mul(tokens) }
    }

    fn x(&self) -> Rows {
        Rows::new(self.rows(), self.shape.width, self.shape.x_stride, self.options.dtype.size())
    }

    fn out(&self) -> Rows {
        Rows::new(self.shape.sequences, self.shape.width, self.shape.out_stride, 4)
    }

    /// `out[n]` = the mean, or the first, of the rows of sequence `n`, divided by its norm if the plan says so.
    ///
    /// # Shapes
    /// `x`: `[sequences, tokens, width]`, or `[tokens, width]` if packed, of the plan's type; [`Inputs`]; `out`: `[sequences, width]`
    /// in `f32`.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short, or `cu_seqlens` is there without
    /// packing or the other way about; [`Error::Alias`] ← `out` overlaps an input. Nothing is written on these.
    ///
    /// # Numerics
    /// Sums in `f32`; a token that does not count is not read.
    ///
    /// # Determinism
    /// Bitwise.
    ///
    /// # Cost
    /// One launch with a block for each sequence.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        x: &impl DevicePtr<T>,
        inputs: Inputs<'_>,
        out: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        check::dtype(OP, "x", self.options.dtype, T::DTYPE)?;
        check::length(OP, "x", self.x().span(), x.len())?;
        check::length(OP, "out", self.out().span(), out.len())?;
        if let Some(mask) = inputs.mask {
            check::length(OP, "mask", self.rows() as u64, mask.len())?;
        }
        check::given(OP, "cu_seqlens", self.shape.packed, inputs.cu_seqlens.is_some())?;
        if let Some(starts) = inputs.cu_seqlens {
            check::length(OP, "cu_seqlens", self.shape.sequences as u64 + 1, starts.len())?;
        }
        let (x, _x) = x.device_ptr(stream);
        let (mask, _mask) = memory::input(inputs.mask, stream);
        let (starts, _starts) = memory::input(inputs.cu_seqlens, stream);
        let (out, _out) = out.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, x, mask, starts, out) }
    }

    /// As [`run`](Self::run) on device addresses; `mask` may be 0 for absent, `cu_seqlens` is 0 exactly without packing.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`] ← `cu_seqlens` does not fit the plan; and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable, and `out` writable, over the plan's rows until the launch has ended.
    /// * Nothing else writes them meanwhile, and nothing reads `out`.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        mask: CUdeviceptr,
        cu_seqlens: CUdeviceptr,
        out: CUdeviceptr,
    ) -> Result<()> {
        let Shape { sequences, tokens, packed, width, x_stride, out_stride } = self.shape;
        check::given(OP, "cu_seqlens", packed, cu_seqlens != 0)?;
        let (x_rows, out_rows) = (self.x(), self.out());
        let words = |at: CUdeviceptr, len: usize, size: usize| Rows::new(1, if at == 0 { 0 } else { len }, 0, size);
        let (mask_rows, starts_rows) = (words(mask, self.rows(), 1), words(cu_seqlens, sequences + 1, 4));
        let out_at: Placed<'_> = ("out", out, &out_rows);
        let inputs: [Placed<'_>; 3] =
            [("x", x, &x_rows), ("mask", mask, &mask_rows), ("cu_seqlens", cu_seqlens, &starts_rows)];
        check::addresses(OP, &inputs)?;
        check::addresses(OP, &[out_at])?;
        check::disjoint(OP, out_at, &inputs)?;
        if out_rows.elements() == 0 {
            return Ok(());
        }
        let (kernel, vec) = self.kernels.pick(&[(x, &x_rows), (out, &out_rows)]);
        let args = lookback_kernels::args::Pool {
            p_x: x,
            p_mask: mask,
            p_cu_seqlens: cu_seqlens,
            p_out: out,
            sequences: sequences as u32,
            tokens: tokens as u32,
            width: width as u32,
            x_stride,
            out_stride,
            limit: match self.options.pooling {
                Pooling::Mean => check::MAX_EXTENT as u32,
                Pooling::First => 1,
            },
            normalize: u32::from(self.options.normalize),
            lane_bits: lanes(width, vec),
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, [sequences as u32, 1, 1], &args) }
    }
}

/// log2 of the threads that share a token's row: they reach its end in one access each, or are the whole block.
fn lanes(width: usize, vec: u32) -> u32 {
    lane_bits(width, vec, 1)
}

/// The pooled rows of packed sequences that lie without gaps, in new memory: `x` is `[tokens, width]`, `cu_seqlens` has an entry more
/// than there are sequences.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::run`], [`Error::Shape`] ← `cu_seqlens` is empty, and [`Error::OutOfMemory`].
pub fn pool<T: Element>(
    stream: &Arc<CudaStream>,
    x: &impl DevicePtr<T>,
    cu_seqlens: &impl DevicePtr<i32>,
    (tokens, width): (usize, usize),
    pooling: Pooling,
    normalize: bool,
) -> Result<CudaSlice<f32>> {
    let device = DeviceInfo::of(stream.context())?;
    let Some(sequences) = cu_seqlens.len().checked_sub(1) else {
        return Err(Error::Shape { op: OP, arg: "cu_seqlens", want: "at least one entry".into(), got: vec![0] });
    };
    let options = Options { dtype: T::DTYPE, pooling, normalize };
    let plan = Plan::new(&Shape::packed(sequences, tokens, width), &options, &device)?;
    let mut out = memory::allocate(stream, sequences.saturating_mul(width) as u64, OP)?;
    plan.run(stream, x, Inputs { mask: None, cu_seqlens: Some(cu_seqlens) }, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_reaches_the_end_of_a_row_or_is_the_block() {
        for width in [1, 7, 384, 1024, 2048, 2056, 100_000] {
            for vec in [1, 4, 8] {
                let threads = 1_usize << lanes(width, vec);
                assert!(threads * vec as usize >= width || threads == crate::rows::BLOCK);
            }
        }
    }
}
