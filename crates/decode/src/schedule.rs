//! Once a step: who does which tiles, and what was wrong with the lengths.

use crate::{
    Cache, Error, Lengths, Plan, RawLengths, RawMemory, Result, Schedule,
    plan::OP,
    strided::{self, Placed, Strided},
};
use cudarc::driver::CudaStream;
use lookback_device::{driver, launch, memory};
use lookback_kernels::args::LeanPlan;
use std::sync::Arc;

/// Byte of the status word in a schedule.
pub(crate) const STATUS: u64 = 20;
/// How far a query sees when there is no window.
pub(crate) const EVERYWHERE: u32 = 1 << 30;

/// Bits of the status word, the arguments that they blame, and what their entries must lie in.
const MASKED: [(u32, &str, &str); 8] = [
    (1, "kv_len", "what their caches hold"),
    (2, "kv_indptr", "their table, in order"),
    (4, "cu_seqlens_q", "the packed queries, in order, `query_len` apart at most"),
    (8, "list_len", "the lists"),
    (16, "kv_indices", "the pages"),
    (32, "kv_indptr", "the page table"),
    (64, "list", "the keys of their requests"),
    (128, "kv_len", "what one launch counts, 2^31 tiles: it did nothing"),
];

impl Plan {
    /// Which tiles each block of [`run`](Self::run) does, for these lengths: one small launch a step, whatever the number of layers.
    ///
    /// # Shapes
    /// As the members of [`Lengths`] say.
    ///
    /// # Errors
    /// [`Error::Shape`] ← a slice is too short, missing, or without meaning for this plan; [`Error::Workspace`] ← the schedule is too
    /// small; [`Error::Alias`] ← it overlaps an input. Nothing is written on these. What lengths and tables hold is read by the
    /// device: entries that lead outside are clamped or left out, and [`status`](Self::status) says so.
    ///
    /// # Determinism
    /// Exact: whole numbers.
    ///
    /// # Cost
    /// One block; it reads 4 bytes a request and table, and writes 16 bytes an output tile and 8 a block.
    pub fn schedule(&self, stream: &CudaStream, lengths: &Lengths<'_>, schedule: &mut Schedule) -> Result<()> {
        self.check_lengths(lengths)?;
        let key = self.key();
        {
            let (kv_len, _kv_len) = memory::input(Some(lengths.kv_len), stream);
            let (cu_seqlens_q, _cu_seqlens_q) = memory::input(lengths.cu_seqlens_q, stream);
            let (kv_indptr, _kv_indptr) = memory::input(lengths.kv_indptr, stream);
            let (kv_indices, _kv_indices) = memory::input(lengths.kv_indices, stream);
            let (list, _list) = memory::input(lengths.list, stream);
            let (list_len, _list_len) = memory::input(lengths.list_len, stream);
            let raw = RawLengths { kv_len, cu_seqlens_q, kv_indptr, kv_indices, list, list_len };
            let (memory, _memory) = schedule.hold(stream);
            // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are held until
            // the launch is queued; the schedule is borrowed for it alone.
            unsafe { self.schedule_raw(stream, &raw, memory) }?;
        }
        schedule.key = Some(key);
        Ok(())
    }

    /// As [`schedule`](Self::schedule) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], [`Error::Workspace`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable over the plan's shape, and the schedule writable, until the launch has ended.
    /// * The schedule was zeroed once, since when only launches of this crate wrote it.
    /// * Nothing else touches the schedule meanwhile, and nothing writes the lengths.
    pub unsafe fn schedule_raw(&self, stream: &CudaStream, lengths: &RawLengths, schedule: RawMemory) -> Result<()> {
        schedule.check(OP, "schedule", self.schedule_bytes())?;
        self.check_addresses(lengths)?;
        let (layout, policy) = (&self.layout, &self.policy);
        let memory = Strided::dense([1, 1, 1], self.schedule_bytes() as usize, 1);
        let inputs: [Placed<'_>; 4] = [
            ("kv_len", lengths.kv_len, &layout.kv_len),
            ("cu_seqlens_q", lengths.cu_seqlens_q, &layout.cu_seqlens_q),
            ("kv_indptr", lengths.kv_indptr, &layout.kv_indptr),
            ("list_len", lengths.list_len, &layout.list_len),
        ];
        strided::all_disjoint(OP, &[("schedule", schedule.address, &memory)], &inputs)?;
        let (entries, entry_keys) = match self.shape.cache {
            Cache::Dense { .. } => (0, 1),
            Cache::Ragged { tokens } => (tokens, 1),
            Cache::Paged { page_size, table, .. } => (table, page_size),
        };
        let args = LeanPlan {
            p_kv_len: lengths.kv_len,
            p_cu_seqlens_q: lengths.cu_seqlens_q,
            p_kv_indptr: lengths.kv_indptr,
            p_list_len: lengths.list_len,
            p_schedule: schedule.address,
            requests: self.shape.batch as u32,
            query_len: self.shape.query_len as u32,
            tokens: self.shape.packed.unwrap_or(0) as u32,
            m_tiles: self.row_tiles as u32,
            key_heads: self.shape.key_heads as u32,
            group: self.shape.group() as u32,
            rows: policy.rows as u32,
            capacity: self.capacity() as u32,
            entries: entries as u32,
            entry_keys: entry_keys as u32,
            list_entries: self.options.list.unwrap_or(0) as u32,
            left: self.options.left.unwrap_or(EVERYWHERE).min(EVERYWHERE) as i32,
            first: self.options.sink_tokens.min(EVERYWHERE),
            slots: policy.slots,
            min_tiles: policy.min_tiles,
            ..bytemuck::Zeroable::zeroed()
        };
        // SAFETY: the caller's promise covers the pointers; sizes were checked against the contract.
        unsafe { launch(stream, self.planner, [1, 1, 1], &args) }
    }

