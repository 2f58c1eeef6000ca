//! What a decode step computes, apart from its sizes.

use crate::{DType, Element, Shape};

/// Switches and numbers of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Type of `q`, of a cache of [`CacheType::Same`] and of an output of [`Output::Same`]: f16 or bf16.
    pub dtype: DType,
    /// Type of the cache.
    pub cache: CacheType,
    /// Type of `o`.
    pub output: Output,
    /// Factor of every product, `1 / sqrt(D)` for most models.
    pub scale: f32,
    /// Logits become `softcap * tanh(logit / softcap)`; from [`MIN_SOFTCAP`](crate::MIN_SOFTCAP) to [`MAX_SOFTCAP`](crate::MAX_SOFTCAP).
    pub softcap: Option<f32>,
    /// Keys before its own that a query sees; all of them without. A sliding window of `w` keys is `left = w - 1`.
    pub left: Option<u32>,
    /// First keys of a request that every query sees although its window has passed them.
    pub sink_tokens: u32,
    /// Entries that the list of a key head has room for: with it, heads read only the keys that their lists name.
    pub list: Option<usize>,
    /// Columns of the logits of a query, when they are wanted: one for each key of a request, or for each entry of a list. A request
    /// with more keys is cut, as one with more than its cache holds.
    pub logits: Option<usize>,
    /// What is chosen by hand instead of by the plan.
    pub tuning: Tuning,
}

/// Type of the outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// That of `q`.
    #[default]
    Same,
    /// f32, for states that will be merged with those of other keys.
    F32,
}

impl Output {
    /// The type of `o`.
    pub fn dtype(self, queries: DType) -> DType {
        if self == Output::Same { queries } else { DType::F32 }
    }
}

/// Type of keys and values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheType {
    /// That of `q`.
    Same,
    /// 8 bits: a sign, 4 of exponent, 3 of fraction, times a scale.
    E4m3(Scales),
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// The whole cache: one number each for keys and values.
    Tensor,
    /// A head: `[Hk]`.
    Head,
    /// A token of a head: `[pages, places, Hk]`.
    Token,
}

/// How the work is cut, where the plan's own choice is not wanted. Results differ by rounding only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tuning {
    /// Blocks of a launch at most; else as many as the device holds at once.
    pub slots: Option<u32>,
    /// Tiles of 64 keys that a block has at least; else 2.
    pub min_tiles: Option<u32>,
    /// Query rows of a tile, 16 or 32.
    pub rows: Option<u32>,
}

impl Options {
    /// Elements `T`, a cache of the same, the scale `1 / sqrt(D)`, every key.
    pub fn new<T: Element>(shape: &Shape) -> Self {
        Self {
            dtype: T::DTYPE,
            cache: CacheType::Same,
            output: Output::Same,
            scale: 1.0 / (shape.head_dim.max(1) as f32).sqrt(),
            softcap: None,
            left: None,
            sink_tokens: 0,
            list: None,
            logits: None,
            tuning: Tuning::default(),
        }
    }
}
