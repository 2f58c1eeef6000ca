//! Gated scans: `h[t] = a[t] h[t-1] + b[t]` along time, forward and backward, in one launch each.
//!
//! The one primitive under diagonal state-space models, gated linear recurrences and cumulative sums. Channels below
//! [`Options::split`] run forward in time and the others in reverse, in the same launch; flags cut the carry at single tokens;
//! packed sequences, initial and final states and any length from 0 on are part of the operation. What makes `a` and `b` is a
//! [`Source`]: tensors, logarithms, one number a channel, or the gates of a gated SSM or an RG-LRU, computed on the way.
//!
//! * [`Shape`] says sizes and strides (in elements), [`Options`] element type, source and switches;
//! * [`Plan::new`] and [`BackwardPlan::new`] check both and choose kernels; they allocate nothing;
//! * [`Plan::run`] launches on the caller's stream and slices, nothing else; [`Plan::run_raw`] does the same on device
//!   addresses. Once the kernel is loaded, by a first run, both can be captured into a graph and replayed (`run` with cudarc's
//!   event tracking off, since waiting for another stream's event ends a capture);
//! * [`gated_scan`] and [`gated_scan_backward`] allocate their outputs, for trying things out.
//!
//! [`log_cumsum_exp`] is the other scan: running sums of exponentials, and LightNet's gates.
//!
//! The state is `f32` whatever the elements are. On an error nothing is launched and nothing written.
//!
//! # Examples
//! ```no_run
//! use lookback_scan::{Gates, Inputs, Options, Shape, Source, gated_scan};
//! # fn main() -> lookback_scan::Result<()> {
//! let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! let stream = context.default_stream();
//! let (batch, seq_len, channels) = (2, 1000, 256);
//! # let upload = |n: usize| stream.alloc_zeros::<f32>(n).map_err(|e| lookback_device::driver(e, "upload"));
//! let (a, b) = (upload(batch * seq_len * channels)?, upload(batch * seq_len * channels)?);
//! let shape = Shape::dense(batch, seq_len, channels);
//! // The first half of the channels reads forward, the second half backwards.
//! let options = Options { split: 128, ..Options::new::<f32>(Source::Tensor, &shape) };
//! let out = gated_scan(&stream, &shape, &options, &Inputs::of(Gates::tensor(&a, &b)))?;
//! # let _ = (out.h, out.last);
//! # Ok(())
//! # }
//! ```

mod allocate;
mod backward;
pub mod check;
pub mod log_cumsum_exp;
mod plan;
pub mod policy;
mod run;
mod shape;
mod tensors;
mod workspace;

pub use allocate::{Forwarded, Gradients, gated_scan, gated_scan_backward};
pub use backward::BackwardPlan;
pub(crate) use lookback_device::memory;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub use plan::Plan;
pub use shape::{Options, Shape, Source, Stride, Strides};
pub use tensors::{
    BackwardInputs, BackwardOutputs, GateGradients, Gates, Inputs, Outputs, RawBackwardInputs, RawBackwardOutputs,
    RawInputs, RawOutputs,
};
pub use workspace::{RawWorkspace, Workspace};
