//! Calls of gated scans and of running log-sum-exps.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::f16;
use lookback_device::{DType, Element, Result};
use lookback_scan::{
    BackwardInputs, BackwardOutputs, BackwardPlan, GateGradients, Gates, Inputs, Options, Outputs, Plan, Shape, Source,
    Workspace, log_cumsum_exp as logs,
};
use lookback_suite::device;

/// Tokens of two rows: for the second number, tiles look back at others, in a workspace.
const LENGTHS: [usize; 2] = [9, 600];
const CHANNELS: usize = 6;
const STATES: usize = 2 * CHANNELS;
/// `[2,9,6]`.
const N: usize = 2 * 9 * CHANNELS;
const ROWS: usize = 2 * 9;

/// A workspace that is long enough, and one that is not.
fn workspaces(bytes: u64) -> [Workspace; 2] {
    [bytes, bytes / 2].map(|bytes| Workspace::new(&device::stream(), bytes).expect("a workspace"))
}

fn forward<T: Element>(plan: &Plan, at: &At<'_>, workspaces: &mut [Workspace; 2]) -> Result<()> {
    let (a, b, x) = (at.maybe::<T>("a"), at.get::<T>("b"), at.maybe::<T>("x"));
    let (channel, flags, initial) = (at.maybe::<f32>("decay"), at.maybe::<u8>("flags"), at.maybe::<f32>("initial"));
    let mut h = at.get::<T>("h");
    let mut last = at.maybe::<f32>("last");
    let gates = Gates { a: given(&a), b: Some(&b), x: given(&x), channel: given(&channel) };
    let inputs = Inputs { flags: given(&flags), initial: given(&initial), ..Inputs::of(gates) };
    let workspace = &mut workspaces[usize::from(at.other.is_some())];
    plan.run(&device::stream(), &inputs, Outputs { h: &mut h, last: wanted(&mut last) }, workspace)
}

#[test]
fn gated_scan_calls() {
    for source in [Source::Tensor, Source::Channel { log: false }] {
        for (dtype, length) in [DType::F32, DType::F16].into_iter().zip(LENGTHS) {
            let (size, rows) = (dtype.size(), 2 * length);
            let n = rows * CHANNELS;
            let mut tensors = vec![
                read("b", n, size),
                read("flags", rows, 1).optional(),
                read("initial", STATES, 4).optional(),
                written("h", n, size),
                written("last", STATES, 4).optional(),
            ];
            tensors.push(if source == Source::Tensor { read("a", n, size) } else { read("decay", CHANNELS, 4) });
            let options = Options { dtype, source, split: 4, deterministic: false };
            let plan = Plan::new(&Shape::dense(2, length, CHANNELS), &options, &device::info()).expect("a plan");
            let mut memory = workspaces(plan.workspace_bytes());
            let others = usize::from(plan.workspace_bytes() > 0);
            assert_eq!(others, usize::from(length > 9), "long sequences are cut into tiles");
            let calls = Calls { others, in_place: &[("h", "b")], ..Calls::new("gated scan", tensors) };
            calls.make(CALLS / 4, |at| match (dtype == DType::F32) != at.other_type {
                true => forward::<f32>(&plan, at, &mut memory),
                false => forward::<f16>(&plan, at, &mut memory),
            });
        }
    }
}

fn backward<T: Element>(plan: &BackwardPlan, at: &At<'_>, workspaces: &mut [Workspace; 2]) -> Result<()> {
    let (a, b, h, dh) = (at.get::<T>("a"), at.get::<T>("b"), at.get::<T>("h"), at.get::<T>("dh"));
    let (flags, initial) = (at.maybe::<u8>("flags"), at.maybe::<f32>("initial"));
    let d_last = at.maybe::<f32>("d_last");
    let (mut da, mut db) = (at.get::<T>("da"), at.get::<T>("db"));
    let mut d_initial = at.maybe::<f32>("d_initial");
    let gates = Gates { a: Some(&a), b: Some(&b), x: None, channel: None };
    let forward = Inputs { flags: given(&flags), initial: given(&initial), ..Inputs::of(gates) };
    let outputs = BackwardOutputs {
        gates: GateGradients { a: Some(&mut da), b: Some(&mut db), x: None, channel: None },
        d_initial: wanted(&mut d_initial),
    };
    let inputs = BackwardInputs { forward, h: &h, dh: &dh, d_last: given(&d_last) };
    plan.run(&device::stream(), &inputs, outputs, &mut workspaces[usize::from(at.other.is_some())])
}

