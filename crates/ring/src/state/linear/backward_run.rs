//! What a rank's backward tasks launch.

use super::{backward::BackwardPlan, lanes::Part};
use crate::{
    Result,
    state::{
        dealt::Way,
        program::Machine,
        waves::{Lane, Slot, Task},
    },
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::memory;
use lookback_linear::{Mode, RawBackwardInputs, RawBackwardOutputs, RawInputs, RawWorkspace};
use std::sync::Arc;

/// A plan with addresses.
pub(super) struct Run<'a> {
    pub plan: &'a BackwardPlan,
    pub stream: &'a Arc<CudaStream>,
    pub inputs: &'a RawBackwardInputs,
    pub outputs: &'a RawBackwardOutputs,
    pub workspace: CUdeviceptr,
}

impl Run<'_> {
    /// The parts of states and sums, 0 where there are none.
    fn at(&self, parts: &[u64; 2]) -> [CUdeviceptr; 2] {
        let normalized = self.plan.options.normalize.is_some();
        [self.workspace + parts[0], if normalized { self.workspace + parts[1] } else { 0 }]
    }

    /// Inputs of all heads, without states.
    fn forward(&self) -> RawInputs {
        let packed = self.plan.whole.shape.packed.is_some();
        let starts = if packed { self.workspace + self.plan.starts } else { 0 };
        self.plan.whole.inputs(&self.inputs.forward, starts)
    }

    fn scratch(&self) -> RawWorkspace {
        let (at, bytes) = self.plan.walk_memory;
        RawWorkspace { address: self.workspace + at, bytes }
    }

    fn is_bidirectional(&self) -> bool {
        self.plan.options.mode == Mode::Bidirectional
    }

    /// What a lane's sequences have in the caller's tensors.
    fn side(&self, lane: &Lane, first: [CUdeviceptr; 2], reverse: CUdeviceptr) -> [CUdeviceptr; 2] {
        if self.is_bidirectional() && lane.reverse { [reverse, 0] } else { first }
    }

    /// The only lane's results.
    unsafe fn walk(&self, lane: usize) -> Result<()> {
        let (plan, room) = (self.plan, &self.plan.rooms[lane]);
        let RawInputs { state, normalizer, .. } = self.inputs.forward;
        let ([d_state, d_normalizer], [first, sums]) = (self.at(&room.arriving), self.at(&room.leaving));
        let forward = RawInputs { state, normalizer, ..self.forward() };
        let inputs = RawBackwardInputs { forward, d_state, d_normalizer, ..*self.inputs };
        let outputs = RawBackwardOutputs { d_state: first, d_normalizer: sums, ..*self.outputs };
        // SAFETY: the caller's promise; states are in the workspace.
        unsafe { plan.all.run_raw(self.stream, &inputs, &outputs, self.scratch()) }
    }

    /// The adjoints of one of two lanes alone; what else it writes is written again.
    unsafe fn state(&self, lane: usize) -> Result<()> {
        let (plan, room) = (self.plan, &self.plan.rooms[lane]);
        let RawBackwardOutputs { dq, dk, dv, dg, d_bonus, .. } = *self.outputs;
        let outputs = RawBackwardOutputs { dq, dk, dv, dg, ..RawBackwardOutputs::default() };
        let (one, inputs, outputs) = match (self.is_bidirectional(), plan.lanes[lane].reverse) {
            (true, true) => (&plan.one_way[1], Part::reversed(&self.forward()), outputs),
            (true, false) => {
                let own = RawInputs { reverse_q: 0, reverse_k: 0, reverse_g: 0, ..self.forward() };
                (&plan.one_way[0], own, RawBackwardOutputs { d_bonus, ..outputs })
            }
            (false, _) => (&plan.all, self.forward(), RawBackwardOutputs { d_bonus, ..outputs }),
        };
        let ([d_state, _], [first, _]) = match self.is_bidirectional() {
            true => (self.at(&room.arriving), self.at(&room.leaving)),
            false => (self.at(&plan.sides[0]), self.at(&plan.sides[1])),
        };
        let raw = RawBackwardInputs { forward: inputs, d_o: self.inputs.d_o, d_state, ..RawBackwardInputs::default() };
        let outputs = RawBackwardOutputs { d_state: first, ..outputs };
        if self.is_bidirectional() {
            // SAFETY: the caller's promise; states are in the workspace.
            return unsafe { one.run_raw(self.stream, &raw, &outputs, self.scratch()) };
        }
        let words = room.elements(0);
        // SAFETY: likewise; the heads of the other lane have adjoints of zero.
        unsafe {
            memory::fill(self.stream, d_state, 0, words)?;
            room.give(self.stream, self.workspace, &room.arriving, [d_state, 0])?;
            one.run_raw(self.stream, &raw, &outputs, self.scratch())?;
            room.take(self.stream, self.workspace, [first, 0])
        }
    }

    /// Results of two lanes.
    unsafe fn both(&self) -> Result<()> {
        let plan = self.plan;
        let RawInputs { state, reverse_state, .. } = self.inputs.forward;
        let [last, first, reverse_last, reverse_first] = plan.sides.map(|parts| self.workspace + parts[0]);
        for (lane, room) in plan.lanes.iter().zip(&plan.rooms) {
            let to = self.side(lane, [last, 0], reverse_last);
            // SAFETY: states are in the workspace.
            unsafe { room.give(self.stream, self.workspace, &room.arriving, to) }?;
        }
        let two = |address| if self.is_bidirectional() { address } else { 0 };
        let forward = RawInputs { state, reverse_state: two(reverse_state), ..self.forward() };
        let inputs = RawBackwardInputs { forward, d_state: last, d_reverse_state: two(reverse_last), ..*self.inputs };
        let outputs = RawBackwardOutputs { d_state: first, reverse_d_state: two(reverse_first), ..*self.outputs };
        // SAFETY: the caller's promise, likewise.
        unsafe { plan.all.run_raw(self.stream, &inputs, &outputs, self.scratch()) }
    }
}

