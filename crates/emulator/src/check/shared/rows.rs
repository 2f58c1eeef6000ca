//! Many granules at once: what neighbouring lanes of a warp usually access, and one event usually wrote.

use super::{Access, GRANULE, Mark, Run, SharedShadow};
use std::ops::Range;

/// Shorter runs are not worth looking at twice.
const LEAST: u64 = 4 * GRANULE;

impl SharedShadow {
    /// Record a read of whole granules, if one event wrote them all and it comes before. If not, nothing is done, and
    /// each granule has to be looked at.
    #[inline]
    pub(super) fn read_row(&mut self, access: &mut Access<'_>, run: Run) -> bool {
        let Some(row) = self.row(access, run) else { return false };
        let Some(written) = Mark::common(&self.marks[row.clone()]) else { return false };
        if !written.is_settled() || !access.is_after_epoch(written) {
            return false;
        }
        let reads = access.index * self.marks.len();
        let first = access.mark.granule(run.lane, access.spread);
        fill(&mut self.reads[reads + row.start..reads + row.end], first, access.spread);
        self.read_in[row].fill(access.generation);
        true
    }

    /// Record a write of whole granules, if one event wrote them all before and neither it nor a read speaks against.
    /// If not, nothing is done.
    #[inline]
    pub(super) fn write_row(&mut self, access: &mut Access<'_>, run: Run) -> bool {
        let Some(row) = self.row(access, run) else { return false };
        let Some(written) = Mark::common(&self.marks[row.clone()]) else { return false };
        let open = !written.is_claimed() && written.place().is_none();
        if !open || !access.is_after_epoch(written) || !self.row_is_after_reads(access, row.clone()) {
            return false;
        }
        let first = access.mark.granule(run.lane, access.spread).with_init(0xF);
        fill(&mut self.marks[row], first, access.spread);
        true
    }

    /// The granules of a run, if it is made of whole ones.
    #[inline]
    fn row(&self, access: &Access<'_>, run: Run) -> Option<Range<usize>> {
        let whole = (run.start | run.bytes).is_multiple_of(GRANULE) && run.bytes >= LEAST && access.by_granule();
        let (first, count) = ((run.start / GRANULE) as usize, (run.bytes / GRANULE) as usize);
        (whole && first < self.marks.len() && count <= self.marks.len() - first).then_some(first..first + count)
    }

    /// A barrier of all warps came after every read of the row, or each lane knows of them.
    #[inline]
    fn row_is_after_reads(&self, access: &Access<'_>, row: Range<usize>) -> bool {
        let latest = self.read_in[row.clone()].iter().fold(0, |latest, read| latest.max(*read));
        latest < access.generation || (access.is_uniform() && self.knows_reads(access, row))
    }

    fn knows_reads(&self, access: &Access<'_>, row: Range<usize>) -> bool {
        (0..self.warps).filter(|reader| *reader != access.index).all(|reader| {
            let reads = reader * self.marks.len();
            let reads = &self.reads[reads + row.start..reads + row.end];
            reads.iter().all(|read| access.is_after_read(reader, *read, 0))
        })
    }
}

/// Marks of neighbouring lanes, from `first` on.
#[inline]
fn fill(marks: &mut [Mark], first: Mark, spread: u32) {
    for (index, mark) in marks.iter_mut().enumerate() {
        *mark = first.neighbour(index, spread);
    }
}
