//! `short_convolution_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{optional, required},
    short_convolution::{self as forward, Reference, Setting, Uploaded},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_nn::short_convolution::{Adjoints, BackwardPlan, Gradients, Shape, Window};
use lookback_reference::short_convolution::backward;

/// The gradient of the convolution by all its inputs.
pub static SHORT_CONVOLUTION_BACKWARD: Operation = Operation {
    name: "short_convolution_backward",
    about: "the gradient of short_convolution by x, weight, bias and state",
    inputs: &[
        required("x", "T", "[B,T,C]", "tokens"),
        forward::WEIGHT,
        forward::BIAS,
        forward::FLAGS,
        super::gated_scan::CU_SEQLENS,
        forward::STATE,
        required("dout", "T", "[B,T,C]", "adjoint of out"),
        optional("dstate_out", "T", "[N,X,C]", "adjoint of state_out"),
    ],
    attributes: forward::ATTRIBUTES,
    outputs: &[
        required("dx", "T", "[B,T,C]", ""),
        required("dweight", "f32", "[C,W]", ""),
        required("dbias", "f32", "[C]", ""),
        optional("dstate", "T", "[N,X,C]", "causal: whether the state was given or not"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let Setting { shape, options } = Setting::of::<T>(inputs)?;
    let plan = BackwardPlan::dense(&shape, &options, &session.info)?;
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let weight = session.upload(&inputs.tensor("weight")?.as_elements::<T>())?;
    let dout = session.upload(&inputs.tensor("dout")?.as_elements::<T>())?;
    let dlast = inputs.optional("dstate_out").map(|t| session.upload(&t.as_elements::<T>())).transpose()?;
    let others = Uploaded::<T>::of(session, inputs)?;
    let Shape { batch, tokens, channels, taps, window, .. } = shape;
    let states = [shape.sequences(), taps - 1, channels];
    let mut dx = session.zeros::<T>(batch * tokens * channels)?;
    let mut dweight = session.zeros::<f32>(channels * taps)?;
    let mut dbias = session.zeros::<f32>(channels)?;
    let mut dstate = session.zeros::<T>(states.iter().product())?;
    let mut workspace = session.zeros::<f32>(plan.workspace_bytes() as usize / 4)?;
    let adjoints = Adjoints { dout: &dout, dstate_out: dlast.as_ref().map(|d| d as &dyn DevicePtr<T>) };
    let gradients = Gradients {
        dx: &mut dx,
        dweight: Some(&mut dweight),
        dbias: Some(&mut dbias),
        dstate: if window == Window::Causal { Some(&mut dstate) } else { None },
    };
    plan.run(&session.stream, &x, &weight, others.inputs(), adjoints, gradients, &mut workspace)?;
    let mut outputs = Tensors::from([
        ("dx".into(), Tensor::elements(&[batch, tokens, channels], &session.download::<T>(&dx)?)),
        ("dweight".into(), Tensor::elements(&[channels, taps], &session.download::<f32>(&dweight)?)),
        ("dbias".into(), Tensor::elements(&[channels], &session.download::<f32>(&dbias)?)),
    ]);
    if window == Window::Causal {
        outputs.insert("dstate".into(), Tensor::elements(&states, &session.download::<T>(&dstate)?));
    }
    Ok(outputs)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let [x, weight, dout] = ["x", "weight", "dout"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let reference = Reference::of(inputs);
    let dlast = inputs.values("dstate_out");
    let found = backward(&reference.conv(inputs)?, &x?, &weight?, &dout?, dlast.as_deref());
    Ok(Values::from([
        ("dx".into(), found.dx),
        ("dweight".into(), found.dweight),
        ("dbias".into(), found.dbias),
        ("dstate".into(), found.dstate),
    ]))
}

/// The forward pass's, with adjoints.
fn cases(dtype: DType) -> Vec<Case> {
    let mut cases = forward::cases(dtype);
    for case in &mut cases {
        let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
        let dout = case.tensors.get("x").map(|x| floats(5.0, &x.shape));
        case.tensors.extend(dout.map(|d| ("dout".into(), d)));
        let dlast = case.tensors.get("state").map(|state| floats(6.0, &state.shape));
        case.tensors.extend(dlast.map(|d| ("dstate_out".into(), d)));
    }
    cases
}
