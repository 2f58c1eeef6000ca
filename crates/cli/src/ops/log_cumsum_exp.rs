//! `log_cumsum_exp`, `light_net_gates` and their backward passes.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    gated_scan::{self, CU_SEQLENS, extents},
    inputs::{AttributeSpec, TensorSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_reference::{
    gated_scan::Scan,
    log_cumsum_exp::{self as reference, Adjoint},
};
use lookback_scan::log_cumsum_exp::{
    self as scan, BackwardInputs, BackwardOutputs, BackwardPlan, GateAdjoint, Outputs, Plan, Shape,
};

const X: TensorSpec = required("x", "T", "[B,T,D]", "logarithm of each token's weight; -inf masks a token");
const FLAGS: TensorSpec =
    optional("flags", "u8", "[B,T]", "bit 0 starts the sum anew here, bit 1 does with reverse=true");
const Z0: TensorSpec = optional(
    "z0",
    "f32",
    "[N,D]",
    "z before the first step; -inf without it. N is B, or the number of packed sequences",
);
const Z: TensorSpec = required("z", "f32", "[B,T,D]", "logarithm of the sum so far");
const Z_FINAL: TensorSpec = required("z_final", "f32", "[N,D]", "z after the last step of each sequence");
const SAVED_Z: TensorSpec =
    optional("z", "f32", "[B,T,D]", "as the forward pass left it; without, the forward pass runs first");
const DZ_FINAL: TensorSpec = optional("dz_final", "f32", "[N,D]", "adjoint of z_final");
const DX: TensorSpec = required("dx", "T", "[B,T,D]", "adjoint of x");
const DZ0: TensorSpec = required("dz0", "f32", "[N,D]", "adjoint of z0");
const REVERSE: AttributeSpec = AttributeSpec {
    name: "reverse",
    values: "true|false",
    default: "false",
    about: "from the last token to the first",
};

/// `z[t] = log(e^z[t-1] + e^x[t])`.
pub static FORWARD: Operation = Operation {
    name: "log_cumsum_exp",
    about: "z[t] = log(e^z[t-1] + e^x[t]) along time, channel by channel",
    inputs: &[X, FLAGS, Z0, CU_SEQLENS],
    attributes: &[REVERSE],
    outputs: &[Z, Z_FINAL],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs, false)),
    oracle: |inputs| oracle(inputs, false),
    cases: |dtype| cases(dtype, &[]),
};

/// Its gradient.
pub static BACKWARD: Operation = Operation {
    name: "log_cumsum_exp_backward",
    about: "gradient of log_cumsum_exp",
    inputs: &[X, FLAGS, Z0, CU_SEQLENS, SAVED_Z, required("dz", "f32", "[B,T,D]", "adjoint of z"), DZ_FINAL],
    attributes: &[REVERSE],
    outputs: &[DX, DZ0],
    run: |session, inputs| for_dtype!(inputs.dtype, run_backward(session, inputs)),
    oracle: oracle_backward,
    cases: |dtype| cases(dtype, &["dz"]),
};

/// LightNet's keys and log decays.
pub static LIGHT_NET_GATES: Operation = Operation {
    name: "light_net_gates",
    about: "keys k[t] = e^(x[t] - z[t]) and log decays g[t] = z[t-1] - z[t], z[t] = log(e^z[t-1] + e^x[t])",
    inputs: &[X, FLAGS, Z0, CU_SEQLENS],
    attributes: &[REVERSE],
    outputs: &[
        required("k", "T", "[B,T,D]", "share of each token in the sum so far"),
        required("g", "f32", "[B,T,D]", "logarithm of what the older tokens keep, 0 where the sum starts"),
        Z,
        Z_FINAL,
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs, true)),
    oracle: |inputs| oracle(inputs, true),
    cases: |dtype| cases(dtype, &[]),
};

/// Their gradient.
pub static LIGHT_NET_GATES_BACKWARD: Operation = Operation {
    name: "light_net_gates_backward",
    about: "gradient of light_net_gates, from dk and dg, or from dk and a linear attention's q and dq",
    inputs: &[
        X,
        FLAGS,
        Z0,
        CU_SEQLENS,
        SAVED_Z,
        optional("dk", "T", "[B,T,D]", "adjoint of k"),
        optional("dg", "f32", "[B,T,D]", "adjoint of g; not with q"),
        optional("q", "T", "[B,T,D]", "what read the state made of k and g; with dq it stands for dg"),
        optional("dq", "T", "[B,T,D]", "adjoint of q"),
        optional("dz", "f32", "[B,T,D]", "adjoint of z"),
        DZ_FINAL,
    ],
    attributes: &[REVERSE],
    outputs: &[DX, DZ0],
    run: |session, inputs| for_dtype!(inputs.dtype, run_backward(session, inputs)),
    oracle: oracle_backward,
    cases: |dtype| cases(dtype, &["dk", "dg", "dz"]).into_iter().chain(cases(dtype, &["dk", "q", "dq"])).collect(),
};

