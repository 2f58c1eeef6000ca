//! Scans whose gates are computed on the way: `gated_ssm_scan`, `rg_lru_scan` and their backwards.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    gated_scan::{
        CU_SEQLENS, DETERMINISTIC, DH, DH_FINAL, DH0, FLAGS, H, H_FINAL, H0, Reference, SAVED_H, SPLIT, backward,
        dense_extras, forward, saved,
    },
    inputs::{AttributeSpec, TensorSpec, required},
    wave,
};
use crate::{Result, session::Session, tensor::Tensor, tensor::Tensors};
use lookback_device::{DType, Element};
use lookback_reference::gated_scan::{self as reference};
use lookback_scan::Source;

const F: TensorSpec = required("f", "T", "[B,T,D]", "logit of the decay: a = sigmoid(f)");
const I: TensorSpec = required("i", "T", "[B,T,D]", "logit of the input gate");
const Z: TensorSpec = required("z", "T", "[B,T,D]", "input: b = sigmoid(i) z");
const R: TensorSpec = required("r", "T", "[B,T,D]", "logit of the recurrence gate");
const X: TensorSpec = required("x", "T", "[B,T,D]", "input");
const LAMBDA: TensorSpec = required("lambda", "f32", "[D]", "log a = -8 sigmoid(r) softplus(lambda)");
const NORMALIZE: AttributeSpec =
    AttributeSpec { name: "normalize", values: "true|false", default: "false", about: "b times sqrt(1 - a^2 + 1e-6)" };
const UNIT_AT_RESET: AttributeSpec = AttributeSpec {
    name: "unit_at_reset",
    values: "true|false",
    default: "true",
    about: "b = sigmoid(i) x, without the root, where the state starts from nothing",
};
const SSM_NAMES: [&str; 4] = ["f", "i", "z", ""];
const LRU_NAMES: [&str; 4] = ["r", "i", "x", "lambda"];

/// The Gated SSM's scan.
pub static GATED_SSM: Operation = Operation {
    name: "gated_ssm_scan",
    about: "h[t] = sigmoid(f[t]) h[t-1] + sigmoid(i[t]) z[t], gates computed on the way",
    inputs: &[F, I, Z, FLAGS, H0, CU_SEQLENS],
    attributes: &[SPLIT, NORMALIZE, DETERMINISTIC],
    outputs: &[H, H_FINAL],
    run: |session, inputs| for_dtype!(inputs.dtype, run_ssm(session, inputs)),
    oracle: |inputs| {
        let (a, b) = ssm_gates(inputs)?;
        states(inputs, &a, &b)
    },
    cases: |dtype| cases(dtype, SSM_NAMES, "normalize=true", false),
};

/// Its gradients.
pub static GATED_SSM_BACKWARD: Operation = Operation {
    name: "gated_ssm_scan_backward",
    about: "gradients of gated_ssm_scan",
    inputs: &[F, I, Z, FLAGS, H0, CU_SEQLENS, SAVED_H, DH, DH_FINAL],
    attributes: &[SPLIT, NORMALIZE, DETERMINISTIC],
    outputs: &[
        required("df", "T", "[B,T,D]", "adjoint of f"),
        required("di", "T", "[B,T,D]", "adjoint of i"),
        required("dz", "T", "[B,T,D]", "adjoint of z"),
        DH0,
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run_ssm_backward(session, inputs)),
    oracle: ssm_gradients,
    cases: |dtype| cases(dtype, SSM_NAMES, "normalize=true", true),
};

/// The RG-LRU.
pub static RG_LRU: Operation = Operation {
    name: "rg_lru_scan",
    about: "h[t] = a[t] h[t-1] + sqrt(1 - a[t]^2) sigmoid(i[t]) x[t], log a = -8 sigmoid(r) softplus(lambda)",
    inputs: &[R, I, X, LAMBDA, FLAGS, H0, CU_SEQLENS],
    attributes: &[SPLIT, UNIT_AT_RESET, DETERMINISTIC],
    outputs: &[H, H_FINAL],
    run: |session, inputs| for_dtype!(inputs.dtype, run_lru(session, inputs)),
    oracle: |inputs| {
        let (a, b) = lru_gates(inputs)?;
        states(inputs, &a, &b)
    },
    cases: |dtype| cases(dtype, LRU_NAMES, "unit_at_reset=true", false),
};

/// Its gradients.
pub static RG_LRU_BACKWARD: Operation = Operation {
    name: "rg_lru_scan_backward",
    about: "gradients of rg_lru_scan; the slope of the root is clipped at 1000",
    inputs: &[R, I, X, LAMBDA, FLAGS, H0, CU_SEQLENS, SAVED_H, DH, DH_FINAL],
    attributes: &[SPLIT, UNIT_AT_RESET, DETERMINISTIC],
    outputs: &[
        required("dr", "T", "[B,T,D]", "adjoint of r"),
        required("di", "T", "[B,T,D]", "adjoint of i"),
        required("dx", "T", "[B,T,D]", "adjoint of x"),
        required("dlambda", "f32", "[D]", "adjoint of lambda"),
        DH0,
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run_lru_backward(session, inputs)),
    oracle: lru_gradients,
    cases: |dtype| cases(dtype, LRU_NAMES, "unit_at_reset=true", true),
};

