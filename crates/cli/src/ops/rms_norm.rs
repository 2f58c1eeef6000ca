//! `rms_norm`.

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
use lookback_device::{DType, Element};
use lookback_nn::{
    Param,
    rms_norm::{Options, Plan, Shape},
};
use lookback_reference as reference;

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
pub static RMS_NORM: Operation = Operation {
    name: "rms_norm",
    about: "out = x / sqrt(mean(x^2) + eps) * weight, row by row",
    inputs: &[
        required("x", "T", "[R,W]", "rows"),
        optional("weight", "T", "[W]", "scale of each column, 1 without it"),
    ],
    attributes: &[AttributeSpec {
        name: "eps",
        values: "a number",
        default: "1e-6",
        about: "added to the mean square",
    }],
    outputs: &[required("out", "T", "[R,W]", ""), required("rstd", "f32", "[R]", "1 / sqrt(mean(x^2) + eps)")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let weight = inputs.optional("weight").map(|w| session.upload(&w.as_elements::<T>())).transpose()?;
    let options = Options { dtype: T::DTYPE, eps: inputs.number("eps", 0.0)? };
    let plan = Plan::new(&Shape::dense(rows, width), &options, &session.info)?;
    let mut out = session.zeros::<T>(rows * width)?;
    let mut rstd = session.zeros::<f32>(rows)?;
    let weight = weight.as_ref().map_or(Param::None, |w| Param::Same(w));
    plan.run(&session.stream, &x, weight, &mut out, Some(&mut rstd))?;
    Ok(Tensors::from([
        ("out".into(), Tensor::elements(&[rows, width], &session.download::<T>(&out)?)),
        ("rstd".into(), Tensor::elements(&[rows], &session.download::<f32>(&rstd)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (x, weight) = (inputs.tensor("x")?.to_f64(), inputs.values("weight"));
    // The operation takes eps in f32.
    let eps = f64::from(inputs.number("eps", 0.0)?);
    let normed = reference::rms_norm::forward(&x, inputs.extent('W'), weight.as_deref(), eps);
    Ok(Values::from([("out".into(), normed.out), ("rstd".into(), normed.rstd)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(1, 1), (3, 65), (5, 256), (2, 1030)]
        .map(|(rows, width)| Case {
            name: format!("{rows}x{width}"),
            tensors: Tensors::from([
                ("x".into(), Tensor::floats(dtype, &[rows, width], &wave(1.0, rows * width))),
                ("weight".into(), Tensor::floats(dtype, &[width], &wave(2.0, width))),
            ]),
            attributes: vec!["eps=1e-5".into()],
        })
        .into()
}
