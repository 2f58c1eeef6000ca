//! Norms, convolutions, positions and copies of the blocks, and their gradients, in bf16. One set of tensors: together they exceed the cache.

use crate::{Case, filled};
use half::bf16;
use lookback_device::{DType, DeviceInfo, Element, cudarc::driver::CudaSlice, strided::Stride};
use lookback_nn::{
    Activation, Param, copy_rows, decay_gate, gated_rms_norm, head_scale, residual_norm, rms_norm, rotary,
    short_convolution, taylor_map,
};
use lookback_suite::device;

/// All of them over `rows` tokens of `width`.
pub fn cases(info: &DeviceInfo, rows: usize, width: usize) -> Vec<Case> {
    vec![
        rms_norm_backward(info, rows, width),
        gated_norm(info, rows, width),
        gated_norm_backward(info, rows, width),
        centred_convolution(info, rows, width),
        convolution_backward(info, rows, width),
        turned(info, rows, width),
        residual_norms(info, rows, width),
        decays(info, rows, width),
        head_scaled(info, rows, width),
        taylor_features(info, rows, width),
        copied_heads(info, rows, width),
    ]
}

fn case(name: &str, bytes: u64, launch: impl FnMut(usize) + 'static) -> Case {
    Case { name: format!("{name} bf16"), bytes, flops: 0, sets: 1, launch: Box::new(launch) }
}

fn tensor(elements: usize, value: f64) -> CudaSlice<bf16> {
    filled(&device::stream(), elements, value)
}

fn floats(elements: usize) -> CudaSlice<f32> {
    filled(&device::stream(), elements, 1.0)
}

fn rms_norm_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let shape = rms_norm::BackwardShape::dense(rows, width);
    let plan = rms_norm::BackwardPlan::new(&shape, bf16::DTYPE, info).expect("good");
    let [x, dout, mut dx] = [0.5, 0.25, 0.0].map(|value| tensor(rows * width, value));
    let (weight, rstd, mut dweight) = (tensor(width, 1.0), floats(rows), floats(width));
    let mut workspace = floats(plan.workspace_bytes() as usize / 4);
    case("rms_norm_backward", plan.bytes_moved(), move |_| {
        let (weight, dweight) = (Param::Same(&weight), Some(&mut dweight as _));
        plan.run(&device::stream(), &x, &dout, weight, &rstd, &mut dx, dweight, &mut workspace).expect("launch");
    })
}

const GATED: gated_rms_norm::Options = gated_rms_norm::Options {
    dtype: bf16::DTYPE,
    gate: gated_rms_norm::Gate::Silu,
    norm_before_gate: false,
    eps: 1e-5,
};

fn gated_norm(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let plan = gated_rms_norm::Plan::new(&gated_rms_norm::Shape::dense(rows, width), &GATED, info).expect("good");
    let [y, z, mut out] = [0.5, 0.25, 0.0].map(|value| tensor(rows * width, value));
    let weight = tensor(width, 1.0);
    case("gated_rms_norm", plan.bytes_moved(), move |_| {
        plan.run(&device::stream(), &y, &z, Param::Same(&weight), &mut out, None).expect("launch");
    })
}

fn gated_norm_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let shape = gated_rms_norm::BackwardShape::dense(rows, width);
    let plan = gated_rms_norm::BackwardPlan::new(&shape, &GATED, info).expect("good");
    let [y, z, dout, mut dy, mut dz] = [0.5, 0.25, 0.5, 0.0, 0.0].map(|value| tensor(rows * width, value));
    let (weight, rstd, mut dweight) = (tensor(width, 1.0), floats(rows), floats(width));
    let mut workspace = floats(plan.workspace_bytes() as usize / 4);
    case("gated_rms_norm_backward", plan.bytes_moved(), move |_| {
        let weight = Param::Same(&weight);
        let inputs = gated_rms_norm::BackwardInputs { y: &y, z: &z, dout: &dout, weight, rstd: &rstd };
        let outputs = gated_rms_norm::Gradients { dy: &mut dy, dz: &mut dz, dweight: Some(&mut dweight) };
        plan.run(&device::stream(), inputs, outputs, &mut workspace).expect("launch");
    })
}

const SILU: short_convolution::Options =
    short_convolution::Options { dtype: bf16::DTYPE, activation: Activation::Silu };

fn centred_convolution(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let shape = short_convolution::Shape::dense(1, rows, width, 7).centred();
    let plan = short_convolution::Plan::new(&shape, &SILU, info).expect("good");
    let [x, mut out] = [0.5, 0.0].map(|value| tensor(rows * width, value));
    let weight = tensor(width * 7, 0.25);
    case("short_convolution centred 7", plan.bytes_moved(), move |_| {
        let inputs = short_convolution::Inputs::default();
        plan.run(&device::stream(), &x, &weight, inputs, &mut out, None).expect("launch");
    })
}

