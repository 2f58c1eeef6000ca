//! The forward pass.

use super::{
    lanes::{self, Part},
    tensors::{Outputs, RawArrived, Tensors},
    totals::Totals,
};
use crate::{
    DeviceInfo, Result,
    schedule::Item,
    state::{
        dealt::{Deal, Dealt, Way},
        program::{self, Contents, Machine, Workspace},
        room::{Arena, Parts, Room},
        waves::{self, Lane, Slot, Step, Task},
    },
    transport::Transport,
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::{Element, memory, strided};
use lookback_linear::{self as linear, Inputs, Mode, Options, RawInputs, RawOutputs, RawWorkspace, Shape};
use std::sync::Arc;

const OP: &str = "state linear_attention";

/// One rank's walks and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    dealt: Dealt,
    lanes: Vec<Lane>,
    steps: Vec<Step>,
    rooms: Vec<Room>,
    /// The final states that results come with: those of the lane, or of both directions together.
    finals: Vec<Parts>,
    parts: Vec<Part>,
    walks: Vec<linear::Plan>,
    /// Both directions of a block, by block; empty unless there are two.
    both: Vec<linear::Plan>,
    totals: Totals,
    contents: Contents,
    starts: u64,
    walk_memory: (u64, u64),
}

impl Plan {
    /// Checks everything, deals the sequence and finds the kernels. `shape` is that of all ranks together, dense and without packed
    /// sequences: the deal has the documents.
    ///
    /// # Errors
    /// [`Error::Range`](crate::Error::Range) ← ranks, a rank or blocks that there are not; [`Error::Shape`](crate::Error::Shape) ← documents that do not end with the sequence, or
    /// heads of a block that do not share queries or keys evenly; [`Error::Layout`](crate::Error::Layout) ← strides; [`Error::NoKernel`](crate::Error::NoKernel) ← shifted reads,
    /// prefixes, a normaliser of some of the heads (in blocks, or with [`Mode::Split`]); those of [`linear::Plan::new`].
    pub fn new(shape: &Shape, options: &Options, deal: &Deal, rank: usize, device: &DeviceInfo) -> Result<Self> {
        let dealt = Dealt::new(OP, deal, shape.batch, shape.seq_len, rank)?;
        // The whole must make sense before it is dealt.
        linear::Plan::new(shape, options, device)?;
        let lanes = lanes::lanes(OP, shape, options, deal)?;
        let two = options.mode == Mode::Bidirectional;
        let steps = waves::steps(&dealt, Item::State, &lanes, two);
        let sizes = lanes::sizes(shape, options);
        let mut arena = Arena::default();
        let (mut rooms, mut parts, mut walks, mut finals) = (vec![], vec![], vec![], vec![]);
        for lane in &lanes {
            let way = Way { dealt: &dealt, reverse: lane.reverse };
            let room = Room::new(&mut arena, sizes, lane, &way, shape.heads, device)?;
            let rows = dealt.sequences() * lane.heads.len();
            finals.push(match two {
                true => sizes.parts.map(|width| arena.take((4 * rows * width) as u64)),
                false => room.leaving,
            });
            let part = Part::new(OP, shape, options, &dealt, &lane.heads)?;
            walks.push(lanes::plan(&part, &part.one_way(options, lane.reverse), device)?);
            rooms.push(room);
            parts.push(part);
        }
        let forward = |lane: &&(usize, &Lane)| two && !lane.1.reverse;
        let indexed: Vec<(usize, &Lane)> = lanes.iter().enumerate().collect();
        let both = indexed.iter().filter(forward).map(|(index, _)| lanes::plan(&parts[*index], options, device));
        let both = both.collect::<Result<Vec<_>>>()?;
        let walk_bytes = walks.iter().chain(&both).map(linear::Plan::workspace_bytes).max().unwrap_or(0);
        let walk_memory = (arena.take(walk_bytes), walk_bytes);
        let totals = Totals::new(&mut arena, (&dealt, options), &lanes, &parts, &steps, device)?;
        let table = dealt.starts().unwrap_or_default();
        let starts = arena.take(4 * table.len() as u64);
        let contents = Contents { bytes: arena.bytes, tables: vec![(starts, table)], ones: totals.ones };
        Ok(Self {
            shape: *shape,
            options: *options,
            dealt,
            lanes,
            steps,
            rooms,
            finals,
            parts,
            walks,
            both,
            totals,
            contents,
            starts,
            walk_memory,
        })
    }

