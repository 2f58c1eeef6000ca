//! Shadow of one CTA's shared memory: per 4-byte word the last write, and the last read of every warp.
//!
//! A word's *mark* packs who wrote it last, when and where, which bytes are initialised and whether an asynchronous
//! copy owns it. One load and two compares of it pass the usual read. Reads are kept per warp, exactly; so that a
//! write need not look at all of them, a word also knows the barrier generation of its latest read: a barrier of all
//! warps since then orders everything.

use super::clock::LAST_TICK;
use super::lanes::Run;
use super::warp::Warp;

/// Fields of a mark, from the low end.
const CLAIM: u64 = 1;
const INIT_SHIFT: u32 = 1;
const INIT_ALL: u64 = 0xF << INIT_SHIFT;
const STRONG: u64 = 1 << 5;
const BYTES_SHIFT: u32 = 6;
const LANE_SHIFT: u32 = 10;
const LINE_SHIFT: u32 = 15;
const LINE_LAST: u32 = (1 << 17) - 1;
const AGENT_SHIFT: u32 = 32;
const CLOCK_SHIFT: u32 = 39;

/// An access as it was recorded: a write with the init and claim bits of its word, or a read without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    fn new(agent: usize, clock: u32, line: u32, strong: bool) -> Self {
        let strong = if strong { STRONG } else { 0 };
        let line = u64::from(line.min(LINE_LAST));
        Self(
            u64::from(clock.min(LAST_TICK)) << CLOCK_SHIFT
                | (agent as u64) << AGENT_SHIFT
                | line << LINE_SHIFT
                | strong,
        )
    }

    fn at(self, lane: u32, bytes: u64) -> Self {
        Self(self.0 | u64::from(lane) << LANE_SHIFT | bytes << BYTES_SHIFT)
    }

    /// Agent within the CTA.
    pub(super) fn agent(self) -> usize {
        (self.0 >> AGENT_SHIFT) as usize & 0x7F
    }

    /// PTX line.
    pub(super) fn line(self) -> u32 {
        (self.0 >> LINE_SHIFT) as u32 & LINE_LAST
    }

    /// Lane, the last one where several shared the word.
    pub(super) fn lane(self) -> u32 {
        (self.0 >> LANE_SHIFT) as u32 & 31
    }

    fn clock(self) -> u32 {
        (self.0 >> CLOCK_SHIFT) as u32
    }

    fn bytes(self) -> u64 {
        self.0 >> BYTES_SHIFT & 0xF
    }

    fn is_strong(self) -> bool {
        self.0 & STRONG != 0
    }

    /// Agent and clock together, for comparing.
    fn epoch(self) -> u32 {
        (self.0 >> AGENT_SHIFT) as u32
    }
}

/// What is wrong with an access to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
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
}

/// A finding and the byte offset of its word, and the lane that came upon it.
pub(super) type Found = (Finding, u64, u32);

/// Who accesses, and how.
pub(super) struct Access<'a> {
    pub(super) warp: &'a Warp,
    pub(super) index: usize,
    /// Bytes per lane.
    pub(super) bytes: u32,
    pub(super) line: u32,
    /// Atomic, volatile or ordered: such accesses do not race with each other.
    pub(super) strong: bool,
    /// Barriers of all warps so far.
    pub(super) generation: u32,
    pub(super) lane_order: bool,
}

impl Access<'_> {
    fn mark(&self) -> Mark {
        Mark::new(self.index, self.warp.clock, self.line, self.strong)
    }

    fn is_after(&self, mark: Mark, lane: u32) -> bool {
        self.warp.is_after(mark.agent(), mark.clock(), 1 << mark.lane(), 1 << lane)
    }

    /// The agent's accesses up to the mark's are known whoever's lane asks, so the answer holds for other words too.
    fn is_after_for_all(&self, mark: Mark) -> bool {
        if mark.agent() == self.index {
            return !self.lane_order;
        }
        self.warp.is_uniform() && mark.clock() <= self.warp.knows(0).local[mark.agent()].all
    }
}

/// The shadow.
#[derive(Debug)]
pub(super) struct SharedShadow {
    words: usize,
    marks: Vec<u64>,
    /// By warp, then word.
    reads: Vec<u64>,
    /// Barrier generation of the latest read of each word.
    read_in: Vec<u32>,
    warps: usize,
}

impl SharedShadow {
    /// Shadow of `bytes` of shared memory for `warps` warps.
    pub(super) fn new(bytes: u32, warps: usize) -> Self {
        let words = bytes.div_ceil(4) as usize;
        Self { words, marks: vec![0; words], reads: vec![0; words * warps], read_in: vec![0; words], warps }
    }

    /// All bytes are uninitialised again. Recorded reads stay: the next user's clocks start after them.
    pub(super) fn reset(&mut self) {
        self.marks.fill(0);
    }

    /// Record a read of a run of bytes, or say what is wrong with it. Bytes outside are the interpreter's to refuse.
    #[inline]
    pub(super) fn read(&mut self, access: &Access<'_>, run: Run) -> Result<(), Found> {
        let read = access.mark();
        let own = Mark::new(access.index, 0, 0, false).epoch();
        // No write of this warp at tick 0 exists, so this epoch stands for "nothing verified yet".
        let mut verified = own;
        for piece in Pieces::new(run, access.bytes, self.words) {
            let mark = Mark(self.marks[piece.word]);
            let need = piece.mask << INIT_SHIFT;
            if mark.0 & (need | CLAIM) != need || mark.epoch() != verified {
                self.check_read(access, &piece, mark)?;
                if access.is_after_for_all(mark) {
                    verified = mark.epoch();
                }
            }
            self.reads[access.index * self.words + piece.word] = read.at(piece.lane, piece.mask).0;
            self.read_in[piece.word] = access.generation;
        }
        Ok(())
    }

