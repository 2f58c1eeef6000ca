//! The backward pass.

use super::{
    Options, Shape, Workspace,
    compile::{Axis, Compiler, D_LSE, D_O, DK, DQ, DV, LSE, O, Piece},
    in_pieces,
    op::{Op, copy, differentiate, prepare},
    program::{Part, Program},
    view::{Base, View},
};
use crate::{
    DeviceInfo, Layout, Result, Visible,
    schedule::{Block, Item, Job, Needs, Parcel, Pass, schedule},
    transport::Transport,
};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, sys::CUdeviceptr};
use lookback_device::{
    DType, Element, memory,
    strided::{self, Placed, Strided},
};
use std::{ops::Range, sync::Arc};

const OP: &str = "ring_attention_backward";

/// Switches of a backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackwardOptions {
    /// Those of the forward pass; `output` says the type of `o` that is read here.
    pub attention: Options,
    /// Whether `dq` of a block is summed in a fixed order, at the price of computing its weights twice.
    pub deterministic: bool,
    /// Of `dq`, `dk` and `dv`: that of the inputs, or f32.
    pub gradient: DType,
}

impl BackwardOptions {
    /// Deterministic, gradients in the type of the inputs.
    pub fn new(attention: Options) -> Self {
        Self { attention, deterministic: true, gradient: attention.dtype }
    }
}

/// This rank's tensors, without gaps; `S` are its tokens in the order of their positions. `O` is the type of `o`.
pub struct BackwardInputs<'a, T, O> {
    /// `[B,S,H,D]`.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,S,Hk,D]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,S,Hk,Dv]`.
    pub v: &'a dyn DevicePtr<T>,
    /// `[B,S,H,Dv]`, of the forward pass.
    pub o: &'a dyn DevicePtr<O>,
    /// `[B,S,H]`, of the forward pass.
    pub lse: &'a dyn DevicePtr<f32>,
    /// `[B,S,H,Dv]`, the gradient of `o`.
    pub d_o: &'a dyn DevicePtr<T>,
    /// `[B,S,H]`, the gradient of `lse`; zero without.
    pub d_lse: Option<&'a dyn DevicePtr<f32>>,
}

/// What a backward pass writes, without gaps. `G` is the plan's type of gradients.
pub struct Gradients<'a, G> {
    /// `[B,S,H,D]`.
    pub dq: &'a mut dyn DevicePtrMut<G>,
    /// `[B,S,Hk,D]`.
    pub dk: &'a mut dyn DevicePtrMut<G>,
    /// `[B,S,Hk,Dv]`.
    pub dv: &'a mut dyn DevicePtrMut<G>,
}

/// Addresses of [`BackwardInputs`] and [`Gradients`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawBackward {
    /// Queries.
    pub q: CUdeviceptr,
    /// Keys.
    pub k: CUdeviceptr,
    /// Values.
    pub v: CUdeviceptr,
    /// Output of the forward pass.
    pub o: CUdeviceptr,
    /// Its logarithms of the sums of exponentials.
    pub lse: CUdeviceptr,
    /// Gradient of the output.
    pub d_o: CUdeviceptr,
    /// Gradient of those logarithms; 0: zero.
    pub d_lse: CUdeviceptr,
    /// Gradient of the queries.
    pub dq: CUdeviceptr,
    /// Of the keys.
    pub dk: CUdeviceptr,
    /// Of the values.
    pub dv: CUdeviceptr,
}

/// One rank's launches and transfers for gradients. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    shape: Shape,
    options: BackwardOptions,
    program: Program,
}

impl BackwardPlan {
    /// Checks everything and chooses kernels for every block.
    ///
    /// # Errors
    /// As of [`Plan::new`](super::Plan::new).
    pub fn new(
        shape: &Shape,
        options: &BackwardOptions,
        layout: &Layout,
        visible: &Visible,
        rank: usize,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let Shape { heads, key_heads, .. } = *shape;
        visible.check(layout.tokens)?;
        shape.check(OP, layout.tokens)?;
        let job = Job { layout: *layout, heads, key_heads, needs: Needs::new(layout, visible) };
        let schedule = schedule(options.attention.kind, Pass::Backward, &job, rank)?;
        let mut compiler = Compiler::new(*shape, options.attention, Pass::Backward, &job, visible, rank, device);
        let rows = compiler.prepare_rows()?;
        let sums = Sums::new(&mut compiler, options.gradient);
        let mut arrivals = Vec::new();
        for _ in &schedule.steps {
            compiler.step(
                &schedule,
                &mut arrivals,
                &mut |compiler, block| compiler.backward_block(block, &sums, options.deterministic),
                &mut |compiler, parcel, pieces| compiler.fold_gradients(parcel, pieces, &sums),
            )?;
        }
        sums.finish(&mut compiler, options.gradient)?;
        let kept = [sums.dq, sums.dk, sums.dv, rows];
        Ok(Self { shape: *shape, options: *options, program: Program::new(compiler, kept.into_iter()) })
    }

