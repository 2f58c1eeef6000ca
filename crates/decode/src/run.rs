//! Once a layer: attention over the cache.

use crate::{
    Cache, CacheType, Inputs, KeyValues, Output, Outputs, Plan, RawInputs, RawLengths, RawMemory, RawOutputs, Result,
    Scales, Schedule, Workspace,
    plan::OP,
    schedule::{EVERYWHERE, STATUS, present},
    strided::{self, Placed, Strided},
};
use cudarc::driver::CudaStream;
use lookback_device::{Element, Error, launch, memory};
use lookback_kernels::args::LeanDecode;

/// Keys of a page where one page holds everything.
const ONE_PAGE: u32 = i32::MAX as u32;

impl Plan {
    /// `o = softmax(logits) v` over each request's visible keys, and `lse`, in one launch: every block does as many tiles of 64 keys
    /// as every other, or one more, and what several did of one output is put together by the last of them to end.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's types and strides. `schedule` is from
    /// [`schedule`](Self::schedule) of a plan of the same sizes and window, with the same lengths; tables may have changed since.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` or `O` is not the plan's type; [`Error::Shape`] ← a slice is too short, missing, or without meaning for this
    /// plan, or the schedule is of another one; [`Error::Layout`], [`Error::Align`] ← memory that is not in pieces of 16 bytes;
    /// [`Error::Alias`] ← an output overlaps something; [`Error::Workspace`] ← it is too small. Nothing is written on these. Pages
    /// and positions outside are left out, and [`status`](Self::status) says so.
    ///
    /// # Numerics
    /// Products on tensor cores in the plan's type, or f16 for a cache of 8 bits; sums, maxima and `lse` in f32; weights are rounded to
    /// 16 bits for the second product, `o` once if at all. A query that sees nothing has `o = 0`, and `lse = -inf` or its sink logit, exactly.
    ///
    /// # Determinism
    /// Bitwise, whatever the order of blocks. Another number of blocks cuts sums elsewhere and rounds otherwise.
    ///
    /// # Cost
    /// [`bytes_moved`](Self::bytes_moved): every visible key and value is read once for all heads of its group and up to
    /// [`Policy::rows`](crate::Policy::rows) query rows.
    pub fn run<T: Element, O: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, O>,
        schedule: &Schedule,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let layout = &self.layout;
        strided::dtype(OP, "inputs", self.options.dtype, T::DTYPE)?;
        strided::dtype(OP, "o", self.options.output.dtype(self.options.dtype), O::DTYPE)?;
        self.check_lengths(&inputs.lengths)?;
        if schedule.key != Some(self.key()) {
            let want = "one of this plan, or of one with the same sizes, window and lists".into();
            return Err(Error::Shape { op: OP, arg: "schedule", want, got: vec![schedule.bytes()] });
        }
        let (k_len, v_len, scales) = match inputs.cache {
            KeyValues::Same { k, v } => (k.len(), v.len(), None),
            KeyValues::E4m3 { k, v, k_scale, v_scale } => (k.len(), v.len(), Some((k_scale.len(), v_scale.len()))),
        };
        strided::given(OP, "k_scale", self.options.cache != CacheType::Same, scales.is_some())?;
        for (arg, tensor, len) in [
            ("q", &layout.q, Some(inputs.q.len())),
            ("k", &layout.k, Some(k_len)),
            ("v", &layout.v, Some(v_len)),
            ("k_scale", &layout.k_scale, scales.map(|(k, _)| k)),
            ("v_scale", &layout.v_scale, scales.map(|(_, v)| v)),
            ("alibi_slopes", &layout.heads, inputs.alibi_slopes.map(|s| s.len())),
            ("sink", &layout.heads, inputs.sink.map(|s| s.len())),
            ("o", &layout.o, Some(outputs.o.len())),
            ("lse", &layout.lse, outputs.lse.as_ref().map(|s| s.len())),
            ("logits", &layout.logits, outputs.logits.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (alibi_slopes, _alibi_slopes) = memory::input(inputs.alibi_slopes, stream);
        let (sink, _sink) = memory::input(inputs.sink, stream);
        let (kv_indices, _kv_indices) = memory::input(inputs.lengths.kv_indices, stream);
        let (list, _list) = memory::input(inputs.lengths.list, stream);
        let ((k, _k), (v, _v), (k_scale, _k_scale), (v_scale, _v_scale)) = match inputs.cache {
            KeyValues::Same { k, v } => {
                (memory::input(Some(k), stream), memory::input(Some(v), stream), (0, None), (0, None))
            }
            KeyValues::E4m3 { k, v, k_scale, v_scale } => (
                memory::input(Some(k), stream),
                memory::input(Some(v), stream),
                memory::input(Some(k_scale), stream),
                memory::input(Some(v_scale), stream),
            ),
        };
        let lengths = RawLengths { kv_indices, list, ..RawLengths::default() };
        let raw = RawInputs { q, k, v, k_scale, v_scale, lengths, alibi_slopes, sink };
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (lse, _lse) = memory::output(outputs.lse, stream);
        let (logits, _logits) = memory::output(outputs.logits, stream);
        let (schedule, _schedule) = schedule.look(stream);
        let (workspace, _workspace) = workspace.hold(stream);
        // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held until the
        // launch is queued; the schedule has this plan's key, and nothing else could write it or the workspace.
        unsafe { self.run_raw(stream, &raw, &RawOutputs { o, lse, logits }, schedule, workspace) }
    }

    /// As [`run`](Self::run) on device addresses. Of the lengths it reads `kv_indices` and `list` alone.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], [`Error::Workspace`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or readable and writable (outputs, workspace, the schedule's status) over the
    ///   plan's shape until the launch has ended.
    /// * The schedule is of this plan, or of one that agrees with it in everything that schedules depend on: sizes, cache, window, lists
    ///   and cut. The workspace was zeroed once, since when only launches of this crate wrote it, with the same address and size.
    /// * Nothing else writes that memory meanwhile, and nothing reads what is written; schedules may be shared by launches.
    pub unsafe fn run_raw(
        &self,
        stream: &CudaStream,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        schedule: RawMemory,
        workspace: RawMemory,
    ) -> Result<()> {
        schedule.check(OP, "schedule", self.schedule_bytes())?;
        workspace.check(OP, "workspace", self.workspace_bytes())?;
        let layout = &self.layout;
        let lengths = &inputs.lengths;
        for (arg, tensor, address) in [
            ("kv_indices", &layout.kv_indices, lengths.kv_indices),
            ("list", &layout.list, lengths.list),
            ("k_scale", &layout.k_scale, inputs.k_scale),
            ("v_scale", &layout.v_scale, inputs.v_scale),
        ] {
            present(arg, tensor, address != 0)?;
        }
        if self.options.logits.is_none() {
            strided::given(OP, "logits", false, outputs.logits != 0)?;
        }
        let schedule_memory = Strided::dense([1, 1, 1], self.schedule_bytes() as usize, 1);
        let workspace_memory = Strided::dense([1, 1, 1], usize::try_from(workspace.bytes).unwrap_or(usize::MAX), 1);
        let read: [Placed<'_>; 10] = [
            ("q", inputs.q, &layout.q),
            ("k", inputs.k, &layout.k),
            ("v", inputs.v, &layout.v),
            ("k_scale", inputs.k_scale, &layout.k_scale),
            ("v_scale", inputs.v_scale, &layout.v_scale),
            ("kv_indices", lengths.kv_indices, &layout.kv_indices),
            ("list", lengths.list, &layout.list),
            ("alibi_slopes", inputs.alibi_slopes, &layout.heads),
            ("sink", inputs.sink, &layout.heads),
            ("schedule", schedule.address, &schedule_memory),
        ];
        let written: [Placed<'_>; 4] = [
            ("o", outputs.o, &layout.o),
            ("lse", outputs.lse, &layout.lse),
            ("logits", outputs.logits, &layout.logits),
            ("workspace", workspace.address, &workspace_memory),
        ];
        for (i, placed) in read.into_iter().enumerate() {
            strided::address(OP, placed, i > 2)?;
        }
        for (i, placed) in written.into_iter().enumerate() {
            strided::address(OP, placed, i > 0)?;
        }
        for (arg, addr, need) in [("q", inputs.q, 8), ("k", inputs.k, 16), ("v", inputs.v, 16), ("o", outputs.o, 16)] {
            if !addr.is_multiple_of(need) {
                return Err(Error::Align { op: OP, arg, need, addr });
            }
        }
        strided::all_disjoint(OP, &written, &read)?;
        if self.is_empty() {
            return Ok(());
        }
        let args = self.args(inputs, outputs, schedule, workspace);
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernel, [self.policy.slots, 1, 1], &args) }
    }

    fn args(&self, inputs: &RawInputs, outputs: &RawOutputs, schedule: RawMemory, workspace: RawMemory) -> LeanDecode {
        let (layout, shape, options) = (&self.layout, &self.shape, &self.options);
        let parts = workspace.parts();
        let [pages, places] = shape.cache.extents(shape.batch);
        let (page_size, table) = match shape.cache {
            Cache::Dense { capacity } => (capacity.max(1) as u32, 0),
            Cache::Ragged { .. } => (ONE_PAGE, 0),
            Cache::Paged { page_size, table, .. } => (page_size as u32, table),
        };
        let (page_magic, page_shift) = magic(page_size);
        // One row of the batch has no step.
        let rows = |tensor: &Strided| match shape.packed {
            Some(_) => [0, tensor.strides[1], tensor.strides[2]],
            None => tensor.strides,
        };
        let (q, o, lse, logits) = (rows(&layout.q), rows(&layout.o), rows(&layout.lse), rows(&layout.logits));
        let scale = |tensor: &Strided| match options.cache {
            CacheType::E4m3(Scales::Token) => tensor.strides,
            CacheType::E4m3(Scales::Head) => [0, 0, 1],
            CacheType::E4m3(Scales::Tensor) | CacheType::Same => [0; 3],
        };
        let (k_scale, v_scale) = (scale(&layout.k_scale), scale(&layout.v_scale));
        LeanDecode {
            p_q: inputs.q,
            p_k: inputs.k,
            p_v: inputs.v,
            p_o: outputs.o,
            p_lse: outputs.lse,
            p_logits: outputs.logits,
            p_schedule: schedule.address,
            p_partials: parts.partials,
            p_counters: parts.counters,
            p_status: schedule.address + STATUS,
            p_kv_indices: inputs.lengths.kv_indices,
            p_list: inputs.lengths.list,
            p_k_scale: inputs.k_scale,
            p_v_scale: inputs.v_scale,
            p_alibi_slopes: inputs.alibi_slopes,
            p_sink: inputs.sink,
            q_stride_batch: q[0],
            q_stride_token: q[1],
            q_stride_head: q[2],
            o_stride_batch: o[0],
            o_stride_token: o[1],
            o_stride_head: o[2],
            lse_stride_batch: lse[0],
            lse_stride_token: lse[1],
            lse_stride_head: lse[2],
            logits_stride_batch: logits[0],
            logits_stride_token: logits[1],
            logits_stride_head: logits[2],
            k_stride_page: layout.k.strides[0],
            k_stride_place: layout.k.strides[1],
            k_stride_head: layout.k.strides[2],
            v_stride_page: layout.v.strides[0],
            v_stride_place: layout.v.strides[1],
            v_stride_head: layout.v.strides[2],
            k_scale_stride_page: k_scale[0],
            k_scale_stride_place: k_scale[1],
            k_scale_stride_head: k_scale[2],
            v_scale_stride_page: v_scale[0],
            v_scale_stride_place: v_scale[1],
            v_scale_stride_head: v_scale[2],
            list_stride_batch: layout.list.strides[1],
            list_stride_head: layout.list.strides[2],
            requests: shape.batch as u32,
            m_tiles: self.row_tiles as u32,
            key_heads: shape.key_heads as u32,
            group: shape.group() as u32,
            head_dim: shape.head_dim as u32,
            value_dim: shape.value_dim as u32,
            dense: u32::from(matches!(shape.cache, Cache::Dense { .. })),
            num_pages: pages as u32,
            num_indices: table as u32,
            places: places as u32,
            page_size,
            page_magic,
            page_shift,
            out_f32: u32::from(options.output == Output::F32),
            left: options.left.unwrap_or(EVERYWHERE).min(EVERYWHERE) as i32,
            first: options.sink_tokens.min(EVERYWHERE),
            scale: options.scale,
            softcap: options.softcap.unwrap_or(0.0),
        }
    }
}

/// `j / size` for `j < 2^31` is `j * magic >> shift`.
fn magic(size: u32) -> (u32, u32) {
    let shift = 31 + size.next_power_of_two().trailing_zeros();
    ((1_u64 << shift).div_ceil(u64::from(size)) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_a_page_is_exact() {
        for size in [1, 2, 3, 5, 7, 16, 17, 64, 1000, 65_535, (1 << 28) - 64, ONE_PAGE] {
            let (magic, shift) = magic(size);
            let divided = |j: u32| ((u64::from(j) * u64::from(magic)) >> shift) as u32;
            let around = (0..40).flat_map(|n: u32| [n.saturating_mul(size), (n + 1).saturating_mul(size) - 1]);
            for j in around.chain([ONE_PAGE, ONE_PAGE - 1, ONE_PAGE / size * size]).filter(|j| *j <= ONE_PAGE) {
                assert_eq!(divided(j), j / size, "{j} / {size}");
            }
        }
    }
}
