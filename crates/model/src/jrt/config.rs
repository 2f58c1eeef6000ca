//! Sizes and layers of a Just Read Twice or Based model.

use lookback_device::{Error, Result};
use lookback_nn::taylor_map::MAX_DIM;

const OP: &str = "jrt";
/// A ring of keys and values for each row and layer is kept.
const MAX_WINDOW: i64 = 1 << 24;

/// What the mixer of a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixing {
    /// Causal linear attention over Taylor features (Based).
    Attention,
    /// The same, from a state that the first tokens of the prompt were encoded into: every token sees all of them.
    PrefixAttention,
    /// A short convolution between gates.
    Convolution,
    /// Softmax attention to the tokens in a window, for 16-bit activations.
    SlidingWindow,
}

/// Sizes and constants. Defaults are those of the published models.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual.
    pub width: usize,
    /// Heads of attention layers.
    pub heads: usize,
    /// Entries of a query before its features, 1 to 16.
    pub feature_dim: usize,
    /// Tokens that prefix attention encodes, at most.
    pub encoded: usize,
    /// Channels that a convolution layer mixes.
    pub channels: usize,
    /// Taps of the convolution: 2 to 4.
    pub taps: usize,
    /// Tokens before itself that a token of a sliding window layer sees. Published settings name twice as many.
    pub window: usize,
    /// Entries of a head of such a layer that its position turns: the first so many, 0 to all of them.
    pub rotary_dim: usize,
    /// Base of the angles.
    pub rotary_base: f64,
    /// Entries of the gated unit.
    pub inner: usize,
    /// The mixer of every layer, first to last.
    pub layers: Vec<Mixing>,
    /// Added to mean squares by the norms.
    pub eps: f32,
}

impl Config {
    /// The published choices for these sizes: features of 16 entries, 1024 encoded tokens, convolutions of 3 taps over twice the width,
    /// windows of 128 tokens before the own with whole heads turned by base 10000, a unit of twice the width, eps 1e-5.
    pub fn new(vocabulary: usize, width: usize, heads: usize, layers: Vec<Mixing>) -> Self {
        Self {
            vocabulary,
            width,
            heads,
            feature_dim: 16,
            encoded: 1024,
            channels: 2 * width,
            taps: 3,
            window: 128,
            rotary_dim: width / heads.max(1),
            rotary_base: 1e4,
            inner: 2 * width,
            layers,
            eps: 1e-5,
        }
    }

    /// The layers of the published models of 26 and 36 layers, or any other number: prefix attention at 1, 6, 11, 16, 21, 27 and 33,
    /// a sliding window after each, convolutions elsewhere.
    pub fn published_layers(layers: usize) -> Vec<Mixing> {
        let attention = [1, 6, 11, 16, 21, 27, 33];
        let mixing = |layer: usize| match layer {
            _ if attention.contains(&layer) => Mixing::PrefixAttention,
            _ if layer > 0 && attention.contains(&(layer - 1)) => Mixing::SlidingWindow,
            _ => Mixing::Convolution,
        };
        (0..layers).map(mixing).collect()
    }

    /// Channels of a head's value.
    pub fn value_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// # Errors
    /// [`Error::Shape`] or [`Error::Range`] ← a size that does not fit.
    pub(super) fn check(&self) -> Result<()> {
        let shape =
            |arg, want: &str, got: usize| Error::Shape { op: OP, arg, want: want.into(), got: vec![got as u64] };
        for (arg, size) in [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("encoded", self.encoded),
            ("channels", self.channels),
            ("inner", self.inner),
        ] {
            if size == 0 {
                return Err(shape(arg, "at least 1", size));
            }
        }
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Err(shape("heads", &format!("a divisor of {} channels", self.width), self.heads));
        }
        if !(1..=MAX_DIM).contains(&self.feature_dim) {
            let (hi, got) = (MAX_DIM as i64, self.feature_dim as i64);
            return Err(Error::Range { op: OP, arg: "feature_dim", at: None, lo: 1, hi, got });
        }
        let (window, rotary_dim) = (self.window as i64, self.rotary_dim as i64);
        for (arg, hi, got) in [("window", MAX_WINDOW, window), ("rotary_dim", self.value_dim() as i64, rotary_dim)] {
            if !(0..=hi).contains(&got) {
                return Err(Error::Range { op: OP, arg, at: None, lo: 0, hi, got });
            }
        }
        Ok(())
    }
}
