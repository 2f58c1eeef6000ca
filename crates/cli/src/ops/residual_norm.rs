//! `residual_norm`.

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
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_nn::residual_norm::{self as norm, Options, Plan, Shape};
use lookback_reference as reference;

/// A residual sum in f32 and its norm.
pub static RESIDUAL_NORM: Operation = Operation {
    name: "residual_norm",
    about: "s = residual + x, out = norm(s) weight + bias, row by row; sum = s, or the normed row with post=true",
    inputs: &[
        required("x", "T", "[R,W]", "rows"),
        optional("residual", "f32", "[R,W]", "what x is added to, 0 without it"),
        optional("weight", "f32", "[W]", "scale of each column, 1 without it"),
        optional("bias", "f32", "[W]", "added to each column, 0 without it"),
    ],
    attributes: ATTRIBUTES,
    outputs: &[required("out", "T", "[R,W]", ""), required("sum", "f32", "[R,W]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Attributes of the norm and of its gradient.
pub const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec { name: "eps", values: "a number", default: "1e-5", about: "added to the mean square" },
    AttributeSpec { name: "center", values: "true|false", default: "false", about: "layer norm: the mean goes first" },
    AttributeSpec { name: "post", values: "true|false", default: "false", about: "sum is the normed row" },
];

/// The norm that the attributes ask for.
pub fn options(inputs: &Inputs, dtype: DType) -> Result<Options> {
    let switch = [("true", true), ("false", false)];
    Ok(Options {
        dtype,
        eps: inputs.number("eps", 0.0)?,
        center: inputs.choose("center", &switch)?,
        post: inputs.choose("post", &switch)?,
    })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let wide = |name| inputs.optional(name).map(|p| session.upload(&p.as_elements::<f32>())).transpose();
    let (residual, weight, bias) = (wide("residual")?, wide("weight")?, wide("bias")?);
    let plan = Plan::new(&Shape::dense(rows, width), &options(inputs, T::DTYPE)?, &session.info)?;
    let (mut out, mut sum) = (session.zeros::<T>(rows * width)?, session.zeros::<f32>(rows * width)?);
    let read = norm::Inputs { residual: there(&residual), x: Some(&x), weight: there(&weight), bias: there(&bias) };
    plan.run(&session.stream, read, Some(&mut sum), Some(&mut out))?;
    Ok(Tensors::from([
        ("out".into(), Tensor::elements(&[rows, width], &session.download::<T>(&out)?)),
        ("sum".into(), Tensor::elements(&[rows, width], &session.download::<f32>(&sum)?)),
    ]))
}

/// A tensor that may be absent.
pub fn there(slice: &Option<CudaSlice<f32>>) -> Option<&dyn DevicePtr<f32>> {
    slice.as_ref().map(|slice| slice as _)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let Options { eps, center, post, .. } = options(inputs, inputs.dtype)?;
    let (weight, bias) = (inputs.values("weight"), inputs.values("bias"));
    let mut sum = inputs.tensor("x")?.to_f64();
    if let Some(residual) = inputs.values("residual") {
        reference::layers::add(&mut sum, &residual);
    }
    let norm = reference::residual_norm::Norm {
        width: inputs.extent('W'),
        weight: weight.as_deref(),
        bias: bias.as_deref(),
        eps: f64::from(eps),
        center,
    };
    let out = reference::residual_norm::forward(&norm, &sum);
    let sum = if post { out.clone() } else { sum };
    Ok(Values::from([("out".into(), out), ("sum".into(), sum)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |rows: usize, width: usize, attributes: &[&str]| {
        let wide =
            |phase: f64, shape: &[usize]| Tensor::floats(DType::F32, shape, &wave(phase, shape.iter().product()));
        Case {
            name: format!("{rows}x{width}"),
            tensors: Tensors::from([
                ("x".into(), Tensor::floats(dtype, &[rows, width], &wave(1.0, rows * width))),
                ("residual".into(), wide(2.0, &[rows, width])),
                ("weight".into(), wide(3.0, &[width])),
                ("bias".into(), wide(4.0, &[width])),
            ]),
            attributes: attributes.iter().map(|a| a.to_string()).collect(),
        }
    };
    vec![case(3, 65, &[]), case(5, 256, &["center=true", "post=true"]), case(2, 1032, &["center=true"])]
}
