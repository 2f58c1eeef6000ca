//! Sizes, strides and the window.

use super::{BLOCK, OP};
use crate::{Result, check};
use lookback_device::{DType, Error, strided::Strided};

/// Which tokens a window reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Window {
    /// The current token and the `taps - 1` before it.
    #[default]
    Causal,
    /// `taps / 2` tokens before the current one, and as many behind it as make `taps` altogether. There is no state.
    Centred,
}

/// Sizes and strides. Channels are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row; of all packed sequences together.
    pub tokens: usize,
    /// Channels.
    pub channels: usize,
    /// Width of the window: 2, 3, 4, 5 or 7.
    pub taps: usize,
    /// Where the window lies.
    pub window: Window,
    /// Packed sequences in the only row: `cu_seqlens` has one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Elements of `x` from a row to the next.
    pub x_stride_batch: i64,
    /// Elements of `x` from a token to the next.
    pub x_stride_token: i64,
    /// Elements of `out` from a row to the next.
    pub out_stride_batch: i64,
    /// Elements of `out` from a token to the next.
    pub out_stride_token: i64,
}

impl Shape {
    /// Rows of equal length and a causal window, `[batch, tokens, channels]` without gaps.
    pub fn dense(batch: usize, tokens: usize, channels: usize, taps: usize) -> Self {
        let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let (token, row) = (clamp(channels), clamp(tokens.saturating_mul(channels)));
        Self {
            batch,
            tokens,
            channels,
            taps,
            window: Window::Causal,
            packed: None,
            x_stride_batch: row,
            x_stride_token: token,
            out_stride_batch: row,
            out_stride_token: token,
        }
    }

    /// `sequences` of any lengths, one after the other in `[1, total, channels]` without gaps.
    pub fn packed(sequences: usize, total: usize, channels: usize, taps: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, total, channels, taps) }
    }

    /// The same with a centred window.
    pub fn centred(self) -> Self {
        Self { window: Window::Centred, ..self }
    }

    /// Rows of the states.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }

    /// Extents that the kernels can count, and sequences in one row.
    pub(super) fn check(&self) -> Result<()> {
        check::range(OP, "batch", self.batch, 0, 65_535)?;
        check::range(OP, "tokens", self.tokens, 0, check::MAX_EXTENT)?;
        check::range(OP, "channels", self.channels, 0, 65_535 * BLOCK)?;
        check::range(OP, "taps", self.taps, 2, 7)?;
        if let Some(sequences) = self.packed {
            check::range(OP, "packed", sequences, 1, 1 << 30)?;
            check::range(OP, "batch", self.batch, 1, 1)?;
        }
        Ok(())
    }

    /// The name of the width in kernel variants.
    pub(super) fn taps_name(&self) -> Result<&'static str> {
        let names = [(2, "2"), (3, "3"), (4, "4"), (5, "5"), (7, "7")];
        let missing = || Error::NoKernel { op: OP, request: format!("{} taps", self.taps) };
        names.iter().find(|(taps, _)| *taps == self.taps).map(|(_, name)| *name).ok_or_else(missing)
    }

    /// Slots of runs of 2^run_bits tokens that reach every sequence; see `kernels/tile/sequences.ptx`.
    pub(super) fn runs(&self, run_bits: u32) -> usize {
        match self.packed {
            Some(sequences) => (self.tokens >> run_bits) + sequences,
            None => self.tokens.div_ceil(1 << run_bits).max(1),
        }
    }

    /// The tensor of these strides in memory.
    pub(super) fn tensor(&self, dtype: DType, stride_batch: i64, stride_token: i64) -> Strided {
        Strided::new([self.batch, self.tokens, 1], [stride_batch, stride_token, 0], self.channels, dtype.size())
    }

    /// The states.
    pub(super) fn state(&self, dtype: DType) -> Strided {
        Strided::dense([1, self.sequences(), self.taps - 1], self.channels, dtype.size())
    }

    /// The weights.
    pub(super) fn weight(&self, dtype: DType) -> Strided {
        Strided::dense([1; 3], self.channels * self.taps, dtype.size())
    }

    /// The starts of packed sequences; nothing without.
    pub(super) fn starts(&self) -> Strided {
        self.packed.map_or(Strided::NONE, |sequences| Strided::dense([1; 3], sequences + 1, 4))
    }
}
