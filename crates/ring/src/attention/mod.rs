//! Attention of a dealt sequence: every rank has its tokens' `q`, `k` and `v`, and gets its tokens' `o` and `lse`.
//!
//! A [`Plan`] turns one rank's [schedule](mod@crate::schedule) into launches and transfers, once. Blocks of own queries are merged into a
//! running result in f32 as they are computed; results of other ranks' queries go home in the element type with an f32 log-sum-exp.

mod compile;
mod op;
mod run;
mod view;

pub use run::{Inputs, Outputs, Raw, Workspace};

use crate::{
    DeviceInfo, Layout, Result, Visible,
    schedule::{Item, Job, Kind, Needs, Pass, schedule},
};
use compile::{Compiler, LSE, O, Running};
use lookback_device::DType;
use op::Op;
use view::{Base, View};

const OP: &str = "ring_attention";
/// What `lse` is where nothing is seen.
const NOTHING: u32 = f32::NEG_INFINITY.to_bits();

/// Sizes of every rank's tensors; their tokens are the [`Layout`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of equal length, `B`.
    pub batch: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key heads, `Hk`; divide the query heads.
    pub key_heads: usize,
    /// Entries of a query or key, `D`: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Entries of a value, `Dv`, likewise.
    pub value_dim: usize,
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `q`, `k` and `v`: f16 or bf16.
    pub dtype: DType,
    /// Of `o`: that type, or f32.
    pub output: DType,
    /// Factor of `q . k`.
    pub scale: f32,
    /// With it a logit is `cap tanh(scale q . k / cap)`.
    pub softcap: Option<f32>,
    /// Which schedule.
    pub kind: Kind,
}

impl Options {
    /// A ring, scale `1 / sqrt(D)`, output in the type of the inputs.
    pub fn new(shape: &Shape, dtype: DType) -> Self {
        let scale = 1.0 / (shape.head_dim.max(1) as f32).sqrt();
        Self { dtype, output: dtype, scale, softcap: None, kind: Kind::Ring }
    }
}

/// One rank's launches and transfers. Made once, on the host alone; may be used any number of times.
#[derive(Debug, Clone)]
pub struct Plan {
    shape: Shape,
    options: Options,
    layout: Layout,
    rank: usize,
    ops: Vec<Op>,
    /// Where buffers of the workspace begin.
    starts: Vec<u64>,
    bytes: u64,
    tables: Vec<i32>,
    /// The buffer that they go to.
    tables_at: Base,
}

impl Plan {
    /// Checks everything and chooses kernels for every block. Costs a look at every pair of a token and a rank.
    ///
    /// # Errors
    /// Those of [`schedule`], of [`lookback_attention::Plan::new`], and [`Error::Shape`](crate::Error::Shape) ← documents that do not end with the sequence, or
    /// query heads of a rank that do not share its key heads evenly.
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
        let job = Job { layout: *layout, heads, key_heads, needs: Needs::new(layout, visible) };
        let schedule = schedule(options.kind, Pass::Forward, &job, rank)?;
        let mut compiler = Compiler::new(*shape, *options, &job, visible, rank, device);
        compiler.hold_own();
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
        let last = compiler.step;
        let tables = std::mem::take(&mut compiler.tables);
        compiler.step = 0;
        let (tables_at, _) = compiler.arena.allocate(&[tables.len() * 4], 0);
        for view in running.iter().flat_map(|r| [r.o, r.lse]) {
            compiler.arena.touch(view.base, last);
        }
        compiler.arena.touch(tables_at, last);
        let (starts, bytes) = compiler.arena.place();
        let ops = compiler.ops;
        Ok(Self { shape: *shape, options: *options, layout: *layout, rank, ops, starts, bytes, tables, tables_at })
    }

    /// Bytes of a [`Workspace`]: what travels, running results, and intervals of rows.
    pub fn workspace_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> u64 {
        let sent = |op: &Op| match op {
            Op::Begin { send, .. } => send.iter().flat_map(|mail| &mail.segments).map(|s| s.bytes as u64).sum(),
            _ => 0,
        };
        self.ops.iter().map(sent).sum()
    }

    /// Tokens of this rank.
    pub fn tokens(&self) -> usize {
        self.layout.len(self.rank)
    }
}

/// Running results for all own queries, by the heads that blocks compute together, empty at first. The caller's own tensors where they
/// will do.
fn results(compiler: &mut Compiler<'_>, schedule: &crate::schedule::Schedule) -> Vec<Running> {
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
