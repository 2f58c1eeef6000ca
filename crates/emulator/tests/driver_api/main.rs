//! The driver library as a program sees it: loaded by path, called through cudarc.
//!
//! The library is a second copy of this crate inside the process, with statics of its own; everything here goes through
//! its exported symbols.

mod capture;
mod device;
mod handles;
mod launch;
mod memory;
mod modules;
mod occupancy;
mod recording;
mod streams;
mod support;
