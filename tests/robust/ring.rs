//! Calls of dealt operations, on the one rank of a world of one.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::{bf16, f16};
use lookback_device::{DType, Element, Result, cudarc::driver::CudaStream};
use lookback_linear as linear;
use lookback_ring::{
    Layout, Partition, Visible,
    attention::{
        BackwardInputs, BackwardOptions, BackwardPlan, Gradients, Inputs, Options, Outputs, Plan, Shape, Workspace,
    },
    state::{self, Deal, Passing},
    transport::{Staged, local},
};
use lookback_scan as scan;
use lookback_suite::device;
use std::{sync::Arc, time::Duration};

/// 12 tokens, four heads on two, of 16 and 8.
const SHAPE: Shape = Shape { batch: 1, heads: 4, key_heads: 2, head_dim: 16, value_dim: 8 };
const Q: usize = 12 * 4 * 16;
const K: usize = 12 * 2 * 16;
const V: usize = 12 * 2 * 8;
const O: usize = 12 * 4 * 8;
const DEAL: Deal = Deal { ranks: 1, documents: None, passing: Passing::Serial };

fn layout() -> Layout {
    Layout { partition: Partition::Contiguous, tokens: 12, ranks: 1 }
}

/// The world of one, and the second place in a world of two.
fn ends() -> [Staged; 2] {
    let patience = Duration::from_millis(10);
    [local(1, patience).swap_remove(0), local(2, patience).swap_remove(1)]
}

/// Which of two, for the faults that a dealt operation knows: a foreign workspace, a foreign transport.
fn picked(at: &At<'_>) -> [usize; 2] {
    [usize::from(at.other == Some(0)), usize::from(at.other == Some(1))]
}

fn forward<T: Element>(plan: &Plan, at: &At<'_>, memory: &mut [Workspace; 2], ends: &mut [Staged; 2]) -> Result<()> {
    let (q, k, v) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"));
    let (mut o, mut lse) = (at.get::<T>("o"), at.get::<f32>("lse"));
    let [workspace, end] = picked(at);
    let (inputs, outputs) = (Inputs { q: &q, k: &k, v: &v }, Outputs { o: &mut o, lse: &mut lse });
    plan.run(&device::stream(), &inputs, outputs, &mut memory[workspace], &mut ends[end])
}

#[test]
fn ring_attention_calls() {
    let options = Options::new(&SHAPE, DType::F16);
    let of = |tokens: usize| {
        let layout = Layout { tokens, ..layout() };
        Plan::new(&SHAPE, &options, &layout, &Visible::causal(tokens), 0, &device::info()).expect("a plan")
    };
    let (plan, stream) = (of(12), device::stream());
    let mut memory = [of(12), of(1)].map(|plan| plan.workspace(&stream).expect("memory"));
    let tensors = vec![read("q", Q, 2), read("k", K, 2), read("v", V, 2), written("o", O, 2), written("lse", 48, 4)];
    let mut ends = ends();
    Calls { others: 2, ..Calls::new("ring attention", tensors) }.make(CALLS, |at| match at.other_type {
        true => forward::<bf16>(&plan, at, &mut memory, &mut ends),
        false => forward::<f16>(&plan, at, &mut memory, &mut ends),
    });
}

fn backward<T: Element>(
    plan: &BackwardPlan,
    at: &At<'_>,
    memory: &mut [Workspace; 2],
    ends: &mut [Staged; 2],
) -> Result<()> {
    let (q, k, v, o) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<T>("o"));
    let (lse, d_o, d_lse) = (at.get::<f32>("lse"), at.get::<T>("d_o"), at.maybe::<f32>("d_lse"));
    let (mut dq, mut dk, mut dv) = (at.get::<T>("dq"), at.get::<T>("dk"), at.get::<T>("dv"));
    let [workspace, end] = picked(at);
    let inputs = BackwardInputs { q: &q, k: &k, v: &v, o: &o, lse: &lse, d_o: &d_o, d_lse: given(&d_lse) };
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    plan.run(&device::stream(), &inputs, gradients, &mut memory[workspace], &mut ends[end])
}

