//! The backward pass: adjoints of states pass from the last rank to the first.

use super::{
    forward::{check_lengths, check_raw, tensors},
    parts::{self, Frame},
};
use crate::{
    DeviceInfo, Result,
    schedule::Item,
    state::{
        dealt::{Deal, Dealt, Way},
        program::{self, Machine, Workspace},
        room::Arena,
        waves::{self, Lane, Slot, Task},
    },
    transport::Transport,
};
use cudarc::driver::{CudaStream, DevicePtr, sys::CUdeviceptr};
use lookback_device::{
    Element, memory,
    strided::{self, Strided},
};
use lookback_nn::copy_rows;
use lookback_scan::{self as scan, BackwardOutputs, Options, RawBackwardOutputs, RawInputs, Shape, Source};
use std::sync::Arc;

const OP: &str = "state gated_scan_backward";

/// Inputs of a backward pass.
pub struct BackwardInputs<'a, T> {
    /// Those of the operation, with the caller's initial states as the forward pass had them.
    pub own: scan::BackwardInputs<'a, T>,
    /// `[N,D]` states that the rank's tokens began with, as the forward pass gave them; read where a sequence goes on from another rank.
    pub arrived: Option<&'a dyn DevicePtr<f32>>,
}

/// [`BackwardInputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawBackwardInputs {
    /// Those of the operation.
    pub own: scan::RawBackwardInputs,
    /// States that the tokens began with.
    pub arrived: CUdeviceptr,
}

/// One rank's backward scans and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    frame: Frame,
    scans: Vec<scan::BackwardPlan>,
    /// A lane's channels of the states that its tokens began with: where they go, and how.
    began: Vec<(u64, copy_rows::Plan)>,
}

impl BackwardPlan {
    /// As [`Plan::new`](super::Plan::new), for the same deal as its forward pass. The passing may be another.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new) and of [`scan::BackwardPlan::new`].
    pub fn new(shape: &Shape, options: &Options, deal: &Deal, rank: usize, device: &DeviceInfo) -> Result<Self> {
        let dealt = Dealt::new(OP, deal, shape.batch, shape.seq_len, rank)?;
        scan::BackwardPlan::new(shape, options, device)?;
        let lanes = parts::lanes(OP, shape, options, deal)?;
        let ways: Vec<Lane> = lanes.iter().map(|lane| Lane { reverse: !lane.reverse, ..lane.clone() }).collect();
        let steps = waves::steps(&dealt, Item::StateGradient, &ways, false);
        let (mut arena, mut scans, mut began) = (Arena::default(), Vec::new(), Vec::new());
        for lane in &lanes {
            let (part, own) = parts::part(shape, options, &dealt, lane);
            scans.push(scan::BackwardPlan::new(&part, &own, device)?);
            let (rows, channels) = (dealt.sequences(), lane.heads.len());
            let among = strided::Stride { batch: shape.channels as i64, token: 0, head: 0 };
            let copy = copy_rows::Shape { x_stride: Some(among), ..copy_rows::Shape::dense(rows, 1, 1, channels) };
            let f32 = lookback_device::DType::F32;
            let plain = copy_rows::Options { dtype: f32, out: f32, accumulate: false };
            began.push((arena.take(4 * (rows * channels) as u64), copy_rows::Plan::new(&copy, &plain, device)?));
        }
        let workspace = scans.iter().map(scan::BackwardPlan::workspace_bytes).max().unwrap_or(0);
        let frame = Frame::new((dealt, shape, options), lanes, &ways, steps, arena, workspace, device)?;
        Ok(Self { frame, scans, began })
    }

    /// Bytes of a [`Workspace`], as of the forward pass.
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

    /// Whether some lane's tokens began with states of another rank.
    fn wants_arrived(&self) -> bool {
        (0..self.frame.lanes.len()).any(|lane| self.frame.goes_on(lane))
    }

