//! The emulator against independent expectations: PTX text in, memory out.

mod atomics;
mod barriers;
mod copies;
mod divergence;
mod float;
mod harness;
mod integer;
mod matrix;
mod reals;
mod refused;
mod scenarios;
mod scheduling;
mod seeded_bugs;
mod warp;
