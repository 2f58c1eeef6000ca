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
pub(super) struct Runs<'a, A> {
    addresses: &'a [A; 32],
    mask: u32,
    bytes: u32,
    merge_equal: bool,
}

impl<'a, A: Copy + Into<u64>> Runs<'a, A> {
    /// With `merge_equal`, neighbours that touch the very same place count once, as the first of them.
    pub(super) fn new(mask: u32, addresses: &'a [A; 32], bytes: u32, merge_equal: bool) -> Self {
        Self { addresses, mask, bytes, merge_equal }
    }

    fn all_contiguous(&self) -> bool {
        let first: u64 = self.addresses[0].into();
        let mut gaps = 0;
        for (lane, address) in self.addresses.iter().enumerate() {
            gaps |= (*address).into() ^ first.wrapping_add(u64::from(self.bytes) * lane as u64);
        }
        gaps == 0
    }
}

impl<A: Copy + Into<u64>> Iterator for Runs<'_, A> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.mask == u32::MAX && self.all_contiguous() {
            self.mask = 0;
            return Some(Run { start: self.addresses[0].into(), bytes: u64::from(self.bytes) * 32, lane: 0 });
        }
        if self.mask == 0 {
            return None;
        }
        let lane = self.mask.trailing_zeros();
        let start = self.addresses[lane as usize].into();
        let step = u64::from(self.bytes);
        let mut bytes = step;
        self.mask &= self.mask - 1;
        let mut next = lane + 1;
        while next < 32 && self.mask >> next & 1 == 1 {
            let address = self.addresses[next as usize].into();
            let repeats = self.merge_equal && bytes == step && address == start;
            if !repeats && address != start + bytes {
                break;
            }
            if !repeats {
                // Lanes and places must advance together, so a repeated place stays a run of its own.
                if next != lane + (bytes / step) as u32 {
                    break;
                }
                bytes += step;
            }
            self.mask &= self.mask - 1;
            next += 1;
        }
        Some(Run { start, bytes, lane })
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
