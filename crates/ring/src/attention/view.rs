//! Tensors before they have addresses: what they are part of, and where in it.

use cudarc::driver::sys::CUdeviceptr;
use lookback_device::{DType, strided::Stride};
use std::ops::Range;

/// What a view is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Base {
    /// One of the caller's tensors, by its number in the program.
    Tensor(usize),
    /// Memory of the workspace, by its number in the [`Arena`].
    Buffer(usize),
}

/// Part of a `[batch, tokens, heads, width]` tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub base: Base,
    /// Bytes from the base.
    pub at: u64,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    pub stride: Stride,
    pub dtype: DType,
}

impl View {
    /// All of a tensor without gaps.
    pub fn dense(base: Base, [batch, tokens, heads, width]: [usize; 4], dtype: DType) -> Self {
        Self { base, at: 0, batch, tokens, heads, width, stride: Stride::dense(tokens, heads, width), dtype }
    }

    /// The same extents with heads before tokens, `[batch, heads, tokens, width]`.
    pub fn head_major(self) -> Self {
        let (tokens, width) = (self.tokens as i64, self.width as i64);
        let stride = Stride { batch: tokens * width * self.heads as i64, token: width, head: tokens * width };
        Self { stride, ..self }
    }

    fn moved(self, index: usize, stride: i64) -> Self {
        Self { at: self.at + index as u64 * stride as u64 * self.dtype.size() as u64, ..self }
    }

    /// Some of its tokens.
    pub fn tokens(self, tokens: &Range<usize>) -> Self {
        Self { tokens: tokens.len(), ..self.moved(tokens.start, self.stride.token) }
    }

    /// Some of its heads.
    pub fn heads(self, heads: &Range<usize>) -> Self {
        Self { heads: heads.len(), ..self.moved(heads.start, self.stride.head) }
    }

    /// One row of its batch.
    pub fn row(self, batch: usize) -> Self {
        Self { batch: 1, ..self.moved(batch, self.stride.batch) }
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.batch * self.tokens * self.heads * self.width * self.dtype.size()
    }

    /// Whether the heads of its tokens lie side by side.
    pub fn is_packed(&self) -> bool {
        let token = (self.heads * self.width) as i64;
        (self.heads <= 1 || self.stride.head == self.width as i64) && (self.tokens <= 1 || self.stride.token == token)
    }

    /// Whether the tokens of each head lie side by side.
    pub fn is_head_major(&self) -> bool {
        self.stride.token == self.width as i64
    }

    /// Its bytes, if it is packed: one run for each row of the batch.
    pub fn segments(&self) -> Vec<Segment> {
        let rows = (0..self.batch).map(|b| self.row(b)).filter(|row| row.bytes() > 0);
        rows.map(|row| Segment { base: row.base, at: row.at, bytes: row.bytes() }).collect()
    }
}

/// Neighbouring bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub base: Base,
    pub at: u64,
    pub bytes: usize,
}

/// Buffers of the workspace. Two that are never needed in the same step may share memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Arena {
    /// Bytes, first and last step.
    buffers: Vec<(u64, usize, usize)>,
}

/// Buffers begin at multiples of this.
const ALIGN: u64 = 256;

impl Arena {
    /// A buffer for tensors of these bytes, one after the other, from `step` on; and where each begins.
    pub fn allocate(&mut self, sizes: &[usize], step: usize) -> (Base, Vec<u64>) {
        let mut starts = Vec::new();
        let mut bytes = 0;
        for size in sizes {
            starts.push(bytes);
            bytes += (*size as u64).next_multiple_of(ALIGN);
        }
        self.buffers.push((bytes, step, step));
        (Base::Buffer(self.buffers.len() - 1), starts)
    }

    /// The memory is still needed in `step`.
    pub fn touch(&mut self, base: Base, step: usize) {
        if let Base::Buffer(at) = base {
            let (_, first, last) = &mut self.buffers[at];
            (*first, *last) = ((*first).min(step), (*last).max(step));
        }
    }

    /// Where every buffer begins, and bytes of all: each at the lowest place that is free while it is needed.
    pub fn place(&self) -> (Vec<u64>, u64) {
        let mut starts: Vec<u64> = Vec::new();
        let mut total = 0;
        for (at, (bytes, first, last)) in self.buffers.iter().enumerate() {
            let beside = |other: usize| {
                let (_, from, to) = self.buffers[other];
                from <= *last && *first <= to
            };
            let mut taken: Vec<(u64, u64)> = (0..at)
                .filter(|other| beside(*other))
                .map(|other| (starts[other], starts[other] + self.buffers[other].0))
                .collect();
            taken.sort_unstable();
            let mut start = 0;
            for (from, to) in taken {
                if start + bytes > from {
                    start = start.max(to);
                }
            }
            starts.push(start);
            total = total.max(start + bytes);
        }
        (starts, total)
    }
}

/// Addresses of the bases for one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses<'a> {
    pub tensors: &'a [CUdeviceptr],
    pub workspace: CUdeviceptr,
    /// From [`Arena::place`].
    pub starts: &'a [u64],
}

impl Addresses<'_> {
    pub fn of(&self, base: Base, at: u64) -> CUdeviceptr {
        match base {
            Base::Tensor(tensor) => self.tensors[tensor] + at,
            Base::Buffer(buffer) => self.workspace + self.starts[buffer] + at,
        }
    }

    pub fn view(&self, view: &View) -> CUdeviceptr {
        self.of(view.base, view.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_views_are_where_their_elements_are() {
        let all = View::dense(Base::Tensor(0), [2, 5, 4, 8], DType::F16);
        let part = all.heads(&(1..3)).tokens(&(2..5)).row(1);
        assert_eq!(part.at, 2 * (5 * 4 * 8 + 2 * 4 * 8 + 8));
        assert_eq!((part.batch, part.tokens, part.heads, part.bytes()), (1, 3, 2, 2 * 3 * 2 * 8));
        assert!(!part.is_packed() && all.is_packed() && all.tokens(&(1..4)).is_packed());
        assert!(all.heads(&(1..2)).tokens(&(3..4)).is_packed());
        let segments = all.tokens(&(1..4)).segments();
        assert_eq!(segments.len(), 2);
        assert_eq!((segments[1].at, segments[1].bytes), (2 * (5 + 1) * 32, 3 * 32 * 2));
    }

    #[test]
    fn buffers_share_memory_only_at_different_times() {
        let mut arena = Arena::default();
        let spans = [(0, 3), (0, 0), (1, 2), (1, 1), (2, 4), (4, 4), (0, 4), (3, 3)];
        for (i, (first, last)) in spans.iter().enumerate() {
            let (base, starts) = arena.allocate(&[100 + i, 1], *first);
            assert_eq!(starts, [0, 256]);
            arena.touch(base, *last);
        }
        let (starts, total) = arena.place();
        for a in 0..spans.len() {
            assert!(starts[a] + 512 <= total);
            for b in 0..a {
                let together = spans[a].0 <= spans[b].1 && spans[b].0 <= spans[a].1;
                let apart = starts[a] + 512 <= starts[b] || starts[b] + 512 <= starts[a];
                assert!(!together || apart, "{a} and {b}");
            }
        }
        assert!(total < 512 * spans.len() as u64);
    }
}
