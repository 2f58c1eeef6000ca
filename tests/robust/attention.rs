//! Calls of attention, its gradient and merges of its results.

use super::call::{At, CALLS, Calls, Tensor, given, read, wanted, written};
use half::{bf16, f16};
use lookback_attention::{
    Inputs, Mask, Options, Outputs, Plan, Shape,
    backward::{Adjoint, BackwardInputs, BackwardOptions, BackwardPlan, Final, Gradients, Rows},
    merge,
};
use lookback_device::{DType, Element, Result};
use lookback_suite::device;

/// Two rows of 10 queries and 12 keys, four heads on two, of 16 and 8.
const Q: usize = 2 * 10 * 4 * 16;
const K: usize = 2 * 12 * 2 * 16;
const V: usize = 2 * 12 * 2 * 8;
const O: usize = 2 * 10 * 4 * 8;
const ROWS: usize = 2 * 10 * 4;

fn shape(packed: bool) -> Shape {
    let shape = if packed { Shape::packed(2, 20, 24, 4, 16) } else { Shape::dense(2, 10, 12, 4, 16) };
    Shape { key_heads: 2, value_dim: 8, ..shape }
}

/// What both directions read.
fn inputs(packed: bool) -> Vec<Tensor> {
    let mut tensors = vec![read("q", Q, 2), read("k", K, 2), read("v", V, 2)];
    if packed {
        let starts = [read("cu_seqlens_q", 3, 4), read("cu_seqlens_k", 3, 4)];
        tensors.extend(starts.into_iter().chain([read("intervals", 80, 4)]));
    } else {
        let more = [read("key_bits", 2, 4), read("alibi_slopes", 4, 4), read("sink", 4, 4)];
        tensors.extend(more.map(Tensor::optional));
    }
    tensors
}

fn options(packed: bool) -> Options {
    let mask = if packed { Mask::Intervals } else { Mask::Causal };
    Options { mask, ..Options::new::<f16>(&shape(packed)) }
}

/// Calls `$body` with the inputs by name.
macro_rules! with_inputs {
    ($at:expr, $type:ty, |$inputs:ident| $body:expr) => {{
        let (q, k, v) = ($at.get::<$type>("q"), $at.get::<$type>("k"), $at.get::<$type>("v"));
        let (starts_q, starts_k) = ($at.maybe::<i32>("cu_seqlens_q"), $at.maybe::<i32>("cu_seqlens_k"));
        let (intervals, key_bits) = ($at.maybe::<i32>("intervals"), $at.maybe::<u32>("key_bits"));
        let (slopes, sink) = ($at.maybe::<f32>("alibi_slopes"), $at.maybe::<f32>("sink"));
        let $inputs = Inputs {
            cu_seqlens_q: given(&starts_q),
            cu_seqlens_k: given(&starts_k),
            intervals: given(&intervals),
            key_bits: given(&key_bits),
            alibi_slopes: given(&slopes),
            sink: given(&sink),
            ..Inputs::of(&q, &k, &v)
        };
        $body
    }};
}

fn forward<T: Element>(plan: &Plan, at: &At<'_>) -> Result<()> {
    let (mut o, mut lse) = (at.get::<T>("o"), at.maybe::<f32>("lse"));
    with_inputs!(at, T, |inputs| {
        plan.run(&device::stream(), &inputs, Outputs { lse: wanted(&mut lse), ..Outputs::of(&mut o) })
    })
}

#[test]
fn attention_calls() {
    for packed in [false, true] {
        let plan = Plan::new(&shape(packed), &options(packed), &device::info()).expect("a plan");
        let mut tensors = inputs(packed);
        tensors.extend([written("o", O, 2), written("lse", ROWS, 4).optional()]);
        Calls::new("attention", tensors).make(CALLS / 2, |at| match at.other_type {
            true => forward::<bf16>(&plan, at),
            false => forward::<f16>(&plan, at),
        });
    }
}

