//! A global access as the shadow remembers it.

use super::clock::LAST_TICK;

/// Bytes of a shadow line: the unit that a coalesced request covers whole.
pub(super) const LINE_BYTES: u64 = 64;

/// Words of a line.
pub(super) const LINE_WORDS: usize = 16;

const LANE_SHIFT: u32 = 18;
const BYTES_SHIFT: u32 = 23;
const SPREAD_SHIFT: u32 = 27;
const STRENGTH_SHIFT: u32 = 30;
const LINE_LAST: u32 = (1 << LANE_SHIFT) - 1;
const ONE_LANE: u32 = 7;

/// How strong an access is: strong ones whose scopes include each other do not race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    Weak = 0,
    Cta = 1,
    Gpu = 2,
    /// A weak read through the non-coherent path.
    NonCoherent = 3,
}

/// Agent, tick, and the site: PTX line, lane, bytes of the word, how lanes spread over a line, strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// 0 for nobody, else 1 + CTA * warps + warp.
    pub(super) agent: u32,
    pub(super) clock: u32,
    site: u32,
}

impl Mark {
    /// An access by consecutive lanes of `1 << spread` bytes each, to be completed by [`Mark::whole_line`] or
    /// [`Mark::one_lane`].
    pub(super) fn new(agent: u32, clock: u32, line: u32, spread: u32, strength: Strength) -> Self {
        let site =
            line.min(LINE_LAST) | 0xF << BYTES_SHIFT | spread << SPREAD_SHIFT | (strength as u32) << STRENGTH_SHIFT;
        Self { agent, clock: clock.min(LAST_TICK), site }
    }

    /// A whole line, from `lane` on.
    #[inline]
    pub(super) fn whole_line(self, lane: u32) -> Self {
        Self { site: self.site | lane << LANE_SHIFT, ..self }
    }

    /// Some bytes of one word, by one lane.
    #[inline]
    pub(super) fn one_lane(self, lane: u32, bytes: u32) -> Self {
        let site = self.site & !(0xF << BYTES_SHIFT) | ONE_LANE << SPREAD_SHIFT;
        Self { site: site | lane << LANE_SHIFT | bytes << BYTES_SHIFT, ..self }
    }

    /// The mark of one word out of that of a whole line.
    pub(super) fn word(self, index: usize) -> Self {
        if self.agent == 0 {
            return self;
        }
        let lane = self.lane() + ((index as u32 * 4) >> self.spread());
        Self { site: self.site & !(31 << LANE_SHIFT), ..self }.one_lane(lane & 31, 0xF)
    }

    /// Also these bytes.
    pub(super) fn and_bytes(self, bytes: u32) -> Self {
        Self { site: self.site | bytes << BYTES_SHIFT, ..self }
    }

    pub(super) fn is_none(self) -> bool {
        self.agent == 0
    }

    pub(super) fn line(self) -> u32 {
        self.site & LINE_LAST
    }

    pub(super) fn lane(self) -> u32 {
        self.site >> LANE_SHIFT & 31
    }

    pub(super) fn bytes(self) -> u32 {
        self.site >> BYTES_SHIFT & 0xF
    }

    pub(super) fn is_non_coherent(self) -> bool {
        self.site >> STRENGTH_SHIFT == Strength::NonCoherent as u32
    }

    /// Neither atomic nor volatile, ordered or non-coherent.
    pub(super) fn is_weak(self) -> bool {
        self.site >> STRENGTH_SHIFT == Strength::Weak as u32
    }

    /// The mark as if all lanes had made the access.
    pub(super) fn all_lanes(self) -> Self {
        let site = self.site & !(7 << SPREAD_SHIFT | 31 << LANE_SHIFT);
        Self { site, ..self }
    }

    /// Atomic, volatile or ordered.
    pub(super) fn is_strong(self) -> bool {
        matches!(self.site >> STRENGTH_SHIFT, 1 | 2)
    }

    /// Whether two accesses are strong enough for each other.
    pub(super) fn is_strong_with(self, other: Self, same_cta: bool) -> bool {
        let strong = |mark: Self| match mark.site >> STRENGTH_SHIFT {
            1 => same_cta,
            2 => true,
            _ => false,
        };
        strong(self) && strong(other)
    }

    /// All lanes that the mark stands for.
    pub(super) fn lanes(self) -> u32 {
        if self.spread() == ONE_LANE {
            return 1 << self.lane();
        }
        let count = (LINE_BYTES as u32 >> self.spread()).min(32);
        (u32::MAX >> (32 - count)) << self.lane()
    }

    fn spread(self) -> u32 {
        self.site >> SPREAD_SHIFT & 7
    }
}
