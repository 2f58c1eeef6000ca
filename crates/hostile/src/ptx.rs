//! The emulator's parser and decoder.

use lookback_emulator::{decode::decode, ptx::parse};

/// Parses a module and decodes its kernels, as loading it does.
///
/// # Panics
/// When an error names a line that the text does not have.
pub fn ptx(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    // The end of a text stands behind its last line.
    let lines = text.lines().count() as u32 + 1;
    let module = match parse(&text) {
        Ok(module) => module,
        Err(error) => {
            assert!(error.line <= lines, "{error}: there are {lines} lines");
            return false;
        }
    };
    let globals: Vec<u64> = (1..=module.globals.len() as u64).map(|index| index << 36).collect();
    module.entries.iter().all(|entry| match decode(&module, entry, &globals) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.line <= lines, "{error}: there are {lines} lines");
            false
        }
    })
}
