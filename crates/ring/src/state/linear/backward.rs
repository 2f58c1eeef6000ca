//! The backward pass: adjoints of states pass from the last rank to the first.

use super::{
    backward_run::Run,
    lanes::{self, Part},
    tensors::{RawArrived, Tensors},
    totals::Totals,
};
use crate::{
    DeviceInfo, Error, Result,
    schedule::Item,
    state::{
        dealt::{Deal, Dealt, Way},
        program::{self, Contents, Workspace},
        room::{Arena, Room},
        waves::{self, Lane, Step},
    },
    transport::Transport,
};
use cudarc::driver::{CudaStream, DevicePtr, sys::CUdeviceptr};
use lookback_device::{Element, memory, strided};
use lookback_linear::{
    self as linear, BackwardOutputs, Mode, Options, RawBackwardInputs, RawBackwardOutputs, RawInputs, Read, Shape,
};
use std::sync::Arc;

const OP: &str = "state linear_attention_backward";

/// States that the rank's tokens began with, as [`Arrived`](super::Arrived) of the forward pass gave them. Needed where a sequence goes on
/// from another rank; without, they are the caller's initial states.
#[derive(Default)]
pub struct ArrivedInputs<'a> {
    /// `[N,H,K,V]` f32.
    pub state: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,K,V]` f32 of the reverse direction.
    pub reverse_state: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,K]` f32 sums of keys.
    pub normalizer: Option<&'a dyn DevicePtr<f32>>,
}

/// Inputs of a backward pass.
pub struct BackwardInputs<'a, T> {
    /// Those of the operation.
    pub own: linear::BackwardInputs<'a, T>,
    /// What the tokens began with.
    pub arrived: ArrivedInputs<'a>,
}

/// One rank's backward walks and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: Shape,
    pub(super) options: Options,
    pub(super) dealt: Dealt,
    /// With the way of the forward pass.
    pub(super) lanes: Vec<Lane>,
    steps: Vec<Step>,
    pub(super) rooms: Vec<Room>,
    pub(super) parts: Vec<Part>,
    pub(super) whole: Part,
    /// Adjoints of all heads' states, given to and taken from walks that have two ways: of both directions, each with its sums.
    pub(super) sides: [[u64; 2]; 4],
    pub(super) all: linear::BackwardPlan,
    /// The adjoints of one direction of two alone.
    pub(super) one_way: Vec<linear::BackwardPlan>,
    pub(super) totals: Totals,
    contents: Contents,
    pub(super) starts: u64,
    pub(super) walk_memory: (u64, u64),
}

impl BackwardPlan {
    /// As [`Plan::new`](super::Plan::new), for the same deal as its forward pass; the passing may be another, but not in blocks.
    ///
    /// # Errors
    /// Those of [`Plan::new`](super::Plan::new) and of [`linear::BackwardPlan::new`]; [`Error::NoKernel`] ← several blocks: gradients have no
    /// strides.
    pub fn new(shape: &Shape, options: &Options, deal: &Deal, rank: usize, device: &DeviceInfo) -> Result<Self> {
        let dealt = Dealt::new(OP, deal, shape.batch, shape.seq_len, rank)?;
        if deal.passing.blocks() > 1 {
            return Err(Error::NoKernel { op: OP, request: "gradients in blocks of heads".into() });
        }
        linear::BackwardPlan::new(shape, options, device)?;
        let lanes = lanes::lanes(OP, shape, options, deal)?;
        let two = lanes.len() == 2;
        let ways: Vec<Lane> = lanes.iter().map(|lane| Lane { reverse: !lane.reverse, ..lane.clone() }).collect();
        let steps = waves::steps(&dealt, Item::StateGradient, &ways, two);
        let sizes = lanes::sizes(shape, options);
        let (mut arena, mut rooms, mut parts) = (Arena::default(), Vec::new(), Vec::new());
        for (lane, travels) in lanes.iter().zip(&ways) {
            let way = Way { dealt: &dealt, reverse: travels.reverse };
            rooms.push(Room::new(&mut arena, sizes, travels, &way, shape.heads, device)?);
            parts.push(Part::new(OP, shape, options, &dealt, &lane.heads)?);
        }
        let whole = Part::new(OP, shape, options, &dealt, &(0..shape.heads))?;
        let all = linear::BackwardPlan::new(&whole.shape, options, device)?;
        let one_way: Vec<linear::BackwardPlan> = match options.mode {
            Mode::Bidirectional => [
                Options { mode: Mode::Causal, ..*options },
                // The reverse direction of two is read before a token's own decay and key.
                Options { mode: Mode::Reverse, read: Read::ExclusiveBonus, ..*options },
            ]
            .iter()
            .map(|options| linear::BackwardPlan::new(&whole.shape, options, device))
            .collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let rows = if two { dealt.sequences() * shape.heads } else { 0 };
        let sides = [(); 4].map(|()| sizes.parts.map(|width| arena.take(4 * (rows * width) as u64)));
        let bytes = one_way.iter().chain([&all]).map(linear::BackwardPlan::workspace_bytes).max().unwrap_or(0);
        let walk_memory = (arena.take(bytes), bytes);
        let totals = Totals::new(&mut arena, (&dealt, options), &lanes, &parts, &steps, device)?;
        let table = dealt.starts().unwrap_or_default();
        let starts = arena.take(4 * table.len() as u64);
        let contents = Contents { bytes: arena.bytes, tables: vec![(starts, table)], ones: totals.ones };
        let (shape, options) = (*shape, *options);
        Ok(Self {
            shape,
            options,
            dealt,
            lanes,
            steps,
            rooms,
            parts,
            whole,
            sides,
            all,
            one_way,
            totals,
            contents,
            starts,
            walk_memory,
        })
    }

    /// Bytes of a [`Workspace`]: as of the forward pass, with what backward walks need, and with two ways four more adjoints of all states.
    pub fn workspace_bytes(&self) -> u64 {
        self.contents.bytes
    }

    /// Its workspace.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn workspace(&self, stream: &Arc<CudaStream>) -> Result<Workspace> {
        Workspace::of(stream, &self.contents)
    }

    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> u64 {
        let sent = self.steps.iter().flat_map(|step| &step.send);
        sent.flat_map(|mail| self.rooms[mail.lane].segments(0, mail.slot)).map(|(_, bytes)| bytes as u64).sum()
    }

