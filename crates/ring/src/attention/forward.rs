//! The forward pass.

use super::{
    Options, Shape, Workspace,
    compile::{Axis, Compiler, LSE, O, Piece},
    in_pieces,
    op::{self, Op, attend, merge},
    program::{Part, Program},
    view::View,
};
use crate::{
    DeviceInfo, Error, Layout, Result, Visible,
    schedule::{Block, Item, Job, Needs, Parcel, Pass, Schedule, schedule},
    transport::Transport,
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DType, Element, memory,
    strided::{self, Placed, Strided},
};
use std::{ops::Range, sync::Arc};

pub(super) const OP: &str = "ring_attention";
/// What `lse` is where nothing is seen.
const NOTHING: u32 = f32::NEG_INFINITY.to_bits();

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

/// One rank's launches and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    program: Program,
}

impl Plan {
    /// Checks everything and chooses kernels for every block. Costs a look at every pair of a token and a rank.
    ///
    /// # Errors
    /// Those of [`schedule`], of [`lookback_attention::Plan::new`], and [`Error::Shape`] ← documents that do not end with the sequence, or
    /// query heads of a rank that do not share its key heads evenly; [`Error::Range`] ← an extent too large.
    pub fn new(
        shape: &Shape,
        options: &Options,
        layout: &Layout,
        visible: &Visible,
        rank: usize,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let Shape { heads, key_heads, .. } = *shape;
        visible.check(layout.tokens)?;
        shape.check(OP, layout.tokens)?;
        let job = Job { layout: *layout, heads, key_heads, needs: Needs::new(layout, visible) };
        let schedule = schedule(options.kind, Pass::Forward, &job, rank)?;
        let mut compiler = Compiler::new(*shape, *options, Pass::Forward, &job, visible, rank, device);
        compiler.hold_own(&[]);
        let running = results(&mut compiler, &schedule);
        let mut arrivals = Vec::new();
        for _ in &schedule.steps {
            compiler.step(
                &schedule,
                &mut arrivals,
                &mut |compiler, block| compiler.forward_block(block, &running),
                &mut |compiler, parcel, pieces| match parcel.item {
                    Item::Partial => compiler.fold_partial(parcel, pieces, &running),
                    _ => {
                        compiler.hold(parcel.clone(), pieces.to_vec());
                        Ok(())
                    }
                },
            )?;
        }
        finish(&mut compiler, &running)?;
        let kept: Vec<View> = running.iter().flat_map(|r| [r.o, r.lse]).collect();
        Ok(Self { shape: *shape, options: *options, program: Program::new(compiler, kept.into_iter()) })
    }

    /// Bytes of a [`Workspace`]: what travels, running results, and intervals of rows.
    pub fn workspace_bytes(&self) -> u64 {
        self.program.bytes
    }

