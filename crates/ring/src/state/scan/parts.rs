//! Which channels travel together, what part of each tensor they have, and the memory of all.

use crate::{
    DeviceInfo, Error, Result,
    state::{
        dealt::{Deal, Dealt, Way},
        program::Contents,
        room::{Arena, Room, Sizes},
        waves::{Lane, Step, Task},
    },
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::strided;
use lookback_scan::{Options, Plan, RawInputs, RawOutputs, RawWorkspace, Shape, Source, Stride, Strides};

/// Lanes of the channels that run forward, and of the others.
///
/// # Errors
/// [`Error::NoKernel`], [`Error::Layout`], [`Error::Range`].
pub(super) fn lanes(op: &'static str, shape: &Shape, options: &Options, deal: &Deal) -> Result<Vec<Lane>> {
    let refused = |what: &str| Err(Error::NoKernel { op, request: format!("{what}, dealt to ranks") });
    if shape.packed.is_some() {
        return refused("a packed shape: the deal has the documents");
    }
    if shape.strides != Shape::dense(shape.batch, shape.seq_len, shape.channels).strides {
        return Err(Error::Layout { op, arg: "strides", need: "none: tensors have no gaps", stride: Vec::new() });
    }
    if options.source == (Source::RgLru { unit_at_reset: true }) && deal.documents.is_some() {
        // A document begins without a state where its neighbour on the rank goes on from one.
        return refused("inputs that are not scaled where documents begin");
    }
    strided::range(op, "split", options.split, 0, shape.channels)?;
    let (blocks, mut lanes) = (deal.passing.blocks(), Vec::new());
    for (set, reverse) in [(0..options.split, false), (options.split..shape.channels, true)] {
        if set.is_empty() {
            continue;
        }
        strided::range(op, "blocks", blocks, 1, set.len())?;
        for block in 0..blocks {
            let bound = |n: usize| set.start + set.len() * n / blocks;
            lanes.push(Lane { heads: bound(block)..bound(block + 1), reverse, block });
        }
    }
    Ok(lanes)
}

/// A channel has one number for a state, and one for its decay.
pub(super) fn sizes(source: Source) -> Sizes {
    let decays = if source == Source::Cumsum { 0 } else { 1 };
    Sizes { parts: [1, 0], per_decay: [1, 0], decays }
}

/// A lane's part of the scan, with the strides of the whole.
pub(super) fn part(shape: &Shape, options: &Options, dealt: &Dealt, lane: &Lane) -> (Shape, Options) {
    let (tokens, channels) = (dealt.tokens(), lane.heads.len());
    let strides = Shape::dense(shape.batch, tokens, shape.channels).strides;
    let packed = dealt.starts().map(|starts| starts.len() - 1);
    let split = if lane.reverse { 0 } else { channels };
    (Shape { batch: shape.batch, seq_len: tokens, channels, packed, strides }, Options { split, ..*options })
}

/// The addresses of a lane's part.
pub(super) fn inputs(all: &RawInputs, lane: &Lane, size: usize, starts: CUdeviceptr) -> RawInputs {
    let at = |address: CUdeviceptr, size: usize| match address {
        0 => 0,
        address => address + (lane.heads.start * size) as u64,
    };
    RawInputs {
        a: at(all.a, size),
        b: at(all.b, size),
        x: at(all.x, size),
        channel: at(all.channel, 4),
        flags: all.flags,
        cu_seqlens: starts,
        initial: 0,
    }
}

/// A scan of ones with the decays and without inputs: it ends with what would be left of a state.
fn total(shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Plan> {
    let still = Stride { batch: 0, token: 0 };
    let is_producer = matches!(options.source, Source::GatedSsm { .. } | Source::RgLru { .. });
    let strides = match is_producer {
        true => Strides { x: still, ..shape.strides },
        false => Strides { b: still, ..shape.strides },
    };
    Plan::new(&Shape { strides, ..*shape }, options, device)
}

/// What both passes have besides their kernels.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub dealt: Dealt,
    pub shape: Shape,
    pub options: Options,
    /// Of the forward pass.
    pub lanes: Vec<Lane>,
    pub steps: Vec<Step>,
    /// By which way the pass goes.
    pub rooms: Vec<Room>,
    totals: Vec<Option<Plan>>,
    pub contents: Contents,
    starts: u64,
    flags: (u64, u64),
    zeros: u64,
}

impl Frame {
    /// `ways` are the lanes with the way that states of the pass go; `workspace` is what its kernels need.
    pub fn new(
        (dealt, shape, options): (Dealt, &Shape, &Options),
        lanes: Vec<Lane>,
        ways: &[Lane],
        steps: Vec<Step>,
        mut arena: Arena,
        workspace: u64,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let (mut rooms, mut totals) = (Vec::new(), Vec::new());
        for (index, (lane, travels)) in lanes.iter().zip(ways).enumerate() {
            let way = Way { dealt: &dealt, reverse: travels.reverse };
            rooms.push(Room::new(&mut arena, sizes(options.source), travels, &way, shape.channels, device)?);
            let needed = steps.iter().any(|step| step.tasks.contains(&Task::Total(index)));
            let (part, own) = part(shape, options, &dealt, lane);
            let wanted = needed && options.source != Source::Cumsum;
            totals.push(if wanted { Some(total(&part, &own, device)?) } else { None });
        }
        let bytes = totals.iter().flatten().map(Plan::workspace_bytes).max().unwrap_or(0).max(workspace);
        let flags = (arena.take(bytes), bytes);
        let gathers = totals.iter().any(Option::is_some);
        let ones = if gathers { dealt.sequences() * shape.channels } else { 0 };
        let (ones_at, zeros) = (arena.take(4 * ones as u64), arena.take(4 * shape.channels as u64));
        let table = dealt.starts().unwrap_or_default();
        let starts = arena.take(4 * table.len() as u64);
        let contents = Contents { bytes: arena.bytes, tables: vec![(starts, table)], ones: (ones_at, ones) };
        let (shape, options) = (*shape, *options);
        Ok(Self { dealt, shape, options, lanes, steps, rooms, totals, contents, starts, flags, zeros })
    }

    pub fn bytes_sent(&self) -> u64 {
        let sent = self.steps.iter().flat_map(|step| &step.send);
        sent.flat_map(|mail| self.rooms[mail.lane].segments(0, mail.slot)).map(|(_, bytes)| bytes as u64).sum()
    }

    pub fn starts(&self, workspace: CUdeviceptr) -> CUdeviceptr {
        if self.dealt.starts().is_some() { workspace + self.starts } else { 0 }
    }

    pub fn scratch(&self, workspace: CUdeviceptr) -> RawWorkspace {
        match self.flags {
            (_, 0) => RawWorkspace { address: 0, bytes: 0 },
            (at, bytes) => RawWorkspace { address: workspace + at, bytes },
        }
    }

    /// Whether states come from an earlier rank in the forward pass.
    pub fn goes_on(&self, lane: usize) -> bool {
        Way { dealt: &self.dealt, reverse: self.lanes[lane].reverse }.before().is_some()
    }

    /// What would be left of a state; `tensor` `[B,T,D]` is overwritten.
    ///
    /// # Safety
    /// As for [`Plan::run_raw`].
    pub unsafe fn total(
        &self,
        stream: &CudaStream,
        lane: usize,
        all: &RawInputs,
        tensor: CUdeviceptr,
        workspace: CUdeviceptr,
    ) -> Result<()> {
        let Some(plan) = &self.totals[lane] else { return Ok(()) };
        let size = self.options.dtype.size();
        let own = inputs(all, &self.lanes[lane], size, self.starts(workspace));
        let initial = workspace + self.contents.ones.0;
        let zeros = workspace + self.zeros;
        let is_producer = matches!(self.options.source, Source::GatedSsm { .. } | Source::RgLru { .. });
        let raw = match is_producer {
            true => RawInputs { x: zeros, initial, ..own },
            false => RawInputs { b: zeros, initial, ..own },
        };
        let h = tensor + (self.lanes[lane].heads.start * size) as u64;
        let last = workspace + self.rooms[lane].totals;
        // SAFETY: the caller's promise; ones and zeros are what the workspace was made with.
        unsafe { plan.run_raw(stream, &raw, &RawOutputs { h, last }, self.scratch(workspace)) }
    }
}
