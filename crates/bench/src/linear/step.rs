//! One token of decoding, states in place.

use super::{Tensors, facts};
use crate::{Case, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Result};
use lookback_linear::{
    Decay, Options, Shape,
    step::{Inputs, Outputs, Plan},
};

/// Few and many requests; states of Mamba-2 and of gated linear attention.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    // Requests, heads, entries of keys and values.
    let sizes = match scale {
        Scale::Full => vec![[1, 128, 128, 64], [64, 128, 128, 64], [256, 128, 128, 64], [64, 32, 128, 128]],
        Scale::Small => vec![[4, 4, 128, 64], [2, 2, 128, 128]],
    };
    sizes.into_iter().map(|[batch, heads, k, v]| step(info, &Shape::dense(batch, 1, heads, k, v))).collect()
}

fn step(info: &DeviceInfo, shape: &Shape) -> Case {
    let shape = *shape;
    let options = Options { decay: Decay::Scalar, ..Options::new::<bf16>(&shape) };
    let plan = Plan::new(&shape, &options, info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let Shape { batch, heads, key_dim, value_dim, .. } = shape;
        let mut sets = memory.sets(|memory| {
            let tensors = Tensors::new(memory, &shape, &options)?;
            let state = memory.state::<f32>("state", &[batch, heads, key_dim, value_dim])?;
            Ok((tensors, state, memory.output::<bf16>("o", &[batch, heads, value_dim])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (Tensors { q, k, v, g, .. }, state, o) = &mut sets[set];
            let inputs = Inputs { q, k, v, g: g.as_ref().map(|g| g as _), bonus: None };
            plan.run(&stream, &inputs, Outputs { state, z: None, o, den: None })
        }))
    };
    let work = |plan: &Plan| [plan.bytes_moved(), 0];
    Case::planned(facts("linear_attention_step", "scalar", "bf16", &shape), plan, work, maker)
}
