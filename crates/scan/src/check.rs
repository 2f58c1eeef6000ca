//! Host-side checks: sizes, strides, lengths, alignment and overlap. They run before any launch.

use crate::{Error, Result, Stride};
use cudarc::driver::sys::CUdeviceptr;
pub(crate) use lookback_device::strided::{MAX_EXTENT, Placed, Strided as Tensor, disjoint, range};
use lookback_device::{DType, strided};

/// Greatest number of tiles: the grid is one-dimensional.
pub(crate) const MAX_TILES: usize = (1 << 31) - 1;

/// Checks the starts of packed sequences on the host: the first is 0, none is below the one before, the last is at most
/// `total`.
///
/// Kernels are safe whatever the device array holds, but only such an array means what it says. Tokens after the last sequence
/// form one of their own, which starts from zero and has no final state.
///
/// # Errors
/// [`Error::Shape`] ← no entry; [`Error::Range`] with the index ← an entry out of order.
pub fn cu_seqlens(starts: &[i32], total: usize) -> Result<()> {
    const OP: &str = "cu_seqlens";
    if starts.is_empty() {
        return Err(Error::Shape { op: OP, arg: "cu_seqlens", want: "at least one entry".into(), got: vec![0] });
    }
    let hi = i64::try_from(total).unwrap_or(i64::MAX);
    let mut lo = 0;
    for (at, start) in starts.iter().enumerate() {
        let got = i64::from(*start);
        let hi = if at == 0 { 0 } else { hi };
        if !(lo..=hi).contains(&got) {
            return Err(Error::Range { op: OP, arg: "cu_seqlens", at: Some(at as u64), lo, hi, got });
        }
        lo = got;
    }
    Ok(())
}

/// `[batch, tokens, channels]`; `size` is the bytes of an element.
pub(crate) fn tokens([batch, tokens]: [usize; 2], channels: usize, stride: Stride, size: usize) -> Tensor {
    Tensor::new([batch, tokens, 1], [stride.batch, stride.token, 0], channels, size)
}

/// Rows of `width` elements without gaps; `size` is the bytes of an element.
pub(crate) fn rows(rows: usize, width: usize, size: usize) -> Tensor {
    Tensor::dense([1, 1, rows], width, size)
}

/// As [`disjoint`] for one input; with `same` the output may be exactly this input.
pub(crate) fn disjoint_unless(op: &'static str, out: Placed<'_>, input: Placed<'_>, same: bool) -> Result<()> {
    if same && out.1 == input.1 && out.2 == input.2 { Ok(()) } else { disjoint(op, out, &[input]) }
}

/// A slice with at least `need` elements.
pub(crate) fn length(op: &'static str, arg: &'static str, need: u64, got: usize) -> Result<()> {
    if got as u64 >= need {
        return Ok(());
    }
    Err(Error::Shape { op, arg, want: format!("at least {need} elements long"), got: vec![got as u64] })
}

/// The element type that the plan was made for.
pub(crate) fn dtype(op: &'static str, want: DType, got: DType) -> Result<()> {
    strided::dtype(op, "inputs", want, got)
}

/// An address that is a multiple of `need` bytes, and not null.
pub(crate) fn aligned(op: &'static str, arg: &'static str, need: u64, addr: CUdeviceptr) -> Result<()> {
    if addr != 0 && addr.is_multiple_of(need) { Ok(()) } else { Err(Error::Align { op, arg, need, addr }) }
}

/// The address of a tensor: null only where it has no element.
pub(crate) fn placed(op: &'static str, (arg, addr, tensor): Placed<'_>) -> Result<()> {
    if tensor.span() == 0 { Ok(()) } else { aligned(op, arg, tensor.size, addr) }
}

/// A workspace of at least `need` bytes.
pub(crate) fn workspace(op: &'static str, need: u64, got: u64) -> Result<()> {
    if got >= need { Ok(()) } else { Err(Error::Workspace { op, need, got }) }
}

/// A tensor that the source needs, or one that it does not know.
pub(crate) fn given(op: &'static str, arg: &'static str, wanted: bool, is_there: bool) -> Result<()> {
    let want = match (wanted, is_there) {
        (true, false) => "given: the plan's source reads it",
        (false, true) => "left out: the plan's source has none",
        _ => return Ok(()),
    };
    Err(Error::Shape { op, arg, want: want.into(), got: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(batch: usize, tokens: usize, channels: usize, stride: (i64, i64)) -> Tensor {
        super::tokens([batch, tokens], channels, Stride { batch: stride.0, token: stride.1 }, 4)
    }

    #[test]
    fn cu_seqlens_names_the_entry_out_of_order() {
        assert!(cu_seqlens(&[0, 0, 3, 7, 7], 9).is_ok());
        assert!(cu_seqlens(&[0], 0).is_ok());
        assert!(matches!(cu_seqlens(&[], 3), Err(Error::Shape { .. })));
        assert!(matches!(cu_seqlens(&[1, 2], 3), Err(Error::Range { at: Some(0), hi: 0, got: 1, .. })));
        assert!(matches!(cu_seqlens(&[0, 5, 4], 9), Err(Error::Range { at: Some(2), lo: 5, got: 4, .. })));
        assert!(matches!(cu_seqlens(&[0, 5, 10], 9), Err(Error::Range { at: Some(2), hi: 9, got: 10, .. })));
        assert!(matches!(cu_seqlens(&[-1], 9), Err(Error::Range { at: Some(0), .. })));
    }

    #[test]
    fn same_place_is_no_overlap_where_allowed() {
        let t = tensor(2, 3, 4, (12, 4));
        assert!(disjoint_unless("op", ("h", 4096, &t), ("b", 4096, &t), true).is_ok());
        assert!(matches!(
            disjoint_unless("op", ("h", 4096, &t), ("b", 4112, &t), true),
            Err(Error::Alias { a: "h", b: "b", .. })
        ));
        assert!(disjoint_unless("op", ("h", 4096, &t), ("b", 4096, &t), false).is_err());
        assert!(disjoint("op", ("h", 4096, &t), &[("a", 0, &t)]).is_ok(), "absent");
    }

    #[test]
    fn span_of_nothing_is_zero() {
        assert_eq!(tensor(0, 3, 4, (12, 4)).span(), 0);
        assert_eq!(tensor(2, 0, 4, (0, 4)).span(), 0);
        assert_eq!(tensor(2, 3, 4, (12, 4)).span(), 24);
        assert_eq!(tensor(2, 3, 4, (100, 10)).span(), 124);
        assert!(placed("op", ("a", 0, &tensor(2, 0, 4, (0, 4)))).is_ok());
        assert!(matches!(placed("op", ("a", 2, &tensor(2, 3, 4, (12, 4)))), Err(Error::Align { need: 4, .. })));
    }
}
