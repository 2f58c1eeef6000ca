//! Tensors of rows in memory, and what the host checks of them before any launch: spans, overlap, lengths, alignment.
//!
//! For the crates of operations. A kernel reads and writes nothing outside of what these checks let through.

use crate::{DType, Error, Result};
use cudarc::driver::sys::CUdeviceptr;

/// Greatest extent of a dimension: kernels count in `u32` and add tile sizes to it.
pub const MAX_EXTENT: usize = (1 << 31) - 1024;
/// Greatest number of bytes that a tensor may span: offsets are `i64` in kernels.
const MAX_SPAN: i128 = 1 << 62;

/// Steps of a `[batch, token, head, ..]` tensor in elements; what is left of a row is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stride {
    /// From a row of the batch to the next.
    pub batch: i64,
    /// From a token to the next.
    pub token: i64,
    /// From a head to the next.
    pub head: i64,
}

impl Stride {
    /// Of `[B,T,heads,width]` without gaps.
    pub fn dense(seq_len: usize, heads: usize, width: usize) -> Self {
        let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let token = heads.saturating_mul(width);
        Self { batch: clamp(seq_len.saturating_mul(token)), token: clamp(token), head: clamp(width) }
    }
}

/// A `[batch, tokens, heads, width]` tensor; the last dimension is contiguous, the others have strides in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// Extents of all dimensions but the last.
    pub extents: [usize; 3],
    /// Their steps, in elements.
    pub strides: [i64; 3],
    /// Elements of a row.
    pub width: usize,
    /// Bytes of an element.
    pub size: u64,
}

impl Strided {
    /// No tensor at all.
    pub const NONE: Self = Self { extents: [0; 3], strides: [0; 3], width: 0, size: 1 };

    /// Rows by steps; `size` is the bytes of an element.
    pub fn new(extents: [usize; 3], strides: [i64; 3], width: usize, size: usize) -> Self {
        Self { extents, strides, width, size: size as u64 }
    }

    /// Without gaps.
    pub fn dense(extents: [usize; 3], width: usize, size: usize) -> Self {
        let step = |n: usize, inner: i64| inner.saturating_mul(i64::try_from(n).unwrap_or(i64::MAX));
        let head = i64::try_from(width).unwrap_or(i64::MAX);
        let token = step(extents[2], head);
        Self::new(extents, [step(extents[1], token), token, head], width, size)
    }

    /// Elements that belong to it.
    pub fn elements(&self) -> u64 {
        self.extents.iter().fold(self.width as u64, |n, e| n.saturating_mul(*e as u64))
    }

    /// Bytes that belong to it.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.size)
    }

    fn reach(&self) -> i128 {
        let along = |(n, s): (&usize, &i64)| (*n as i128 - 1).saturating_mul(i128::from(*s));
        self.extents.iter().zip(&self.strides).map(along).fold(self.width as i128, i128::saturating_add)
    }

    /// Elements from the first to the last, both included. Only for a checked tensor.
    pub fn span(&self) -> u64 {
        if self.elements() == 0 { 0 } else { self.reach() as u64 }
    }

    /// Whether every step that is taken is a multiple of `elements`.
    pub fn steps_by(&self, elements: usize) -> bool {
        self.extents.iter().zip(&self.strides).all(|(n, s)| *n <= 1 || s % elements as i64 == 0)
    }

    fn layout(&self, op: &'static str, arg: &'static str, need: &'static str) -> Error {
        // A dimension that is not there has one entry and no step.
        let steps = self.extents.iter().zip(self.strides).filter(|(n, stride)| **n != 1 || *stride != 0);
        Error::Layout { op, arg, need, stride: steps.map(|(_, stride)| stride).chain([1]).collect() }
    }

    /// A tensor that is read: rows may coincide, but steps do not run backwards.
    ///
    /// # Errors
    /// [`Error::Layout`] ← a negative step, or an element 2^62 bytes away.
    pub fn readable(&self, op: &'static str, arg: &'static str) -> Result<()> {
        if self.elements() == 0 {
            return Ok(());
        }
        if self.extents.iter().zip(&self.strides).any(|(n, s)| *n > 1 && *s < 0) {
            return Err(self.layout(op, arg, "strides of at least 0"));
        }
        if self.reach().saturating_mul(i128::from(self.size)) > MAX_SPAN {
            return Err(self.layout(op, arg, "strides whose farthest element is below 2^62 bytes"));
        }
        Ok(())
    }

    /// A tensor that is written: no two rows share an element.
    ///
    /// # Errors
    /// [`Error::Layout`] ← as [`readable`](Self::readable), or rows that overlap.
    pub fn writable(&self, op: &'static str, arg: &'static str) -> Result<()> {
        self.readable(op, arg)?;
        if self.elements() == 0 {
            return Ok(());
        }
        let mut steps: Vec<(i64, usize)> = self.strides.into_iter().zip(self.extents).filter(|(_, n)| *n > 1).collect();
        steps.sort_unstable();
        let mut width = self.width as i128;
        for (stride, n) in steps {
            if i128::from(stride) < width {
                return Err(self.layout(op, arg, "strides that keep rows apart"));
            }
            width += (n as i128 - 1) * i128::from(stride);
        }
        Ok(())
    }

    /// Whether any byte belongs to both: by their spans, but exact for parts of the rows of one wider tensor.
    pub fn overlaps(&self, at: CUdeviceptr, other: &Strided, other_at: CUdeviceptr) -> bool {
        let bytes = |t: &Strided| t.span() * t.size;
        if bytes(self) == 0 || bytes(other) == 0 {
            return false;
        }
        if at.saturating_add(bytes(self)) <= other_at || other_at.saturating_add(bytes(other)) <= at {
            return false;
        }
        let apart = |(pitch, width): &(u64, u64), (other_pitch, other_width): &(u64, u64)| {
            let shift = (i128::from(other_at) - i128::from(at)).rem_euclid(i128::from(*pitch)) as u64;
            pitch == other_pitch && shift >= *width && shift + other_width <= *pitch
        };
        let grids = other.grids();
        !self.grids().iter().any(|grid| grids.iter().any(|other| apart(grid, other)))
    }

    /// Every way to see the tensor as columns of a wider matrix: bytes from a row of it to the next, and those of a row that belong
    /// to the tensor.
    fn grids(&self) -> Vec<(u64, u64)> {
        let steps = self.strides.iter().zip(self.extents).filter(|(stride, n)| *n > 1 && **stride != 0);
        let mut steps: Vec<(i64, usize)> = steps.map(|(stride, n)| (*stride, n)).collect();
        steps.sort_unstable();
        let mut width = self.width as i128;
        let mut grids = Vec::new();
        for (level, (stride, n)) in steps.iter().enumerate() {
            let is_grid = steps[level..].iter().all(|(outer, _)| outer % stride == 0);
            if *stride > 0 && is_grid && i128::from(*stride) >= width {
                grids.push((*stride as u64 * self.size, width as u64 * self.size));
            }
            width += (*n as i128 - 1) * i128::from(*stride);
        }
        grids
    }
}

