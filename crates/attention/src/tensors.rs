//! The tensors of a forward pass: as the caller's memory, and as device addresses.

use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// Blocks of 64 keys that blocks of 128 queries see at most, as compressed rows. A block that is not listed is not loaded.
///
/// Rows of equal length: tile `t` of row `b` of the batch is slot `b ceil(Tq / 128) + t`. Packed: tile `t` of sequence `n`, which starts
/// at query `lo`, is slot `lo / 128 + n + t` (rounded down). [`Shape::slots`](crate::Shape::slots) counts them.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    /// `[slots + 1]`: slot `s` sees the tiles `keys[starts[s]..starts[s + 1]]`.
    pub starts: &'a dyn DevicePtr<i32>,
    /// Numbers of tiles of the slot's sequence, ascending.
    pub keys: &'a dyn DevicePtr<i32>,
}

/// Inputs of a forward pass. A view into a wider tensor begins at its first element.
pub struct Inputs<'a, T> {
    /// `[B,Tq,H,D]`.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,Tk,Hk,D]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,Tk,Hk,Dv]`.
    pub v: &'a dyn DevicePtr<T>,
    /// `[N+1]` starts of the sequences' queries, for a packed shape; see [`check::cu_seqlens`](crate::check::cu_seqlens).
    pub cu_seqlens_q: Option<&'a dyn DevicePtr<i32>>,
    /// `[N+1]` starts of the sequences' keys, likewise; may be the same memory.
    pub cu_seqlens_k: Option<&'a dyn DevicePtr<i32>>,
    /// `[N]`, for [`Mask::Prefix`](crate::Mask::Prefix): keys at the start of a sequence that all its rows see.
    pub prefix_len: Option<&'a dyn DevicePtr<i32>>,
    /// `[B,Tq,4]`, for [`Mask::Intervals`](crate::Mask::Intervals): `a_lo a_hi b_lo b_hi`.
    pub intervals: Option<&'a dyn DevicePtr<i32>>,
    /// `[B,W]` with `W = ceil(Tk / 32)`: bit `t % 32` of word `t / 32` says whether key `t` of the row is seen at all; packed sequences
    /// share the only row.
    pub key_bits: Option<&'a dyn DevicePtr<u32>>,
    /// Blocks that are seen at most.
    pub tiles: Option<Tiles<'a>>,
    /// `[H]`: `slope (j - p)` is added to the logit of key `j`.
    pub alibi_slopes: Option<&'a dyn DevicePtr<f32>>,
    /// `[H]`: one more logit of every row, without a value; it counts in `lse`.
    pub sink: Option<&'a dyn DevicePtr<f32>>,
}

impl<'a, T> Inputs<'a, T> {
    /// Queries, keys and values alone.
    pub fn of(q: &'a dyn DevicePtr<T>, k: &'a dyn DevicePtr<T>, v: &'a dyn DevicePtr<T>) -> Self {
        Self {
            q,
            k,
            v,
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            prefix_len: None,
            intervals: None,
            key_bits: None,
            tiles: None,
            alibi_slopes: None,
            sink: None,
        }
    }
}

/// Outputs of a forward pass. `O` is the type that [`Output`](crate::Output) says: that of the inputs, or f32.
pub struct Outputs<'a, O> {
    /// `[B,Tq,H,Dv]`; read as well with [`Output::Merge`](crate::Output::Merge).
    pub o: &'a mut dyn DevicePtrMut<O>,
    /// `[B,Tq,H]` natural logarithms of the sums of exponentials, minus infinity where a row sees nothing; without gaps. Required with
    /// [`Output::Merge`](crate::Output::Merge), and read.
    pub lse: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<'a, O> Outputs<'a, O> {
    /// The output alone.
    pub fn of(o: &'a mut dyn DevicePtrMut<O>) -> Self {
        Self { o, lse: None }
    }

    /// Both.
    pub fn with_lse(o: &'a mut dyn DevicePtrMut<O>, lse: &'a mut dyn DevicePtrMut<f32>) -> Self {
        Self { o, lse: Some(lse) }
    }
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
    /// Starts of packed sequences of queries.
    pub cu_seqlens_q: CUdeviceptr,
    /// Starts of packed sequences of keys.
    pub cu_seqlens_k: CUdeviceptr,
    /// Lengths of prefixes.
    pub prefix_len: CUdeviceptr,
    /// Intervals of rows.
    pub intervals: CUdeviceptr,
    /// Bitmap of keys.
    pub key_bits: CUdeviceptr,
    /// Starts of the slots' lists of tiles.
    pub tile_starts: CUdeviceptr,
    /// Lists of tiles.
    pub tile_keys: CUdeviceptr,
    /// Entries of `tile_keys`.
    pub tile_count: u32,
    /// Slopes.
    pub alibi_slopes: CUdeviceptr,
    /// Logits without a value.
    pub sink: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// Output.
    pub o: CUdeviceptr,
    /// Logarithms of the sums of exponentials.
    pub lse: CUdeviceptr,
}
