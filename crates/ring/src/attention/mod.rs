//! Attention of a dealt sequence: every rank has its tokens' `q`, `k` and `v`, and gets its tokens' `o` and `lse`.
//!
//! A [`Plan`] turns one rank's [schedule](mod@crate::schedule) into launches and transfers, once. Blocks of own queries are merged into a
//! running result in f32 as they are computed; results of other ranks' queries go home in the element type with an f32 log-sum-exp.
//!
//! A [`BackwardPlan`] does the same for gradients. It starts from the final `o` and `lse`, so that blocks are independent of each other and
//! their gradients add up, in f32, wherever they are computed.

mod backward;
mod compile;
mod forward;
mod op;
mod program;
mod view;

pub use backward::{BackwardInputs, BackwardOptions, BackwardPlan, Gradients, RawBackward};
pub use forward::{Inputs, Outputs, Plan, Raw};
pub use program::{Part, Workspace};

use crate::{Error, Result, schedule::Kind};
use lookback_attention::MAX_DIM;
use lookback_device::{
    DType,
    strided::{self, Placed},
};

/// Rows of equal length, each of which is sent by itself.
const MAX_BATCH: usize = 65_535;
/// Heads of a grid.
const MAX_HEADS: usize = 65_535;
/// Elements of a tensor: their bytes are counted in 64 bits with much to spare.
const MAX_ELEMENTS: usize = 1 << 48;

/// Sizes of every rank's tensors; their tokens are the [`Layout`](crate::partition::Layout)'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of equal length, `B`.
    pub batch: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key heads, `Hk`; divide the query heads.
    pub key_heads: usize,
    /// Entries of a query or key, `D`: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Entries of a value, `Dv`, likewise.
    pub value_dim: usize,
}

impl Shape {
    /// Extents whose products can be counted, before any is taken.
    fn check(&self, op: &'static str, tokens: usize) -> Result<()> {
        let Self { batch, heads, key_heads, head_dim, value_dim } = *self;
        strided::range(op, "batch", batch, 0, MAX_BATCH)?;
        for (arg, heads) in [("heads", heads), ("key_heads", key_heads)] {
            // Without any, schedules have nothing to deal out.
            strided::range(op, arg, heads, 1, MAX_HEADS)?;
        }
        for (arg, dim) in [("head_dim", head_dim), ("value_dim", value_dim)] {
            strided::range(op, arg, dim, 1, MAX_DIM)?;
        }
        let row = heads.max(key_heads).saturating_mul(head_dim.max(value_dim)).saturating_mul(batch);
        strided::range(op, "tokens", row.saturating_mul(tokens), 0, MAX_ELEMENTS)
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `q`, `k` and `v`: f16 or bf16.
    pub dtype: DType,
    /// Of `o`: that type, or f32.
    pub output: DType,
    /// Factor of `q . k`.
    pub scale: f32,
    /// With it a logit is `cap tanh(scale q . k / cap)`.
    pub softcap: Option<f32>,
    /// Which schedule.
    pub kind: Kind,
}

impl Options {
    /// A ring, scale `1 / sqrt(D)`, output in the type of the inputs.
    pub fn new(shape: &Shape, dtype: DType) -> Self {
        let scale = 1.0 / (shape.head_dim.max(1) as f32).sqrt();
        Self { dtype, output: dtype, scale, softcap: None, kind: Kind::Ring }
    }
}

/// A tensor of rows that kernels move 16 bytes at a time. It is refused before the first launch: a block that found it later would end
/// the job of all ranks.
fn in_pieces(op: &'static str, (arg, addr, tensor): Placed<'_>) -> Result<()> {
    if tensor.elements() > 0 && !addr.is_multiple_of(16) {
        return Err(Error::Align { op, arg, need: 16, addr });
    }
    Ok(())
}
