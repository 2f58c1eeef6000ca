//! Sizes, strides and the window.

use super::{BLOCK, OP};
use crate::{
    Result,
    check::{self, Rows},
};
use lookback_device::{DType, Error};

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
    pub(super) fn tensor(&self, dtype: DType, stride_batch: i64, stride_token: i64) -> Tensor {
        let Shape { batch, tokens, channels, .. } = *self;
        Tensor { batch, tokens, channels, stride_batch, stride_token, size: dtype.size() }
    }

    /// The states, one row a token.
    pub(super) fn state(&self, dtype: DType) -> Rows {
        Rows::new(self.sequences() * (self.taps - 1), self.channels, self.channels as i64, dtype.size())
    }

    /// The weights.
    pub(super) fn weight(&self, dtype: DType) -> Rows {
        Rows::new(1, self.channels * self.taps, 0, dtype.size())
    }

    /// The starts of packed sequences; nothing without.
    pub(super) fn starts(&self) -> Rows {
        Rows::new(1, self.packed.map_or(0, |sequences| sequences + 1), 0, 4)
    }
}

/// A `[batch, tokens, channels]` tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor {
    batch: usize,
    tokens: usize,
    channels: usize,
    stride_batch: i64,
    stride_token: i64,
    size: usize,
}

impl Tensor {
    /// One row, token by token.
    pub fn row(&self) -> Rows {
        Rows::new(self.tokens, self.channels, self.stride_token, self.size)
    }

    /// One token of each row.
    pub fn rows(&self) -> Rows {
        Rows::new(self.batch, self.channels, self.stride_batch, self.size)
    }

    /// All of it as rows of the smaller stride, gaps between them included, at the larger stride. Only for a checked tensor.
    pub fn whole(&self) -> Rows {
        let Tensor { batch, tokens, channels, stride_batch, stride_token, size } = *self;
        let ((outer, outer_stride), (inner, inner_stride)) = if stride_batch >= stride_token {
            ((batch, stride_batch), (tokens, stride_token))
        } else {
            ((tokens, stride_token), (batch, stride_batch))
        };
        let inner = Rows::new(inner, channels, inner_stride, size);
        let width = usize::try_from(inner.span()).unwrap_or(usize::MAX);
        Rows::new(outer, width, outer_stride, size)
    }

    /// From a row to the next, and from a token to the next.
    pub fn strides(&self) -> (i64, i64) {
        (self.stride_batch, self.stride_token)
    }

    /// Rows and tokens may coincide.
    pub fn readable(&self, arg: &'static str) -> Result<()> {
        self.check(arg, check::readable)
    }

    /// Rows and tokens must not overlap.
    pub fn writable(&self, arg: &'static str) -> Result<()> {
        self.check(arg, check::writable)
    }

    fn check(&self, arg: &'static str, rows: fn(&'static str, &'static str, &Rows) -> Result<()>) -> Result<()> {
        if self.batch == 0 || self.tokens == 0 {
            return Ok(());
        }
        // The inner rows first: the extent of the outer ones is computed from them.
        rows(OP, arg, &self.row())?;
        rows(OP, arg, &self.rows())?;
        rows(OP, arg, &self.whole())
    }

    /// Bytes that belong to the tensor.
    pub fn bytes(&self) -> u64 {
        self.batch as u64 * self.row().bytes()
    }
}
