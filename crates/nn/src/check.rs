//! Host-side checks: sizes, strides, lengths, alignment and overlap. They run before any launch.

use cudarc::driver::sys::CUdeviceptr;
pub(crate) use lookback_device::strided::{MAX_EXTENT, dtype, range};
use lookback_device::{DType, Error, Result, strided::Strided};

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

    /// The same among tensors of more dimensions.
    pub fn strided(&self) -> Strided {
        Strided::new([1, 1, self.rows], [0, 0, self.stride], self.width, self.size as usize)
    }

    /// Elements from the first to the last, both included. Only for a checked matrix.
    pub fn span(&self) -> u64 {
        self.strided().span()
    }

    /// Elements that belong to the matrix.
    pub fn elements(&self) -> u64 {
        self.strided().elements()
    }

    /// Bytes that belong to the matrix.
    pub fn bytes(&self) -> u64 {
        self.strided().bytes()
    }

    /// Whether rows can be read or written 16 bytes at a time, apart from a tail.
    pub fn wide(&self, address: CUdeviceptr) -> bool {
        address.is_multiple_of(16) && (self.rows <= 1 || (self.stride * self.size as i64) % 16 == 0)
    }
}

/// A matrix that is read: rows may coincide (stride 0) or overlap, but not run backwards.
pub(crate) fn readable(op: &'static str, arg: &'static str, rows: &Rows) -> Result<()> {
    rows.strided().readable(op, arg)
}

/// A matrix that is written: rows must not overlap.
pub(crate) fn writable(op: &'static str, arg: &'static str, rows: &Rows) -> Result<()> {
    rows.strided().writable(op, arg)
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
        if other.1 != 0 && out.1 != 0 && out.2.strided().overlaps(out.1, &other.2.strided(), other.1) {
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
