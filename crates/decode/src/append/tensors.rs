//! The tensors of an append: as the caller's memory, and as device addresses.

use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// What a launch reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    /// `[tokens, Hk, D]`.
    pub k_new: &'a dyn DevicePtr<T>,
    /// `[tokens, Hk, Dv]`.
    pub v_new: &'a dyn DevicePtr<T>,
    /// `[tokens]` with [`Place::Slots`](super::Place::Slots): `page * places of a page + place`; -1 is not stored.
    pub slot_map: Option<&'a dyn DevicePtr<i64>>,
    /// `[B]` otherwise: tokens of each request with the new ones.
    pub kv_len: Option<&'a dyn DevicePtr<i32>>,
    /// `[B+1]` with [`Place::Packed`](super::Place::Packed): where the new tokens of each request begin, from 0 on. Tokens behind the last entry are
    /// not stored.
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[B+1]`, without slots, of a ragged or paged cache, as decoding reads it.
    pub kv_indptr: Option<&'a dyn DevicePtr<i32>>,
    /// `[table]`, without slots, of a paged cache.
    pub kv_indices: Option<&'a dyn DevicePtr<i32>>,
    /// `[tokens]` positions for [`Options::rotary`](super::Options::rotary); absent means the place in the request, which slots do not say.
    pub positions: Option<&'a dyn DevicePtr<i32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// Tokens with slots.
    pub fn slots(k_new: &'a dyn DevicePtr<T>, v_new: &'a dyn DevicePtr<T>, slot_map: &'a dyn DevicePtr<i64>) -> Self {
        let slot_map = Some(slot_map);
        let (kv_len, cu_seqlens, kv_indptr, kv_indices, positions) = (None, None, None, None, None);
        Self { k_new, v_new, slot_map, kv_len, cu_seqlens, kv_indptr, kv_indices, positions }
    }

    /// The last tokens of requests, in the cache that decoding reads with these lengths. Their `cu_seqlens_q` count the new tokens.
    pub fn requests(k_new: &'a dyn DevicePtr<T>, v_new: &'a dyn DevicePtr<T>, lengths: crate::Lengths<'a>) -> Self {
        let crate::Lengths { kv_len, cu_seqlens_q, kv_indptr, kv_indices, .. } = lengths;
        let (slot_map, positions) = (None, None);
        Self {
            k_new,
            v_new,
            slot_map,
            kv_len: Some(kv_len),
            cu_seqlens: cu_seqlens_q,
            kv_indptr,
            kv_indices,
            positions,
        }
    }
}

/// The cache that a launch writes into.
pub enum Outputs<'a, T> {
    /// Of the type of the new keys and values.
    Same {
        /// `[pages, places, Hk, D]`.
        k: &'a mut dyn DevicePtrMut<T>,
        /// `[pages, places, Hk, Dv]`.
        v: &'a mut dyn DevicePtrMut<T>,
    },
    /// Codes of e4m3 by scales that are read, with [`Scales::Tensor`](crate::Scales::Tensor) (one number) and [`Scales::Head`](crate::Scales::Head)
    /// (`[Hk]`); positive.
    Given {
        /// `[pages, places, Hk, D]`.
        k: &'a mut dyn DevicePtrMut<u8>,
        /// `[pages, places, Hk, Dv]`.
        v: &'a mut dyn DevicePtrMut<u8>,
        /// What codes of keys are multiplied by when they are read.
        k_scale: &'a dyn DevicePtr<f32>,
        /// What codes of values are multiplied by when they are read.
        v_scale: &'a dyn DevicePtr<f32>,
    },
    /// Codes of e4m3 and their scales, with [`Scales::Token`](crate::Scales::Token).
    Computed {
        /// `[pages, places, Hk, D]`.
        k: &'a mut dyn DevicePtrMut<u8>,
        /// `[pages, places, Hk, Dv]`.
        v: &'a mut dyn DevicePtrMut<u8>,
        /// `[pages, places, Hk]`.
        k_scale: &'a mut dyn DevicePtrMut<f32>,
        /// `[pages, places, Hk]`.
        v_scale: &'a mut dyn DevicePtrMut<f32>,
    },
}

/// Addresses of [`Inputs`] and [`Outputs`], for [`Plan::run_raw`](super::Plan::run_raw); 0 for absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raw {
    /// See [`Inputs::k_new`].
    pub k_new: CUdeviceptr,
    /// See [`Inputs::v_new`].
    pub v_new: CUdeviceptr,
    /// See [`Inputs::slot_map`].
    pub slot_map: CUdeviceptr,
    /// See [`Inputs::kv_len`].
    pub kv_len: CUdeviceptr,
    /// See [`Inputs::cu_seqlens`].
    pub cu_seqlens: CUdeviceptr,
    /// See [`Inputs::kv_indptr`].
    pub kv_indptr: CUdeviceptr,
    /// See [`Inputs::kv_indices`].
    pub kv_indices: CUdeviceptr,
    /// See [`Inputs::positions`].
    pub positions: CUdeviceptr,
    /// Keys of the cache.
    pub k: CUdeviceptr,
    /// Values of the cache.
    pub v: CUdeviceptr,
    /// Scales of keys.
    pub k_scale: CUdeviceptr,
    /// Scales of values.
    pub v_scale: CUdeviceptr,
    /// A `u32` into which bits of what was left out are or-ed; see [`masked`](super::masked).
    pub status: CUdeviceptr,
}
