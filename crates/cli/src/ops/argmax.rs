//! `argmax`.

use super::{Case, Inputs, Operation, Values, for_dtype, inputs::required, wave};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::argmax::{Options, Plan, Shape};
use lookback_reference as reference;

/// Index of the largest element of each row.
pub static ARGMAX: Operation = Operation {
    name: "argmax",
    about: "index of the largest element of each row, the first of equals",
    inputs: &[required("x", "T", "[R,W]", "rows")],
    attributes: &[],
    outputs: &[required("out", "i32", "[R]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let plan = Plan::new(&Shape::dense(rows, width), &Options { dtype: T::DTYPE }, &session.info)?;
    let mut out = session.zeros::<i32>(rows)?;
    plan.run(&session.stream, &x, &mut out)?;
    Ok(Tensors::from([("out".into(), Tensor::indices(&[rows], &session.download::<i32>(&out)?))]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let indices = reference::argmax::forward(&inputs.tensor("x")?.to_f64(), inputs.extent('W'));
    Ok(Values::from([("out".into(), indices.into_iter().map(|i| i as f64).collect())]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(4, 10), (3, 1000)]
        .map(|(rows, width)| Case {
            name: format!("{rows}x{width}"),
            tensors: Tensors::from([("x".into(), Tensor::floats(dtype, &[rows, width], &wave(1.0, rows * width)))]),
            attributes: Vec::new(),
        })
        .into()
}
