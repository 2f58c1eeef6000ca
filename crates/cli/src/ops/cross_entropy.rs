//! `cross_entropy`.

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
use lookback_nn::cross_entropy::{Options, Outputs, Plan, Shape};
use lookback_reference as reference;

/// Loss of each row, and its gradient.
pub static CROSS_ENTROPY: Operation = Operation {
    name: "cross_entropy",
    about: "loss[r] = log sum exp(logits[r]) - logits[r, labels[r]], and its gradient",
    inputs: &[
        required("logits", "T", "[R,W]", "a row of scores each"),
        required("labels", "i32", "[R]", "class of each row; -100 is ignored"),
    ],
    attributes: &[AttributeSpec { name: "scale", values: "a number", default: "1", about: "factor of the gradient" }],
    outputs: &[
        required("loss", "f32", "[R]", "0 for ignored rows"),
        required("lse", "f32", "[R]", "log sum exp, natural"),
        required("dlogits", "T", "[R,W]", "scale (softmax - one hot)"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, classes) = (inputs.extent('R'), inputs.extent('W'));
    let labels = inputs.tensor("labels")?.as_indices();
    if let Some(at) = labels.iter().position(|l| *l != -100 && !(0..classes as i64).contains(&i64::from(*l))) {
        return Err(inputs.wrong("labels", format!("[{at}] = {}, want 0..={} or -100", labels[at], classes as i64 - 1)));
    }
    let logits = session.upload(&inputs.tensor("logits")?.as_elements::<T>())?;
    let labels = session.upload(&labels)?;
    let options = Options { dtype: T::DTYPE, scale: inputs.number("scale", f32::MIN)? };
    let plan = Plan::new(&Shape::dense(rows, classes), &options, &session.info)?;
    let (mut loss, mut lse) = (session.zeros::<f32>(rows)?, session.zeros::<f32>(rows)?);
    let mut dlogits = session.zeros::<T>(rows * classes)?;
    let outputs = Outputs { lse: Some(&mut lse), dlogits: Some(&mut dlogits), fault: None };
    plan.run(&session.stream, &logits, &labels, &mut loss, outputs)?;
    Ok(Tensors::from([
        ("loss".into(), Tensor::elements(&[rows], &session.download::<f32>(&loss)?)),
        ("lse".into(), Tensor::elements(&[rows], &session.download::<f32>(&lse)?)),
        ("dlogits".into(), Tensor::elements(&[rows, classes], &session.download::<T>(&dlogits)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (logits, labels) = (inputs.tensor("logits")?.to_f64(), inputs.tensor("labels")?.as_indices());
    let scale = f64::from(inputs.number("scale", f32::MIN)?);
    let r = reference::cross_entropy::forward(&logits, inputs.extent('W'), &labels, scale);
    Ok(Values::from([("loss".into(), r.loss), ("lse".into(), r.lse), ("dlogits".into(), r.dlogits)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(6, 10), (3, 777)]
        .map(|(rows, classes)| {
            let logits: Vec<f64> = wave(1.0, rows * classes).iter().map(|v| 6.0 * v).collect();
            let labels: Vec<i32> = (0..rows).map(|r| if r == 2 { -100 } else { (r * 7 % classes) as i32 }).collect();
            Case {
                name: format!("{rows}x{classes}"),
                tensors: Tensors::from([
                    ("logits".into(), Tensor::floats(dtype, &[rows, classes], &logits)),
                    ("labels".into(), Tensor::indices(&[rows], &labels)),
                ]),
                attributes: vec!["scale=0.5".into()],
            }
        })
        .into()
}