#[test]
fn ring_attention_backward_calls() {
    let options = BackwardOptions::new(Options::new(&SHAPE, DType::F16));
    let of = |tokens: usize| {
        let layout = Layout { tokens, ..layout() };
        BackwardPlan::new(&SHAPE, &options, &layout, &Visible::causal(tokens), 0, &device::info()).expect("a plan")
    };
    let (plan, stream) = (of(12), device::stream());
    let mut memory = [of(12), of(1)].map(|plan| plan.workspace(&stream).expect("memory"));
    let tensors = vec![
        read("q", Q, 2),
        read("k", K, 2),
        read("v", V, 2),
        read("o", O, 2),
        read("lse", 48, 4),
        read("d_o", O, 2),
        read("d_lse", 48, 4).optional(),
        written("dq", Q, 2),
        written("dk", K, 2),
        written("dv", V, 2),
    ];
    let mut ends = ends();
    Calls { others: 2, ..Calls::new("ring attention backward", tensors) }.make(CALLS, |at| match at.other_type {
        true => backward::<bf16>(&plan, at, &mut memory, &mut ends),
        false => backward::<f16>(&plan, at, &mut memory, &mut ends),
    });
}

/// What a dealt recurrence is called with besides its tensors. Alone it needs as much memory for any number of tokens, so that there is
/// no shorter one.
struct Company {
    stream: Arc<CudaStream>,
    memory: state::Workspace,
    ends: [Staged; 2],
}

impl Company {
    fn new(memory: impl Fn(&Arc<CudaStream>) -> Result<state::Workspace>) -> Self {
        let stream = device::stream();
        let memory = memory(&stream).expect("memory");
        Self { stream, memory, ends: ends() }
    }
}

fn scan_options() -> scan::Options {
    scan::Options { dtype: DType::F16, source: scan::Source::Tensor, split: 6, deterministic: true }
}

fn scanned<T: Element>(plan: &state::scan::Plan, at: &At<'_>, with: &mut Company) -> Result<()> {
    let (a, b, mut h) = (at.get::<T>("a"), at.get::<T>("b"), at.get::<T>("h"));
    let (flags, initial) = (at.maybe::<u8>("flags"), at.maybe::<f32>("initial"));
    let (mut last, mut arrived) = (at.maybe::<f32>("last"), at.maybe::<f32>("arrived"));
    let gates = scan::Gates::tensor(&a, &b);
    let inputs = scan::Inputs { flags: given(&flags), initial: given(&initial), ..scan::Inputs::of(gates) };
    let outputs = state::scan::Outputs { h: &mut h, last: wanted(&mut last), arrived: wanted(&mut arrived) };
    let end = usize::from(at.other.is_some());
    plan.run(&with.stream, &inputs, outputs, &mut with.memory, &mut with.ends[end])
}

#[test]
fn ring_scan_calls() {
    let shape = scan::Shape::dense(1, 12, 6);
    let plan = state::scan::Plan::new(&shape, &scan_options(), &DEAL, 0, &device::info()).expect("a plan");
    let tensors = vec![
        read("a", 72, 2),
        read("b", 72, 2),
        read("flags", 12, 1).optional(),
        read("initial", 6, 4).optional(),
        written("h", 72, 2),
        written("last", 6, 4).optional(),
        written("arrived", 6, 4).optional(),
    ];
    let mut with = Company::new(|stream| plan.workspace(stream));
    Calls { others: 1, ..Calls::new("ring scan", tensors) }.make(CALLS, |at| match at.other_type {
        true => scanned::<bf16>(&plan, at, &mut with),
        false => scanned::<f16>(&plan, at, &mut with),
    });
}

fn scanned_back<T: Element>(plan: &state::scan::BackwardPlan, at: &At<'_>, with: &mut Company) -> Result<()> {
    let (a, b, h, dh) = (at.get::<T>("a"), at.get::<T>("b"), at.get::<T>("h"), at.get::<T>("dh"));
    let (flags, d_last) = (at.maybe::<u8>("flags"), at.maybe::<f32>("d_last"));
    let (mut da, mut db, mut d_initial) = (at.get::<T>("da"), at.get::<T>("db"), at.maybe::<f32>("d_initial"));
    let forward = scan::Inputs { flags: given(&flags), ..scan::Inputs::of(scan::Gates::tensor(&a, &b)) };
    let own = scan::BackwardInputs { forward, h: &h, dh: &dh, d_last: given(&d_last) };
    let outputs = scan::BackwardOutputs {
        gates: scan::GateGradients { a: Some(&mut da), b: Some(&mut db), x: None, channel: None },
        d_initial: wanted(&mut d_initial),
    };
    let end = usize::from(at.other.is_some());
    let inputs = state::scan::BackwardInputs { own, arrived: None };
    plan.run(&with.stream, &inputs, outputs, &mut with.memory, &mut with.ends[end])
}