/// What both passes read, on the device.
struct Uploaded<T> {
    x: CudaSlice<T>,
    flags: Option<CudaSlice<u8>>,
    cu_seqlens: Option<CudaSlice<i32>>,
    initial: Option<CudaSlice<f32>>,
}

fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
}

fn floats<T: Element>(session: &Session, inputs: &Inputs, name: &str) -> Result<Option<CudaSlice<T>>> {
    inputs.optional(name).map(|t| session.upload(&t.as_elements::<T>())).transpose()
}

impl<T: Element> Uploaded<T> {
    fn new(session: &Session, inputs: &Inputs) -> Result<Self> {
        Ok(Self {
            x: session.upload(&inputs.tensor("x")?.as_elements::<T>())?,
            flags: inputs.optional("flags").map(|t| session.upload(t.as_flags())).transpose()?,
            cu_seqlens: inputs.optional("cu_seqlens").map(|t| session.upload(&t.as_indices())).transpose()?,
            initial: floats(session, inputs, "z0")?,
        })
    }

    fn inputs(&self) -> scan::Inputs<'_, T> {
        scan::Inputs {
            x: &self.x,
            flags: some(&self.flags),
            cu_seqlens: some(&self.cu_seqlens),
            initial: some(&self.initial),
        }
    }
}

fn shape<T: Element>(inputs: &Inputs) -> Result<(Shape, scan::Options)> {
    let packed = gated_scan::shape(inputs, &["z0", "dz_final"])?.packed;
    let [batch, tokens, channels] = extents(inputs);
    let shape = Shape { packed, ..Shape::dense(batch, tokens, channels) };
    Ok((shape, scan::Options { dtype: T::DTYPE, reverse: inputs.parse("reverse")? }))
}

fn run<T: Element>(session: &Session, inputs: &Inputs, gates: bool) -> Result<Tensors> {
    let (shape, options) = shape::<T>(inputs)?;
    let plan = Plan::new(&shape, &options, &session.info)?;
    let (n, states) = (shape.batch * shape.seq_len * shape.channels, shape.sequences() * shape.channels);
    let (mut z, mut g) = (session.zeros::<f32>(n)?, session.zeros::<f32>(if gates { n } else { 0 })?);
    let (mut k, mut last) = (session.zeros::<T>(if gates { n } else { 0 })?, session.zeros::<f32>(states)?);
    let outputs = match gates {
        true => Outputs { z: Some(&mut z), k: Some(&mut k), g: Some(&mut g), last: Some(&mut last) },
        false => Outputs { z: Some(&mut z), k: None, g: None, last: Some(&mut last) },
    };
    plan.run(&session.stream, &Uploaded::<T>::new(session, inputs)?.inputs(), outputs)?;
    let dims = extents(inputs);
    let mut out = Tensors::from([
        ("z".into(), Tensor::elements(&dims, &session.download::<f32>(&z)?)),
        ("z_final".into(), Tensor::elements(&[shape.sequences(), shape.channels], &session.download::<f32>(&last)?)),
    ]);
    if gates {
        out.insert("k".into(), Tensor::elements(&dims, &session.download::<T>(&k)?));
        out.insert("g".into(), Tensor::elements(&dims, &session.download::<f32>(&g)?));
    }
    Ok(out)
}

fn run_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = shape::<T>(inputs)?;
    let tensors = Uploaded::<T>::new(session, inputs)?;
    let (n, states) = (shape.batch * shape.seq_len * shape.channels, shape.sequences() * shape.channels);
    let z = match floats::<f32>(session, inputs, "z")? {
        Some(z) => z,
        None => {
            let mut z = session.zeros::<f32>(n)?;
            let outputs = Outputs { z: Some(&mut z), k: None, g: None, last: None };
            Plan::new(&shape, &options, &session.info)?.run(&session.stream, &tensors.inputs(), outputs)?;
            z
        }
    };
    let (dk, q, dq) =
        (floats::<T>(session, inputs, "dk")?, floats(session, inputs, "q")?, floats(session, inputs, "dq")?);
    let (dg, dz) = (floats::<f32>(session, inputs, "dg")?, floats(session, inputs, "dz")?);
    let d_last = floats::<f32>(session, inputs, "dz_final")?;
    let gates = match (&q, &dq, &dk, &dg) {
        (None, None, ..) => GateAdjoint::Plain { dk: some(&dk), dg: some(&dg) },
        (Some(q), Some(dq), Some(dk), None) => GateAdjoint::LinearAttention { q, dq, dk },
        (Some(_), Some(_), _, Some(_)) => {
            return Err(inputs.wrong("dg", "must be left out: q and dq stand for it".into()));
        }
        (Some(_), Some(_), None, _) => return Err(inputs.wrong("dk", "is missing, want it with q and dq".into())),
        (Some(_), None, ..) => return Err(inputs.wrong("dq", "is missing, want it with q".into())),
        (None, Some(_), ..) => return Err(inputs.wrong("q", "is missing, want it with dq".into())),
    };
    let (mut dx, mut d_initial) = (session.zeros::<T>(n)?, session.zeros::<f32>(states)?);
    let backward = BackwardInputs { forward: tensors.inputs(), z: &z, dz: some(&dz), gates, d_last: some(&d_last) };
    let outputs = BackwardOutputs { dx: &mut dx, d_initial: Some(&mut d_initial) };
    BackwardPlan::new(&shape, &options, &session.info)?.run(&session.stream, &backward, outputs)?;
    Ok(Tensors::from([
        ("dx".into(), Tensor::elements(&extents(inputs), &session.download::<T>(&dx)?)),
        ("dz0".into(), Tensor::elements(&[shape.sequences(), shape.channels], &session.download::<f32>(&d_initial)?)),
    ]))
}

