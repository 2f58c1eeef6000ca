//! Launches of the calling thread, kept with the memory that they found (see [`crate::snapshot`]).

use super::args::Out;
use super::memory;
use crate::launch::LaunchConfig;
use crate::snapshot::Snapshot;
use std::cell::RefCell;

thread_local! {
    /// Launches so far; nothing while the thread keeps none.
    static LAUNCHES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// `kernel` is about to run.
pub(super) fn keep(kernel: &str, config: &LaunchConfig, parameters: &[u8]) {
    // At the end of a thread there is nobody left to ask for it.
    let _ = LAUNCHES.try_with(|launches| {
        if let Some(launches) = launches.borrow_mut().as_mut() {
            Snapshot::new(kernel, config, parameters, memory::device()).write(launches);
        }
    });
}

/// From now on keeps the launches of the calling thread, or with 0 no longer; those kept so far are forgotten.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_keep_launches(on: i32) {
    let _ = LAUNCHES.try_with(|launches| *launches.borrow_mut() = (on != 0).then(Vec::new));
}

/// Copies what was kept since [`lookback_emulator_keep_launches`] into `buffer` if `size` bytes are enough for it, as
/// [`crate::snapshot::snapshots`] reads it. Returns its length.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_kept_launches(buffer: Out<u8>, size: usize) -> usize {
    let copy = |launches: &RefCell<Option<Vec<u8>>>| {
        let launches = launches.borrow();
        let bytes = launches.as_deref().unwrap_or_default();
        if !buffer.is_null() && bytes.len() <= size {
            for (index, byte) in bytes.iter().enumerate() {
                // The only failure is a null buffer, which is excluded above.
                let _ = buffer.set_at(index, *byte);
            }
        }
        bytes.len()
    };
    LAUNCHES.try_with(copy).unwrap_or(0)
}
