//! Templates of kernels and their contracts.

use crate::build::{Source, render_all};

/// Renders every variant of a template and checks their contracts, as the build does.
///
/// Texts that make loops or products of variants are the repository's own and may take what they want; these are cut short.
///
/// # Panics
/// When an error names no file, or a line that the text does not have.
pub fn contract(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
    // Whoever writes a loop of a million rounds into a kernel waits for it.
    if text.contains("range") || text.matches("//! variant").count() > 3 {
        return false;
    }
    let lines = text.lines().count();
    let source = Source { file: "hostile.ptx".into(), family: "hostile".into(), text };
    match render_all(&[], &[source]) {
        Ok(_) => true,
        Err(errors) => {
            for error in &errors {
                assert!(error.file == "hostile.ptx" && error.line <= lines.max(1), "{error}");
            }
            false
        }
    }
}
