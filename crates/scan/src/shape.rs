//! What a scan runs over and how.

use lookback_device::{DType, Element};

/// Steps of a `[B,T,D]` tensor in elements; channels are adjacent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// From a row of the batch to the next.
    pub batch: i64,
    /// From a token to the next.
    pub token: i64,
}

/// Steps of every tensor. Those of tensors that the source or the pass does not have are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// Of `a`, `ln a`, `f` or `r`.
    pub a: Stride,
    /// Of `b` or `i`.
    pub b: Stride,
    /// Of `z` or `x`.
    pub x: Stride,
    /// Of `h`.
    pub h: Stride,
    /// Of `dh`.
    pub dh: Stride,
    /// Of the gradient of `a`.
    pub da: Stride,
    /// Of the gradient of `b`.
    pub db: Stride,
    /// Of the gradient of `x`.
    pub dx: Stride,
}

impl Strides {
    /// The same step for all.
    pub fn all(stride: Stride) -> Self {
        Self { a: stride, b: stride, x: stride, h: stride, dh: stride, da: stride, db: stride, dx: stride }
    }
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, `B`. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row, `T`; of all packed sequences together.
    pub seq_len: usize,
    /// Channels of a token, `D`.
    pub channels: usize,
    /// Packed sequences in the only row: `cu_seqlens` has one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Steps of the tensors.
    pub strides: Strides,
}

impl Shape {
    /// Rows of equal length, `[B,T,D]` without gaps.
    pub fn dense(batch: usize, seq_len: usize, channels: usize) -> Self {
        let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let stride = Stride { batch: clamp(seq_len.saturating_mul(channels)), token: clamp(channels) };
        Self { batch, seq_len, channels, packed: None, strides: Strides::all(stride) }
    }

    /// `sequences` of any lengths, one after the other in `[1,total,D]` without gaps.
    pub fn packed(sequences: usize, total: usize, channels: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, total, channels) }
    }

    /// Rows of the state tensors `[N,D]`.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }
}

/// What makes the decay `a` and the input `b` of every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Tensors `a`, `b`.
    Tensor,
    /// Tensors `ln a`, `b`.
    Log,
    /// One decay a channel, `[D]` f32, and a tensor `b`.
    Channel {
        /// The decays are natural logarithms.
        log: bool,
    },
    /// A tensor `b` alone, with `a = 1`.
    Cumsum,
    /// Tensors `f`, `i`, `z`: `a = σ(f)`, `b = σ(i) z`.
    GatedSsm {
        /// `b` times `√(1 - a² + 1e-6)`.
        normalize: bool,
    },
    /// Tensors `r`, `i`, `x` and `Λ` `[D]` f32: `ln a = -8 σ(r) softplus(Λ)`, `b = √(1 - a²) σ(i) x`.
    RgLru {
        /// `b = σ(i) x` where the state starts from nothing: at a cut, and at a sequence start without initial states. Without,
        /// the root of the unmasked decay stays.
        unit_at_reset: bool,
    },
}

impl Source {
    /// The name in kernel variants.
    pub(crate) fn variant(self) -> &'static str {
        match self {
            Source::Tensor => "tensor",
            Source::Log => "log",
            Source::Channel { .. } | Source::Cumsum => "channel",
            Source::GatedSsm { .. } => "gated_ssm",
            Source::RgLru { .. } => "rg_lru",
        }
    }

    /// Whether the gates are computed from three tensors.
    pub(crate) fn is_producer(self) -> bool {
        matches!(self, Source::GatedSsm { .. } | Source::RgLru { .. })
    }

    /// Whether a tensor `a` (or `ln a`, `f`, `r`) is read.
    pub(crate) fn has_a(self) -> bool {
        !matches!(self, Source::Channel { .. } | Source::Cumsum)
    }

    /// Whether an array over channels is read.
    pub(crate) fn has_channel(self) -> bool {
        matches!(self, Source::Channel { .. } | Source::RgLru { .. })
    }

    /// The switches as the kernels take them.
    pub(crate) fn mode(self) -> u32 {
        match self {
            Source::Channel { log: true } => 1,
            Source::GatedSsm { normalize: true } => 2,
            Source::RgLru { unit_at_reset: true } => 4,
            _ => 0,
        }
    }

    /// Names of the tensors `a`, `b`, `x` and of the array over channels, for messages.
    pub(crate) fn names(self) -> [&'static str; 4] {
        match self {
            Source::Tensor => ["a", "b", "x", "channel"],
            Source::Log => ["log_a", "b", "x", "channel"],
            Source::Channel { .. } | Source::Cumsum => ["a", "b", "x", "decay"],
            Source::GatedSsm { .. } => ["f", "i", "z", "channel"],
            Source::RgLru { .. } => ["r", "i", "x", "lambda"],
        }
    }

    /// The same for their gradients.
    pub(crate) fn gradient_names(self) -> [&'static str; 4] {
        match self {
            Source::Tensor => ["da", "db", "dx", "d_channel"],
            Source::Log => ["d_log_a", "db", "dx", "d_channel"],
            Source::Channel { .. } | Source::Cumsum => ["da", "db", "dx", "d_decay"],
            Source::GatedSsm { .. } => ["df", "di", "dz", "d_channel"],
            Source::RgLru { .. } => ["dr", "di", "dx", "d_lambda"],
        }
    }
}

/// Element type, source and switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of every `[B,T,D]` tensor. States and arrays over channels are `f32`.
    pub dtype: DType,
    /// What makes the gates.
    pub source: Source,
    /// Channels below run forward in time, the others in reverse.
    pub split: usize,
    /// Each tile waits for its neighbour alone, so that waiting, too, is the same on every run. The result is bitwise the same
    /// either way; without it the look-back is faster where few tiles run side by side.
    pub deterministic: bool,
}

impl Options {
    /// Every channel forward in time.
    pub fn new<T: Element>(source: Source, shape: &Shape) -> Self {
        Self { dtype: T::DTYPE, source, split: shape.channels, deterministic: false }
    }
}
