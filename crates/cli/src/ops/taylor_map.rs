//! `taylor_map`.

use super::{Case, Inputs, Operation, Values, for_dtype, inputs::required, wave};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::taylor_map::{FEATURES, Plan, Shape};
use lookback_reference as reference;

/// Second-order Taylor features.
pub static TAYLOR_MAP: Operation = Operation {
    name: "taylor_map",
    about: "features of each head whose inner product is 1 + s + s^2 / 2, s = x . x' / sqrt K",
    inputs: &[required("x", "T", "[R,H,K]", "rows of heads of 1 to 16 entries")],
    attributes: &[],
    outputs: &[required("out", "T", "[R,H,F]", "F = 153 features: 1, the entries, their products")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [rows, heads, dim] = ['R', 'H', 'K'].map(|letter| inputs.extent(letter));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let plan = Plan::new(&Shape::dense(rows, heads, dim), T::DTYPE, &session.info)?;
    let mut out = session.zeros::<T>(rows * heads * FEATURES)?;
    plan.run(&session.stream, &x, &mut out)?;
    Ok(Tensors::from([("out".into(), Tensor::elements(&[rows, heads, FEATURES], &session.download::<T>(&out)?))]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let features = reference::jrt::features(&inputs.tensor("x")?.to_f64(), inputs.extent('K').max(1));
    Ok(Values::from([("out".into(), features)]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(17, 2, 16), (5, 3, 7)]
        .map(|(rows, heads, dim)| Case {
            name: format!("{rows}x{heads}x{dim}"),
            tensors: Tensors::from([(
                "x".into(),
                Tensor::floats(dtype, &[rows, heads, dim], &wave(1.0, rows * heads * dim)),
            )]),
            attributes: Vec::new(),
        })
        .into()
}
