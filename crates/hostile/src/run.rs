//! `lookback run`: the name of an operation, its attributes, and a file of tensors.

use lookback_cli::{CliError, trial::Trial};
use lookback_device::{DevicePick, emulator};
use std::cell::OnceCell;

thread_local! {
    /// Handles of contexts are of one thread, and so are the switches.
    static TRIAL: OnceCell<Option<Trial>> = const { OnceCell::new() };
}

fn with_trial<R>(use_it: impl FnOnce(Option<&Trial>) -> R) -> R {
    TRIAL.with(|trial| {
        let open = || {
            let trial = Trial::open(DevicePick::Emulated).ok()?;
            // What runs is as small as the file, but outputs need not be.
            for (key, value) in [("memory_mib", "64"), ("checks", "on"), ("instruction_limit", "20000000")] {
                emulator::set_option(key, value);
            }
            Some(trial)
        };
        use_it(trial.get_or_init(open).as_ref())
    })
}

/// Whether there is an emulator to run on; without, nothing is run.
pub fn is_ready() -> bool {
    with_trial(|trial| trial.is_some())
}

/// Lines of text, of which the first is the operation and the others are attributes, up to one that is empty; then a safetensors file.
///
/// # Panics
/// When the command would end with a fault of the device.
pub fn run(bytes: &[u8]) -> bool {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        if line.is_empty() || lines.len() > 20 {
            break;
        }
        lines.push(line);
    }
    let Some((operation, attributes)) = lines.split_first() else { return false };
    with_trial(|trial| {
        let Some(trial) = trial else { return false };
        match trial.run(operation, rest, attributes) {
            Ok(_) => true,
            Err(CliError::Operation(error)) if error.is_terminal() => panic!("{error}"),
            Err(error) => {
                let line = error.to_string();
                assert!(!line.trim().is_empty(), "an error must say something");
                false
            }
        }
    })
}
