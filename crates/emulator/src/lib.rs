//! The CUDA driver API on the CPU: a PTX interpreter with a sanitizer and counters.
//!
//! PTX text is parsed ([`ptx`]), decoded to a compact program ([`decode`]), and run 32 lanes at a time with the CTAs of
//! a grid interleaved ([`launch`]), so that what a GPU would leave to chance is decided by a seed and checked
//! ([`check`]). As a shared library the same thing speaks the CUDA driver's C interface ([`driver`]).
//!
//! | module | subject |
//! |---|---|
//! | [`ptx`] | text to a resolved syntax tree; strict about syntax, scopes and names |
//! | [`decode`] | syntax tree to instructions on numbered slots; strict about opcodes, modifiers and types |
//! | [`launch`] | the direct API: options, faults, one launch |
//! | `exec`, `sched` | the interpreter's loop, and who has a turn |
//! | [`memory`] | device allocations, with their number in the pointer |
//! | [`check`] | races, uninitialised memory, copies in flight |
//! | [`counters`] | what a launch did, for budgets |
//! | [`snapshot`] | launches kept with the memory that they found |
//! | [`numerics`] | arithmetic as PTX defines it: pure functions |
//! | [`driver`] | the `cu*` functions |

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
pub mod snapshot;