    /// Gradients of everything that the rank's tokens read. Every rank calls it, with plans of one deal, in the same order.
    ///
    /// # Shapes
    /// Those of [`scan::BackwardPlan::run`] for the rank's tokens and sequences, without gaps. `cu_seqlens` is left out. The adjoint of a
    /// final state is read where its sequence ends on this rank, the gradient of an initial state is that of the sequence where it begins
    /// here, else what went on to the rank before.
    ///
    /// # Errors
    /// Those of [`Plan::run`](super::Plan::run); [`Error::Shape`](crate::Error::Shape) ← `arrived` is missing where a sequence goes on.
    ///
    /// # Numerics
    /// Those of [`scan::BackwardPlan::run`]; adjoints of states pass in f32. The gradient of a channel is that of this rank's tokens: their
    /// sum over ranks is that of the whole.
    ///
    /// # Determinism
    /// Bitwise on one deal.
    ///
    /// # Cost
    /// As the forward pass, with backward scans.
    pub fn run<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let (frame, own) = (&self.frame, &inputs.own);
        let is_producer = self.is_producer();
        strided::dtype(OP, "inputs", frame.options.dtype, T::DTYPE)?;
        check_lengths(OP, frame, &own.forward, is_producer)?;
        let [tokens, states, channels, _] = tensors(frame);
        let gates = outputs.gates;
        for (arg, tensor, len) in [
            ("h", &tokens, Some(own.h.len())),
            ("dh", &tokens, Some(own.dh.len())),
            ("d_last", &states, own.d_last.map(|s| s.len())),
            ("arrived", &states, inputs.arrived.map(|s| s.len())),
            ("da", &tokens, gates.a.as_ref().map(|s| s.len())),
            ("db", &tokens, gates.b.as_ref().map(|s| s.len())),
            ("dx", &tokens, gates.x.as_ref().map(|s| s.len())),
            ("d_channel", &channels, gates.channel.as_ref().map(|s| s.len())),
            ("d_initial", &states, outputs.d_initial.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        let forward = &own.forward;
        let (a, _a) = memory::input(forward.gates.a, stream);
        let (b, _b) = memory::input(forward.gates.b.filter(|_| is_producer), stream);
        let (x, _x) = memory::input(forward.gates.x, stream);
        let (channel, _channel) = memory::input(forward.gates.channel, stream);
        let (flags, _flags) = memory::input(forward.flags, stream);
        let (initial, _initial) = memory::input(forward.initial, stream);
        let forward = RawInputs { a, b, x, channel, flags, cu_seqlens: 0, initial };
        let (h, _h) = memory::input(Some(own.h), stream);
        let (dh, _dh) = memory::input(Some(own.dh), stream);
        let (d_last, _d_last) = memory::input(own.d_last, stream);
        let (arrived, _arrived) = memory::input(inputs.arrived, stream);
        let raw = RawBackwardInputs { own: scan::RawBackwardInputs { forward, h, dh, d_last }, arrived };
        let (a, _da) = memory::output(gates.a, stream);
        let (b, _db) = memory::output(gates.b, stream);
        let (x, _dx) = memory::output(gates.x, stream);
        let (channel, _d_channel) = memory::output(gates.channel, stream);
        let (d_initial, _d_initial) = memory::output(outputs.d_initial, stream);
        let out = RawBackwardOutputs { a, b, x, channel, d_initial };
        let (workspace, _workspace) = workspace.hold(OP, &frame.contents, stream)?;
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &raw, &out, workspace, transport) }
    }

    fn is_producer(&self) -> bool {
        matches!(self.frame.options.source, Source::GatedSsm { .. } | Source::RgLru { .. })
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`](crate::Error::Align), [`Error::Alias`](crate::Error::Alias).
    ///
    /// # Safety
    /// That of [`Plan::run_raw`](super::Plan::run_raw).
    pub unsafe fn run_raw(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let (frame, own) = (&self.frame, &inputs.own);
        program::check(OP, (frame.dealt.rank, frame.dealt.layout.ranks), transport)?;
        let [tokens, states, channels, _] = tensors(frame);
        let source = frame.options.source;
        let is_producer = self.is_producer();
        let has_a = is_producer || matches!(source, Source::Tensor | Source::Log);
        if self.wants_arrived() && states.elements() > 0 {
            strided::given(OP, "arrived", true, inputs.arrived != 0)?;
        }
        let needed: [(&'static str, CUdeviceptr, &Strided, bool); 5] = [
            ("h", own.h, &tokens, true),
            ("dh", own.dh, &tokens, true),
            ("da", outputs.a, &tokens, has_a),
            ("db", outputs.b, &tokens, true),
            ("dx", outputs.x, &tokens, is_producer),
        ];
        for (arg, address, tensor, wanted) in needed {
            if tensor.elements() > 0 {
                strided::given(OP, arg, wanted, address != 0)?;
            }
        }
        let may_have = matches!(source, Source::Channel { .. } | Source::RgLru { .. });
        let there = outputs.channel != 0;
        strided::given(OP, "d_channel", may_have && (there || is_producer), there)?;
        let more = [
            ("h", own.h, &tokens),
            ("dh", own.dh, &tokens),
            ("d_last", own.d_last, &states),
            ("arrived", inputs.arrived, &states),
        ];
        let written = [
            ("da", outputs.a, &tokens),
            ("db", outputs.b, &tokens),
            ("dx", outputs.x, &tokens),
            ("d_channel", outputs.channel, &channels),
            ("d_initial", outputs.d_initial, &states),
        ];
        check_raw(OP, frame, &own.forward, is_producer, &more, &written)?;
        let run = Run { plan: self, stream, inputs, outputs, workspace };
        // SAFETY: the caller's promise; tasks keep to the plan's tensors and its workspace.
        unsafe { program::execute(&frame.steps, &run, stream, transport) }
    }
}

/// A plan with addresses.
struct Run<'a> {
    plan: &'a BackwardPlan,
    stream: &'a Arc<CudaStream>,
    inputs: &'a RawBackwardInputs,
    outputs: &'a RawBackwardOutputs,
    workspace: CUdeviceptr,
}

impl Run<'_> {
    /// What a lane's tokens began with, all lanes' in one tensor.
    fn began(&self, lane: usize) -> CUdeviceptr {
        if self.plan.frame.goes_on(lane) { self.inputs.arrived } else { self.inputs.own.forward.initial }
    }
}

impl Machine for Run<'_> {
    fn segments(&self, lane: usize, slot: Slot) -> Vec<(CUdeviceptr, usize)> {
        self.plan.frame.rooms[lane].segments(self.workspace, slot)
    }

    unsafe fn begin(&self) -> Result<()> {
        let frame = &self.plan.frame;
        for (index, (room, lane)) in frame.rooms.iter().zip(&frame.lanes).enumerate() {
            let arrives = Way { dealt: &frame.dealt, reverse: !lane.reverse }.before().is_some();
            // SAFETY: the caller's promise.
            unsafe { room.begin(self.stream, self.workspace, [self.inputs.own.d_last, 0], arrives) }?;
            let ((to, copy), from) = (&self.plan.began[index], self.began(index));
            if from != 0 {
                let from = from + 4 * lane.heads.start as u64;
                // SAFETY: likewise; a lane's channels of every sequence.
                unsafe { copy.run_raw(self.stream, from, self.workspace + to) }?;
            }
        }
        Ok(())
    }

    unsafe fn perform(&self, task: Task) -> Result<()> {
        let (frame, own) = (&self.plan.frame, &self.inputs.own);
        match task {
            Task::Walk(lane) | Task::State(lane) | Task::Both(lane) => {
                let (room, size) = (&frame.rooms[lane], frame.options.dtype.size());
                let first = frame.lanes[lane].heads.start;
                let at = |address: CUdeviceptr, size: usize| match address {
                    0 => 0,
                    address => address + (first * size) as u64,
                };
                let part = parts::inputs(&own.forward, &frame.lanes[lane], size, frame.starts(self.workspace));
                let initial = if self.began(lane) == 0 { 0 } else { self.workspace + self.plan.began[lane].0 };
                let raw = scan::RawBackwardInputs {
                    forward: RawInputs { initial, ..part },
                    h: at(own.h, size),
                    dh: at(own.dh, size),
                    d_last: self.workspace + room.arriving[0],
                };
                let out = RawBackwardOutputs {
                    a: at(self.outputs.a, size),
                    b: at(self.outputs.b, size),
                    x: at(self.outputs.x, size),
                    channel: at(self.outputs.channel, 4),
                    d_initial: self.workspace + room.leaving[0],
                };
                let scratch = frame.scratch(self.workspace);
                // SAFETY: the caller's promise; a lane's part lies within the tensors, its states within the workspace.
                unsafe { self.plan.scans[lane].run_raw(self.stream, &raw, &out, scratch) }
            }
            Task::Total(lane) => {
                // The scan of a source without gates reads a `b` of its own.
                let forward = &own.forward;
                // SAFETY: likewise; the gradient is walked again.
                unsafe { frame.total(self.stream, lane, forward, self.outputs.b, self.workspace) }
            }
            // SAFETY: likewise.
            Task::Fold(lane) => unsafe { frame.rooms[lane].fold(self.stream, self.workspace) },
        }
    }

    unsafe fn finish(&self) -> Result<()> {
        for room in &self.plan.frame.rooms {
            // SAFETY: the caller's promise.
            unsafe { room.give(self.stream, self.workspace, &room.leaving, [self.outputs.d_initial, 0]) }?;
        }
        Ok(())
    }
}
