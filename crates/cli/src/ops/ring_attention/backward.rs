//! `ring_attention_backward`.

use super::{
    super::{
        Case, Inputs, Operation, Values,
        attention::{
            LEFT, RIGHT, SCALE, SINK_TOKENS, SOFTCAP,
            backward::{DETERMINISTIC, OUT},
        },
        for_dtype,
        inputs::{TensorSpec, optional, required},
        ranks::{Group, Rank, TIMEOUT, TRANSPORT, bytes},
        wave,
    },
    GROUPS, INPUTS, MASKS, NODE, PARTITION, RANKS, SCHEDULE, cases,
    gather::{Output, gather},
    job::{Job, Setting},
    tensors,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_reference::attention as reference;
use lookback_ring::{
    attention::{
        BackwardInputs, BackwardOptions, BackwardPlan, Gradients, Inputs as RingInputs, Options, Outputs, Plan, Shape,
    },
    schedule::Pass,
};

/// Those of the forward pass, and the gradients of its outputs.
const GIVEN: [TensorSpec; 7] = {
    let [q, k, v, cu_seqlens, prefix_len] = INPUTS;
    let d_o = required("do", "T", "[B,T,H,V]", "gradient of o");
    [q, k, v, cu_seqlens, prefix_len, d_o, optional("dlse", "f32", "[B,T,H]", "gradient of lse")]
};

/// The gradient of `ring_attention` by its inputs.
pub static RING_ATTENTION_BACKWARD: Operation = Operation {
    name: "ring_attention_backward",
    about: "the gradient of ring_attention by q, k and v, as of the whole; runs it first, for o in f32 and lse",
    inputs: &GIVEN,
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
        DETERMINISTIC,
        OUT,
    ],
    outputs: &[
        required("dq", "T", "[B,T,H,D]", "f32 with out=f32"),
        required("dk", "T", "[B,T,G,D]", "likewise; 0 where no token sees a key"),
        required("dv", "T", "[B,T,G,V]", "likewise"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: |dtype| cases(dtype).into_iter().enumerate().map(|(i, case)| with_gradients(dtype, i, case)).collect(),
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    match inputs.choose("out", &[("same", T::DTYPE), ("f32", DType::F32)])? {
        DType::F32 => run_into::<T, f32>(session, inputs),
        _ => run_into::<T, T>(session, inputs),
    }
}

/// Both passes take one schedule: the one that is best for the longer, backward one.
fn run_into<T: Element, G: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [q, k, v] = tensors::<T>(inputs)?;
    let d_o = inputs.tensor("do")?.as_elements::<T>();
    let d_lse = inputs.optional("dlse").map(Tensor::as_elements::<f32>);
    let group = Group::of(inputs)?;
    let job = Job::of(inputs, T::DTYPE, &group, Pass::Backward)?;
    let Shape { batch, heads, key_heads, head_dim, value_dim } = job.shape;
    let attention = Options { output: DType::F32, ..job.options };
    let options = BackwardOptions {
        deterministic: inputs.parse("deterministic")?,
        gradient: G::DTYPE,
        ..BackwardOptions::new(attention)
    };
    let outputs = [("dq", heads, head_dim), ("dk", key_heads, head_dim), ("dv", key_heads, value_dim)];
    let outputs = outputs.map(|(name, heads, width)| Output::new(name, G::DTYPE, &[heads, width]));
    gather(session, &group, &job, &outputs, |Rank { session, rank, transport }| {
        let (stream, info) = (&session.stream, &session.info);
        let plan = Plan::new(&job.shape, &attention, &job.layout, &job.visible, rank, info)?;
        let back = BackwardPlan::new(&job.shape, &options, &job.layout, &job.visible, rank, info)?;
        let mut workspace = plan.workspace(stream)?;
        let q = session.upload(&job.part(rank, &q, heads * head_dim))?;
        let k = session.upload(&job.part(rank, &k, key_heads * head_dim))?;
        let v = session.upload(&job.part(rank, &v, key_heads * value_dim))?;
        let tokens = batch * plan.tokens();
        let mut o = session.zeros::<f32>(tokens * heads * value_dim)?;
        let mut lse = session.zeros::<f32>(tokens * heads)?;
        let outputs = Outputs { o: &mut o, lse: &mut lse };
        plan.run(stream, &RingInputs { q: &q, k: &k, v: &v }, outputs, &mut workspace, transport)?;
        drop(workspace);
        let mut workspace = back.workspace(stream)?;
        let d_o = session.upload(&job.part(rank, &d_o, heads * value_dim))?;
        let d_lse = d_lse.as_ref().map(|d| session.upload(&job.part(rank, d, heads))).transpose()?;
        let d_lse = d_lse.as_ref().map(|d| d as &dyn DevicePtr<f32>);
        let mut dq = session.zeros::<G>(tokens * heads * head_dim)?;
        let mut dk = session.zeros::<G>(tokens * key_heads * head_dim)?;
        let mut dv = session.zeros::<G>(tokens * key_heads * value_dim)?;
        let given = BackwardInputs { q: &q, k: &k, v: &v, o: &o, lse: &lse, d_o: &d_o, d_lse };
        let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        back.run::<T, f32, G>(stream, &given, gradients, &mut workspace, transport)?;
        let downloaded = [session.download::<G>(&dq)?, session.download::<G>(&dk)?, session.download::<G>(&dv)?];
        Ok(downloaded.iter().map(|gradient| bytes(gradient)).collect())
    })
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    Setting::of(inputs, inputs.dtype)?.reference(inputs, |attention, tensors| {
        let forward = reference::forward(attention, tensors);
        let d_o = inputs.tensor("do")?.to_f64();
        let delta = reference::delta(&forward.o, &d_o, inputs.values("dlse").as_deref(), attention.value_dim);
        let adjoint = reference::Adjoint { d_o: &d_o, lse: &forward.lse, delta: &delta };
        let found = reference::backward(attention, tensors, &adjoint);
        Ok(Values::from([("dq".into(), found.dq), ("dk".into(), found.dk), ("dv".into(), found.dv)]))
    })
}

/// The forward's case with gradients of its outputs, of `lse` in every other one.
fn with_gradients(dtype: DType, number: usize, mut case: Case) -> Case {
    let rows = case.tensors.get("q").map(|q| q.shape.clone()).unwrap_or_default();
    let width = case.tensors.get("v").and_then(|v| v.shape.last().copied()).unwrap_or_default();
    let [b, t, h] = [0, 1, 2].map(|i| rows.get(i).copied().unwrap_or_default());
    case.tensors.insert("do".into(), Tensor::floats(dtype, &[b, t, h, width], &wave(6.0, b * t * h * width)));
    if number.is_multiple_of(2) {
        case.tensors.insert("dlse".into(), Tensor::floats(DType::F32, &[b, t, h], &wave(7.0, b * t * h)));
    }
    case
}
