//! Decode attention over key-value caches of any lengths, in one launch with equal work for every block.
//!
//! While a model generates, every request brings one query, or a few, and attends over everything it has cached. That is a matter of
//! reading: each key and value once. What goes wrong elsewhere is the sharing out. One block for each request and head leaves most of a
//! device idle behind the longest request; a fixed number of splits fits one length and no other. *Lean* attention (stream-K) writes the
//! tiles of 64 keys of all requests and heads on one line and cuts the line into equal parts, one for each block that the device holds at
//! once. A part may begin and end in the middle of an output; what several blocks did of one output is put together by the last of them to
//! end, always in the same order, so that results are the same bits every time. Lengths may differ as they like: the parts differ by one
//! tile.
//!
//! * [`Shape`] says sizes, strides, and where the cache keeps its keys: [`Cache::Dense`], [`Cache::Ragged`] or [`Cache::Paged`], which
//!   differ in one formula. [`pages`] keeps the tables of paged caches on the host.
//! * [`Options`] has types (f16, bf16, and e4m3 for the cache), window and sink tokens, soft cap, lists of keys, logits.
//! * [`Plan::new`] checks both and allocates nothing. Nothing in a plan depends on the lengths of requests, nor does
//!   [`Plan::workspace_bytes`].
//! * [`Plan::schedule`], once a step, reads the lengths on the device and cuts the line. [`Plan::run`], once a layer, is the attention: one
//!   launch. Both can be captured into a graph that is replayed as lengths grow.
//! * [`Plan::status`] asks, as often as you like, whether lengths or tables led outside of the cache. Kernels never follow such entries.
//! * [`lean_decode`] does it all into new memory, for trying things out.
//!
//! Several queries a request, as in prefill in chunks or in speculative decoding, are [`Shape::query_len`]: the last stands at the last
//! key, and each sees what is not after it. With [`Output::F32`] and `lse` the result is a *state* of the keys that were read, which joins
//! those of other keys, on another device or in another cache, by `merge_states` of the attention family.
//!
//! # Examples
//! Four requests on a pool of 1000 pages of 16 tokens, 32 heads that share 8 key heads, and all layers of a step:
//! ```no_run
//! use lookback_decode::{Cache, Inputs, Lengths, Options, Outputs, Plan, Schedule, Shape, Workspace};
//! use lookback_device::{DeviceInfo, cudarc::driver::CudaSlice};
//! # use half::bf16;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! # let stream = context.default_stream();
//! # let layers: Vec<(CudaSlice<bf16>, CudaSlice<bf16>)> = Vec::new();
//! # let queries = |_: usize| stream.alloc_zeros::<bf16>(4 * 32 * 128);
//! # let (pages_of_all, starts, lengths) = (vec![0_i32; 400], vec![0_i32, 100, 200, 300, 400], vec![9_i32, 1600, 17, 0]);
//! let cache = Cache::Paged { pages: 1000, page_size: 16, table: 400 };
//! let shape = Shape::new(4, 32, 8, 128, cache);
//! let plan = Plan::new(&shape, &Options::new::<bf16>(&shape), &DeviceInfo::of(&context)?)?;
//! let mut schedule = Schedule::new(&stream, plan.schedule_bytes())?;
//! let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
//! let mut o = stream.alloc_zeros::<bf16>(4 * 32 * 128)?;
//!
//! // Each step: tables and lengths as they are now, then every layer.
//! let (kv_indices, kv_indptr) = (stream.clone_htod(&pages_of_all)?, stream.clone_htod(&starts)?);
//! let kv_len = stream.clone_htod(&lengths)?;
//! let lengths = Lengths::paged(&kv_len, &kv_indptr, &kv_indices);
//! plan.schedule(&stream, &lengths, &mut schedule)?;
//! for (layer, (k, v)) in layers.iter().enumerate() {
//!     let q = queries(layer)?;
//!     plan.run(&stream, &Inputs::of(&q, k, v, lengths), Outputs::of(&mut o), &schedule, &mut workspace)?;
//! }
//! plan.status(&stream, &mut schedule)?;
//! # Ok(())
//! # }
//! ```

mod allocate;
pub mod append;
mod memory;
mod options;
pub mod pages;
mod plan;
mod policy;
mod run;
mod schedule;
mod shape;
mod tensors;

pub use allocate::{Decoded, lean_decode};
pub(crate) use lookback_device::strided;
pub use lookback_device::strided::Stride;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub use memory::{RawMemory, Schedule, Workspace};
pub use options::{CacheType, Options, Output, Scales, Tuning};
pub use plan::{MAX_KEYS, MAX_SOFTCAP, MIN_SOFTCAP, Plan, TILE};
pub use policy::Policy;
pub use shape::{Cache, Shape, Strides};
pub use tensors::{Inputs, KeyValues, Lengths, Outputs, RawInputs, RawLengths, RawOutputs};
