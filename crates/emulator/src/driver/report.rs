//! What the emulator has to say beyond an error code: why a call was refused, and the story of a fault.

use super::args::{Out, fill_text};
use super::context;
use std::cell::RefCell;
use std::io::Write;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keep `text` as the reason of the error that is about to be returned.
pub(super) fn note(text: String) {
    // At the end of a thread there is nobody left to read it.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// Keep `text`, and say it on stderr.
pub(super) fn announce(text: String) {
    // A closed stderr must not turn a report into a failure.
    let _ = writeln!(std::io::stderr().lock(), "lookback emulator: {text}");
    note(text);
}

/// Forget the last reason.
pub(super) fn clear() {
    note(String::new());
}

/// Copies a text into `buffer` of `size` bytes as C text: the story of the fault that broke the calling thread's current
/// context, or else the reason of the thread's last refused call. Returns the length of the whole text, so that a null
/// buffer asks for the length. The text is empty when nothing went wrong since the last `lookback_emulator_clear_fault`.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_last_fault(buffer: Out<u8>, size: usize) -> usize {
    let own = || LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
    let text = context::story().unwrap_or_else(own);
    fill_text(buffer, size, &text);
    text.len()
}
