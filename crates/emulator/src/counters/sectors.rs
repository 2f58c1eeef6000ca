//! How many 32-byte sectors of global memory a warp's request touches.

/// Bytes of a sector.
pub const SECTOR: u64 = 32;

/// Sectors of one warp request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// Distinct sectors touched.
    pub touched: u32,
    /// Sectors that dense, aligned lanes would touch. A broadcast may touch fewer; then it is the same number.
    pub ideal: u32,
}

impl Sectors {
    /// Count them for the lanes of `mask`, `bytes` (1 to 16) each.
    #[inline]
    pub fn of(mask: u32, addresses: &[u64; 32], bytes: u32) -> Self {
        let ideal = (mask.count_ones() * bytes).div_ceil(SECTOR as u32);
        let touched = Self::contiguous(mask, addresses, bytes).unwrap_or_else(|| Self::gather(mask, addresses, bytes));
        Self { touched, ideal: ideal.min(touched) }
    }

    /// All 32 lanes side by side.
    #[inline]
    fn contiguous(mask: u32, addresses: &[u64; 32], bytes: u32) -> Option<u32> {
        let step = u64::from(bytes);
        let mut gaps = u64::from(!mask);
        for (lane, address) in addresses.iter().enumerate() {
            gaps |= address ^ addresses[0].wrapping_add(step * lane as u64);
        }
        if gaps != 0 {
            return None;
        }
        let first = addresses[0] / SECTOR;
        let last = (addresses[0] + 32 * step - 1) / SECTOR;
        Some((last - first + 1) as u32)
    }

    /// Any pattern. Lanes that go upwards, which is the usual case, need no sorting.
    fn gather(mask: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
        let span = u64::from(bytes.max(1)) - 1;
        let mut touched = 0;
        let mut next = 0;
        let mut rises = true;
        for (lane, address) in addresses.iter().enumerate() {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let (first, last) = (address / SECTOR, address.wrapping_add(span) / SECTOR);
            // `next` is the first sector above all those seen.
            rises &= first + 1 >= next;
            touched += (last + 1).saturating_sub(first.max(next));
            next = next.max(last + 1);
        }
        if rises { touched as u32 } else { Self::sorted(mask, addresses, span) }
    }

    /// Any order.
    fn sorted(mask: u32, addresses: &[u64; 32], span: u64) -> u32 {
        let mut sectors = [0; 64];
        let mut count = 0;
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let address = addresses[lane];
            sectors[count] = address / SECTOR;
            sectors[count + 1] = address.wrapping_add(span) / SECTOR;
            count += 2;
        }
        let sectors = &mut sectors[..count];
        sectors.sort_unstable();
        let repeats = sectors.windows(2).filter(|pair| pair[0] == pair[1]).count();
        (count - repeats) as u32
    }
}
