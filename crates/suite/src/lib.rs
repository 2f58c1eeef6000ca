//! Helpers of the top-level tests and benches.
//!
//! * [`device`] opens one device for the whole process: a GPU, or the emulator where there is none.
//! * [`buffer`] allocates outputs that notice a stray write: guarded on both sides, filled with NaN, off the natural alignment.
//! * [`measure`] compares with the f64 oracle by three errors against fixed gates.
//! * [`random`] makes seeded inputs, already rounded to the element type of the operation.
//! * [`counters`] reads what the emulator counted.

use std::path::{Path, PathBuf};

pub mod buffer;
pub mod counters;
pub mod device;
pub mod measure;
pub mod random;

/// A file of `assets/`: in the workspace that the tests were built in, or below the current folder, as in a bundle.
pub fn asset(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name);
    if built.exists() { built } else { Path::new("assets").join(name) }
}
