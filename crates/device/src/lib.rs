//! The only crate of lookback that talks to the CUDA driver: find a device, load a kernel, launch it, say what went wrong.
//!
//! A device is opened once with [`open`]; everything after that works on the caller's own cudarc context, stream and
//! slices. Kernels come from `lookback-kernels` as PTX text; [`function`] gives the text to the driver on first use and
//! keeps the result per context, so the cost of compiling is paid once and only for kernels that run.
//!
//! # No driver
//! Where there is no NVIDIA driver, [`open`] loads `liblookback_emulator.so` from beside the executable: the same driver
//! functions over an interpreter of PTX on the CPU. cudarc cannot tell the difference; [`DeviceInfo::emulated`] can, and the
//! device name says it. Its counters and switches are in [`emulator`].
//!
//! # Errors
//! Nothing here panics on a missing driver, a wrong argument or a failing launch. cudarc does when a
//! [`DriverError`](cudarc::driver::DriverError) is printed without a driver, so [`Error`] keeps the raw code and prints its name.

mod dtype;
pub mod emulator;
mod error;
mod info;
mod launch;
pub mod memory;
mod module;
mod packed;
mod probe;
pub mod strided;

pub use cudarc;
pub use dtype::{DType, Element};
pub use error::{Class, Error, PeerFault, RendezvousFault, Result, WeightsFault, driver};
pub use info::DeviceInfo;
pub use launch::launch;
pub use module::function;
pub use packed::cu_seqlens;
pub use probe::{DevicePick, open};