fn backward<T: Element>(plan: &BackwardPlan, at: &At<'_>) -> Result<()> {
    let (d_o, o, lse, d_lse) = (at.get::<T>("d_o"), at.get::<T>("o"), at.get::<f32>("lse"), at.maybe::<f32>("d_lse"));
    let (mut dq, mut dk, mut dv) = (at.maybe::<T>("dq"), at.maybe::<T>("dk"), at.maybe::<T>("dv"));
    let (mut d_sink, mut workspace) = (at.maybe::<f32>("d_sink"), at.get::<f32>("workspace"));
    let rows = Rows::Final(Final { o: &o, lse: &lse, d_lse: given(&d_lse) });
    with_inputs!(at, T, |inputs| {
        let inputs = BackwardInputs { inputs, adjoint: Adjoint { d_o: &d_o, rows } };
        let gradients =
            Gradients { dq: wanted(&mut dq), dk: wanted(&mut dk), dv: wanted(&mut dv), d_sink: wanted(&mut d_sink) };
        plan.run::<T, T, T>(&device::stream(), &inputs, gradients, &mut workspace)
    })
}

#[test]
fn attention_backward_calls() {
    for (packed, deterministic) in [(false, false), (true, true)] {
        let options = BackwardOptions { deterministic, ..BackwardOptions::new(options(packed)) };
        let plan = BackwardPlan::new(&shape(packed), &options, &device::info()).expect("a plan");
        let mut tensors = inputs(packed);
        tensors.extend([
            read("d_o", O, 2),
            read("o", O, 2),
            read("lse", ROWS, 4),
            read("d_lse", ROWS, 4).optional(),
            written("dq", Q, 2).optional(),
            written("dk", K, 2).optional(),
            written("dv", V, 2).optional(),
            written("workspace", plan.workspace_bytes() as usize / 4, 4),
        ]);
        if !packed {
            tensors.push(written("d_sink", 4, 4).optional());
        }
        Calls::new("attention backward", tensors).make(CALLS / 2, |at| match at.other_type {
            true => backward::<bf16>(&plan, at),
            false => backward::<f16>(&plan, at),
        });
    }
}

fn prepare<T: Element>(plan: &BackwardPlan, at: &At<'_>) -> Result<()> {
    let (d_o, o, lse, d_lse) = (at.get::<T>("d_o"), at.get::<T>("o"), at.get::<f32>("lse"), at.maybe::<f32>("d_lse"));
    let rows = Final { o: &o, lse: &lse, d_lse: given(&d_lse) };
    plan.prepare(&device::stream(), &d_o, &rows, &mut at.get::<f32>("terms"))
}

#[test]
fn attention_prepare_calls() {
    let options = BackwardOptions::new(options(false));
    let plan = BackwardPlan::new(&shape(false), &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("d_o", O, 2),
        read("o", O, 2),
        read("lse", ROWS, 4),
        read("d_lse", ROWS, 4).optional(),
        written("terms", plan.terms_len(), 4),
    ];
    Calls::new("attention prepare", tensors).make(CALLS, |at| match at.other_type {
        true => prepare::<bf16>(&plan, at),
        false => prepare::<f16>(&plan, at),
    });
}

fn merged<T: Element>(plan: &merge::Plan, at: &At<'_>) -> Result<()> {
    let (o, lse, sink) = (at.get::<T>("o"), at.get::<f32>("lse"), at.maybe::<f32>("sink"));
    let starts = at.maybe::<i32>("starts");
    let (mut out, mut lse_out) = (at.get::<T>("out"), at.maybe::<f32>("lse_out"));
    let inputs = merge::Inputs { o: &o, lse: &lse, starts: given(&starts), sink: given(&sink) };
    plan.run(&device::stream(), &inputs, merge::Outputs { out: &mut out, lse: wanted(&mut lse_out) })
}

#[test]
fn merge_calls() {
    for ragged in [false, true] {
        let shape = if ragged { merge::Shape::ragged(6, 10, 2, 8) } else { merge::Shape::dense(3, 2, 5, 2, 8) };
        let plan = merge::Plan::new(&shape, &merge::Options::new(DType::F16), &device::info()).expect("a plan");
        let rows = if ragged { 6 * 2 } else { 3 * 2 * 5 * 2 };
        let mut tensors = vec![
            read("o", rows * 8, 2),
            read("lse", rows, 4),
            read("sink", 2, 4).optional(),
            written("out", 160, 2),
            written("lse_out", 20, 4).optional(),
        ];
        if ragged {
            tensors.push(read("starts", 11, 4));
        }
        Calls::new("merge", tensors).make(CALLS / 2, |at| match at.other_type {
            true => merged::<bf16>(&plan, at),
            false => merged::<f16>(&plan, at),
        });
    }
}
