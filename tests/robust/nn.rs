//! Calls of what blocks need between mixers, norms aside.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::{bf16, f16};
use lookback_device::{DType, Element, Result};
use lookback_nn::{
    Activation, Param, argmax, copy_rows, cross_entropy, decay_gate, embedding, gate, gemm, head_scale, pool, rotary,
    short_convolution as convolution, taylor_map,
};
use lookback_suite::device;

const F16: DType = DType::F16;

/// Calls with the plan's type, or another one.
macro_rules! typed {
    ($calls:expr, $count:expr, $run:ident($($argument:expr),*)) => {
        $calls.make($count, |at| if at.other_type { $run::<bf16>($($argument,)* at) } else { $run::<f16>($($argument,)* at) })
    };
}

fn run_gemm<T: Element>(plan: &gemm::Plan, at: &At<'_>) -> Result<()> {
    let (a, b, bias, mut c) = (at.get::<T>("a"), at.get::<T>("b"), at.get::<f32>("bias"), at.get::<T>("c"));
    plan.run(&device::stream(), &a, &b, Param::F32(&bias), &mut c)
}

#[test]
fn gemm_calls() {
    for shape in [gemm::Shape::linear(9, 16, 24), gemm::Shape::plain(9, 16, 24)] {
        let plan = gemm::Plan::new(&shape, &gemm::Options::new(F16), &device::info()).expect("a plan");
        let tensors = vec![read("a", 9 * 24, 2), read("b", 16 * 24, 2), read("bias", 16, 4), written("c", 9 * 16, 2)];
        typed!(Calls::new("gemm", tensors), CALLS / 2, run_gemm(&plan));
    }
}

fn run_gate<T: Element>(plan: &gate::Plan, at: &At<'_>) -> Result<()> {
    plan.run(&device::stream(), &at.get::<T>("x"), &at.get::<T>("y"), &mut at.get::<T>("out"))
}

#[test]
fn gate_calls() {
    let options = gate::Options { dtype: F16, activation: Activation::Silu };
    let plan = gate::Plan::new(&gate::Shape::dense(5, 24), &options, &device::info()).expect("a plan");
    let tensors = vec![read("x", 120, 2), read("y", 120, 2), written("out", 120, 2)];
    let calls = Calls { in_place: &[("out", "x"), ("out", "y")], ..Calls::new("gate", tensors) };
    typed!(calls, CALLS, run_gate(&plan));
}

fn run_embedding<T: Element>(plan: &embedding::Plan, at: &At<'_>) -> Result<()> {
    let mut fault = at.maybe::<u32>("fault");
    let (table, ids, mut out) = (at.get::<T>("table"), at.get::<i32>("ids"), at.get::<T>("out"));
    plan.run(&device::stream(), &table, &ids, &mut out, wanted(&mut fault))
}

#[test]
fn embedding_calls() {
    let shape = embedding::Shape::dense(6, 2, 10, 16);
    let plan = embedding::Plan::new(&shape, &embedding::Options { dtype: F16 }, &device::info()).expect("a plan");
    let tensors =
        vec![read("table", 160, 2), read("ids", 12, 4), written("out", 96, 2), written("fault", 1, 4).optional()];
    typed!(Calls::new("embedding", tensors), CALLS, run_embedding(&plan));
}

fn run_argmax<T: Element>(plan: &argmax::Plan, at: &At<'_>) -> Result<()> {
    plan.run(&device::stream(), &at.get::<T>("x"), &mut at.get::<i32>("out"))
}

#[test]
fn argmax_calls() {
    let options = argmax::Options { dtype: F16 };
    let plan = argmax::Plan::new(&argmax::Shape::dense(5, 24), &options, &device::info()).expect("a plan");
    typed!(Calls::new("argmax", vec![read("x", 120, 2), written("out", 5, 4)]), CALLS, run_argmax(&plan));
}

