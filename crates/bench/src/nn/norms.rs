//! Norms and their gradients.

use super::facts;
use crate::{Case, Launch, Memory};
use half::bf16;
use lookback_device::{DeviceInfo, Element, Result};
use lookback_nn::{Param, gated_rms_norm, residual_norm, rms_norm};

/// Over `rows` of `width`.
pub fn cases(info: &DeviceInfo, rows: usize, width: usize) -> Vec<Case> {
    vec![
        rms(info, rows, width),
        rms_backward(info, rows, width),
        gated(info, rows, width),
        gated_backward(info, rows, width),
        residual(info, rows, width),
        residual_backward(info, rows, width),
    ]
}

fn rms(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = rms_norm::Options { dtype: bf16::DTYPE, eps: 1e-6 };
    let plan = rms_norm::Plan::new(&rms_norm::Shape::dense(rows, width), &options, info);
    let maker = move |plan: rms_norm::Plan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[width])?;
        let mut sets = memory.sets(|memory| {
            Ok((memory.normal::<bf16>("x", &[rows, width])?, memory.output::<bf16>("out", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, Param::Same(&weight), out, None)
        }))
    };
    Case::planned(facts("rms_norm", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn rms_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let plan = rms_norm::BackwardPlan::new(&rms_norm::BackwardShape::dense(rows, width), bf16::DTYPE, info);
    let maker = move |plan: rms_norm::BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[width])?;
        let mut dweight = memory.output::<f32>("dweight", &[width])?;
        let mut workspace = memory.scratch::<f32>("workspace", plan.workspace_bytes())?;
        let mut sets = memory.sets(|memory| {
            let [x, dout] = ["x", "dout"].map(|name| memory.normal::<bf16>(name, &[rows, width]));
            let rstd = memory.between::<f32>("rstd", &[rows], [0.5, 1.5])?;
            Ok((x?, dout?, rstd, memory.output::<bf16>("dx", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, dout, rstd, dx) = &mut sets[set];
            plan.run(&stream, x, dout, Param::Same(&weight), rstd, dx, Some(&mut dweight as _), &mut workspace)
        }))
    };
    Case::planned(facts("rms_norm_backward", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

const GATED: gated_rms_norm::Options = gated_rms_norm::Options {
    dtype: bf16::DTYPE,
    gate: gated_rms_norm::Gate::Silu,
    norm_before_gate: false,
    eps: 1e-5,
};

fn gated(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let plan = gated_rms_norm::Plan::new(&gated_rms_norm::Shape::dense(rows, width), &GATED, info);
    let maker = move |plan: gated_rms_norm::Plan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[width])?;
        let mut sets = memory.sets(|memory| {
            let [y, z] = ["y", "z"].map(|name| memory.normal::<bf16>(name, &[rows, width]));
            Ok((y?, z?, memory.output::<bf16>("out", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (y, z, out) = &mut sets[set];
            plan.run(&stream, y, z, Param::Same(&weight), out, None)
        }))
    };
    Case::planned(facts("gated_rms_norm", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn gated_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let shape = gated_rms_norm::BackwardShape::dense(rows, width);
    let plan = gated_rms_norm::BackwardPlan::new(&shape, &GATED, info);
    let maker = move |plan: gated_rms_norm::BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[width])?;
        let mut dweight = memory.output::<f32>("dweight", &[width])?;
        let mut workspace = memory.scratch::<f32>("workspace", plan.workspace_bytes())?;
        let mut sets = memory.sets(|memory| {
            let [y, z, dout] = ["y", "z", "dout"].map(|name| memory.normal::<bf16>(name, &[rows, width]));
            let rstd = memory.between::<f32>("rstd", &[rows], [0.5, 1.5])?;
            let [dy, dz] = ["dy", "dz"].map(|name| memory.output::<bf16>(name, &[rows, width]));
            Ok(([y?, z?, dout?], rstd, [dy?, dz?]))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let ([y, z, dout], rstd, [dy, dz]) = &mut sets[set];
            let inputs = gated_rms_norm::BackwardInputs { y, z, dout, weight: Param::Same(&weight), rstd };
            let outputs = gated_rms_norm::Gradients { dy, dz, dweight: Some(&mut dweight) };
            plan.run(&stream, inputs, outputs, &mut workspace)
        }))
    };
    Case::planned(facts("gated_rms_norm_backward", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

const RESIDUAL: residual_norm::Options =
    residual_norm::Options { dtype: bf16::DTYPE, eps: 1e-5, center: false, post: false };

/// The residual in f32, changed in place, and the next mixer's input.
fn residual(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let plan = residual_norm::Plan::new(&residual_norm::Shape::dense(rows, width), &RESIDUAL, info);
    let maker = move |plan: residual_norm::Plan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<f32>("weight", &[width])?;
        let mut sets = memory.sets(|memory| {
            let (x, residual) =
                (memory.normal::<bf16>("x", &[rows, width])?, memory.state::<f32>("residual", &[rows, width])?);
            Ok((x, residual, memory.output::<bf16>("out", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, residual, out) = &mut sets[set];
            let inputs = residual_norm::Inputs { x: Some(x), weight: Some(&weight), ..Default::default() };
            plan.run_in_place(&stream, residual, inputs, Some(out))
        }))
    };
    Case::planned(facts("residual_norm", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn residual_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let plan = residual_norm::BackwardPlan::new(&residual_norm::BackwardShape::dense(rows, width), &RESIDUAL, info);
    let maker = move |plan: residual_norm::BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<f32>("weight", &[width])?;
        let mut dweight = memory.output::<f32>("dweight", &[width])?;
        let mut workspace = memory.scratch::<f32>("workspace", plan.workspace_bytes())?;
        let mut sets = memory.sets(|memory| {
            let [s, dsum] = ["s", "dsum"].map(|name| memory.normal::<f32>(name, &[rows, width]));
            let dout = memory.normal::<bf16>("dout", &[rows, width])?;
            let ds = memory.output::<f32>("ds", &[rows, width])?;
            Ok((s?, dsum?, dout, ds, memory.output::<bf16>("dx", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (s, dsum, dout, ds, dx) = &mut sets[set];
            let inputs = residual_norm::BackwardInputs { dout: Some(dout), dsum: Some(dsum), weight: Some(&weight) };
            let outputs =
                residual_norm::BackwardOutputs { ds: Some(ds), dx: Some(dx), dweight: Some(&mut dweight), dbias: None };
            plan.run(&stream, s, inputs, outputs, &mut workspace)
        }))
    };
    Case::planned(facts("residual_norm_backward", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}