    /// Record a write of a run of bytes, or say what is wrong with it.
    #[inline]
    pub(super) fn write(&mut self, access: &Access<'_>, run: Run) -> Result<(), Found> {
        let write = access.mark();
        let mut verified = Mark::new(access.index, 0, 0, false).epoch();
        for piece in Pieces::new(run, access.bytes, self.words) {
            let mark = Mark(self.marks[piece.word]);
            if mark.0 & CLAIM != 0 || mark.epoch() != verified {
                self.check_order(access, &piece, mark)?;
                if access.is_after_for_all(mark) {
                    verified = mark.epoch();
                }
            }
            if self.read_in[piece.word] >= access.generation {
                self.check_readers(access, &piece)?;
            }
            let mut mask = piece.mask;
            if mark.epoch() == write.epoch() && mark.is_strong() == access.strong {
                mask |= mark.bytes();
            }
            self.marks[piece.word] = write.at(piece.lane, mask).0 | mark.0 & INIT_ALL | piece.mask << INIT_SHIFT;
        }
        Ok(())
    }

    /// Claim a run of whole words for an asynchronous copy that is issued now.
    pub(super) fn claim(&mut self, access: &Access<'_>, run: Run) -> Result<(), Found> {
        for piece in Pieces::new(run, access.bytes, self.words) {
            let mark = Mark(self.marks[piece.word]);
            self.check_order(access, &piece, mark)?;
            self.check_readers(access, &piece)?;
            self.marks[piece.word] |= CLAIM;
        }
        Ok(())
    }

    /// The copy into a run of whole words is complete, as agent `agent` at `clock`.
    pub(super) fn settle(&mut self, agent: usize, clock: u32, line: u32, run: Run, bytes: u32) {
        let write = Mark::new(agent, clock, line, false);
        for piece in Pieces::new(run, bytes, self.words) {
            self.marks[piece.word] = write.at(piece.lane, piece.mask).0 | INIT_ALL;
        }
    }

    fn check_read(&self, access: &Access<'_>, piece: &Piece, mark: Mark) -> Result<(), Found> {
        self.check_order(access, piece, mark)?;
        let missing = piece.mask & !(mark.0 >> INIT_SHIFT);
        if missing != 0 {
            return Err((
                Finding::Uninitialised,
                piece.word as u64 * 4 + u64::from(missing.trailing_zeros()),
                piece.lane,
            ));
        }
        if access.lane_order && mark.agent() == access.index {
            let stale = mark.clock() <= access.warp.ordered || mark.lane() == piece.lane;
            if !stale && mark.bytes() & piece.mask != 0 {
                return Err((Finding::LaneOrder(mark), piece.word as u64 * 4, piece.lane));
            }
        }
        Ok(())
    }

    /// After the last write, and not while a copy is in flight?
    fn check_order(&self, access: &Access<'_>, piece: &Piece, mark: Mark) -> Result<(), Found> {
        let place = piece.word as u64 * 4;
        if mark.0 & CLAIM != 0 {
            return Err((Finding::InFlight, place, piece.lane));
        }
        let apart = mark.bytes() & piece.mask == 0 || (mark.is_strong() && access.strong);
        if apart || access.is_after(mark, piece.lane) {
            return Ok(());
        }
        Err((Finding::AfterWrite(mark), place, piece.lane))
    }

    /// After the last read of every warp?
    fn check_readers(&self, access: &Access<'_>, piece: &Piece) -> Result<(), Found> {
        for reader in (0..self.warps).filter(|reader| *reader != access.index) {
            let mark = Mark(self.reads[reader * self.words + piece.word]);
            let apart = mark.bytes() & piece.mask == 0 || (mark.is_strong() && access.strong);
            if apart {
                continue;
            }
            // Which lanes read is known for the last one only; a release by others of them must not be taken for
            // none, so the lanes are not asked for.
            let entry = &access.warp.knows(1 << piece.lane).local[reader];
            if mark.clock() > entry.all.max(entry.some) {
                return Err((Finding::AfterRead(mark), piece.word as u64 * 4, piece.lane));
            }
        }
        Ok(())
    }
}

/// The part of a run that lies in one word.
struct Piece {
    word: usize,
    /// Bytes of the word, as bits.
    mask: u64,
    lane: u32,
}

/// A run, word by word.
struct Pieces {
    at: u64,
    end: u64,
    start: u64,
    lane: u32,
    shift: u32,
}

impl Pieces {
    #[inline]
    fn new(run: Run, bytes: u32, words: usize) -> Self {
        let end = (run.start + run.bytes).min(words as u64 * 4);
        Self { at: run.start, end, start: run.start, lane: run.lane, shift: bytes.trailing_zeros() }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    #[inline(always)]
    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let next = ((self.at | 3) + 1).min(self.end);
        let mask = (0xF >> (4 - (next - self.at))) << (self.at & 3);
        let lane = self.lane + ((self.at - self.start) >> self.shift) as u32;
        let piece = Piece { word: (self.at / 4) as usize, mask, lane };
        self.at = next;
        Some(piece)
    }
}
