//! How many passes over the banks of shared memory a warp's request takes.
//!
//! 32 banks of 4 bytes. Lanes that read the same word share it. Accesses of 8 bytes are served by half warps and those
//! of 16 bytes by quarter warps; a `ldmatrix` serves one 8 by 8 matrix, eight rows of 16 bytes, at a time.

const BANKS: usize = 32;

/// Passes of one warp request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wavefronts {
    /// Passes needed.
    pub passes: u32,
    /// Passes without conflicts.
    pub ideal: u32,
}

impl Wavefronts {
    /// Count them for the lanes of `mask`, `bytes` (1 to 16) each.
    #[inline]
    pub fn of(mask: u32, addresses: &[u32; 32], bytes: u32) -> Self {
        let words = bytes.div_ceil(4).max(1);
        let lanes_per_phase = 32 / words;
        if mask == u32::MAX && contiguous(addresses, bytes) {
            let phases = if bytes < 4 { 1 } else { words };
            return Self { passes: phases, ideal: phases };
        }
        let mut total = Self::default();
        for phase in 0..words {
            let first = phase * lanes_per_phase;
            let lanes = mask & (u32::MAX >> (32 - lanes_per_phase)) << first;
            if lanes != 0 {
                total.passes += conflicts(lanes, addresses, words);
                total.ideal += 1;
            }
        }
        total
    }

    /// Count them for `matrices` 8 by 8 matrices whose row addresses are in lanes 0 to 7, 8 to 15, and so on.
    #[inline]
    pub fn of_matrices(addresses: &[u32; 32], matrices: u32) -> Self {
        let passes = (0..matrices).map(|matrix| conflicts(0xFF << (8 * matrix), addresses, 4)).sum();
        Self { passes, ideal: matrices }
    }
}

#[inline]
fn contiguous(addresses: &[u32; 32], bytes: u32) -> bool {
    let mut gaps = addresses[0] & (bytes.max(4) - 1);
    for (lane, address) in addresses.iter().enumerate() {
        gaps |= address ^ addresses[0].wrapping_add(bytes * lane as u32);
    }
    gaps == 0
}

/// Most distinct words that one bank must give to these lanes, `words` consecutive ones per lane.
fn conflicts(lanes: u32, addresses: &[u32; 32], words: u32) -> u32 {
    if all_apart(lanes, addresses, words) { 1 } else { count_conflicts(lanes, addresses, words) }
}

/// No two lanes need the same bank. Vector accesses are aligned, so their banks do not wrap around.
fn all_apart(lanes: u32, addresses: &[u32; 32], words: u32) -> bool {
    let mut banks = 0u32;
    for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
        banks |= ((1 << words) - 1) << (addresses[lane] / 4 % BANKS as u32);
    }
    banks.count_ones() == lanes.count_ones() * words
}

fn count_conflicts(lanes: u32, addresses: &[u32; 32], words: u32) -> u32 {
    let mut first = [u32::MAX; BANKS];
    let mut more: [(u32, u32); 128] = [(0, 0); 128];
    let mut count = 0;
    let mut deepest = 1;
    for lane in (0..32).filter(|lane| lanes >> lane & 1 == 1) {
        let base = addresses[lane] / 4;
        for word in base..base.wrapping_add(words) {
            let bank = word as usize % BANKS;
            if first[bank] == word {
                continue;
            }
            if first[bank] == u32::MAX {
                first[bank] = word;
                continue;
            }
            let others = &more[..count];
            if others.iter().all(|other| *other != (bank as u32, word)) {
                let depth = 2 + others.iter().filter(|other| other.0 == bank as u32).count() as u32;
                deepest = deepest.max(depth);
                more[count] = (bank as u32, word);
                count += 1;
            }
        }
    }
    deepest
}
