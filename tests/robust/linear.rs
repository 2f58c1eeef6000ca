//! Calls of linear attention, its step, its sums over time and Flow-Attention.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::{bf16, f16};
use lookback_device::{Element, Result};
use lookback_linear::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Decay, Inputs, Options, Outputs, Path, Plan, Shape, flow, step,
    time_reduce as sums,
};
use lookback_suite::device;

/// `[2,10,2,16]` of queries and keys, `[2,10,2,8]` of values.
const KEYS: usize = 2 * 10 * 2 * 16;
const VALUES: usize = 2 * 10 * 2 * 8;
const GATES: usize = 2 * 10 * 2;
const STATES: usize = 2 * 2 * 16 * 8;

fn shape() -> Shape {
    Shape::dense(2, 10, 2, 16, 8)
}

fn options<T: Element>(path: Path) -> Options {
    Options { decay: Decay::Scalar, path, ..Options::new::<T>(&shape()) }
}

fn forward<T: Element>(plan: &Plan, at: &At<'_>) -> Result<()> {
    let (q, k, v) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"));
    let (g, flags, state) = (at.get::<f32>("g"), at.maybe::<u8>("flags"), at.maybe::<f32>("state"));
    let (mut o, mut last) = (at.get::<T>("o"), at.maybe::<f32>("final state"));
    let mut workspace = at.maybe::<u8>("workspace");
    let inputs = Inputs { g: Some(&g), flags: given(&flags), state: given(&state), ..Inputs::of(&q, &k, &v) };
    let outputs = Outputs { state: wanted(&mut last), ..Outputs::of(&mut o) };
    plan.run(&device::stream(), &inputs, outputs, wanted(&mut workspace))
}

#[test]
fn linear_attention_calls() {
    for path in [Path::Recurrent, Path::Chain, Path::Parallel, Path::Auto] {
        let plan = Plan::new(&shape(), &options::<f16>(path), &device::info()).expect("a plan");
        let mut tensors = vec![
            read("q", KEYS, 2),
            read("k", KEYS, 2),
            read("v", VALUES, 2),
            read("g", GATES, 4),
            read("flags", 20, 1).optional(),
            read("state", STATES, 4).optional(),
            written("o", VALUES, 2),
            written("final state", STATES, 4).optional(),
        ];
        if plan.workspace_bytes() > 0 {
            tensors.push(written("workspace", plan.workspace_bytes() as usize, 1));
        }
        Calls::new("linear attention", tensors).make(CALLS / 4, |at| match at.other_type {
            true => forward::<bf16>(&plan, at),
            false => forward::<f16>(&plan, at),
        });
    }
}

fn backward<T: Element>(plan: &BackwardPlan, at: &At<'_>) -> Result<()> {
    let (q, k, v, d_o) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<T>("d_o"));
    let (g, flags, state) = (at.get::<f32>("g"), at.maybe::<u8>("flags"), at.maybe::<f32>("state"));
    let (d_state, o) = (at.maybe::<f32>("d_state"), at.maybe::<T>("o"));
    let (mut dq, mut dk, mut dv) = (at.get::<T>("dq"), at.get::<T>("dk"), at.get::<T>("dv"));
    let (mut dg, mut d_initial) = (at.maybe::<f32>("dg"), at.maybe::<f32>("d_state out"));
    let mut workspace = at.get::<u8>("workspace");
    let forward = Inputs { g: Some(&g), flags: given(&flags), state: given(&state), ..Inputs::of(&q, &k, &v) };
    let inputs = BackwardInputs { o: given(&o), d_state: given(&d_state), ..BackwardInputs::of(forward, &d_o) };
    let outputs = BackwardOutputs {
        dg: wanted(&mut dg),
        d_state: wanted(&mut d_initial),
        ..BackwardOutputs::of(&mut dq, &mut dk, &mut dv)
    };
    plan.run(&device::stream(), &inputs, outputs, Some(&mut workspace))
}

