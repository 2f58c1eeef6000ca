//! Linear attention along time.

use super::{Tensors, facts, unwanted_states};
use crate::{Case, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Result};
use lookback_linear::{Decay, Features, Mode, Options, Outputs, Path, Plan, Shape};

/// What published models are made of.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    // Rows, tokens, heads, entries of keys and of values.
    let dense = |[b, t, h, k, v]: [usize; 5]| Shape::dense(b, t, h, k, v);
    // As in Mamba-2: one group of keys of 128 for all heads, values of 64.
    let grouped = |[b, t, h]: [usize; 3]| Shape { query_heads: 1, key_heads: 1, ..Shape::dense(b, t, h, 128, 64) };
    let (plain, wide, segments, groups, features) = match scale {
        Scale::Full => (
            vec![
                [4, 4096, 64, 128, 128],
                [1, 8192, 96, 128, 128],
                [2, 16_384, 16, 128, 128],
                [8, 2048, 32, 256, 256],
                [8, 1024, 8, 64, 64],
                [1, 131_072, 16, 128, 128],
            ],
            [8, 8192, 8, 256, 512],
            [1, 4096, 64, 128, 128],
            vec![[8, 2048, 128], [1, 2048, 128], [4, 32_768, 128], [8, 2048, 24]],
            [4, 4096, 16, 16, 64],
        ),
        Scale::Small => (
            vec![[1, 256, 2, 128, 128], [1, 128, 1, 256, 256], [2, 128, 2, 64, 64]],
            [1, 128, 1, 256, 512],
            [1, 512, 1, 128, 128],
            vec![[1, 256, 4]],
            [1, 128, 2, 16, 64],
        ),
    };
    let first = plain.first().copied().unwrap_or(wide);
    let mut cases = Vec::new();
    let mut add = |shape: Shape, what: &str, change: &dyn Fn(Options) -> Options| {
        cases.push(forward(info, &shape, &change(Options::new::<bf16>(&shape)), what));
    };
    for sizes in plain {
        add(dense(sizes), "", &|options| options);
    }
    let with = |decay| move |options| Options { decay, ..options };
    add(dense(first), "head", &with(Decay::Head));
    add(dense(first), "scalar", &with(Decay::Scalar));
    add(dense(wide), "scalar", &with(Decay::Scalar));
    add(dense(first), "vector", &with(Decay::Vector));
    for sizes in groups {
        add(grouped(sizes), "scalar, one group", &with(Decay::Scalar));
    }
    let parallel = |options| Options { decay: Decay::Scalar, path: Path::Parallel, ..options };
    add(dense(segments), "scalar, segments", &parallel);
    let both = |options| Options { decay: Decay::Scalar, mode: Mode::Bidirectional, ..options };
    add(dense(first), "scalar, bidirectional", &both);
    let [_, tokens, heads, key_dim, value_dim] = segments;
    let prefix = [2, 4 * tokens, heads.div_ceil(4), key_dim, value_dim];
    add(dense(prefix), "prefix", &|options| Options { mode: Mode::PrefixRead, ..options });
    let taylor = |options| Options { features: Features::Taylor, scale: 1.0, normalize: Some(1e-6), ..options };
    add(dense(features), "taylor", &taylor);
    let [batch, tokens, heads, ..] = features;
    let recurrent = |options| Options { decay: Decay::Vector, path: Path::Recurrent, ..options };
    add(dense([batch, tokens, heads, 64, 64]), "vector, recurrent", &recurrent);
    cases
}

fn forward(info: &DeviceInfo, shape: &Shape, options: &Options, what: &str) -> Case {
    let (shape, options) = (*shape, *options);
    let plan = Plan::new(&shape, &options, info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let output = [shape.batch, shape.seq_len, shape.heads, shape.value_dim];
            Ok((Tensors::new(memory, &shape, &options)?, memory.output::<bf16>("o", &output)?))
        })?;
        let mut workspace = memory.scratch::<u8>("workspace", plan.workspace_bytes())?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (tensors, o) = &mut sets[set];
            plan.run(&stream, &tensors.inputs(), Outputs::of(o), Some(&mut workspace))
        }))
    };
    // Token by token nothing runs on tensor cores.
    let work = move |plan: &Plan| {
        let flops = if options.path == Path::Recurrent { 0 } else { plan.flops() };
        [plan.bytes_moved() - unwanted_states(&shape, &options), flops]
    };
    Case::planned(facts("linear_attention", what, "bf16", &shape), plan, work, maker)
}
