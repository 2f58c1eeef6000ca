//! Schedules as data: what every rank computes, sends, receives and adds up, step by step, before any device is touched.
//!
//! A [`Schedule`] is one rank's list of [`Step`]s. Within a step
//! 1. its transfers begin; what is sent was held before the step began;
//! 2. its blocks are computed beside them;
//! 3. transfers end, and what came is folded in: a partial result of this rank's own queries into the running one, a gradient into the
//!    running sum of its owner's.
//!
//! A transfer may take several steps ([`Transfer::steps`]); then it ends with the last of them. Every send of one rank is a receive of
//! another, in the same step and of the same [`Parcel`]: nothing about a message needs to be said on the wire but what to check.
//!
//! | kind | moves | steps | sources |
//! |---|---|---|---|
//! | [`Kind::Ring`] | keys and values, to the next rank | P | Liu et al., Ring Attention |
//! | [`Kind::Bidirectional`] | one half of the key heads each way | P | the same bytes on two links |
//! | [`Kind::TwoLevel`] | keys and values, around nodes of ranks and from node to node | P | Gu et al., LoongTrain |
//! | [`Kind::TokenRing`] | queries to the rank before, partial results straight home | P + 1 | Wang et al., TokenRing |
//! | [`Kind::AllGather`] | keys and values of some heads to all, while those before are computed | groups of heads + 1 | Llama 3, section 3.3.2 |
//! | [`Kind::Ulysses`] | everything, so that each rank has all tokens of its heads | 3 | Jacobs et al., DeepSpeed Ulysses |

mod circulate;
mod exchange;
mod needs;
mod token_ring;

pub use needs::Needs;

use crate::{Error, Layout, Result};
use std::ops::Range;

/// Which schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Keys and values go around; every rank computes its own queries against those it has.
    Ring,
    /// As `Ring`, the lower half of the key heads forward and the upper half backward. At least two key heads.
    Bidirectional,
    /// Rings of `node` neighbouring ranks, and a ring of nodes: what a rank passes to the next node travels while the node's own ring
    /// turns once. `node` divides the ranks.
    TwoLevel {
        /// Ranks of a node.
        node: usize,
    },
    /// Keys and values stay. Queries go to the rank before, results of a block straight to the owner of its queries: wants a link
    /// between every two ranks.
    TokenRing,
    /// Keys and values of `groups` sets of heads, one after the other, to every rank. One softmax a row: the most exact.
    AllGather {
        /// Sets of key heads, at most as many as there are key heads.
        groups: usize,
    },
    /// Every rank gets all tokens of its share of the heads, and returns their results. The ranks divide the query heads.
    Ulysses,
}

/// Which way through the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Results and their log-sum-exp.
    Forward,
    /// Gradients, from the final log-sum-exp.
    Backward,
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// Rows of `k` and `v`.
    Keys,
    /// Rows of `q`; in a backward pass of `do`, `lse` and `delta` too.
    Queries,
    /// Rows of a block's `o` and `lse`.
    Partial,
    /// Rows of `dq`.
    QueryGradients,
    /// Rows of `dk` and `dv`.
    KeyGradients,
    /// States of a recurrence after the owner's tokens, see [`state`](crate::state). Its tokens are counted in sequences: one state each.
    State,
    /// Adjoints of the states before the owner's tokens, likewise.
    StateGradient,
}

/// Some tokens and heads of one rank's tensors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parcel {
    /// Which tensors.
    pub item: Item,
    /// Whose.
    pub owner: usize,
    /// Which of the owner's tokens, by their index there.
    pub tokens: Range<usize>,
    /// Which query heads; of keys those that they share, see [`Job::key_heads`].
    pub heads: Range<usize>,
}

impl Parcel {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() || self.heads.is_empty()
    }
}

/// A parcel on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The rank at the other end.
    pub peer: usize,
    /// What.
    pub parcel: Parcel,
    /// Steps that it may take, at least 1.
    pub steps: usize,
}