/// `arg` within `lo..=hi`.
///
/// # Errors
/// [`Error::Range`] ← it is not.
pub fn range(op: &'static str, arg: &'static str, got: usize, lo: usize, hi: usize) -> Result<()> {
    if (lo..=hi).contains(&got) {
        return Ok(());
    }
    let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
    Err(Error::Range { op, arg, at: None, lo: clamp(lo), hi: clamp(hi), got: clamp(got) })
}

/// A slice with at least the tensor's span.
///
/// # Errors
/// [`Error::Shape`] ← it is shorter.
pub fn length(op: &'static str, arg: &'static str, tensor: &Strided, got: usize) -> Result<()> {
    let need = tensor.span();
    if got as u64 >= need {
        return Ok(());
    }
    Err(Error::Shape { op, arg, want: format!("at least {need} elements long"), got: vec![got as u64] })
}

/// The element type that the plan was made for.
///
/// # Errors
/// [`Error::Dtype`] ← another one.
pub fn dtype(op: &'static str, arg: &'static str, want: DType, got: DType) -> Result<()> {
    if want == got { Ok(()) } else { Err(Error::Dtype { op, arg, want, got }) }
}

/// A tensor is given exactly when the options want it.
///
/// # Errors
/// [`Error::Shape`] ← it is missing, or has no meaning.
pub fn given(op: &'static str, arg: &'static str, wanted: bool, given: bool) -> Result<()> {
    if wanted == given {
        return Ok(());
    }
    let want = if wanted { "given" } else { "absent with these options" };
    Err(Error::Shape { op, arg, want: want.into(), got: vec![u64::from(given)] })
}

/// A tensor at an address, with its name for messages; address 0 is an absent one.
pub type Placed<'a> = (&'static str, CUdeviceptr, &'a Strided);

/// Addresses are multiples of their element's size, and not 0 unless `optional`.
///
/// # Errors
/// [`Error::Align`] ← one that is not.
pub fn address(op: &'static str, (arg, addr, tensor): Placed<'_>, optional: bool) -> Result<()> {
    let missing = addr == 0 && !optional && tensor.elements() > 0;
    if missing || !addr.is_multiple_of(tensor.size) {
        return Err(Error::Align { op, arg, need: tensor.size, addr });
    }
    Ok(())
}

