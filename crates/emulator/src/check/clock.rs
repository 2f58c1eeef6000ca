//! Logical time: what one warp may know of another.

/// Clocks stop here, so that they fit the shadow words; accesses beyond it are all taken for ordered.
pub(super) const LAST_TICK: u32 = (1 << 25) - 1;

/// What is known of one agent: all its accesses up to tick `all`, and those of `lanes` up to tick `some`.
///
/// The second half is there because a release by one elected lane covers what *that lane* did, and what others did
/// only up to the last `bar.warp.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub(super) all: u32,
    pub(super) some: u32,
    pub(super) lanes: u32,
}

impl Entry {
    /// Everything up to `tick`.
    pub(super) fn until(tick: u32) -> Self {
        Self { all: tick, some: 0, lanes: 0 }
    }

    /// Whether an access at `clock` by `lanes` is known.
    #[inline]
    pub(super) fn covers(&self, clock: u32, lanes: u32) -> bool {
        clock <= self.all || (clock <= self.some && lanes & !self.lanes == 0)
    }

    /// Nothing in `other` is missing here.
    fn dominates(&self, other: &Self) -> bool {
        other.all <= self.all && (other.some <= self.all || self.covers(other.some, other.lanes))
    }

    /// Learn what `other` knows. Two different sets of lanes become their union at the later tick, which may cover a
    /// little too much but never too little.
    #[inline]
    pub(super) fn join(&mut self, other: &Self) {
        self.all = self.all.max(other.all);
        if other.some > self.all {
            if self.some > self.all {
                self.lanes |= other.lanes;
                self.some = self.some.max(other.some);
            } else {
                (self.some, self.lanes) = (other.some, other.lanes);
            }
        }
    }
}

/// Learn, for each agent of a CTA, what `other` knows.
pub(super) fn join(entries: &mut [Entry], other: &[Entry]) {
    for (entry, other) in entries.iter_mut().zip(other) {
        entry.join(other);
    }
}

/// Nothing in `other` is missing in `entries`.
pub(super) fn dominates(entries: &[Entry], other: &[Entry]) -> bool {
    entries.iter().zip(other).all(|(entry, other)| entry.dominates(other))
}
