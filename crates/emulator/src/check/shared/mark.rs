//! A shared-memory access as the shadow remembers it, in 64 bits.

use crate::check::clock::LAST_TICK;

/// Bytes of a granule: what `cp.async`, `ldmatrix` and vector accesses move as one.
pub(in crate::check) const GRANULE: u64 = 16;

/// Words of a granule.
pub(super) const WORDS: usize = 4;

// Fields from the low end: claim 1, initialised bytes 4, strong 1, bytes or spread 4, lane 5, line 17, agent 7, clock 25.
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

/// In the claim's place, for the read of a word: more than one lane of the warp has read it at that tick.
const SEVERAL: u64 = CLAIM;

/// In place of a granule's initialised bytes, which are all or none: its words are kept apart.
const SPLIT: u64 = 1 << INIT_SHIFT;

/// Who accessed, when, at which PTX line and from which lane; for a write also which bytes are initialised and whether
/// a copy in flight owns the place.
///
/// The mark of a *word* says which of its bytes were accessed. The mark of a *granule* stands for an access to all its
/// 16 bytes by neighbouring lanes, and says in the same field how many bytes each lane had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::check) struct Mark(pub(super) u64);

impl Mark {
    /// An access, to be completed by [`Mark::word`] or [`Mark::granule`].
    pub(super) fn new(agent: usize, clock: u32, line: u32, strong: bool) -> Self {
        let strong = if strong { STRONG } else { 0 };
        let line = u64::from(line.min(LINE_LAST)) << LINE_SHIFT;
        let clock = u64::from(clock.min(LAST_TICK)) << CLOCK_SHIFT;
        Self(clock | (agent as u64) << AGENT_SHIFT | line | strong)
    }

    /// Place holder of a granule whose words are kept apart.
    pub(super) fn split(place: usize) -> Self {
        Self((place as u64) << AGENT_SHIFT | SPLIT)
    }

    /// Where the words are, if they are kept apart.
    #[inline]
    pub(super) fn place(self) -> Option<usize> {
        (self.0 & (INIT_ALL | CLAIM) == SPLIT).then_some((self.0 >> AGENT_SHIFT) as usize)
    }

    /// Access to some bytes of a word.
    #[inline]
    pub(super) fn word(self, lane: u32, bytes: u64) -> Self {
        Self(self.0 | u64::from(lane) << LANE_SHIFT | bytes << BYTES_SHIFT)
    }

    /// Access to a granule by lanes of `1 << spread` bytes, from `lane` on.
    #[inline]
    pub(super) fn granule(self, lane: u32, spread: u32) -> Self {
        Self(self.0 | u64::from(lane) << LANE_SHIFT | u64::from(spread) << BYTES_SHIFT)
    }

    /// The mark of the granule that neighbouring lanes access `index` granules after this one's.
    #[inline]
    pub(super) fn neighbour(self, index: usize, spread: u32) -> Self {
        Self(self.0 + ((index as u64 * (GRANULE >> spread)) << LANE_SHIFT))
    }

    /// The mark that all of these are but for lane and line, if there is one: one agent at one tick, in one state.
    #[inline]
    pub(super) fn common(marks: &[Self]) -> Option<Self> {
        let first = *marks.first()?;
        let differ = marks.iter().fold(0, |differ, mark| differ | (mark.0 ^ first.0));
        (differ & (u64::MAX << AGENT_SHIFT | INIT_ALL | CLAIM) == 0).then_some(first)
    }

    /// The mark of word `index` out of that of a granule.
    pub(super) fn part(self, index: usize) -> Self {
        let lane = (self.lane() + ((4 * index as u32) >> self.bytes())) & 31;
        let rest = self.0 & !(31 << LANE_SHIFT | 0xF << BYTES_SHIFT);
        if rest == 0 { self } else { Self(rest).word(lane, 0xF) }
    }

    #[inline]
    pub(super) fn with_init(self, bytes: u64) -> Self {
        Self(self.0 | bytes << INIT_SHIFT)
    }

    pub(super) fn with_claim(self) -> Self {
        Self(self.0 | CLAIM)
    }

    /// Of a read: by more than one lane.
    pub(super) fn by_several(self) -> Self {
        Self(self.0 | SEVERAL)
    }

    pub(super) fn is_by_several(self) -> bool {
        self.0 & SEVERAL != 0
    }

    /// All bytes initialised and no copy in flight.
    #[inline]
    pub(super) fn is_settled(self) -> bool {
        self.0 & (INIT_ALL | CLAIM) == INIT_ALL
    }

    #[inline]
    pub(super) fn is_claimed(self) -> bool {
        self.0 & CLAIM != 0
    }

    #[inline]
    pub(super) fn is_strong(self) -> bool {
        self.0 & STRONG != 0
    }

    /// Initialised bytes of a word.
    #[inline]
    pub(super) fn init(self) -> u64 {
        (self.0 & INIT_ALL) >> INIT_SHIFT
    }

    /// Accessed bytes of a word, or the spread of a granule.
    #[inline]
    pub(super) fn bytes(self) -> u64 {
        self.0 >> BYTES_SHIFT & 0xF
    }

    /// Lanes that a granule's mark stands for.
    pub(super) fn lanes(self) -> u32 {
        granule_lanes(self.lane(), self.bytes() as u32)
    }

    #[inline]
    pub(super) fn clock(self) -> u32 {
        (self.0 >> CLOCK_SHIFT) as u32
    }

    /// Agent and clock together, for comparing.
    #[inline]
    pub(super) fn epoch(self) -> u32 {
        (self.0 >> AGENT_SHIFT) as u32
    }

    /// Agent within the CTA.
    #[inline]
    pub(in crate::check) fn agent(self) -> usize {
        (self.0 >> AGENT_SHIFT) as usize & 0x7F
    }

    /// PTX line.
    pub(in crate::check) fn line(self) -> u32 {
        (self.0 >> LINE_SHIFT) as u32 & LINE_LAST
    }

    /// Lane; the first of a granule, the last one of a word that several shared.
    #[inline]
    pub(in crate::check) fn lane(self) -> u32 {
        (self.0 >> LANE_SHIFT) as u32 & 31
    }
}

/// Lanes of `1 << spread` bytes that a granule takes, from `lane` on.
#[inline]
pub(super) fn granule_lanes(lane: u32, spread: u32) -> u32 {
    (u32::MAX >> (32 - (GRANULE as u32 >> spread))) << lane
}
