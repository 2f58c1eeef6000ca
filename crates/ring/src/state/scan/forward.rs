//! The forward pass.

use super::parts::{self, Frame};
use crate::{
    DeviceInfo, Result,
    schedule::Item,
    state::{
        dealt::{Deal, Dealt, Way},
        program::{self, Machine, Workspace},
        room::Arena,
        waves::{self, Slot, Task},
    },
    transport::Transport,
};
use cudarc::driver::{CudaStream, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    Element, memory,
    strided::{self, Strided},
};
use lookback_scan::{self as scan, Inputs, Options, RawInputs, Shape, Source};
use std::sync::Arc;

pub(super) const OP: &str = "state gated_scan";

/// Results of the rank's tokens.
pub struct Outputs<'a, T> {
    /// `[B,T,D]`.
    pub h: &'a mut dyn DevicePtrMut<T>,
    /// `[N,D]` states after the last step of each sequence; of a document that goes on on another rank, after this rank's tokens.
    pub last: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,D]` states that the rank's tokens began with: the caller's where a document begins, those of earlier ranks where it goes on.
    /// A backward pass needs them.
    pub arrived: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// States.
    pub h: CUdeviceptr,
    /// Final states.
    pub last: CUdeviceptr,
    /// States that the tokens began with.
    pub arrived: CUdeviceptr,
}

/// One rank's scans and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    frame: Frame,
    scans: Vec<scan::Plan>,
}

/// The rank's `[B,T,D]` tensors, those of states, of channels, and flags.
pub(super) fn tensors(frame: &Frame) -> [Strided; 4] {
    let Shape { batch, channels, .. } = frame.shape;
    let (tokens, size) = (frame.dealt.tokens(), frame.options.dtype.size());
    [
        Strided::dense([batch, tokens, 1], channels, size),
        Strided::dense([1, 1, frame.dealt.sequences()], channels, 4),
        Strided::dense([1, 1, 1], channels, 4),
        Strided::dense([1, 1, batch], tokens, 1),
    ]
}

/// Lengths of inputs, and that the source has them all.
pub(super) fn check_lengths<T>(op: &'static str, frame: &Frame, inputs: &Inputs<'_, T>, needs_b: bool) -> Result<()> {
    let [tokens, states, channel, flags] = tensors(frame);
    let gates = &inputs.gates;
    strided::given(op, "cu_seqlens", false, inputs.cu_seqlens.is_some())?;
    for (arg, tensor, len) in [
        ("a", &tokens, gates.a.map(|s| s.len())),
        ("b", &tokens, gates.b.filter(|_| needs_b).map(|s| s.len())),
        ("x", &tokens, gates.x.map(|s| s.len())),
        ("channel", &channel, gates.channel.map(|s| s.len())),
        ("flags", &flags, inputs.flags.map(|s| s.len())),
        ("initial", &states, inputs.initial.map(|s| s.len())),
    ] {
        len.map_or(Ok(()), |len| strided::length(op, arg, tensor, len))?;
    }
    Ok(())
}

/// Presence, alignment and overlap, before anything is sent; `written` are the outputs.
pub(super) fn check_raw(
    op: &'static str,
    frame: &Frame,
    inputs: &RawInputs,
    needs_b: bool,
    more: &[strided::Placed<'_>],
    written: &[strided::Placed<'_>],
) -> Result<()> {
    let [tokens, states, channel, flags] = tensors(frame);
    let source = frame.options.source;
    let is_producer = matches!(source, Source::GatedSsm { .. } | Source::RgLru { .. });
    let has_a = is_producer || matches!(source, Source::Tensor | Source::Log);
    let has_channel = matches!(source, Source::Channel { .. } | Source::RgLru { .. });
    let read = [
        ("a", inputs.a, &tokens, has_a),
        ("b", inputs.b, &tokens, needs_b),
        ("x", inputs.x, &tokens, is_producer),
        ("channel", inputs.channel, &channel, has_channel),
    ];
    for (arg, address, tensor, wanted) in read {
        if tensor.elements() > 0 && (wanted || arg != "b") {
            strided::given(op, arg, wanted, address != 0)?;
        }
        strided::address(op, (arg, address, tensor), !wanted)?;
    }
    strided::given(op, "cu_seqlens", false, inputs.cu_seqlens != 0)?;
    let optional = [("flags", inputs.flags, &flags), ("initial", inputs.initial, &states)];
    optional.iter().chain(more).chain(written).try_for_each(|placed| strided::address(op, *placed, true))?;
    let read: Vec<strided::Placed<'_>> = read.into_iter().map(|(arg, at, tensor, _)| (arg, at, tensor)).collect();
    strided::all_disjoint(op, written, &[&read[..], &optional[..], more].concat())
}

impl Plan {
    /// Checks everything, deals the sequence and finds the kernels. `shape` is that of all ranks together, dense and without packed
    /// sequences: the deal has the documents.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← ranks, a rank or blocks that there are not; [`Error::Shape`](crate::Error::Shape) ←
    /// documents that do not end with the sequence; [`Error::Layout`](crate::Error::Layout) ← strides;
    /// [`Error::NoKernel`](crate::Error::NoKernel) ← [`Source::RgLru`] with `unit_at_reset` and documents; those of [`scan::Plan::new`].
    pub fn new(shape: &Shape, options: &Options, deal: &Deal, rank: usize, device: &DeviceInfo) -> Result<Self> {
        let dealt = Dealt::new(OP, deal, shape.batch, shape.seq_len, rank)?;
        scan::Plan::new(shape, options, device)?;
        let lanes = parts::lanes(OP, shape, options, deal)?;
        let steps = waves::steps(&dealt, Item::State, &lanes, false);
        let plan = |lane| {
            let (part, own) = parts::part(shape, options, &dealt, lane);
            scan::Plan::new(&part, &own, device)
        };
        let scans = lanes.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let workspace = scans.iter().map(scan::Plan::workspace_bytes).max().unwrap_or(0);
        let ways = lanes.clone();
        let arena = Arena::default();
        Ok(Self { frame: Frame::new((dealt, shape, options), lanes, &ways, steps, arena, workspace, device)?, scans })
    }

    /// Bytes of a [`Workspace`]: states as they arrive and leave; with [`Passing::AllGather`](crate::state::Passing::AllGather) those of
    /// every earlier rank; what the scans need.
    pub fn workspace_bytes(&self) -> u64 {
        self.frame.contents.bytes
    }

    /// Its workspace.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Driver`](crate::Error::Driver).
    pub fn workspace(&self, stream: &Arc<CudaStream>) -> Result<Workspace> {
        Workspace::of(stream, &self.frame.contents)
    }

    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> u64 {
        self.frame.bytes_sent()
    }

    /// Tokens of this rank.
    pub fn tokens(&self) -> usize {
        self.frame.dealt.tokens()
    }

    /// Documents that have tokens on this rank, or go on across it: the rows of its states. Empty without documents.
    pub fn documents(&self) -> Vec<usize> {
        self.frame.dealt.local().unwrap_or_default()
    }

    /// Rows of the rank's states: one for each of its documents and at least one; the batch without documents.
    pub fn sequences(&self) -> usize {
        self.frame.dealt.sequences()
    }

    /// The scan of this rank's tokens, from what earlier ones left. Every rank calls it, with plans of one deal, in the same order.
    ///
    /// # Shapes
    /// Those of [`scan::Plan::run`] with the rank's [`tokens`](Self::tokens) and [`sequences`](Self::sequences), in the plan's type and
    /// without gaps. `cu_seqlens` is the plan's own and left out. An initial state of a document that began on another rank is not read.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype), [`Error::Shape`](crate::Error::Shape) ← a slice is too short or has no meaning here, or the
    /// transport is another rank's; nothing is launched or sent on these. [`Error::Peer`](crate::Error::Peer) ← another rank has failed:
    /// results are undefined, and all other ranks are told.
    ///
    /// # Numerics
    /// Those of [`scan::Plan::run`]; states pass in f32. With [`Passing::AllGather`](crate::state::Passing::AllGather) they are the sum of
    /// every earlier rank's own, times the product of the decays between, in f32.
    ///
    /// # Determinism
    /// Bitwise on one deal.
    ///
    /// # Cost
    /// [`bytes_sent`](Self::bytes_sent), and one scan: up to three with [`Passing::AllGather`](crate::state::Passing::AllGather) on ranks in
    /// the middle of a sequence, two at its end, one at its start.
    pub fn run<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let frame = &self.frame;
        strided::dtype(OP, "inputs", frame.options.dtype, T::DTYPE)?;
        check_lengths(OP, frame, inputs, true)?;
        let [tokens, states, ..] = tensors(frame);
        strided::length(OP, "h", &tokens, outputs.h.len())?;
        for (arg, slice) in [("last", &outputs.last), ("arrived", &outputs.arrived)] {
            slice.as_ref().map_or(Ok(()), |s| strided::length(OP, arg, &states, s.len()))?;
        }
        let (a, _a) = memory::input(inputs.gates.a, stream);
        let (b, _b) = memory::input(inputs.gates.b, stream);
        let (x, _x) = memory::input(inputs.gates.x, stream);
        let (channel, _channel) = memory::input(inputs.gates.channel, stream);
        let (flags, _flags) = memory::input(inputs.flags, stream);
        let (initial, _initial) = memory::input(inputs.initial, stream);
        let raw = RawInputs { a, b, x, channel, flags, cu_seqlens: 0, initial };
        let (h, _h) = memory::output(Some(outputs.h), stream);
        let (last, _last) = memory::output(outputs.last, stream);
        let (arrived, _arrived) = memory::output(outputs.arrived, stream);
        let (workspace, _workspace) = workspace.hold(OP, &frame.contents, stream)?;
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &raw, &RawOutputs { h, last, arrived }, workspace, transport) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias).
    ///
    /// # Safety
    /// * Every address that is not 0 is readable (inputs) or readable and writable (outputs) over the plan's tensors, and `workspace` is
    ///   that of a [`Workspace`] of this plan, until what is queued on the stream has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &RawInputs,
        outputs: &RawOutputs,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let frame = &self.frame;
        program::check(OP, (frame.dealt.rank, frame.dealt.layout.ranks), transport)?;
        let [tokens, states, ..] = tensors(frame);
        strided::address(OP, ("h", outputs.h, &tokens), false)?;
        let written =
            [("h", outputs.h, &tokens), ("last", outputs.last, &states), ("arrived", outputs.arrived, &states)];
        check_raw(OP, frame, inputs, true, &[], &written)?;
        let run = Run { plan: self, stream, inputs, outputs, workspace };
        // SAFETY: the caller's promise; tasks keep to the plan's tensors and its workspace.
        unsafe { program::execute(&frame.steps, &run, stream, transport) }
    }
}

