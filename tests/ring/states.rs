//! Which rows of a whole each rank has.

use lookback_ring::{
    Layout, Partition,
    state::{Deal, Passing},
};
use std::ops::Range;

pub const WAYS: [Passing; 3] = [Passing::Serial, Passing::AllGather, Passing::Pipelined { blocks: 2 }];

/// Rows of equal length, or documents, dealt to ranks.
#[derive(Debug, Clone)]
pub struct Places {
    pub batch: usize,
    pub seq_len: usize,
    /// Rows of the whole's states, and parts of such a row that travel alike.
    pub sequences: usize,
    pub heads: usize,
    pub deal: Deal,
}

impl Places {
    pub fn new(
        batch: usize,
        seq_len: usize,
        heads: usize,
        starts: &Option<Vec<i32>>,
        ranks: usize,
        passing: Passing,
    ) -> Self {
        let documents: Option<Vec<usize>> = starts.as_ref().map(|all| all.iter().map(|at| *at as usize).collect());
        let sequences = documents.as_ref().map_or(batch, |all| all.len() - 1);
        Self { batch, seq_len, sequences, heads, deal: Deal { ranks, documents, passing } }
    }

    pub fn tokens(&self, rank: usize) -> Range<usize> {
        let layout = Layout { partition: Partition::Contiguous, tokens: self.seq_len, ranks: self.deal.ranks };
        layout.position(rank, 0)..layout.position(rank, 0) + layout.len(rank)
    }

    /// Rows of a rank's states by rows of the whole's, and whether each goes on across the rank's first and last token.
    pub fn rows(&self, rank: usize) -> Vec<(usize, bool, bool)> {
        let Range { start: low, end: high } = self.tokens(rank);
        let Some(starts) = &self.deal.documents else {
            return (0..self.batch).map(|n| (n, rank > 0, rank + 1 < self.deal.ranks)).collect();
        };
        let mut all = Vec::new();
        for (n, ends) in starts.windows(2).enumerate() {
            if ends[0] < ends[1] && ends[0] < high.max(low) && ends[1] > low {
                all.push((n, ends[0] < low, ends[1] > high));
            }
        }
        all
    }

    /// A rank's rows of `[B,T,..]`.
    pub fn part(&self, rank: usize, all: &[f64]) -> Vec<f64> {
        let (tokens, width) = (self.tokens(rank), all.len() / (self.batch * self.seq_len).max(1));
        let row = |b: usize| &all[(b * self.seq_len + tokens.start) * width..(b * self.seq_len + tokens.end) * width];
        (0..self.batch).flat_map(|b| row(b).iter().copied()).collect()
    }

    /// A rank's flags.
    pub fn flags(&self, rank: usize, all: &Option<Vec<u8>>) -> Option<Vec<u8>> {
        let all: Vec<f64> = all.as_ref()?.iter().map(|flag| f64::from(*flag)).collect();
        Some(self.part(rank, &all).into_iter().map(|flag| flag as u8).collect())
    }

    /// States that a rank is given of all that there are, `[N,H,..]`: at the first token of a sequence, or with `reverse` of the head at its
    /// last one. Those that it must not read are NaN.
    pub fn states(&self, rank: usize, all: &Option<Vec<f64>>, reverse: impl Fn(usize) -> bool) -> Option<Vec<f64>> {
        let all = all.as_ref()?;
        let width = all.len() / self.sequences;
        let head = width / self.heads;
        let mut part = Vec::new();
        for (row, before, after) in self.rows(rank) {
            part.extend(all[row * width..(row + 1) * width].iter().enumerate().map(|(at, value)| {
                let elsewhere = if reverse(at / head) { after } else { before };
                if elsewhere { f64::NAN } else { *value }
            }));
        }
        Some(if part.is_empty() { vec![f64::NAN; width] } else { part })
    }

    /// Puts a rank's rows into the whole.
    pub fn put(&self, rank: usize, part: &[f64], all: &mut [f64]) {
        let tokens = self.tokens(rank);
        let width = all.len() / (self.batch * self.seq_len).max(1);
        for b in 0..self.batch {
            let (from, to) = (b * tokens.len() * width, (b * self.seq_len + tokens.start) * width);
            all[to..to + tokens.len() * width].copy_from_slice(&part[from..from + tokens.len() * width]);
        }
    }

    /// Puts a rank's states into the whole where their sequence does not go on: past its last token, or with `reverse` before its first.
    pub fn put_states(&self, rank: usize, part: &[f64], all: &mut [f64], reverse: impl Fn(usize) -> bool) {
        let width = all.len() / self.sequences;
        for (local, (row, before, after)) in self.rows(rank).into_iter().enumerate() {
            for at in 0..width {
                let goes_on = if reverse(at / (width / self.heads)) { before } else { after };
                if !goes_on {
                    all[row * width + at] = part[local * width + at];
                }
            }
        }
    }
}
