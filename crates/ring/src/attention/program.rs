//! One rank's launches and transfers, and how they run.

use super::{
    compile::Compiler,
    op::{Mail, Op},
    view::{Addresses, Base, View},
};
use crate::{
    Error, Layout, Result,
    transport::{Label, Message, Transport},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop, sys::CUdeviceptr};
use lookback_attention::{RawInputs, RawOutputs, backward::RawBackward, merge};
use lookback_device::{driver, memory};
use std::sync::Arc;

/// Which part of a program runs. Without the other part results are nothing; what it is good for is to time one beside the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// What is computed, from what last arrived.
    Compute,
    /// What is sent and received.
    Transfers,
}

/// Everything that one rank does, in order, before it has addresses.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub layout: Layout,
    pub rank: usize,
    ops: Vec<Op>,
    /// Where buffers of the workspace begin.
    starts: Vec<u64>,
    pub bytes: u64,
    tables: Vec<i32>,
    /// The buffer that they go to.
    tables_at: Base,
}

impl Program {
    /// What the compiler has made; `kept` are needed from the first step to the last.
    pub fn new(compiler: Compiler<'_>, kept: impl Iterator<Item = View>) -> Self {
        let Compiler { job, rank, mut arena, ops, tables, step: last, .. } = compiler;
        let (tables_at, _) = arena.allocate(&[tables.len() * 4], 0);
        for base in kept.map(|view| view.base).chain([tables_at]) {
            arena.touch(base, 0);
            arena.touch(base, last);
        }
        let (starts, bytes) = arena.place();
        Self { layout: job.layout, rank, ops, starts, bytes, tables, tables_at }
    }

    /// Bytes that the rank sends.
    pub fn bytes_sent(&self) -> u64 {
        let sent = |op: &Op| match op {
            Op::Begin { send, .. } => send.iter().flat_map(|mail| &mail.segments).map(|s| s.bytes as u64).sum(),
            _ => 0,
        };
        self.ops.iter().map(sent).sum()
    }

