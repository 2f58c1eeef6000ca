//! What is computed.

use crate::{DType, Element, Shape};

/// Which keys a query sees. Query `i` of a sequence of `m` queries and `n` keys stands at position `p = i + offset` among its keys;
/// [`Options::offset`] is `n - m` unless it is given, so that the last query stands on the last key.
///
/// Whatever the mask, a bitmap may hide keys from all rows, and a tile list may leave out blocks: see [`Inputs`](crate::Inputs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mask {
    /// All keys.
    #[default]
    Full,
    /// Keys `j <= p`.
    Causal,
    /// Keys `j > p`: what comes after, without itself.
    AntiCausal,
    /// Keys `j <= p`, and the first `prefix_len[n]` of the sequence whatever `p` is.
    Prefix,
    /// Keys `p - left <= j <= p + right`, and the first `sink_tokens` of the sequence as far as they come before those.
    Window {
        /// How far back; all where `None`.
        left: Option<u32>,
        /// How far ahead; all where `None`.
        right: Option<u32>,
        /// Keys at the start that every row sees.
        sink_tokens: u32,
    },
    /// What two half-open intervals a row say, `[a_lo, a_hi)` and `[b_lo, b_hi)` of the keys of its sequence, with `a` before `b`;
    /// numbers outside of the sequence are clipped.
    Intervals,
}

/// Farther than any key; kernels add it to positions.
const FAR: i32 = 1 << 30;

/// A mask as kernels take it: row `p` sees `[max(0, p - left), min(n, p + right + 1))`, and `[0, first)` as far as it comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    pub left: i32,
    pub right: i32,
    pub first: u32,
}

impl Mask {
    /// The numbers of the mask; prefixes and intervals come besides.
    pub(crate) fn reach(self) -> Reach {
        let all = Reach { left: FAR, right: FAR, first: 0 };
        let far = |far: Option<u32>| far.map_or(FAR, |far| far.min(FAR as u32) as i32);
        match self {
            Mask::Full | Mask::Intervals => all,
            Mask::Causal | Mask::Prefix => Reach { right: 0, ..all },
            Mask::AntiCausal => Reach { left: -1, ..all },
            Mask::Window { left, right, sink_tokens } => {
                Reach { left: far(left), right: far(right), first: sink_tokens.min(FAR as u32) }
            }
        }
    }
}

/// What happens to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Output {
    /// Written in the type of the inputs.
    #[default]
    Same,
    /// Written as f32.
    F32,
    /// `o` in f32 and `lse` hold the state of other keys, and get that of both: see [states](crate#states).
    Merge,
}

impl Output {
    /// The type of `o`.
    pub fn dtype(self, inputs: DType) -> DType {
        if self == Output::Same { inputs } else { DType::F32 }
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Type of `q`, `k` and `v`: f16 or bf16.
    pub dtype: DType,
    /// Factor of `q . k`.
    pub scale: f32,
    /// With it a logit is `cap tanh(scale q . k / cap)`; from [`MIN_SOFTCAP`](crate::MIN_SOFTCAP) to [`MAX_SOFTCAP`](crate::MAX_SOFTCAP).
    pub softcap: Option<f32>,
    /// Which keys are seen.
    pub mask: Mask,
    /// Position of a sequence's first query among its keys; `n - m` without.
    pub offset: Option<i32>,
    /// What happens to the output.
    pub output: Output,
}

impl Options {
    /// All keys, scale `1 / sqrt(D)`, output in the type of the inputs.
    pub fn new<T: Element>(shape: &Shape) -> Self {
        Self {
            dtype: T::DTYPE,
            scale: 1.0 / (shape.head_dim.max(1) as f32).sqrt(),
            softcap: None,
            mask: Mask::Full,
            offset: None,
            output: Output::Same,
        }
    }
}