#[test]
fn ring_scan_backward_calls() {
    let shape = scan::Shape::dense(1, 12, 6);
    let plan = state::scan::BackwardPlan::new(&shape, &scan_options(), &DEAL, 0, &device::info()).expect("a plan");
    let tensors = vec![
        read("a", 72, 2),
        read("b", 0, 2),
        read("h", 72, 2),
        read("dh", 72, 2),
        read("flags", 12, 1).optional(),
        read("d_last", 6, 4).optional(),
        written("da", 72, 2),
        written("db", 72, 2),
        written("d_initial", 6, 4).optional(),
    ];
    let mut with = Company::new(|stream| plan.workspace(stream));
    Calls { others: 1, ..Calls::new("ring scan backward", tensors) }.make(CALLS, |at| match at.other_type {
        true => scanned_back::<bf16>(&plan, at, &mut with),
        false => scanned_back::<f16>(&plan, at, &mut with),
    });
}

fn linear_shape() -> linear::Shape {
    linear::Shape::dense(1, 12, 2, 16, 8)
}

fn linear_options() -> linear::Options {
    linear::Options { decay: linear::Decay::Scalar, ..linear::Options::new::<f16>(&linear_shape()) }
}

fn attended<T: Element>(plan: &state::linear::Plan, at: &At<'_>, with: &mut Company) -> Result<()> {
    let (q, k, v, g) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<f32>("g"));
    let (flags, initial) = (at.maybe::<u8>("flags"), at.maybe::<f32>("state"));
    let (mut o, mut last) = (at.get::<T>("o"), at.maybe::<f32>("final state"));
    let inputs =
        linear::Inputs { g: Some(&g), flags: given(&flags), state: given(&initial), ..linear::Inputs::of(&q, &k, &v) };
    let mut outputs = state::linear::Outputs::of(&mut o);
    outputs.own.state = wanted(&mut last);
    let end = usize::from(at.other.is_some());
    plan.run(&with.stream, &inputs, outputs, &mut with.memory, &mut with.ends[end])
}

#[test]
fn ring_linear_attention_calls() {
    let plan = state::linear::Plan::new(&linear_shape(), &linear_options(), &DEAL, 0, &device::info()).expect("a plan");
    let tensors = vec![
        read("q", 384, 2),
        read("k", 384, 2),
        read("v", 192, 2),
        read("g", 24, 4),
        read("flags", 12, 1).optional(),
        read("state", 256, 4).optional(),
        written("o", 192, 2),
        written("final state", 256, 4).optional(),
    ];
    let mut with = Company::new(|stream| plan.workspace(stream));
    Calls { others: 1, ..Calls::new("ring linear attention", tensors) }.make(CALLS, |at| match at.other_type {
        true => attended::<bf16>(&plan, at, &mut with),
        false => attended::<f16>(&plan, at, &mut with),
    });
}

fn attended_back<T: Element>(plan: &state::linear::BackwardPlan, at: &At<'_>, with: &mut Company) -> Result<()> {
    let (q, k, v, g) = (at.get::<T>("q"), at.get::<T>("k"), at.get::<T>("v"), at.get::<f32>("g"));
    let (o, d_o) = (at.maybe::<T>("o"), at.get::<T>("d_o"));
    let (mut dq, mut dk, mut dv) = (at.get::<T>("dq"), at.get::<T>("dk"), at.get::<T>("dv"));
    let mut dg = at.maybe::<f32>("dg");
    let forward = linear::Inputs { g: Some(&g), ..linear::Inputs::of(&q, &k, &v) };
    let own = linear::BackwardInputs { o: given(&o), ..linear::BackwardInputs::of(forward, &d_o) };
    let arrived = state::linear::ArrivedInputs { state: None, reverse_state: None, normalizer: None };
    let outputs =
        linear::BackwardOutputs { dg: wanted(&mut dg), ..linear::BackwardOutputs::of(&mut dq, &mut dk, &mut dv) };
    let end = usize::from(at.other.is_some());
    let inputs = state::linear::BackwardInputs { own, arrived };
    plan.run(&with.stream, &inputs, outputs, &mut with.memory, &mut with.ends[end])
}

#[test]
fn ring_linear_attention_backward_calls() {
    let plan = state::linear::BackwardPlan::new(&linear_shape(), &linear_options(), &DEAL, 0, &device::info())
        .expect("a plan");
    let tensors = vec![
        read("q", 384, 2),
        read("k", 384, 2),
        read("v", 192, 2),
        read("g", 24, 4),
        read("o", 192, 2).optional(),
        read("d_o", 192, 2),
        written("dq", 384, 2),
        written("dk", 384, 2),
        written("dv", 192, 2),
        written("dg", 24, 4).optional(),
    ];
    let mut with = Company::new(|stream| plan.workspace(stream));
    Calls { others: 1, ..Calls::new("ring linear attention backward", tensors) }.make(CALLS, |at| {
        match at.other_type {
            true => attended_back::<bf16>(&plan, at, &mut with),
            false => attended_back::<f16>(&plan, at, &mut with),
        }
    });
}
