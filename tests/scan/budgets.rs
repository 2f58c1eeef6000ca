//! What a launch may cost, counted by the emulator.

use super::case::{Case, Data, backward, forward};
use half::bf16;
use lookback_device::{DType, Element};
use lookback_scan::{BackwardPlan, Plan, Source};
use lookback_suite::{counters::Counters, device};

/// One launch that moves the plan's bytes once.
fn streams(what: &str, bytes: u64, run: impl FnOnce()) {
    let Some(counted) = Counters::of(run) else { return };
    assert_eq!(counted.number("launches"), 1, "{what}");
    counted.assert_streams(what, bytes);
    counted.assert_coalesced(what);
}

fn check<T: Element>(source: Source, channels: usize) {
    let case = Case { split: channels / 2, ..Case::new(source, T::DTYPE, 1, 1024, channels) };
    let data = Data::new::<T>(&case);
    let (shape, options, info) = (case.shape(), case.options(), device::info());
    let bytes = Plan::new(&shape, &options, &info).expect("good").bytes_moved();
    let mut h = Vec::new();
    let what = format!("{source:?} {}", T::DTYPE);
    streams(&what, bytes, || h = forward::<T>(&case, &data).h);
    let bytes = BackwardPlan::new(&shape, &options, &info).expect("good").bytes_moved();
    streams(&format!("{what} backward"), bytes, || drop(backward::<T>(&case, &data, &h)));
}

#[test]
fn gated_scan_moves_every_byte_once() {
    for source in [Source::Tensor, Source::Cumsum, Source::GatedSsm { normalize: false }] {
        check::<f32>(source, 128);
        check::<bf16>(source, 256);
    }
}

#[test]
fn gated_scan_short_rows_need_no_workspace() {
    let case = Case::new(Source::Tensor, DType::F32, 4, 128, 64);
    let plan = Plan::new(&case.shape(), &case.options(), &device::info()).expect("good");
    assert_eq!(plan.workspace_bytes(), 0);
}
