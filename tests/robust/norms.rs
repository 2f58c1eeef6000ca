//! Calls of norms.

use super::call::{At, CALLS, Calls, given, read, wanted, written};
use half::{bf16, f16};
use lookback_device::{DType, Element, Result};
use lookback_nn::{Param, gated_rms_norm as gated, residual_norm as residual, rms_norm};
use lookback_suite::device;

const F16: DType = DType::F16;
/// `[5,24]`.
const N: usize = 5 * 24;

fn run_rms_norm<T: Element>(plan: &rms_norm::Plan, at: &At<'_>) -> Result<()> {
    let (x, weight, mut out) = (at.get::<T>("x"), at.get::<f32>("weight"), at.get::<T>("out"));
    let mut rstd = at.maybe::<f32>("rstd");
    plan.run(&device::stream(), &x, Param::F32(&weight), &mut out, wanted(&mut rstd))
}

#[test]
fn rms_norm_calls() {
    let options = rms_norm::Options { dtype: F16, eps: 1e-5 };
    let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(5, 24), &options, &device::info()).expect("a plan");
    let tensors = vec![read("x", N, 2), read("weight", 24, 4), written("out", N, 2), written("rstd", 5, 4).optional()];
    let calls = Calls { in_place: &[("out", "x")], ..Calls::new("rms_norm", tensors) };
    calls.make(CALLS, |at| match at.other_type {
        true => run_rms_norm::<bf16>(&plan, at),
        false => run_rms_norm::<f16>(&plan, at),
    });
}

fn run_rms_norm_backward<T: Element>(plan: &rms_norm::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (x, dout, weight) = (at.get::<T>("x"), at.get::<T>("dout"), at.get::<f32>("weight"));
    let (rstd, mut dx) = (at.get::<f32>("rstd"), at.get::<T>("dx"));
    let (mut dweight, mut workspace) = (at.maybe::<f32>("dweight"), at.get::<f32>("workspace"));
    let weight = Param::F32(&weight);
    plan.run(&device::stream(), &x, &dout, weight, &rstd, &mut dx, wanted(&mut dweight), &mut workspace)
}

#[test]
fn rms_norm_backward_calls() {
    let shape = rms_norm::BackwardShape::dense(5, 24);
    let plan = rms_norm::BackwardPlan::new(&shape, F16, &device::info()).expect("a plan");
    let tensors = vec![
        read("x", N, 2),
        read("dout", N, 2),
        read("weight", 24, 4),
        read("rstd", 5, 4),
        written("dx", N, 2),
        written("dweight", 24, 4).optional(),
        written("workspace", plan.workspace_bytes() as usize / 4, 4),
    ];
    let calls = Calls { in_place: &[("dx", "x"), ("dx", "dout")], ..Calls::new("rms_norm backward", tensors) };
    calls.make(CALLS, |at| match at.other_type {
        true => run_rms_norm_backward::<bf16>(&plan, at),
        false => run_rms_norm_backward::<f16>(&plan, at),
    });
}

fn run_residual<T: Element>(plan: &residual::Plan, at: &At<'_>) -> Result<()> {
    let (before, x) = (at.maybe::<f32>("residual"), at.get::<T>("x"));
    let (weight, bias) = (at.maybe::<f32>("weight"), at.maybe::<f32>("bias"));
    let (mut sum, mut out) = (at.maybe::<f32>("sum"), at.maybe::<T>("out"));
    let inputs = residual::Inputs { residual: given(&before), x: Some(&x), weight: given(&weight), bias: given(&bias) };
    plan.run(&device::stream(), inputs, wanted(&mut sum), wanted(&mut out))
}

#[test]
fn residual_norm_calls() {
    let options = residual::Options { dtype: F16, eps: 1e-5, center: true, post: false };
    let plan = residual::Plan::new(&residual::Shape::dense(5, 24), &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("residual", N, 4).optional(),
        read("x", N, 2).optional(),
        read("weight", 24, 4).optional(),
        read("bias", 24, 4).optional(),
        written("sum", N, 4).optional(),
        written("out", N, 2).optional(),
    ];
    let in_place = &[("sum", "residual"), ("out", "x")];
    Calls { in_place, ..Calls::new("residual_norm", tensors) }.make(CALLS, |at| match at.other_type {
        true => run_residual::<bf16>(&plan, at),
        false => run_residual::<f16>(&plan, at),
    });
}

