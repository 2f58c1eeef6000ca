//! Launches and transfers of one rank, in order.

use super::{
    compile::Compiler,
    view::{Segment, View},
};
use crate::{Cover, DeviceInfo, Error, Result, schedule::Parcel};
use lookback_attention::{self as attention, Mask, Output, merge::StateStride};
use lookback_device::strided::Stride;
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

/// The launches of a block, one for each row of the batch.
pub(super) fn attend(
    compiler: &mut Compiler<'_>,
    cover: &Cover,
    [q, k, v]: [View; 3],
    [o, lse]: [View; 2],
    merges: bool,
) -> Result<Vec<Op>> {
    let (heads, key_heads) = (q.heads, k.heads);
    if key_heads > 0 && !heads.is_multiple_of(key_heads) {
        let want = format!("such that a rank's {heads} query heads share {key_heads} key heads evenly");
        return Err(Error::Shape { op: super::OP, arg: "ranks", want, got: vec![compiler.job.layout.ranks as u64] });
    }
    let (mask, offset, rows) = match cover {
        // What is not seen at all leaves a running result alone, and makes an empty one.
        Cover::Empty if merges => return Ok(Vec::new()),
        Cover::Empty => (Mask::Intervals, None, Some(vec![[0; 4]; q.tokens])),
        Cover::Full => (Mask::Full, None, None),
        Cover::Causal { offset } => (Mask::Causal, Some(*offset), None),
        Cover::Intervals(rows) => (Mask::Intervals, None, Some(rows.clone())),
    };
    let intervals = rows.map(|rows| compiler.table(&rows));
    let stride = |view: View| Some(Stride { batch: 0, ..view.stride });
    let shape = attention::Shape {
        batch: 1,
        query_len: q.tokens,
        key_len: k.tokens,
        heads,
        key_heads,
        head_dim: q.width,
        value_dim: v.width,
        packed: None,
        strides: attention::Strides { q: stride(q), k: stride(k), v: stride(v), o: stride(o) },
    };
    let options = attention::Options {
        dtype: q.dtype,
        scale: compiler.options.scale,
        softcap: compiler.options.softcap,
        mask,
        offset,
        output: if merges { Output::Merge } else { Output::Same },
    };
    let plan = attention::Plan::new(&shape, &options, compiler.device)?;
    let launch = |b: usize| Op::Attend {
        plan: Box::new(plan.clone()),
        inputs: [q, k, v].map(|view| view.row(b)),
        outputs: [o, lse].map(|view| view.row(b)),
        intervals,
    };
    Ok((0..q.batch).map(launch).collect())
}