    /// Bytes of a [`Workspace`]: a lane's states as they arrive and leave; with
    /// [`Passing::AllGather`](crate::state::Passing::AllGather) those of every earlier rank, and on ranks in the middle of a sequence with
    /// decays as much as the decays of their tokens; what the walks need.
    pub fn workspace_bytes(&self) -> u64 {
        self.contents.bytes
    }

    /// Its workspace.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Driver`](crate::Error::Driver).
    pub fn workspace(&self, stream: &Arc<CudaStream>) -> Result<Workspace> {
        Workspace::of(stream, &self.contents)
    }

    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> u64 {
        let sent = self.steps.iter().flat_map(|step| &step.send);
        sent.flat_map(|mail| self.rooms[mail.lane].segments(0, mail.slot)).map(|(_, bytes)| bytes as u64).sum()
    }

    /// Tokens of this rank.
    pub fn tokens(&self) -> usize {
        self.dealt.tokens()
    }

    /// Documents that have tokens on this rank, or go on across it: the rows of its states. Empty without documents.
    pub fn documents(&self) -> Vec<usize> {
        self.dealt.local().unwrap_or_default()
    }

    /// Rows of the rank's states: one for each of its documents and at least one; the batch without documents.
    pub fn sequences(&self) -> usize {
        self.dealt.sequences()
    }

    fn tensors(&self) -> Tensors {
        let states = [0, 1].map(|part| self.rooms.first().map_or(0, |room| room.elements(part)));
        Tensors::new(&self.shape, &self.options, self.tokens(), states)
    }

