//! One access to shared memory, and the questions asked of it.

use super::mark::{Mark, granule_lanes};
use crate::check::warp::Warp;

/// What is wrong with an access to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::check) enum Finding {
    /// Not ordered after that write.
    AfterWrite(Mark),
    /// Not ordered after that read.
    AfterRead(Mark),
    /// Some bytes were never written.
    Uninitialised,
    /// An asynchronous copy owns the word.
    InFlight,
    /// Another lane of the warp wrote it and the lanes have not met since.
    LaneOrder(Mark),
    /// Another lane of the warp read it and the lanes have not met since.
    LaneOrderAfterRead(Mark),
}

/// A finding, the byte offset of its word, and the lane that came upon it.
pub(in crate::check) type Found = (Finding, u64, u32);

/// Who accesses, and how.
pub(in crate::check) struct Access<'a> {
    warp: &'a Warp,
    pub(super) index: usize,
    /// Bytes per lane, as a shift.
    pub(super) spread: u32,
    /// Atomic, volatile or ordered: such accesses do not race with each other.
    pub(super) strong: bool,
    /// Barriers of all warps so far.
    pub(super) generation: u32,
    lane_order: bool,
    /// Lanes that get what is read, whichever lane gave the address.
    others: u32,
    /// The access without its place.
    pub(super) mark: Mark,
    /// A write by this agent at this tick is known to come before, whatever the lanes.
    verified: u32,
}

impl<'a> Access<'a> {
    pub(in crate::check) fn new(warp: &'a Warp, index: usize, bytes: u32, line: u32, generation: u32) -> Self {
        let mark = Mark::new(index, warp.clock, line, false);
        let spread = bytes.trailing_zeros();
        // Nobody writes at tick 0: "nothing verified yet".
        let verified = Mark::new(index, 0, 0, false).epoch();
        Self { warp, index, spread, strong: false, generation, lane_order: false, others: 0, mark, verified }
    }

    /// The access is atomic, volatile or ordered.
    pub(in crate::check) fn strong(mut self, line: u32, strong: bool) -> Self {
        self.mark = Mark::new(self.index, self.warp.clock, line, strong);
        self.strong = strong;
        self
    }

    /// Find lanes that rely on convergence.
    pub(in crate::check) fn lane_order(mut self, lane_order: bool) -> Self {
        self.lane_order = lane_order;
        self
    }

    /// What a lane reads goes to all.
    pub(in crate::check) fn for_all_lanes(mut self, all: bool) -> Self {
        self.others = if all { u32::MAX } else { 0 };
        self
    }

    /// Whether granules may be treated as one: lanes of a granule and strong accesses are told apart by word.
    #[inline]
    pub(super) fn by_granule(&self) -> bool {
        !self.strong && !self.lane_order
    }

    /// Comes after the write of a granule; the usual case costs one compare.
    #[inline]
    pub(super) fn is_after_granule(&mut self, mark: Mark, lane: u32) -> bool {
        if self.is_after_epoch(mark) {
            return true;
        }
        let lanes = granule_lanes(lane, self.spread) | self.others;
        self.warp.is_after(mark.agent(), mark.clock(), mark.lanes(), lanes)
    }

    /// Comes after all that the mark's agent wrote at its tick, whichever lane asks. What was found is remembered.
    #[inline]
    pub(super) fn is_after_epoch(&mut self, mark: Mark) -> bool {
        if mark.epoch() == self.verified {
            return true;
        }
        let after = self.is_after_for_all(mark);
        if after {
            self.verified = mark.epoch();
        }
        after
    }

    /// All lanes know the same.
    #[inline]
    pub(super) fn is_uniform(&self) -> bool {
        self.warp.is_uniform()
    }

    /// The agent's accesses up to the mark's are known, whichever lane asks.
    fn is_after_for_all(&self, mark: Mark) -> bool {
        mark.agent() == self.index
            || (self.warp.is_uniform() && mark.clock() <= self.warp.knows(0).local[mark.agent()].all)
    }

    /// Comes after that read. Which lanes of a warp read a place is known for the last one only; a release by others
    /// of them must not be taken for none, so the lanes are not asked for.
    #[inline]
    pub(super) fn is_after_read(&self, reader: usize, mark: Mark, lane: u32) -> bool {
        let entry = &self.warp.knows(1 << lane).local[reader];
        mark.clock() <= entry.all.max(entry.some)
    }

    /// May the bytes of a word be touched, as far as its last write and copies in flight go?
    pub(super) fn check_write(&self, mark: Mark, lane: u32, bytes: u64) -> Result<(), Finding> {
        if mark.is_claimed() {
            return Err(Finding::InFlight);
        }
        let apart = mark.bytes() & bytes == 0 || (mark.is_strong() && self.strong);
        if apart || self.is_after(mark, lane) { Ok(()) } else { Err(Finding::AfterWrite(mark)) }
    }

    /// Comes after the write of a word.
    fn is_after(&self, mark: Mark, lane: u32) -> bool {
        self.warp.is_after(mark.agent(), mark.clock(), 1 << mark.lane(), 1 << lane | self.others)
    }

    /// Whether somebody could be in conflict with an earlier write of a word and not with this one: when this one is
    /// atomic, and the earlier one is not, or is not ordered before it.
    pub(super) fn leaves(&self, mark: Mark, lane: u32, bytes: u64) -> bool {
        self.strong && mark.bytes() & bytes != 0 && (!mark.is_strong() || !self.is_after(mark, lane))
    }

    /// May the bytes of a word be written, as far as its last read by a warp goes?
    pub(super) fn check_read(&self, reader: usize, mark: Mark, lane: u32, bytes: u64) -> Result<(), Finding> {
        let apart = mark.bytes() & bytes == 0 || (mark.is_strong() && self.strong);
        if apart || reader == self.index || self.is_after_read(reader, mark, lane) {
            return Ok(());
        }
        Err(Finding::AfterRead(mark))
    }

    /// With the lint on: was the word that is read written by another lane of this warp since the lanes last met?
    pub(super) fn check_lanes(&self, mark: Mark, lane: u32, bytes: u64) -> Result<(), Finding> {
        let same = mark.lane() == lane && self.others == 0;
        if same || self.lanes_have_met(mark, bytes) { Ok(()) } else { Err(Finding::LaneOrder(mark)) }
    }

    /// With the lint on: was the word that is written written by another lane of this warp since the lanes last met? Lanes
    /// of one instruction that write different values are found without it.
    pub(super) fn check_lanes_after_write(&self, mark: Mark, lane: u32, bytes: u64) -> Result<(), Finding> {
        let same = mark.lane() == lane || mark.line() == self.mark.line();
        if same || self.lanes_have_met(mark, bytes) { Ok(()) } else { Err(Finding::LaneOrder(mark)) }
    }

    /// With the lint on: was the word that is written read by another lane of this warp since the lanes last met?
    pub(super) fn check_lanes_after_read(&self, mark: Mark, lane: u32, bytes: u64) -> Result<(), Finding> {
        let same = mark.lane() == lane && !mark.is_by_several();
        if same || self.lanes_have_met(mark, bytes) { Ok(()) } else { Err(Finding::LaneOrderAfterRead(mark)) }
    }

    /// Not an access that only convergence orders, or nobody asks.
    fn lanes_have_met(&self, mark: Mark, bytes: u64) -> bool {
        !self.lane_order
            || mark.agent() != self.index
            || mark.bytes() & bytes == 0
            || (mark.is_strong() && self.strong)
            || mark.clock() <= self.warp.ordered
    }
}
