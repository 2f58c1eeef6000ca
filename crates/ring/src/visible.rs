//! What a token sees, by positions in the whole sequence, and what is left of it between two ranks.

use crate::{Error, Layout, Result};
use std::ops::Range;

/// No limit.
pub const FAR: i64 = 1 << 40;

/// A mask over a whole sequence: one document, or several that do not see each other. A token at position `p` sees positions
/// `p - left ..= p + right` of its document, those before `prefix`, and the first `sink_tokens`, both counted from the document's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// Positions before the token's own; [`FAR`]: all. Negative ones begin behind it.
    pub left: i64,
    /// Positions after it.
    pub right: i64,
    /// First positions of a document that each of its tokens sees even when they are left of the window.
    pub sink_tokens: usize,
    /// Positions at the start of each document that all of its tokens see; none without.
    pub prefix_len: Vec<usize>,
    /// Starts of the documents, ascending from 0, and the number of tokens.
    pub documents: Vec<usize>,
}

impl Visible {
    /// Every token sees all of a single document of `tokens`.
    pub fn full(tokens: usize) -> Self {
        Self { left: FAR, right: FAR, sink_tokens: 0, prefix_len: Vec::new(), documents: vec![0, tokens] }
    }

    /// Every token sees itself and those before it.
    pub fn causal(tokens: usize) -> Self {
        Self { right: 0, ..Self::full(tokens) }
    }

    /// Documents are in order and cover `tokens`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← they do not.
    pub fn check(&self, tokens: usize) -> Result<()> {
        let ends = (self.documents.first(), self.documents.last());
        if ends == (Some(&0), Some(&tokens)) && self.documents.len() > 1 && self.documents.is_sorted() {
            return Ok(());
        }
        let want = format!("ascending from 0 to the {tokens} tokens");
        let got = self.documents.iter().map(|start| *start as u64).collect();
        Err(Error::Shape { op: "ring", arg: "documents", want, got })
    }

    /// What the token at `position` sees: two intervals of positions, the first before the second, either may be empty.
    pub fn from(&self, position: usize) -> [Range<usize>; 2] {
        let document = self.documents.partition_point(|start| *start <= position).saturating_sub(1);
        let start = self.documents[document];
        let end = self.documents.get(document + 1).copied().unwrap_or(position + 1);
        let at = |shift: i64| (position as i64).saturating_add(shift).clamp(start as i64, end as i64) as usize;
        let prefix = self.prefix_len.get(document).map_or(start, |len| start.saturating_add(*len).min(end));
        let low = at(self.left.saturating_neg());
        let high = at(self.right.saturating_add(1)).max(prefix);
        [start..start.saturating_add(self.sink_tokens).min(low), low..high.max(low)]
    }

    /// How the queries of one rank see the keys of another.
    pub fn cover(&self, layout: &Layout, queries: usize, keys: usize) -> Cover {
        let rows: Vec<[i32; 4]> = (0..layout.len(queries))
            .map(|row| {
                let [a, b] = self.from(layout.position(queries, row));
                [a.start, a.end, b.start, b.end].map(|position| layout.before(keys, position) as i32)
            })
            .collect();
        Cover::of(rows, layout.len(keys) as i32)
    }
}

/// How the queries of one rank see the keys of another, both by their index there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cover {
    /// Not at all.
    Empty,
    /// Every query sees every key.
    Full,
    /// Query `i` sees keys up to `i + offset`.
    Causal {
        /// Of the diagonal.
        offset: i32,
    },
    /// Query `i` sees keys `a..b` and `c..d`, which are `[a, b, c, d]` of row `i`.
    Intervals(Vec<[i32; 4]>),
}

impl Cover {
    /// Of the intervals of each query's keys.
    pub(crate) fn of(rows: Vec<[i32; 4]>, keys: i32) -> Self {
        let sees = |[a, b, c, d]: &[i32; 4]| b > a || d > c;
        if !rows.iter().any(sees) {
            return Self::Empty;
        }
        // One interval from the first key on.
        let ends: Option<Vec<i32>> = rows
            .iter()
            .map(|[a, b, c, d]| match (b > a, d > c) {
                (false, false) => Some(0),
                (true, false) => (*a == 0).then_some(*b),
                (false, true) => (*c == 0).then_some(*d),
                (true, true) => (*a == 0 && b == c).then_some(*d),
            })
            .collect();
        let Some(ends) = ends else { return Self::Intervals(rows) };
        if ends.iter().all(|end| *end == keys) {
            return Self::Full;
        }
        // The diagonal passes where a row is neither empty nor full; if none is, between the two.
        let within = ends.iter().position(|end| (1..keys).contains(end));
        let (row, end) = match within.or_else(|| ends.iter().position(|end| *end == keys)) {
            Some(row) => (row as i32, ends[row]),
            None => return Self::Intervals(rows),
        };
        let offset = end - 1 - row;
        let on_diagonal = |(row, end): (usize, &i32)| (row as i32 + offset + 1).clamp(0, keys) == *end;
        if ends.iter().enumerate().all(on_diagonal) { Self::Causal { offset } } else { Self::Intervals(rows) }
    }