/// A plan with addresses.
struct Run<'a> {
    plan: &'a Plan,
    stream: &'a Arc<CudaStream>,
    inputs: &'a RawInputs,
    outputs: &'a RawOutputs,
    workspace: CUdeviceptr,
}

impl Machine for Run<'_> {
    fn segments(&self, lane: usize, slot: Slot) -> Vec<(CUdeviceptr, usize)> {
        self.plan.frame.rooms[lane].segments(self.workspace, slot)
    }

    unsafe fn begin(&self) -> Result<()> {
        let frame = &self.plan.frame;
        frame.rooms.iter().zip(&frame.lanes).try_for_each(|(room, lane)| {
            let arrives = Way { dealt: &frame.dealt, reverse: lane.reverse }.before().is_some();
            // SAFETY: the caller's promise.
            unsafe { room.begin(self.stream, self.workspace, [self.inputs.initial, 0], arrives) }
        })
    }

    unsafe fn perform(&self, task: Task) -> Result<()> {
        let frame = &self.plan.frame;
        match task {
            Task::Walk(lane) | Task::State(lane) | Task::Both(lane) => {
                let (room, size) = (&frame.rooms[lane], frame.options.dtype.size());
                let part = parts::inputs(self.inputs, &frame.lanes[lane], size, frame.starts(self.workspace));
                // A start without a state is not one from zero, to a source that scales its inputs.
                let from = self.inputs.initial != 0 || frame.goes_on(lane);
                let initial = if from { self.workspace + room.arriving[0] } else { 0 };
                let h = self.outputs.h + (frame.lanes[lane].heads.start * size) as u64;
                let out = scan::RawOutputs { h, last: self.workspace + room.leaving[0] };
                let (raw, scratch) = (RawInputs { initial, ..part }, frame.scratch(self.workspace));
                // SAFETY: the caller's promise; a lane's part lies within the tensors, its states within the workspace.
                unsafe { self.plan.scans[lane].run_raw(self.stream, &raw, &out, scratch) }
            }
            // SAFETY: likewise; the results are walked again.
            Task::Total(lane) => unsafe { frame.total(self.stream, lane, self.inputs, self.outputs.h, self.workspace) },
            // SAFETY: likewise.
            Task::Fold(lane) => unsafe { frame.rooms[lane].fold(self.stream, self.workspace) },
        }
    }

    unsafe fn finish(&self) -> Result<()> {
        for room in &self.plan.frame.rooms {
            // SAFETY: the caller's promise.
            unsafe {
                room.give(self.stream, self.workspace, &room.leaving, [self.outputs.last, 0])?;
                room.give(self.stream, self.workspace, &room.arriving, [self.outputs.arrived, 0])?;
            }
        }
        Ok(())
    }
}