#[test]
fn gated_scan_backward_calls() {
    for (dtype, length) in [DType::F32, DType::F16].into_iter().zip(LENGTHS) {
        let (size, rows) = (dtype.size(), 2 * length);
        let n = rows * CHANNELS;
        let tensors = vec![
            read("a", n, size),
            read("h", n, size),
            read("dh", n, size),
            read("b", 0, size),
            read("flags", rows, 1).optional(),
            read("initial", STATES, 4).optional(),
            read("d_last", STATES, 4).optional(),
            written("da", n, size),
            written("db", n, size),
            written("d_initial", STATES, 4).optional(),
        ];
        let options = Options { dtype, source: Source::Tensor, split: 4, deterministic: false };
        let plan = BackwardPlan::new(&Shape::dense(2, length, CHANNELS), &options, &device::info()).expect("a plan");
        let mut memory = workspaces(plan.workspace_bytes());
        let others = usize::from(plan.workspace_bytes() > 0);
        let in_place = &[("db", "dh"), ("da", "a")];
        let calls = Calls { others, in_place, ..Calls::new("gated scan backward", tensors) };
        calls.make(CALLS / 2, |at| match (dtype == DType::F32) != at.other_type {
            true => backward::<f32>(&plan, at, &mut memory),
            false => backward::<f16>(&plan, at, &mut memory),
        });
    }
}

fn log_forward<T: Element>(plan: &logs::Plan, at: &At<'_>) -> Result<()> {
    let (x, starts) = (at.get::<T>("x"), at.maybe::<i32>("cu_seqlens"));
    let (flags, initial) = (at.maybe::<u8>("flags"), at.maybe::<f32>("initial"));
    let (mut z, mut g, mut last) = (at.maybe::<f32>("z"), at.maybe::<f32>("g"), at.maybe::<f32>("last"));
    let mut k = at.maybe::<T>("k");
    let inputs = logs::Inputs {
        flags: given(&flags),
        initial: given(&initial),
        cu_seqlens: given(&starts),
        ..logs::Inputs::of(&x)
    };
    let outputs = logs::Outputs { z: wanted(&mut z), k: wanted(&mut k), g: wanted(&mut g), last: wanted(&mut last) };
    plan.run(&device::stream(), &inputs, outputs)
}

#[test]
fn log_cumsum_exp_calls() {
    for packed in [false, true] {
        let shape = if packed { logs::Shape::packed(2, 18, 6) } else { logs::Shape::dense(2, 9, 6) };
        let mut tensors = vec![
            read("x", N, 2),
            read("flags", ROWS, 1).optional(),
            read("initial", STATES, 4).optional(),
            written("z", N, 4).optional(),
            written("k", N, 2).optional(),
            written("g", N, 4).optional(),
            written("last", STATES, 4).optional(),
        ];
        if packed {
            tensors.push(read("cu_seqlens", 3, 4));
        }
        let options = logs::Options::new::<f16>();
        let plan = logs::Plan::new(&shape, &options, &device::info()).expect("a plan");
        Calls::new("log_cumsum_exp", tensors).make(CALLS / 2, |at| match at.other_type {
            true => log_forward::<f32>(&plan, at),
            false => log_forward::<f16>(&plan, at),
        });
    }
}

fn log_backward<T: Element>(plan: &logs::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (x, z, dz) = (at.get::<T>("x"), at.get::<f32>("z"), at.maybe::<f32>("dz"));
    let (flags, initial) = (at.maybe::<u8>("flags"), at.maybe::<f32>("initial"));
    let (d_last, dk, dg) = (at.maybe::<f32>("d_last"), at.maybe::<T>("dk"), at.maybe::<f32>("dg"));
    let mut dx = at.get::<T>("dx");
    let mut d_initial = at.maybe::<f32>("d_initial");
    let forward = logs::Inputs { flags: given(&flags), initial: given(&initial), ..logs::Inputs::of(&x) };
    let gates = logs::GateAdjoint::Plain { dk: given(&dk), dg: given(&dg) };
    let inputs = logs::BackwardInputs { forward, z: &z, dz: given(&dz), gates, d_last: given(&d_last) };
    plan.run(&device::stream(), &inputs, logs::BackwardOutputs { dx: &mut dx, d_initial: wanted(&mut d_initial) })
}

#[test]
fn log_cumsum_exp_backward_calls() {
    let tensors = vec![
        read("x", N, 2),
        read("z", N, 4),
        read("dz", N, 4).optional(),
        read("dk", N, 2).optional(),
        read("dg", N, 4).optional(),
        read("d_last", STATES, 4).optional(),
        read("flags", ROWS, 1).optional(),
        read("initial", STATES, 4).optional(),
        written("dx", N, 2),
        written("d_initial", STATES, 4).optional(),
    ];
    let shape = logs::Shape::dense(2, 9, 6);
    let plan = logs::BackwardPlan::new(&shape, &logs::Options::new::<f16>(), &device::info()).expect("a plan");
    let calls = Calls { in_place: &[("dx", "x")], ..Calls::new("log_cumsum_exp backward", tensors) };
    calls.make(CALLS, |at| match at.other_type {
        true => log_backward::<f32>(&plan, at),
        false => log_backward::<f16>(&plan, at),
    });
}
