//! `flow_attention` and `flow_attention_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_linear::{
    check,
    flow::{self, BackwardOutputs, BackwardPlan, Options, Plan, Shape},
};
use lookback_reference::flow_attention::{self as reference, Flow};

const Q: TensorSpec = required("q", "T", "[B,L,H,K]", "queries, before the sigmoid");
const K: TensorSpec = required("k", "T", "[B,S,H,K]", "keys, before the sigmoid; causal: S is L");
const V: TensorSpec = required("v", "T", "[B,S,H,V]", "values");
const CU_SEQLENS: TensorSpec =
    optional("cu_seqlens", "i32", "[N+1]", "starts of packed queries and their end; B must be 1");
const CU_SEQLENS_K: TensorSpec =
    optional("cu_seqlens_k", "i32", "[N+1]", "starts of packed keys, not causal; those of queries without");
const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec { name: "causal", values: "true|false", default: "false", about: "a query sees keys up to its own" },
    AttributeSpec {
        name: "clamp",
        values: "none, or a number above 0",
        default: "1",
        about: "bound of the flow out of a key, before the softmax",
    },
    AttributeSpec {
        name: "extra_eps",
        values: "a number from 0",
        default: "0",
        about: "added to every product, besides the 1e-6 in its factors",
    },
    AttributeSpec {
        name: "mapped",
        values: "true|false",
        default: "false",
        about: "q and k are positive already, and come without the sigmoid",
    },
];

/// Linear attention that conserves flow.
pub static FLOW_ATTENTION: Operation = Operation {
    name: "flow_attention",
    about: "Flow-Attention: linear attention with allocation and competition by conserved flow, causal or not",
    inputs: &[Q, K, V, CU_SEQLENS, CU_SEQLENS_K],
    attributes: ATTRIBUTES,
    outputs: &[required("out", "T", "[B,L,H,V]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: |dtype| cases(dtype, false),
};

/// Its gradients.
pub static FLOW_ATTENTION_BACKWARD: Operation = Operation {
    name: "flow_attention_backward",
    about: "gradients of flow_attention",
    inputs: &[Q, K, V, CU_SEQLENS, CU_SEQLENS_K, required("dout", "T", "[B,L,H,V]", "adjoint of out")],
    attributes: ATTRIBUTES,
    outputs: &[
        required("dq", "T", "[B,L,H,K]", ""),
        required("dk", "T", "[B,S,H,K]", ""),
        required("dv", "T", "[B,S,H,V]", ""),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run_backward(session, inputs)),
    oracle: oracle_backward,
    // Gradients of 16-bit tensors are held to 2e-2, which is not the gate of an output; the tests do that.
    cases: |dtype| if dtype == DType::F32 { cases(dtype, true) } else { Vec::new() },
};

/// Shape and options of the user's tensors.
fn setting<T: Element>(inputs: &Inputs) -> Result<(Shape, Options)> {
    let [batch, queries, keys, heads, key_dim, value_dim] =
        ['B', 'L', 'S', 'H', 'K', 'V'].map(|letter| inputs.extent(letter));
    let causal = inputs.parse("causal")?;
    if causal && queries != keys {
        return Err(inputs.wrong("k", format!("must have L = {queries} tokens with causal=true, got {keys}")));
    }
    for (name, total) in [("cu_seqlens", queries), ("cu_seqlens_k", keys)] {
        let Some(starts) = inputs.optional(name) else { continue };
        if batch != 1 {
            return Err(inputs.wrong(name, format!("wants one row of packed sequences, got B = {batch}")));
        }
        if name == "cu_seqlens_k" && (causal || inputs.optional("cu_seqlens").is_none()) {
            return Err(inputs.wrong(name, "goes with cu_seqlens and causal=false".into()));
        }
        check::cu_seqlens(&starts.as_indices(), total)?;
    }
    if let (Some(starts), None) = (inputs.optional("cu_seqlens"), inputs.optional("cu_seqlens_k")) {
        check::cu_seqlens(&starts.as_indices(), keys)?;
    }
    let packed = inputs.optional("cu_seqlens").map(|starts| starts.len() - 1);
    let shape = Shape { causal, packed, ..Shape::normal(batch, [queries, keys], heads, key_dim, value_dim) };
    let clamp = if inputs.attribute("clamp") == "none" { None } else { Some(inputs.number("clamp", f32::MIN)?) };
    if clamp.is_some_and(|c| c <= 0.0) {
        return Err(inputs.wrong("clamp", format!("must be none, or above 0, got `{}`", inputs.attribute("clamp"))));
    }
    let (extra_eps, mapped) = (inputs.number("extra_eps", 0.0)?, inputs.parse("mapped")?);
    Ok((shape, Options { clamp, extra_eps, mapped, ..Options::new::<T>() }))
}

/// The inputs on the device.
struct Uploaded<T> {
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    v: CudaSlice<T>,
    starts: Option<CudaSlice<i32>>,
    key_starts: Option<CudaSlice<i32>>,
}

impl<T: Element> Uploaded<T> {
    fn new(session: &Session, inputs: &Inputs) -> Result<Self> {
        let floats = |name| session.upload(&inputs.tensor(name)?.as_elements::<T>());
        let starts = |name| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
        let (q, k, v) = (floats("q")?, floats("k")?, floats("v")?);
        Ok(Self { q, k, v, starts: starts("cu_seqlens")?, key_starts: starts("cu_seqlens_k")? })
    }

    fn inputs(&self) -> flow::Inputs<'_, T> {
        flow::Inputs {
            cu_seqlens: self.starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
            cu_seqlens_k: self.key_starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
            ..flow::Inputs::of(&self.q, &self.k, &self.v)
        }
    }
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = setting::<T>(inputs)?;
    let plan = Plan::new(&shape, &options, &session.info)?;
    let dims = [shape.batch, shape.queries, shape.heads, shape.value_dim];
    let mut out = session.zeros::<T>(dims.iter().product())?;
    let mut workspace = session.zeros::<u8>(plan.workspace_bytes() as usize)?;
    plan.run(&session.stream, &Uploaded::<T>::new(session, inputs)?.inputs(), &mut out, &mut workspace)?;
    Ok(Tensors::from([("out".into(), Tensor::elements(&dims, &session.download::<T>(&out)?))]))
}

fn run_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = setting::<T>(inputs)?;
    let plan = BackwardPlan::new(&shape, &options, &session.info)?;
    let dims = |tokens, width| [shape.batch, tokens, shape.heads, width];
    let all = [dims(shape.queries, shape.key_dim), dims(shape.keys, shape.key_dim), dims(shape.keys, shape.value_dim)];
    let gradient = |i: usize| session.zeros::<T>(all[i].iter().product());
    let (mut dq, mut dk, mut dv) = (gradient(0)?, gradient(1)?, gradient(2)?);
    let dout = session.upload(&inputs.tensor("dout")?.as_elements::<T>())?;
    let mut workspace = session.zeros::<u8>(plan.workspace_bytes() as usize)?;
    let tensors = Uploaded::<T>::new(session, inputs)?;
    let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    plan.run(&session.stream, &tensors.inputs(), &dout, outputs, &mut workspace)?;
    let mut out = Tensors::new();
    for ((name, gradient), dims) in [("dq", dq), ("dk", dk), ("dv", dv)].into_iter().zip(all) {
        out.insert(name.into(), Tensor::elements(&dims, &session.download::<T>(&gradient)?));
    }
    Ok(out)
}