impl Machine for Run<'_> {
    fn segments(&self, lane: usize, slot: Slot) -> Vec<(CUdeviceptr, usize)> {
        self.plan.rooms[lane].segments(self.workspace, slot)
    }

    unsafe fn begin(&self) -> Result<()> {
        let plan = self.plan;
        let RawBackwardInputs { d_state, d_reverse_state, d_normalizer, .. } = *self.inputs;
        plan.rooms.iter().zip(&plan.lanes).try_for_each(|(room, lane)| {
            let arrives = Way { dealt: &plan.dealt, reverse: !lane.reverse }.before().is_some();
            let given = self.side(lane, [d_state, d_normalizer], d_reverse_state);
            // SAFETY: the caller's promise.
            unsafe { room.begin(self.stream, self.workspace, given, arrives) }
        })
    }

    unsafe fn perform(&self, task: Task) -> Result<()> {
        let plan = self.plan;
        // SAFETY: the caller's promise, in each of them.
        unsafe {
            match task {
                Task::Walk(lane) => self.walk(lane),
                Task::State(lane) => self.state(lane),
                Task::Both(_) => self.both(),
                Task::Total(lane) => {
                    let packed = plan.whole.shape.packed.is_some();
                    let starts = if packed { self.workspace + plan.starts } else { 0 };
                    let part = plan.parts[lane].inputs(&self.inputs.forward, starts);
                    let is_own = self.is_bidirectional() && plan.lanes[lane].reverse;
                    let part = if is_own { Part::reversed(&part) } else { part };
                    let to = self.workspace + plan.rooms[lane].totals;
                    plan.totals.run(self.stream, lane, &part, self.workspace, to)
                }
                Task::Fold(lane) => plan.rooms[lane].fold(self.stream, self.workspace),
            }
        }
    }

    unsafe fn finish(&self) -> Result<()> {
        let (plan, out) = (self.plan, self.outputs);
        if plan.lanes.len() == 1 {
            let room = &plan.rooms[0];
            // SAFETY: the caller's promise.
            return unsafe { room.give(self.stream, self.workspace, &room.leaving, [out.d_state, out.d_normalizer]) };
        }
        for (lane, room) in plan.lanes.iter().zip(&plan.rooms) {
            let [_, first, _, reverse_first] = plan.sides.map(|parts| self.workspace + parts[0]);
            let from = self.side(lane, [first, 0], reverse_first);
            let to = self.side(lane, [out.d_state, 0], out.reverse_d_state);
            // SAFETY: likewise; nothing is on its way any more.
            unsafe {
                room.take(self.stream, self.workspace, from)?;
                room.give(self.stream, self.workspace, &room.leaving, to)?;
            }
        }
        Ok(())
    }
}
