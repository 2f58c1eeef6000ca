//! `decay_gate`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_nn::decay_gate::{Options, Params, Plan, Shape};
use lookback_reference as reference;

const fn attribute(name: &'static str, default: &'static str, about: &'static str) -> AttributeSpec {
    AttributeSpec { name, values: "a number", default, about }
}

/// Steps and log-decays of a recurrence from a projection.
pub static DECAY_GATE: Operation = Operation {
    name: "decay_gate",
    about: "step = min(max(softplus(sign (x + bias)), lo), hi), g = rate step",
    inputs: &[
        required("x", "T", "[R,W]", "rows"),
        optional("bias", "f32", "[W]", "added to each column, 0 without it"),
        optional("rate", "f32", "[W]", "of each column; the attribute without it"),
    ],
    attributes: &[
        AttributeSpec { name: "sign", values: "1|-1", default: "1", about: "-1: step = -log sigmoid(x + bias)" },
        attribute("lo", "0", "least step"),
        attribute("hi", "inf", "greatest step"),
        AttributeSpec { name: "normalizer", values: "a number", default: "1", about: "rate = -1 / normalizer" },
    ],
    outputs: &[required("step", "f32", "[R,W]", ""), required("g", "f32", "[R,W]", "log-decay")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn options(inputs: &Inputs, dtype: DType) -> Result<Options> {
    Ok(Options {
        dtype,
        negated: inputs.choose("sign", &[("1", false), ("-1", true)])?,
        bounds: (inputs.number("lo", 0.0)?, inputs.parse("hi")?),
        rate: -1.0 / inputs.number("normalizer", 0.0)?,
    })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let param = |name| inputs.optional(name).map(|p| session.upload(&p.as_elements::<f32>())).transpose();
    let (bias, rate) = (param("bias")?, param("rate")?);
    let plan = Plan::new(&Shape::dense(rows, width), &options(inputs, T::DTYPE)?, &session.info)?;
    let (mut g, mut step) = (session.zeros::<f32>(rows * width)?, session.zeros::<f32>(rows * width)?);
    let params = Params {
        bias: bias.as_ref().map(|p| p as &dyn DevicePtr<f32>),
        rate: rate.as_ref().map(|p| p as &dyn DevicePtr<f32>),
    };
    plan.run(&session.stream, &x, params, &mut g, Some(&mut step))?;
    Ok(Tensors::from([
        ("step".into(), Tensor::elements(&[rows, width], &session.download::<f32>(&step)?)),
        ("g".into(), Tensor::elements(&[rows, width], &session.download::<f32>(&g)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let Options { negated, bounds, rate, .. } = options(inputs, inputs.dtype)?;
    let (bias, rates) = (inputs.values("bias"), inputs.values("rate"));
    let rates = rates.unwrap_or_else(|| vec![f64::from(rate); inputs.extent('W')]);
    let gate = reference::decay_gate::Gate {
        bias: bias.as_deref(),
        rate: &rates,
        sign: if negated { -1.0 } else { 1.0 },
        bounds: (f64::from(bounds.0), f64::from(bounds.1)),
    };
    let made = reference::decay_gate::forward(&gate, &inputs.tensor("x")?.to_f64());
    Ok(Values::from([("step".into(), made.step), ("g".into(), made.g)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |name: &str, rows: usize, width: usize, params: bool, attributes: &[&str]| {
        let x = Tensor::floats(dtype, &[rows, width], &wave(1.0, rows * width));
        let mut tensors = Tensors::from([("x".into(), x)]);
        if params {
            let rates: Vec<f64> = wave(3.0, width).iter().map(|v| v - 1.5).collect();
            tensors.insert("bias".into(), Tensor::floats(DType::F32, &[width], &wave(2.0, width)));
            tensors.insert("rate".into(), Tensor::floats(DType::F32, &[width], &rates));
        }
        Case { name: name.into(), tensors, attributes: attributes.iter().map(|a| a.to_string()).collect() }
    };
    vec![
        case("dt of 24 heads", 9, 24, true, &["lo=0.1", "hi=1.5"]),
        case("log sigmoid over 16", 5, 65, false, &["sign=-1", "normalizer=16"]),
    ]
}
