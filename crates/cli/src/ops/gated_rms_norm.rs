//! `gated_rms_norm` and `gated_rms_norm_backward`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
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
    gated_rms_norm::{BackwardInputs, BackwardPlan, BackwardShape, Gate, Gradients, Options, Plan, Shape},
};
use lookback_reference::{activation::Activation, gated_rms_norm::Norm};

/// A norm and a gate in one.
pub static GATED_RMS_NORM: Operation = Operation {
    name: "gated_rms_norm",
    about: "out = norm(y) w gate(z), or norm(y gate(z)) w, the mean square taken over each group of columns",
    inputs: &[Y, Z, WEIGHT],
    attributes: ATTRIBUTES,
    outputs: &[required("out", "T", "[R,W]", ""), required("rstd", "f32", "[R,G]", "1 / sqrt(mean square + eps)")],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

const Y: TensorSpec = required("y", "T", "[R,W]", "what is normed");
const Z: TensorSpec = required("z", "T", "[R,W]", "gate before its function");
const WEIGHT: TensorSpec = optional("weight", "T", "[W]", "scale of each column, 1 without it");

const ATTRIBUTES: &[AttributeSpec] = &[
    AttributeSpec {
        name: "norm_before_gate",
        values: "true|false",
        default: "true",
        about: "whether y alone is normed, or y gate(z)",
    },
    AttributeSpec { name: "gate", values: "silu|sigmoid", default: "silu", about: "function of z" },
    AttributeSpec { name: "group", values: "a divisor of W", default: "0", about: "columns of a group; 0: all" },
    AttributeSpec { name: "eps", values: "a number", default: "1e-5", about: "added to the mean square" },
];

/// Sizes and switches.
fn setting<T: Element>(inputs: &Inputs) -> Result<(Shape, Options)> {
    let (rows, width) = (inputs.extent('R'), inputs.extent('W'));
    let group = match inputs.parse("group")? {
        0 => width,
        group => group,
    };
    let options = Options {
        dtype: T::DTYPE,
        gate: inputs.choose("gate", &[("silu", Gate::Silu), ("sigmoid", Gate::Sigmoid)])?,
        norm_before_gate: inputs.parse("norm_before_gate")?,
        eps: inputs.number("eps", 0.0)?,
    };
    Ok((Shape::dense(rows, width).groups_of(group), options))
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = setting::<T>(inputs)?;
    let plan = Plan::new(&shape, &options, &session.info)?;
    let y = session.upload(&inputs.tensor("y")?.as_elements::<T>())?;
    let z = session.upload(&inputs.tensor("z")?.as_elements::<T>())?;
    let weight = inputs.optional("weight").map(|w| session.upload(&w.as_elements::<T>())).transpose()?;
    let mut out = session.zeros::<T>(shape.rows * shape.width)?;
    let mut rstd = session.zeros::<f32>(shape.rows * shape.groups())?;
    let weight = weight.as_ref().map_or(Param::None, |w| Param::Same(w));
    plan.run(&session.stream, &y, &z, weight, &mut out, Some(&mut rstd))?;
    Ok(Tensors::from([
        ("out".into(), Tensor::elements(&[shape.rows, shape.width], &session.download::<T>(&out)?)),
        ("rstd".into(), Tensor::elements(&[shape.rows, shape.groups()], &session.download::<f32>(&rstd)?)),
    ]))
}

/// The oracle's norm.
fn norm<'a>(inputs: &Inputs, weight: Option<&'a [f64]>) -> Result<Norm<'a>> {
    let (shape, options) = setting::<f32>(inputs)?;
    Ok(Norm {
        width: shape.width,
        group: shape.group,
        weight,
        // The operation takes eps in f32.
        eps: f64::from(options.eps),
        gate: if options.gate == Gate::Silu { Activation::Silu } else { Activation::Sigmoid },
        norm_before_gate: options.norm_before_gate,
    })
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (y, z) = (inputs.tensor("y")?.to_f64(), inputs.tensor("z")?.to_f64());
    let weight = inputs.values("weight");
    let found = lookback_reference::gated_rms_norm::forward(&norm(inputs, weight.as_deref())?, &y, &z);
    Ok(Values::from([("out".into(), found.out), ("rstd".into(), found.rstd)]))
}

