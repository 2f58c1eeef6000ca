//! What is computed, and how.

use crate::{DType, Element, Shape, time_reduce::TAYLOR_FEATURES};

/// What the state forgets at each token, as natural logarithms `g`.
///
/// A log-decay is at most 0. A positive one lets the state grow without bound; kernels do not look, and the chunked ones are
/// then no longer right: they rely on exponents that are not positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decay {
    /// Nothing: `g = 0`.
    None,
    /// One number a head for all tokens, `[H]` f32.
    Head,
    /// One number a head and token, `[B,T,H]` f32.
    Scalar,
    /// One number for every entry of a key, `[B,T,H,K]` f32.
    Vector,
}

/// When a token's query reads the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Read {
    /// After its own key and value were added.
    Inclusive,
    /// Before them; they are read apart, `q . (u * k) v` with the bonus `u` `[H,K]`, or not at all without one.
    ExclusiveBonus,
    /// After, and written one token later in the direction of the walk: the first token of a segment gets 0.
    Shifted,
}

/// Which tokens a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Itself and those before it.
    Causal,
    /// Itself and those after it.
    Reverse,
    /// All of its segment: the sum of both directions, itself counted once (not at all if `Shifted`). The reverse direction may
    /// have its own `q`, `k` and `g`. Unless `Shifted` it is read before the token's own decay and key, which the causal one has:
    /// between tokens `s < t` stand the decays of `s + 1..=t` on the way to `t`, and those of `s + 1..t` on the way to `s`.
    Bidirectional,
    /// Causal, from an initial state that an encoder made; the state must be given.
    PrefixState,
    /// The first `prefix_len[n]` tokens of each sequence see each other in both directions, later ones see all before them.
    /// Without decay.
    PrefixRead,
    /// Heads below the number are causal, the others reverse.
    Split(usize),
}

/// What of queries and keys the state remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Features {
    /// `q` and `k` as they are.
    #[default]
    Identity,
    /// `f(q)` and `f(k)`, with the features of [`Map::Taylor`](crate::time_reduce::Map::Taylor) and of `nn::taylor_map`, in their
    /// order: `f(x) = [1, y_a, y_a y_b c_ab for a <= b]` with `y = x K^(-1/4)`, 0 from `K` to 16, `c = 1 / sqrt 2` where `a = b` and
    /// else 1. There are [`TAYLOR_FEATURES`] of them, `f(x) . f(x') = 1 + s + s^2 / 2` with `s = x . x' / sqrt K`, which is above 0;
    /// the scale that goes with them is 1. (Arora et al., Simple linear attention language models balance the recall-throughput
    /// tradeoff, 2024: Based.)
    ///
    /// They are made on the chip, rounded to the element type, and never written. `key_dim` is that of `q` and `k`, 8 or 16; states
    /// and sums of keys have 153 keys. [`Path::Chain`] alone has them: 16-bit types, no decay or [`Decay::Head`] or
    /// [`Decay::Scalar`], not [`Mode::PrefixRead`] nor [`Read::ExclusiveBonus`], no step, no backward.
    Taylor,
}

impl Features {
    /// Keys of a state, for `K` entries of `q` and `k`.
    pub const fn width(self, key_dim: usize) -> usize {
        match self {
            Self::Identity => key_dim,
            Self::Taylor => TAYLOR_FEATURES,
        }
    }
}

/// Which kernels run. They compute the same within the accuracy of the element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// `Chain` where sequences, heads and tiles of values fill most of the device or are short, `Parallel` where they do not, and
    /// `Recurrent` for f32 and for what tensor cores cannot take: extents and strides of 16-bit types that are no multiples of 8,
    /// addresses that are none of 16 bytes.
    Auto,
    /// Token by token in f32 arithmetic: any type, any `key_dim` to 256.
    Recurrent,
    /// Chunks of tokens on tensor cores, one block for a sequence, a head and a tile of values: 16-bit types.
    Chain,
    /// As `Chain`, with sequences cut into segments that run at the same time; states of segments are in the workspace.
    Parallel,
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Type of `q`, `k`, `v` and `o`.
    pub dtype: DType,
    /// What of `q` and `k` goes into the state.
    pub features: Features,
    /// What the state forgets.
    pub decay: Decay,
    /// When it is read.
    pub read: Read,
    /// Which tokens are seen.
    pub mode: Mode,
    /// Factor of every read.
    pub scale: f32,
    /// Divide by `scale q . z + eps`, where `z` is the sum of keys that the state holds; the number is `eps`.
    pub normalize: Option<f32>,
    /// Which kernels.
    pub path: Path,
}

impl Options {
    /// Causal, inclusive, `q` and `k` as they are, no decay, no normaliser, scale `1 / sqrt(K)`.
    pub fn new<T: Element>(shape: &Shape) -> Self {
        Self {
            dtype: T::DTYPE,
            features: Features::Identity,
            decay: Decay::None,
            read: Read::Inclusive,
            mode: Mode::Causal,
            scale: 1.0 / (shape.key_dim.max(1) as f32).sqrt(),
            normalize: None,
            path: Path::Auto,
        }
    }
}