    /// Linear attention of this rank's tokens to all that they see, on any rank. Every rank calls it, with plans of one deal, in the same
    /// order.
    ///
    /// # Shapes
    /// Those of [`linear::Plan::run`] with the rank's [`tokens`](Self::tokens) and [`sequences`](Self::sequences), in the plan's type and
    /// without gaps. `cu_seqlens` is the plan's own and left out. An initial state of a document that began on another rank is not read.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype), [`Error::Shape`](crate::Error::Shape) ← a slice is too short or has no meaning here, or the transport is another rank's; nothing is
    /// launched or sent on these. [`Error::Peer`](crate::Error::Peer) ← another rank has failed: results are undefined, and all other ranks are told.
    ///
    /// # Numerics
    /// Those of [`linear::Plan::run`]; states pass in f32. With [`Passing::AllGather`](crate::state::Passing::AllGather) they are the
    /// sum of every earlier rank's own, times the product of the decays between, in f32.
    ///
    /// # Determinism
    /// Bitwise on one deal; sums are taken in the order of the ranks.
    ///
    /// # Cost
    /// [`bytes_sent`](Self::bytes_sent), and one walk: two with [`Passing::AllGather`](crate::state::Passing::AllGather), except where a
    /// sequence begins or ends. [`Mode::Bidirectional`] walks once more in each direction whose state leaves.
    pub fn run<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        strided::dtype(OP, "inputs", self.options.dtype, T::DTYPE)?;
        strided::given(OP, "cu_seqlens", false, inputs.cu_seqlens.is_some())?;
        strided::given(OP, "prefix_len", false, inputs.prefix_len.is_some())?;
        let tensors = self.tensors();
        let Outputs { own, arrived } = outputs;
        for (arg, tensor, len) in [
            ("q", &tensors.q, Some(inputs.q.len())),
            ("k", &tensors.k, Some(inputs.k.len())),
            ("v", &tensors.v, Some(inputs.v.len())),
            ("g", &tensors.g, inputs.g.map(|s| s.len())),
            ("bonus", &tensors.bonus, inputs.bonus.map(|s| s.len())),
            ("flags", &tensors.flags, inputs.flags.map(|s| s.len())),
            ("state", &tensors.state, inputs.state.map(|s| s.len())),
            ("normalizer", &tensors.sums, inputs.normalizer.map(|s| s.len())),
            ("reverse.q", &tensors.q, inputs.reverse.q.map(|s| s.len())),
            ("reverse.k", &tensors.k, inputs.reverse.k.map(|s| s.len())),
            ("reverse.g", &tensors.g, inputs.reverse.g.map(|s| s.len())),
            ("reverse.state", &tensors.state, inputs.reverse.state.map(|s| s.len())),
            ("o", &tensors.o, Some(own.o.len())),
            ("final state", &tensors.state, own.state.as_ref().map(|s| s.len())),
            ("final reverse state", &tensors.state, own.reverse_state.as_ref().map(|s| s.len())),
            ("final normalizer", &tensors.sums, own.normalizer.as_ref().map(|s| s.len())),
            ("denominator", &tensors.denominator, own.denominator.as_ref().map(|s| s.len())),
            ("arrived state", &tensors.state, arrived.state.as_ref().map(|s| s.len())),
            ("arrived reverse state", &tensors.state, arrived.reverse_state.as_ref().map(|s| s.len())),
            ("arrived normalizer", &tensors.sums, arrived.normalizer.as_ref().map(|s| s.len())),
        ] {
            len.map_or(Ok(()), |len| strided::length(OP, arg, tensor, len))?;
        }
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (g, _g) = memory::input(inputs.g, stream);
        let (bonus, _bonus) = memory::input(inputs.bonus, stream);
        let (flags, _flags) = memory::input(inputs.flags, stream);
        let (state, _state) = memory::input(inputs.state, stream);
        let (normalizer, _normalizer) = memory::input(inputs.normalizer, stream);
        let (reverse_q, _reverse_q) = memory::input(inputs.reverse.q, stream);
        let (reverse_k, _reverse_k) = memory::input(inputs.reverse.k, stream);
        let (reverse_g, _reverse_g) = memory::input(inputs.reverse.g, stream);
        let (reverse_state, _reverse_state) = memory::input(inputs.reverse.state, stream);
        let own_reverse = RawInputs { reverse_q, reverse_k, reverse_g, reverse_state, ..RawInputs::default() };
        let raw = RawInputs { q, k, v, g, bonus, flags, state, normalizer, ..own_reverse };
        let (o, _o) = memory::output(Some(own.o), stream);
        let (state, _final_state) = memory::output(own.state, stream);
        let (reverse_state, _final_reverse) = memory::output(own.reverse_state, stream);
        let (normalizer, _final_normalizer) = memory::output(own.normalizer, stream);
        let (denominator, _denominator) = memory::output(own.denominator, stream);
        let out = RawOutputs { o, state, reverse_state, normalizer, denominator };
        let (state, _arrived_state) = memory::output(arrived.state, stream);
        let (reverse_state, _arrived_reverse) = memory::output(arrived.reverse_state, stream);
        let (normalizer, _arrived_normalizer) = memory::output(arrived.normalizer, stream);
        let arrived = RawArrived { state, reverse_state, normalizer };
        let (workspace, _workspace) = workspace.hold(OP, &self.contents, stream)?;
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &raw, &out, &arrived, workspace, transport) }
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
        arrived: &RawArrived,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        program::check(OP, (self.dealt.rank, self.dealt.layout.ranks), transport)?;
        let names = ["o", "final state", "final reverse state", "final normalizer"];
        self.tensors().check(OP, names, &self.options, inputs, outputs, arrived)?;
        let run = Run { plan: self, stream, inputs, outputs, arrived, workspace };
        // SAFETY: the caller's promise; tasks keep to the plan's tensors and its workspace.
        unsafe { program::execute(&self.steps, &run, stream, transport) }
    }
}

/// A plan with addresses.
struct Run<'a> {
    plan: &'a Plan,
    stream: &'a Arc<CudaStream>,
    inputs: &'a RawInputs,
    outputs: &'a RawOutputs,
    arrived: &'a RawArrived,
    workspace: CUdeviceptr,
}

impl Run<'_> {
    fn part(&self, lane: usize) -> RawInputs {
        let packed = self.plan.parts[lane].shape.packed.is_some();
        let starts = if packed { self.workspace + self.plan.starts } else { 0 };
        self.plan.parts[lane].inputs(self.inputs, starts)
    }

    /// The parts of a lane's states and sums, 0 where there are none.
    fn at(&self, parts: &Parts) -> [CUdeviceptr; 2] {
        let normalized = self.plan.options.normalize.is_some();
        [self.workspace + parts[0], if normalized { self.workspace + parts[1] } else { 0 }]
    }

    /// The caller's initial states for a lane.
    fn given(&self, lane: &Lane) -> [CUdeviceptr; 2] {
        let two = self.plan.options.mode == Mode::Bidirectional;
        [if two && lane.reverse { self.inputs.reverse_state } else { self.inputs.state }, self.inputs.normalizer]
    }

    fn scratch(&self) -> RawWorkspace {
        let (at, bytes) = self.plan.walk_memory;
        RawWorkspace { address: self.workspace + at, bytes }
    }
}

