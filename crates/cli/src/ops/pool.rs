//! `pool`.

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
use lookback_device::{DType, Element, cu_seqlens};
use lookback_nn::pool::{self, Options, Plan, Pooling, Shape};
use lookback_reference as reference;

/// The tokens of each sequence to one row.
pub static POOL: Operation = Operation {
    name: "pool",
    about: "out = mean of a sequence's tokens that count, or its first; of length 1 with normalize=true",
    inputs: &[
        required("x", "T", "[N,T,W]|[T,W]", "rows of tokens; [T,W] with cu_seqlens"),
        optional("mask", "u8", "[N,T]|[T]", "0 where a token does not count"),
        optional("cu_seqlens", "i32", "[N+1]", "where sequences begin, and where the last ends"),
    ],
    attributes: &[
        AttributeSpec { name: "pooling", values: "mean|first", default: "mean", about: "what a sequence becomes" },
        AttributeSpec { name: "normalize", values: "true|false", default: "false", about: "divide by the norm" },
    ],
    outputs: &[required("out", "f32", "[N,W]", "")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// The shape, and where sequences begin among the rows of `x`.
fn shape(inputs: &Inputs) -> Result<(Shape, Vec<i32>)> {
    let [sequences, tokens, width] = ['N', 'T', 'W'].map(|letter| inputs.extent(letter));
    let is_packed = inputs.tensor("x")?.shape.len() == 2;
    match inputs.optional("cu_seqlens") {
        Some(starts) if is_packed => {
            let starts = starts.as_indices();
            cu_seqlens(&starts, tokens)?;
            Ok((Shape::packed(sequences, tokens, width), starts))
        }
        None if !is_packed => {
            let starts = (0..=sequences).map(|n| (n * tokens) as i32).collect();
            Ok((Shape::dense(sequences, tokens, width), starts))
        }
        _ => Err(inputs.wrong("cu_seqlens", "must be there exactly when `x` has two dimensions".into())),
    }
}

fn options(inputs: &Inputs, dtype: DType) -> Result<Options> {
    Ok(Options {
        dtype,
        pooling: inputs.choose("pooling", &[("mean", Pooling::Mean), ("first", Pooling::First)])?,
        normalize: inputs.choose("normalize", &[("true", true), ("false", false)])?,
    })
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, starts) = shape(inputs)?;
    let x = session.upload(&inputs.tensor("x")?.as_elements::<T>())?;
    let mask = inputs.optional("mask").map(|mask| session.upload(mask.as_flags())).transpose()?;
    let starts = shape.packed.then(|| session.upload(&starts)).transpose()?;
    let plan = Plan::new(&shape, &options(inputs, T::DTYPE)?, &session.info)?;
    let mut out = session.zeros::<f32>(shape.sequences * shape.width)?;
    let read = pool::Inputs {
        mask: mask.as_ref().map(|mask| mask as _),
        cu_seqlens: starts.as_ref().map(|starts| starts as _),
    };
    plan.run(&session.stream, &x, read, &mut out)?;
    let out = Tensor::elements(&[shape.sequences, shape.width], &session.download::<f32>(&out)?);
    Ok(Tensors::from([("out".into(), out)]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (shape, starts) = shape(inputs)?;
    let options = options(inputs, inputs.dtype)?;
    let starts: Vec<usize> = starts.iter().map(|start| *start as usize).collect();
    let mask: Option<Vec<bool>> = inputs.optional("mask").map(|mask| mask.as_flags().iter().map(|m| *m != 0).collect());
    let pool = reference::pool::Pool {
        width: shape.width,
        starts: &starts,
        mask: mask.as_deref(),
        limit: if options.pooling == Pooling::First { 1 } else { usize::MAX },
        normalize: options.normalize,
    };
    Ok(Values::from([("out".into(), reference::pool::forward(&pool, &inputs.tensor("x")?.to_f64()))]))
}

fn cases(dtype: DType) -> Vec<Case> {
    let case = |name: &str, x: &[usize], tensors: Vec<(&str, Tensor)>, attributes: &[&str]| {
        let mut all = Tensors::from([("x".into(), Tensor::floats(dtype, x, &wave(1.0, x.iter().product())))]);
        all.extend(tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)));
        Case { name: name.into(), tensors: all, attributes: attributes.iter().map(|a| a.to_string()).collect() }
    };
    let starts = || ("cu_seqlens", Tensor::indices(&[5], &[0, 9, 9, 10, 40]));
    let mask: Vec<u8> = (0..40).map(|t| u8::from(t % 3 != 1)).collect();
    let mask = |shape: &[usize]| ("mask", Tensor::flags(shape, &mask));
    vec![
        case("packed, mean", &[40, 65], vec![starts()], &[]),
        case("packed, mean of length 1", &[40, 384], vec![starts(), mask(&[40])], &["normalize=true"]),
        case("first", &[4, 10, 48], vec![], &["pooling=first", "normalize=true"]),
        case("mask, wide", &[2, 20, 2056], vec![mask(&[2, 20])], &["normalize=true"]),
    ]
}
