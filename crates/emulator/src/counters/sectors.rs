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

    /// Any pattern: a lane lies in one sector, because addresses are multiples of the size.
    fn gather(mask: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
        let mut sectors = [0; 64];
        let mut count = 0;
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let address = addresses[lane];
            for sector in [address / SECTOR, address.wrapping_add(u64::from(bytes.max(1)) - 1) / SECTOR] {
                if count == 0 || sectors[count - 1] != sector {
                    sectors[count] = sector;
                    count += 1;
                }
            }
        }
        let sectors = &mut sectors[..count];
        if !sectors.is_sorted() {
            sectors.sort_unstable();
        }
        let repeats = sectors.windows(2).filter(|pair| pair[0] == pair[1]).count();
        (count - repeats) as u32
    }
}