fn ssm(inputs: &Inputs) -> Result<Source> {
    Ok(Source::GatedSsm { normalize: inputs.parse("normalize")? })
}

fn lru(inputs: &Inputs) -> Result<Source> {
    Ok(Source::RgLru { unit_at_reset: inputs.parse("unit_at_reset")? })
}

fn run_ssm<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    forward::<T>(session, inputs, ssm(inputs)?, SSM_NAMES)
}

fn run_ssm_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    backward::<T>(session, inputs, ssm(inputs)?, SSM_NAMES)
}

fn run_lru<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    forward::<T>(session, inputs, lru(inputs)?, LRU_NAMES)
}

fn run_lru_backward<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    backward::<T>(session, inputs, lru(inputs)?, LRU_NAMES)
}

fn values<const N: usize>(inputs: &Inputs, names: [&str; N]) -> Result<[Vec<f64>; N]> {
    let mut all = [const { Vec::new() }; N];
    for (values, name) in all.iter_mut().zip(names) {
        *values = inputs.tensor(name)?.to_f64();
    }
    Ok(all)
}

fn ssm_gates(inputs: &Inputs) -> Result<(Vec<f64>, Vec<f64>)> {
    let [f, i, z] = values(inputs, ["f", "i", "z"])?;
    Ok(reference::gated_ssm(&f, &i, &z, inputs.parse("normalize")?))
}

fn lru_gates(inputs: &Inputs) -> Result<(Vec<f64>, Vec<f64>)> {
    let [r, i, x, lambda] = values(inputs, LRU_NAMES)?;
    let options = Reference::new(inputs)?;
    Ok(reference::rg_lru(&options.scan(), (&r, &i, &x), &lambda, inputs.parse("unit_at_reset")?))
}

fn states(inputs: &Inputs, a: &[f64], b: &[f64]) -> Result<Values> {
    let out = reference::forward(&Reference::new(inputs)?.scan(), a, b);
    Ok(Values::from([("h".into(), out.h), ("h_final".into(), out.last)]))
}

/// Adjoints of the gates `a` and `b`, and of the initial states.
fn gate_gradients(inputs: &Inputs, a: &[f64], b: &[f64]) -> Result<reference::Backward> {
    let options = Reference::new(inputs)?;
    let h = saved(inputs, a, b)?;
    let (dh, d_last) = (inputs.tensor("dh")?.to_f64(), inputs.values("dh_final"));
    Ok(reference::backward(&options.scan(), a, &h, &dh, d_last.as_deref()))
}

fn ssm_gradients(inputs: &Inputs) -> Result<Values> {
    let (a, b) = ssm_gates(inputs)?;
    let gates = gate_gradients(inputs, &a, &b)?;
    let [f, i, z] = values(inputs, ["f", "i", "z"])?;
    let normalize = inputs.parse("normalize")?;
    let [df, di, dz] = reference::gated_ssm_backward((&f, &i, &z), normalize, &gates.da, &gates.db);
    Ok(Values::from([("df".into(), df), ("di".into(), di), ("dz".into(), dz), ("dh0".into(), gates.d_initial)]))
}

fn lru_gradients(inputs: &Inputs) -> Result<Values> {
    let (a, b) = lru_gates(inputs)?;
    let gates = gate_gradients(inputs, &a, &b)?;
    let [r, i, x, lambda] = values(inputs, LRU_NAMES)?;
    let (options, unit) = (Reference::new(inputs)?, inputs.parse("unit_at_reset")?);
    let ([dr, di, dx], dlambda) =
        reference::rg_lru_backward(&options.scan(), (&r, &i, &x), &lambda, unit, &gates.da, &gates.db);
    Ok(Values::from([
        ("dr".into(), dr),
        ("di".into(), di),
        ("dx".into(), dx),
        ("dlambda".into(), dlambda),
        ("dh0".into(), gates.d_initial),
    ]))
}

fn cases(dtype: DType, names: [&'static str; 4], attribute: &str, backward: bool) -> Vec<Case> {
    let shape = [2, 150, 66];
    let n = shape.iter().product();
    let [a, b, x, channel] = names;
    let case = |name: &str, split: usize, extras: bool| {
        let mut tensors = if extras { dense_extras(dtype, &shape, backward) } else { Tensors::new() };
        let logits: Vec<f64> = wave(1.0, n).iter().map(|v| 1.0 + 3.0 * v).collect();
        tensors.insert(a.into(), Tensor::floats(dtype, &shape, &logits));
        tensors.insert(b.into(), Tensor::floats(dtype, &shape, &wave(2.0, n)));
        tensors.insert(x.into(), Tensor::floats(dtype, &shape, &wave(6.0, n)));
        if !channel.is_empty() {
            tensors.insert(channel.into(), Tensor::floats(DType::F32, &shape[2..], &wave(7.0, shape[2])));
        }
        if backward {
            tensors.insert("h".into(), Tensor::floats(dtype, &shape, &wave(8.0, n)));
            tensors.insert("dh".into(), Tensor::floats(dtype, &shape, &wave(5.0, n)));
        }
        Case { name: name.into(), tensors, attributes: vec![format!("split={split}"), attribute.into()] }
    };
    vec![case("forward", shape[2], false), case("both ways, flags, states", 30, true)]
}
