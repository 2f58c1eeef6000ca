//! `embedding`.

use super::{Case, Inputs, Operation, Values, for_dtype, inputs::required, wave};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element};
use lookback_nn::embedding::{Options, Plan, Shape};
use lookback_reference as reference;

/// `out[t] = sum over j of table[ids[t, j]]`.
pub static EMBEDDING: Operation = Operation {
    name: "embedding",
    about: "out[t] = sum over j of table[ids[t,j]]; an id of -1 adds nothing",
    inputs: &[
        required("table", "T", "[V,W]", "a row for each id"),
        required("ids", "i32", "[N,J]", "ids of each token"),
    ],
    attributes: &[],
    outputs: &[required("out", "T", "[N,W]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [tokens, per_token, vocabulary, width] = ['N', 'J', 'V', 'W'].map(|letter| inputs.extent(letter));
    let ids = inputs.tensor("ids")?.as_indices();
    if let Some(at) = ids.iter().position(|id| *id < -1 || *id >= vocabulary as i32) {
        return Err(inputs.wrong("ids", format!("[{at}] = {}, want -1..={}", ids[at], vocabulary as i64 - 1)));
    }
    let table = session.upload(&inputs.tensor("table")?.as_elements::<T>())?;
    let ids = session.upload(&ids)?;
    let shape = Shape::dense(tokens, per_token, vocabulary, width);
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE }, &session.info)?;
    let mut out = session.zeros::<T>(tokens * width)?;
    plan.run(&session.stream, &table, &ids, &mut out, None)?;
    Ok(Tensors::from([("out".into(), Tensor::elements(&[tokens, width], &session.download::<T>(&out)?))]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (table, ids) = (inputs.tensor("table")?.to_f64(), inputs.tensor("ids")?.as_indices());
    Ok(Values::from([(
        "out".into(),
        reference::embedding::forward(&table, inputs.extent('W'), &ids, inputs.extent('J')),
    )]))
}

fn cases(dtype: DType) -> Vec<Case> {
    [(7, 1, 64), (5, 3, 33)]
        .map(|(tokens, per_token, width)| {
            let ids: Vec<i32> = (0..tokens * per_token).map(|i| (i as i32 * 5) % 12 - 1).collect();
            Case {
                name: format!("{per_token} ids, width {width}"),
                tensors: Tensors::from([
                    ("table".into(), Tensor::floats(dtype, &[11, width], &wave(1.0, 11 * width))),
                    ("ids".into(), Tensor::indices(&[tokens, per_token], &ids)),
                ]),
                attributes: Vec::new(),
            }
        })
        .into()
}
