//! What blocks need between sequence mixers: matrix product, root-mean-square norm, embedding, gate, short convolution,
//! argmax and cross-entropy, for `f32`, `f16` and `bf16`.
//!
//! Every operation is a module of the same shape:
//! * `Shape` says sizes and strides (in elements), `Options` says element types and switches;
//! * `Plan::new` checks both, chooses kernels and counts bytes and operations; it allocates nothing;
//! * `Plan::run` checks the lengths of the caller's cudarc slices and launches on the caller's stream, nothing else, so it can be
//!   captured into a graph; `Plan::run_raw` does the same on device addresses;
//! * one function allocates its output, for trying things out.
//!
//! All sums are in `f32`. On an error nothing is launched and nothing written.

mod activation;
pub mod argmax;
mod check;
pub mod cross_entropy;
pub mod embedding;
pub mod gate;
pub mod gemm;
mod memory;
mod param;
pub mod rms_norm;
mod rows;
pub mod short_conv;

pub use activation::Activation;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub use param::Param;