#[test]
fn linear_attention_backward_calls() {
    let plan = BackwardPlan::new(&shape(), &options::<f16>(Path::Auto), &device::info()).expect("a plan");
    let tensors = vec![
        read("q", KEYS, 2),
        read("k", KEYS, 2),
        read("v", VALUES, 2),
        read("g", GATES, 4),
        read("o", VALUES, 2).optional(),
        read("d_o", VALUES, 2),
        read("flags", 20, 1).optional(),
        read("state", STATES, 4).optional(),
        read("d_state", STATES, 4).optional(),
        written("dq", KEYS, 2),
        written("dk", KEYS, 2),
        written("dv", VALUES, 2),
        written("dg", GATES, 4).optional(),
        written("d_state out", STATES, 4).optional(),
        written("workspace", plan.workspace_bytes() as usize, 1),
    ];
    Calls::new("linear attention backward", tensors).make(CALLS, |at| match at.other_type {
        true => backward::<bf16>(&plan, at),
        false => backward::<f16>(&plan, at),
    });
}

fn one_step<T: Element>(plan: &step::Plan, at: &At<'_>) -> Result<()> {
    let (q, k, v, g) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<f32>("g"));
    let (mut state, mut z, mut den) = (at.get::<f32>("state"), at.get::<f32>("z"), at.maybe::<f32>("den"));
    let mut o = at.get::<T>("o");
    let inputs = step::Inputs { q: &q, k: &k, v: &v, g: Some(&g), bonus: None };
    let outputs = step::Outputs { state: &mut state, z: Some(&mut z), o: &mut o, den: wanted(&mut den) };
    plan.run(&device::stream(), &inputs, outputs)
}

#[test]
fn linear_attention_step_calls() {
    let shape = Shape::dense(2, 1, 2, 16, 8);
    let options = Options { decay: Decay::Vector, normalize: Some(1.0), ..Options::new::<f16>(&shape) };
    let plan = step::Plan::new(&shape, &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("q", 64, 2),
        read("k", 64, 2),
        read("v", 32, 2),
        read("g", 64, 4),
        written("state", STATES, 4),
        written("z", 64, 4),
        written("o", 32, 2),
        written("den", 4, 4).optional(),
    ];
    Calls::new("linear attention step", tensors).make(CALLS, |at| match at.other_type {
        true => one_step::<bf16>(&plan, at),
        false => one_step::<f16>(&plan, at),
    });
}

fn flow_forward<T: Element>(plan: &flow::Plan, at: &At<'_>) -> Result<()> {
    let (q, k, v) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"));
    let (mut out, mut workspace) = (at.get::<T>("out"), at.get::<u8>("workspace"));
    plan.run(&device::stream(), &flow::Inputs::of(&q, &k, &v), &mut out, &mut workspace)
}

#[test]
fn flow_attention_calls() {
    let shape = flow::Shape::causal(2, 10, 2, 16, 8);
    for causal in [true, false] {
        let shape = flow::Shape { causal, ..shape };
        let plan = flow::Plan::new(&shape, &flow::Options::new::<f16>(), &device::info()).expect("a plan");
        let tensors = vec![
            read("q", KEYS, 2),
            read("k", KEYS, 2),
            read("v", VALUES, 2),
            written("out", VALUES, 2),
            written("workspace", plan.workspace_bytes() as usize, 1),
        ];
        Calls::new("flow attention", tensors).make(CALLS / 2, |at| match at.other_type {
            true => flow_forward::<bf16>(&plan, at),
            false => flow_forward::<f16>(&plan, at),
        });
    }
}

fn flow_backward<T: Element>(plan: &flow::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (q, k, v, dout) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<T>("dout"));
    let (mut dq, mut dk, mut dv) = (at.get::<T>("dq"), at.get::<T>("dk"), at.get::<T>("dv"));
    let mut workspace = at.get::<u8>("workspace");
    let outputs = flow::BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    plan.run(&device::stream(), &flow::Inputs::of(&q, &k, &v), &dout, outputs, &mut workspace)
}

#[test]
fn flow_attention_backward_calls() {
    let shape = flow::Shape::causal(2, 10, 2, 16, 8);
    let plan = flow::BackwardPlan::new(&shape, &flow::Options::new::<f16>(), &device::info()).expect("a plan");
    let tensors = vec![
        read("q", KEYS, 2),
        read("k", KEYS, 2),
        read("v", VALUES, 2),
        read("dout", VALUES, 2),
        written("dq", KEYS, 2),
        written("dk", KEYS, 2),
        written("dv", VALUES, 2),
        written("workspace", plan.workspace_bytes() as usize, 1),
    ];
    Calls::new("flow attention backward", tensors).make(CALLS, |at| match at.other_type {
        true => flow_backward::<bf16>(&plan, at),
        false => flow_backward::<f16>(&plan, at),
    });
}

