//! Which tokens of a sequence a rank has.

use std::{iter, ops::Range};

/// How the tokens of a sequence are dealt to ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partition {
    /// One run of neighbouring tokens for each rank, in the order of the ranks. Under a causal mask the last rank has nearly twice
    /// the mean work.
    Contiguous,
    /// `2 P` runs; rank `r` has run `r` and run `2 P - 1 - r`. Between two ranks a causal mask leaves the same work whichever they
    /// are, and only whole runs are seen or not.
    Zigzag,
    /// Token `i` on rank `i mod P`. Every pair of ranks has a causal triangle.
    Striped,
}

/// A sequence dealt to ranks. Tokens of a rank keep their order, so an interval of positions is an interval of its tokens.
///
/// Lengths need not divide: runs differ by at most one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How it is dealt.
    pub partition: Partition,
    /// Tokens of the whole sequence, `N`.
    pub tokens: usize,
    /// Ranks, `P`, at least 1.
    pub ranks: usize,
}

impl Layout {
    /// First position of run `run` of `runs` equal ones.
    fn bound(&self, run: usize, runs: usize) -> usize {
        (self.tokens as u128 * run as u128 / runs as u128) as usize
    }

    /// Runs of neighbouring positions that `rank` has, ascending; of single tokens if striped.
    pub fn runs(&self, rank: usize) -> Vec<Range<usize>> {
        match self.partition {
            Partition::Contiguous => {
                iter::once(self.bound(rank, self.ranks)..self.bound(rank + 1, self.ranks)).collect()
            }
            Partition::Zigzag => {
                let runs = 2 * self.ranks;
                [rank, runs - 1 - rank].map(|run| self.bound(run, runs)..self.bound(run + 1, runs)).into()
            }
            Partition::Striped => (rank..self.tokens).step_by(self.ranks).map(|i| i..i + 1).collect(),
        }
    }

    /// Tokens of `rank`.
    pub fn len(&self, rank: usize) -> usize {
        self.before(rank, self.tokens)
    }

    /// Tokens of the rank with most.
    pub fn longest(&self) -> usize {
        (0..self.ranks).map(|rank| self.len(rank)).max().unwrap_or(0)
    }

    /// Tokens of `rank` that stand before `position`: the index of the first one at or after it.
    pub fn before(&self, rank: usize, position: usize) -> usize {
        let position = position.min(self.tokens);
        let within = |lo: usize, hi: usize| position.clamp(lo, hi) - lo;
        match self.partition {
            Partition::Contiguous => within(self.bound(rank, self.ranks), self.bound(rank + 1, self.ranks)),
            Partition::Zigzag => {
                let runs = 2 * self.ranks;
                let run = |run: usize| within(self.bound(run, runs), self.bound(run + 1, runs));
                run(rank) + run(runs - 1 - rank)
            }
            Partition::Striped => position.saturating_sub(rank).div_ceil(self.ranks),
        }
    }

    /// Position of token `index` of `rank`, which must have so many.
    pub fn position(&self, rank: usize, index: usize) -> usize {
        match self.partition {
            Partition::Contiguous => self.bound(rank, self.ranks) + index,
            Partition::Zigzag => {
                let runs = 2 * self.ranks;
                let (first, second) = (self.bound(rank, runs), self.bound(runs - 1 - rank, runs));
                let split = self.half(rank);
                if index < split { first + index } else { second + index - split }
            }
            Partition::Striped => rank + index * self.ranks,
        }
    }

    /// Where the second run of `rank` begins among its tokens; its length where there is one run.
    pub fn half(&self, rank: usize) -> usize {
        match self.partition {
            Partition::Zigzag => self.before(rank, self.bound(rank + 1, 2 * self.ranks)),
            _ => self.len(rank),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_dealt_once_in_order() {
        for partition in [Partition::Contiguous, Partition::Zigzag, Partition::Striped] {
            for ranks in 1..9 {
                for tokens in [0, 1, 2, 5, 16, 31, 64, 97] {
                    let layout = Layout { partition, tokens, ranks };
                    let mut owner = vec![None; tokens];
                    for rank in 0..ranks {
                        let dealt: Vec<usize> = layout.runs(rank).into_iter().flatten().collect();
                        assert_eq!(dealt.len(), layout.len(rank), "{layout:?}");
                        assert!(dealt.is_sorted());
                        assert!(layout.half(rank) <= dealt.len());
                        for (index, position) in dealt.iter().enumerate() {
                            assert_eq!(layout.position(rank, index), *position, "{layout:?} rank {rank}");
                            assert_eq!(layout.before(rank, *position), index);
                            assert_eq!(layout.before(rank, position + 1), index + 1);
                            assert_eq!(owner[*position].replace(rank), None, "dealt twice");
                        }
                    }
                    assert!(owner.iter().all(Option::is_some), "{layout:?}");
                    let lengths = (0..ranks).map(|rank| layout.len(rank));
                    let runs = if partition == Partition::Zigzag { 2 } else { 1 };
                    assert!(layout.longest() - lengths.min().unwrap_or(0) <= runs);
                }
            }
        }
    }
}