    /// Bytes of a [`Workspace`]: what travels, sums in f32, terms of rows, and intervals of rows.
    pub fn workspace_bytes(&self) -> u64 {
        self.program.bytes
    }

    /// Its workspace.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Driver`](crate::Error::Driver).
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

    fn tensors(&self) -> [Strided; 10] {
        let Shape { batch, heads, key_heads, head_dim, value_dim } = self.shape;
        let BackwardOptions { attention: Options { dtype, output, .. }, gradient, .. } = self.options;
        let dense = |heads, width, dtype: DType| Strided::dense([batch, self.tokens(), heads], width, dtype.size());
        [
            dense(heads, head_dim, dtype),
            dense(key_heads, head_dim, dtype),
            dense(key_heads, value_dim, dtype),
            dense(heads, value_dim, output),
            dense(heads, 1, DType::F32),
            dense(heads, value_dim, dtype),
            dense(heads, 1, DType::F32),
            dense(heads, head_dim, gradient),
            dense(key_heads, head_dim, gradient),
            dense(key_heads, value_dim, gradient),
        ]
    }

    /// The gradients of this rank's queries, keys and values. Every rank calls it, with plans of one job, in the same order.
    ///
    /// # Shapes
    /// As the members of [`BackwardInputs`] and [`Gradients`] say, in the plan's types.
    ///
    /// # Errors
    /// [`Error::Dtype`](crate::Error::Dtype), [`Error::Shape`](crate::Error::Shape) ← a slice is too short, or the transport is another
    /// rank's; nothing is launched or sent on these. [`Error::Peer`](crate::Error::Peer) ← another rank has failed: gradients are
    /// undefined, and all other ranks are told.
    ///
    /// # Numerics
    /// Each block as in [`lookback_attention`], all sums in f32, on the wire too; rounded once at the end.
    ///
    /// # Determinism
    /// Bitwise with [`BackwardOptions::deterministic`]: sums come in the order of steps.
    pub fn run<T: Element, O: Element, G: Element>(
        &self,
        stream: &Arc<CudaStream>,
        inputs: &BackwardInputs<'_, T, O>,
        gradients: Gradients<'_, G>,
        workspace: &mut Workspace,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        strided::dtype(OP, "inputs", self.options.attention.dtype, T::DTYPE)?;
        strided::dtype(OP, "o", self.options.attention.output, O::DTYPE)?;
        strided::dtype(OP, "gradients", self.options.gradient, G::DTYPE)?;
        let BackwardInputs { q, k, v, o, lse, d_o, d_lse } = inputs;
        let lengths = [
            Some(q.len()),
            Some(k.len()),
            Some(v.len()),
            Some(o.len()),
            Some(lse.len()),
            Some(d_o.len()),
            d_lse.map(|d| d.len()),
            Some(gradients.dq.len()),
            Some(gradients.dk.len()),
            Some(gradients.dv.len()),
        ];
        for ((arg, tensor), length) in NAMES.into_iter().zip(self.tensors()).zip(lengths) {
            length.map_or(Ok(()), |length| strided::length(OP, arg, &tensor, length))?;
        }
        let (q, _q) = memory::input(Some(*q), stream);
        let (k, _k) = memory::input(Some(*k), stream);
        let (v, _v) = memory::input(Some(*v), stream);
        let (o, _o) = memory::input(Some(*o), stream);
        let (lse, _lse) = memory::input(Some(*lse), stream);
        let (d_o, _d_o) = memory::input(Some(*d_o), stream);
        let (d_lse, _d_lse) = memory::input(*d_lse, stream);
        let (dq, _dq) = memory::output(Some(gradients.dq), stream);
        let (dk, _dk) = memory::output(Some(gradients.dk), stream);
        let (dv, _dv) = memory::output(Some(gradients.dv), stream);
        let (workspace, _workspace) = workspace.hold(OP, &self.program, stream)?;
        let raw = RawBackward { q, k, v, o, lse, d_o, d_lse, dq, dk, dv };
        // SAFETY: the slices live on the stream's context and have the elements of the plan's tensors; their guards are held until
        // everything is queued, and transfers have ended by then.
        unsafe { self.run_raw(stream, &raw, workspace, transport) }
    }