    /// Gradients of everything that the rank's tokens read. Every rank calls it, with plans of one deal, in the same order.
    ///
    /// # Shapes
    /// Those of [`linear::BackwardPlan::run`] for the rank's tokens and sequences, without gaps. `cu_seqlens` is left out. The adjoint of a
    /// final state is read where its walk ends on this rank; the gradient of an initial state is that of the sequence where its walk begins
    /// here, else what went on to the rank before.
    ///
    /// # Errors
    /// Those of [`Plan::run`](super::Plan::run); [`Error::Shape`] ← states that arrived are missing where a sequence goes on.
    ///
    /// # Numerics
    /// Those of [`linear::BackwardPlan::run`]; adjoints of states pass in f32. Gradients of decays of heads and of a bonus are those of this
    /// rank's tokens: their sum over ranks is that of the whole.
    ///
    /// # Determinism
    /// Bitwise on one deal.
    ///
    /// # Cost
    /// One backward pass of the rank's tokens; with [`Passing::AllGather`](crate::state::Passing::AllGather) two, except where a sequence
    /// begins or ends; with two ways one more for each whose adjoint leaves.
    pub fn run<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &BackwardInputs<'_, T>,
        outputs: BackwardOutputs<'_, T>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let (own, arrived) = (&inputs.own, &inputs.arrived);
        let forward = &own.forward;
        strided::dtype(OP, "inputs", self.options.dtype, T::DTYPE)?;
        strided::given(OP, "cu_seqlens", false, forward.cu_seqlens.is_some())?;
        let of = self.tensors();
        let reverse = &outputs.reverse;
        for (arg, tensor, len) in [
            ("q", &of.q, Some(forward.q.len())),
            ("k", &of.k, Some(forward.k.len())),
            ("v", &of.v, Some(forward.v.len())),
            ("g", &of.g, forward.g.map(|s| s.len())),
            ("bonus", &of.bonus, forward.bonus.map(|s| s.len())),
            ("flags", &of.flags, forward.flags.map(|s| s.len())),
            ("state", &of.state, forward.state.map(|s| s.len())),
            ("normalizer", &of.sums, forward.normalizer.map(|s| s.len())),
            ("reverse.q", &of.q, forward.reverse.q.map(|s| s.len())),
            ("reverse.k", &of.k, forward.reverse.k.map(|s| s.len())),
            ("reverse.g", &of.g, forward.reverse.g.map(|s| s.len())),
            ("reverse.state", &of.state, forward.reverse.state.map(|s| s.len())),
            ("o", &of.o, own.o.map(|s| s.len())),
            ("denominator", &of.denominator, own.denominator.map(|s| s.len())),
            ("d_o", &of.o, Some(own.d_o.len())),
            ("d_state", &of.state, own.d_state.map(|s| s.len())),
            ("d_reverse_state", &of.state, own.d_reverse_state.map(|s| s.len())),
            ("d_normalizer", &of.sums, own.d_normalizer.map(|s| s.len())),
            ("arrived state", &of.state, arrived.state.map(|s| s.len())),
            ("arrived reverse state", &of.state, arrived.reverse_state.map(|s| s.len())),
            ("arrived normalizer", &of.sums, arrived.normalizer.map(|s| s.len())),
            ("dq", &of.q, Some(outputs.dq.len())),
            ("dk", &of.k, Some(outputs.dk.len())),
            ("dv", &of.v, Some(outputs.dv.len())),
            ("dg", &of.g, outputs.dg.as_ref().map(|s| s.len())),
            ("d_bonus", &of.bonus, outputs.d_bonus.as_ref().map(|s| s.len())),
            ("d_state out", &of.state, outputs.d_state.as_ref().map(|s| s.len())),
            ("d_normalizer out", &of.sums, outputs.d_normalizer.as_ref().map(|s| s.len())),
            ("reverse.dq", &of.q, reverse.dq.as_ref().map(|s| s.len())),
            ("reverse.dk", &of.k, reverse.dk.as_ref().map(|s| s.len())),
            ("reverse.dg", &of.g, reverse.dg.as_ref().map(|s| s.len())),
            ("reverse.d_state", &of.state, reverse.d_state.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        let (q, _q) = memory::input(Some(forward.q), stream);
        let (k, _k) = memory::input(Some(forward.k), stream);
        let (v, _v) = memory::input(Some(forward.v), stream);
        let (g, _g) = memory::input(forward.g, stream);
        let (bonus, _bonus) = memory::input(forward.bonus, stream);
        let (flags, _flags) = memory::input(forward.flags, stream);
        let (state, _state) = memory::input(forward.state, stream);
        let (normalizer, _normalizer) = memory::input(forward.normalizer, stream);
        let (reverse_q, _reverse_q) = memory::input(forward.reverse.q, stream);
        let (reverse_k, _reverse_k) = memory::input(forward.reverse.k, stream);
        let (reverse_g, _reverse_g) = memory::input(forward.reverse.g, stream);
        let (reverse_state, _reverse_state) = memory::input(forward.reverse.state, stream);
        let ours = RawInputs { q, k, v, g, bonus, flags, ..RawInputs::default() };
        let forward = RawInputs { state, normalizer, reverse_q, reverse_k, reverse_g, reverse_state, ..ours };
        let (o, _o) = memory::input(own.o, stream);
        let (denominator, _denominator) = memory::input(own.denominator, stream);
        let (d_o, _d_o) = memory::input(Some(own.d_o), stream);
        let (d_state, _d_state) = memory::input(own.d_state, stream);
        let (d_reverse_state, _d_reverse_state) = memory::input(own.d_reverse_state, stream);
        let (d_normalizer, _d_normalizer) = memory::input(own.d_normalizer, stream);
        let raw = RawBackwardInputs { forward, o, denominator, d_o, d_state, d_reverse_state, d_normalizer };
        let (dq, _dq) = memory::output(Some(outputs.dq), stream);
        let (dk, _dk) = memory::output(Some(outputs.dk), stream);
        let (dv, _dv) = memory::output(Some(outputs.dv), stream);
        let (dg, _dg) = memory::output(outputs.dg, stream);
        let (d_bonus, _d_bonus) = memory::output(outputs.d_bonus, stream);
        let (d_state, _d_first) = memory::output(outputs.d_state, stream);
        let (d_normalizer, _d_first_sums) = memory::output(outputs.d_normalizer, stream);
        let (reverse_dq, _reverse_dq) = memory::output(outputs.reverse.dq, stream);
        let (reverse_dk, _reverse_dk) = memory::output(outputs.reverse.dk, stream);
        let (reverse_dg, _reverse_dg) = memory::output(outputs.reverse.dg, stream);
        let (reverse_d_state, _reverse_d_state) = memory::output(outputs.reverse.d_state, stream);
        let ours = RawBackwardOutputs { dq, dk, dv, dg, d_bonus, d_state, ..RawBackwardOutputs::default() };
        let out = RawBackwardOutputs { d_normalizer, reverse_dq, reverse_dk, reverse_dg, reverse_d_state, ..ours };
        let (state, _arrived_state) = memory::input(arrived.state, stream);
        let (reverse_state, _arrived_reverse) = memory::input(arrived.reverse_state, stream);
        let (normalizer, _arrived_normalizer) = memory::input(arrived.normalizer, stream);
        let began = RawArrived { state, reverse_state, normalizer };
        let (workspace, _workspace) = workspace.hold(OP, &self.contents, stream)?;
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &raw, &began, &out, workspace, transport) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`], [`Error::Alias`].
    ///
    /// # Safety
    /// That of [`Plan::run_raw`](super::Plan::run_raw).
    pub unsafe fn run_raw(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &RawBackwardInputs,
        arrived: &RawArrived,
        outputs: &RawBackwardOutputs,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        self.check(inputs, outputs, arrived, transport)?;
        let or = |arrived: CUdeviceptr, own: CUdeviceptr| if arrived == 0 { own } else { arrived };
        let forward = RawInputs {
            state: or(arrived.state, inputs.forward.state),
            reverse_state: or(arrived.reverse_state, inputs.forward.reverse_state),
            normalizer: or(arrived.normalizer, inputs.forward.normalizer),
            ..inputs.forward
        };
        let inputs = RawBackwardInputs { forward, ..*inputs };
        let run = Run { plan: self, stream, inputs: &inputs, outputs, workspace };
        // SAFETY: the caller's promise; tasks keep to the plan's tensors and its workspace.
        unsafe { program::execute(&self.steps, &run, stream, transport) }
    }

    fn tensors(&self) -> Tensors {
        let states = [0, 1].map(|part| self.rooms.first().map_or(0, |room| room.elements(part)));
        Tensors::new(&self.shape, &self.options, self.dealt.tokens(), states)
    }

    /// Whose transport it is, and that all tensors are there, before anything is sent. What a walk checks again passes then.
    fn check(
        &self,
        inputs: &RawBackwardInputs,
        outputs: &RawBackwardOutputs,
        arrived: &RawArrived,
        transport: &dyn Transport,
    ) -> Result<()> {
        program::check(OP, (self.dealt.rank, self.dealt.layout.ranks), transport)?;
        let (options, of, forward) = (&self.options, self.tensors(), &inputs.forward);
        let (decays, normalized) = (options.decay != linear::Decay::None, options.normalize.is_some());
        let two = options.mode == Mode::Bidirectional;
        for lane in self.lanes.iter().filter(|_| of.state.elements() > 0) {
            let goes_on = Way { dealt: &self.dealt, reverse: lane.reverse }.before().is_some();
            let (arg, there) = match two && lane.reverse {
                true => ("arrived reverse state", arrived.reverse_state != 0),
                false => ("arrived state", arrived.state != 0),
            };
            strided::given(OP, arg, goes_on || there, there)?;
            let there = arrived.normalizer != 0;
            strided::given(OP, "arrived normalizer", normalized && (goes_on || there), there)?;
        }
        let q_there = of.q.elements() > 0;
        for (arg, address, wanted) in [
            ("g", forward.g, decays && of.g.elements() > 0),
            ("dg", outputs.dg, decays && of.g.elements() > 0),
            ("o", inputs.o, normalized && q_there),
            ("denominator", inputs.denominator, normalized && q_there),
            ("d_bonus", outputs.d_bonus, forward.bonus != 0),
            ("reverse.dq", outputs.reverse_dq, forward.reverse_q != 0 && q_there),
            ("reverse.dk", outputs.reverse_dk, forward.reverse_k != 0 && q_there),
            ("reverse.dg", outputs.reverse_dg, forward.reverse_g != 0 && q_there),
        ] {
            if wanted {
                strided::given(OP, arg, true, address != 0)?;
            }
        }
        for (arg, address, meant) in [
            ("d_reverse_state", inputs.d_reverse_state, two),
            ("d_normalizer", inputs.d_normalizer, normalized),
            ("reverse.d_state", outputs.reverse_d_state, two),
            ("d_normalizer out", outputs.d_normalizer, normalized),
        ] {
            strided::given(OP, arg, address != 0 && meant, address != 0)?;
        }
        let written = linear::RawOutputs {
            o: inputs.d_o,
            state: outputs.d_state,
            reverse_state: outputs.reverse_d_state,
            normalizer: outputs.d_normalizer,
            denominator: 0,
        };
        let names = ["d_o", "d_state out", "reverse.d_state", "d_normalizer out"];
        of.check(OP, names, options, forward, &written, &RawArrived::default())?;
        let gradients = [("dq", outputs.dq, &of.q), ("dk", outputs.dk, &of.k), ("dv", outputs.dv, &of.v)];
        let read = [
            ("q", forward.q, &of.q),
            ("k", forward.k, &of.k),
            ("v", forward.v, &of.v),
            ("d_o", inputs.d_o, &of.o),
            ("g", forward.g, &of.g),
        ];
        gradients.iter().try_for_each(|placed| strided::address(OP, *placed, false))?;
        strided::all_disjoint(OP, &gradients, &read)
    }
}
