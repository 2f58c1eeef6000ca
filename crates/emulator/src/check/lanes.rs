//! Lanes of one instruction as runs of consecutive memory.

/// Lanes side by side that touch consecutive memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte.
    pub(super) start: u64,
    /// Length.
    pub(super) bytes: u64,
    /// First lane.
    pub(super) lane: u32,
}

/// Splits the lanes of an instruction into runs, in the order of lanes.
#[derive(Debug, Clone)]
pub(super) struct Runs<'a, A> {
    addresses: &'a [A; 32],
    mask: u32,
    bytes: u32,
    /// Lanes that begin where the lane before them ends.
    follow: u32,
    /// Lanes that touch what the lane before them touches, and count as one with it.
    repeat: u32,
    /// All lanes take part, and no two share a place: each begins where the one before ends, or behind that.
    distinct: bool,
}

impl<'a, A: Copy + Into<u64>> Runs<'a, A> {
    #[inline]
    pub(super) fn new(mask: u32, addresses: &'a [A; 32], bytes: u32) -> Self {
        let all = mask == u32::MAX;
        let (follow, distinct) = if all && contiguous(addresses, bytes) {
            (u32::MAX, true)
        } else if all && rising(addresses, bytes) {
            (0, true)
        } else {
            (mask & lanes_apart(addresses, bytes.into()), false)
        };
        Self { addresses, mask, bytes, follow, repeat: 0, distinct }
    }

    /// If `merge`, neighbours that touch the very same place count once, as the first of them.
    #[inline]
    pub(super) fn merge_equal(mut self, merge: bool) -> Self {
        if merge && !self.distinct {
            self.repeat = self.mask & lanes_apart(self.addresses, 0);
        }
        self
    }

    /// No lane begins where the one before it ends, or touches what that one touches.
    #[inline]
    pub(super) fn are_apart(&self) -> bool {
        self.follow | self.repeat == 0
    }

    /// Lanes that are left.
    #[inline]
    pub(super) fn mask(&self) -> u32 {
        self.mask
    }

    /// Go on with these lanes.
    #[inline]
    pub(super) fn keep(&mut self, mask: u32) {
        self.mask = mask;
    }

    /// It was easy to see that no two lanes share a place.
    #[inline]
    pub(super) fn are_distinct(&self) -> bool {
        self.distinct
    }
}

/// Whether all lanes lie side by side.
#[inline]
fn contiguous<A: Copy + Into<u64>>(addresses: &[A; 32], bytes: u32) -> bool {
    let first: u64 = addresses[0].into();
    let mut gaps = 0;
    for (lane, address) in addresses.iter().enumerate() {
        gaps |= (*address).into() ^ first.wrapping_add(u64::from(bytes) * lane as u64);
    }
    gaps == 0
}

/// Whether each lane leaves a gap to the lane before it.
#[inline]
fn rising<A: Copy + Into<u64>>(addresses: &[A; 32], bytes: u32) -> bool {
    let mut gaps = 0;
    for lane in 1..32 {
        let behind = addresses[lane - 1].into().wrapping_add(u64::from(bytes) + 1);
        // The sign says whether it begins before that; addresses are far below 2^63.
        gaps |= addresses[lane].into().wrapping_sub(behind);
    }
    gaps >> 63 == 0
}

/// Lanes whose address is that of the lane before them and `distance`.
#[inline]
fn lanes_apart<A: Copy + Into<u64>>(addresses: &[A; 32], distance: u64) -> u32 {
    let mut lanes = 0;
    for lane in 1..32 {
        let between = addresses[lane].into().wrapping_sub(addresses[lane - 1].into());
        lanes |= u32::from(between == distance) << lane;
    }
    lanes
}

impl<A: Copy + Into<u64>> Iterator for Runs<'_, A> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.mask == 0 {
            return None;
        }
        let lane = self.mask.trailing_zeros();
        // Lanes and places must advance together, so a place that several lanes share stays a run of its own.
        let repeats = (self.repeat >> lane >> 1).trailing_ones();
        let follows = if repeats == 0 { (self.follow >> lane >> 1).trailing_ones() } else { 0 };
        self.mask &= !((u32::MAX >> (31 - repeats - follows)) << lane);
        let bytes = u64::from(self.bytes) * u64::from(1 + follows);
        Some(Run { start: self.addresses[lane as usize].into(), bytes, lane })
    }
}

/// Two lanes that store different values to one place, if there are any. `values` has a row of lanes per 4 bytes;
/// without values nothing is known and nothing is found.
pub(super) fn store_conflict<A: Copy + Into<u64>>(
    mask: u32,
    addresses: &[A; 32],
    bytes: u32,
    values: &[&[u32; 32]],
) -> Option<(u32, u32)> {
    if values.is_empty() || distinct(mask, addresses, bytes) {
        return None;
    }
    let significant = if bytes < 4 { (1 << (8 * bytes)) - 1 } else { u32::MAX };
    let lanes = || (0..32).filter(|lane| mask >> lane & 1 == 1);
    for a in lanes() {
        for b in lanes().filter(|b| *b > a) {
            let (left, right): (u64, u64) = (addresses[a].into(), addresses[b].into());
            if left == right && values.iter().any(|row| (row[a] ^ row[b]) & significant != 0) {
                return Some((a as u32, b as u32));
            }
        }
    }
    None
}

/// Cheap proof that no two lanes share a place: all fall into different ones of 64 buckets. Addresses are multiples of
/// the size, so places are shared wholly or not at all.
fn distinct<A: Copy + Into<u64>>(mask: u32, addresses: &[A; 32], bytes: u32) -> bool {
    let shift = bytes.trailing_zeros();
    let mut buckets = 0u64;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let address: u64 = addresses[lane].into();
        buckets |= 1 << ((address >> shift) & 63);
    }
    buckets.count_ones() == mask.count_ones()
}
