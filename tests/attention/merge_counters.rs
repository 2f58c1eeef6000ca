//! What merging costs, as the emulator counts it.

use half::{bf16, f16};
use lookback_attention::merge::{Inputs, Options, Outputs, Plan, Shape};
use lookback_device::{Element, cudarc::driver::DevicePtrMut};
use lookback_suite::{buffer::upload_as, counters::Counters, device, random::Random};

fn streams<T: Element, U: Element>(states: usize, value_dim: usize, accumulate: bool) {
    let (batch, tokens, heads) = (1, 32, 8);
    let shape = Shape::dense(states, batch, tokens, heads, value_dim);
    let options = Options { dtype: T::DTYPE, out: U::DTYPE, accumulate };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    let (rows, mut random) = (batch * tokens * heads, Random::new(1));
    let o = upload_as::<T>(&random.normals::<T>(states * rows * value_dim));
    let lse = upload_as::<f32>(&random.normals::<f32>(states * rows));
    let mut out = upload_as::<U>(&random.normals::<U>(rows * value_dim));
    let mut lse_out = upload_as::<f32>(&random.normals::<f32>(rows));
    let run = || {
        let inputs = Inputs { o: &o, lse: &lse, starts: None, sink: None };
        let outputs = Outputs { out: &mut out, lse: Some(&mut lse_out as &mut dyn DevicePtrMut<f32>) };
        plan.run(&device::stream(), &inputs, outputs).unwrap();
    };
    let Some(counters) = Counters::of(run) else { return };
    let what = format!("merge {} to {} {states} x {value_dim} {accumulate}", T::DTYPE, U::DTYPE);
    // The floor of the specification: (states + 1) rows in and out, and what is accumulated once more.
    let (from, to) = (T::DTYPE.size(), U::DTYPE.size());
    let times = if accumulate { 2 } else { 1 };
    let floor = rows * (states * (value_dim * from + 4) + times * (value_dim * to + 4));
    assert_eq!(plan.bytes_moved(), floor as u64, "{what}");
    assert_eq!(counters.unique_bytes(), floor as u64, "{what}: every byte crosses the bus once, and no other");
    counters.assert_coalesced(&what);
    assert_eq!(counters.number("launches"), 1, "{what}");
    // Rows are requested once; only an lse is asked for by all lanes of its row, and comes from one sector.
    let vectors = rows * value_dim * (states * from + (times - 1) * to);
    let lanes = value_dim.div_ceil(if from == 2 && to == 2 { 8 } else { 4 }).min(32);
    let lse_bytes = 4 * rows * lanes * (states + times - 1);
    assert_eq!(counters.number("global_loads/bytes"), (vectors + lse_bytes) as u64, "{what}");
    assert_eq!(counters.number("global_stores/bytes"), (rows * (value_dim * to + 4)) as u64, "{what}");
}

#[test]
fn merge_counters_are_at_the_floor() {
    for value_dim in [64, 128] {
        streams::<f32, f32>(2, value_dim, false);
        streams::<f32, bf16>(5, value_dim, false);
        streams::<bf16, f32>(1, value_dim, true);
        streams::<f16, f16>(8, value_dim, false);
    }
}