    /// Pairs of a query and a key that see each other.
    pub fn pairs(&self, queries: usize, keys: usize) -> u64 {
        let row = |end: i64| end.clamp(0, keys as i64) as u64;
        match self {
            Self::Empty => 0,
            Self::Full => queries as u64 * keys as u64,
            Self::Causal { offset } => (0..queries as i64).map(|i| row(i + i64::from(*offset) + 1)).sum(),
            Self::Intervals(rows) => {
                rows.iter().map(|[a, b, c, d]| (b - a).max(0) as u64 + (d - c).max(0) as u64).sum()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Partition;

    fn masks(tokens: usize) -> Vec<Visible> {
        let third = tokens / 3;
        let documents = vec![0, third, third, tokens];
        vec![
            Visible::full(tokens),
            Visible::causal(tokens),
            Visible { left: -1, ..Visible::full(tokens) },
            Visible { left: 3, right: 2, sink_tokens: 2, ..Visible::full(tokens) },
            Visible { prefix_len: vec![5], ..Visible::causal(tokens) },
            Visible { documents: documents.clone(), ..Visible::causal(tokens) },
            Visible { documents, prefix_len: vec![2, 1, 4], ..Visible::causal(tokens) },
        ]
    }

    #[test]
    fn covers_of_all_pairs_of_ranks_are_the_mask() {
        for partition in [Partition::Contiguous, Partition::Zigzag, Partition::Striped] {
            for (tokens, ranks) in [(0, 2), (1, 3), (17, 4), (24, 4), (31, 5)] {
                let layout = Layout { partition, tokens, ranks };
                for visible in masks(tokens) {
                    for queries in 0..ranks {
                        for keys in 0..ranks {
                            check(&layout, &visible, queries, keys);
                        }
                    }
                }
            }
        }
    }

    fn check(layout: &Layout, visible: &Visible, queries: usize, keys: usize) {
        let cover = visible.cover(layout, queries, keys);
        let mut pairs = 0;
        for i in 0..layout.len(queries) {
            let seen = visible.from(layout.position(queries, i));
            assert!(seen[0].is_empty() || seen[1].is_empty() || seen[0].end <= seen[1].start, "{visible:?}");
            for j in 0..layout.len(keys) {
                let want = seen.iter().any(|s| s.contains(&layout.position(keys, j)));
                let got = match &cover {
                    Cover::Empty => false,
                    Cover::Full => true,
                    Cover::Causal { offset } => j as i32 <= i as i32 + offset,
                    Cover::Intervals(rows) => {
                        let [a, b, c, d] = rows[i];
                        (a..b).contains(&(j as i32)) || (c..d).contains(&(j as i32))
                    }
                };
                assert_eq!(got, want, "{layout:?} {visible:?} {queries} {i} sees {keys} {j}: {cover:?}");
                pairs += u64::from(want);
            }
        }
        assert_eq!(cover.pairs(layout.len(queries), layout.len(keys)), pairs);
    }

    #[test]
    fn the_three_cases_of_zigzag_and_the_two_of_striped_need_no_intervals_but_the_wrapped_one() {
        let layout = |partition| Layout { partition, tokens: 64, ranks: 4 };
        let causal = Visible::causal(64);
        let zigzag = layout(Partition::Zigzag);
        assert_eq!(causal.cover(&zigzag, 1, 1), Cover::Causal { offset: 0 });
        assert!(matches!(causal.cover(&zigzag, 2, 1), Cover::Intervals(rows) if rows.iter().all(|r| r[3] == 8)));
        assert!(matches!(causal.cover(&zigzag, 1, 2), Cover::Intervals(rows) if rows[7][3] == 0 && rows[8][3] == 16));
        let striped = layout(Partition::Striped);
        assert_eq!(causal.cover(&striped, 2, 1), Cover::Causal { offset: 0 });
        assert_eq!(causal.cover(&striped, 1, 2), Cover::Causal { offset: -1 });
        let contiguous = layout(Partition::Contiguous);
        assert_eq!(causal.cover(&contiguous, 2, 1), Cover::Full);
        assert_eq!(causal.cover(&contiguous, 1, 2), Cover::Empty);
    }
}