fn convolution_backward(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let shape = short_convolution::Shape::dense(1, rows, width, 4);
    let plan = short_convolution::BackwardPlan::dense(&shape, &SILU, info).expect("good");
    let [x, dout, mut dx] = [0.5, 0.25, 0.0].map(|value| tensor(rows * width, value));
    let (weight, mut dweight) = (tensor(width * 4, 0.25), floats(width * 4));
    let mut workspace = floats(plan.workspace_bytes() as usize / 4);
    case("short_convolution_backward", plan.bytes_moved(), move |_| {
        let adjoints = short_convolution::Adjoints { dout: &dout, dstate_out: None };
        let outputs =
            short_convolution::Gradients { dx: &mut dx, dweight: Some(&mut dweight), dbias: None, dstate: None };
        let inputs = short_convolution::Inputs::default();
        plan.run(&device::stream(), &x, &weight, inputs, adjoints, outputs, &mut workspace).expect("launch");
    })
}

fn turned(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let head_dim = 128;
    let options = rotary::Options::new(bf16::DTYPE, rotary::Style::Half, head_dim);
    let shape = rotary::Shape::dense(1, rows, width / head_dim, head_dim);
    let plan = rotary::Plan::new(&shape, &options, info).expect("good");
    let [x, mut out] = [0.5, 0.0].map(|value| tensor(rows * width, value));
    case("rotary", plan.bytes_moved(), move |_| {
        plan.run(&device::stream(), &x, rotary::Inputs::default(), &mut out).expect("launch");
    })
}

/// The residual in f32, changed in place, and the next mixer's input.
fn residual_norms(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = residual_norm::Options { dtype: bf16::DTYPE, eps: 1e-5, center: false, post: false };
    let plan = residual_norm::Plan::new(&residual_norm::Shape::dense(rows, width), &options, info).expect("good");
    let (x, mut residual, weight) = (tensor(rows * width, 0.5), floats(rows * width), floats(width));
    let mut out = tensor(rows * width, 0.0);
    case("residual_norm", plan.bytes_moved(), move |_| {
        let inputs = residual_norm::Inputs { x: Some(&x), weight: Some(&weight), ..Default::default() };
        plan.run_in_place(&device::stream(), &mut residual, inputs, Some(&mut out)).expect("launch");
    })
}

/// A log-decay for each of half as many entries of keys.
fn decays(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = decay_gate::Options::log_sigmoid(bf16::DTYPE, 16.0);
    let plan = decay_gate::Plan::new(&decay_gate::Shape::dense(rows, width / 2), &options, info).expect("good");
    let (x, mut g) = (tensor(rows * width / 2, 0.5), floats(rows * width / 2));
    let bytes = plan.bytes_moved() - (rows * width / 2 * size_of::<f32>()) as u64;
    case("decay_gate", bytes, move |_| {
        plan.run(&device::stream(), &x, decay_gate::Params::default(), &mut g, None).expect("launch");
    })
}

/// Values of heads of 64 times their steps.
fn head_scaled(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let options = head_scale::Options { dtype: bf16::DTYPE, accumulate: false };
    let plan = head_scale::Plan::new(&head_scale::Shape::dense(rows, width / 64, 64), &options, info).expect("good");
    let (x, scale, mut out) = (tensor(rows * width, 0.5), floats(rows * width / 64), tensor(rows * width, 0.0));
    case("head_scale", plan.bytes_moved(), move |_| {
        let factors = head_scale::Factors { scale: Some(&scale), bias: None };
        plan.run(&device::stream(), &x, factors, &mut out).expect("launch");
    })
}

/// Features of as many heads of 16 as take the room of a tensor.
fn taylor_features(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let heads = (width / taylor_map::FEATURES).max(1);
    let plan = taylor_map::Plan::new(&taylor_map::Shape::dense(rows, heads, 16), bf16::DTYPE, info).expect("good");
    let (x, mut out) = (tensor(rows * heads * 16, 0.5), tensor(rows * heads * taylor_map::FEATURES, 0.0));
    case("taylor_map", plan.bytes_moved(), move |_| plan.run(&device::stream(), &x, &mut out).expect("launch"))
}

/// Half of the heads of f32 sums, packed and rounded: what a message between ranks is made of.
fn copied_heads(info: &DeviceInfo, rows: usize, width: usize) -> Case {
    let heads = width / 128;
    let x_stride = Some(Stride::dense(rows, heads, 128));
    let shape = copy_rows::Shape { x_stride, ..copy_rows::Shape::dense(1, rows, heads / 2, 128) };
    let options = copy_rows::Options { dtype: DType::F32, out: DType::Bf16, accumulate: false };
    let plan = copy_rows::Plan::new(&shape, &options, info).expect("good");
    let (x, mut out) = (floats(rows * width), tensor(rows * width / 2, 0.0));
    case("copy_rows f32 to", plan.bytes_moved(), move |_| plan.run(&device::stream(), &x, &mut out).expect("launch"))
}