    /// What [`schedule`](Self::schedule) and [`run`](Self::run) met in lengths and tables since the last call, after waiting for the
    /// stream. Not for a capture.
    ///
    /// # Errors
    /// [`Error::Masked`] ← entries led outside: keys and queries that they named were left out, everything else is as it should be. The
    /// first of them is named. [`Error::Driver`].
    pub fn status(&self, stream: &Arc<CudaStream>, schedule: &mut Schedule) -> Result<()> {
        let at = STATUS as usize;
        let mut word = schedule.slice_mut().slice_mut(at..at + 4);
        let bytes = stream.clone_dtoh(&word).map_err(|e| driver(e, "status of lean decoding"))?;
        let bits = bytes.iter().rev().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        if bits == 0 {
            return Ok(());
        }
        stream.memset_zeros(&mut word).map_err(|e| driver(e, "status of lean decoding"))?;
        let known = MASKED.into_iter().find(|(bit, ..)| bits & bit != 0);
        let (_, arg, within) = known.unwrap_or((0, "schedule", "what a launch of this plan writes"));
        Err(Error::Masked { op: OP, arg, within })
    }

    /// Whether each of the lengths is there that the plan wants, and long enough, and none besides.
    pub(crate) fn check_lengths(&self, lengths: &Lengths<'_>) -> Result<()> {
        let layout = &self.layout;
        strided::length(OP, "kv_len", &layout.kv_len, lengths.kv_len.len())?;
        for (arg, tensor, len) in [
            ("cu_seqlens_q", &layout.cu_seqlens_q, lengths.cu_seqlens_q.map(|s| s.len())),
            ("kv_indptr", &layout.kv_indptr, lengths.kv_indptr.map(|s| s.len())),
            ("kv_indices", &layout.kv_indices, lengths.kv_indices.map(|s| s.len())),
            ("list", &layout.list, lengths.list.map(|s| s.len())),
            ("list_len", &layout.list_len, lengths.list_len.map(|s| s.len())),
        ] {
            present(arg, tensor, len.is_some())?;
            strided::length(OP, arg, tensor, len.unwrap_or(0))?;
        }
        Ok(())
    }

    /// Addresses of lengths and tables: given exactly where the plan wants them.
    pub(crate) fn check_addresses(&self, lengths: &RawLengths) -> Result<()> {
        let layout = &self.layout;
        strided::address(OP, ("kv_len", lengths.kv_len, &layout.kv_len), false)?;
        for (arg, address, tensor) in [
            ("cu_seqlens_q", lengths.cu_seqlens_q, &layout.cu_seqlens_q),
            ("kv_indptr", lengths.kv_indptr, &layout.kv_indptr),
            ("kv_indices", lengths.kv_indices, &layout.kv_indices),
            ("list", lengths.list, &layout.list),
            ("list_len", lengths.list_len, &layout.list_len),
        ] {
            present(arg, tensor, address != 0)?;
            strided::address(OP, (arg, address, tensor), true)?;
        }
        Ok(())
    }
}

/// A tensor is given where the plan wants it, and only there; an empty one may be given or not.
///
/// # Errors
/// [`Error::Shape`].
pub(crate) fn present(arg: &'static str, tensor: &Strided, given: bool) -> Result<()> {
    if *tensor != Strided::NONE && tensor.elements() == 0 {
        return Ok(());
    }
    strided::given(OP, arg, *tensor != Strided::NONE, given)
}
