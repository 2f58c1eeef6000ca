//! The launches of a backward pass.

use super::{
    BackwardPlan, Gradient, RawBackward,
    plan::{BackwardLayout, OP},
};
use crate::{Error, Result, options::Reach, plan::Layout};
use bytemuck::Zeroable;
use cudarc::driver::{CudaStream, result, sys::CUdeviceptr};
use lookback_device::{driver, launch};
use lookback_kernels::args::{
    AttentionBwdFinish, AttentionBwdKeys, AttentionBwdPrepare, AttentionBwdQueries, AttentionBwdSink,
};

/// Rows of a block of the first kernel are `256 / lanes`, as many lanes as 16-byte pieces of a row.
fn lane_bits(value_dim: usize) -> u32 {
    (value_dim / 8).next_power_of_two().trailing_zeros()
}

impl BackwardPlan {
    /// `lse` and `delta` of every row.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn launch_prepare(
        &self,
        stream: &CudaStream,
        raw: &RawBackward,
        terms: CUdeviceptr,
    ) -> Result<()> {
        let (shape, BackwardLayout { forward, d_o, .. }) = (&self.shape, &self.layout);
        if self.layout.terms.elements() == 0 {
            return Ok(());
        }
        let [o_stride_batch, o_stride_token, o_stride_head] = forward.o.strides;
        let [do_stride_batch, do_stride_token, do_stride_head] = d_o.strides;
        let lane_bits = lane_bits(shape.value_dim);
        let args = AttentionBwdPrepare {
            p_o: raw.o,
            p_do: raw.d_o,
            p_lse: raw.lse,
            p_dlse: raw.d_lse,
            p_terms: terms,
            o_stride_batch,
            o_stride_token,
            o_stride_head,
            do_stride_batch,
            do_stride_token,
            do_stride_head,
            query_len: shape.query_len as u32,
            heads: shape.heads as u32,
            value_dim: shape.value_dim as u32,
            lane_bits,
        };
        let blocks = grid(shape.query_len.div_ceil(256 >> lane_bits).saturating_mul(shape.batch))?;
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernels.prepare, [blocks, shape.heads as u32, 1], &args) }
    }

    /// Gradients of keys and values; `dq` (0: none) is added to in f32, by its strides.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn launch_keys(
        &self,
        stream: &CudaStream,
        raw: &RawBackward,
        terms: CUdeviceptr,
        (dq, dq_strides): (CUdeviceptr, [i64; 3]),
    ) -> Result<()> {
        let (kernels, tile) = match dq {
            0 => (self.kernels.keys_alone, self.tiles[1]),
            _ => (self.kernels.keys, self.tiles[0]),
        };
        let args = self.keys_arguments(raw, terms, dq, dq_strides);
        let grid = [grid(self.key_slots(tile.tile))?, self.shape.key_heads as u32, 1];
        for kernel in kernels.into_iter().flatten() {
            // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
            unsafe { launch(stream, kernel, grid, &args) }?;
        }
        Ok(())
    }

    fn keys_arguments(
        &self,
        raw: &RawBackward,
        terms: CUdeviceptr,
        dq: CUdeviceptr,
        dq_strides: [i64; 3],
    ) -> AttentionBwdKeys {
        let (shape, options, inputs) = (&self.shape, &self.options.attention, &raw.inputs);
        let BackwardLayout { forward: Layout { q, k, v, .. }, d_o, dk, dv, .. } = &self.layout;
        let Reach { left, right, first } = options.mask.reach();
        AttentionBwdKeys {
            p_q: inputs.q,
            p_k: inputs.k,
            p_v: inputs.v,
            p_do: raw.d_o,
            p_terms: terms,
            p_dk: raw.dk,
            p_dv: raw.dv,
            p_dq: dq,
            p_cu_seqlens_q: inputs.cu_seqlens_q,
            p_cu_seqlens_k: inputs.cu_seqlens_k,
            p_prefix_len: inputs.prefix_len,
            p_intervals: inputs.intervals,
            p_key_bits: inputs.key_bits,
            p_tile_starts: inputs.tile_starts,
            p_tile_keys: inputs.tile_keys,
            p_alibi_slopes: inputs.alibi_slopes,
            q_stride_batch: q.strides[0],
            q_stride_token: q.strides[1],
            q_stride_head: q.strides[2],
            k_stride_batch: k.strides[0],
            k_stride_token: k.strides[1],
            k_stride_head: k.strides[2],
            v_stride_batch: v.strides[0],
            v_stride_token: v.strides[1],
            v_stride_head: v.strides[2],
            do_stride_batch: d_o.strides[0],
            do_stride_token: d_o.strides[1],
            do_stride_head: d_o.strides[2],
            dk_stride_batch: dk.strides[0],
            dk_stride_token: dk.strides[1],
            dk_stride_head: dk.strides[2],
            dv_stride_batch: dv.strides[0],
            dv_stride_token: dv.strides[1],
            dv_stride_head: dv.strides[2],
            dq_stride_batch: dq_strides[0],
            dq_stride_token: dq_strides[1],
            dq_stride_head: dq_strides[2],
            // A key head without query heads is seen by no row: its gradients are zeros.
            query_len: if shape.heads == 0 { 0 } else { shape.query_len as u32 },
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
            out: self.options.gradient.code(),
            scale: options.scale,
            softcap: options.softcap.unwrap_or(0.0),
            ..Zeroable::zeroed()
        }
    }

    /// `dq` by a block for each tile of queries.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn launch_queries(
        &self,
        stream: &CudaStream,
        raw: &RawBackward,
        terms: CUdeviceptr,
    ) -> Result<()> {
        let (shape, options, inputs) = (&self.shape, &self.options.attention, &raw.inputs);
        let BackwardLayout { forward: Layout { q, k, v, .. }, d_o, dq, .. } = &self.layout;
        let Reach { left, right, first } = options.mask.reach();
        let args = AttentionBwdQueries {
            p_q: inputs.q,
            p_k: inputs.k,
            p_v: inputs.v,
            p_do: raw.d_o,
            p_terms: terms,
            p_dq: raw.dq,
            p_cu_seqlens_q: inputs.cu_seqlens_q,
            p_cu_seqlens_k: inputs.cu_seqlens_k,
            p_prefix_len: inputs.prefix_len,
            p_intervals: inputs.intervals,
            p_key_bits: inputs.key_bits,
            p_tile_starts: inputs.tile_starts,
            p_tile_keys: inputs.tile_keys,
            p_alibi_slopes: inputs.alibi_slopes,
            q_stride_batch: q.strides[0],
            q_stride_token: q.strides[1],
            q_stride_head: q.strides[2],
            k_stride_batch: k.strides[0],
            k_stride_token: k.strides[1],
            k_stride_head: k.strides[2],
            v_stride_batch: v.strides[0],
            v_stride_token: v.strides[1],
            v_stride_head: v.strides[2],
            do_stride_batch: d_o.strides[0],
            do_stride_token: d_o.strides[1],
            do_stride_head: d_o.strides[2],
            dq_stride_batch: dq.strides[0],
            dq_stride_token: dq.strides[1],
            dq_stride_head: dq.strides[2],
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
            out: self.options.gradient.code(),
            scale: options.scale,
            softcap: options.softcap.unwrap_or(0.0),
            ..Zeroable::zeroed()
        };
        let blocks = grid(shape.slots(self.query_rows).saturating_mul(shape.heads))?;
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernels.queries, [blocks, 1, 1], &args) }
    }

    /// Zeros where blocks of keys will add.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn clear_sums(&self, stream: &CudaStream, sums: CUdeviceptr) -> Result<()> {
        let failed = |e| driver(e, "clearing the sums of dq");
        stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: the workspace is as long as the plan says, which was checked.
        unsafe { result::memset_d8_async(sums, 0, self.layout.sums.bytes() as usize, stream.cu_stream()) }
            .map_err(failed)
    }

    /// What blocks of keys have added, as the caller wants it.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn launch_finish(&self, stream: &CudaStream, sums: CUdeviceptr, dq: CUdeviceptr) -> Result<()> {
        let (shape, layout) = (&self.shape, &self.layout);
        let args = AttentionBwdFinish {
            p_sum: sums,
            p_dq: dq,
            dq_stride_batch: layout.dq.strides[0],
            dq_stride_token: layout.dq.strides[1],
            dq_stride_head: layout.dq.strides[2],
            batch: shape.batch as u32,
            query_len: shape.query_len as u32,
            heads: shape.heads as u32,
            head_dim: shape.head_dim as u32,
        };
        let blocks = u32::try_from(layout.dq.elements().div_ceil(2048)).unwrap_or(u32::MAX);
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, self.kernels.finish, [blocks, 1, 1], &args) }
    }

    /// The gradient of logits without a value.
    ///
    /// # Safety
    /// As of [`run_raw`](Self::run_raw).
    pub(super) unsafe fn launch_sink(&self, stream: &CudaStream, raw: &RawBackward, terms: CUdeviceptr) -> Result<()> {
        let args = AttentionBwdSink {
            p_terms: terms,
            p_sink: raw.inputs.sink,
            p_dsink: raw.d_sink,
            p_cu_seqlens_q: raw.inputs.cu_seqlens_q,
            batch: self.shape.batch as u32,
            query_len: self.shape.query_len as u32,
            heads: self.shape.heads as u32,
            sequences: self.shape.sequences() as u32,
            accumulate: u32::from(self.options.gradient == Gradient::Accumulate),
            ..Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes were checked against the contract.
        unsafe { launch(stream, self.kernels.sink, [self.shape.heads as u32, 1, 1], &args) }
    }
}

/// An extent of a grid.
fn grid(blocks: usize) -> Result<u32> {
    u32::try_from(blocks).map_err(|_| Error::Range {
        op: OP,
        arg: "blocks",
        at: None,
        lo: 0,
        hi: i64::from(u32::MAX),
        got: i64::try_from(blocks).unwrap_or(i64::MAX),
    })
}
