//! The launch of an append.

use super::{BLOCK, Inputs, OP, Outputs, Place, Plan, Policy, Raw, Shape, Style, shape::Tensors};
use crate::{Cache, CacheType, Scales, strided};
use cudarc::driver::{CudaStream, DevicePtrMut};
use lookback_device::{
    Element, Error, Result, launch, memory,
    strided::{Placed, Strided},
};
use lookback_kernels::args::KvAppend;

impl Plan {
    /// Stores every new token of every head where it belongs.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, with the plan's types and strides. `status` is one word, zero at first.
    ///
    /// # Errors
    /// [`Error::Dtype`] ← `T` is not the plan's type; [`Error::Shape`] ← a slice is too short, or absent where the plan needs it, or given where
    /// it has no meaning, or a cache of another kind than the plan's; [`Error::Alias`] ← something written overlaps another tensor. Nothing
    /// is written on these. Slots, lengths and tables are device data: a token that they send outside of the cache is left out, and
    /// `status` says so (see [`masked`](super::masked)).
    ///
    /// Two tokens with one slot are the caller's mistake, which is not looked for: the place gets either, or the keys of one and the
    /// values of the other, or parts of both.
    ///
    /// # Numerics
    /// What does not turn and is not rounded to 8 bits is copied. Angles are those of the `rotary` operation, products in `f32`, rounded
    /// once. Codes of e4m3 are the nearest to `x` times the reciprocal of its scale in `f32`, ties to even; what is beyond 448 becomes 448,
    /// NaN stays NaN. A computed scale is the greatest magnitude of the row, after it has been turned, over 448, and 1 for zeros.
    ///
    /// # Determinism
    /// Bitwise, as long as no two tokens have one slot.
    ///
    /// # Cost
    /// One launch; every row crosses the bus once each way, 16 bytes a thread where extents, addresses and strides allow it.
    pub fn run<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        status: Option<&mut dyn DevicePtrMut<u32>>,
    ) -> Result<()> {
        strided::dtype(OP, "k_new", self.options.dtype, T::DTYPE)?;
        self.check_lengths(inputs, &outputs)?;
        status.as_ref().map_or(Ok(()), |s| strided::length(OP, "status", &self.row(true, 1, 4), s.len()))?;
        let (k_new, _k_new) = memory::input(Some(inputs.k_new), stream);
        let (v_new, _v_new) = memory::input(Some(inputs.v_new), stream);
        let (slot_map, _slot_map) = memory::input(inputs.slot_map, stream);
        let (kv_len, _kv_len) = memory::input(inputs.kv_len, stream);
        let (cu_seqlens, _cu_seqlens) = memory::input(inputs.cu_seqlens, stream);
        let (kv_indptr, _kv_indptr) = memory::input(inputs.kv_indptr, stream);
        let (kv_indices, _kv_indices) = memory::input(inputs.kv_indices, stream);
        let (positions, _positions) = memory::input(inputs.positions, stream);
        let (status, _status) = memory::output(status, stream);
        let raw = Raw {
            k_new,
            v_new,
            slot_map,
            kv_len,
            cu_seqlens,
            kv_indptr,
            kv_indices,
            positions,
            status,
            ..Raw::default()
        };
        // The guards of what is written, too, live until the launch is queued.
        match outputs {
            Outputs::Same { k, v } => {
                let ((k, _k), (v, _v)) = (memory::output(Some(k), stream), memory::output(Some(v), stream));
                // SAFETY: the slices live on the stream's context, have the elements that the plan reaches, and their guards are
                // held until the launch is queued.
                unsafe { self.run_raw(stream, &Raw { k, v, ..raw }) }
            }
            Outputs::Given { k, v, k_scale, v_scale } => {
                let ((k, _k), (v, _v)) = (memory::output(Some(k), stream), memory::output(Some(v), stream));
                let (k_scale, _k_scale) = memory::input(Some(k_scale), stream);
                let (v_scale, _v_scale) = memory::input(Some(v_scale), stream);
                // SAFETY: as above.
                unsafe { self.run_raw(stream, &Raw { k, v, k_scale, v_scale, ..raw }) }
            }
            Outputs::Computed { k, v, k_scale, v_scale } => {
                let ((k, _k), (v, _v)) = (memory::output(Some(k), stream), memory::output(Some(v), stream));
                let (k_scale, _k_scale) = memory::output(Some(k_scale), stream);
                let (v_scale, _v_scale) = memory::output(Some(v_scale), stream);
                // SAFETY: as above.
                unsafe { self.run_raw(stream, &Raw { k, v, k_scale, v_scale, ..raw }) }
            }
        }
    }

    /// Kinds and lengths of everything.
    fn check_lengths<T>(&self, inputs: &Inputs<'_, T>, outputs: &Outputs<'_, T>) -> Result<()> {
        let Tensors { k_new, v_new, k, v, k_scale, v_scale } = &self.tensors;
        let short: [(&'static str, Strided, Option<usize>); 6] = [
            ("slot_map", self.slot_map(), inputs.slot_map.map(|s| s.len())),
            ("kv_len", self.kv_len(), inputs.kv_len.map(|s| s.len())),
            ("cu_seqlens", self.cu_seqlens(), inputs.cu_seqlens.map(|s| s.len())),
            ("kv_indptr", self.kv_indptr(), inputs.kv_indptr.map(|s| s.len())),
            ("kv_indices", self.kv_indices(), inputs.kv_indices.map(|s| s.len())),
            ("positions", self.positions(), inputs.positions.map(|s| s.len())),
        ];
        for (arg, tensor, len) in &short {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        strided::length(OP, "k_new", k_new, inputs.k_new.len())?;
        strided::length(OP, "v_new", v_new, inputs.v_new.len())?;
        let (kind, k_len, v_len, scales) = match outputs {
            Outputs::Same { k, v } => (CacheType::Same, k.len(), v.len(), None),
            Outputs::Given { k, v, k_scale, v_scale } => {
                let given = if self.options.computes_scales() { Scales::Tensor } else { self.scales() };
                (CacheType::E4m3(given), k.len(), v.len(), Some((k_scale.len(), v_scale.len())))
            }
            Outputs::Computed { k, v, k_scale, v_scale } => {
                (CacheType::E4m3(Scales::Token), k.len(), v.len(), Some((k_scale.len(), v_scale.len())))
            }
        };
        if kind != self.options.cache {
            let want = match self.options.cache {
                CacheType::Same => "of the type of the new keys",
                CacheType::E4m3(Scales::Token) => "codes of e4m3 with scales that are computed",
                CacheType::E4m3(_) => "codes of e4m3 with scales that are given",
            };
            return Err(Error::Shape { op: OP, arg: "k", want: want.into(), got: Vec::new() });
        }
        if let Some((k_len, v_len)) = scales {
            strided::length(OP, "k_scale", k_scale, k_len)?;
            strided::length(OP, "v_scale", v_scale, v_len)?;
        }
        strided::length(OP, "k", k, k_len)?;
        strided::length(OP, "v", v, v_len)
    }

    /// What shares a scale; of a cache without scales, nothing that matters.
    fn scales(&self) -> Scales {
        if let CacheType::E4m3(scales) = self.options.cache { scales } else { Scales::Tensor }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// [`Error::Align`], [`Error::Alias`], [`Error::Shape`], and those of [`launch`].
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs, given scales) or writable (the others) over the plan's shape until the launch has
    ///   ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads what is written.
    pub unsafe fn run_raw(&self, stream: &CudaStream, raw: &Raw) -> Result<()> {
        let Shape { tokens, batch, key_heads, head_dim, value_dim, cache, place, .. } = self.shape;
        let Tensors { k_new, v_new, k, v, k_scale, v_scale } = &self.tensors;
        let (slot_map, kv_len, cu_seqlens) = (self.slot_map(), self.kv_len(), self.cu_seqlens());
        let (kv_indptr, kv_indices, positions) = (self.kv_indptr(), self.kv_indices(), self.positions());
        let status = self.row(true, 1, 4);
        let small: [Placed<'_>; 6] = [
            ("slot_map", raw.slot_map, &slot_map),
            ("kv_len", raw.kv_len, &kv_len),
            ("cu_seqlens", raw.cu_seqlens, &cu_seqlens),
            ("kv_indptr", raw.kv_indptr, &kv_indptr),
            ("kv_indices", raw.kv_indices, &kv_indices),
            ("positions", raw.positions, &positions),
        ];
        for (arg, address, tensor) in &small[..5] {
            // A tensor without elements may have any address.
            if tensor.elements() > 0 || tensor.size == 1 {
                strided::given(OP, arg, tensor.size > 1, *address != 0)?;
            }
        }
        let rotates = self.options.rotary.is_some();
        if !rotates || (place == Place::Slots && tokens > 0) {
            strided::given(OP, "positions", rotates, raw.positions != 0)?;
        }
        let new: [Placed<'_>; 2] = [("k_new", raw.k_new, k_new), ("v_new", raw.v_new, v_new)];
        let caches: [Placed<'_>; 2] = [("k", raw.k, k), ("v", raw.v, v)];
        let scales: [Placed<'_>; 2] = [("k_scale", raw.k_scale, k_scale), ("v_scale", raw.v_scale, v_scale)];
        for placed in new.iter().chain(&caches).chain(&scales) {
            strided::address(OP, *placed, false)?;
        }
        for placed in &small {
            strided::address(OP, *placed, true)?;
        }
        strided::address(OP, ("status", raw.status, &status), true)?;
        let mut outputs = caches.to_vec();
        let mut inputs: Vec<Placed<'_>> = new.iter().chain(&small).copied().collect();
        if self.options.computes_scales() { &mut outputs } else { &mut inputs }.extend(scales);
        outputs.push(("status", raw.status, &status));
        strided::all_disjoint(OP, &outputs, &inputs)?;
        if tokens == 0 || key_heads == 0 || (batch == 0 && place != Place::Slots) {
            return Ok(());
        }

        let rotary_dim = self.rotary_dim();
        let vec = self.elements;
        let fits = |(_, address, tensor): &Placed<'_>| {
            let bytes = vec as u64 * tensor.size;
            address.is_multiple_of(bytes) && tensor.steps_by(vec) && tensor.width.is_multiple_of(vec)
        };
        let wide = new.iter().chain(&caches).all(fits) && rotary_dim.is_multiple_of(2 * vec);
        let (kernel, vec) = if wide { (self.wide, vec) } else { (self.single, 1) };
        let Policy { lanes, block_heads } = Policy::of(self, vec);
        let [num_pages, places] = cache.extents(batch);
        let num_indices = if let Cache::Paged { table, .. } = cache { table } else { 0 };
        // A page table without entries is still one: its requests have no room.
        let is_paged = self.by_request() && matches!(cache, Cache::Paged { .. });
        let args = KvAppend {
            p_k: raw.k_new,
            p_v: raw.v_new,
            p_k_cache: raw.k,
            p_v_cache: raw.v,
            p_k_scale: raw.k_scale,
            p_v_scale: raw.v_scale,
            p_slot_map: raw.slot_map,
            p_positions: raw.positions,
            p_cu_seqlens: raw.cu_seqlens,
            p_kv_len: raw.kv_len,
            p_kv_indptr: raw.kv_indptr,
            p_kv_indices: if is_paged && num_indices == 0 { raw.kv_indptr } else { raw.kv_indices },
            p_status: raw.status,
            k_stride_token: k_new.strides[1],
            k_stride_head: k_new.strides[2],
            v_stride_token: v_new.strides[1],
            v_stride_head: v_new.strides[2],
            k_cache_stride_page: k.strides[0],
            k_cache_stride_place: k.strides[1],
            k_cache_stride_head: k.strides[2],
            v_cache_stride_page: v.strides[0],
            v_cache_stride_place: v.strides[1],
            v_cache_stride_head: v.strides[2],
            k_scale_stride_page: step(k_scale, 0),
            k_scale_stride_place: step(k_scale, 1),
            k_scale_stride_head: step(k_scale, 2),
            v_scale_stride_page: step(v_scale, 0),
            v_scale_stride_place: step(v_scale, 1),
            v_scale_stride_head: step(v_scale, 2),
            ratio: self.options.rotary.map_or(0, |r| r.ratio()),
            tokens: tokens as u32,
            requests: batch as u32,
            query_len: if let Place::Requests { query_len } = place { query_len as u32 } else { 1 },
            heads: key_heads as u32,
            head_dim: head_dim as u32,
            value_dim: value_dim as u32,
            num_pages: num_pages as u32,
            places: places as u32,
            num_indices: num_indices as u32,
            rotary_dim: rotary_dim as u32,
            interleaved: u32::from(self.options.rotary.is_some_and(|r| r.style == Style::Interleaved)),
            computed: u32::from(self.options.computes_scales()),
            block_heads: block_heads as u32,
            lane_bits: lanes.trailing_zeros(),
        };
        let grid = [tokens.div_ceil(BLOCK / lanes) as u32, key_heads.div_ceil(block_heads) as u32, 2];
        // SAFETY: the caller's promise covers the pointers; sizes, strides and alignment were checked against the contract.
        unsafe { launch(stream, kernel, grid, &args) }
    }
}

/// The step of a dimension along which entries differ; 0 where all are the same.
fn step(tensor: &Strided, dimension: usize) -> i64 {
    if tensor.extents[dimension] > 1 { tensor.strides[dimension] } else { 0 }
}
