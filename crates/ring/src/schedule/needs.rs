//! Which part of one rank's queries sees which part of another rank's keys.

use crate::{Layout, Visible};
use std::ops::Range;

/// For every pair of ranks the smallest runs of queries and of keys outside of which nothing is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    ranks: usize,
    /// `[queries' owner, keys' owner]`; nothing where nothing is seen.
    pairs: Vec<Option<(Range<usize>, Range<usize>)>>,
}

impl Needs {
    /// Of a mask over a dealt sequence. Costs a look at every token for every rank.
    pub fn new(layout: &Layout, visible: &Visible) -> Self {
        let ranks = layout.ranks;
        let mut pairs = vec![None; ranks * ranks];
        for queries in 0..ranks {
            for row in 0..layout.len(queries) {
                let seen = visible.from(layout.position(queries, row));
                for keys in 0..ranks {
                    let local = seen.clone().map(|s| layout.before(keys, s.start)..layout.before(keys, s.end));
                    for run in local.into_iter().filter(|run| !run.is_empty()) {
                        let pair = &mut pairs[queries * ranks + keys];
                        let (rows, columns) = pair.get_or_insert((row..row + 1, run.clone()));
                        rows.end = row + 1;
                        *columns = columns.start.min(run.start)..columns.end.max(run.end);
                    }
                }
            }
        }
        Self { ranks, pairs }
    }

    /// Queries of the first rank and keys of the second that see each other.
    pub fn between(&self, queries: usize, keys: usize) -> Option<(Range<usize>, Range<usize>)> {
        self.pairs[queries * self.ranks + keys].clone()
    }

    /// Keys of `keys` that any of these ranks' queries see: the smallest run.
    pub(super) fn keys_for(&self, keys: usize, queries: impl Iterator<Item = usize>) -> Range<usize> {
        hull(queries.filter_map(|q| self.between(q, keys)).map(|(_, columns)| columns))
    }

    /// Queries of `queries` that see any of these ranks' keys: the smallest run.
    pub(super) fn queries_for(&self, queries: usize, keys: impl Iterator<Item = usize>) -> Range<usize> {
        hull(keys.filter_map(|k| self.between(queries, k)).map(|(rows, _)| rows))
    }
}

/// The smallest run around all; empty without any.
pub(super) fn hull(runs: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    runs.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}
