//! `head_scale`.

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
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_nn::head_scale::{Factors, Options, Plan, Shape};
use lookback_reference as reference;

/// A scalar for each row and head times that head's part of the row.
pub static HEAD_SCALE: Operation = Operation {
    name: "head_scale",
    about: "out[r,h] = (scale[r,h] + bias[h]) x[r,h / (H / G)] + old[r,h]",
    inputs: &[
        required("x", "T", "[R,G,D]", "rows of heads; G divides H"),
        required("scale", "f32", "[R,H]", "factor of each row and head"),
        optional("bias", "f32", "[H]", "added to the factors of each head"),
        optional("old", "T", "[R,H,D]", "what the product is added to"),
    ],
    attributes: &[],
    outputs: &[required("out", "T", "[R,H,D]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let [rows, groups, heads, dim] = ['R', 'G', 'H', 'D'].map(|letter| inputs.extent(letter));
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let scale = session.upload(&inputs.tensor("scale")?.as_elements::<f32>())?;
    let bias = inputs.optional("bias").map(|b| session.upload(&b.as_elements::<f32>())).transpose()?;
    let old = inputs.optional("old").map(|o| session.upload(&o.as_elements::<T>())).transpose()?;
    let options = Options { dtype: T::DTYPE, accumulate: old.is_some() };
    let shape = Shape { x_heads: groups, x_stride: (groups * dim) as i64, ..Shape::dense(rows, heads, dim) };
    let plan = Plan::new(&shape, &options, &session.info)?;
    let mut out = old.map_or_else(|| session.zeros::<T>(rows * heads * dim), Ok)?;
    let factors = Factors { scale: Some(&scale), bias: bias.as_ref().map(|b| b as &dyn DevicePtr<f32>) };
    plan.run(&session.stream, &x, factors, &mut out)?;
    Ok(Tensors::from([("out".into(), Tensor::elements(&[rows, heads, dim], &session.download::<T>(&out)?))]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let [groups, heads, dim] = ['G', 'H', 'D'].map(|letter| inputs.extent(letter));
    let x = inputs.tensor("x")?.to_f64();
    let shared = heads.checked_div(groups).unwrap_or(0);
    let spread: Vec<f64> = x.chunks_exact(dim.max(1)).flat_map(|part| part.repeat(shared)).collect();
    let (scale, bias, old) = (inputs.values("scale"), inputs.values("bias"), inputs.values("old"));
    let (scale, bias, old) = (scale.as_deref(), bias.as_deref(), old.as_deref());
    Ok(Values::from([("out".into(), reference::head_scale::forward(&spread, heads, dim, scale, bias, old))]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |name: &str, [rows, groups, heads, dim]: [usize; 4], accumulate: bool| {
        let mut tensors = Tensors::from([
            ("x".into(), Tensor::floats(dtype, &[rows, groups, dim], &wave(1.0, rows * groups * dim))),
            ("scale".into(), Tensor::floats(DType::F32, &[rows, heads], &wave(2.0, rows * heads))),
            ("bias".into(), Tensor::floats(DType::F32, &[heads], &wave(3.0, heads))),
        ]);
        if accumulate {
            let old = Tensor::floats(dtype, &[rows, heads, dim], &wave(4.0, rows * heads * dim));
            tensors.insert("old".into(), old);
        }
        Case { name: name.into(), tensors, attributes: Vec::new() }
    };
    vec![case("each head its own", [9, 4, 4, 64], true), case("heads share", [5, 2, 6, 7], false)]
}
