//! Element by element, and copies.

use super::facts;
use crate::{Case, Launch, Memory};
use half::bf16;
use lookback_device::{DType, DeviceInfo, Element, Result, strided::Stride};
use lookback_nn::{Activation, copy_rows, decay_gate, gate, head_scale, taylor_map};

/// Over `rows` of `width`.
pub fn cases(info: &DeviceInfo, rows: usize, width: usize) -> Vec<Case> {
    vec![
        gated(info, rows, width),
        decays(info, rows, width),
        head_scaled(info, rows, width),
        taylor_features(info, rows, width),
        copied_heads(info, rows, width),
    ]
}

fn gated(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = gate::Options { dtype: bf16::DTYPE, activation: Activation::Gelu };
    let plan = gate::Plan::new(&gate::Shape::dense(rows, width), &options, info);
    let maker = move |plan: gate::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let [x, gate] = ["x", "gate"].map(|name| memory.normal::<bf16>(name, &[rows, width]));
            Ok((x?, gate?, memory.output::<bf16>("out", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, gate, out) = &mut sets[set];
            plan.run(&stream, x, gate, out)
        }))
    };
    Case::planned(facts("gate", "gelu", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

/// A log-decay for each of half as many entries of keys.
fn decays(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let width = width / 2;
    let options = decay_gate::Options::log_sigmoid(bf16::DTYPE, 16.0);
    let plan = decay_gate::Plan::new(&decay_gate::Shape::dense(rows, width), &options, info);
    let maker = move |plan: decay_gate::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            Ok((memory.normal::<bf16>("x", &[rows, width])?, memory.output::<f32>("g", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, g) = &mut sets[set];
            plan.run(&stream, x, decay_gate::Params::default(), g, None)
        }))
    };
    // Without the steps, which are not wanted.
    let work = move |plan: &decay_gate::Plan| [plan.bytes_moved() - (rows * width * 4) as u64, 0];
    Case::planned(facts("decay_gate", "", rows, width), plan, work, maker)
}

/// Values of heads of 64 times their steps.
fn head_scaled(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let heads = width / 64;
    let options = head_scale::Options { dtype: bf16::DTYPE, accumulate: false };
    let plan = head_scale::Plan::new(&head_scale::Shape::dense(rows, heads, 64), &options, info);
    let maker = move |plan: head_scale::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let (x, scale) =
                (memory.normal::<bf16>("x", &[rows, width])?, memory.normal::<f32>("scale", &[rows, heads])?);
            Ok((x, scale, memory.output::<bf16>("out", &[rows, width])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, scale, out) = &mut sets[set];
            plan.run(&stream, x, head_scale::Factors { scale: Some(scale), bias: None }, out)
        }))
    };
    Case::planned(facts("head_scale", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

/// Features of as many heads of 16 as take the room of a tensor.
fn taylor_features(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let heads = (width / taylor_map::FEATURES).max(1);
    let plan = taylor_map::Plan::new(&taylor_map::Shape::dense(rows, heads, 16), bf16::DTYPE, info);
    let maker = move |plan: taylor_map::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let x = memory.normal::<bf16>("x", &[rows, heads, 16])?;
            Ok((x, memory.output::<bf16>("out", &[rows, heads, taylor_map::FEATURES])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, out)
        }))
    };
    let width = heads * taylor_map::FEATURES;
    Case::planned(facts("taylor_map", "", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}

/// Half of the heads of f32 sums, packed and rounded: what a message between ranks is made of.
fn copied_heads(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let heads = width / 128;
    let x_stride = Some(Stride::dense(rows, heads, 128));
    let shape = copy_rows::Shape { x_stride, ..copy_rows::Shape::dense(1, rows, heads / 2, 128) };
    let options = copy_rows::Options { dtype: DType::F32, out: DType::Bf16, accumulate: false };
    let plan = copy_rows::Plan::new(&shape, &options, info);
    let maker = move |plan: copy_rows::Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let x = memory.normal::<f32>("x", &[rows, heads, 128])?;
            Ok((x, memory.output::<bf16>("out", &[rows, heads / 2, 128])?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, out)
        }))
    };
    Case::planned(facts("copy_rows", "f32 to", rows, width), plan, |plan| [plan.bytes_moved(), 0], maker)
}