/// Queries against keys that are both on the rank. The result of a forward pass is a [`Item::Partial`] of the queries' owner, of a
/// backward pass gradients of both owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Rows of queries, of one rank or, gathered, of several.
    pub queries: Vec<Parcel>,
    /// Rows of keys and values, likewise.
    pub keys: Vec<Parcel>,
}

/// What one rank does in one step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Computed.
    pub compute: Vec<Block>,
    /// Sent.
    pub send: Vec<Transfer>,
    /// Received.
    pub receive: Vec<Transfer>,
}

/// What one rank does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The rank.
    pub rank: usize,
    /// In order.
    pub steps: Vec<Step>,
}

/// What a schedule is made for.
#[derive(Debug, Clone)]
pub struct Job {
    /// How tokens are dealt.
    pub layout: Layout,
    /// Query heads.
    pub heads: usize,
    /// Key heads; divide the query heads, and `heads / key_heads` neighbouring query heads share one.
    pub key_heads: usize,
    /// Which ranks' queries see which ranks' keys.
    pub needs: Needs,
}

impl Job {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        (self.heads / self.key_heads.max(1)).max(1)
    }

    /// Key heads that some query heads share.
    pub fn key_heads(&self, heads: &Range<usize>) -> Range<usize> {
        heads.start / self.group()..heads.end.div_ceil(self.group())
    }

    fn ranks(&self) -> usize {
        self.layout.ranks
    }

    fn all_heads(&self) -> Range<usize> {
        0..self.heads
    }

    fn parcel(&self, item: Item, owner: usize, tokens: Range<usize>, heads: Range<usize>) -> Parcel {
        Parcel { item, owner, tokens, heads }
    }

    /// The block of all queries of one rank that see keys of another, or nothing.
    fn block(&self, queries: usize, keys: usize, heads: &Range<usize>) -> Option<Block> {
        let (rows, columns) = self.needs.between(queries, keys)?;
        Some(Block {
            queries: vec![self.parcel(Item::Queries, queries, rows, heads.clone())],
            keys: vec![self.parcel(Item::Keys, keys, columns, heads.clone())],
        })
    }
}

const OP: &str = "ring schedule";

/// What `rank` does.
///
/// # Errors
/// [`Error::Range`] ← no ranks, or a rank that is not one; [`Error::Shape`] ← heads that do not divide, for the job or the kind.
pub fn schedule(kind: Kind, pass: Pass, job: &Job, rank: usize) -> Result<Schedule> {
    let divides = |arg, n: usize, of: usize, what: &str| match n > 0 && of.is_multiple_of(n) {
        true => Ok(()),
        false => Err(Error::Shape { op: OP, arg, want: format!("a divisor of the {of} {what}"), got: vec![n as u64] }),
    };
    let range = |arg, got: usize, lo: usize, hi: usize| match (lo..=hi).contains(&got) {
        true => Ok(()),
        false => Err(Error::Range { op: OP, arg, at: None, lo: lo as i64, hi: hi as i64, got: got as i64 }),
    };
    let ranks = job.ranks();
    range("ranks", ranks, 1, 1 << 16)?;
    range("rank", rank, 0, ranks - 1)?;
    divides("key_heads", job.key_heads, job.heads, "query heads")?;
    let steps = match kind {
        Kind::Ring => circulate::ring(job, pass, rank),
        Kind::Bidirectional => {
            range("key_heads", job.key_heads, 2, usize::MAX >> 1)?;
            circulate::bidirectional(job, pass, rank)
        }
        Kind::TwoLevel { node } => {
            divides("node", node, ranks, "ranks")?;
            circulate::two_level(job, pass, rank, node)
        }
        Kind::TokenRing => token_ring::token_ring(job, pass, rank),
        Kind::AllGather { groups } => {
            range("groups", groups, 1, job.key_heads)?;
            exchange::all_gather(job, pass, rank, groups)
        }
        Kind::Ulysses => {
            divides("ranks", ranks, job.heads, "query heads")?;
            exchange::ulysses(job, pass, rank)
        }
    };
    Ok(Schedule { rank, steps })
}
