//! `residual_norm_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{optional, required},
    residual_norm::{ATTRIBUTES, options, there},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::residual_norm::{
    self as norm, BackwardInputs, BackwardOutputs, BackwardPlan, BackwardShape, Options, Plan, Shape,
};
use lookback_reference as reference;

/// Gradients of a residual sum's norm.
pub static RESIDUAL_NORM_BACKWARD: Operation = Operation {
    name: "residual_norm_backward",
    about: "gradients of residual_norm by its inputs, from those by its outputs",
    inputs: &[
        required("x", "T", "[R,W]", "rows"),
        optional("residual", "f32", "[R,W]", "what x is added to, 0 without it"),
        optional("weight", "f32", "[W]", "scale of each column, 1 without it"),
        optional("dout", "T", "[R,W]", "gradient of out, 0 without it"),
        optional("dsum", "f32", "[R,W]", "gradient of sum, 0 without it"),
    ],
    attributes: ATTRIBUTES,
    outputs: &[
        required("dx", "T", "[R,W]", ""),
        required("dresidual", "f32", "[R,W]", "the same unrounded"),
        required("dweight", "f32", "[W]", ""),
        required("dbias", "f32", "[W]", ""),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let options = options(inputs, T::DTYPE)?;
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let dout = inputs.optional("dout").map(|d| session.upload(&d.as_elements::<T>())).transpose()?;
    let wide = |name| inputs.optional(name).map(|p| session.upload(&p.as_elements::<f32>())).transpose();
    let (residual, weight, dsum) = (wide("residual")?, wide("weight")?, wide("dsum")?);
    // What was normed.
    let forward = Plan::new(&Shape::dense(rows, width), &Options { post: false, ..options }, &session.info)?;
    let mut s = session.zeros::<f32>(rows * width)?;
    let read = norm::Inputs { residual: there(&residual), x: Some(&x), ..norm::Inputs::default() };
    forward.run(&session.stream, read, Some(&mut s), None)?;
    let plan = BackwardPlan::new(&BackwardShape::dense(rows, width), &options, &session.info)?;
    let (mut dx, mut ds) = (session.zeros::<T>(rows * width)?, session.zeros::<f32>(rows * width)?);
    let (mut dweight, mut dbias) = (session.zeros::<f32>(width)?, session.zeros::<f32>(width)?);
    let mut workspace = session.zeros::<f32>(plan.workspace_bytes() as usize / 4)?;
    let read = BackwardInputs { dout: dout.as_ref().map(|d| d as _), dsum: there(&dsum), weight: there(&weight) };
    let written =
        BackwardOutputs { ds: Some(&mut ds), dx: Some(&mut dx), dweight: Some(&mut dweight), dbias: Some(&mut dbias) };
    plan.run(&session.stream, &s, read, written, &mut workspace)?;
    Ok(Tensors::from([
        ("dx".into(), Tensor::elements(&[rows, width], &session.download::<T>(&dx)?)),
        ("dresidual".into(), Tensor::elements(&[rows, width], &session.download::<f32>(&ds)?)),
        ("dweight".into(), Tensor::elements(&[width], &session.download::<f32>(&dweight)?)),
        ("dbias".into(), Tensor::elements(&[width], &session.download::<f32>(&dbias)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let Options { eps, center, post, .. } = options(inputs, inputs.dtype)?;
    let weight = inputs.values("weight");
    let mut s = inputs.tensor("x")?.to_f64();
    if let Some(residual) = inputs.values("residual") {
        reference::layers::add(&mut s, &residual);
    }
    let zeros = || vec![0.0; s.len()];
    let (mut through, mut past) =
        (inputs.values("dout").unwrap_or_else(zeros), inputs.values("dsum").unwrap_or_else(zeros));
    if post {
        reference::layers::add(&mut through, &past);
        past.fill(0.0);
    }
    let norm = reference::residual_norm::Norm {
        width: inputs.extent('W'),
        weight: weight.as_deref(),
        bias: None,
        eps: f64::from(eps),
        center,
    };
    let mut gradient = reference::residual_norm::backward(&norm, &s, &through);
    reference::layers::add(&mut gradient.ds, &past);
    Ok(Values::from([
        ("dx".into(), gradient.ds.clone()),
        ("dresidual".into(), gradient.ds),
        ("dweight".into(), gradient.dweight),
        ("dbias".into(), gradient.dbias),
    ]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |rows: usize, width: usize, attributes: &[&str]| {
        let wide =
            |phase: f64, shape: &[usize]| Tensor::floats(DType::F32, shape, &wave(phase, shape.iter().product()));
        let rounded = |phase: f64| Tensor::floats(dtype, &[rows, width], &wave(phase, rows * width));
        Case {
            name: format!("{rows}x{width} {}", attributes.join(" ")),
            tensors: Tensors::from([
                ("x".into(), rounded(1.0)),
                ("residual".into(), wide(2.0, &[rows, width])),
                ("weight".into(), wide(3.0, &[width])),
                ("dout".into(), rounded(4.0)),
                ("dsum".into(), wide(5.0, &[rows, width])),
            ]),
            attributes: attributes.iter().map(|a| a.to_string()).collect(),
        }
    };
    vec![case(3, 65, &[]), case(5, 384, &["center=true", "post=true"]), case(2, 1032, &["center=true"])]
}
