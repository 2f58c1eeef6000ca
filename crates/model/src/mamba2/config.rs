//! Sizes of a Mamba-2 model.

use crate::checkpoint::Checkpoint;
use lookback_device::{Error, Result, WeightsFault};

const OP: &str = "mamba2";

/// Sizes and constants. Defaults are those of the published models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the embedding, padding included.
    pub vocabulary: usize,
    /// Width of the residual, `d_model`.
    pub width: usize,
    /// Layers, `n_layer`.
    pub layers: usize,
    /// Rows of a head's state, `d_state`.
    pub state: usize,
    /// Taps of the convolution, `d_conv`: 2 to 4.
    pub taps: usize,
    /// Heads: `expand d_model / headdim`.
    pub heads: usize,
    /// Channels of a head, `headdim`.
    pub head_dim: usize,
    /// Groups of heads that share B and C, and over which the gated norm takes its means, `ngroups`.
    pub groups: usize,
    /// Bounds of dt.
    pub dt_limit: (f32, f32),
    /// Added to mean squares.
    pub eps: f32,
}

impl Config {
    /// The published choices for these sizes: states of 128, 4 taps, expansion 2, heads of 64, one group, dt unbounded, eps 1e-5.
    pub fn new(vocabulary: usize, width: usize, layers: usize) -> Self {
        Self {
            vocabulary,
            width,
            layers,
            state: 128,
            taps: 4,
            heads: 2 * width / 64,
            head_dim: 64,
            groups: 1,
            dt_limit: (0.0, f32::INFINITY),
            eps: 1e-5,
        }
    }

    /// Sizes as the shapes of a checkpoint's tensors say them. What they do not say is the number of groups; dt is unbounded and eps
    /// 1e-5, as published.
    ///
    /// # Errors
    /// [`Error::Weights`] ← a tensor that says a size is missing, or contradicts the others.
    pub fn of(file: &Checkpoint, groups: usize) -> Result<Self> {
        let [vocabulary, width] = file.extents("backbone.embedding.weight")?;
        let first = "backbone.layers.0.mixer";
        let [heads] = file.extents(&format!("{first}.A_log"))?;
        let out_proj = format!("{first}.out_proj.weight");
        let [_, inner] = file.extents(&out_proj)?;
        let conv = format!("{first}.conv1d.weight");
        let [channels, _, taps] = file.extents(&conv)?;
        let fault = |tensor: &str, problem: String| {
            file.error(Some(tensor), WeightsFault::Config { key: "shape".into(), problem })
        };
        if heads == 0 || inner % heads != 0 {
            return Err(fault(
                &out_proj,
                format!("must have a multiple of {heads} columns, one part a head, got {inner}"),
            ));
        }
        let shared = channels.saturating_sub(inner);
        if groups == 0 || shared % (2 * groups) != 0 || shared == 0 {
            let want =
                format!("must have {inner} rows and a multiple of {} for B and C of {groups} groups", 2 * groups);
            return Err(fault(&conv, format!("{want}, got {channels}")));
        }
        let layers = (0..).take_while(|n| file.contains(&format!("backbone.layers.{n}.norm.weight"))).count();
        let sizes = Self {
            state: shared / (2 * groups),
            taps,
            heads,
            head_dim: inner / heads,
            groups,
            ..Self::new(vocabulary, width, layers)
        };
        Ok(sizes)
    }

    /// Channels of all heads, `d_inner`.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels that the convolution mixes: x, B and C.
    pub fn mixed(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Rows of the input projection: z, x, B, C and dt.
    pub fn projected(&self) -> usize {
        self.inner() + self.mixed() + self.heads
    }

    /// # Errors
    /// [`Error::Shape`] ← sizes that contradict each other, or are 0.
    pub(super) fn check(&self) -> Result<()> {
        let shape =
            |arg, want: &str, got: usize| Error::Shape { op: OP, arg, want: want.into(), got: vec![got as u64] };
        for (arg, size) in [
            ("vocabulary", self.vocabulary),
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
