//! Which pages of a paged cache belong to which sequence: kept on the host, in the form that this crate's kernels read.
//!
//! Pages are numbers. Whoever owns the memory, of one layer or of many with the same table, gives every page its place. Sequences
//! open empty, grow, may be cut back, and give their pages back when they close; a page has one owner at a time.
//!
//! ```
//! use lookback_decode::pages::Pages;
//!
//! # fn main() -> lookback_device::Result<()> {
//! let mut pages = Pages::new(8, 16)?;
//! let sequence = pages.open();
//! pages.append(&[(sequence, 20)])?;
//! assert_eq!((pages.len(sequence)?, pages.free()), (20, 6));
//! // Token 17 lies in the second page.
//! assert_eq!(pages.slots(sequence, 17..18)?, [pages.table(&[sequence])?.indices[1] as i64 * 16 + 1]);
//! pages.close(sequence)?;
//! assert_eq!(pages.free(), 8);
//! # Ok(())
//! # }
//! ```

use lookback_device::{Error, Result, strided};
use std::collections::BTreeMap;
use std::ops::Range;

const OP: &str = "pages";

/// A sequence of one [`Pages`]. Never given out twice, so that a closed one stays unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

/// Owners and free pages.
#[derive(Debug, Clone)]
pub struct Pages {
    page_size: usize,
    total: usize,
    /// The last is taken first; at the start that is page 0.
    free: Vec<i32>,
    held: BTreeMap<Sequence, Held>,
    opened: u64,
}

#[derive(Debug, Clone, Default)]
struct Held {
    len: usize,
    pages: Vec<i32>,
}

/// Tables of some sequences as kernels read them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// `[sequences + 1]`: where each sequence's pages begin in `indices`.
    pub indptr: Vec<i32>,
    /// Pages in the order of tokens.
    pub indices: Vec<i32>,
    /// `[sequences]`: tokens.
    pub lengths: Vec<i32>,
}

impl Pages {
    /// `pages` free pages of `page_size` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] ← no page, no token in a page, or more slots than an `i32` counts.
    pub fn new(pages: usize, page_size: usize) -> Result<Self> {
        strided::range(OP, "pages", pages, 1, strided::MAX_EXTENT)?;
        strided::range(OP, "page_size", page_size, 1, strided::MAX_EXTENT / pages)?;
        let free = (0..pages as i32).rev().collect();
        Ok(Self { page_size, total: pages, free, held: BTreeMap::new(), opened: 0 })
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// All pages.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages that no sequence has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Sequences that are open.
    pub fn sequences(&self) -> usize {
        self.held.len()
    }

    /// A new sequence without tokens.
    pub fn open(&mut self) -> Sequence {
        let sequence = Sequence(self.opened);
        self.opened += 1;
        self.held.insert(sequence, Held::default());
        sequence
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn len(&self, sequence: Sequence) -> Result<usize> {
        Ok(self.get(sequence)?.len)
    }

    /// Whether a sequence has no token.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn is_empty(&self, sequence: Sequence) -> Result<bool> {
        Ok(self.get(sequence)?.len == 0)
    }

    /// Makes sequences longer, all of them or none.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] ← too few pages are free; [`Error::Shape`] ← a sequence is not open, or stands there twice. Nothing
    /// changes on these.
    pub fn append(&mut self, growth: &[(Sequence, usize)]) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        let mut need = 0_usize;
        for (sequence, tokens) in growth {
            let held = self.get(*sequence)?;
            if !seen.insert(sequence) {
                return Err(unknown(*sequence, "named once"));
            }
            let pages = held.len.saturating_add(*tokens).div_ceil(self.page_size);
            need = need.saturating_add(pages - held.pages.len());
        }
        if need > self.free.len() {
            return Err(Error::OutOfPages { op: OP, need: need as u64, free: self.free.len() as u64 });
        }
        for (sequence, tokens) in growth {
            if let Some(held) = self.held.get_mut(sequence) {
                held.len += tokens;
                let pages = held.len.div_ceil(self.page_size) - held.pages.len();
                held.pages.extend(self.free.drain(self.free.len() - pages..).rev());
            }
        }
        Ok(())
    }

    /// Cuts a sequence back to its first `len` tokens and frees the pages behind them.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open; [`Error::Range`] ← it is shorter.
    pub fn truncate(&mut self, sequence: Sequence, len: usize) -> Result<()> {
        strided::range(OP, "len", len, 0, self.get(sequence)?.len)?;
        if let Some(held) = self.held.get_mut(&sequence) {
            held.len = len;
            self.free.extend(held.pages.drain(len.div_ceil(self.page_size)..).rev());
        }
        Ok(())
    }

    /// Ends a sequence and frees its pages.
    ///
    /// # Errors
    /// [`Error::Shape`] ← it is not open.
    pub fn close(&mut self, sequence: Sequence) -> Result<()> {
        let held = self.held.remove(&sequence).ok_or_else(|| unknown(sequence, "open"))?;
        self.free.extend(held.pages.into_iter().rev());
        Ok(())
    }

