//! Shadow of global memory during one launch: the last write and two reads of every word that was touched.
//!
//! Memory is shadowed in lines of 64 bytes. As long as every access covers a whole line, which coalesced requests do,
//! one record stands for all its words; the first access to a part of it splits the line into words. Pages of lines
//! are made at the first touch.
//!
//! Of the reads since the last write only the first and the latest are kept, which is exact for two readers.

mod shortcut;

use super::hash::NumberMap;
use super::lanes::Run;
use super::mark::{LINE_BYTES, LINE_WORDS, Mark};
use super::warp::Warp;
use crate::memory::{Allocation, MAX_ALLOCATION, MemoryView, OFFSET_BITS};
use std::sync::Arc;

const PAGE_LINES: usize = 64;

/// What is known of a word, or of all words of a line.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    write: Mark,
    /// A write before that one which it does not stand for: an atomic one that nothing orders before it, or a plain one
    /// before an atomic one, which other atomic ones may meet.
    covered: Mark,
    first: Mark,
    latest: Mark,
}

#[derive(Debug, Clone, Copy, Default)]
struct Line {
    whole: Word,
    /// 1 + place of the words, once the line is split.
    split: u32,
}

#[derive(Debug)]
struct Region {
    number: u64,
    allocation: Arc<Allocation>,
    pages: Vec<Option<Box<[Line; PAGE_LINES]>>>,
    words: Vec<[Word; LINE_WORDS]>,
}

/// What is wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Not ordered after that write.
    AfterWrite(Mark),
    /// Not ordered after that read.
    AfterRead(Mark),
    /// A byte was never written.
    Uninitialised,
    /// A non-coherent read of what that write has put there.
    ReadsWritten(Mark),
    /// A write to what that non-coherent read relies on.
    WritesNonCoherent(Mark),
    /// Another lane of the warp wrote it and the lanes have not met since.
    LaneOrder(Mark),
    /// Another lane of the warp read it and the lanes have not met since.
    LaneOrderAfterRead(Mark),
}

/// A finding, the pointer of its word, and the lane that came upon it.
pub(super) type Found = (Finding, u64, u32);

/// Who accesses, and how.
pub(super) struct Access<'a> {
    pub(super) warp: &'a Warp,
    pub(super) cta: u32,
    /// Warps of a CTA.
    warps: u32,
    /// Bytes per lane, as a shift.
    spread: u32,
    /// Agent, tick, line and strength.
    mark: Mark,
    lane_order: bool,
    /// Agent and tick of a write that is known to come before, whatever the lanes.
    verified: (u32, u32),
}

impl<'a> Access<'a> {
    /// An access of `bytes` per lane by a warp of CTA `cta`, which has `warps` of them.
    pub(super) fn new(warp: &'a Warp, [cta, warps]: [u32; 2], bytes: u32, mark: Mark) -> Self {
        let spread = bytes.trailing_zeros();
        Self { warp, cta, warps, spread, mark, lane_order: false, verified: (mark.agent, 0) }
    }

    /// Find lanes that rely on convergence.
    pub(super) fn lane_order(mut self, lane_order: bool) -> Self {
        self.lane_order = lane_order;
        self
    }

    /// Whether the access of `before` and that of `lanes` now, to the bytes of `now`, are free to meet.
    fn agrees(&self, before: Mark, now: Mark, lanes: u32) -> bool {
        if before.agent == self.mark.agent || before.is_none() || before.bytes() & now.bytes() == 0 {
            return true;
        }
        before.is_strong_with(now, self.of_own_cta(before)) || self.is_after(before, lanes)
    }

    /// Whether `lanes` know that the access of `before`, by another warp, has happened.
    fn is_after(&self, before: Mark, lanes: u32) -> bool {
        let (cta, warp) = ((before.agent - 1) / self.warps, (before.agent - 1) % self.warps);
        if cta == self.cta {
            self.warp.is_after(warp as usize, before.clock, before.lanes(), lanes)
        } else {
            self.warp.is_after_foreign(cta, warp as usize, before.clock, before.lanes(), lanes)
        }
    }

    fn of_own_cta(&self, mark: Mark) -> bool {
        !mark.is_none() && (mark.agent - 1) / self.warps == self.cta
    }

    fn read(&self, word: &Word, now: Mark) -> Result<(), Finding> {
        if word.write.is_none() {
            return Ok(());
        }
        let lanes = now.lanes();
        if now.is_non_coherent() && word.write.bytes() & now.bytes() != 0 {
            return Err(Finding::ReadsWritten(word.write));
        }
        for write in [word.write, word.covered] {
            if !self.agrees(write, now, lanes) {
                return Err(Finding::AfterWrite(write));
            }
        }
        if self.only_converged(word.write, now) { Err(Finding::LaneOrder(word.write)) } else { Ok(()) }
    }

