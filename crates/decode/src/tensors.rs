//! The tensors of a step: as the caller's memory, and as device addresses.

use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// Lengths and tables of the requests: what a schedule is made from, and what every layer of the step reads.
#[derive(Clone, Copy)]
pub struct Lengths<'a> {
    /// `[B]` keys of each request.
    pub kv_len: &'a dyn DevicePtr<i32>,
    /// `[B+1]` starts of the requests' queries, when they are packed: see [`cu_seqlens`](lookback_device::cu_seqlens). Outputs that two
    /// requests claim have no defined value, those that none claims are not written.
    pub cu_seqlens_q: Option<&'a dyn DevicePtr<i32>>,
    /// `[B+1]` starts of the requests' keys in a ragged cache, or of their page tables in `kv_indices`.
    pub kv_indptr: Option<&'a dyn DevicePtr<i32>>,
    /// `[table]` pages, of a paged cache.
    pub kv_indices: Option<&'a dyn DevicePtr<i32>>,
    /// `[B, Hk, entries]` key positions in any order, with [`Options::list`](crate::Options::list); -1 names no key.
    pub list: Option<&'a dyn DevicePtr<i32>>,
    /// `[B, Hk]` entries in use.
    pub list_len: Option<&'a dyn DevicePtr<i32>>,
}

impl<'a> Lengths<'a> {
    /// A dense cache.
    pub fn dense(kv_len: &'a dyn DevicePtr<i32>) -> Self {
        Self { kv_len, cu_seqlens_q: None, kv_indptr: None, kv_indices: None, list: None, list_len: None }
    }

    /// A ragged cache.
    pub fn ragged(kv_len: &'a dyn DevicePtr<i32>, starts: &'a dyn DevicePtr<i32>) -> Self {
        Self { kv_indptr: Some(starts), ..Self::dense(kv_len) }
    }

    /// A paged cache.
    pub fn paged(
        kv_len: &'a dyn DevicePtr<i32>,
        kv_indptr: &'a dyn DevicePtr<i32>,
        kv_indices: &'a dyn DevicePtr<i32>,
    ) -> Self {
        Self { kv_indptr: Some(kv_indptr), kv_indices: Some(kv_indices), ..Self::dense(kv_len) }
    }
}

/// Keys and values.
#[derive(Clone, Copy)]
pub enum KeyValues<'a, T> {
    /// Of the type of `q`.
    Same {
        /// `[pages, places, Hk, D]`.
        k: &'a dyn DevicePtr<T>,
        /// `[pages, places, Hk, Dv]`.
        v: &'a dyn DevicePtr<T>,
    },
    /// Codes of e4m3, with [`CacheType::E4m3`](crate::CacheType::E4m3).
    E4m3 {
        /// `[pages, places, Hk, D]`.
        k: &'a dyn DevicePtr<u8>,
        /// `[pages, places, Hk, Dv]`.
        v: &'a dyn DevicePtr<u8>,
        /// What codes of keys are multiplied by, as [`Scales`](crate::Scales) says.
        k_scale: &'a dyn DevicePtr<f32>,
        /// What codes of values are multiplied by.
        v_scale: &'a dyn DevicePtr<f32>,
    },
}

/// What a launch reads. A view into a wider tensor begins at its first element.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `[B, query_len, H, D]`, or `[tokens, H, D]` packed.
    pub q: &'a dyn DevicePtr<T>,
    /// Keys and values of this layer.
    pub cache: KeyValues<'a, T>,
    /// Those that the schedule was made from.
    pub lengths: Lengths<'a>,
    /// `[H]`: `slope (j - p)` is added to the logit of key `j` for a query at position `p`.
    pub alibi_slopes: Option<&'a dyn DevicePtr<f32>>,
    /// `[H]` logits of a key without a value, which counts in every sum.
    pub sink: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// Queries and a cache of their type.
    pub fn of(q: &'a dyn DevicePtr<T>, k: &'a dyn DevicePtr<T>, v: &'a dyn DevicePtr<T>, lengths: Lengths<'a>) -> Self {
        Self { q, cache: KeyValues::Same { k, v }, lengths, alibi_slopes: None, sink: None }
    }
}

/// What a launch writes. `O` is the type that [`Output`](crate::Output) says.
pub struct Outputs<'a, O> {
    /// `[B, query_len, H, Dv]`, or `[tokens, H, Dv]` packed.
    pub o: &'a mut dyn DevicePtrMut<O>,
    /// `[B, query_len, H]`, or `[tokens, H]` packed: natural logarithms of the sums.
    pub lse: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[B, H, query_len, columns]`, or `[tokens, H, columns]` packed, with [`Options::logits`](crate::Options::logits): by key, or
    /// by entry of the list; `-inf` for keys that a query does not see. Tiles of 64 keys that no query of the tile sees, and columns
    /// past the last tile, are not written.
    pub logits: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<'a, O> Outputs<'a, O> {
    /// The output alone.
    pub fn of(o: &'a mut dyn DevicePtrMut<O>) -> Self {
        Self { o, lse: None, logits: None }
    }

    /// A state of the keys that were read.
    pub fn with_lse(o: &'a mut dyn DevicePtrMut<O>, lse: &'a mut dyn DevicePtrMut<f32>) -> Self {
        Self { o, lse: Some(lse), logits: None }
    }
}

/// [`Lengths`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawLengths {
    /// See [`Lengths::kv_len`].
    pub kv_len: CUdeviceptr,
    /// See [`Lengths::cu_seqlens_q`].
    pub cu_seqlens_q: CUdeviceptr,
    /// See [`Lengths::kv_indptr`].
    pub kv_indptr: CUdeviceptr,
    /// See [`Lengths::kv_indices`].
    pub kv_indices: CUdeviceptr,
    /// See [`Lengths::list`].
    pub list: CUdeviceptr,
    /// See [`Lengths::list_len`].
    pub list_len: CUdeviceptr,
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawInputs {
    /// Queries.
    pub q: CUdeviceptr,
    /// Keys.
    pub k: CUdeviceptr,
    /// Values.
    pub v: CUdeviceptr,
    /// Scales of keys.
    pub k_scale: CUdeviceptr,
    /// Scales of values.
    pub v_scale: CUdeviceptr,
    /// Lengths and tables.
    pub lengths: RawLengths,
    /// Slopes.
    pub alibi_slopes: CUdeviceptr,
    /// Logits without values.
    pub sink: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// Outputs.
    pub o: CUdeviceptr,
    /// Logarithms of the sums.
    pub lse: CUdeviceptr,
    /// Logits.
    pub logits: CUdeviceptr,
}
