//! Launches and transfers of one rank, in order.

use super::{
    compile::{Compiler, K, Q, V},
    view::{Segment, View},
};
use crate::{Cover, DeviceInfo, Error, Result, schedule::Parcel};
use lookback_attention::{self as attention, Mask, Output, merge::StateStride};
use lookback_device::{DType, strided::Stride};
use lookback_nn::copy_rows;

/// A message before it has addresses.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    pub peer: usize,
    pub parcel: Parcel,
    pub steps: u32,
    pub segments: Vec<Segment>,
}

/// What is done next.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Sets every 32-bit word of a tensor without gaps.
    Fill { view: View, word: u32 },
    /// Copies, converts or adds rows.
    Copy { plan: copy_rows::Plan, from: View, to: View },
    /// Begins the transfers of a step.
    Begin { step: u32, send: Vec<Mail>, receive: Vec<Mail> },
    /// Ends them.
    End { step: u32 },
    /// One row of the batch of one block; `intervals` are bytes from the start of the tables.
    Attend { plan: Box<attention::Plan>, inputs: [View; 3], outputs: [View; 2], intervals: Option<u64> },
    /// The gradients of one row of the batch of one block, added to what is there; `rows` are what [`Op::Prepare`] makes.
    Differentiate {
        plan: Box<attention::BackwardPlan>,
        inputs: [View; 3],
        d_o: View,
        rows: View,
        gradients: [View; 3],
        intervals: Option<u64>,
    },
    /// What a backward pass needs of every row's result, once: of `do`, `o`, `lse` and, unless its tensor is absent, `d_lse`.
    Prepare { plan: Box<attention::BackwardPlan>, inputs: [View; 3], results: [View; 3], d_lse: View, rows: View },
    /// Merges a state into a running one.
    Merge { plan: Box<attention::merge::Plan>, state: [View; 2], running: [View; 2] },
}

/// `to = from`, or `to += from`.
pub(super) fn copy(from: View, to: View, accumulate: bool, device: &DeviceInfo) -> Result<Op> {
    let shape = copy_rows::Shape {
        batch: from.batch,
        tokens: from.tokens,
        heads: from.heads,
        width: from.width,
        x_stride: Some(from.stride),
        out_stride: Some(to.stride),
    };
    let options = copy_rows::Options { dtype: from.dtype, out: to.dtype, accumulate };
    Ok(Op::Copy { plan: copy_rows::Plan::new(&shape, &options, device)?, from, to })
}

/// The running state takes another one in.
pub(super) fn merge(state: [View; 2], running: [View; 2], device: &DeviceInfo) -> Result<Op> {
    let [o, lse] = state;
    let one = |view: View| Some(StateStride { state: 0, within: view.stride });
    let strides = attention::merge::Strides {
        o: one(o),
        lse: one(lse),
        out: Some(running[0].stride),
        lse_out: Some(running[1].stride),
    };
    let shape =
        attention::merge::Shape { strides, ..attention::merge::Shape::dense(1, o.batch, o.tokens, o.heads, o.width) };
    let plan = attention::merge::Plan::new(&shape, &attention::merge::Options::accumulate(o.dtype), device)?;
    Ok(Op::Merge { plan: Box::new(plan), state, running })
}

/// How a block's launch sees its keys: mask, offset, and where the intervals of its rows are.
struct Seen {
    mask: Mask,
    offset: Option<i32>,
    intervals: Option<u64>,
}

impl Seen {
    fn of(compiler: &mut Compiler<'_>, cover: &Cover, rows: usize) -> Self {
        let (mask, offset, table) = match cover {
            Cover::Empty => (Mask::Intervals, None, Some(vec![[0; 4]; rows])),
            Cover::Full => (Mask::Full, None, None),
            Cover::Causal { offset } => (Mask::Causal, Some(*offset), None),
            Cover::Intervals(rows) => (Mask::Intervals, None, Some(rows.clone())),
        };
        Self { mask, offset, intervals: table.map(|rows| compiler.table(&rows)) }
    }
}

/// Sizes and switches of a block's launch.
fn block(
    compiler: &Compiler<'_>,
    seen: &Seen,
    [q, k, v]: [View; 3],
    o: Option<View>,
    output: Output,
) -> Result<(attention::Shape, attention::Options)> {
    let (heads, key_heads) = (q.heads, k.heads);
    // Of several key heads each must come with all query heads that share it: kernels deal queries out evenly.
    let group = compiler.job.heads.checked_div(compiler.job.key_heads).unwrap_or(1);
    if key_heads > 1 && heads != key_heads * group {
        let want = format!("such that a rank's {heads} query heads share {key_heads} key heads evenly");
        let got = vec![compiler.job.layout.ranks as u64];
        return Err(Error::Shape { op: super::forward::OP, arg: "ranks", want, got });
    }
    let stride = |view: View| Some(row_stride(view));
    let shape = attention::Shape {
        batch: 1,
        query_len: q.tokens,
        key_len: k.tokens,
        heads,
        key_heads,
        head_dim: q.width,
        value_dim: v.width,
        packed: None,
        strides: attention::Strides { q: stride(q), k: stride(k), v: stride(v), o: o.and_then(stride) },
    };
    let options = attention::Options {
        dtype: q.dtype,
        scale: compiler.options.scale,
        softcap: compiler.options.softcap,
        mask: seen.mask,
        offset: seen.offset,
        output,
    };
    Ok((shape, options))
}

