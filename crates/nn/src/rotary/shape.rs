//! Sizes, strides, and what the angles are.

use super::OP;
use crate::{Result, check};
use lookback_device::{DType, Error, strided::Strided};

/// Greatest number of axes of a grid.
pub const MAX_AXES: usize = 4;

/// Steps of a `[batch, tokens, heads, width]` tensor in elements; a row of a head is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// From a row of the batch to the next.
    pub batch: i64,
    /// From a token to the next.
    pub token: i64,
    /// From a head to the next.
    pub head: i64,
}

impl Stride {
    /// Without gaps.
    pub fn dense(tokens: usize, heads: usize, width: usize) -> Self {
        let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let token = heads.saturating_mul(width);
        Self { batch: clamp(tokens.saturating_mul(token)), token: clamp(token), head: clamp(width) }
    }
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row; of all packed sequences together.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head, before [`Style::Cosine`] makes them twice as many.
    pub head_dim: usize,
    /// Packed sequences in the only row: `cu_seqlens` has one entry more, and positions begin again with each. Without, each row is
    /// a sequence.
    pub packed: Option<usize>,
    /// Steps of what is read; `None`: without gaps.
    pub x_stride: Option<Stride>,
    /// Steps of what is written; `None`: without gaps.
    pub out_stride: Option<Stride>,
}

impl Shape {
    /// A tensor of it in memory, of rows of `width`.
    pub(super) fn tensor(&self, stride: Option<Stride>, width: usize, dtype: DType) -> Strided {
        let Shape { batch, tokens, heads, .. } = *self;
        let Stride { batch: b, token: t, head: h } = stride.unwrap_or(Stride::dense(tokens, heads, width));
        Strided::new([batch, tokens, heads], [b, t, h], width, dtype.size())
    }

    /// Rows of equal length, `[batch, tokens, heads, head_dim]` without gaps.
    pub fn dense(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        Self { batch, tokens, heads, head_dim, packed: None, x_stride: None, out_stride: None }
    }

    /// `sequences` of any lengths, one after the other in `[1, total, heads, head_dim]` without gaps.
    pub fn packed(sequences: usize, total: usize, heads: usize, head_dim: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, total, heads, head_dim) }
    }
}

/// Which elements an angle turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Style {
    /// Elements `i` and `i + r/2` of the first `r`.
    #[default]
    Half,
    /// Elements `2i` and `2i + 1`.
    Interleaved,
    /// `x` becomes `[x cos, x sin]`, an angle for each element: the product of two such rows weighs each channel by the cosine
    /// of its angle's difference.
    Cosine,
}

/// Positions in several dimensions: token `prefix + n` stands at the row-major index `n` of a grid, and the tokens before stay as
/// they are. The angles of a row are shared out among the axes in order, as many to each, and every axis has the same frequencies,
/// from the first on. With one axis the positions count from `prefix` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Number of axes, 1 to [`MAX_AXES`].
    pub axes: usize,
    /// Extents of the axes, the slowest first; the first does not matter.
    pub extents: [usize; MAX_AXES],
    /// Tokens before the grid.
    pub prefix: usize,
}

impl Grid {
    /// A grid of these extents, the slowest axis first, after `prefix` tokens.
    pub fn new(extents: &[usize], prefix: usize) -> Self {
        let mut found = [1; MAX_AXES];
        found.iter_mut().zip(extents).for_each(|(to, from)| *to = *from);
        Self { axes: extents.len(), extents: found, prefix }
    }
}

/// Element type, and which angle meets which element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of both tensors.
    pub dtype: DType,
    /// Which elements an angle turns.
    pub style: Style,
    /// Angle `i` is `position base^(-2 i / theta_dim)`; at least 1.
    pub base: f64,
    /// The first `rotary_dim` elements turn, the others stay as they are; even. [`Style::Cosine`] turns all.
    pub rotary_dim: usize,
    /// See [`Options::base`].
    pub theta_dim: usize,
    /// Positions in several dimensions.
    pub grid: Option<Grid>,
    /// Position of a sequence's first token, where positions are not given.
    pub offset: i32,
}

impl Options {
    /// All of `head_dim` elements turn, with base 10000.
    pub fn new(dtype: DType, style: Style, head_dim: usize) -> Self {
        Self { dtype, style, base: 1e4, rotary_dim: head_dim, theta_dim: head_dim, grid: None, offset: 0 }
    }

    /// Angles of a row.
    pub(super) fn turned(&self) -> usize {
        if self.style == Style::Cosine { self.rotary_dim } else { self.rotary_dim / 2 }
    }

    /// Angles of an axis.
    pub(super) fn axis_turned(&self) -> usize {
        self.turned().div_ceil(self.grid.map_or(1, |g| g.axes)).max(1)
    }

    /// Elements of a row after [`Style::Cosine`].
    pub(super) fn wide(&self, head_dim: usize) -> usize {
        if self.style == Style::Cosine { 2 * head_dim } else { head_dim }
    }

    /// Ranges of everything.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        check::range(OP, "head_dim", head_dim, 1, 4096)?;
        let least = if self.style == Style::Cosine { head_dim } else { 0 };
        check::range(OP, "rotary_dim", self.rotary_dim, least, head_dim)?;
        if self.style != Style::Cosine && !self.rotary_dim.is_multiple_of(2) {
            let got = vec![self.rotary_dim as u64];
            return Err(Error::Shape { op: OP, arg: "rotary_dim", want: "even".into(), got });
        }
        check::range(OP, "theta_dim", self.theta_dim, 1, check::MAX_EXTENT)?;
        if !(self.base >= 1.0 && self.base.is_finite()) {
            return Err(Error::Range { op: OP, arg: "base", at: None, lo: 1, hi: i64::MAX, got: self.base as i64 });
        }
        if let Some(grid) = &self.grid {
            check::range(OP, "axes", grid.axes, 1, MAX_AXES)?;
            check::range(OP, "prefix", grid.prefix, 0, check::MAX_EXTENT)?;
            for extent in &grid.extents[1..] {
                check::range(OP, "extents", *extent, 1, check::MAX_EXTENT)?;
            }
        }
        Ok(())
    }
}
