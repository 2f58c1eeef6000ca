//! What forward and backward check of their common inputs, and their addresses for the time of a launch.

use crate::{
    Inputs, Mask, Options, RawInputs, Result, Shape,
    memory::{self, Guard},
    plan::Layout,
    strided::{self, Placed, Strided},
};
use cudarc::driver::CudaStream;

/// Common inputs.
pub(crate) const COUNT: usize = 12;

impl<T> Inputs<'_, T> {
    /// Every slice reaches as far as its tensor.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) ← one is too short.
    pub(crate) fn check_lengths(&self, op: &'static str, layout: &Layout) -> Result<()> {
        for (arg, tensor, len) in [
            ("q", &layout.q, Some(self.q.len())),
            ("k", &layout.k, Some(self.k.len())),
            ("v", &layout.v, Some(self.v.len())),
            ("cu_seqlens_q", &layout.cu_seqlens, self.cu_seqlens_q.map(|s| s.len())),
            ("cu_seqlens_k", &layout.cu_seqlens, self.cu_seqlens_k.map(|s| s.len())),
            ("prefix_len", &layout.prefix_len, self.prefix_len.map(|s| s.len())),
            ("intervals", &layout.intervals, self.intervals.map(|s| s.len())),
            ("key_bits", &layout.key_bits, self.key_bits.map(|s| s.len())),
            ("tiles.starts", &layout.tile_starts, self.tiles.map(|t| t.starts.len())),
            ("alibi_slopes", &layout.heads, self.alibi_slopes.map(|s| s.len())),
            ("sink", &layout.heads, self.sink.map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(op, arg, tensor, len))?;
        }
        let tiles = self.tiles.map_or(0, |tiles| tiles.keys.len());
        strided::range(op, "tiles.keys", tiles, 0, strided::MAX_EXTENT)
    }

    /// Their addresses, and what must outlive the launch.
    pub(crate) fn hold<'a>(&'a self, stream: &'a CudaStream) -> (RawInputs, [Guard<'a>; COUNT]) {
        let (q, g0) = memory::input(Some(self.q), stream);
        let (k, g1) = memory::input(Some(self.k), stream);
        let (v, g2) = memory::input(Some(self.v), stream);
        let (cu_seqlens_q, g3) = memory::input(self.cu_seqlens_q, stream);
        let (cu_seqlens_k, g4) = memory::input(self.cu_seqlens_k, stream);
        let (prefix_len, g5) = memory::input(self.prefix_len, stream);
        let (intervals, g6) = memory::input(self.intervals, stream);
        let (key_bits, g7) = memory::input(self.key_bits, stream);
        let (tile_starts, g8) = memory::input(self.tiles.map(|t| t.starts), stream);
        let (tile_keys, g9) = memory::input(self.tiles.map(|t| t.keys), stream);
        let (alibi_slopes, g10) = memory::input(self.alibi_slopes, stream);
        let (sink, g11) = memory::input(self.sink, stream);
        let raw = RawInputs {
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            prefix_len,
            intervals,
            key_bits,
            tile_starts,
            tile_keys,
            tile_count: self.tiles.map_or(0, |tiles| tiles.keys.len() as u32),
            alibi_slopes,
            sink,
        };
        (raw, [g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11])
    }
}

impl RawInputs {
    /// Whether each input that shape and options want is there, none that they have no use for, and all at addresses that kernels can
    /// read.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) ← one is missing or has no meaning; [`Error::Align`](crate::Error::Align) ← `q`, `k`, `v` or
    /// `intervals` is not at a multiple of 16 bytes, another one not at one of its elements' size.
    pub(crate) fn check(&self, op: &'static str, shape: &Shape, options: &Options, layout: &Layout) -> Result<()> {
        // An empty tensor may have no address.
        let exactly = |(arg, address, tensor): Placed<'_>, wanted: bool| match address == 0 && tensor.elements() == 0 {
            true => Ok(()),
            false => strided::given(op, arg, wanted, address != 0),
        };
        let packed = shape.packed.is_some();
        exactly(("cu_seqlens_q", self.cu_seqlens_q, &layout.cu_seqlens), packed)?;
        exactly(("cu_seqlens_k", self.cu_seqlens_k, &layout.cu_seqlens), packed)?;
        exactly(("prefix_len", self.prefix_len, &layout.prefix_len), options.mask == Mask::Prefix)?;
        exactly(("intervals", self.intervals, &layout.intervals), options.mask == Mask::Intervals)?;
        if self.tile_count > 0 {
            strided::given(op, "tiles.keys", true, self.tile_keys != 0)?;
            strided::given(op, "tiles.starts", true, self.tile_starts != 0)?;
        }
        let list = self.tile_list();
        let placed = self.placed(layout, &list);
        placed[..3].iter().try_for_each(|placed| rows(op, *placed))?;
        if self.intervals != 0 {
            rows(op, placed[6])?;
        }
        placed[3..].iter().try_for_each(|placed| strided::address(op, *placed, true))
    }

    /// `tile_keys` as a tensor.
    pub(crate) fn tile_list(&self) -> Strided {
        Strided::dense([1, 1, 1], self.tile_count as usize, 4)
    }

    /// All of them with their names and tensors; `list` is [`tile_list`](Self::tile_list).
    pub(crate) fn placed<'a>(&self, layout: &'a Layout, list: &'a Strided) -> [Placed<'a>; COUNT] {
        [
            ("q", self.q, &layout.q),
            ("k", self.k, &layout.k),
            ("v", self.v, &layout.v),
            ("cu_seqlens_q", self.cu_seqlens_q, &layout.cu_seqlens),
            ("cu_seqlens_k", self.cu_seqlens_k, &layout.cu_seqlens),
            ("prefix_len", self.prefix_len, &layout.prefix_len),
            ("intervals", self.intervals, &layout.intervals),
            ("key_bits", self.key_bits, &layout.key_bits),
            ("tiles.starts", self.tile_starts, &layout.tile_starts),
            ("tiles.keys", self.tile_keys, list),
            ("alibi_slopes", self.alibi_slopes, &layout.heads),
            ("sink", self.sink, &layout.heads),
        ]
    }
}

/// A tensor of rows that are moved in pieces of 16 bytes.
///
/// # Errors
/// [`Error::Align`](crate::Error::Align) ← it is missing, or elsewhere than at a multiple of 16.
pub(crate) fn rows(op: &'static str, (arg, at, tensor): Placed<'_>) -> Result<()> {
    if tensor.elements() > 0 && (at == 0 || !at.is_multiple_of(16)) {
        return Err(crate::Error::Align { op, arg, need: 16, addr: at });
    }
    Ok(())
}