/// Calls `with` with what the reference wants: the attention, `q`, `k` and `v`.
fn with_flow<R>(inputs: &Inputs, with: impl FnOnce(&Flow<'_>, [Vec<f64>; 3]) -> R) -> Result<R> {
    let (shape, options) = setting::<f32>(inputs)?;
    let starts = |name| inputs.optional(name).map(Tensor::as_indices);
    let (cu_seqlens, cu_seqlens_k) = (starts("cu_seqlens"), starts("cu_seqlens_k"));
    let flow = Flow {
        batch: shape.batch,
        heads: shape.heads,
        queries: shape.queries,
        keys: shape.keys,
        key_dim: shape.key_dim,
        value_dim: shape.value_dim,
        causal: shape.causal,
        clamp: options.clamp.map(f64::from),
        extra_eps: f64::from(options.extra_eps),
        mapped: options.mapped,
        cu_seqlens: cu_seqlens.as_deref(),
        cu_seqlens_k: cu_seqlens_k.as_deref(),
    };
    let values = |name| Ok::<_, crate::CliError>(inputs.tensor(name)?.to_f64());
    Ok(with(&flow, [values("q")?, values("k")?, values("v")?]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    with_flow(inputs, |flow, [q, k, v]| Values::from([("out".into(), reference::forward(flow, &q, &k, &v))]))
}

fn oracle_backward(inputs: &Inputs) -> Result<Values> {
    let dout = inputs.tensor("dout")?.to_f64();
    with_flow(inputs, |flow, [q, k, v]| {
        let out = reference::backward(flow, &q, &k, &v, &dout);
        Values::from([("dq".into(), out.dq), ("dk".into(), out.dk), ("dv".into(), out.dv)])
    })
}

/// Every published bound; in gradients none that a flow is near.
fn cases(dtype: DType, backward: bool) -> Vec<Case> {
    let case = |name: &str, [batch, queries, keys]: [usize; 3], set: &[&str], starts: Option<[&[i32]; 2]>| {
        let (heads, key_dim, value_dim) = (2, 24, 16);
        let floats = |phase, tokens: usize, width: usize| {
            let shape = [batch, tokens, heads, width];
            Tensor::floats(dtype, &shape, &wave(phase, shape.iter().product()))
        };
        let mut tensors = Tensors::from([
            ("q".into(), floats(1.0, queries, key_dim)),
            ("k".into(), floats(2.0, keys, key_dim)),
            ("v".into(), floats(3.0, keys, value_dim)),
        ]);
        if backward {
            tensors.insert("dout".into(), floats(5.0, queries, value_dim));
        }
        for (name, starts) in ["cu_seqlens", "cu_seqlens_k"].into_iter().zip(starts.into_iter().flatten()) {
            if !starts.is_empty() {
                tensors.insert(name.into(), Tensor::indices(&[starts.len()], starts));
            }
        }
        Case { name: name.into(), tensors, attributes: set.iter().map(|s| s.to_string()).collect() }
    };
    let bound = if backward { "clamp=1.1" } else { "clamp=1" };
    vec![
        case("causal", [2, 70, 70], &["causal=true", bound], None),
        case("causal, wide bound", [1, 33, 33], &["causal=true", "clamp=10"], None),
        case("causal, packed, no bound", [1, 40, 40], &["causal=true", "clamp=none"], Some([&[0, 9, 9, 40], &[]])),
        case("normal", [2, 33, 70], &[bound], None),
        case(
            "normal, packed, extra",
            [1, 30, 41],
            &["clamp=none", "extra_eps=1e-6"],
            Some([&[0, 9, 30], &[0, 25, 41]]),
        ),
    ]
}
