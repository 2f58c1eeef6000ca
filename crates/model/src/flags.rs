//! Flags of packed samples: where a carry is cut.
//!
//! Bit 0 cuts what a forward recurrence carries from the token before; bit 1 what a reverse one carries from the token
//! after. Two bits, because one token can start a sample and be causal at once.

/// The forward carry into this token is cut.
pub const RESET_FORWARD: u8 = 1;
/// The reverse carry into this token is cut.
pub const RESET_REVERSE: u8 = 2;

/// One sample of a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Tokens.
    pub len: usize,
    /// Tokens from the start that are read both ways. The tokens after them are causal. At most `len`.
    pub prefix_len: usize,
}

/// Flags of samples that lie one after another.
///
/// Every sample starts with a forward cut and ends with a reverse cut, and every causal token has a reverse cut: its
/// reverse channels see only the token itself. The last prefix token takes a reverse carry from the first causal token,
/// which knows nothing that comes later; with `hard_seam` that carry is cut, too.
pub fn build(segments: &[Segment], hard_seam: bool) -> Vec<u8> {
    let mut flags = Vec::with_capacity(segments.iter().map(|segment| segment.len).sum());
    for segment in segments {
        let read_both_ways = segment.prefix_len.saturating_sub(usize::from(hard_seam));
        for token in 0..segment.len {
            let forward = if token == 0 { RESET_FORWARD } else { 0 };
            let reverse = if token >= read_both_ways || token + 1 == segment.len { RESET_REVERSE } else { 0 };
            flags.push(forward | reverse);
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seam_is_soft_or_hard() {
        let sample = [Segment { len: 6, prefix_len: 3 }];
        assert_eq!(build(&sample, false), [1, 0, 0, 2, 2, 2]);
        assert_eq!(build(&sample, true), [1, 0, 2, 2, 2, 2]);
    }

    #[test]
    fn samples_are_sealed_off_from_one_another() {
        let samples = [(3, 0), (0, 0), (2, 2), (1, 1)].map(|(len, prefix_len)| Segment { len, prefix_len });
        assert_eq!(build(&samples, false), [3, 2, 2, 1, 2, 3]);
        assert_eq!(build(&samples, true), [3, 2, 2, 1, 2, 3]);
    }
}
