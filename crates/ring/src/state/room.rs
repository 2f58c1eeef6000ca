//! Where a lane's states are in the workspace, and how those of several ranks are added up.

use super::{
    dealt::Way,
    waves::{Lane, Slot},
};
use crate::{DeviceInfo, Result};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::{DType, memory, strided::Stride};
use lookback_nn::{copy_rows, head_scale};
use std::ops::Range;

/// Buffers begin at multiples of this.
const ALIGN: u64 = 256;

/// Hands out parts of a workspace.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arena {
    pub bytes: u64,
}

impl Arena {
    /// Where `bytes` begin.
    pub fn take(&mut self, bytes: u64) -> u64 {
        let at = self.bytes;
        self.bytes = at.saturating_add(bytes).next_multiple_of(ALIGN);
        at
    }
}

/// What a lane keeps of every sequence: a state, and sums of keys where there is a normaliser.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// f32 of a head's part, each.
    pub parts: [usize; 2],
    /// Of them, those of one decay.
    pub per_decay: [usize; 2],
    /// Decays of a head; 0: nothing decays.
    pub decays: usize,
}

/// `[rows, heads, ..]` f32 of each part, by where they begin.
pub(super) type Parts = [u64; 2];

/// A lane's memory.
#[derive(Debug, Clone)]
pub(super) struct Room {
    sizes: Sizes,
    heads: Range<usize>,
    all_heads: usize,
    rows: usize,
    carried: usize,
    arriving_rows: Range<usize>,
    leaving_rows: Range<usize>,
    /// States that the lane begins with.
    pub arriving: Parts,
    /// States that it ends with.
    pub leaving: Parts,
    /// What would be left of others, `[rows, heads, decays]`.
    pub totals: u64,
    gathered: Vec<(Parts, u64)>,
    folds: [Option<Fold>; 2],
    copies: [Option<copy_rows::Plan>; 2],
    back: [Option<copy_rows::Plan>; 2],
    settle: [Option<copy_rows::Plan>; 2],
}

/// Adds what is left of earlier states.
#[derive(Debug, Clone)]
enum Fold {
    Sum(copy_rows::Plan),
    Decayed(head_scale::Plan),
}

fn f32s(count: usize) -> u64 {
    4 * count as u64
}

impl Room {
    /// `totals` and what is gathered are there where the passing gathers.
    pub fn new(
        arena: &mut Arena,
        sizes: Sizes,
        lane: &Lane,
        way: &Way<'_>,
        all_heads: usize,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let (rows, carried, heads) = (way.dealt.sequences(), way.dealt.carried(), lane.heads.len());
        let mut parts = |rows: usize| sizes.parts.map(|width| arena.take(f32s(rows * heads * width)));
        let (arriving, leaving) = (parts(rows), parts(rows));
        let gathers = way.dealt.passing == super::Passing::AllGather;
        let sources = if gathers { way.sources().len() } else { 0 };
        let gathered: Vec<Parts> = (0..sources).map(|_| parts(carried)).collect();
        let mut decays = |rows: usize| arena.take(f32s(rows * heads * sizes.decays));
        let gathered = gathered.into_iter().map(|parts| (parts, decays(carried))).collect();
        let totals = if gathers { decays(rows) } else { 0 };
        let plain = copy_rows::Options { dtype: DType::F32, out: DType::F32, accumulate: false };
        let mut room = Self {
            sizes,
            heads: lane.heads.clone(),
            all_heads,
            rows,
            carried,
            arriving_rows: way.arriving(),
            leaving_rows: way.leaving(),
            arriving,
            leaving,
            totals,
            gathered,
            folds: [None, None],
            copies: [None, None],
            back: [None, None],
            settle: [None, None],
        };
        for part in 0..2 {
            let width = sizes.parts[part];
            if width == 0 {
                continue;
            }
            // A lane's heads among all heads of the caller's tensor.
            let among = Stride { batch: (all_heads * width) as i64, token: 0, head: width as i64 };
            let shape = copy_rows::Shape::dense(rows, 1, heads, width);
            let from = copy_rows::Shape { x_stride: Some(among), ..shape };
            let to = copy_rows::Shape { out_stride: Some(among), ..shape };
            room.copies[part] = Some(copy_rows::Plan::new(&from, &plain, device)?);
            room.back[part] = Some(copy_rows::Plan::new(&to, &plain, device)?);
            let dense = copy_rows::Shape::dense(carried, 1, heads, width);
            room.settle[part] = Some(copy_rows::Plan::new(&dense, &plain, device)?);
            room.folds[part] = Some(match sizes.decays {
                0 => {
                    let sum = copy_rows::Options { accumulate: true, ..plain };
                    Fold::Sum(copy_rows::Plan::new(&dense, &sum, device)?)
                }
                decays => {
                    let shape = head_scale::Shape::dense(carried * heads * decays, 1, sizes.per_decay[part]);
                    let options = head_scale::Options { dtype: DType::F32, accumulate: true };
                    Fold::Decayed(head_scale::Plan::new(&shape, &options, device)?)
                }
            });
        }
        Ok(room)
    }

    /// Bytes of one row of a part.
    fn row(&self, part: usize) -> u64 {
        f32s(self.heads.len() * self.sizes.parts[part])
    }