    /// As [`run`](Self::run) on device addresses.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), [`Error::Align`](crate::Error::Align) ← rows of inputs, or of gradients in f32, that do not begin at
    /// a multiple of 16 bytes, [`Error::Alias`](crate::Error::Alias).
    ///
    /// # Safety
    /// * Every address is readable (inputs) or readable and writable (gradients) over the plan's tensors, and `workspace` is that of a
    ///   [`Workspace`] of this plan, until what is queued on the stream has ended.
    /// * Nothing else writes that memory meanwhile, and nothing reads the gradients.
    pub unsafe fn run_raw(
        &self,
        stream: &Arc<CudaStream>,
        raw: &RawBackward,
        workspace: CUdeviceptr,
        transport: &mut dyn Transport,
    ) -> Result<()> {
        let RawBackward { q, k, v, o, lse, d_o, d_lse, dq, dk, dv } = *raw;
        let addresses = [q, k, v, o, lse, d_o, d_lse, dq, dk, dv];
        let tensors = self.tensors();
        let placed: Vec<Placed<'_>> =
            NAMES.into_iter().zip(addresses).zip(&tensors).map(|((name, at), tensor)| (name, at, tensor)).collect();
        for place in &placed {
            strided::address(OP, *place, place.0 == "d_lse")?;
        }
        // Rows that blocks move in pieces; gradients of 16 bits are only copied to.
        let rows = [0, 1, 2, 3, 5].into_iter().chain(if self.options.gradient == DType::F32 { 7..10 } else { 0..0 });
        rows.map(|at| placed[at]).try_for_each(|place| in_pieces(OP, place))?;
        strided::all_disjoint(OP, &placed[7..], &placed[..7])?;
        // SAFETY: the caller's promise.
        unsafe { self.program.execute((OP, Part::All), stream, &addresses, workspace, transport) }
    }
}

/// The caller's tensors, by their numbers.
const NAMES: [&str; 10] = ["q", "k", "v", "o", "lse", "d_o", "d_lse", "dq", "dk", "dv"];

/// Sums of this rank's gradients, f32.
#[derive(Debug, Clone, Copy)]
struct Sums {
    dq: View,
    dk: View,
    dv: View,
}

impl Sums {
    /// Zeros; the caller's own tensors if they are f32.
    fn new(compiler: &mut Compiler<'_>, gradient: DType) -> Self {
        let Shape { heads, key_heads, head_dim, value_dim, .. } = compiler.shape;
        let mut sum = |base, heads, width| {
            let dense = Self::tensor(compiler, base, heads, width, DType::F32);
            let base = if gradient == DType::F32 { base } else { compiler.arena.allocate(&[dense.bytes()], 0).0 };
            let view = View { base, ..dense };
            compiler.ops.push(Op::Fill { view, word: 0 });
            view
        };
        Self { dq: sum(DQ, heads, head_dim), dk: sum(DK, key_heads, head_dim), dv: sum(DV, key_heads, value_dim) }
    }

    fn tensor(compiler: &Compiler<'_>, base: Base, heads: usize, width: usize, dtype: DType) -> View {
        let tokens = compiler.job.layout.len(compiler.rank);
        View::dense(base, [compiler.shape.batch, tokens, heads, width], dtype)
    }

    /// Into the caller's tensors.
    fn finish(&self, compiler: &mut Compiler<'_>, gradient: DType) -> Result<()> {
        for (sum, base) in [(self.dq, DQ), (self.dk, DK), (self.dv, DV)] {
            if sum.base != base {
                let to = Self::tensor(compiler, base, sum.heads, sum.width, gradient);
                compiler.ops.push(copy(sum, to, false, compiler.device)?);
            }
        }
        Ok(())
    }

    /// The sums of an item's tokens and heads.
    fn of(&self, compiler: &Compiler<'_>, item: Item, tokens: &Range<usize>, heads: &Range<usize>) -> Vec<View> {
        match item {
            Item::QueryGradients => vec![self.dq.heads(heads).tokens(tokens)],
            _ => {
                let heads = compiler.job.key_heads(heads);
                [self.dk, self.dv].map(|sum| sum.heads(&heads).tokens(tokens)).into()
            }
        }
    }
}

