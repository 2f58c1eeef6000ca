//! Host-side checks: sizes, strides, lengths, alignment and overlap. They run before any launch.

use crate::{Error, Result, Stride};
use cudarc::driver::sys::CUdeviceptr;
use lookback_device::DType;

/// Greatest extent of a dimension: kernels count in `u32` and add tile sizes to it.
pub(crate) const MAX_EXTENT: usize = (1 << 31) - 1024;
/// Greatest number of tiles: the grid is one-dimensional.
pub(crate) const MAX_TILES: usize = (1 << 31) - 1;
/// Greatest number of bytes that a tensor may span: offsets are `i64` in kernels.
const MAX_SPAN: i128 = 1 << 62;

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

/// A `[batch, tokens, channels]` tensor in memory; a state or an array over channels has one token or one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub batch: usize,
    pub tokens: usize,
    pub channels: usize,
    pub stride: Stride,
    /// Bytes of an element.
    pub size: u64,
}

impl Tensor {
    /// Rows of `width` elements without gaps.
    pub fn rows(rows: usize, width: usize, size: usize) -> Self {
        let stride = Stride { batch: 0, token: width as i64 };
        Self { batch: 1, tokens: rows, channels: width, stride, size: size as u64 }
    }

    /// Elements that belong to it.
    pub fn elements(&self) -> u64 {
        (self.batch as u64).saturating_mul(self.tokens as u64).saturating_mul(self.channels as u64)
    }

    /// Bytes that belong to it.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.size)
    }

    /// Elements from the first to the last, both included. Only for a checked tensor.
    pub fn span(&self) -> u64 {
        if self.elements() == 0 { 0 } else { self.last() as u64 + 1 }
    }

    fn last(&self) -> i128 {
        let along = |n: usize, stride: i64| (n.max(1) as i128 - 1).saturating_mul(i128::from(stride));
        let row = along(self.batch, self.stride.batch).saturating_add(along(self.tokens, self.stride.token));
        row.saturating_add(self.channels as i128 - 1)
    }

    /// Whether every step that is taken is a multiple of `vec` elements.
    pub fn steps_by(&self, vec: usize) -> bool {
        let whole = |n: usize, stride: i64| n <= 1 || stride % vec as i64 == 0;
        whole(self.batch, self.stride.batch) && whole(self.tokens, self.stride.token)
    }

    /// A tensor that is read: tokens may coincide, but steps do not run backwards.
    pub fn readable(&self, op: &'static str, arg: &'static str) -> Result<()> {
        let stride = || vec![self.stride.batch, self.stride.token, 1];
        let backwards = |n: usize, stride: i64| n > 1 && stride < 0;
        if backwards(self.batch, self.stride.batch) || backwards(self.tokens, self.stride.token) {
            return Err(Error::Layout { op, arg, need: "strides of at least 0", stride: stride() });
        }
        if self.last() >= MAX_SPAN / i128::from(self.size) {
            let need = "strides whose farthest element is below 2^62 bytes";
            return Err(Error::Layout { op, arg, need, stride: stride() });
        }
        Ok(())
    }

    /// A tensor that is written: no two tokens share an element.
    pub fn writable(&self, op: &'static str, arg: &'static str) -> Result<()> {
        self.readable(op, arg)?;
        if self.elements() == 0 {
            return Ok(());
        }
        let mut steps = [(self.stride.batch, self.batch), (self.stride.token, self.tokens)];
        steps.sort_unstable();
        let mut width = self.channels as i128;
        for (stride, n) in steps {
            if n > 1 && i128::from(stride) < width {
                let need = "strides that keep tokens apart";
                return Err(Error::Layout { op, arg, need, stride: vec![self.stride.batch, self.stride.token, 1] });
            }
            if n > 1 {
                width += (n as i128 - 1) * i128::from(stride);
            }
        }
        Ok(())
    }

    /// Whether any byte belongs to both: exact for equal strides of nested rows, else by their spans.
    fn overlaps(&self, at: CUdeviceptr, other: &Tensor, other_at: CUdeviceptr) -> bool {
        let bytes = |t: &Tensor| t.span() * t.size;
        if bytes(self) == 0 || bytes(other) == 0 {
            return false;
        }
        if at.saturating_add(bytes(self)) <= other_at || other_at.saturating_add(bytes(other)) <= at {
            return false;
        }
        let pitch = |t: &Tensor| t.pitch().map(|p| p * t.size);
        match (pitch(self), pitch(other)) {
            // Columns of one wider matrix: compare the column ranges.
            (Some(pitch), Some(other_pitch)) if pitch == other_pitch => {
                let width = |t: &Tensor| t.channels as u64 * t.size;
                let shift = (i128::from(other_at) - i128::from(at)).rem_euclid(i128::from(pitch)) as u64;
                shift < width(self) || shift + width(other) > pitch
            }
            _ => true,
        }
    }

    /// Elements from a row to the next when all rows stand on one grid.
    fn pitch(&self) -> Option<u64> {
        let steps = [(self.batch, self.stride.batch), (self.tokens, self.stride.token)];
        let taken: Vec<i64> = steps.iter().filter(|(n, _)| *n > 1).map(|(_, stride)| *stride).collect();
        let least = taken.iter().copied().min().filter(|s| *s > 0)?;
        taken.iter().all(|s| s % least == 0).then_some(least as u64)
    }
}