    /// A message's memory.
    pub fn segments(&self, workspace: CUdeviceptr, slot: Slot) -> Vec<(CUdeviceptr, usize)> {
        let of = |parts: &Parts, rows: &Range<usize>| -> Vec<(CUdeviceptr, usize)> {
            let segment = |part: usize| {
                let at = workspace + parts[part] + rows.start as u64 * self.row(part);
                (at, (rows.len() as u64 * self.row(part)) as usize)
            };
            (0..2).map(segment).filter(|(_, bytes)| *bytes > 0).collect()
        };
        let row = f32s(self.heads.len() * self.sizes.decays);
        let decays =
            |at: u64, rows: &Range<usize>| (workspace + at + rows.start as u64 * row, rows.len() * row as usize);
        match slot {
            Slot::Arriving => of(&self.arriving, &self.arriving_rows),
            Slot::Leaving => of(&self.leaving, &self.leaving_rows),
            Slot::LeavingWithTotal => {
                let mut segments = of(&self.leaving, &self.leaving_rows);
                segments.extend(Some(decays(self.totals, &self.leaving_rows)).filter(|(_, bytes)| *bytes > 0));
                segments
            }
            Slot::Gathered(source) => {
                let (parts, totals) = &self.gathered[source];
                let mut segments = of(parts, &(0..self.carried));
                let has_total = source > 0 && row > 0;
                segments.extend(has_total.then(|| decays(*totals, &(0..self.carried))));
                segments
            }
        }
    }

    /// Fills the states that the lane begins with: the caller's (0: zeros), and zeros where others arrive.
    ///
    /// # Safety
    /// `given` are 0 or `[rows, all heads, ..]` f32, readable, and `workspace` is one that has room, until what is queued has ended.
    pub unsafe fn begin(
        &self,
        stream: &CudaStream,
        workspace: CUdeviceptr,
        given: [CUdeviceptr; 2],
        arrives: bool,
    ) -> Result<()> {
        for (part, given) in given.into_iter().enumerate() {
            let (Some(copy), to) = (&self.copies[part], workspace + self.arriving[part]) else { continue };
            let words = |rows: usize| rows * self.heads.len() * self.sizes.parts[part];
            let (at, rows) = match given {
                0 => (to, self.rows),
                from => {
                    let from = from + f32s(self.heads.start * self.sizes.parts[part]);
                    // SAFETY: the caller's promise; the lane's heads are some of all.
                    unsafe { copy.run_raw(stream, from, to) }?;
                    let rows = if arrives { self.arriving_rows.clone() } else { 0..0 };
                    (to + rows.start as u64 * self.row(part), rows.len())
                }
            };
            if words(rows) > 0 {
                // SAFETY: rows of the lane's own buffer.
                unsafe { memory::fill(stream, at, 0, words(rows)) }?;
            }
        }
        Ok(())
    }

    /// Adds up what was gathered, into the rows that arrive: `s <- total of the source * s + what the source ends with`.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    pub unsafe fn fold(&self, stream: &CudaStream, workspace: CUdeviceptr) -> Result<()> {
        let at = |offset: u64| workspace + offset;
        for part in 0..2 {
            let Some(fold) = &self.folds[part] else { continue };
            for pair in self.gathered.windows(2) {
                let (earlier, (later, totals)) = (pair[0].0[part], (pair[1].0[part], pair[1].1));
                match fold {
                    // SAFETY: buffers of this lane, as large as the plan says.
                    Fold::Sum(plan) => unsafe { plan.run_raw(stream, at(earlier), at(later)) }?,
                    // SAFETY: likewise.
                    Fold::Decayed(plan) => unsafe { plan.run_raw(stream, at(earlier), at(totals), 0, at(later)) }?,
                }
            }
            let Some((last, _)) = self.gathered.last() else { continue };
            let to = at(self.arriving[part]) + self.arriving_rows.start as u64 * self.row(part);
            let Some(settle) = &self.settle[part] else { continue };
            // SAFETY: likewise, the carried rows.
            unsafe { settle.run_raw(stream, at(last[part]), to) }?;
        }
        Ok(())
    }

    /// Copies a lane's states of every sequence to the caller's tensors; those of 0 are not wanted.
    ///
    /// # Safety
    /// `to` are 0 or `[rows, all heads, ..]` f32, writable; `parts` are states of this lane.
    pub unsafe fn give(
        &self,
        stream: &CudaStream,
        workspace: CUdeviceptr,
        parts: &Parts,
        to: [CUdeviceptr; 2],
    ) -> Result<()> {
        for part in 0..2 {
            let (Some(copy), true) = (&self.back[part], to[part] != 0) else { continue };
            let target = to[part] + f32s(self.heads.start * self.sizes.parts[part]);
            // SAFETY: the caller's promise; the lane's heads are some of all.
            unsafe { copy.run_raw(stream, workspace + parts[part], target) }?;
        }
        Ok(())
    }

    /// Copies the lane's heads of `[rows, all heads, ..]` f32 into the states that leave; 0 has no part.
    ///
    /// # Safety
    /// As for [`begin`](Self::begin).
    pub unsafe fn take(&self, stream: &CudaStream, workspace: CUdeviceptr, from: [CUdeviceptr; 2]) -> Result<()> {
        for (part, from) in from.into_iter().enumerate() {
            let (Some(copy), true) = (&self.copies[part], from != 0) else { continue };
            let from = from + f32s(self.heads.start * self.sizes.parts[part]);
            // SAFETY: the caller's promise.
            unsafe { copy.run_raw(stream, from, workspace + self.leaving[part]) }?;
        }
        Ok(())
    }

    /// Elements of the caller's tensor of a part: all heads of every sequence.
    pub fn elements(&self, part: usize) -> usize {
        self.rows * self.all_heads * self.sizes.parts[part]
    }
}
