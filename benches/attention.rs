//! Softmax attention in blocks: forward, backward, and the merging of states.

use crate::{Case, ROTATION_BYTES, filled, varied};
use half::bf16;
use lookback_attention::{
    BackwardInputs, BackwardOptions, BackwardPlan, Inputs, Mask, Options, Output, Outputs, Plan, Shape,
    backward::{Adjoint, Final, Gradients, Rows},
    merge,
};
use lookback_device::{DType, DeviceInfo, cudarc::driver::CudaSlice};
use lookback_suite::{buffer::upload, device};

/// `[batch, tokens, heads, key heads, head dimension]`.
type Sizes = [usize; 5];

/// What models and rings ask for. One after the other is made, because some take gigabytes.
pub fn cases(info: &DeviceInfo) -> impl Iterator<Item = Case> {
    let full = Mask::Full;
    let forward_cases = [
        ([1, 4096, 64, 8, 128], Mask::Causal),
        ([1, 8192, 64, 8, 128], Mask::Causal),
        ([1, 8192, 32, 32, 128], Mask::Causal),
        ([4, 4096, 16, 16, 128], Mask::Causal),
        ([1, 4096, 64, 8, 128], full),
        ([1, 8192, 32, 8, 128], full),
        ([2, 8192, 64, 8, 64], Mask::Causal),
        ([1, 4096, 32, 8, 64], full),
        ([1, 8192, 32, 8, 64], full),
    ];
    let backward_cases = [
        ([1, 8192, 32, 8, 128], Mask::Causal, true),
        ([1, 8192, 32, 8, 128], Mask::Causal, false),
        ([1, 4096, 32, 8, 128], full, true),
        ([1, 8192, 32, 8, 64], Mask::Causal, true),
        ([1, 4096, 32, 8, 64], full, true),
    ];
    // A step of a ring; parts of a cache.
    of(
        info,
        forward_cases.to_vec(),
        [1, 8192, 32, 8, 128],
        backward_cases.to_vec(),
        [1, 8192, 32, 128],
        [8, 4096, 32, 128],
    )
}

/// The same where the emulator counts.
pub fn small_cases(info: &DeviceInfo) -> impl Iterator<Item = Case> {
    let forward_cases =
        [64, 128].into_iter().flat_map(|dim| [Mask::Causal, Mask::Full].map(|m| ([1, 512, 4, 2, dim], m)));
    let backward_cases =
        [64, 128].into_iter().flat_map(|dim| [true, false].map(|d| ([1, 256, 4, 2, dim], Mask::Causal, d)));
    of(info, forward_cases.collect(), [1, 512, 4, 2, 128], backward_cases.collect(), [1, 512, 4, 128], [8, 256, 4, 128])
}

fn of(
    info: &DeviceInfo,
    forward_cases: Vec<(Sizes, Mask)>,
    step: Sizes,
    backward_cases: Vec<(Sizes, Mask, bool)>,
    pair: [usize; 4],
    states: [usize; 4],
) -> impl Iterator<Item = Case> {
    let attended = forward_cases.into_iter().map(|(sizes, mask)| forward(info, sizes, mask, Output::Same));
    let stepped = std::iter::once_with(move || forward(info, step, Mask::Full, Output::Merge));
    let gradients = backward_cases.into_iter().map(|(sizes, mask, fixed)| backward(info, sizes, mask, fixed));
    let merged = std::iter::once_with(move || merged(info, pair, true));
    let gathered = std::iter::once_with(move || self::merged(info, states, false));
    attended.chain(stepped).chain(gradients).chain(merged).chain(gathered)
}

fn shape([batch, tokens, heads, key_heads, dim]: Sizes) -> Shape {
    Shape { key_heads, ..Shape::dense(batch, tokens, tokens, heads, dim) }
}

fn name(op: &str, [batch, tokens, heads, key_heads, dim]: Sizes, mask: Mask) -> String {
    let mask = if mask == Mask::Full { "full" } else { "causal" };
    format!("{op} bf16 {mask} {batch}x{tokens} {heads}/{key_heads}x{dim}")
}

/// Queries, keys, values: normal, so that maxima move as they do in models.
fn tensors([batch, tokens, heads, key_heads, dim]: Sizes) -> [CudaSlice<bf16>; 3] {
    let rows = batch * tokens * dim;
    [(1, heads), (2, key_heads), (3, key_heads)].map(|(seed, heads)| varied(rows * heads, seed))
}

