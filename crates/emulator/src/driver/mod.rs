//! The CUDA driver API: `extern "C"` functions over the interpreter.
//!
//! Built as a shared library with the name `libcuda.so.1`, so that host code written for a GPU runs unchanged. One file
//! per subject of the C header; what they share is in `api` (the frame of an entry point), `args` (pointer arguments),
//! `handles` and `errors`.
//!
//! * Work runs on the calling thread when it is enqueued. A stream serialises host threads; launches of two threads in
//!   two streams run side by side, and no lock is held meanwhile that is not the stream's own.
//! * A fault of a kernel breaks its context: every later call returns the same code, as on hardware. Its story goes to
//!   stderr and to `lookback_emulator_last_fault`.
//! * Handles are looked up and never followed. Addresses of host memory must be trusted, as by any driver.
//! * What is not emulated answers `CUDA_ERROR_NOT_SUPPORTED` and says its name.
//! * The emulator's own symbols, for `dlsym`: `lookback_emulator_set_options`, `lookback_emulator_last_fault`,
//!   `lookback_emulator_clear_fault`, `lookback_emulator_counters`, `lookback_emulator_reset_counters`,
//!   `lookback_emulator_recording`, `lookback_emulator_reset_recording`, `lookback_emulator_keep_launches`,
//!   `lookback_emulator_kept_launches`.

mod api;
mod args;
mod attributes;
mod capture;
mod context;
mod copies;
mod counting;
mod device;
mod errors;
mod event;
mod failure;
mod function;
mod graph;
mod handles;
mod host;
mod jit;
mod keep;
mod launch;
mod memory;
mod module;
mod occupancy;
mod operation;
mod options;
mod pointer;
mod pool;
mod profiler;
mod recording;
mod report;
mod stream;
mod stubs;
mod symbols;
