//! Which tokens and documents a rank has, and between which ranks a state passes.

use crate::{Error, Layout, Partition, Result};
use lookback_device::strided;
use std::ops::Range;

/// How states get from rank to rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passing {
    /// A rank receives the state, walks its tokens from it, and sends the one that it ends with (LASP: Sun et al., Linear Attention
    /// Sequence Parallelism, 2024). One state a rank on the wire, and every rank waits for all before it.
    Serial,
    /// Every rank walks its tokens from zero and sends the state that it ends with, and how much of an earlier one would be left, to all
    /// later ranks; each adds up what comes, in the order of the ranks, and walks again from the sum (LASP-2: Sun et al., 2025). Ranks
    /// work at the same time, twice; results are those of one walk up to the rounding of the sum.
    AllGather,
    /// As `Serial`, by blocks of heads (of channels, in scans): a rank sends the states of a block while it walks the next, so that ranks
    /// work on different blocks at the same time.
    Pipelined {
        /// Blocks in each direction, at least 1 and at most as many as there are heads in it.
        blocks: usize,
    },
}

impl Passing {
    pub(super) fn blocks(self) -> usize {
        if let Self::Pipelined { blocks } = self { blocks } else { 1 }
    }
}

/// A whole sequence, or rows of equal length, on several ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    /// Ranks. Rank `r` of `P` has the positions from `floor(N r / P)` to `floor(N (r + 1) / P)`, as
    /// [`Partition::Contiguous`] says.
    pub ranks: usize,
    /// Starts of the documents of the only row, ascending from 0, and the number of tokens. Without, every row is one sequence.
    pub documents: Option<Vec<usize>>,
    /// How states get from rank to rank.
    pub passing: Passing,
}

/// A checked [`Deal`] as one rank sees it.
#[derive(Debug, Clone)]
pub(super) struct Dealt {
    pub layout: Layout,
    pub rank: usize,
    pub passing: Passing,
    batch: usize,
    documents: Option<Vec<usize>>,
}

impl Dealt {
    pub fn new(op: &'static str, deal: &Deal, batch: usize, tokens: usize, rank: usize) -> Result<Self> {
        strided::range(op, "ranks", deal.ranks, 1, 1 << 16)?;
        strided::range(op, "rank", rank, 0, deal.ranks - 1)?;
        strided::range(op, "tokens", tokens, 0, strided::MAX_EXTENT)?;
        if let Some(documents) = &deal.documents {
            strided::range(op, "batch", batch, 1, 1)?;
            let ends = (documents.first(), documents.last());
            if ends != (Some(&0), Some(&tokens)) || documents.len() < 2 || !documents.is_sorted() {
                let want = format!("ascending from 0 to the {tokens} tokens");
                let got = documents.iter().map(|start| *start as u64).collect();
                return Err(Error::Shape { op, arg: "documents", want, got });
            }
        }
        let layout = Layout { partition: Partition::Contiguous, tokens, ranks: deal.ranks };
        Ok(Self { layout, rank, passing: deal.passing, batch, documents: deal.documents.clone() })
    }

    pub fn tokens(&self) -> usize {
        self.layout.len(self.rank)
    }

    fn bound(&self, rank: usize) -> usize {
        self.layout.position(rank, 0)
    }

    /// Whether some sequence has tokens on both sides of the bound between `rank` and the next one.
    fn joined(&self, rank: usize) -> bool {
        let at = self.bound(rank + 1);
        rank + 1 < self.layout.ranks
            && self.documents.as_ref().is_none_or(|all| all.windows(2).any(|ends| ends[0] < at && at < ends[1]))
    }

    /// Documents of which this rank has tokens, or that go on across it where it has none.
    pub fn local(&self) -> Option<Vec<usize>> {
        let (low, high) = (self.bound(self.rank), self.bound(self.rank) + self.tokens());
        let is_here = |ends: &[usize]| ends[0] < ends[1] && ends[0] < high.max(low) && ends[1] > low;
        let documents = self.documents.as_ref()?;
        Some(documents.windows(2).enumerate().filter(|(_, ends)| is_here(ends)).map(|(n, _)| n).collect())
    }

    /// Rows of the rank's states, at least one.
    pub fn sequences(&self) -> usize {
        self.local().map_or(self.batch, |documents| documents.len().max(1))
    }

    /// Where the rank's documents begin among its tokens, and their number.
    pub fn starts(&self) -> Option<Vec<i32>> {
        let (low, tokens, all) = (self.bound(self.rank), self.tokens(), self.documents.as_ref()?);
        let begin = |n: usize| all[n].saturating_sub(low).min(tokens) as i32;
        let mut starts: Vec<i32> = self.local()?.into_iter().map(begin).collect();
        if starts.is_empty() {
            starts.push(0);
        }
        starts.push(tokens as i32);
        Some(starts)
    }

    /// Sequences whose states pass between two ranks.
    pub fn carried(&self) -> usize {
        if self.documents.is_some() { 1 } else { self.batch }
    }
}

/// A rank's place along a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'a> {
    pub dealt: &'a Dealt,
    pub reverse: bool,
}

impl Way<'_> {
    /// Ranks that the walk has passed before this one.
    pub fn position(&self) -> usize {
        if self.reverse { self.dealt.layout.ranks - 1 - self.dealt.rank } else { self.dealt.rank }
    }

    fn next(&self, rank: usize) -> Option<usize> {
        match self.reverse {
            true => rank.checked_sub(1).filter(|next| self.dealt.joined(*next)),
            false => self.dealt.joined(rank).then_some(rank + 1),
        }
    }

    fn last(&self, rank: usize) -> Option<usize> {
        Way { reverse: !self.reverse, ..*self }.next(rank)
    }

    /// The rank that a state comes from.
    pub fn before(&self) -> Option<usize> {
        self.last(self.dealt.rank)
    }

    /// The rank that a state goes to.
    pub fn after(&self) -> Option<usize> {
        self.next(self.dealt.rank)
    }

    /// Ranks whose tokens the arriving state holds, in the order of the walk. All but the first have one before them, too.
    pub fn sources(&self) -> Vec<usize> {
        let mut ranks: Vec<usize> =
            std::iter::successors(self.before(), |rank| self.whole(*rank).then(|| self.last(*rank))?).collect();
        ranks.reverse();
        ranks
    }

    /// Ranks whose arriving state holds this rank's tokens.
    pub fn targets(&self) -> Vec<usize> {
        std::iter::successors(self.after(), |rank| self.whole(*rank).then(|| self.next(*rank))?).collect()
    }

    /// Whether what leaves depends on what arrives.
    pub fn through(&self) -> bool {
        self.before().is_some() && self.after().is_some() && self.whole(self.dealt.rank)
    }

    /// Whether a single sequence of the only row, or every row, goes all the way through `rank`.
    fn whole(&self, rank: usize) -> bool {
        let (low, high) = (self.dealt.bound(rank), self.dealt.bound(rank) + self.dealt.layout.len(rank));
        let through = |ends: &[usize]| ends[0] < low && high < ends[1];
        self.dealt.documents.as_ref().is_none_or(|all| all.windows(2).any(through))
    }

    /// Rows of the rank's states that arrive.
    pub fn arriving(&self) -> Range<usize> {
        self.rows(self.reverse)
    }

    /// Rows of the rank's states that leave.
    pub fn leaving(&self) -> Range<usize> {
        self.rows(!self.reverse)
    }

    fn rows(&self, at_end: bool) -> Range<usize> {
        let (all, carried) = (self.dealt.sequences(), self.dealt.carried());
        if at_end { all - carried..all } else { 0..carried }
    }
}