/// Both orders and gates, one group and several.
fn cases(dtype: DType) -> Vec<Case> {
    [(3, 65, 0, true, "silu"), (5, 256, 64, true, "sigmoid"), (5, 256, 128, false, "silu"), (2, 1030, 0, false, "silu")]
        .map(|(rows, width, group, before, gate)| {
            let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
            let order = if before { "norm first" } else { "gate first" };
            Case {
                name: format!("{rows}x{width} {order}, {gate}, groups of {}", if group == 0 { width } else { group }),
                tensors: Tensors::from([
                    ("y".into(), floats(1.0, &[rows, width])),
                    ("z".into(), floats(2.0, &[rows, width])),
                    ("weight".into(), floats(3.0, &[width])),
                ]),
                attributes: vec![
                    format!("norm_before_gate={before}"),
                    format!("gate={gate}"),
                    format!("group={group}"),
                ],
            }
        })
        .into()
}

/// The gradient of it by all its inputs.
pub static GATED_RMS_NORM_BACKWARD: Operation = Operation {
    name: "gated_rms_norm_backward",
    about: "the gradient of gated_rms_norm by y, z and weight",
    inputs: &[Y, Z, WEIGHT, required("dout", "T", "[R,W]", "adjoint of out")],
    attributes: ATTRIBUTES,
    outputs: &[
        required("dy", "T", "[R,W]", ""),
        required("dz", "T", "[R,W]", ""),
        required("dweight", "f32", "[W]", "as if there were a weight"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run_backward(session, inputs)),
    oracle: oracle_backward,
    cases: |dtype| {
        let mut cases = cases(dtype);
        for case in &mut cases {
            let dout = case.tensors.get("y").map(|y| Tensor::floats(dtype, &y.shape, &wave(4.0, y.len())));
            case.tensors.extend(dout.map(|d| ("dout".into(), d)));
        }
        cases
    },
};

/// The forward pass runs first, for `rstd`.
fn run_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = setting::<T>(inputs)?;
    let Shape { rows, width, group, .. } = shape;
    let backward_shape = BackwardShape::dense(rows, width).groups_of(group);
    let forward = Plan::new(&shape, &options, &session.info)?;
    let plan = BackwardPlan::new(&backward_shape, &options, &session.info)?;
    let upload = |name| session.upload(&inputs.tensor(name)?.as_elements::<T>());
    let (y, z, dout) = (upload("y")?, upload("z")?, upload("dout")?);
    let weight = inputs.optional("weight").map(|w| session.upload(&w.as_elements::<T>())).transpose()?;
    let weight = weight.as_ref().map_or(Param::None, |w| Param::Same(w));
    let (mut dy, mut dz) = (session.zeros::<T>(rows * width)?, session.zeros::<T>(rows * width)?);
    let mut rstd = session.zeros::<f32>(rows * shape.groups())?;
    let mut dweight = session.zeros::<f32>(width)?;
    let mut workspace = session.zeros::<f32>(plan.workspace_bytes() as usize / 4)?;
    forward.run(&session.stream, &y, &z, weight, &mut dy, Some(&mut rstd))?;
    let given = BackwardInputs { y: &y, z: &z, dout: &dout, weight, rstd: &rstd };
    let gradients = Gradients { dy: &mut dy, dz: &mut dz, dweight: Some(&mut dweight) };
    plan.run(&session.stream, given, gradients, &mut workspace)?;
    Ok(Tensors::from([
        ("dy".into(), Tensor::elements(&[rows, width], &session.download::<T>(&dy)?)),
        ("dz".into(), Tensor::elements(&[rows, width], &session.download::<T>(&dz)?)),
        ("dweight".into(), Tensor::elements(&[width], &session.download::<f32>(&dweight)?)),
    ]))
}

fn oracle_backward(inputs: &Inputs) -> Result<Values> {
    let [y, z, dout] = ["y", "z", "dout"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let weight = inputs.values("weight");
    let norm = norm(inputs, weight.as_deref())?;
    let found = lookback_reference::gated_rms_norm::backward(&norm, &y?, &z?, &dout?);
    Ok(Values::from([("dy".into(), found.dy), ("dz".into(), found.dz), ("dweight".into(), found.dweight)]))
}