    /// With the lint on: the access of `before` was by another lane of this warp, and the lanes have not met since.
    fn only_converged(&self, before: Mark, now: Mark) -> bool {
        self.lane_order
            && before.agent == now.agent
            && before.bytes() & now.bytes() != 0
            && !before.is_strong_with(now, true)
            && before.lanes() != now.lanes()
            && before.clock > self.warp.ordered
    }

    fn write(&self, word: &Word, now: Mark) -> Result<(), Finding> {
        let lanes = now.lanes();
        for write in [word.write, word.covered] {
            if !self.agrees(write, now, lanes) {
                return Err(Finding::AfterWrite(write));
            }
        }
        // Lanes of one instruction that write different values are found without it.
        if self.only_converged(word.write, now) && word.write.line() != now.line() {
            return Err(Finding::LaneOrder(word.write));
        }
        for read in [word.first, word.latest] {
            if self.only_converged(read, now) {
                return Err(Finding::LaneOrderAfterRead(read));
            }
            if read.is_non_coherent() && !read.is_none() && read.bytes() & now.bytes() != 0 {
                return Err(Finding::WritesNonCoherent(read));
            }
            if !self.agrees(read, now, lanes) {
                return Err(Finding::AfterRead(read));
            }
        }
        Ok(())
    }

    /// Remember a read. An earlier one by the same warp, or by its CTA and known to it, says nothing that this one
    /// does not.
    fn record_read(&self, word: &mut Word, now: Mark) {
        let joined = |old: Mark| if old.clock == now.clock { now.and_bytes(old.bytes()) } else { now };
        if word.first.is_none() || (word.first.agent == now.agent && !word.first.is_non_coherent()) {
            // Two lanes of a warp are enough for the lint: a third that writes is not one of them.
            let is_second = self.lane_order && word.first.clock == now.clock && word.first.lanes() != now.lanes();
            let is_old = word.latest.is_none() || (word.latest.agent == now.agent && word.latest.clock != now.clock);
            if is_second && is_old {
                word.latest = now;
            } else if !is_second {
                word.first = if word.first.is_none() { now } else { joined(word.first) };
            }
            return;
        }
        if word.latest.agent == now.agent {
            word.latest = joined(word.latest);
            return;
        }
        let replaceable = !word.first.is_non_coherent() && self.of_own_cta(word.first);
        if replaceable && !word.latest.is_none() && self.agrees(word.first, now, now.lanes()) {
            word.first = word.latest;
        }
        word.latest = now;
    }

    fn record_write(&self, word: &mut Word, now: Mark) {
        let before = word.write;
        let same = before.agent == now.agent && before.clock == now.clock;
        let write = if same && before.is_strong() == now.is_strong() { now.and_bytes(before.bytes()) } else { now };
        // A plain write comes after everything before it; an atomic one may have met others.
        let covered = [before, word.covered].into_iter().find(|write| self.outlives(*write, now)).unwrap_or_default();
        *word = Word { write, covered, ..Word::default() };
    }

    /// Whether somebody could be in conflict with the write of `before` and not with that of `now`.
    fn outlives(&self, before: Mark, now: Mark) -> bool {
        if before.is_none() || !now.is_strong() || before.bytes() & now.bytes() == 0 {
            return false;
        }
        !before.is_strong() || (before.agent != now.agent && !self.is_after(before, now.lanes()))
    }
}

/// The shadow of all allocations that a launch has touched.
#[derive(Debug)]
pub(super) struct GlobalShadow {
    view: MemoryView,
    regions: Vec<Region>,
    places: NumberMap<u64, usize>,
    last: usize,
}

impl GlobalShadow {
    pub(super) fn new(view: MemoryView) -> Self {
        Self { view, regions: Vec::new(), places: NumberMap::default(), last: 0 }
    }

    /// Check and record an access to a run of bytes. Bytes outside live allocations are the interpreter's to refuse.
    #[inline]
    pub(super) fn access(&mut self, access: &mut Access<'_>, reads: bool, writes: bool, run: Run) -> Result<(), Found> {
        let Some(region) = self.region(run.start) else { return Ok(()) };
        let offset = run.start & (MAX_ALLOCATION - 1);
        let end = (offset + run.bytes).min(region.allocation.bytes());
        if reads && let Some(missing) = region.allocation.init().first_missing(offset, run.bytes) {
            let lane = run.lane + ((missing.max(offset) - offset) >> access.spread) as u32;
            return Err((Finding::Uninitialised, region.number << OFFSET_BITS | missing, lane));
        }
        let mut at = offset + region.access_lines(access, writes, Run { start: offset, bytes: end - offset, ..run });
        while at < end {
            let next = (at / LINE_BYTES + 1) * LINE_BYTES;
            let lane = run.lane + ((at - offset) >> access.spread) as u32;
            let piece = Run { start: at, bytes: next.min(end) - at, lane };
            region
                .access_line(access, reads, writes, piece)
                .map_err(|(finding, place, lane)| (finding, region.number << OFFSET_BITS | place, lane))?;
            at = next;
        }
        if writes {
            region.allocation.init().mark(offset, run.bytes);
        }
        Ok(())
    }

