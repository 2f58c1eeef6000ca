//! Sizes, strides and switches of a merge.

use super::OP;
use lookback_device::{
    DType, Error, Result,
    strided::{self, MAX_EXTENT, Stride, Strided},
};

/// The driver's limit on the y extent of a grid.
const MAX_BATCH: usize = 65_535;

/// Steps of a tensor of states in elements; what is left of a row is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateStride {
    /// From a state to the next.
    pub state: i64,
    /// Within a state.
    pub within: Stride,
}

/// Steps of every tensor; `None`: without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// Of `o`. Steps from token to token do not count with [`Shape::ragged`].
    pub o: Option<StateStride>,
    /// Of `lse`, likewise.
    pub lse: Option<StateStride>,
    /// Of `out`.
    pub out: Option<Stride>,
    /// Of `lse_out`.
    pub lse_out: Option<Stride>,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// States of each token; with [`Shape::ragged`] of all tokens together. May be 0.
    pub states: usize,
    /// Whether each token has its own number of states: `o` is then `[states, heads, value_dim]`, `lse` is `[states, heads]`, and
    /// `starts` says which belong to whom. Only with one row of the batch.
    pub ragged: bool,
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens of a row that are merged.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub value_dim: usize,
    /// Tokens of a row of `out` and `lse_out`, of which tokens `first_token` to `first_token + tokens` are merged: with running states, those
    /// that a block of keys says nothing about are left alone.
    pub out_tokens: usize,
    /// See [`Shape::out_tokens`].
    pub first_token: usize,
    /// Steps.
    pub strides: Strides,
}

impl Shape {
    /// `states` dense states `[states, batch, tokens, heads, value_dim]`, all of whose tokens are merged.
    pub fn dense(states: usize, batch: usize, tokens: usize, heads: usize, value_dim: usize) -> Self {
        let strides = Strides::default();
        let (ragged, out_tokens, first_token) = (false, tokens, 0);
        Self { states, ragged, batch, tokens, heads, value_dim, out_tokens, first_token, strides }
    }

    /// States of any number for each token, one after the other: `[states, heads, value_dim]`.
    pub fn ragged(states: usize, tokens: usize, heads: usize, value_dim: usize) -> Self {
        Self { ragged: true, ..Self::dense(states, 1, tokens, heads, value_dim) }
    }

    /// Extents within the limits of a launch.
    pub(super) fn check(&self) -> Result<()> {
        strided::range(OP, "states", self.states, 0, MAX_EXTENT)?;
        strided::range(OP, "batch", self.batch, 0, if self.ragged { 1 } else { MAX_BATCH })?;
        strided::range(OP, "tokens", self.tokens, 0, MAX_EXTENT)?;
        strided::range(OP, "heads", self.heads, 0, MAX_EXTENT)?;
        strided::range(OP, "tokens heads", self.tokens.saturating_mul(self.heads), 0, MAX_EXTENT)?;
        strided::range(OP, "value_dim", self.value_dim, 1, MAX_EXTENT)?;
        strided::range(OP, "out_tokens", self.out_tokens, self.tokens, MAX_EXTENT)?;
        strided::range(OP, "first_token", self.first_token, 0, self.out_tokens - self.tokens)
    }

    fn states_of(&self, arg: &'static str, stride: Option<StateStride>, width: usize, size: usize) -> Result<States> {
        let Shape { states, batch, tokens, heads, .. } = *self;
        let tokens = if self.ragged { 1 } else { tokens };
        let within = Stride::dense(tokens, heads, width);
        let all = within.batch.saturating_mul(i64::try_from(batch).unwrap_or(i64::MAX));
        let StateStride { state, within } = stride.unwrap_or(StateStride { state: all, within });
        let Stride { batch: b, token: t, head: h } = within;
        let tensor = Strided::new([batch, tokens, heads], [b, t, h], width, size);
        tensor.readable(OP, arg)?;
        let states = States { states, stride: state, within: tensor };
        // All of a state as one row, for the limits of the outermost step.
        let span = usize::try_from(tensor.span()).unwrap_or(usize::MAX);
        Strided::new([1, 1, states.states], [0, 0, state], span, size).readable(OP, arg)?;
        Ok(states)
    }

