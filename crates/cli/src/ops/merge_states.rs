//! `merge_states`.

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
use lookback_attention::merge::{self, Options, Outputs, Plan, Shape};
use lookback_device::{
    DType, Element, cu_seqlens,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_reference::attention::state::{State, merge as union};

/// Partial results of attention to one.
pub static MERGE_STATES: Operation = Operation {
    name: "merge_states",
    about: "lse = ln sum e^lse[s], o = sum e^(lse[s] - lse) o[s]: partial results over disjoint sets of keys become that of all; no keys are o = 0, lse = -inf",
    inputs: &[
        required("o", "T", "[S,B,N,H,V]|[S,H,V]", "averages; of 3 dimensions, any number for each token, by starts"),
        required("lse", "f32", "[S,B,N,H]|[S,H]", "natural logarithms of the sums; -inf for no keys"),
        optional("starts", "i32", "[N+1]", "token n has the states starts[n]..starts[n+1]"),
        optional("o_run", "f32", "[B,N,H,V]|[N,H,V]", "averages that run, one more state"),
        optional("lse_run", "f32", "[B,N,H]|[N,H]", "their logarithms"),
        optional("sink", "f32", "[H]", "logits of a key without a value"),
    ],
    attributes: &[AttributeSpec {
        name: "out",
        values: "same|f32",
        default: "same",
        about: "type of the output o; f32 with o_run",
    }],
    outputs: &[
        required("o", "T|T|f32", "[B,N,H,V]|[N,H,V]", "average over all keys"),
        required("lse", "f32", "[B,N,H]|[N,H]", "logarithm of the sum over all keys"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Sizes, types, and the starts of ragged states.
fn setting(inputs: &Inputs) -> Result<(Shape, Options, Option<Vec<i32>>)> {
    let [states, batch, tokens, heads, value_dim] = ['S', 'B', 'N', 'H', 'V'].map(|letter| inputs.extent(letter));
    let is_ragged = inputs.tensor("o")?.shape.len() == 3;
    let starts = inputs.optional("starts").map(Tensor::as_indices);
    if is_ragged != starts.is_some() {
        return Err(inputs.wrong("starts", "goes with states of 3 dimensions, and only with them".into()));
    }
    if let Some(starts) = &starts {
        cu_seqlens(starts, states)?;
    }
    let runs = inputs.optional("o_run").is_some();
    if runs != inputs.optional("lse_run").is_some() {
        return Err(inputs.wrong("lse_run", "must be there exactly when `o_run` is".into()));
    }
    let of_run = inputs.optional("o_run").map_or(0, |o| o.shape.len());
    if runs && of_run + 1 != inputs.tensor("o")?.shape.len() + usize::from(is_ragged) {
        return Err(inputs.wrong("o_run", "must have the dimensions of the output".into()));
    }
    let is_f32 = inputs.choose("out", &[("same", false), ("f32", true)])?;
    let out = if runs || is_f32 { DType::F32 } else { inputs.dtype };
    let shape = match is_ragged {
        true => Shape::ragged(states, tokens, heads, value_dim),
        false => Shape::dense(states, batch, tokens, heads, value_dim),
    };
    Ok((shape, Options { dtype: inputs.dtype, out, accumulate: runs }, starts))
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options, starts) = setting(inputs)?;
    if options.out == DType::F32 {
        merged::<T, f32>(session, inputs, &shape, &options, starts)
    } else {
        merged::<T, T>(session, inputs, &shape, &options, starts)
    }
}

fn merged<T: Element, U: Element>(
    session: &Session,
    inputs: &Inputs,
    shape: &Shape,
    options: &Options,
    starts: Option<Vec<i32>>,
) -> Result<Tensors> {
    let plan = Plan::new(shape, options, &session.info)?;
    let o = session.upload(&inputs.tensor("o")?.as_elements::<T>())?;
    let lse = session.upload(&inputs.tensor("lse")?.as_elements::<f32>())?;
    let sink = inputs.optional("sink").map(|t| session.upload(&t.as_elements::<f32>())).transpose()?;
    let starts = starts.map(|s| session.upload(&s)).transpose()?;
    let rows = shape.batch * shape.tokens * shape.heads;
    let mut out = match inputs.optional("o_run") {
        Some(o) => session.upload(&o.as_elements::<U>())?,
        None => session.zeros::<U>(rows * shape.value_dim)?,
    };
    let mut lse_out = match inputs.optional("lse_run") {
        Some(lse) => session.upload(&lse.as_elements::<f32>())?,
        None => session.zeros::<f32>(rows)?,
    };
    let tensors = merge::Inputs {
        o: &o,
        lse: &lse,
        starts: starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        sink: sink.as_ref().map(|s| s as &dyn DevicePtr<f32>),
    };
    let outputs = Outputs { out: &mut out, lse: Some(&mut lse_out as &mut dyn DevicePtrMut<f32>) };
    plan.run(&session.stream, &tensors, outputs)?;
    let all = [shape.batch, shape.tokens, shape.heads, shape.value_dim];
    let extents = if shape.ragged { &all[1..] } else { &all[..] };
    Ok(Tensors::from([
        ("o".into(), Tensor::elements(extents, &session.download::<U>(&out)?)),
        ("lse".into(), Tensor::elements(&extents[..extents.len() - 1], &session.download::<f32>(&lse_out)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (shape, _, starts) = setting(inputs)?;
    let (width, heads) = (shape.value_dim, shape.heads);
    let [o, lse] = ["o", "lse"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let (o, lse) = (o?, lse?);
    let [o_run, lse_run, sink] = ["o_run", "lse_run", "sink"].map(|name| inputs.values(name));
    let state = |o: &[f64], lse: &[f64], row: usize| State { o: o[row * width..][..width].to_vec(), lse: lse[row] };
    let (mut out, mut lse_out) = (Vec::new(), Vec::new());
    let rows = shape.batch * shape.tokens * heads;
    for row in 0..rows {
        let (token, head) = (row / heads, row % heads);
        let own: Vec<usize> = match &starts {
            Some(starts) => (starts[token]..starts[token + 1]).map(|s| s as usize * heads + head).collect(),
            None => (0..shape.states).map(|s| s * rows + row).collect(),
        };
        let running = o_run.as_ref().zip(lse_run.as_ref()).map(|(o, lse)| state(o, lse, row));
        let states: Vec<State> = running.into_iter().chain(own.into_iter().map(|row| state(&o, &lse, row))).collect();
        let all = union(&states, width);
        let all = sink.as_ref().map_or(all.clone(), |sink| all.with_sink(sink[head]));
        out.extend(all.o);
        lse_out.push(all.lse);
    }
    Ok(Values::from([("o".into(), out), ("lse".into(), lse_out)]))
}

/// States side by side and in any number, empty ones, running ones, a sink.
fn cases(dtype: DType) -> Vec<Case> {
    let case = |name: &str, o: &[usize], more: Vec<(&str, Tensor)>, attributes: &[&str]| {
        let logits: Vec<f64> = wave(2.0, o[..o.len() - 1].iter().product())
            .iter()
            .enumerate()
            .map(|(i, x)| if i % 7 == 3 { f64::NEG_INFINITY } else { 9.0 * x })
            .collect();
        let mut tensors = Tensors::from([
            ("o".into(), Tensor::floats(dtype, o, &wave(1.0, o.iter().product()))),
            ("lse".into(), Tensor::floats(DType::F32, &o[..o.len() - 1], &logits)),
        ]);
        tensors.extend(more.into_iter().map(|(name, tensor)| (name.into(), tensor)));
        Case { name: name.into(), tensors, attributes: attributes.iter().map(|a| (*a).into()).collect() }
    };
    let singles = |phase: f64, shape: &[usize]| Tensor::floats(DType::F32, shape, &wave(phase, shape.iter().product()));
    vec![
        case("5 states", &[5, 2, 9, 3, 64], vec![], &[]),
        case("3 states and a sink", &[3, 1, 7, 4, 100], vec![("sink", singles(5.0, &[4]))], &["out=f32"]),
        case(
            "into running states",
            &[1, 2, 6, 3, 128],
            vec![("o_run", singles(3.0, &[2, 6, 3, 128])), ("lse_run", singles(4.0, &[2, 6, 3]))],
            &[],
        ),
        case("any number", &[11, 2, 40], vec![("starts", Tensor::indices(&[5], &[0, 0, 4, 5, 11]))], &[]),
    ]
}
