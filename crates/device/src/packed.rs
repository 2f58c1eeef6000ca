//! Sequences of any lengths in one row, one after the other.

use crate::{Error, Result};

/// Checks the starts of packed sequences on the host: the first is 0, none is below the one before, the last is `total`.
///
/// Kernels read and write nothing outside of the tensors whatever the device array holds, but only such an array means what it
/// says: rows that two sequences claim have no defined value, rows that none claims are not written.
///
/// # Errors
/// [`Error::Shape`] ← no entry; [`Error::Range`] with the index ← an entry out of order.
pub fn cu_seqlens(starts: &[i32], total: usize) -> Result<()> {
    const OP: &str = "cu_seqlens";
    let Some(last) = starts.len().checked_sub(1) else {
        return Err(Error::Shape { op: OP, arg: "cu_seqlens", want: "at least one entry".into(), got: vec![0] });
    };
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let mut before = 0;
    for (at, start) in starts.iter().enumerate() {
        let got = i64::from(*start);
        let hi = if at == 0 { 0 } else { total };
        let lo = if at == last { total.max(before) } else { before };
        if !(lo..=hi).contains(&got) {
            return Err(Error::Range { op: OP, arg: "cu_seqlens", at: Some(at as u64), lo, hi, got });
        }
        before = got;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cu_seqlens_names_the_entry_out_of_order() {
        assert!(cu_seqlens(&[0, 0, 3, 7, 9], 9).is_ok());
        assert!(cu_seqlens(&[0], 0).is_ok());
        assert!(matches!(cu_seqlens(&[], 3), Err(Error::Shape { .. })));
        assert!(matches!(cu_seqlens(&[1, 2], 3), Err(Error::Range { at: Some(0), hi: 0, got: 1, .. })));
        assert!(matches!(cu_seqlens(&[0, 5, 4, 9], 9), Err(Error::Range { at: Some(2), lo: 5, got: 4, .. })));
        assert!(matches!(cu_seqlens(&[0, 5, 10], 9), Err(Error::Range { at: Some(2), hi: 9, got: 10, .. })));
        assert!(matches!(cu_seqlens(&[0, 5], 9), Err(Error::Range { at: Some(1), lo: 9, got: 5, .. })), "uncovered");
        assert!(matches!(cu_seqlens(&[0], 9), Err(Error::Range { at: Some(0), .. })));
    }
}