impl Compiler<'_> {
    /// What blocks need of own rows' results, and with it what queries are.
    fn prepare_rows(&mut self) -> Result<View> {
        let Shape { batch, heads, value_dim, .. } = self.shape;
        let tokens = self.job.layout.len(self.rank);
        let dense = |base, width, dtype| View::dense(base, [batch, tokens, heads, width], dtype);
        let d_o = dense(D_O, value_dim, self.options.dtype);
        let results = [d_o, dense(O, value_dim, self.options.output), dense(LSE, 1, DType::F32)];
        let (launch, rows) = prepare(self, results, dense(D_LSE, 1, DType::F32))?;
        self.ops.push(launch);
        self.hold_own(&[d_o, rows]);
        Ok(rows)
    }

    /// A block's gradients: own ones are added to the sums, others held until they are sent.
    fn backward_block(&mut self, block: &Block, sums: &Sums, deterministic: bool) -> Result<()> {
        let heads = block.queries[0].heads.clone();
        // Terms of rows have no steps within a head: all tokens that are here.
        let queries: Vec<Parcel> = match &block.queries[..] {
            [parcel] => self.held(Item::Queries, parcel.owner, &heads).into_iter().collect(),
            several => several.to_vec(),
        };
        let (rows, of_queries) = self.axis(&queries)?;
        let (columns, of_keys) = self.axis(&block.keys)?;
        let cover = self.cover(&rows, &columns);
        let dq = self.target(Item::QueryGradients, &rows, &heads, sums)?;
        let dkv = self.target(Item::KeyGradients, &columns, &heads, sums)?;
        let inputs = [of_queries[0], of_keys[0], of_keys[1]];
        let adjoint = [of_queries[1], of_queries[2]];
        let launches = differentiate(self, &cover, inputs, adjoint, [dq[0], dkv[0], dkv[1]], deterministic)?;
        self.ops.extend(launches);
        for (item, axis, parcels, views) in
            [(Item::QueryGradients, rows, &queries, dq), (Item::KeyGradients, columns, &block.keys, dkv)]
        {
            for parcel in parcels.iter().filter(|_| matches!(axis, Axis::All)) {
                let result = Parcel { item, ..parcel.clone() };
                let pieces = self.by_position(&views, &result);
                if parcel.owner == self.rank {
                    self.add(&result, &pieces, sums)?;
                } else {
                    self.hold(result, pieces);
                }
            }
        }
        Ok(())
    }

    /// Where gradients of rows are added: own sums, or zeros that are held for another rank or given away by position.
    fn target(&mut self, item: Item, axis: &Axis, heads: &Range<usize>, sums: &Sums) -> Result<Vec<View>> {
        let (owner, tokens) = match axis {
            Axis::Of(owner, tokens) if *owner == self.rank => return Ok(sums.of(self, item, tokens, heads)),
            Axis::Of(owner, tokens) => (Some(*owner), tokens.clone()),
            Axis::All => (None, 0..self.job.layout.tokens),
        };
        // Of another rank's tokens all, so that what comes from further ranks finds its place.
        let all = owner.map_or(tokens.end, |owner| self.job.layout.len(owner));
        let views = self.allocate(item, all, heads);
        self.ops.extend(views.iter().map(|view| Op::Fill { view: *view, word: 0 }));
        if let Some(owner) = owner {
            let parcel = Parcel { item, owner, tokens: 0..all, heads: heads.clone() };
            self.hold(parcel, vec![Piece { tokens: 0..all, views: views.clone() }]);
        }
        Ok(views.into_iter().map(|view| view.tokens(&tokens)).collect())
    }

    /// Adds gradients of own rows to the sums.
    fn add(&mut self, parcel: &Parcel, pieces: &[Piece], sums: &Sums) -> Result<()> {
        for Piece { tokens, views } in pieces {
            for (from, to) in views.iter().zip(sums.of(self, parcel.item, tokens, &parcel.heads)) {
                self.ops.push(copy(*from, to, true, self.device)?);
            }
        }
        Ok(())
    }

    /// What came: rows to compute with, own gradients, or a sum that goes on with what this rank adds.
    fn fold_gradients(&mut self, parcel: &Parcel, pieces: &[Piece], sums: &Sums) -> Result<()> {
        let is_gradient = matches!(parcel.item, Item::QueryGradients | Item::KeyGradients);
        if is_gradient && parcel.owner == self.rank {
            return self.add(parcel, pieces, sums);
        }
        if !is_gradient || self.held(parcel.item, parcel.owner, &parcel.heads).is_none() {
            self.hold(parcel.clone(), pieces.to_vec());
            return Ok(());
        }
        for Piece { tokens, views } in pieces {
            for held in self.find(&Parcel { tokens: tokens.clone(), ..parcel.clone() })? {
                for (from, to) in views.iter().zip(&held.views) {
                    self.ops.push(copy(*from, *to, true, self.device)?);
                }
            }
        }
        Ok(())
    }
}
