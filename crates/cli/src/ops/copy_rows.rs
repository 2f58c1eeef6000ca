//! `copy_rows`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::copy_rows::{Options, Plan, Shape};
use lookback_reference as reference;

/// Rows copied, or added to others.
pub static COPY_ROWS: Operation = Operation {
    name: "copy_rows",
    about: "out = x, or old + x",
    inputs: &[required("x", "T", "[B,T,H,D]", "rows"), optional("old", "T", "[B,T,H,D]", "what they are added to")],
    attributes: &[],
    outputs: &[required("out", "T", "[B,T,H,D]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle: |inputs| {
        let x = inputs.tensor("x")?.to_f64();
        let out = reference::copy_rows::forward(&x, inputs.values("old").as_deref());
        Ok(Values::from([("out".into(), out)]))
    },
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let shape = ['B', 'T', 'H', 'D'].map(|letter| inputs.extent(letter));
    let [batch, tokens, heads, width] = shape;
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let old = inputs.optional("old").map(|old| session.upload(&old.as_elements::<T>())).transpose()?;
    let options = Options { dtype: T::DTYPE, out: T::DTYPE, accumulate: old.is_some() };
    let plan = Plan::new(&Shape::dense(batch, tokens, heads, width), &options, &session.info)?;
    let mut out = old.map_or_else(|| session.zeros::<T>(shape.iter().product()), Ok)?;
    plan.run(&session.stream, &x, &mut out)?;
    Ok(Tensors::from([("out".into(), Tensor::elements(&shape, &session.download::<T>(&out)?))]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |name: &str, shape: [usize; 4], accumulate: bool| {
        let floats = |phase| Tensor::floats(dtype, &shape, &wave(phase, shape.iter().product()));
        let mut tensors = Tensors::from([("x".into(), floats(1.0))]);
        if accumulate {
            tensors.insert("old".into(), floats(2.0));
        }
        Case { name: name.into(), tensors, attributes: Vec::new() }
    };
    vec![case("copied", [2, 9, 3, 64], false), case("added", [1, 5, 2, 7], true)]
}