    /// Its workspace.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn workspace(&self, stream: &Arc<CudaStream>) -> Result<Workspace> {
        Workspace::of(stream, &self.program)
    }

    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> u64 {
        self.program.bytes_sent()
    }

    /// Tokens of this rank.
    pub fn tokens(&self) -> usize {
        self.program.layout.len(self.program.rank)
    }

    fn tensors(&self) -> [Strided; 5] {
        let Shape { batch, heads, key_heads, head_dim, value_dim } = self.shape;
        let Options { dtype, output, .. } = self.options;
        let dense = |heads, width, dtype: DType| Strided::dense([batch, self.tokens(), heads], width, dtype.size());
        [
            dense(heads, head_dim, dtype),
            dense(key_heads, head_dim, dtype),
            dense(key_heads, value_dim, dtype),
            dense(heads, value_dim, output),
            dense(heads, 1, DType::F32),
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
        self.run_part(Part::All, stream, inputs, outputs, workspace, transport)
    }

    /// As [`run`](Self::run), or only what it computes, or only what it sends and receives: every rank does the same part.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_part<T: Element, O: Element>(
        &self,
        part: Part,
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
        let (q, _q) = memory::input(Some(inputs.q), stream);
        let (k, _k) = memory::input(Some(inputs.k), stream);
        let (v, _v) = memory::input(Some(inputs.v), stream);
        let (o, _o) = memory::output(Some(outputs.o), stream);
        let (lse, _lse) = memory::output(Some(outputs.lse), stream);
        let (workspace, _workspace) = workspace.hold(OP, &self.program, stream)?;
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.part_raw(part, stream, &Raw { q, k, v, o, lse }, workspace, transport) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`] ← inputs, or an output in f32, that do not begin at a multiple of 16 bytes,
    /// [`Error::Alias`].
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
        // SAFETY: the caller's promise.
        unsafe { self.part_raw(Part::All, stream, raw, workspace, transport) }
    }

    /// # Safety
    /// As for [`run_raw`](Self::run_raw).
    unsafe fn part_raw(
        &self,
        part: Part,
        stream: &Arc<CudaStream>,
        raw: &Raw,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let addresses = [raw.q, raw.k, raw.v, raw.o, raw.lse];
        let tensors = self.tensors();
        let names = ["q", "k", "v", "o", "lse"];
        let placed: Vec<Placed<'_>> =
            names.into_iter().zip(addresses).zip(&tensors).map(|((name, at), tensor)| (name, at, tensor)).collect();
        for place in &placed {
            strided::address(OP, *place, false)?;
        }
        // Rows that blocks move in pieces; an output of 16 bits is only copied to.
        let pieces = if self.options.output == DType::F32 { 4 } else { 3 };
        placed[..pieces].iter().try_for_each(|place| in_pieces(OP, *place))?;
        strided::all_disjoint(OP, &placed[3..], &placed[..3])?;
        // SAFETY: the caller's promise.
        unsafe { self.program.execute((OP, part), stream, &addresses, workspace, transport) }
    }
}

/// A running result of this rank's own queries, for some heads.
#[derive(Debug, Clone)]
struct Running {
    heads: Range<usize>,
    /// f32.
    o: View,
    lse: View,
}

/// Running results for all own queries, by the heads that blocks compute together, empty at first. The caller's own tensors where they
/// will do.
fn results(compiler: &mut Compiler<'_>, schedule: &Schedule) -> Vec<Running> {
    let Shape { batch, heads, value_dim, .. } = compiler.shape;
    let tokens = compiler.job.layout.len(compiler.rank);
    let mut sets = Vec::new();
    for block in schedule.steps.iter().flat_map(|step| &step.compute) {
        let own = block.queries.len() == 1 && block.queries[0].owner == compiler.rank;
        if own && !sets.contains(&block.queries[0].heads) {
            sets.push(block.queries[0].heads.clone());
        }
    }
    let whole = 0..heads;
    let covered: usize = sets.iter().map(|set| set.len()).sum();
    if sets.contains(&whole) || covered != heads {
        sets = vec![whole.clone()];
    }
    let direct = sets == [whole];
    sets.into_iter()
        .map(|heads| {
            let dense = |base, width| View::dense(base, [batch, tokens, heads.len(), width], DType::F32);
            let sizes = [dense(O, value_dim).bytes(), dense(O, 1).bytes()];
            let mut own = |size: usize| compiler.arena.allocate(&[size], 0).0;
            let o = if direct && compiler.options.output == DType::F32 { O } else { own(sizes[0]) };
            let lse = if direct { LSE } else { own(sizes[1]) };
            let (o, lse) = (dense(o, value_dim), dense(lse, 1));
            compiler.ops.push(Op::Fill { view: o, word: 0 });
            compiler.ops.push(Op::Fill { view: lse, word: NOTHING });
            Running { heads, o, lse }
        })
        .collect()
}

/// Running results into the caller's tensors.
fn finish(compiler: &mut Compiler<'_>, running: &[Running]) -> Result<()> {
    let Shape { batch, heads, value_dim, .. } = compiler.shape;
    let tokens = compiler.job.layout.len(compiler.rank);
    let o = View::dense(O, [batch, tokens, heads, value_dim], compiler.options.output);
    let lse = View::dense(LSE, [batch, tokens, heads, 1], DType::F32);
    for part in running {
        for (from, to) in [(part.o, o), (part.lse, lse)] {
            if from.base != to.base {
                compiler.ops.push(op::copy(from, to.heads(&part.heads), false, compiler.device)?);
            }
        }
    }
    Ok(())
}

impl Compiler<'_> {
    /// A block of the forward pass: own queries into the running result, others' into memory that is sent home.
    fn forward_block(&mut self, block: &Block, running: &[Running]) -> Result<()> {
        let (queries, q) = self.axis(&block.queries)?;
        let (keys, kv) = self.axis(&block.keys)?;
        let cover = self.cover(&queries, &keys);
        let heads = &block.queries[0].heads;
        let own = match &queries {
            Axis::Of(owner, tokens) if *owner == self.rank => {
                running.iter().find(|r| r.heads == *heads).map(|r| vec![r.o.tokens(tokens), r.lse.tokens(tokens)])
            }
            _ => None,
        };
        let merges = own.is_some();
        let out = match own {
            Some(views) => views,
            None => self.allocate(Item::Partial, queries.len(&self.job.layout), heads),
        };
        let kernel = attend(self, &cover, [q[0], kv[0], kv[1]], [out[0], out[1]], merges)?;
        self.ops.extend(kernel);
        if merges {
            return Ok(());
        }
        for parcel in &block.queries {
            let result = Parcel { item: Item::Partial, ..parcel.clone() };
            let pieces = match &queries {
                Axis::All => self.by_position(&out, &result),
                Axis::Of(..) => vec![Piece { tokens: parcel.tokens.clone(), views: out.clone() }],
            };
            if parcel.owner == self.rank {
                self.fold_partial(&result, &pieces, running)?;
            } else {
                self.hold(result, pieces);
            }
        }
        Ok(())
    }

    /// Merges a result for own queries into the running one.
    fn fold_partial(&mut self, parcel: &Parcel, pieces: &[Piece], running: &[Running]) -> Result<()> {
        let within = |r: &&Running| r.heads.start <= parcel.heads.start && r.heads.end >= parcel.heads.end;
        let Some(running) = running.iter().find(within) else {
            return Err(Error::NoKernel { op: OP, request: format!("{parcel:?}, whose heads have no result") });
        };
        let heads = parcel.heads.start - running.heads.start..parcel.heads.end - running.heads.start;
        for Piece { tokens, views } in pieces {
            let (o, lse) = (running.o.heads(&heads).tokens(tokens), running.lse.heads(&heads).tokens(tokens));
            self.ops.push(merge([views[0], views[1]], [o, lse], self.device)?);
        }
        Ok(())
    }
}
