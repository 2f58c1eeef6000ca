//! Running sums of exponentials, and the gates that are made of them.

use super::Sizes;
use crate::{Case, Facts, Launch, Memory};
use half::bf16;
use lookback_device::{
    DeviceInfo, Result,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_scan::log_cumsum_exp::{
    BackwardInputs, BackwardOutputs, BackwardPlan, GateAdjoint, Inputs, Options, Outputs, Plan, Shape,
};

/// In bf16, with f32 sums.
pub fn cases(info: &DeviceInfo, sizes: Sizes) -> Vec<Case> {
    let gradients = [Adjoints::Sums, Adjoints::Gates, Adjoints::Attention];
    let forward = [false, true].into_iter().map(|gates| forward(info, sizes, gates));
    forward.chain(gradients.into_iter().map(|adjoints| backward(info, sizes, adjoints))).collect()
}

fn facts(operation: &'static str, what: &str, [batch, tokens, channels]: Sizes) -> Facts {
    Facts::new("scan", operation, what, "bf16", &[("batch", batch), ("tokens", tokens), ("channels", channels)])
}

/// Bytes of that many tensors in bf16, and in f32.
fn bytes(sizes: Sizes, [halves, floats]: [u64; 2]) -> u64 {
    (2 * halves + 4 * floats) * sizes.iter().product::<usize>() as u64
}

fn forward(info: &DeviceInfo, sizes: Sizes, gates: bool) -> Case {
    let [batch, tokens, channels] = sizes;
    let plan = Plan::new(&Shape::dense(batch, tokens, channels), &Options::new::<bf16>(), info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let x = memory.normal::<bf16>("x", &sizes)?;
            let z = memory.output::<f32>("z", &sizes)?;
            let more = match gates {
                true => Some((memory.output::<bf16>("k", &sizes)?, memory.output::<f32>("g", &sizes)?)),
                false => None,
            };
            Ok((x, z, more))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, z, more) = &mut sets[set];
            let mut outputs = Outputs { z: Some(z), k: None, g: None, last: None };
            if let Some((k, g)) = more {
                outputs = Outputs { k: Some(k), g: Some(g), ..outputs };
            }
            plan.run(&stream, &Inputs::of(x), outputs)
        }))
    };
    let (name, moved) = if gates { ("light_net_gates", [2, 2]) } else { ("log_cumsum_exp", [1, 1]) };
    Case::planned(facts(name, "", sizes), plan, move |_| [bytes(sizes, moved), 0], maker)
}

/// What is known of the adjoints.
#[derive(Clone, Copy, PartialEq)]
enum Adjoints {
    /// That of `z`.
    Sums,
    /// Those of `k` and `g`.
    Gates,
    /// What a linear attention with these gates gives.
    Attention,
}

fn backward(info: &DeviceInfo, sizes: Sizes, adjoints: Adjoints) -> Case {
    let [batch, tokens, channels] = sizes;
    let plan = BackwardPlan::new(&Shape::dense(batch, tokens, channels), &Options::new::<bf16>(), info);
    let maker = move |plan: BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let x = memory.normal::<bf16>("x", &sizes)?;
            // Above every `x`, as sums are.
            let z = memory.between::<f32>("z", &sizes, [6.0, 7.0])?;
            let mut halves = |name, wanted: bool| wanted.then(|| memory.normal::<bf16>(name, &sizes)).transpose();
            let dk = halves("dk", adjoints != Adjoints::Sums)?;
            let [q, dq] = ["q", "dq"].map(|name| halves(name, adjoints == Adjoints::Attention));
            let mut floats = |name, wanted: bool| wanted.then(|| memory.normal::<f32>(name, &sizes)).transpose();
            let dz = floats("dz", adjoints == Adjoints::Sums)?;
            let dg = floats("dg", adjoints == Adjoints::Gates)?;
            Ok((x, z, (dk, q?, dq?), (dz, dg), memory.output::<bf16>("dx", &sizes)?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, z, (dk, q, dq), (dz, dg), dx) = &mut sets[set];
            let gates = match (&*dk, &*q, &*dq) {
                (Some(dk), Some(q), Some(dq)) => GateAdjoint::LinearAttention { q, dq, dk },
                (dk, ..) => GateAdjoint::Plain {
                    dk: dk.as_ref().map(|s| s as &dyn DevicePtr<bf16>),
                    dg: dg.as_ref().map(|s| s as &dyn DevicePtr<f32>),
                },
            };
            let dz = dz.as_ref().map(|s| s as &dyn DevicePtr<f32>);
            let inputs = BackwardInputs { forward: Inputs::of(x), z, dz, gates, d_last: None };
            let outputs = BackwardOutputs { dx: dx as &mut dyn DevicePtrMut<bf16>, d_initial: None };
            plan.run(&stream, &inputs, outputs)
        }))
    };
    let (name, what, moved) = match adjoints {
        Adjoints::Sums => ("log_cumsum_exp_backward", "", [2, 2]),
        Adjoints::Gates => ("light_net_gates_backward", "", [3, 2]),
        Adjoints::Attention => ("light_net_gates_backward", "by q and dq", [5, 1]),
    };
    Case::planned(facts(name, what, sizes), plan, move |_| [bytes(sizes, moved), 0], maker)
}