fn forward(info: &DeviceInfo, sizes: Sizes, mask: Mask, output: Output) -> Case {
    let stream = device::stream();
    let shape = shape(sizes);
    let options = Options { mask, output, ..Options::new::<bf16>(&shape) };
    let plan = Plan::new(&shape, &options, info).expect("a good shape");
    let [batch, tokens, heads, _, dim] = sizes;
    let rows = batch * tokens * heads;
    let sets = (ROTATION_BYTES / plan.bytes_moved() as usize).max(1);
    let merges = output == Output::Merge;
    let mut sets_of_tensors: Vec<_> = (0..sets)
        .map(|_| {
            let same = upload(&vec![bf16::ZERO; if merges { 0 } else { rows * dim }]);
            let sums = upload(&vec![0_f32; if merges { rows * dim } else { 0 }]);
            // The state before: one more key of weight e^3 for every row.
            (tensors(sizes), same, sums, filled::<f32>(&stream, rows, 3.0))
        })
        .collect();
    Case {
        name: name(if merges { "attention, merged" } else { "attention" }, sizes, mask),
        bytes: plan.bytes_moved(),
        flops: plan.flops(),
        sets,
        launch: Box::new(move |i| {
            let ([q, k, v], same, sums, lse) = &mut sets_of_tensors[i];
            let inputs = Inputs::of(q, k, v);
            match merges {
                true => plan.run(&stream, &inputs, Outputs::with_lse(sums, lse)),
                false => plan.run(&stream, &inputs, Outputs::with_lse(same, lse)),
            }
            .expect("launch");
        }),
    }
}

/// Gradients of queries, keys and values; `dq` in a fixed order, or as blocks finish.
fn backward(info: &DeviceInfo, sizes: Sizes, mask: Mask, deterministic: bool) -> Case {
    let stream = device::stream();
    let shape = shape(sizes);
    let options = Options { mask, ..Options::new::<bf16>(&shape) };
    let forward = Plan::new(&shape, &options, info).expect("a good shape");
    let plan = BackwardPlan::new(&shape, &BackwardOptions { deterministic, ..BackwardOptions::new(options) }, info)
        .expect("a good shape");
    let [batch, tokens, heads, _, dim] = sizes;
    let rows = batch * tokens * heads;
    let [q, k, v] = tensors(sizes);
    let d_o = varied::<bf16>(rows * dim, 4);
    let (mut o, mut lse) = (filled::<bf16>(&stream, rows * dim, 0.0), filled::<f32>(&stream, rows, 0.0));
    forward.run(&stream, &Inputs::of(&q, &k, &v), Outputs::with_lse(&mut o, &mut lse)).expect("launch");
    let [mut dq, mut dk, mut dv] = tensors(sizes);
    let mut workspace = filled::<f32>(&stream, plan.workspace_bytes() as usize / 4, 0.0);
    let op = if deterministic { "attention_backward" } else { "attention_backward, any order" };
    Case {
        name: name(op, sizes, mask),
        bytes: plan.bytes_moved(),
        flops: plan.flops(),
        sets: 1,
        launch: Box::new(move |_| {
            let rows = Rows::Final(Final { o: &o, lse: &lse, d_lse: None });
            let given = BackwardInputs { inputs: Inputs::of(&q, &k, &v), adjoint: Adjoint { d_o: &d_o, rows } };
            let gradients = Gradients::of(&mut dq, &mut dk, &mut dv);
            plan.run::<bf16, bf16, bf16>(&stream, &given, gradients, &mut workspace).expect("launch");
        }),
    }
}

/// `[states, tokens, heads, value dimension]`: f32 states into bf16, or bf16 states into a running one.
fn merged(info: &DeviceInfo, [states, tokens, heads, dim]: [usize; 4], accumulate: bool) -> Case {
    let stream = device::stream();
    let shape = merge::Shape::dense(states, 1, tokens, heads, dim);
    let options = match accumulate {
        true => merge::Options::accumulate(DType::Bf16),
        false => merge::Options { out: DType::Bf16, ..merge::Options::new(DType::F32) },
    };
    let plan = merge::Plan::new(&shape, &options, info).expect("a good shape");
    let rows = tokens * heads;
    let lse = varied::<f32>(states * rows, 5);
    let mut lse_out = filled::<f32>(&stream, rows, 1.0);
    let sizes = format!("{states}x{tokens} {heads}x{dim}");
    let (bytes, flops, sets) = (plan.bytes_moved(), 0, 1);
    if accumulate {
        let o = varied::<bf16>(states * rows * dim, 6);
        let mut out = filled::<f32>(&stream, rows * dim, 1.0);
        let launch = move |_| {
            let outputs = merge::Outputs { out: &mut out, lse: Some(&mut lse_out) };
            let inputs = merge::Inputs { o: &o, lse: &lse, starts: None, sink: None };
            plan.run(&stream, &inputs, outputs).expect("launch");
        };
        return Case { name: format!("merge_states running {sizes}"), bytes, flops, sets, launch: Box::new(launch) };
    }
    let o = varied::<f32>(states * rows * dim, 6);
    let mut out = filled::<bf16>(&stream, rows * dim, 0.0);
    let launch = move |_| {
        let outputs = merge::Outputs { out: &mut out, lse: Some(&mut lse_out) };
        let inputs = merge::Inputs { o: &o, lse: &lse, starts: None, sink: None };
        plan.run(&stream, &inputs, outputs).expect("launch");
    };
    Case { name: format!("merge_states {sizes}"), bytes, flops, sets, launch: Box::new(launch) }
}