fn run_cross_entropy<T: Element>(plan: &cross_entropy::Plan, at: &At<'_>) -> Result<()> {
    let (logits, labels, mut loss) = (at.get::<T>("logits"), at.get::<i32>("labels"), at.get::<f32>("loss"));
    let (mut lse, mut dlogits) = (at.maybe::<f32>("lse"), at.maybe::<T>("dlogits"));
    let mut fault = at.maybe::<u32>("fault");
    let outputs =
        cross_entropy::Outputs { lse: wanted(&mut lse), dlogits: wanted(&mut dlogits), fault: wanted(&mut fault) };
    plan.run(&device::stream(), &logits, &labels, &mut loss, outputs)
}

#[test]
fn cross_entropy_calls() {
    let options = cross_entropy::Options { dtype: F16, scale: 1.0 };
    let shape = cross_entropy::Shape::dense(5, 24);
    let plan = cross_entropy::Plan::new(&shape, &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("logits", 120, 2),
        read("labels", 5, 4),
        written("loss", 5, 4),
        written("lse", 5, 4).optional(),
        written("dlogits", 120, 2).optional(),
        written("fault", 1, 4).optional(),
    ];
    let calls = Calls { in_place: &[("dlogits", "logits")], ..Calls::new("cross_entropy", tensors) };
    typed!(calls, CALLS, run_cross_entropy(&plan));
}

fn run_copy_rows<T: Element>(plan: &copy_rows::Plan, at: &At<'_>) -> Result<()> {
    plan.run(&device::stream(), &at.get::<T>("x"), &mut at.get::<f32>("out"))
}

#[test]
fn copy_rows_calls() {
    for accumulate in [false, true] {
        let options = copy_rows::Options { dtype: F16, out: DType::F32, accumulate };
        let shape = copy_rows::Shape::dense(2, 3, 2, 16);
        let plan = copy_rows::Plan::new(&shape, &options, &device::info()).expect("a plan");
        let calls = Calls::new("copy_rows", vec![read("x", 192, 2), written("out", 192, 4)]);
        typed!(calls, CALLS / 2, run_copy_rows(&plan));
    }
}

fn run_decay_gate<T: Element>(plan: &decay_gate::Plan, at: &At<'_>) -> Result<()> {
    let (bias, rate) = (at.maybe::<f32>("bias"), at.maybe::<f32>("rate"));
    let mut step = at.maybe::<f32>("step");
    let params = decay_gate::Params { bias: given(&bias), rate: given(&rate) };
    plan.run(&device::stream(), &at.get::<T>("x"), params, &mut at.get::<f32>("g"), wanted(&mut step))
}

#[test]
fn decay_gate_calls() {
    let options = decay_gate::Options::log_sigmoid(F16, 16.0);
    let plan = decay_gate::Plan::new(&decay_gate::Shape::dense(5, 24), &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("x", 120, 2),
        read("bias", 24, 4).optional(),
        read("rate", 24, 4).optional(),
        written("g", 120, 4),
        written("step", 120, 4).optional(),
    ];
    typed!(Calls::new("decay_gate", tensors), CALLS, run_decay_gate(&plan));
}

fn run_head_scale<T: Element>(plan: &head_scale::Plan, at: &At<'_>) -> Result<()> {
    let (scale, bias) = (at.maybe::<f32>("scale"), at.maybe::<f32>("bias"));
    let factors = head_scale::Factors { scale: given(&scale), bias: given(&bias) };
    plan.run(&device::stream(), &at.get::<T>("x"), factors, &mut at.get::<T>("out"))
}

#[test]
fn head_scale_calls() {
    let options = head_scale::Options { dtype: F16, accumulate: false };
    let shape = head_scale::Shape::dense(5, 3, 16);
    let plan = head_scale::Plan::new(&shape, &options, &device::info()).expect("a plan");
    let tensors =
        vec![read("x", 240, 2), read("scale", 15, 4).optional(), read("bias", 3, 4).optional(), written("out", 240, 2)];
    let calls = Calls { in_place: &[("out", "x")], ..Calls::new("head_scale", tensors) };
    typed!(calls, CALLS, run_head_scale(&plan));
}

