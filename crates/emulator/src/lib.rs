//! The CUDA driver API on the CPU: a PTX interpreter with a sanitizer and counters.
//!
//! PTX text is parsed ([`ptx`]), decoded to a compact program, and run 32 lanes at a time with the CTAs of a grid
//! interleaved, so that what a GPU would leave to chance is decided by a seed and checked.

pub mod check;
pub mod counters;
pub mod decode;
pub mod driver;
mod exec;
pub mod launch;
pub mod memory;
pub mod numerics;
pub mod ptx;
mod sched;
