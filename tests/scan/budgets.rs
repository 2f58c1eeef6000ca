//! What a launch may cost, counted by the emulator.

use super::case::{Case, Data, backward, forward};
use half::bf16;
use lookback_device::{DType, Element, emulator};
use lookback_scan::{BackwardPlan, Plan, Source};
use lookback_suite::device;
use serde_json::Value;

/// The counters of everything since the last reset.
struct Counted(Value);

impl Counted {
    fn of(run: impl FnOnce()) -> Self {
        emulator::reset_counters();
        run();
        let text = emulator::counters().expect("the emulator counts");
        Self(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    fn number(&self, path: &str) -> f64 {
        let found = self.0.pointer(&format!("/total/{path}")).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("no {path} in {}", self.0))
    }

    /// One launch; bytes within 5 % of the plan's; whole sectors; no bank conflict.
    fn check(&self, what: &str, bytes: u64) {
        assert_eq!(self.number("launches"), 1.0, "{what}");
        let moved = self.number("global_loads/unique_bytes") + self.number("global_stores/unique_bytes");
        let over = moved / bytes as f64;
        assert!(over <= 1.05, "{what}: {moved} bytes are {over:.3} of {bytes}");
        for direction in ["global_loads", "global_stores"] {
            let sectors = self.number(&format!("{direction}/sectors")) / self.number(&format!("{direction}/ideal_sectors"));
            assert!(sectors <= 1.05, "{what}: {direction} take {sectors:.3} of the ideal sectors");
        }
        assert_eq!(self.number("bank_conflicts"), 0.0, "{what}");
    }
}

fn check<T: Element>(source: Source, channels: usize) {
    if !device::info().emulated {
        return;
    }
    let case = Case { split: channels / 2, ..Case::new(source, T::DTYPE, 1, 1024, channels) };
    let data = Data::new::<T>(&case);
    let (shape, options, info) = (case.shape(), case.options(), device::info());
    let bytes = Plan::new(&shape, &options, &info).expect("good").bytes_moved();
    let mut h = Vec::new();
    let what = format!("{source:?} {}", T::DTYPE);
    Counted::of(|| h = forward::<T>(&case, &data).h).check(&what, bytes);
    let bytes = BackwardPlan::new(&shape, &options, &info).expect("good").bytes_moved();
    Counted::of(|| drop(backward::<T>(&case, &data, &h))).check(&format!("{what} backward"), bytes);
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
