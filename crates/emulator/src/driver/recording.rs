//! What a thread would have the device do, as a list instead of done: for programs that repeat the same launches
//! elsewhere, on a GPU that this host does not have.
//!
//! While a thread has `RECORD` on, its kernels are not run and its memory is reserved, not taken: a shape for which a host
//! has no memory costs nothing. What is checked at an enqueue is still checked. Short copies and fills are also done, so
//! that the program reads back what it wrote itself; memory that nobody wrote reads as zeros.

use super::args::{Out, fill_text};
use super::errors::Outcome;
use super::launch::KernelLaunch;
use super::memory;
use super::operation::{Fill, Operation};
use super::options;
use std::cell::RefCell;
use std::fmt::Write;

/// Copies and fills up to so many bytes are done, and what a host copied is kept. Longer ones are data that whoever
/// repeats the launches makes anew.
const KEPT_BYTES: u64 = 1 << 20;

/// One thing that happened.
#[derive(Debug)]
enum Recorded {
    Allocation { pointer: u64, bytes: u64 },
    Upload { to: u64, bytes: u64, contents: Option<Vec<u8>> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill(Fill),
    Launch(Box<str>),
}

thread_local! {
    static RECORDED: RefCell<Vec<Recorded>> = const { RefCell::new(Vec::new()) };
}

fn push(recorded: Recorded) {
    // At the end of a thread there is nobody left to read it.
    let _ = RECORDED.try_with(|list| list.borrow_mut().push(recorded));
}

/// Whether this thread records.
pub(super) fn is_on() -> bool {
    options::current().record
}

/// Memory has been reserved.
pub(super) fn allocated(pointer: u64, bytes: u64) {
    push(Recorded::Allocation { pointer, bytes });
}

/// Records `operation` if this thread records, and does of it what is done nevertheless. Nothing if it is to be done as
/// always.
pub(super) fn take(operation: &Operation) -> Option<Outcome> {
    if !is_on() {
        return None;
    }
    match operation {
        Operation::Kernel(launch) => {
            push(Recorded::Launch(launch_json(launch).into()));
            Some(Ok(()))
        }
        Operation::Copy { to, from, bytes } if memory::is_device(*to) && *bytes > 0 => Some(copy(*to, *from, *bytes)),
        Operation::Fill(fill) => Some(fill_memory(fill)),
        _ => None,
    }
}

fn copy(to: u64, from: u64, bytes: u64) -> Outcome {
    let is_kept = bytes <= KEPT_BYTES;
    if is_kept {
        memory::copy(to, from, bytes)?;
    } else {
        memory::check(to, bytes)?;
    }
    if memory::is_device(from) {
        if !is_kept {
            memory::check(from, bytes)?;
        }
        push(Recorded::Copy { to, from, bytes });
    } else {
        let contents = is_kept.then(|| memory::contents(to, bytes)).transpose()?;
        push(Recorded::Upload { to, bytes, contents });
    }
    Ok(())
}

fn fill_memory(fill: &Fill) -> Outcome {
    if memory::filled_span(fill)? <= KEPT_BYTES {
        memory::fill(fill)?;
    }
    push(Recorded::Fill(*fill));
    Ok(())
}

fn launch_json(launch: &KernelLaunch) -> String {
    let config = launch.config();
    let shape = |[x, y, z]: [u32; 3]| format!("[{x},{y},{z}]");
    format!(
        r#"{{"kind":"launch","entry":"{}","grid":{},"block":{},"dynamic_shared":{},"cooperative":{},"parameters":"{}"}}"#,
        launch.entry(),
        shape(config.grid),
        shape(config.block),
        config.dynamic_shared,
        config.cooperative,
        hex(launch.parameters()),
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Recorded {
    fn to_json(&self) -> String {
        match self {
            Self::Allocation { pointer, bytes } => {
                format!(r#"{{"kind":"allocation","pointer":{pointer},"bytes":{bytes}}}"#)
            }
            Self::Upload { to, bytes, contents } => {
                let contents = contents.as_ref().map_or("null".into(), |bytes| format!("\"{}\"", hex(bytes)));
                format!(r#"{{"kind":"upload","to":{to},"bytes":{bytes},"contents":{contents}}}"#)
            }
            Self::Copy { to, from, bytes } => format!(r#"{{"kind":"copy","to":{to},"from":{from},"bytes":{bytes}}}"#),
            Self::Fill(Fill { to, value, width, columns, rows, pitch }) => format!(
                r#"{{"kind":"fill","to":{to},"value":{value},"width":{width},"columns":{columns},"rows":{rows},"pitch":{pitch}}}"#
            ),
            Self::Launch(json) => json.to_string(),
        }
    }
}

fn to_json() -> String {
    let entries =
        |list: &RefCell<Vec<Recorded>>| list.borrow().iter().map(Recorded::to_json).collect::<Vec<_>>().join(",\n");
    format!("[{}]", RECORDED.try_with(entries).unwrap_or_default())
}

/// Copies what the calling thread has recorded since its last reset into `buffer` of `size` bytes as a JSON list, in
/// order. An entry's `kind` is `allocation` (`pointer`, `bytes`), `upload` (`to`, `bytes`, `contents` in hexadecimal, or
/// null where they are long), `copy` inside the device (`to`, `from`, `bytes`), `fill` (`to`, `value`, `width`, `columns`,
/// `rows`, `pitch`) or `launch` (`entry`, `grid`, `block`, `dynamic_shared`, `cooperative`, `parameters` in hexadecimal).
/// Returns the length of the whole text, so that a null buffer asks for the length.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_recording(buffer: Out<u8>, size: usize) -> usize {
    let text = to_json();
    fill_text(buffer, size, &text);
    text.len()
}

/// Starts the calling thread's recording anew.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_reset_recording() {
    // At the end of a thread there is nothing left to reset.
    let _ = RECORDED.try_with(|list| list.borrow_mut().clear());
}