impl Machine for Run<'_> {
    fn segments(&self, lane: usize, slot: Slot) -> Vec<(CUdeviceptr, usize)> {
        self.plan.rooms[lane].segments(self.workspace, slot)
    }

    unsafe fn begin(&self) -> Result<()> {
        let plan = self.plan;
        plan.rooms.iter().zip(&plan.lanes).try_for_each(|(room, lane)| {
            let arrives = Way { dealt: &plan.dealt, reverse: lane.reverse }.before().is_some();
            // SAFETY: the caller's promise.
            unsafe { room.begin(self.stream, self.workspace, self.given(lane), arrives) }
        })
    }

    unsafe fn perform(&self, task: Task) -> Result<()> {
        let plan = self.plan;
        match task {
            Task::Walk(lane) | Task::State(lane) => {
                let (room, part) = (&plan.rooms[lane], self.part(lane));
                let part = match (plan.both.is_empty(), plan.lanes[lane].reverse) {
                    (true, _) => part,
                    (false, true) => Part::reversed(&part),
                    (false, false) => RawInputs { bonus: 0, reverse_q: 0, reverse_k: 0, reverse_g: 0, ..part },
                };
                let ([state, normalizer], [last, sums]) = (self.at(&room.arriving), self.at(&room.leaving));
                let inputs = RawInputs { state, normalizer, ..part };
                let o = plan.parts[lane].output(self.outputs.o);
                let denominator = self.outputs.denominator;
                let outputs = RawOutputs { o, state: last, normalizer: sums, denominator, ..RawOutputs::default() };
                // SAFETY: the caller's promise; a lane's part lies within the tensors, its states within the workspace.
                unsafe { plan.walks[lane].run_raw(self.stream, &inputs, &outputs, self.scratch()) }
            }
            Task::Both(block) => {
                let of = |reverse: bool| plan.lanes.iter().position(|l| l.block == block && l.reverse == reverse);
                let (Some(forward), Some(reverse)) = (of(false), of(true)) else { return Ok(()) };
                let [state, _] = self.at(&plan.rooms[forward].arriving);
                let [reverse_state, _] = self.at(&plan.rooms[reverse].arriving);
                let inputs = RawInputs { state, reverse_state, ..self.part(forward) };
                let o = plan.parts[forward].output(self.outputs.o);
                let [last, _] = self.at(&plan.finals[forward]);
                let [reverse_last, _] = self.at(&plan.finals[reverse]);
                let outputs = RawOutputs { o, state: last, reverse_state: reverse_last, ..RawOutputs::default() };
                // SAFETY: likewise.
                unsafe { plan.both[block].run_raw(self.stream, &inputs, &outputs, self.scratch()) }
            }
            Task::Total(lane) => {
                let part = self.part(lane);
                let is_own = !plan.both.is_empty() && plan.lanes[lane].reverse;
                let part = if is_own { Part::reversed(&part) } else { part };
                let to = self.workspace + plan.rooms[lane].totals;
                // SAFETY: likewise; the plan made the workspace.
                unsafe { plan.totals.run(self.stream, lane, &part, self.workspace, to) }
            }
            // SAFETY: likewise.
            Task::Fold(lane) => unsafe { plan.rooms[lane].fold(self.stream, self.workspace) },
        }
    }

    unsafe fn finish(&self) -> Result<()> {
        let plan = self.plan;
        for ((lane, room), finals) in plan.lanes.iter().zip(&plan.rooms).zip(&plan.finals) {
            let apart = plan.options.mode == Mode::Bidirectional && lane.reverse;
            let (last, arrived) = match apart {
                true => (self.outputs.reverse_state, self.arrived.reverse_state),
                false => (self.outputs.state, self.arrived.state),
            };
            // SAFETY: the caller's promise.
            unsafe {
                room.give(self.stream, self.workspace, finals, [last, self.outputs.normalizer])?;
                room.give(self.stream, self.workspace, &room.arriving, [arrived, self.arrived.normalizer])?;
            }
        }
        Ok(())
    }
}
