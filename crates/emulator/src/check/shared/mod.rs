//! Shadow of one CTA's shared memory: the last write of every place, and the last read by every warp.
//!
//! Memory is shadowed in granules of 16 bytes, because that is what tiles move in. As long as every access covers
//! whole granules one mark stands for all 16 bytes; the first access to a part of a granule splits it into words, and
//! a write of the whole joins it again.
//!
//! Reads are kept for each warp exactly. So that a write need not look at all of them, a granule also knows the
//! barrier generation of its latest read: a barrier of all warps since then orders everything.

mod access;
mod mark;
mod rows;

pub(super) use access::{Access, Finding, Found};
pub(super) use mark::Mark;

use super::lanes::Run;
use mark::{GRANULE, WORDS};

/// The shadow.
#[derive(Debug)]
pub(super) struct SharedShadow {
    warps: usize,
    /// Last writes by granule.
    marks: Vec<Mark>,
    /// Last reads by warp, then granule.
    reads: Vec<Mark>,
    /// Barrier generation of the latest read of each granule.
    read_in: Vec<u32>,
    /// Words of split granules: four writes, then four reads for each warp, then four covered writes: those before an
    /// atomic one that it does not stand for, because nothing orders them or because they were plain.
    words: Vec<Mark>,
    /// Places in `words` that are free again.
    free: Vec<usize>,
}

/// The part of a run that lies in one granule.
struct Piece {
    granule: usize,
    /// Bytes from `from` to `to` of the granule.
    from: u64,
    to: u64,
    /// Lane of the first byte.
    lane: u32,
}

impl Piece {
    #[inline]
    fn is_whole(&self) -> bool {
        self.to - self.from == GRANULE
    }

    /// Word, accessed bytes of it as bits, and lane; for each word.
    fn words(&self, spread: u32) -> impl Iterator<Item = (usize, u64, u32)> {
        (self.from / 4..self.to.div_ceil(4)).map(move |word| {
            let (low, high) = (self.from.max(4 * word), self.to.min(4 * word + 4));
            let bytes = (0xF >> (4 - (high - low))) << (low % 4);
            (word as usize, bytes, self.lane + ((low - self.from) >> spread) as u32)
        })
    }

    /// A finding at one of its words.
    fn found(&self, finding: Finding, word: usize, lane: u32) -> Found {
        (finding, self.granule as u64 * GRANULE + 4 * word as u64, lane)
    }
}

impl SharedShadow {
    /// Shadow of `bytes` of shared memory for `warps` warps.
    pub(super) fn new(bytes: u32, warps: usize) -> Self {
        let granules = u64::from(bytes).div_ceil(GRANULE) as usize;
        Self {
            warps,
            marks: vec![Mark::default(); granules],
            reads: vec![Mark::default(); granules * warps],
            read_in: vec![0; granules],
            words: Vec::new(),
            free: Vec::new(),
        }
    }

    /// All bytes are uninitialised again. Recorded reads stay: the next user's clocks start after them.
    pub(super) fn reset(&mut self) {
        self.marks.fill(Mark::default());
        self.words.clear();
        self.free.clear();
    }

    /// Record a read of a run of bytes, or say what is wrong with it. Bytes outside are the interpreter's to refuse.
    #[inline]
    pub(super) fn read(&mut self, access: &mut Access<'_>, run: Run) -> Result<(), Found> {
        if self.read_row(access, run) {
            return Ok(());
        }
        for piece in self.pieces(run, access.spread) {
            let mark = self.marks[piece.granule];
            self.read_in[piece.granule] = access.generation;
            if piece.is_whole() && mark.is_settled() && access.by_granule() && access.is_after_granule(mark, piece.lane)
            {
                let place = access.index * self.marks.len() + piece.granule;
                self.reads[place] = access.mark.granule(piece.lane, access.spread);
            } else {
                self.read_words(access, &piece)?;
            }
        }
        Ok(())
    }

    /// Record a write of a run of bytes, or say what is wrong with it.
    #[inline]
    pub(super) fn write(&mut self, access: &mut Access<'_>, run: Run) -> Result<(), Found> {
        if self.write_row(access, run) {
            return Ok(());
        }
        for piece in self.pieces(run, access.spread) {
            if !self.may_write_granule(access, &piece) {
                self.check_words(access, &piece)?;
                if !piece.is_whole() || !access.by_granule() {
                    self.write_words(access, &piece);
                    continue;
                }
            }
            let mark = access.mark.granule(piece.lane, access.spread).with_init(0xF);
            self.set_granule(piece.granule, mark);
        }
        Ok(())
    }

    /// Claim a run of whole words for an asynchronous copy that is issued now.
    pub(super) fn claim(&mut self, access: &mut Access<'_>, run: Run) -> Result<(), Found> {
        for piece in self.pieces(run, access.spread) {
            if !self.may_write_granule(access, &piece) {
                self.check_words(access, &piece)?;
            }
            if piece.is_whole() {
                let mark = access.mark.granule(piece.lane, access.spread).with_claim();
                self.set_granule(piece.granule, mark);
            } else {
                let place = self.split(piece.granule);
                for (word, ..) in piece.words(access.spread) {
                    self.words[place + word] = self.words[place + word].with_claim();
                }
            }
        }
        Ok(())
    }

    /// The copy into a run of whole words is complete, as agent `agent` at `clock`.
    pub(super) fn settle(&mut self, agent: usize, clock: u32, line: u32, run: Run, bytes: u32) {
        let write = Mark::new(agent, clock, line, false);
        let spread = bytes.trailing_zeros();
        for piece in self.pieces(run, spread) {
            if piece.is_whole() {
                self.set_granule(piece.granule, write.granule(piece.lane, spread).with_init(0xF));
            } else {
                let place = self.split(piece.granule);
                for (word, bytes, lane) in piece.words(spread) {
                    self.words[place + word] = write.word(lane, bytes).with_init(0xF);
                }
            }
        }
    }