/// Checks one output against everything else that the launch touches.
///
/// # Errors
/// [`Error::Alias`] ← it overlaps one of them.
pub fn disjoint(op: &'static str, out: Placed<'_>, others: &[Placed<'_>]) -> Result<()> {
    for other in others {
        if other.1 != 0 && out.1 != 0 && out.2.overlaps(out.1, other.2, other.1) {
            return Err(Error::Alias { op, a: out.0, b: other.0 });
        }
    }
    Ok(())
}

/// Every output against every input and every other output.
///
/// # Errors
/// [`Error::Alias`] ← two overlap.
pub fn all_disjoint(op: &'static str, outputs: &[Placed<'_>], inputs: &[Placed<'_>]) -> Result<()> {
    for (i, out) in outputs.iter().enumerate() {
        disjoint(op, *out, inputs)?;
        disjoint(op, *out, &outputs[i + 1..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(extents: [usize; 3], strides: [i64; 3], width: usize) -> Strided {
        Strided::new(extents, strides, width, 4)
    }

    #[test]
    fn parts_of_one_projection_do_not_overlap() {
        // q and k of [2, 5, 2 tensors, 3 heads, 8].
        let part = tensor([2, 5, 3], [240, 48, 8], 8);
        assert!(part.writable("op", "q").is_ok());
        assert!(!part.overlaps(4096, &part, 4096 + 24 * 4));
        assert!(part.overlaps(4096, &part, 4096 + 23 * 4));
        assert!(part.overlaps(4096 + 24 * 4, &part, 4096 + 25 * 4));
        assert!(!part.overlaps(4096, &part, 4096 + part.span() * 4));
        assert!(part.overlaps(4096, &tensor([1, 1, 1], [0; 3], 100), 4096 + 96));
    }

    #[test]
    fn parts_are_apart_at_any_level() {
        // Parts of 8 of [2, 5, 3 heads, 2 tensors, 8], and of [5 tokens, 2 rows, 2 tensors, 3 heads, 8].
        let within_heads = tensor([2, 5, 3], [240, 48, 16], 8);
        assert!(!within_heads.overlaps(4096, &within_heads, 4096 + 8 * 4));
        assert!(within_heads.overlaps(4096, &within_heads, 4096 + 7 * 4));
        let time_major = tensor([2, 5, 3], [48, 96, 8], 8);
        assert!(!time_major.overlaps(4096, &time_major, 4096 + 24 * 4));
        assert!(time_major.overlaps(4096, &time_major, 4096 + 16 * 4));
        // Another pitch: by span. One row for all heads: it is where it is.
        assert!(within_heads.overlaps(4096, &tensor([2, 5, 3], [120, 24, 8], 8), 4096 + 8 * 4));
        let shared = tensor([2, 5, 3], [240, 48, 0], 8);
        assert!(!shared.overlaps(4096, &within_heads, 4096 + 8 * 4));
        assert!(shared.overlaps(4096, &within_heads, 4096 + 12 * 4));
    }

    #[test]
    fn layouts_that_cannot_be_read_or_written_are_refused() {
        assert!(matches!(tensor([1, 2, 1], [0, -8, 8], 8).readable("op", "x"), Err(Error::Layout { .. })));
        assert!(tensor([1, 2, 1], [0, 0, 8], 8).readable("op", "x").is_ok());
        assert!(matches!(tensor([1, 2, 1], [0, 7, 8], 8).writable("op", "x"), Err(Error::Layout { .. })));
        assert!(tensor([2, 3, 4], [8, 64, 16], 8).writable("op", "x").is_ok(), "time-major");
        assert!(matches!(tensor([1, 1 << 30, 1], [0, i64::MAX, 8], 8).writable("op", "x"), Err(Error::Layout { .. })));
        assert!(tensor([0, 2, 1], [-1, -1, -1], 8).writable("op", "x").is_ok());
    }

    #[test]
    fn rows_that_are_written_are_apart_in_either_order() {
        let of = |batch, token| tensor([2, 3, 1], [batch, token, 0], 4).writable("op", "h");
        assert!(of(12, 4).is_ok());
        assert!(of(4, 8).is_ok(), "time before batch");
        for (batch, token) in [(11, 4), (12, 3), (4, 7), (0, 4), (12, 0), (-12, 4)] {
            assert!(matches!(of(batch, token), Err(Error::Layout { arg: "h", .. })), "{batch} {token}");
        }
    }

    #[test]
    fn dense_spans_what_it_holds() {
        let dense = Strided::dense([2, 3, 4], 5, 2);
        assert_eq!((dense.span(), dense.elements(), dense.bytes()), (120, 120, 240));
        assert_eq!(Strided::dense([2, 0, 4], 5, 2).span(), 0);
        assert!(dense.steps_by(5) && !dense.steps_by(2));
    }

    #[test]
    fn lengths_and_addresses_name_the_argument() {
        let dense = Strided::dense([1, 1, 1], 5, 2);
        assert!(matches!(length("op", "x", &dense, 4), Err(Error::Shape { arg: "x", .. })));
        assert!(matches!(address("op", ("x", 0, &dense), false), Err(Error::Align { arg: "x", .. })));
        assert!(matches!(address("op", ("x", 3, &dense), true), Err(Error::Align { need: 2, .. })));
        assert!(address("op", ("x", 0, &dense), true).is_ok());
        assert!(matches!(given("op", "x", true, false), Err(Error::Shape { .. })));
    }
}