/// A workspace that is long enough, and one that is not.
fn workspaces(bytes: u64) -> [sums::Workspace; 2] {
    [bytes, bytes / 2].map(|bytes| sums::Workspace::new(&device::stream(), bytes).expect("a workspace"))
}

fn reduce<T: Element>(plan: &sums::Plan, at: &At<'_>, memory: &mut [sums::Workspace; 2]) -> Result<()> {
    let (q, k, v) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"));
    let (mut o, mut den) = (at.get::<T>("o"), at.maybe::<f32>("den"));
    let (mut kv, mut ksum) = (at.maybe::<f32>("kv"), at.maybe::<f32>("ksum"));
    let prefix = at.maybe::<i32>("prefix_len");
    let inputs = sums::Inputs { q: Some(&q), k: &k, v: &v, cu_seqlens: None, prefix_len: given(&prefix) };
    let outputs =
        sums::Outputs { o: Some(&mut o), den: wanted(&mut den), kv: wanted(&mut kv), ksum: wanted(&mut ksum) };
    plan.run(&device::stream(), &inputs, outputs, &mut memory[usize::from(at.other.is_some())])
}

fn reduce_options() -> sums::Options {
    sums::Options { normalize: Some(1.0), ..sums::Options::new(<f16 as Element>::DTYPE, sums::Map::EluPlusOne) }
}

#[test]
fn time_reduce_calls() {
    let plan = sums::Plan::new(&shape(), &reduce_options(), &device::info()).expect("a plan");
    let tensors = vec![
        read("q", KEYS, 2),
        read("k", KEYS, 2),
        read("v", VALUES, 2),
        read("prefix_len", 2, 4).optional(),
        written("o", VALUES, 2),
        written("den", GATES, 4).optional(),
        written("kv", STATES, 4).optional(),
        written("ksum", 64, 4).optional(),
    ];
    let mut memory = workspaces(plan.workspace_bytes());
    let calls = Calls { others: 1, ..Calls::new("time_reduce", tensors) };
    calls.make(CALLS, |at| match at.other_type {
        true => reduce::<bf16>(&plan, at, &mut memory),
        false => reduce::<f16>(&plan, at, &mut memory),
    });
}

fn reduce_backward<T: Element>(
    plan: &sums::BackwardPlan,
    at: &At<'_>,
    memory: &mut [sums::Workspace; 2],
) -> Result<()> {
    let (q, k, v, d_o) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<T>("d_o"));
    let (kv, ksum, o, den) = (at.get::<f32>("kv"), at.get::<f32>("ksum"), at.get::<T>("o"), at.get::<f32>("den"));
    let (d_kv, d_ksum) = (at.maybe::<f32>("d_kv"), at.maybe::<f32>("d_ksum"));
    let (mut dq, mut dk, mut dv) = (at.get::<T>("dq"), at.get::<T>("dk"), at.get::<T>("dv"));
    let inputs = sums::BackwardInputs {
        q: &q,
        k: &k,
        v: &v,
        cu_seqlens: None,
        prefix_len: None,
        kv: &kv,
        ksum: Some(&ksum),
        o: Some(&o),
        den: Some(&den),
        d_o: &d_o,
        d_kv: given(&d_kv),
        d_ksum: given(&d_ksum),
    };
    let outputs = sums::BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    plan.run(&device::stream(), &inputs, outputs, &mut memory[usize::from(at.other.is_some())])
}

#[test]
fn time_reduce_backward_calls() {
    let plan = sums::BackwardPlan::new(&shape(), &reduce_options(), &device::info()).expect("a plan");
    let tensors = vec![
        read("q", KEYS, 2),
        read("k", KEYS, 2),
        read("v", VALUES, 2),
        read("kv", STATES, 4),
        read("ksum", 64, 4),
        read("o", VALUES, 2),
        read("den", GATES, 4),
        read("d_o", VALUES, 2),
        read("d_kv", STATES, 4).optional(),
        read("d_ksum", 64, 4).optional(),
        written("dq", KEYS, 2),
        written("dk", KEYS, 2),
        written("dv", VALUES, 2),
    ];
    let mut memory = workspaces(plan.workspace_bytes());
    let calls = Calls { others: 1, ..Calls::new("time_reduce backward", tensors) };
    calls.make(CALLS, |at| match at.other_type {
        true => reduce_backward::<bf16>(&plan, at, &mut memory),
        false => reduce_backward::<f16>(&plan, at, &mut memory),
    });
}
