//! States of attention over parts of the keys, merged.

use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_attention::merge::{Inputs, Options, Outputs, Plan, Shape};
use lookback_device::{DType, DeviceInfo, Result};

/// `[states, tokens, heads, value dimension]`.
type Sizes = [usize; 4];

/// A step of a ring, and parts of a cache.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let (pair, parts) = match scale {
        Scale::Full => ([1, 8192, 32, 128], [8, 4096, 32, 128]),
        Scale::Small => ([1, 512, 4, 128], [8, 256, 4, 128]),
    };
    vec![running(info, pair), merged(info, parts)]
}

fn facts(what: &str, [states, tokens, heads, dim]: Sizes) -> Facts {
    let extents = [("states", states), ("tokens", tokens), ("heads", heads), ("value_dim", dim)];
    Facts::new("attention", "merge_states", what, "bf16", &extents)
}

/// One state in bf16 into a running one in f32.
fn running(info: &DeviceInfo, sizes: Sizes) -> Case {
    let [states, tokens, heads, dim] = sizes;
    let shape = Shape::dense(states, 1, tokens, heads, dim);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let (o, lse) = (memory.normal::<bf16>("o", &sizes)?, memory.normal::<f32>("lse", &sizes[..3])?);
            Ok((o, lse, memory.state::<f32>("out", &sizes[1..])?, memory.state::<f32>("lse_out", &sizes[1..3])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (o, lse, out, lse_out) = &mut sets[set];
            let inputs = Inputs { o, lse, starts: None, sink: None };
            plan.run(&stream, &inputs, Outputs { out, lse: Some(lse_out) })
        }))
    };
    let plan = Plan::new(&shape, &Options::accumulate(DType::Bf16), info);
    Case::planned(facts("running", sizes), plan, |plan| [plan.bytes_moved(), 0], maker)
}

/// States in f32 into one in bf16.
fn merged(info: &DeviceInfo, sizes: Sizes) -> Case {
    let [states, tokens, heads, dim] = sizes;
    let shape = Shape::dense(states, 1, tokens, heads, dim);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let (o, lse) = (memory.normal::<f32>("o", &sizes)?, memory.normal::<f32>("lse", &sizes[..3])?);
            Ok((o, lse, memory.output::<bf16>("out", &sizes[1..])?, memory.output::<f32>("lse_out", &sizes[1..3])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (o, lse, out, lse_out) = &mut sets[set];
            let inputs = Inputs { o, lse, starts: None, sink: None };
            plan.run(&stream, &inputs, Outputs { out, lse: Some(lse_out) })
        }))
    };
    let plan = Plan::new(&shape, &Options { out: DType::Bf16, ..Options::new(DType::F32) }, info);
    Case::planned(facts("", sizes), plan, |plan| [plan.bytes_moved(), 0], maker)
}
