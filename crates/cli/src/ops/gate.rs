//! `gate`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::{Activation, gate};
use lookback_reference::{self as reference, activation::Activation as ReferenceActivation};

/// `out = act(x) y`.
pub static GATE: Operation = Operation {
    name: "gate",
    about: "out = act(x) y",
    inputs: &[required("x", "T", "[R,W]", "gate before its activation"), required("y", "T", "[R,W]", "gated values")],
    attributes: &[ACTIVATION],
    outputs: &[required("out", "T", "[R,W]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// The attribute that names a pointwise function.
pub const ACTIVATION: AttributeSpec = AttributeSpec {
    name: "activation",
    values: "none|gelu|silu|sigmoid|relu|gelu_erf",
    default: "none",
    about: "pointwise function; gelu is the tanh form, gelu_erf the exact one",
};

/// The pointwise function that the attribute names.
pub fn activation(inputs: &Inputs) -> Result<Activation> {
    let choices = [
        ("none", Activation::None),
        ("gelu", Activation::Gelu),
        ("silu", Activation::Silu),
        ("sigmoid", Activation::Sigmoid),
        ("relu", Activation::Relu),
        ("gelu_erf", Activation::GeluErf),
    ];
    inputs.choose("activation", &choices)
}

/// The same function of the reference.
pub fn reference_activation(inputs: &Inputs) -> Result<ReferenceActivation> {
    Ok(match activation(inputs)? {
        Activation::None => ReferenceActivation::None,
        Activation::Gelu => ReferenceActivation::Gelu,
        Activation::Silu => ReferenceActivation::Silu,
        Activation::Sigmoid => ReferenceActivation::Sigmoid,
        Activation::Relu => ReferenceActivation::Relu,
        Activation::GeluErf => ReferenceActivation::GeluErf,
    })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let y = session.upload(&inputs.tensor("y")?.as_elements::<T>())?;
    let out = gate::gate(&session.stream, &x, &y, (rows, width), activation(inputs)?)?;
    let out = Tensor::elements(&[rows, width], &session.download::<T>(&out)?);
    Ok(Tensors::from([("out".into(), out)]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (x, y) = (inputs.tensor("x")?.to_f64(), inputs.tensor("y")?.to_f64());
    Ok(Values::from([("out".into(), reference::gate::forward(&x, &y, reference_activation(inputs)?))]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |activation: &str, shape: [usize; 2]| Case {
        name: format!("{activation} {}x{}", shape[0], shape[1]),
        tensors: Tensors::from([
            ("x".into(), Tensor::floats(dtype, &shape, &wave(1.0, shape[0] * shape[1]))),
            ("y".into(), Tensor::floats(dtype, &shape, &wave(2.0, shape[0] * shape[1]))),
        ]),
        attributes: vec![format!("activation={activation}")],
    };
    ["none", "gelu", "silu", "sigmoid", "relu", "gelu_erf"]
        .iter()
        .map(|a| case(a, [5, 67]))
        .chain([case("gelu", [8, 256])])
        .collect()
}
