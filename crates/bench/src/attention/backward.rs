//! Gradients of queries, keys and values; `dq` in a fixed order, or as blocks finish.

use super::{Sizes, extents, facts, shape};
use crate::{Case, Launch, Memory, Scale};
use half::bf16;
use lookback_attention::{
    BackwardInputs, BackwardOptions, BackwardPlan, Inputs, Mask, Options, Outputs, Plan,
    backward::{Adjoint, Final, Gradients, Rows},
};
use lookback_device::{DeviceInfo, Result};

/// In bf16.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let sizes = match scale {
        Scale::Full => vec![
            ([1, 8192, 32, 8, 128], Mask::Causal, true),
            ([1, 8192, 32, 8, 128], Mask::Causal, false),
            ([1, 4096, 32, 8, 128], Mask::Full, true),
            ([1, 8192, 32, 8, 64], Mask::Causal, true),
            ([1, 4096, 32, 8, 64], Mask::Full, true),
        ],
        Scale::Small => [64, 128]
            .into_iter()
            .flat_map(|dim| [true, false].map(|fixed| ([1, 128, 2, 1, dim], Mask::Causal, fixed)))
            .collect(),
    };
    sizes.into_iter().map(|(sizes, mask, fixed)| backward(info, sizes, mask, fixed)).collect()
}

fn backward(info: &DeviceInfo, sizes: Sizes, mask: Mask, deterministic: bool) -> Case {
    let shape = shape(sizes);
    let options = Options { mask, ..Options::new::<bf16>(&shape) };
    let plans = Plan::new(&shape, &options, info).and_then(|forward| {
        let options = BackwardOptions { deterministic, ..BackwardOptions::new(options) };
        Ok((forward, BackwardPlan::new(&shape, &options, info)?))
    });
    let maker = move |(forward, plan): (Plan, BackwardPlan), memory: &mut Memory| -> Result<Launch> {
        let [rows, keys] = extents(sizes);
        let stream = memory.stream();
        let mut sets = memory.sets(|memory| {
            let q = memory.normal::<bf16>("q", &rows)?;
            let [k, v] = ["k", "v"].map(|name| memory.normal::<bf16>(name, &keys));
            let (k, v, d_o) = (k?, v?, memory.normal::<bf16>("do", &rows)?);
            let (mut o, mut lse) = (memory.saved::<bf16>("o", &rows)?, memory.saved::<f32>("lse", &rows[..3])?);
            forward.run(&stream, &Inputs::of(&q, &k, &v), Outputs::with_lse(&mut o, &mut lse))?;
            let dq = memory.output::<bf16>("dq", &rows)?;
            let [dk, dv] = ["dk", "dv"].map(|name| memory.output::<bf16>(name, &keys));
            Ok(([q, k, v], [d_o, o], lse, [dq, dk?, dv?]))
        })?;
        let mut workspace = memory.scratch::<f32>("workspace", plan.workspace_bytes())?;
        Ok(Box::new(move |set| {
            let ([q, k, v], [d_o, o], lse, [dq, dk, dv]) = &mut sets[set];
            let rows = Rows::Final(Final { o, lse, d_lse: None });
            let given = BackwardInputs { inputs: Inputs::of(q, k, v), adjoint: Adjoint { d_o, rows } };
            plan.run::<bf16, bf16, bf16>(&stream, &given, Gradients::of(dq, dk, dv), &mut workspace)
        }))
    };
    let what = if deterministic { "" } else { "any order" };
    let work = |(_, plan): &(Plan, BackwardPlan)| [plan.bytes_moved(), plan.flops()];
    Case::planned(facts("attention_backward", what, sizes, mask), plans, work, maker)
}
