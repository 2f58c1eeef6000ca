//! Gradients of linear attention along time.

use super::{Tensors, facts, unwanted_states};
use crate::{Case, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Result};
use lookback_linear::{BackwardInputs, BackwardOutputs, BackwardPlan, Decay, Mode, Options, Shape};

/// One shape for all decays.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let shape = match scale {
        Scale::Full => Shape::dense(4, 4096, 64, 128, 128),
        Scale::Small => Shape::dense(1, 128, 1, 128, 128),
    };
    let causal = |decay| Options { decay, ..Options::new::<bf16>(&shape) };
    let both = Options { mode: Mode::Bidirectional, ..causal(Decay::Scalar) };
    vec![
        backward(info, &shape, &causal(Decay::None), ""),
        backward(info, &shape, &causal(Decay::Scalar), "scalar"),
        backward(info, &shape, &causal(Decay::Vector), "vector"),
        backward(info, &shape, &both, "scalar, bidirectional"),
    ]
}

fn backward(info: &DeviceInfo, shape: &Shape, options: &Options, what: &str) -> Case {
    let (shape, options) = (*shape, *options);
    let plan = BackwardPlan::new(&shape, &options, info);
    let maker = move |plan: BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let rows = [shape.batch, shape.seq_len, shape.heads];
        let tensor = |heads, width| [rows[0], rows[1], heads, width];
        let mut sets = memory.sets(|memory| {
            let inputs = Tensors::new(memory, &shape, &options)?;
            let d_o = memory.normal::<bf16>("do", &tensor(rows[2], shape.value_dim))?;
            let dq = memory.output::<bf16>("dq", &tensor(shape.query_heads, shape.key_dim))?;
            let dk = memory.output::<bf16>("dk", &tensor(shape.key_heads, shape.key_dim))?;
            let dv = memory.output::<bf16>("dv", &tensor(rows[2], shape.value_dim))?;
            let dg = match options.decay {
                Decay::None => None,
                Decay::Head => Some(memory.output::<f32>("dg", &rows[2..])?),
                Decay::Scalar => Some(memory.output::<f32>("dg", &rows)?),
                Decay::Vector => Some(memory.output::<f32>("dg", &tensor(rows[2], shape.key_dim))?),
            };
            Ok((inputs, d_o, [dq, dk, dv], dg))
        })?;
        let mut workspace = memory.scratch::<u8>("workspace", plan.workspace_bytes())?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (tensors, d_o, [dq, dk, dv], dg) = &mut sets[set];
            let mut outputs = BackwardOutputs::of(dq, dk, dv);
            outputs.dg = dg.as_mut().map(|dg| dg as _);
            let inputs = BackwardInputs::of(tensors.inputs(), d_o);
            plan.run(&stream, &inputs, outputs, Some(&mut workspace))
        }))
    };
    let work = move |plan: &BackwardPlan| {
        let adjoints = unwanted_states(&shape, &Options { mode: Mode::Causal, ..options });
        let states = unwanted_states(&shape, &options) + adjoints;
        [plan.bytes_moved() - states, plan.flops()]
    };
    Case::planned(facts("linear_attention_backward", what, "bf16", &shape), plan, work, maker)
}
