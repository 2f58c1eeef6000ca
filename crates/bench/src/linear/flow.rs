//! Attention that conserves flow.

use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Result};
use lookback_linear::flow::{BackwardOutputs, BackwardPlan, Inputs, Options, Plan, Shape};

/// Causal, and from queries to other keys.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let [batch, tokens, heads, dim] = match scale {
        Scale::Full => [4, 4096, 32, 64],
        Scale::Small => [1, 128, 2, 64],
    };
    let shapes =
        [Shape::causal(batch, tokens, heads, dim, dim), Shape::normal(batch, [tokens, tokens], heads, dim, dim)];
    let forward = shapes.iter().map(|shape| forward(info, shape));
    forward.chain(shapes.iter().map(|shape| backward(info, shape))).collect()
}

fn facts(operation: &'static str, shape: &Shape) -> Facts {
    let Shape { batch, queries, heads, key_dim, causal, .. } = *shape;
    let extents = [("batch", batch), ("tokens", queries), ("heads", heads), ("head_dim", key_dim)];
    Facts::new("linear", operation, if causal { "causal" } else { "" }, "bf16", &extents)
}

fn rows(shape: &Shape) -> [usize; 4] {
    [shape.batch, shape.queries, shape.heads, shape.key_dim]
}

fn forward(info: &DeviceInfo, shape: &Shape) -> Case {
    let rows = rows(shape);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let [q, k, v] = ["q", "k", "v"].map(|name| memory.normal::<bf16>(name, &rows));
            Ok(([q?, k?, v?], memory.output::<bf16>("out", &rows)?))
        })?;
        let mut workspace = memory.scratch::<u8>("workspace", plan.workspace_bytes())?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let ([q, k, v], out) = &mut sets[set];
            plan.run(&stream, &Inputs::of(q, k, v), out, &mut workspace)
        }))
    };
    let plan = Plan::new(shape, &Options::new::<bf16>(), info);
    Case::planned(facts("flow_attention", shape), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn backward(info: &DeviceInfo, shape: &Shape) -> Case {
    let rows = rows(shape);
    let maker = move |plan: BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let [q, k, v, dout] = ["q", "k", "v", "dout"].map(|name| memory.normal::<bf16>(name, &rows));
            let [dq, dk, dv] = ["dq", "dk", "dv"].map(|name| memory.output::<bf16>(name, &rows));
            Ok(([q?, k?, v?, dout?], [dq?, dk?, dv?]))
        })?;
        let mut workspace = memory.scratch::<u8>("workspace", plan.workspace_bytes())?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let ([q, k, v, dout], [dq, dk, dv]) = &mut sets[set];
            plan.run(&stream, &Inputs::of(q, k, v), dout, BackwardOutputs { dq, dk, dv }, &mut workspace)
        }))
    };
    let plan = BackwardPlan::new(shape, &Options::new::<bf16>(), info);
    // Three inputs, an adjoint and three gradients.
    let bytes = 7 * 2 * rows.iter().product::<usize>() as u64;
    Case::planned(facts("flow_attention_backward", shape), plan, move |_| [bytes, 0], maker)
}