    #[inline]
    fn region(&mut self, pointer: u64) -> Option<&mut Region> {
        let number = pointer >> OFFSET_BITS;
        if self.regions.get(self.last).is_none_or(|region| region.number != number) {
            self.find(pointer)?;
        }
        self.regions.get_mut(self.last)
    }

    #[cold]
    fn find(&mut self, pointer: u64) -> Option<()> {
        let number = pointer >> OFFSET_BITS;
        if let Some(place) = self.places.get(&number) {
            self.last = *place;
            return Some(());
        }
        let allocation = Arc::clone(self.view.peek(pointer)?);
        let pages = allocation.bytes().div_ceil(LINE_BYTES * PAGE_LINES as u64) as usize;
        self.last = self.regions.len();
        self.places.insert(number, self.last);
        let pages = std::iter::repeat_with(|| None).take(pages).collect();
        self.regions.push(Region { number, allocation, pages, words: Vec::new() });
        Some(())
    }

    /// Size of the allocation that a pointer lies in.
    pub(super) fn size(&self, pointer: u64) -> u64 {
        self.view.peek(pointer).map_or(0, |allocation| allocation.bytes())
    }
}

impl Region {
    /// Check and record an access to a part of one line.
    #[inline]
    fn access_line(&mut self, access: &mut Access<'_>, reads: bool, writes: bool, piece: Run) -> Result<(), Found> {
        let index = (piece.start / LINE_BYTES) as usize;
        let Some(page) = self.pages.get_mut(index / PAGE_LINES) else { return Ok(()) };
        let line = &mut page.get_or_insert_with(fresh_page)[index % PAGE_LINES];
        if access.is_plain() && line.split != 0 {
            return access_words(&mut self.words[line.split as usize - 1], access, reads, writes, piece);
        }
        access_in_full(line, &mut self.words, access, reads, writes, piece)
    }
}

#[cold]
fn fresh_page() -> Box<[Line; PAGE_LINES]> {
    Box::new([Line::default(); PAGE_LINES])
}

/// Check and record an access to a part of one line, whatever has happened there.
#[inline(never)]
fn access_in_full(
    line: &mut Line,
    words: &mut Vec<[Word; LINE_WORDS]>,
    access: &mut Access<'_>,
    reads: bool,
    writes: bool,
    piece: Run,
) -> Result<(), Found> {
    if piece.bytes == LINE_BYTES && line.split == 0 && !access.lane_order {
        let now = access.mark.whole_line(piece.lane);
        let read = !reads || access.read(&line.whole, now).is_ok();
        if read && (!writes || access.write(&line.whole, now).is_ok()) {
            if writes {
                access.record_write(&mut line.whole, now);
            } else {
                access.record_read(&mut line.whole, now);
            }
            return Ok(());
        }
    }
    let place = line.split(words);
    access_words(&mut words[place], access, reads, writes, piece)
}

impl Line {
    /// Where its words are; splits it if need be.
    fn split(&mut self, words: &mut Vec<[Word; LINE_WORDS]>) -> usize {
        if self.split == 0 {
            let whole = self.whole;
            words.push(std::array::from_fn(|word| Word {
                write: whole.write.word(word),
                covered: whole.covered.word(word),
                first: whole.first.word(word),
                latest: whole.latest.word(word),
            }));
            self.split = words.len() as u32;
        }
        self.split as usize - 1
    }
}

/// Check and record an access to words of a split line.
#[inline]
fn access_words(
    words: &mut [Word; LINE_WORDS],
    access: &mut Access<'_>,
    reads: bool,
    writes: bool,
    piece: Run,
) -> Result<(), Found> {
    let end = piece.start + piece.bytes;
    let mut at = piece.start;
    while at < end {
        let next = ((at | 3) + 1).min(end);
        let bytes = (0xF >> (4 - (next - at))) << (at & 3);
        let lane = piece.lane + ((at - piece.start) >> access.spread) as u32;
        let now = access.mark.one_lane(lane, bytes);
        let word = &mut words[(at % LINE_BYTES / 4) as usize];
        if !access.is_plain() || !access.shortcut(word, now, writes) {
            access_word(word, access, reads, writes, now).map_err(|finding| (finding, at, lane))?;
        }
        at = next;
    }
    Ok(())
}

/// Check and record an access to one word, whatever has happened there.
#[inline(never)]
fn access_word(word: &mut Word, access: &Access<'_>, reads: bool, writes: bool, now: Mark) -> Result<(), Finding> {
    if reads {
        access.read(word, now)?;
    }
    if writes {
        access.write(word, now)?;
        access.record_write(word, now);
    } else {
        access.record_read(word, now);
    }
    Ok(())
}
