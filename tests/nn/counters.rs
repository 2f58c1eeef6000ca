//! What the launches cost, as the emulator counts it: the evidence for speed that needs no GPU.

use super::support::{Input, Layout, Output, Words, finish};
use half::bf16;
use lookback_device::{DType, Element, emulator};
use lookback_nn::{
    Activation, Param, argmax, cross_entropy, embedding, gate,
    gemm::{self, Policy, Right, Tile},
    rms_norm, short_conv,
};
use lookback_suite::{buffer::upload, device, random::Random};
use serde_json::Value;

/// Counters of the launches in `run`, or nothing on a GPU.
fn counted(run: impl FnOnce()) -> Option<Value> {
    device::context();
    emulator::reset_counters();
    run();
    finish();
    let counters: Value = serde_json::from_str(&emulator::counters()?).unwrap();
    Some(counters["total"].clone())
}

#[test]
fn show() {
    let c = counted(|| {
        let x = Input::<bf16>::dense(&vec![1.0; 256 * 512]);
        let mut out = Output::<bf16>::new(Layout::dense(256, 512));
        let shape = gate::Shape::dense(256, 512);
        let options = gate::Options { dtype: DType::Bf16, activation: Activation::Silu };
        let plan = gate::Plan::new(&shape, &options, &device::info()).unwrap();
        plan.run(&device::stream(), &x.view(), &x.view(), &mut out.view_mut()).unwrap();
    });
    println!("{:#}", c.unwrap());
    let c = counted(|| {
        let x = Input::<bf16>::dense(&vec![1.0; 256 * 256]);
        let mut out = Output::<bf16>::new(Layout::dense(256, 256));
        let shape = gemm::Shape::linear(256, 256, 256);
        let options = gemm::Options { policy: Some(Policy { tile: Tile::Large }), ..gemm::Options::new(DType::Bf16) };
        let plan = gemm::Plan::new(&shape, &options, &device::info()).unwrap();
        plan.run(&device::stream(), &x.view(), &x.view(), Param::None, &mut out.view_mut()).unwrap();
    });
    println!("{:#}", c.unwrap());
}
