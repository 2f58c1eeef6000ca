//! What blocks need between sequence mixers: matrix product, norms, embedding, gate, short convolution, pooling,
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
//!
//! # Examples
//! ```no_run
//! use lookback_device::{DType, DeviceInfo, DevicePick, driver, open};
//! use lookback_nn::{Activation, Param, gemm};
//!
//! # fn main() -> lookback_nn::Result<()> {
//! let context = open(DevicePick::Auto)?;
//! let stream = context.default_stream();
//! let copy = |values: &[f32]| stream.clone_htod(values).map_err(|e| driver(e, "copy"));
//! let (x, weight, bias) = (copy(&[1.0; 4 * 64])?, copy(&[0.5; 8 * 64])?, copy(&[0.0; 8])?);
//!
//! // 4 rows of 64 to 4 rows of 8, into new memory.
//! let y = gemm::linear(&stream, &x, &weight, Param::Same(&bias), (4, 8, 64), Activation::Gelu)?;
//!
//! // The same with a plan, made once, into memory of one's own.
//! let options = gemm::Options { activation: Activation::Gelu, ..gemm::Options::new(DType::F32) };
//! let plan = gemm::Plan::new(&gemm::Shape::linear(4, 8, 64), &options, &DeviceInfo::of(&context)?)?;
//! let mut y_again = copy(&[0.0; 4 * 8])?;
//! plan.run(&stream, &x, &weight, Param::Same(&bias), &mut y_again)?;
//! # Ok(())
//! # }
//! ```

mod activation;
pub mod argmax;
mod check;
pub mod copy_rows;
pub mod cross_entropy;
pub mod decay_gate;
pub mod embedding;
pub mod gate;
pub mod gated_rms_norm;
pub mod gemm;
pub mod head_scale;
mod memory;
mod param;
pub mod pool;
pub mod residual_norm;
pub mod rms_norm;
pub mod rotary;
mod rows;
pub mod short_convolution;
pub mod taylor_map;

pub use activation::Activation;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub use param::Param;