/// Calls `with` with what the reference wants.
fn with_scan<R>(inputs: &Inputs, with: impl FnOnce(&Scan<'_>, &[f64]) -> R) -> Result<R> {
    let (_, options) = shape::<f32>(inputs)?;
    let [batch, seq_len, channels] = extents(inputs);
    let flags = inputs.optional("flags").map(|f| f.as_flags().to_vec());
    let cu_seqlens = inputs.optional("cu_seqlens").map(Tensor::as_indices);
    let initial = inputs.values("z0");
    let scan = Scan {
        batch,
        seq_len,
        channels,
        split: if options.reverse { 0 } else { channels },
        flags: flags.as_deref(),
        cu_seqlens: cu_seqlens.as_deref(),
        initial: initial.as_deref(),
    };
    Ok(with(&scan, &inputs.tensor("x")?.to_f64()))
}

fn oracle(inputs: &Inputs, gates: bool) -> Result<Values> {
    with_scan(inputs, |scan, x| {
        let out = reference::forward(scan, x);
        let mut values = Values::from([("z".into(), out.z), ("z_final".into(), out.last)]);
        if gates {
            values.extend([("k".into(), out.k), ("g".into(), out.g)]);
        }
        values
    })
}

fn oracle_backward(inputs: &Inputs) -> Result<Values> {
    let [z, dz, dk, dg, q, dq, d_last] = ["z", "dz", "dk", "dg", "q", "dq", "dz_final"].map(|name| inputs.values(name));
    with_scan(inputs, |scan, x| {
        let z = z.unwrap_or_else(|| reference::forward(scan, x).z);
        let reads = q.as_deref().zip(dq.as_deref());
        let adjoint =
            Adjoint { dz: dz.as_deref(), dk: dk.as_deref(), dg: dg.as_deref(), reads, d_last: d_last.as_deref() };
        let out = reference::backward(scan, x, &z, &adjoint);
        Values::from([("dx".into(), out.dx), ("dz0".into(), out.d_initial)])
    })
}

/// Forward, reverse with flags and states, packed; with these adjoints.
fn cases(dtype: DType, adjoints: &[&str]) -> Vec<Case> {
    let starts = [0, 0, 7, 60];
    [
        ("forward", [2, 70, 70], "false"),
        ("reverse, flags, states", [2, 33, 64], "true"),
        ("packed", [1, 64, 5], "false"),
    ]
    .map(|(name, shape @ [b, t, d], reverse)| {
        let n = b * t * d;
        let wide: Vec<f64> = wave(1.0, n).iter().map(|v| 4.0 * v).collect();
        let packed = name == "packed";
        let states = [if packed { starts.len() - 1 } else { b }, d];
        let state = |phase| Tensor::floats(DType::F32, &states, &wave(phase, states[0] * d));
        let mut tensors = Tensors::from([("x".into(), Tensor::floats(dtype, &shape, &wide))]);
        if packed {
            tensors.insert("cu_seqlens".into(), Tensor::indices(&[starts.len()], &starts));
        }
        if name != "forward" {
            let flags: Vec<u8> =
                (0..b * t).map(|i| [0, 0, 1, 0, 2, 0, 0, 3][i * 5 % 8] * u8::from(i % 9 < 4)).collect();
            tensors.insert("flags".into(), Tensor::flags(&[b, t], &flags));
            tensors.insert("z0".into(), state(3.0));
            if !adjoints.is_empty() {
                tensors.insert("dz_final".into(), state(4.0));
            }
        }
        for (phase, adjoint) in adjoints.iter().enumerate() {
            let kind = if ["dz", "dg"].contains(adjoint) { DType::F32 } else { dtype };
            tensors.insert((*adjoint).into(), Tensor::floats(kind, &shape, &wave(5.0 + phase as f64, n)));
        }
        let name = if adjoints.contains(&"q") { format!("{name}, by q and dq") } else { name.into() };
        Case { name, tensors, attributes: vec![format!("reverse={reverse}")] }
    })
    .into()
}