fn run_taylor_map<T: Element>(plan: &taylor_map::Plan, at: &At<'_>) -> Result<()> {
    plan.run(&device::stream(), &at.get::<T>("x"), &mut at.get::<T>("out"))
}

#[test]
fn taylor_map_calls() {
    // 1 + 8 + 8 * 9 / 2 features, rounded up.
    let shape = taylor_map::Shape::dense(5, 2, 8);
    let plan = taylor_map::Plan::new(&shape, F16, &device::info()).expect("a plan");
    let features = shape.out_stride as usize;
    let calls = Calls::new("taylor_map", vec![read("x", 80, 2), written("out", 5 * features, 2)]);
    typed!(calls, CALLS, run_taylor_map(&plan));
}

fn run_pool<T: Element>(plan: &pool::Plan, at: &At<'_>) -> Result<()> {
    let (mask, starts) = (at.maybe::<u8>("mask"), at.maybe::<i32>("cu_seqlens"));
    let inputs = pool::Inputs { mask: given(&mask), cu_seqlens: given(&starts) };
    plan.run(&device::stream(), &at.get::<T>("x"), inputs, &mut at.get::<f32>("out"))
}

#[test]
fn pool_calls() {
    for packed in [false, true] {
        let shape = if packed { pool::Shape::packed(2, 14, 16) } else { pool::Shape::dense(2, 7, 16) };
        let options = pool::Options { dtype: F16, pooling: pool::Pooling::Mean, normalize: true };
        let plan = pool::Plan::new(&shape, &options, &device::info()).expect("a plan");
        let mut tensors = vec![read("x", 224, 2), read("mask", 14, 1).optional(), written("out", 32, 4)];
        if packed {
            tensors.push(read("cu_seqlens", 3, 4));
        }
        typed!(Calls::new("pool", tensors), CALLS / 2, run_pool(&plan));
    }
}

fn run_rotary<T: Element>(plan: &rotary::Plan, at: &At<'_>) -> Result<()> {
    let (positions, starts) = (at.maybe::<i32>("positions"), at.maybe::<i32>("cu_seqlens"));
    let frequencies = at.maybe::<u64>("frequencies");
    let inputs =
        rotary::Inputs { positions: given(&positions), cu_seqlens: given(&starts), frequencies: given(&frequencies) };
    plan.run(&device::stream(), &at.get::<T>("x"), inputs, &mut at.get::<T>("out"))
}

#[test]
fn rotary_calls() {
    let options = rotary::Options::new(F16, rotary::Style::Half, 16);
    let shape = rotary::Shape::dense(2, 5, 2, 16);
    for plan in [rotary::Plan::new, rotary::Plan::backward] {
        let plan = plan(&shape, &options, &device::info()).expect("a plan");
        let tensors = vec![
            read("x", 320, 2),
            read("positions", 10, 4).optional(),
            read("frequencies", 8, 8).optional(),
            written("out", 320, 2),
        ];
        let calls = Calls { in_place: &[("out", "x")], ..Calls::new("rotary", tensors) };
        typed!(calls, CALLS, run_rotary(&plan));
    }
}

fn inputs_of<'a, T: Element>(
    bias: &'a Option<super::call::Slice<T>>,
    flags: &'a Option<super::call::Slice<u8>>,
    starts: &'a Option<super::call::Slice<i32>>,
    state: &'a Option<super::call::Slice<T>>,
) -> convolution::Inputs<'a, T> {
    convolution::Inputs { bias: given(bias), flags: given(flags), cu_seqlens: given(starts), state: given(state) }
}