    /// A write of a whole granule that nothing speaks against. If not, the words decide.
    #[inline]
    fn may_write_granule(&self, access: &mut Access<'_>, piece: &Piece) -> bool {
        let mark = self.marks[piece.granule];
        piece.is_whole()
            && access.by_granule()
            && !mark.is_claimed()
            && mark.place().is_none()
            && access.is_after_granule(mark, piece.lane)
            && (self.read_in[piece.granule] < access.generation || self.is_after_reads(access, piece))
    }

    fn is_after_reads(&self, access: &Access<'_>, piece: &Piece) -> bool {
        (0..self.warps).filter(|reader| *reader != access.index).all(|reader| {
            access.is_after_read(reader, self.reads[reader * self.marks.len() + piece.granule], piece.lane)
        })
    }

    fn read_words(&mut self, access: &Access<'_>, piece: &Piece) -> Result<(), Found> {
        let place = self.split(piece.granule);
        for (word, bytes, lane) in piece.words(access.spread) {
            let mark = self.words[place + word];
            let found = |finding| piece.found(finding, word, lane);
            access.check_write(mark, lane, bytes).map_err(found)?;
            access.check_write(self.words[self.covered(place) + word], lane, bytes).map_err(found)?;
            let missing = bytes & !mark.init();
            if missing != 0 {
                let (finding, offset, lane) = found(Finding::Uninitialised);
                return Err((finding, offset + u64::from(missing.trailing_zeros()), lane));
            }
            access.check_lanes(mark, lane, bytes).map_err(found)?;
            let own = place + WORDS * (1 + access.index) + word;
            let before = self.words[own];
            let same = before.epoch() == access.mark.epoch() && before.is_strong() == access.strong;
            let mark = access.mark.word(lane, bytes | if same { before.bytes() } else { 0 });
            let several = same && (before.lane() != lane || before.is_by_several());
            self.words[own] = if several { mark.by_several() } else { mark };
        }
        Ok(())
    }

    fn check_words(&mut self, access: &Access<'_>, piece: &Piece) -> Result<(), Found> {
        let place = self.split(piece.granule);
        for (word, bytes, lane) in piece.words(access.spread) {
            let found = |finding| piece.found(finding, word, lane);
            for write in [self.words[place + word], self.words[self.covered(place) + word]] {
                access.check_write(write, lane, bytes).map_err(found)?;
            }
            access.check_lanes_after_write(self.words[place + word], lane, bytes).map_err(found)?;
            let own = self.words[place + WORDS * (1 + access.index) + word];
            access.check_lanes_after_read(own, lane, bytes).map_err(found)?;
            if self.read_in[piece.granule] >= access.generation {
                for reader in 0..self.warps {
                    let mark = self.words[place + WORDS * (1 + reader) + word];
                    access.check_read(reader, mark, lane, bytes).map_err(found)?;
                }
            }
        }
        Ok(())
    }

    fn write_words(&mut self, access: &Access<'_>, piece: &Piece) {
        let place = self.split(piece.granule);
        for (word, bytes, lane) in piece.words(access.spread) {
            let before = self.words[place + word];
            let same = before.epoch() == access.mark.epoch() && before.is_strong() == access.strong;
            let mark = access.mark.word(lane, bytes | if same { before.bytes() } else { 0 });
            self.words[place + word] = mark.with_init(before.init() | bytes);
            let covered = &mut self.words[place + WORDS * (1 + self.warps) + word];
            if access.leaves(before, lane, bytes) {
                *covered = before;
            } else if !access.leaves(*covered, lane, bytes) {
                *covered = Mark::default();
            }
        }
    }

    /// Where the covered writes of the granule are whose words begin at `place`.
    fn covered(&self, place: usize) -> usize {
        place + WORDS * (1 + self.warps)
    }

    /// Give a granule one mark. All earlier accesses come before it, so what was known of words is no longer needed.
    #[inline]
    fn set_granule(&mut self, granule: usize, mark: Mark) {
        if let Some(place) = self.marks[granule].place() {
            self.free.push(place);
        }
        self.marks[granule] = mark;
    }

    /// Where the words of a granule are; splits it if need be.
    fn split(&mut self, granule: usize) -> usize {
        let whole = self.marks[granule];
        if let Some(place) = whole.place() {
            return place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.words.len();
            self.words.resize(place + WORDS * (2 + self.warps), Mark::default());
            place
        });
        for word in 0..WORDS {
            self.words[place + word] = whole.part(word);
            self.words[place + WORDS * (1 + self.warps) + word] = Mark::default();
            for reader in 0..self.warps {
                let read = self.reads[reader * self.marks.len() + granule];
                self.words[place + WORDS * (1 + reader) + word] = read.part(word);
            }
        }
        self.marks[granule] = Mark::split(place);
        place
    }

    /// A run, granule by granule.
    #[inline]
    fn pieces(&self, run: Run, spread: u32) -> impl Iterator<Item = Piece> + use<> {
        let end = (run.start + run.bytes).min(self.marks.len() as u64 * GRANULE);
        let mut at = run.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let granule = at / GRANULE;
            let next = ((granule + 1) * GRANULE).min(end);
            let lane = run.lane + ((at - run.start) >> spread) as u32;
            let piece = Piece { granule: granule as usize, from: at % GRANULE, to: next - granule * GRANULE, lane };
            at = next;
            Some(piece)
        })
    }
}