fn run_residual_backward<T: Element>(plan: &residual::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (s, dout, dsum) = (at.get::<f32>("s"), at.maybe::<T>("dout"), at.maybe::<f32>("dsum"));
    let weight = at.maybe::<f32>("weight");
    let (mut ds, mut dx) = (at.maybe::<f32>("ds"), at.maybe::<T>("dx"));
    let (mut dweight, mut dbias) = (at.maybe::<f32>("dweight"), at.maybe::<f32>("dbias"));
    let inputs = residual::BackwardInputs { dout: given(&dout), dsum: given(&dsum), weight: given(&weight) };
    let outputs = residual::BackwardOutputs {
        ds: wanted(&mut ds),
        dx: wanted(&mut dx),
        dweight: wanted(&mut dweight),
        dbias: wanted(&mut dbias),
    };
    plan.run(&device::stream(), &s, inputs, outputs, &mut at.get::<f32>("workspace"))
}

#[test]
fn residual_norm_backward_calls() {
    let options = residual::Options { dtype: F16, eps: 1e-5, center: true, post: false };
    let shape = residual::BackwardShape::dense(5, 24);
    let plan = residual::BackwardPlan::new(&shape, &options, &device::info()).expect("a plan");
    let tensors = vec![
        read("s", N, 4),
        read("dout", N, 2).optional(),
        read("dsum", N, 4).optional(),
        read("weight", 24, 4).optional(),
        written("ds", N, 4).optional(),
        written("dx", N, 2).optional(),
        written("dweight", 24, 4).optional(),
        written("dbias", 24, 4).optional(),
        written("workspace", plan.workspace_bytes() as usize / 4, 4),
    ];
    let in_place = &[("ds", "s"), ("ds", "dsum"), ("dx", "dout")];
    Calls { in_place, ..Calls::new("residual_norm backward", tensors) }.make(CALLS, |at| match at.other_type {
        true => run_residual_backward::<bf16>(&plan, at),
        false => run_residual_backward::<f16>(&plan, at),
    });
}

fn gated_options() -> gated::Options {
    gated::Options { dtype: F16, gate: gated::Gate::Silu, norm_before_gate: true, eps: 1e-5 }
}

fn run_gated<T: Element>(plan: &gated::Plan, at: &At<'_>) -> Result<()> {
    let (y, z, weight) = (at.get::<T>("y"), at.get::<T>("z"), at.get::<T>("weight"));
    let (mut out, mut rstd) = (at.get::<T>("out"), at.maybe::<f32>("rstd"));
    plan.run(&device::stream(), &y, &z, Param::Same(&weight), &mut out, wanted(&mut rstd))
}

#[test]
fn gated_rms_norm_calls() {
    let shape = gated::Shape::dense(5, 24).groups_of(8);
    let plan = gated::Plan::new(&shape, &gated_options(), &device::info()).expect("a plan");
    let tensors = vec![
        read("y", N, 2),
        read("z", N, 2),
        read("weight", 24, 2),
        written("out", N, 2),
        written("rstd", 15, 4).optional(),
    ];
    let in_place = &[("out", "y"), ("out", "z")];
    Calls { in_place, ..Calls::new("gated_rms_norm", tensors) }.make(CALLS, |at| match at.other_type {
        true => run_gated::<bf16>(&plan, at),
        false => run_gated::<f16>(&plan, at),
    });
}

fn run_gated_backward<T: Element>(plan: &gated::BackwardPlan, at: &At<'_>) -> Result<()> {
    let (y, z, dout, weight) = (at.get::<T>("y"), at.get::<T>("z"), at.get::<T>("dout"), at.get::<T>("weight"));
    let (rstd, mut dy, mut dz) = (at.get::<f32>("rstd"), at.get::<T>("dy"), at.get::<T>("dz"));
    let mut dweight = at.maybe::<f32>("dweight");
    let inputs = gated::BackwardInputs { y: &y, z: &z, dout: &dout, weight: Param::Same(&weight), rstd: &rstd };
    let gradients = gated::Gradients { dy: &mut dy, dz: &mut dz, dweight: wanted(&mut dweight) };
    plan.run(&device::stream(), inputs, gradients, &mut at.get::<f32>("workspace"))
}

#[test]
fn gated_rms_norm_backward_calls() {
    let shape = gated::BackwardShape::dense(5, 24).groups_of(8);
    let plan = gated::BackwardPlan::new(&shape, &gated_options(), &device::info()).expect("a plan");
    let tensors = vec![
        read("y", N, 2),
        read("z", N, 2),
        read("dout", N, 2),
        read("weight", 24, 2),
        read("rstd", 15, 4),
        written("dy", N, 2),
        written("dz", N, 2),
        written("dweight", 24, 4).optional(),
        written("workspace", plan.workspace_bytes() as usize / 4, 4),
    ];
    let in_place = &[("dy", "y"), ("dy", "z"), ("dy", "dout"), ("dz", "y"), ("dz", "z"), ("dz", "dout")];
    Calls { in_place, ..Calls::new("gated_rms_norm backward", tensors) }.make(CALLS, |at| match at.other_type {
        true => run_gated_backward::<bf16>(&plan, at),
        false => run_gated_backward::<f16>(&plan, at),
    });
}
