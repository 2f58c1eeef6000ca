//! Counters of the calling thread's launches, in total and by kernel.

use super::args::{Out, fill_text};
use crate::counters::Counters;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;

thread_local! {
    static BY_KERNEL: RefCell<BTreeMap<String, Counters>> = const { RefCell::new(BTreeMap::new()) };
}

/// A launch of `kernel` has ended.
pub(super) fn add(kernel: &str, counters: &Counters) {
    // At the end of a thread there is nobody left to read them.
    let _ = BY_KERNEL.try_with(|kernels| {
        let mut kernels = kernels.borrow_mut();
        if let Some(sum) = kernels.get_mut(kernel) {
            *sum += counters;
        } else {
            kernels.insert(kernel.to_owned(), counters.clone());
        }
    });
}

/// `{"total": {..}, "kernels": {"name": {..}, ..}}`. Names of PTX need no escapes.
fn to_json() -> String {
    BY_KERNEL
        .try_with(|kernels| {
            let kernels = kernels.borrow();
            let mut total = Counters::default();
            let mut entries = String::new();
            for (name, counters) in kernels.iter() {
                total += counters;
                let comma = if entries.is_empty() { "" } else { "," };
                // Writing to a string cannot fail.
                let _ = write!(entries, "{comma}\"{name}\":{}", counters.to_json());
            }
            format!("{{\"total\":{},\"kernels\":{{{entries}}}}}", total.to_json())
        })
        .unwrap_or_default()
}

/// Copies the counters of the calling thread's launches since its last reset into `buffer` of `size` bytes as JSON:
/// `{"total": {..}, "kernels": {"name": {..}, ..}}`. Returns the length of the whole text, so that a null buffer asks
/// for the length.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_counters(buffer: Out<u8>, size: usize) -> usize {
    let text = to_json();
    fill_text(buffer, size, &text);
    text.len()
}

/// Starts the calling thread's counters anew.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_reset_counters() {
    // At the end of a thread there is nothing left to reset.
    let _ = BY_KERNEL.try_with(|kernels| kernels.borrow_mut().clear());
}