/// Steps within a row of the batch.
fn row_stride(view: View) -> Stride {
    Stride { batch: 0, ..view.stride }
}

/// The launches of a block, one for each row of the batch.
pub(super) fn attend(
    compiler: &mut Compiler<'_>,
    cover: &Cover,
    inputs: [View; 3],
    outputs: [View; 2],
    merges: bool,
) -> Result<Vec<Op>> {
    // What is not seen at all leaves a running result alone, and makes an empty one.
    if merges && *cover == Cover::Empty {
        return Ok(Vec::new());
    }
    let seen = Seen::of(compiler, cover, inputs[0].tokens);
    let output = if merges { Output::Merge } else { Output::Same };
    let (shape, options) = block(compiler, &seen, inputs, Some(outputs[0]), output)?;
    let plan = attention::Plan::new(&shape, &options, compiler.device)?;
    let launch = |b: usize| Op::Attend {
        plan: Box::new(plan.clone()),
        inputs: inputs.map(|view| view.row(b)),
        outputs: outputs.map(|view| view.row(b)),
        intervals: seen.intervals,
    };
    Ok((0..inputs[0].batch).map(launch).collect())
}

/// The gradients of a block, added to `gradients` in f32, one launch for each row of the batch.
pub(super) fn differentiate(
    compiler: &mut Compiler<'_>,
    cover: &Cover,
    inputs: [View; 3],
    [d_o, rows]: [View; 2],
    gradients: [View; 3],
    deterministic: bool,
) -> Result<Vec<Op>> {
    if *cover == Cover::Empty {
        return Ok(Vec::new());
    }
    let seen = Seen::of(compiler, cover, inputs[0].tokens);
    let (shape, options) = block(compiler, &seen, inputs, None, Output::Same)?;
    let [dq, dk, dv] = gradients.map(|view| Some(row_stride(view)));
    let options = attention::BackwardOptions {
        attention: options,
        deterministic,
        gradient: attention::backward::Gradient::Accumulate,
        strides: attention::backward::BackwardStrides { d_o: Some(row_stride(d_o)), dq, dk, dv },
    };
    let plan = attention::BackwardPlan::new(&shape, &options, compiler.device)?;
    let launch = |b: usize| Op::Differentiate {
        plan: Box::new(plan.clone()),
        inputs: inputs.map(|view| view.row(b)),
        d_o: d_o.row(b),
        rows: rows.row(b),
        gradients: gradients.map(|view| view.row(b)),
        intervals: seen.intervals,
    };
    Ok((0..inputs[0].batch).map(launch).collect())
}

/// What backward passes of blocks need of all own rows, into new memory: the launch, and where it is.
pub(super) fn prepare(compiler: &mut Compiler<'_>, results: [View; 3], d_lse: View) -> Result<(Op, View)> {
    let [d_o, o, _] = results;
    let super::Shape { batch, heads, key_heads, head_dim, value_dim } = compiler.shape;
    let tokens = d_o.tokens;
    let shape =
        attention::Shape { key_heads, value_dim, ..attention::Shape::dense(batch, tokens, tokens, heads, head_dim) };
    let options = attention::Options {
        dtype: d_o.dtype,
        scale: compiler.options.scale,
        softcap: compiler.options.softcap,
        mask: Mask::Full,
        offset: None,
        output: if o.dtype == d_o.dtype { Output::Same } else { Output::F32 },
    };
    let plan = attention::BackwardPlan::new(&shape, &attention::BackwardOptions::new(options), compiler.device)?;
    let tensor = |base, heads, width| View::dense(base, [batch, tokens, heads, width], d_o.dtype);
    let inputs = [tensor(Q, heads, head_dim), tensor(K, key_heads, head_dim), tensor(V, key_heads, value_dim)];
    // Without gradients to write, a plan's workspace holds just these.
    let (base, _) = compiler.arena.allocate(&[plan.workspace_bytes() as usize], 0);
    let rows = View::dense(base, [batch, tokens, heads, 2], DType::F32).head_major();
    Ok((Op::Prepare { plan: Box::new(plan), inputs, results, d_lse, rows }, rows))
}