    /// Tables of some sequences, in this order.
    ///
    /// # Errors
    /// [`Error::Shape`] ← one is not open.
    pub fn table(&self, sequences: &[Sequence]) -> Result<Table> {
        let mut table = Table { indptr: vec![0], ..Table::default() };
        for sequence in sequences {
            let held = self.get(*sequence)?;
            table.indices.extend(&held.pages);
            table.indptr.push(table.indices.len() as i32);
            table.lengths.push(held.len as i32);
        }
        Ok(table)
    }

    /// Where tokens lie: `page * page_size + place in the page`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← the sequence is not open; [`Error::Range`] ← it is shorter.
    pub fn slots(&self, sequence: Sequence, tokens: Range<usize>) -> Result<Vec<i64>> {
        let held = self.get(sequence)?;
        strided::range(OP, "tokens", tokens.end, 0, held.len)?;
        let slot = |t: usize| i64::from(held.pages[t / self.page_size]) * self.page_size as i64;
        Ok(tokens.map(|t| slot(t) + (t % self.page_size) as i64).collect())
    }

    fn get(&self, sequence: Sequence) -> Result<&Held> {
        self.held.get(&sequence).ok_or_else(|| unknown(sequence, "open"))
    }
}

fn unknown(Sequence(number): Sequence, want: &str) -> Error {
    Error::Shape { op: OP, arg: "sequence", want: want.into(), got: vec![number] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_round() {
        let mut pages = Pages::new(5, 4).unwrap();
        let (a, b) = (pages.open(), pages.open());
        pages.append(&[(a, 5), (b, 4)]).unwrap();
        assert_eq!((pages.len(a).unwrap(), pages.len(b).unwrap(), pages.free()), (5, 4, 2));
        let table = pages.table(&[b, a]).unwrap();
        assert_eq!(table, Table { indptr: vec![0, 1, 3], indices: vec![2, 0, 1], lengths: vec![4, 5] });
        assert_eq!(pages.slots(a, 3..5).unwrap(), [3, 4]);
        assert_eq!(pages.slots(b, 0..4).unwrap(), [8, 9, 10, 11]);
        // The rest of the last page is taken first.
        pages.append(&[(a, 3)]).unwrap();
        assert_eq!(pages.free(), 2);
        pages.close(a).unwrap();
        pages.append(&[(b, 13)]).unwrap();
        assert_eq!((pages.free(), pages.sequences()), (0, 1));
        let mut taken = pages.table(&[b]).unwrap().indices;
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn too_much_changes_nothing() {
        let mut pages = Pages::new(3, 4).unwrap();
        let (a, b) = (pages.open(), pages.open());
        pages.append(&[(a, 4)]).unwrap();
        let before = format!("{pages:?}");
        for growth in [vec![(a, 1), (b, 5)], vec![(a, usize::MAX)], vec![(b, 13)]] {
            assert!(matches!(pages.append(&growth), Err(Error::OutOfPages { free: 2, .. })), "{growth:?}");
        }
        assert!(matches!(pages.append(&[(b, 1), (b, 1)]), Err(Error::Shape { .. })));
        assert_eq!(format!("{pages:?}"), before);
        let error = pages.append(&[(a, 9), (b, 1)]).unwrap_err();
        assert_eq!(error.to_string(), "pages: needs 4 more pages, 2 are free");
        pages.append(&[(a, 4), (b, 3)]).unwrap();
    }

    #[test]
    fn a_closed_sequence_stays_unknown() {
        let mut pages = Pages::new(3, 4).unwrap();
        let gone = pages.open();
        pages.append(&[(gone, 4)]).unwrap();
        pages.close(gone).unwrap();
        let open = pages.open();
        assert_ne!(gone, open);
        assert!(matches!(pages.append(&[(open, 1), (gone, 1)]), Err(Error::Shape { arg: "sequence", .. })));
        assert!(pages.close(gone).is_err() && pages.len(gone).is_err() && pages.table(&[gone]).is_err());
        assert_eq!((pages.is_empty(open).unwrap(), pages.free()), (true, 3));
    }

    #[test]
    fn cutting_back_frees_whole_pages() {
        let mut pages = Pages::new(3, 4).unwrap();
        let a = pages.open();
        pages.append(&[(a, 12)]).unwrap();
        assert!(matches!(pages.truncate(a, 13), Err(Error::Range { .. })));
        pages.truncate(a, 5).unwrap();
        assert_eq!((pages.len(a).unwrap(), pages.free()), (5, 1));
        assert!(matches!(pages.slots(a, 0..6), Err(Error::Range { .. })));
        pages.truncate(a, 0).unwrap();
        assert_eq!(pages.free(), 3);
        assert_eq!(pages.slots(a, 0..0).unwrap(), [0_i64; 0]);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (total, size) in [(0, 4), (4, 0), (1 << 20, 1 << 20), (usize::MAX, 1)] {
            assert!(matches!(Pages::new(total, size), Err(Error::Range { .. })), "{total} {size}");
        }
    }
}