/// A tensor at an address, with its name for messages; address 0 is absent.
pub(crate) type Placed<'a> = (&'static str, CUdeviceptr, &'a Tensor);

/// The output touches none of the others.
pub(crate) fn disjoint(op: &'static str, out: Placed<'_>, others: &[Placed<'_>]) -> Result<()> {
    for other in others {
        if other.1 != 0 && out.1 != 0 && out.2.overlaps(out.1, other.2, other.1) {
            return Err(Error::Alias { op, a: out.0, b: other.0 });
        }
    }
    Ok(())
}

/// As [`disjoint`] for one input; with `same` the output may be exactly this input.
pub(crate) fn disjoint_unless(op: &'static str, out: Placed<'_>, input: Placed<'_>, same: bool) -> Result<()> {
    if same && out.1 == input.1 && out.2 == input.2 { Ok(()) } else { disjoint(op, out, &[input]) }
}

/// `arg` within `lo..=hi`.
pub(crate) fn range(op: &'static str, arg: &'static str, got: usize, lo: usize, hi: usize) -> Result<()> {
    if (lo..=hi).contains(&got) {
        return Ok(());
    }
    let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
    Err(Error::Range { op, arg, at: None, lo: clamp(lo), hi: clamp(hi), got: clamp(got) })
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
    if want == got { Ok(()) } else { Err(Error::Dtype { op, arg: "inputs", want, got }) }
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
        Tensor { batch, tokens, channels, stride: Stride { batch: stride.0, token: stride.1 }, size: 4 }
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
    fn writable_wants_tokens_apart_in_either_order() {
        assert!(tensor(2, 3, 4, (12, 4)).writable("op", "h").is_ok());
        assert!(tensor(2, 3, 4, (4, 8)).writable("op", "h").is_ok(), "time before batch");
        assert!(tensor(1, 3, 4, (0, 4)).writable("op", "h").is_ok());
        for bad in [(11, 4), (12, 3), (4, 7), (0, 4), (12, 0), (-12, 4)] {
            let got = tensor(2, 3, 4, bad).writable("op", "h");
            assert!(matches!(got, Err(Error::Layout { arg: "h", .. })), "{bad:?}");
        }
        assert!(tensor(2, 3, 4, (0, 0)).readable("op", "a").is_ok(), "one token for all");
        assert!(matches!(tensor(2, 3, 4, (i64::MAX, 4)).readable("op", "a"), Err(Error::Layout { .. })));
    }

    #[test]
    fn columns_of_one_matrix_do_not_overlap() {
        let half = tensor(2, 5, 8, (80, 16));
        assert!(!half.overlaps(4096, &half, 4096 + 32));
        assert!(half.overlaps(4096, &half, 4096 + 28));
        assert!(half.overlaps(4096, &half, 4096 + 64));
        assert!(!half.overlaps(4096, &half, 4096 + 10 * 64));
        assert!(half.overlaps(4096, &tensor(2, 5, 8, (40, 8)), 4096 + 32), "another pitch: by span");
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
