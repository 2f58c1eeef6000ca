//! `attention_backward`.

use super::{
    super::{
        Case, Inputs, Operation, Values, for_dtype,
        inputs::{AttributeSpec, TensorSpec, optional, required},
        wave,
    },
    INPUTS, LEFT, MASK, OFFSET, RIGHT, SCALE, SINK_TOKENS, SOFTCAP, cases,
    setting::{Reference, Setting, Uploaded},
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_attention::{
    Options, Output, attention, attention_backward,
    backward::{Adjoint, BackwardInputs, BackwardOptions, Final, Gradient, Rows},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_reference::attention as reference;

/// Those of the forward pass, and the gradients of its outputs.
const GIVEN: [TensorSpec; 12] = {
    let mut all = [required("do", "T", "[B,T,H,V]", "gradient of o"); 12];
    let mut i = 0;
    while i < INPUTS.len() {
        all[i] = INPUTS[i];
        i += 1;
    }
    all[11] = optional("dlse", "f32", "[B,T,H]", "gradient of lse");
    all
};
/// Whether gradients are the same in every run.
pub const DETERMINISTIC: AttributeSpec = AttributeSpec {
    name: "deterministic",
    values: "true|false",
    default: "true",
    about: "whether dq is summed in a fixed order, by a second kernel",
};
/// Type of the gradients.
pub const OUT: AttributeSpec =
    AttributeSpec { name: "out", values: "same|f32", default: "same", about: "type of dq, dk and dv" };

/// The gradient of `attention` by its inputs.
pub static ATTENTION_BACKWARD: Operation = Operation {
    name: "attention_backward",
    about: "the gradient of attention by q, k, v and sink: dv = p^T do, ds = p (do v^T - rowsum(do o) + dlse), dq = scale ds k, dk = scale ds^T q",
    inputs: &GIVEN,
    attributes: &[MASK, LEFT, RIGHT, SINK_TOKENS, OFFSET, SCALE, SOFTCAP, DETERMINISTIC, OUT],
    outputs: &[
        required("dq", "T", "[B,T,H,D]", "f32 with out=f32"),
        required("dk", "T", "[B,S,G,D]", "likewise; 0 where no query sees a key"),
        required("dv", "T", "[B,S,G,V]", "likewise"),
        optional("dsink", "f32", "[H]", "with a sink"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: |dtype| cases(dtype).into_iter().enumerate().flat_map(|(i, case)| backward_cases(dtype, i, case)).collect(),
};

/// The forward pass runs first, for `o` in f32 and `lse`.
fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    match inputs.choose("out", &[("same", Gradient::Same), ("f32", Gradient::F32)])? {
        Gradient::F32 => run_into::<T, f32>(session, inputs, Gradient::F32),
        gradient => run_into::<T, T>(session, inputs, gradient),
    }
}

fn run_into<T: Element, G: Element>(session: &Session, inputs: &Inputs, gradient: Gradient) -> Result<Tensors> {
    let setting = Setting::of::<T>(inputs)?;
    let shape = &setting.shape;
    let options = Options { output: Output::F32, ..setting.options };
    let tensors = Uploaded::<T>::new(session, inputs, &setting)?;
    let forward = attention::<T, f32>(&session.stream, shape, &options, &tensors.inputs())?;
    let d_o = session.upload(&inputs.tensor("do")?.as_elements::<T>())?;
    let d_lse = inputs.optional("dlse").map(|d| session.upload(&d.as_elements::<f32>())).transpose()?;
    let d_lse = d_lse.as_ref().map(|d| d as &dyn DevicePtr<f32>);
    let rows = Rows::Final(Final { o: &forward.o, lse: &forward.lse, d_lse });
    let given = BackwardInputs { inputs: tensors.inputs(), adjoint: Adjoint { d_o: &d_o, rows } };
    let options =
        BackwardOptions { deterministic: inputs.parse("deterministic")?, gradient, ..BackwardOptions::new(options) };
    let out = attention_backward::<T, f32, G>(&session.stream, shape, &options, &given)?;
    let [b, t, h, _] = setting.output();
    let (s, g, d, v) = (shape.key_len, shape.key_heads, shape.head_dim, shape.value_dim);
    let mut found = Tensors::from([
        ("dq".into(), Tensor::elements(&[b, t, h, d], &session.download::<G>(&out.dq)?)),
        ("dk".into(), Tensor::elements(&[b, s, g, d], &session.download::<G>(&out.dk)?)),
        ("dv".into(), Tensor::elements(&[b, s, g, v], &session.download::<G>(&out.dv)?)),
    ]);
    if let Some(d_sink) = &out.d_sink {
        found.insert("dsink".into(), Tensor::elements(&[h], &session.download::<f32>(d_sink)?));
    }
    Ok(found)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let of = Reference::new(inputs)?;
    let (attention, tensors) = (of.attention(), of.inputs());
    let forward = reference::forward(&attention, &tensors);
    let d_o = inputs.tensor("do")?.to_f64();
    let d_lse = inputs.values("dlse");
    let delta = reference::delta(&forward.o, &d_o, d_lse.as_deref(), attention.value_dim);
    let adjoint = reference::Adjoint { d_o: &d_o, lse: &forward.lse, delta: &delta };
    let found = reference::backward(&attention, &tensors, &adjoint);
    let mut values = Values::from([("dq".into(), found.dq), ("dk".into(), found.dk), ("dv".into(), found.dv)]);
    if attention.sink.is_some() {
        values.insert("dsink".into(), found.dsink);
    }
    Ok(values)
}

/// The forward's case with gradients of its outputs, of `lse` in every other one; the third also by adding.
fn backward_cases(dtype: DType, number: usize, mut case: Case) -> Vec<Case> {
    let rows = case.tensors.get("q").map(|q| q.shape.clone()).unwrap_or_default();
    let width = case.tensors.get("v").and_then(|v| v.shape.last().copied()).unwrap_or_default();
    let [b, t, h] = [0, 1, 2].map(|i| rows.get(i).copied().unwrap_or_default());
    case.tensors.insert("do".into(), Tensor::floats(dtype, &[b, t, h, width], &wave(6.0, b * t * h * width)));
    if number.is_multiple_of(2) {
        case.tensors.insert("dlse".into(), Tensor::floats(DType::F32, &[b, t, h], &wave(7.0, b * t * h)));
    }
    if number % 3 != 2 {
        return vec![case];
    }
    let mut attributes = case.attributes.clone();
    attributes.push("deterministic=false".into());
    let adding = Case { name: format!("{}, adding", case.name), tensors: case.tensors.clone(), attributes };
    vec![case, adding]
}
