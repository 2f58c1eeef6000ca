//! Host-side checks: sizes, strides, lengths, alignment and overlap. They run before any launch.

use cudarc::driver::sys::CUdeviceptr;
use lookback_device::{DType, Error, Result};

/// Greatest extent of a dimension: kernels count in `u32` and add tile sizes to it.
pub(crate) const MAX_EXTENT: usize = (1 << 31) - 1024;
/// Greatest number of bytes a tensor may span: offsets are `i64` in kernels.
const MAX_SPAN: i128 = 1 << 62;

/// A matrix in memory: `rows` rows of `width` contiguous elements, `stride` elements apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub rows: usize,
    pub width: usize,
    pub stride: i64,
    /// Bytes of an element.
    pub size: u64,
}

impl Rows {
    pub fn new(rows: usize, width: usize, stride: i64, size: usize) -> Self {
        Self { rows, width, stride, size: size as u64 }
    }

    /// Elements from the first to the last, both included. Only for a checked matrix.
    pub fn span(&self) -> u64 {
        if self.rows == 0 || self.width == 0 {
            0
        } else {
            (self.rows as u64 - 1) * self.stride as u64 + self.width as u64
        }
    }

    /// Elements that belong to the matrix.
    pub fn elements(&self) -> u64 {
        self.rows as u64 * self.width as u64
    }

    /// Bytes that belong to the matrix.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.size
    }

    /// Whether rows can be read or written 16 bytes at a time, apart from a tail.
    pub fn wide(&self, address: CUdeviceptr) -> bool {
        self.wide_by(address, 16)
    }

    /// The same for accesses of `bytes`.
    pub fn wide_by(&self, address: CUdeviceptr, bytes: u64) -> bool {
        address.is_multiple_of(bytes) && (self.rows <= 1 || (self.stride * self.size as i64) % bytes as i64 == 0)
    }

    /// Whether any byte belongs to both. Exact when both have the same stride, else by their spans.
    fn overlaps(&self, at: CUdeviceptr, other: &Rows, other_at: CUdeviceptr) -> bool {
        let bytes = |r: &Rows| r.span() * r.size;
        if bytes(self) == 0 || bytes(other) == 0 {
            return false;
        }
        if at.saturating_add(bytes(self)) <= other_at || other_at.saturating_add(bytes(other)) <= at {
            return false;
        }
        let pitch = |r: &Rows| (r.stride * r.size as i64) as u64;
        if self.rows > 1 && other.rows > 1 && pitch(self) == pitch(other) && pitch(self) > 0 {
            // Columns of one wider matrix: compare the column ranges.
            let width = |r: &Rows| r.width as u64 * r.size;
            let shift = other_at.wrapping_sub(at) as i64;
            let shift = shift.rem_euclid(pitch(self) as i64) as u64;
            return shift < width(self) || shift + width(other) > pitch(self);
        }
        true
    }
}

/// `arg` within `lo..=hi`.
pub(crate) fn range(op: &'static str, arg: &'static str, got: usize, lo: usize, hi: usize) -> Result<()> {
    if (lo..=hi).contains(&got) {
        return Ok(());
    }
    let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
    Err(Error::Range { op, arg, at: None, lo: clamp(lo), hi: clamp(hi), got: clamp(got) })
}

/// A matrix that is read: rows may coincide (stride 0) or overlap, but not run backwards.
pub(crate) fn readable(op: &'static str, arg: &'static str, rows: &Rows) -> Result<()> {
    spans(op, arg, rows, 0, "a row stride of at least 0")
}

/// A matrix that is written: rows must not overlap.
pub(crate) fn writable(op: &'static str, arg: &'static str, rows: &Rows) -> Result<()> {
    spans(op, arg, rows, rows.width as i64, "a row stride of at least the row's width")
}

fn spans(op: &'static str, arg: &'static str, rows: &Rows, least: i64, need: &'static str) -> Result<()> {
    if rows.rows > 1 && rows.stride < least {
        return Err(Error::Layout { op, arg, need, stride: vec![rows.stride, 1] });
    }
    let last = (rows.rows.max(1) as i128 - 1) * i128::from(rows.stride.max(0)) + rows.width as i128;
    if last * i128::from(rows.size) > MAX_SPAN {
        let need = "strides whose farthest element is below 2^62 bytes";
        return Err(Error::Layout { op, arg, need, stride: vec![rows.stride, 1] });
    }
    Ok(())
}

/// A tensor that must be there exactly when the shape asks for it.
pub(crate) fn given(op: &'static str, arg: &'static str, wanted: bool, is_there: bool) -> Result<()> {
    if wanted == is_there {
        return Ok(());
    }
    let want = if wanted { "given for this shape" } else { "absent for this shape" };
    Err(Error::Shape { op, arg, want: want.into(), got: Vec::new() })
}

/// A slice with at least `need` elements.
pub(crate) fn length(op: &'static str, arg: &'static str, need: u64, got: usize) -> Result<()> {
    if got as u64 >= need {
        return Ok(());
    }
    Err(Error::Shape { op, arg, want: format!("at least {need} elements long"), got: vec![got as u64] })
}