fn run_convolution<T: Element>(plan: &convolution::Plan, at: &At<'_>) -> Result<()> {
    let (bias, flags, starts) = (at.maybe::<T>("bias"), at.maybe::<u8>("flags"), at.maybe::<i32>("cu_seqlens"));
    let (state, mut last) = (at.maybe::<T>("state"), at.maybe::<T>("state_out"));
    let inputs = inputs_of(&bias, &flags, &starts, &state);
    let (x, weight, mut out) = (at.get::<T>("x"), at.get::<T>("weight"), at.get::<T>("out"));
    plan.run(&device::stream(), &x, &weight, inputs, &mut out, wanted(&mut last))
}

/// Inputs of a convolution of `[2,9,16]` with four taps, as one row or two.
fn convolved(packed: bool) -> (convolution::Shape, Vec<super::call::Tensor>) {
    let mut tensors = vec![
        read("x", 288, 2),
        read("weight", 64, 2),
        read("bias", 16, 2).optional(),
        read("flags", 18, 1).optional(),
        read("state", 96, 2).optional(),
    ];
    if packed {
        tensors.push(read("cu_seqlens", 3, 4));
        return (convolution::Shape::packed(2, 18, 16, 4), tensors);
    }
    (convolution::Shape::dense(2, 9, 16, 4), tensors)
}

#[test]
fn short_convolution_calls() {
    for packed in [false, true] {
        let (shape, mut tensors) = convolved(packed);
        let options = convolution::Options { dtype: F16, activation: Activation::Silu };
        let plan = convolution::Plan::new(&shape, &options, &device::info()).expect("a plan");
        tensors.extend([written("out", 288, 2), written("state_out", 96, 2).optional()]);
        let calls = Calls { in_place: &[("state_out", "state")], ..Calls::new("short_convolution", tensors) };
        typed!(calls, CALLS / 2, run_convolution(&plan));
    }
}

fn run_convolution_backward<T: Element>(plan: &convolution::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (bias, flags, starts) = (at.maybe::<T>("bias"), at.maybe::<u8>("flags"), at.maybe::<i32>("cu_seqlens"));
    let (state, dstate_out) = (at.maybe::<T>("state"), at.maybe::<T>("dstate_out"));
    let (mut dweight, mut dbias) = (at.maybe::<f32>("dweight"), at.maybe::<f32>("dbias"));
    let (mut dstate, mut dx) = (at.maybe::<T>("dstate"), at.get::<T>("dx"));
    let (x, weight, dout) = (at.get::<T>("x"), at.get::<T>("weight"), at.get::<T>("dout"));
    let gradients = convolution::Gradients {
        dx: &mut dx,
        dweight: wanted(&mut dweight),
        dbias: wanted(&mut dbias),
        dstate: wanted(&mut dstate),
    };
    let adjoints = convolution::Adjoints { dout: &dout, dstate_out: given(&dstate_out) };
    let (inputs, mut workspace) = (inputs_of(&bias, &flags, &starts, &state), at.get::<f32>("workspace"));
    plan.run(&device::stream(), &x, &weight, inputs, adjoints, gradients, &mut workspace)
}

#[test]
fn short_convolution_backward_calls() {
    for packed in [false, true] {
        let (shape, mut tensors) = convolved(packed);
        let options = convolution::Options { dtype: F16, activation: Activation::Silu };
        let plan = convolution::BackwardPlan::dense(&shape, &options, &device::info()).expect("a plan");
        tensors.extend([
            read("dout", 288, 2),
            read("dstate_out", 96, 2).optional(),
            written("dx", 288, 2),
            written("dweight", 64, 4).optional(),
            written("dbias", 16, 4).optional(),
            written("dstate", 96, 2).optional(),
            written("workspace", plan.workspace_bytes() as usize / 4, 4),
        ]);
        typed!(Calls::new("short_convolution backward", tensors), CALLS / 2, run_convolution_backward(&plan));
    }
}
