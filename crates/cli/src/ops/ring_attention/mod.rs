//! `ring_attention`: the sequence dealt to several ranks.

pub mod backward;
mod gather;
mod job;

use super::{
    Case, Inputs, Operation, Values,
    attention::{LEFT, MASK, RIGHT, SCALE, SINK_TOKENS, SOFTCAP},
    for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    ranks::{Group, Rank, TIMEOUT, TRANSPORT, bytes},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use gather::{Output, gather};
use job::{Job, Setting};
use lookback_device::{DType, Element};
use lookback_reference::attention as reference;
use lookback_ring::{
    attention::{Inputs as RingInputs, Outputs, Plan, Shape},
    schedule::Pass,
};

/// Inputs of the forward pass.
const INPUTS: [TensorSpec; 5] = [
    required("q", "T", "[B,T,H,D]", "queries, f16 or bf16; D and V are multiples of 8, at most 256"),
    required("k", "T", "[B,T,G,D]", "keys; G divides H, and H / G neighbouring heads share one"),
    required("v", "T", "[B,T,G,V]", "values"),
    optional("cu_seqlens", "i32", "[N+1]", "starts of documents that do not see each other, and their end, T"),
    optional(
        "prefix_len",
        "i32",
        "[N]",
        "tokens that all of a document see, with mask=prefix; N is 1 without cu_seqlens",
    ),
];
const RANKS: AttributeSpec =
    AttributeSpec { name: "ranks", values: "1 to 64", default: "4", about: "ranks, if no launcher says how many" };
const SCHEDULE: AttributeSpec = AttributeSpec {
    name: "schedule",
    values: "ring|bidirectional|two_level|tokenring|allgather|ulysses|auto",
    default: "ring",
    about: "what moves; auto takes what a model of Hopper GPUs says is fastest, with the partition unless that is set",
};
const PARTITION: AttributeSpec = AttributeSpec {
    name: "partition",
    values: "contiguous|zigzag|striped",
    default: "zigzag",
    about: "which tokens a rank has",
};
const NODE: AttributeSpec = AttributeSpec {
    name: "node",
    values: "a divisor of ranks",
    default: "2",
    about: "ranks of a node, with two_level",
};
const GROUPS: AttributeSpec =
    AttributeSpec { name: "groups", values: "1 to G", default: "1", about: "sets of key heads, with allgather" };
const MASKS: AttributeSpec = AttributeSpec { values: "full|causal|anti_causal|prefix|window", ..MASK };

/// Attention of a dealt sequence.
pub static RING_ATTENTION: Operation = Operation {
    name: "ring_attention",
    about: "attention of a sequence that is dealt to several ranks; o and lse as of the whole",
    inputs: &INPUTS,
    attributes: &[
        RANKS,
        SCHEDULE,
        PARTITION,
        NODE,
        GROUPS,
        TIMEOUT,
        TRANSPORT,
        MASKS,
        LEFT,
        RIGHT,
        SINK_TOKENS,
        SCALE,
        SOFTCAP,
    ],
    outputs: &[
        required("o", "T", "[B,T,H,V]", "0 where a token sees nothing"),
        required("lse", "f32", "[B,T,H]", "minus infinity where it sees nothing"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// `q`, `k` and `v` of the whole.
fn tensors<T: Element>(inputs: &Inputs) -> Result<[Vec<T>; 3]> {
    let [q, k, v] = ["q", "k", "v"].map(|name| inputs.tensor(name).map(Tensor::as_elements::<T>));
    Ok([q?, k?, v?])
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [q, k, v] = tensors::<T>(inputs)?;
    let group = Group::of(inputs)?;
    let job = Job::of(inputs, T::DTYPE, &group, Pass::Forward)?;
    let Shape { batch, heads, key_heads, head_dim, value_dim } = job.shape;
    let outputs = [Output::new("o", T::DTYPE, &[heads, value_dim]), Output::new("lse", DType::F32, &[heads])];
    gather(session, &group, &job, &outputs, |Rank { session, rank, transport }| {
        let stream = &session.stream;
        let plan = Plan::new(&job.shape, &job.options, &job.layout, &job.visible, rank, &session.info)?;
        let mut workspace = plan.workspace(stream)?;
        let q = session.upload(&job.part(rank, &q, heads * head_dim))?;
        let k = session.upload(&job.part(rank, &k, key_heads * head_dim))?;
        let v = session.upload(&job.part(rank, &v, key_heads * value_dim))?;
        let rows = batch * plan.tokens() * heads;
        let (mut o, mut lse) = (session.zeros::<T>(rows * value_dim)?, session.zeros::<f32>(rows)?);
        let outputs = Outputs { o: &mut o, lse: &mut lse };
        plan.run(stream, &RingInputs { q: &q, k: &k, v: &v }, outputs, &mut workspace, transport)?;
        Ok(vec![bytes(&session.download::<T>(&o)?), bytes(&session.download::<f32>(&lse)?)])
    })
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    Setting::of(inputs, inputs.dtype)?.reference(inputs, |attention, tensors| {
        let out = reference::forward(attention, tensors);
        Ok(Values::from([("o".into(), out.o), ("lse".into(), out.lse)]))
    })
}

/// Every schedule and partition; there are no f32 kernels.
fn cases(dtype: DType) -> Vec<Case> {
    if dtype == DType::F32 {
        return Vec::new();
    }
    let with = |name: &str, [b, t, h, g]: [usize; 4], starts: &[i32], set: &[&str]| {
        let floats = |phase, heads: usize| {
            let shape = [b, t, heads, 64];
            Tensor::floats(dtype, &shape, &wave(phase, shape.iter().product()))
        };
        let mut tensors =
            Tensors::from([("q".into(), floats(1.0, h)), ("k".into(), floats(2.0, g)), ("v".into(), floats(3.0, g))]);
        if !starts.is_empty() {
            tensors.insert("cu_seqlens".into(), Tensor::indices(&[starts.len()], starts));
        }
        Case { name: name.into(), tensors, attributes: set.iter().map(|s| s.to_string()).collect() }
    };
    vec![
        with("ring", [1, 70, 4, 2], &[], &["mask=causal", "ranks=3"]),
        with("ring, contiguous documents", [1, 70, 2, 2], &[0, 21, 21, 70], &["mask=causal", "partition=contiguous"]),
        with("both ways, striped", [2, 33, 4, 4], &[], &["schedule=bidirectional", "partition=striped", "mask=causal"]),
        with("two levels", [1, 64, 2, 1], &[], &["schedule=two_level", "mask=causal"]),
        with("queries move", [1, 61, 4, 4], &[], &["schedule=tokenring", "mask=causal"]),
        with("chosen by the model", [1, 60, 4, 2], &[], &["schedule=auto", "mask=causal"]),
        with("all gathered", [1, 50, 4, 2], &[], &["schedule=allgather", "groups=2", "ranks=2"]),
        with(
            "heads dealt, window",
            [1, 66, 4, 4],
            &[],
            &["schedule=ulysses", "mask=window", "left=9", "sink_tokens=2", "softcap=3"],
        ),
    ]
}
