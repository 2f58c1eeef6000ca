//! Sizes of a Hydra encoder.

use lookback_device::{Error, Result};

const OP: &str = "hydra";

/// Sizes and constants. Defaults are those of the published BERT-sized models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the word embedding.
    pub vocabulary: usize,
    /// Rows of the token type embedding.
    pub token_types: usize,
    /// Width of the residual, `d_model`.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Rows of a head's state, `d_state`.
    pub state: usize,
    /// Taps of the centred convolution, `d_conv`: 2, 3, 4, 5 or 7.
    pub taps: usize,
    /// Heads: `expand d_model / headdim`.
    pub heads: usize,
    /// Channels of a head, `headdim`.
    pub head_dim: usize,
    /// Groups of heads that share B and C, `ngroups`.
    pub groups: usize,
    /// Added to mean squares and variances.
    pub eps: f32,
}

impl Config {
    /// The published choices for these sizes: two token types, states of 64, 7 taps, expansion 2, heads of 64, one group, eps 1e-5.
    pub fn new(vocabulary: usize, width: usize, layers: usize) -> Self {
        Self {
            vocabulary,
            token_types: 2,
            width,
            layers,
            state: 64,
            taps: 7,
            heads: 2 * width / 64,
            head_dim: 64,
            groups: 1,
            eps: 1e-5,
        }
    }

    /// Channels of all heads, `d_inner`.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels that the convolution mixes: x, and B and C of both directions.
    pub fn mixed(&self) -> usize {
        self.inner() + 4 * self.groups * self.state
    }

    /// Rows of the input projection: z, what is mixed, and dt of both directions.
    pub fn projected(&self) -> usize {
        self.inner() + self.mixed() + 2 * self.heads
    }

    /// # Errors
    /// [`Error::Shape`] ← sizes that contradict each other, or are 0.
    pub(super) fn check(&self) -> Result<()> {
        let shape =
            |arg, want: &str, got: usize| Error::Shape { op: OP, arg, want: want.into(), got: vec![got as u64] };
        for (arg, size) in [
            ("vocabulary", self.vocabulary),
            ("token_types", self.token_types),
            ("width", self.width),
            ("state", self.state),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
        ] {
            if size == 0 {
                return Err(shape(arg, "at least 1", size));
            }
        }
        if self.groups == 0 || !self.heads.is_multiple_of(self.groups) {
            return Err(shape("groups", &format!("a divisor of {} heads", self.heads), self.groups));
        }
        Ok(())
    }
}