    pub(super) fn o(&self, dtype: DType) -> Result<States> {
        self.states_of("o", self.strides.o, self.value_dim, dtype.size())
    }

    pub(super) fn lse(&self) -> Result<States> {
        self.states_of("lse", self.strides.lse, 1, 4)
    }

    /// All of an output, and how many of its elements lie before the first that is merged.
    fn output(&self, arg: &'static str, stride: Option<Stride>, width: usize, size: usize) -> Result<Output> {
        let Shape { batch, tokens, heads, out_tokens, first_token, .. } = *self;
        let Stride { batch: b, token: t, head: h } = stride.unwrap_or(Stride::dense(out_tokens, heads, width));
        let of = |tokens| Strided::new([batch, tokens, heads], [b, t, h], width, size);
        of(out_tokens).writable(OP, arg)?;
        let before = if first_token == 0 { 0 } else { first_token as u64 * t.unsigned_abs() };
        Ok(Output { all: of(out_tokens), merged: of(tokens), before })
    }

    pub(super) fn out(&self, dtype: DType) -> Result<Output> {
        self.output("out", self.strides.out, self.value_dim, dtype.size())
    }

    pub(super) fn lse_out(&self) -> Result<Output> {
        self.output("lse_out", self.strides.lse_out, 1, 4)
    }
}

/// A tensor with one dimension more than [`Strided`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct States {
    pub states: usize,
    pub stride: i64,
    pub within: Strided,
}

impl States {
    /// Elements that belong to it.
    pub fn elements(&self) -> u64 {
        self.within.elements().saturating_mul(self.states as u64)
    }

    /// From its first element to its last, as one row.
    pub fn span(&self) -> Strided {
        let inner = self.within.span();
        let span = if self.elements() == 0 { 0 } else { (self.states as u64 - 1) * self.stride.unsigned_abs() + inner };
        Strided::dense([1; 3], usize::try_from(span).unwrap_or(usize::MAX), self.within.size as usize)
    }

    /// Whether accesses of `elements` elements may reach every row at this address.
    pub fn fits(&self, address: u64, elements: usize) -> bool {
        fits(address, &self.within, elements) && (self.states <= 1 || self.stride % elements as i64 == 0)
    }
}

/// Rows that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    /// All rows of the tensor.
    pub all: Strided,
    /// Those that are merged.
    pub merged: Strided,
    /// Elements before the first that is merged.
    pub before: u64,
}

/// Whether accesses of `elements` elements may reach every row at this address.
pub(super) fn fits(address: u64, tensor: &Strided, elements: usize) -> bool {
    let bytes = elements as u64 * tensor.size;
    address.is_multiple_of(bytes) && tensor.steps_by(elements) && tensor.width.is_multiple_of(elements)
}

/// Element types and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `o`.
    pub dtype: DType,
    /// Of `out`: the same, or either is `f32`.
    pub out: DType,
    /// Whether what `out` and `lse_out` hold is one more state. `out` is then `f32`: rounded to 16 bits after every block of keys, a
    /// running average loses five times as much in 64 blocks as in one.
    pub accumulate: bool,
}

impl Options {
    /// From and to one type.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, out: dtype, accumulate: false }
    }

    /// Into running states.
    pub fn accumulate(dtype: DType) -> Self {
        Self { dtype, out: DType::F32, accumulate: true }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.accumulate && self.out != DType::F32 {
            return Err(Error::Dtype { op: OP, arg: "out", want: DType::F32, got: self.out });
        }
        if self.dtype != self.out && self.dtype != DType::F32 && self.out != DType::F32 {
            return Err(Error::Dtype { op: OP, arg: "out", want: self.dtype, got: self.out });
        }
        Ok(())
    }
}
