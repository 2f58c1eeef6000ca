//! Launching the forward pass.

use crate::{
    Inputs, Output, Outputs, Plan, RawInputs, RawOutputs, Result, hold, memory,
    options::Reach,
    plan::Layout,
    strided::{self, Placed},
};
use cudarc::driver::CudaStream;
use lookback_device::{Element, launch};
use lookback_kernels::args::AttentionFwd;

impl Plan {
    /// The softmax of every row, times the values, in one launch.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's types and strides. With no queries nothing happens; with no keys
    /// rows are empty.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype) ← `T` or `O` is not the plan's type; [`Error::Shape`](crate::Error::Shape) ← a slice is too short, or one is missing or has no meaning
    /// with the plan's options; [`Error::Align`](crate::Error::Align) ← `q`, `k`, `v`, `o` or `intervals` does not begin at a multiple of 16 bytes; [`Error::Alias`](crate::Error::Alias) ← an
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
    /// [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias), [`Error::Shape`](crate::Error::Shape), and those of [`lookback_device::launch()`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs; outputs as well with [`Output::Merge`]) or writable (outputs) over the plan's
    ///   shape and strides until the launch has ended, and `tile_keys` over `tile_count` entries.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(&self, stream: &CudaStream, inputs: &RawInputs, outputs: &RawOutputs) -> Result<()> {
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
        let args = self.arguments(inputs, outputs);
        let blocks = self.shape.slots(self.tile.rows) * self.shape.heads;
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernel, [blocks as u32, 1, 1], &args) }
    }

    fn arguments(&self, inputs: &RawInputs, outputs: &RawOutputs) -> AttentionFwd {
        let Layout { q, k, v, o, .. } = &self.layout;
        let (shape, options) = (&self.shape, &self.options);
        let Reach { left, right, first } = options.mask.reach();
        AttentionFwd {
            p_q: inputs.q,
            p_k: inputs.k,
            p_v: inputs.v,
            p_o: outputs.o,
            p_lse: outputs.lse,
            p_cu_seqlens_q: inputs.cu_seqlens_q,
            p_cu_seqlens_k: inputs.cu_seqlens_k,
            p_prefix_len: inputs.prefix_len,
            p_intervals: inputs.intervals,
            p_key_bits: inputs.key_bits,
            p_tile_starts: inputs.tile_starts,
            p_tile_keys: inputs.tile_keys,
            p_alibi_slopes: inputs.alibi_slopes,
            p_sink: inputs.sink,
            q_stride_batch: q.strides[0],
            q_stride_token: q.strides[1],
            q_stride_head: q.strides[2],
            k_stride_batch: k.strides[0],
            k_stride_token: k.strides[1],
            k_stride_head: k.strides[2],
            v_stride_batch: v.strides[0],
            v_stride_token: v.strides[1],
            v_stride_head: v.strides[2],
            o_stride_batch: o.strides[0],
            o_stride_token: o.strides[1],
            o_stride_head: o.strides[2],
            query_len: shape.query_len as u32,
            key_len: shape.key_len as u32,
            sequences: shape.sequences() as u32,
            heads: shape.heads as u32,
            group: shape.group() as u32,
            head_dim: shape.head_dim as u32,
            value_dim: shape.value_dim as u32,
            key_words: shape.key_words() as u32,
            tile_entries: inputs.tile_count,
            offset: options.offset.unwrap_or(0),
            has_offset: u32::from(options.offset.is_some()),
            left,
            right,
            first,
            out_f32: u32::from(options.output != Output::Same),
            merge: u32::from(options.output == Output::Merge),
            scale: options.scale,
            softcap: options.softcap.unwrap_or(0.0),
        }
    }
}
