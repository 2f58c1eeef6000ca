//! Running a plan.

use super::{
    OP, Plan,
    op::{Mail, Op},
    view::{Addresses, Base, View},
};
use crate::{
    Error, Result,
    transport::{Label, Message, Transport},
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_attention::{RawInputs, RawOutputs, merge};
use lookback_device::{
    DType, Element, memory,
    strided::{self, Placed, Strided},
};
use std::sync::Arc;

/// This rank's tensors, without gaps.
pub struct Inputs<'a, T> {
    /// `[B,S,H,D]`, where `S` are the rank's tokens in the order of their positions.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,S,Hk,D]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,S,Hk,Dv]`.
    pub v: &'a dyn DevicePtr<T>,
}

/// This rank's results, without gaps.
pub struct Outputs<'a, O> {
    /// `[B,S,H,Dv]`.
    pub o: &'a mut dyn DevicePtrMut<O>,
    /// `[B,S,H]` natural logarithms of the sums of exponentials; minus infinity where nothing is seen.
    pub lse: &'a mut dyn DevicePtrMut<f32>,
}

/// Addresses of [`Inputs`] and [`Outputs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raw {
    /// Queries.
    pub q: CUdeviceptr,
    /// Keys.
    pub k: CUdeviceptr,
    /// Values.
    pub v: CUdeviceptr,
    /// Output.
    pub o: CUdeviceptr,
    /// Logarithms of the sums of exponentials.
    pub lse: CUdeviceptr,
}

/// Device memory for one plan, with the plan's tables in it. One run at a time.
#[derive(Debug)]
pub struct Workspace {
    memory: CudaSlice<u8>,
}

impl Workspace {
    /// Allocates it and fills in the tables.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn new(stream: &Arc<CudaStream>, plan: &Plan) -> Result<Self> {
        let mut memory = memory::allocate::<u8>(stream, plan.bytes, "ring workspace")?;
        let Base::Buffer(buffer) = plan.tables_at else { return Ok(Self { memory }) };
        let start = plan.starts[buffer] as usize;
        let bytes: Vec<u8> = plan.tables.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut part = memory.slice_mut(start..start + bytes.len());
        if !bytes.is_empty() {
            stream.memcpy_htod(&bytes, &mut part).map_err(|e| lookback_device::driver(e, "ring tables"))?;
        }
        Ok(Self { memory })
    }
}

impl Plan {
    fn tensor(&self, heads: usize, width: usize, dtype: DType) -> Strided {
        Strided::dense([self.shape.batch, self.tokens(), heads], width, dtype.size())
    }

    fn tensors(&self) -> [Strided; 5] {
        let (shape, options) = (self.shape, self.options);
        [
            self.tensor(shape.heads, shape.head_dim, options.dtype),
            self.tensor(shape.key_heads, shape.head_dim, options.dtype),
            self.tensor(shape.key_heads, shape.value_dim, options.dtype),
            self.tensor(shape.heads, shape.value_dim, options.output),
            self.tensor(shape.heads, 1, DType::F32),
        ]
    }

    /// Attention of this rank's queries to all keys that they see. Every rank calls it, with plans of one job, in the same order.
    ///
    /// # Shapes
    /// As the members of [`Inputs`] and [`Outputs`] say, in the plan's types.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`] ← a slice is too short, or the transport is another rank's; nothing is launched or sent on these.
    /// [`Error::Peer`] ← another rank has failed: results are undefined, and all other ranks are told.
    ///
    /// # Numerics
    /// Each block as in [`lookback_attention`]; results of blocks are merged in f32. With [`Kind::TokenRing`](crate::schedule::Kind::TokenRing) and
    /// [`Kind::Ulysses`](crate::schedule::Kind::Ulysses) results of other ranks' queries are rounded to the element type before that.
    ///
    /// # Determinism
    /// Bitwise: merges come in the order of steps.
    pub fn run<T: Element, O: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, O>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        strided::dtype(OP, "inputs", self.options.dtype, T::DTYPE)?;
        strided::dtype(OP, "o", self.options.output, O::DTYPE)?;
        let lengths = [inputs.q.len(), inputs.k.len(), inputs.v.len(), outputs.o.len(), outputs.lse.len()];
        for ((arg, tensor), length) in ["q", "k", "v", "o", "lse"].into_iter().zip(self.tensors()).zip(lengths) {
            strided::length(OP, arg, &tensor, length)?;
        }
        let given = workspace.memory.len() as u64;
        if given < self.bytes {
            return Err(Error::Workspace { op: OP, need: self.bytes, got: given });
        }
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (lse, _lse) = memory::output(Some(outputs.lse), stream);
        let (workspace, _workspace) = workspace.memory.device_ptr_mut(stream);
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &Raw { q, k, v, o, lse }, workspace, transport) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`], [`Error::Alias`].
    ///
    /// # Safety
    /// * Every address is readable (inputs) or readable and writable (outputs) over the plan's tensors, and `workspace` is that of a
    ///   [`Workspace`] of this plan, until what is queued on the stream has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the outputs.
    pub unsafe fn run_raw(
        &self,
        stream: &Arc<CudaStream>,
        raw: &Raw,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let found = [transport.rank() as u64, transport.ranks() as u64];
        if found != [self.rank as u64, self.layout.ranks as u64] {
            let want = format!("rank {} of {}", self.rank, self.layout.ranks);
            return Err(Error::Shape { op: OP, arg: "transport", want, got: found.to_vec() });
        }
        let addresses = [raw.q, raw.k, raw.v, raw.o, raw.lse];
        let tensors = self.tensors();
        let names = ["q", "k", "v", "o", "lse"];
        let placed: Vec<Placed<'_>> =
            names.into_iter().zip(addresses).zip(&tensors).map(|((name, at), tensor)| (name, at, tensor)).collect();
        for place in &placed {
            strided::address(OP, *place, false)?;
        }
        strided::all_disjoint(OP, &placed[3..], &placed[..3])?;
        let at = Addresses { tensors: &addresses, workspace, starts: &self.starts };
        let operation = transport.next_operation();
        for op in &self.ops {
            // SAFETY: the caller's promise; the plan's views lie within the tensors and the workspace.
            if let Err(error) = unsafe { self.perform(op, stream, &at, operation, transport) } {
                transport.abort(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`run_raw`](Self::run_raw).
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
            Op::Merge { plan, state, running } => {
                let ([o, lse], [out, lse_out]) = (state.each_ref().map(view), running.each_ref().map(view));
                let raw = merge::Raw { o, lse, out, lse_out, ..merge::Raw::default() };
                // SAFETY: likewise.
                unsafe { plan.run_raw(stream, &raw) }
            }
        }
    }
}
