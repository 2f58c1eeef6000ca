//! Linear attention on matrix states: `S[t] = diag(exp g[t]) S[t-1] + k[t] v[t]^T`, read by `q[t]`.
//!
//! The one primitive under Mamba-2, RetNet, GLA, LightNet, Based, Hydra and RWKV-6. A state of `K x V` numbers for each head remembers
//! keys with their values, forgets at the rate that [`Decay`] says, and is read as [`Read`] says, by the tokens that [`Mode`] lets see
//! it. Flags cut the state at single tokens; packed sequences, heads that share queries and keys, initial and final states, a
//! normaliser and any length from 0 on are part of the operation.
//!
//! * [`Shape`] says sizes and strides (in elements), [`Options`] element type and switches;
//! * [`Plan::new`] checks both and chooses kernels: token by token in f32, or chunks on tensor cores, in one pass or in segments, see
//!   [`Path`]; it allocates nothing;
//! * [`Plan::run`] launches on the caller's stream and memory, nothing else; [`Plan::run_raw`] does the same on device addresses. Once
//!   the kernels are loaded, by a first run, both can be captured into a graph and replayed (`run` with cudarc's event tracking off,
//!   since waiting for another stream's event ends a capture);
//! * [`linear_attention`] allocates its outputs, for trying things out;
//! * [`BackwardPlan`] and [`linear_attention_backward`] are the same for the gradients, in every mode;
//! * [`step`] is one token of decoding, in place;
//! * [`time_reduce`] lets every token see all tokens, without decay, in one sum and one read;
//! * [`flow`] is attention that conserves flow, causal or from queries to other keys.
//!
//! States, decays and normalisers are `f32` whatever the elements are. On an error nothing is launched and nothing written.
//!
//! # Examples
//! ```no_run
//! use lookback_linear::{Decay, Inputs, Options, Shape, linear_attention};
//! # fn main() -> lookback_linear::Result<()> {
//! let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! let stream = context.default_stream();
//! let (batch, seq_len, heads, key_dim, value_dim) = (2, 1000, 8, 64, 128);
//! # let upload = |n: usize| stream.alloc_zeros::<f32>(n).map_err(|e| lookback_device::driver(e, "upload"));
//! let rows = batch * seq_len * heads;
//! let (q, k, v) = (upload(rows * key_dim)?, upload(rows * key_dim)?, upload(rows * value_dim)?);
//! let g = upload(rows)?; // logarithms of the decays, at most 0
//! let shape = Shape::dense(batch, seq_len, heads, key_dim, value_dim);
//! let options = Options { decay: Decay::Scalar, ..Options::new::<f32>(&shape) };
//! let inputs = Inputs { g: Some(&g), ..Inputs::of(&q, &k, &v) };
//! let out = linear_attention(&stream, &shape, &options, &inputs)?;
//! # let _ = (out.o, out.state);
//! # Ok(())
//! # }
//! ```

mod allocate;
mod backward;
pub mod check;
pub mod flow;
mod launch;
mod options;
mod plan;
mod policy;
mod run;
mod shape;
pub mod step;
mod tensors;
pub mod time_reduce;
mod walk;

pub use allocate::{Forwarded, linear_attention};
pub use backward::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Gradients, RawBackwardInputs, RawBackwardOutputs, ReverseGradients,
    linear_attention_backward,
};
pub use lookback_device::strided::Stride;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub(crate) use lookback_device::{memory, strided};
pub use options::{Decay, Features, Mode, Options, Path, Read};
pub use plan::{MAX_KEY_DIM, Plan};
pub use shape::{Shape, Strides};
pub use tensors::{Inputs, Outputs, RawInputs, RawOutputs, RawWorkspace, ReverseInputs};
