//! Helpers of the top-level tests and benches.
//!
//! * [`device`] opens one device for the whole process: a GPU, or the emulator where there is none.
//! * [`buffer`] allocates outputs that notice a stray write: guarded on both sides, filled with NaN, off the natural alignment.
//! * [`measure`] compares with the f64 oracle by three errors against fixed gates.
//! * [`random`] makes seeded inputs, already rounded to the element type of the operation.
//! * [`counters`] reads what the emulator counted.

pub mod buffer;
pub mod counters;
pub mod device;
pub mod measure;
pub mod random;
