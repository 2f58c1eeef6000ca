//! Launching the forward pass.

use crate::{
    Error, Inputs, Output, Outputs, Plan, RawInputs, RawOutputs, Result, hold, memory,
    strided::{self, Placed},
};
use cudarc::driver::CudaStream;
use lookback_device::Element;

impl Plan {
    /// The softmax of every row, times the values, in one launch.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's types and strides. With no queries nothing happens; with no keys
    /// rows are empty.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` or `O` is not the plan's type; [`Error::Shape`] ← a slice is too short, or one is missing or has no meaning
    /// with the plan's options; [`Error::Align`] ← `q`, `k`, `v` or `o` does not begin at a multiple of 16 bytes; [`Error::Alias`] ← an
    /// output overlaps an input or the other output. Nothing is written on these.
    ///
    /// # Numerics
    /// Products of 16-bit elements with sums in f32; logits, their maximum and the sum of exponentials are f32, weights are rounded to 16
    /// bits before they meet values. A row that sees no key has `o = 0` and `lse = -inf`, exactly.
    ///
    /// # Determinism
    /// Bitwise, whatever the order of blocks.
    ///
    /// # Cost
    /// [`bytes_moved`](Self::bytes_moved) and [`flops`](Self::flops); keys and values are read once for every tile of queries and head of
    /// queries that sees them.
    pub fn run<T: Element, O: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, O>,
    ) -> Result<()> {
        let (op, layout) = (Self::OP, &self.layout);
        strided::dtype(op, "inputs", self.options.dtype, T::DTYPE)?;
        strided::dtype(op, "o", self.options.output.dtype(self.options.dtype), O::DTYPE)?;
        inputs.check_lengths(op, layout)?;
        strided::length(op, "o", &layout.o, outputs.o.len())?;
        outputs.lse.as_ref().map_or(Ok(()), |lse| strided::length(op, "lse", &layout.lse, lse.len()))?;
        let (raw, _guards) = inputs.hold(stream);
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (lse, _lse) = memory::output(outputs.lse, stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan's strides reach, and their guards are held
        // until the launch is queued.
        unsafe { self.run_raw(stream, &raw, &RawOutputs { o, lse }) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], and those of [`lookback_device::launch()`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs; outputs as well with [`Output::Merge`]) or writable (outputs) over the plan's
    ///   shape and strides until the launch has ended, and `tile_keys` over `tile_count` entries.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, _stream: &CudaStream, inputs: &RawInputs, outputs: &RawOutputs) -> Result<()> {
        let (op, layout) = (Self::OP, &self.layout);
        inputs.check(op, &self.shape, &self.options, layout)?;
        if self.options.output == Output::Merge && layout.lse.elements() > 0 {
            strided::given(op, "lse", true, outputs.lse != 0)?;
        }
        let written: [Placed<'_>; 2] = [("o", outputs.o, &layout.o), ("lse", outputs.lse, &layout.lse)];
        hold::rows(op, written[0])?;
        strided::address(op, written[1], true)?;
        strided::all_disjoint(op, &written, &inputs.placed(layout, &inputs.tile_list()))?;
        if layout.o.elements() == 0 {
            return Ok(());
        }
        Err(Error::NoKernel { op, request: format!("{} in tiles of {} rows", self.kernel.entry, self.tile.rows) })
    }
}