/// The element type that the plan was made for.
pub(crate) fn dtype(op: &'static str, arg: &'static str, want: DType, got: DType) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Dtype { op, arg, want, got }) }
}

/// An address that is a multiple of the element size, and not null unless nothing is read there.
pub(crate) fn address(op: &'static str, arg: &'static str, addr: CUdeviceptr, rows: &Rows) -> Result<()> {
    let need = rows.size;
    if (addr == 0 && rows.span() > 0) || !addr.is_multiple_of(need) {
        return Err(Error::Align { op, arg, need, addr });
    }
    Ok(())
}

/// A matrix at an address, with its name for messages.
pub(crate) type Placed<'a> = (&'static str, CUdeviceptr, &'a Rows);

/// [`address`] of each.
pub(crate) fn addresses(op: &'static str, placed: &[Placed<'_>]) -> Result<()> {
    placed.iter().try_for_each(|(arg, addr, rows)| address(op, arg, *addr, rows))
}

/// A parameter is of the activations' type or `f32`.
pub(crate) fn param_dtype(
    op: &'static str,
    arg: &'static str,
    dtype: DType,
    param: Option<DType>,
) -> Result<Option<DType>> {
    match param {
        Some(got) if got != dtype && got != DType::F32 => Err(Error::Dtype { op, arg, want: dtype, got }),
        param => Ok(param),
    }
}

/// The one row of a parameter, empty when absent.
pub(crate) fn param_rows(width: usize, dtype: Option<DType>) -> Rows {
    dtype.map_or(Rows::new(0, 0, 0, 1), |d| Rows::new(1, width, 0, d.size()))
}

/// Checks one output against everything else that the launch touches.
pub(crate) fn disjoint(op: &'static str, out: Placed<'_>, others: &[Placed<'_>]) -> Result<()> {
    for other in others {
        if other.1 != 0 && out.1 != 0 && out.2.overlaps(out.1, other.2, other.1) {
            return Err(Error::Alias { op, a: out.0, b: other.0 });
        }
    }
    Ok(())
}

/// As [`disjoint`] for one input, which may be the output itself: same address and same rows.
pub(crate) fn disjoint_or_same(op: &'static str, out: Placed<'_>, input: Placed<'_>) -> Result<()> {
    if out.1 == input.1 && out.2 == input.2 { Ok(()) } else { disjoint(op, out, &[input]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: usize, width: usize, stride: i64) -> Rows {
        Rows::new(rows, width, stride, 4)
    }

    #[test]
    fn columns_of_one_matrix_do_not_overlap() {
        let half = rows(5, 8, 16);
        assert!(!half.overlaps(4096, &half, 4096 + 32));
        assert!(half.overlaps(4096, &half, 4096 + 28));
        assert!(half.overlaps(4096 + 32, &half, 4096 + 60));
        assert!(half.overlaps(4096, &half, 4096 + 64));
        assert!(!half.overlaps(4096, &half, 4096 + 5 * 64));
    }

    #[test]
    fn different_strides_compare_by_span() {
        assert!(rows(5, 8, 16).overlaps(4096, &rows(5, 4, 20), 4096 + 32));
        assert!(!rows(5, 8, 16).overlaps(4096, &rows(0, 4, 20), 4096 + 32));
        assert!(!rows(1, 8, 0).overlaps(4096, &rows(1, 8, 0), 4096 + 32));
    }

    #[test]
    fn span_of_nothing_is_zero() {
        assert_eq!(rows(0, 8, 16).span(), 0);
        assert_eq!(rows(3, 0, 16).span(), 0);
        assert_eq!(rows(3, 8, 16).span(), 40);
    }

    #[test]
    fn strides_out_of_bounds_are_layout_errors() {
        assert!(matches!(readable("op", "x", &rows(2, 8, -1)), Err(Error::Layout { .. })));
        assert!(readable("op", "x", &rows(2, 8, 0)).is_ok());
        assert!(readable("op", "x", &rows(1, 8, -5)).is_ok());
        assert!(matches!(writable("op", "x", &rows(2, 8, 7)), Err(Error::Layout { .. })));
        assert!(matches!(readable("op", "x", &rows(1 << 30, 8, i64::MAX)), Err(Error::Layout { .. })));
    }

    #[test]
    fn extents_and_lengths_name_the_argument() {
        assert!(matches!(range("op", "n", 3, 4, 5), Err(Error::Range { arg: "n", lo: 4, hi: 5, got: 3, .. })));
        assert!(matches!(length("op", "x", 3, 2), Err(Error::Shape { arg: "x", .. })));
        assert!(matches!(dtype("op", "x", DType::F32, DType::F16), Err(Error::Dtype { arg: "x", .. })));
        assert!(matches!(address("op", "x", 0, &rows(1, 1, 1)), Err(Error::Align { .. })));
        assert!(address("op", "x", 0, &rows(0, 1, 1)).is_ok());
        assert!(matches!(address("op", "x", 6, &rows(1, 1, 1)), Err(Error::Align { need: 4, .. })));
    }
}
