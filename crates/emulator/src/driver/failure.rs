//! Failures on demand, for tests of what callers do about them.
//!
//! | key | the n-th of the thread from now on |
//! |---|---|
//! | `FAIL_ALLOCATION` | `cuMemAlloc*` answers `CUDA_ERROR_OUT_OF_MEMORY` |
//! | `FAIL_CALL` | call answers `CUDA_ERROR_OPERATING_SYSTEM`; those that give something back, and those that only read an error's name, neither count nor fail |
//!
//! The value is that number, or `off`. Both happen once. Not from the environment: a program that always fails tests nothing.

use super::errors::{CUresult, Outcome};
use super::report;
use std::cell::Cell;

/// Calls until one fails; 0 when none will.
type Countdown = Cell<u64>;

thread_local! {
    static ALLOCATION: Countdown = const { Cell::new(0) };
    static CALL: Countdown = const { Cell::new(0) };
}

/// Set an option of this module; `None` if `key` is another one. No key, as no value, turns off.
pub(super) fn set(key: Option<&str>, value: Option<&str>) -> Option<Result<(), String>> {
    let Some(key) = key else {
        ALLOCATION.set(0);
        CALL.set(0);
        return None;
    };
    let countdown = match key {
        "FAIL_ALLOCATION" => &ALLOCATION,
        "FAIL_CALL" => &CALL,
        _ => return None,
    };
    let number = match value.map(str::trim) {
        None | Some("off") => Some(0),
        Some(text) => text.parse().ok().filter(|number: &u64| *number > 0),
    };
    let wrong = || format!("option {key}: `{}` is not off or a number above 0", value.unwrap_or_default());
    Some(number.map(|number| countdown.set(number)).ok_or_else(wrong))
}

/// Whether this one fails.
fn is_due(countdown: &Countdown) -> bool {
    let left = countdown.get();
    countdown.set(left.saturating_sub(1));
    left == 1
}

/// The program allocates.
pub(super) fn of_allocation() -> Outcome {
    if ALLOCATION.with(is_due) {
        report::note("FAIL_ALLOCATION: this allocation was told to fail".into());
        return Err(CUresult::OUT_OF_MEMORY);
    }
    Ok(())
}

/// The program calls `name`.
pub(super) fn of_call(name: &str) -> Outcome {
    // A driver reports the failures of others in these, and has none of their own.
    const ALWAYS: [&str; 5] = ["Destroy", "Free", "Unload", "Release", "GetError"];
    if ALWAYS.iter().any(|word| name.contains(word)) {
        return Ok(());
    }
    if CALL.with(is_due) {
        report::note(format!("FAIL_CALL: {name} was told to fail"));
        return Err(CUresult::OPERATING_SYSTEM);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_fails_once() {
        assert_eq!(set(Some("FAIL_ALLOCATION"), Some("3")), Some(Ok(())));
        let fails: Vec<bool> = (0..6).map(|_| of_allocation().is_err()).collect();
        assert_eq!(fails, [false, false, true, false, false, false]);
        assert_eq!(set(Some("FAIL_CALL"), Some("2")), Some(Ok(())));
        let calls = ["cuMemFree_v2", "cuEventCreate", "cuGetErrorName", "cuEventRecord", "cuEventRecord"];
        assert_eq!(calls.map(|name| of_call(name).is_err()), [false, false, false, true, false]);
    }

    #[test]
    fn it_is_turned_off_and_refuses_what_is_no_number() {
        assert_eq!(set(Some("FAIL_CALL"), Some("1")), Some(Ok(())));
        assert_eq!(set(Some("FAIL_CALL"), Some("off")), Some(Ok(())));
        assert!(of_call("cuEventCreate").is_ok());
        assert_eq!(set(Some("FAIL_CALL"), Some("1")), Some(Ok(())));
        assert_eq!(set(None, None), None);
        assert!(of_call("cuEventCreate").is_ok());
        for wrong in ["0", "-1", "soon"] {
            let why = set(Some("FAIL_CALL"), Some(wrong)).unwrap().unwrap_err();
            assert!(why.contains("FAIL_CALL") && why.contains(wrong), "{why}");
        }
        assert_eq!(set(Some("ORDER"), Some("1")), None);
    }
}