    /// Does everything, and tells all other ranks when it cannot.
    ///
    /// # Errors
    /// [`Error::Shape`] ← the transport is another rank's; those of the operations.
    ///
    /// # Safety
    /// * `tensors` are the addresses of the caller's tensors by their numbers, readable and writable as the operation says, and
    ///   `workspace` is that of a [`Workspace`] of this program, until what is queued on the stream has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads what is written.
    pub unsafe fn execute(
        &self,
        (op, part): (&'static str, Part),
        stream: &Arc<CudaStream>,
        tensors: &[CUdeviceptr],
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let found = [transport.rank() as u64, transport.ranks() as u64];
        if found != [self.rank as u64, self.layout.ranks as u64] {
            let want = format!("rank {} of {}", self.rank, self.layout.ranks);
            return Err(Error::Shape { op, arg: "transport", want, got: found.to_vec() });
        }
        let at = Addresses { tensors, workspace, starts: &self.starts };
        let operation = transport.next_operation();
        let is_wanted = |op: &&Op| match part {
            Part::All => true,
            Part::Compute => !matches!(op, Op::Begin { .. } | Op::End { .. }),
            Part::Transfers => matches!(op, Op::Begin { .. } | Op::End { .. }),
        };
        for op in self.ops.iter().filter(is_wanted) {
            // SAFETY: the caller's promise; views lie within the tensors and the workspace.
            if let Err(error) = unsafe { self.perform(op, stream, &at, operation, transport) } {
                transport.abort(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`execute`](Self::execute).
    unsafe fn perform(
        &self,
        op: &Op,
        stream: &Arc<CudaStream>,
        at: &Addresses<'_>,
        operation: u32,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let view = |view: &View| at.view(view);
        match op {
            Op::Fill { view: part, word } => {
                let words = part.bytes() / 4;
                if words == 0 {
                    return Ok(());
                }
                // SAFETY: the view lies within its tensor, without gaps.
                unsafe { memory::fill(stream, view(part), *word, words) }
            }
            Op::Copy { plan, from, to } => {
                // SAFETY: both views lie within their tensors.
                unsafe { plan.run_raw(stream, view(from), view(to)) }
            }
            Op::Begin { step, send, receive } => {
                let messages = |mail: &[Mail]| -> Vec<Message> {
                    let label = |mail: &Mail| Label { operation, step: *step, parcel: mail.parcel.clone() };
                    let segments = |mail: &Mail| mail.segments.iter().map(|s| (at.of(s.base, s.at), s.bytes)).collect();
                    let message = |mail: &Mail| Message {
                        peer: mail.peer,
                        label: label(mail),
                        segments: segments(mail),
                        steps: mail.steps,
                    };
                    mail.iter().map(message).collect()
                };
                // SAFETY: segments are parts of the tensors and of buffers that nothing else uses until the message is due.
                unsafe { transport.begin(*step, stream, &messages(send), &messages(receive)) }
            }
            // SAFETY: likewise.
            Op::End { step } => unsafe { transport.end(*step, stream) },
            Op::Attend { plan, inputs, outputs, intervals } => {
                let [q, k, v] = inputs.each_ref().map(view);
                let intervals = intervals.map_or(0, |start| at.of(self.tables_at, start));
                let [o, lse] = outputs.each_ref().map(view);
                let inputs = RawInputs { q, k, v, intervals, ..RawInputs::default() };
                // SAFETY: all views lie within their tensors.
                unsafe { plan.run_raw(stream, &inputs, &RawOutputs { o, lse }) }
            }
            Op::Differentiate { plan, inputs, d_o, rows, gradients, intervals } => {
                let [q, k, v] = inputs.each_ref().map(view);
                let intervals = intervals.map_or(0, |start| at.of(self.tables_at, start));
                let [dq, dk, dv] = gradients.each_ref().map(view);
                let inputs = RawInputs { q, k, v, intervals, ..RawInputs::default() };
                let (d_o, prepared) = (view(d_o), view(rows));
                let raw = RawBackward { inputs, d_o, prepared, dq, dk, dv, ..RawBackward::default() };
                // SAFETY: likewise.
                unsafe { plan.run_raw(stream, &raw) }
            }
            Op::Prepare { plan, inputs, results, d_lse, rows } => {
                let [q, k, v] = inputs.each_ref().map(view);
                let [d_o, o, lse] = results.each_ref().map(view);
                let d_lse = view(d_lse);
                let inputs = RawInputs { q, k, v, ..RawInputs::default() };
                let (workspace, workspace_bytes) = (view(rows), plan.workspace_bytes());
                let raw =
                    RawBackward { inputs, d_o, o, lse, d_lse, workspace, workspace_bytes, ..RawBackward::default() };
                // SAFETY: likewise; without gradients only the rows' terms are written, to the workspace.
                unsafe { plan.run_raw(stream, &raw) }
            }
            Op::Merge { plan, state, running } => {
                let ([o, lse], [out, lse_out]) = (state.each_ref().map(view), running.each_ref().map(view));
                let raw = merge::Raw { o, lse, out, lse_out, ..merge::Raw::default() };
                // SAFETY: likewise.
                unsafe { plan.run_raw(stream, &raw) }
            }
        }
    }
}

/// Device memory for one plan, with the plan's tables in it. One run at a time.
#[derive(Debug)]
pub struct Workspace {
    memory: CudaSlice<u8>,
}

impl Workspace {
    pub(super) fn of(stream: &Arc<CudaStream>, program: &Program) -> Result<Self> {
        let mut memory = memory::allocate::<u8>(stream, program.bytes, "ring workspace")?;
        let Base::Buffer(buffer) = program.tables_at else { return Ok(Self { memory }) };
        let start = program.starts[buffer] as usize;
        let bytes: Vec<u8> = program.tables.iter().flat_map(|word| word.to_le_bytes()).collect();
        if !bytes.is_empty() {
            let mut part = memory.slice_mut(start..start + bytes.len());
            stream.memcpy_htod(&bytes, &mut part).map_err(|e| driver(e, "ring tables"))?;
        }
        Ok(Self { memory })
    }

    /// Its address, if it is as long as the program needs, and the guard that must outlive the run.
    pub(super) fn hold<'a>(
        &'a mut self,
        op: &'static str,
        program: &Program,
        stream: &'a CudaStream,
    ) -> Result<(CUdeviceptr, SyncOnDrop<'a>)> {
        let (need, got) = (program.bytes, self.memory.len() as u64);
        if got < need {
            return Err(Error::Workspace { op, need, got });
        }
        Ok(self.memory.device_ptr_mut(stream))
    }
}
