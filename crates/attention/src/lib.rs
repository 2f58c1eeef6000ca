//! Softmax attention in blocks, for cudarc: forward with log-sum-exp, backward from a final log-sum-exp, and the merging of partial
//! results.
//!
//! `o_i = sum_j p_ij v_j`, `p_ij = exp(x_ij - lse_i)`, `lse_i = ln sum_j exp(x_ij)`, over the keys `j` that query `i` sees, with
//! `x_ij = scale q_i . k_j`. One kernel computes it for a block of queries and a block of keys, whatever the mask; everything else
//! is made of that.
//!
//! * [`Shape`] says sizes and strides (in elements), [`Options`] element type, mask and switches;
//! * [`Plan::new`] checks both and finds the kernel; it allocates nothing;
//! * [`Plan::run`] launches on the caller's stream and memory, nothing else; [`Plan::run_raw`] does the same on device addresses. Once
//!   the kernel is loaded, by a first run, both can be captured into a graph and replayed (`run` with cudarc's event tracking off, since
//!   waiting for another stream's event ends a capture);
//! * [`attention`] allocates its outputs, for trying things out;
//! * [`BackwardPlan`] and [`attention_backward`] are the same for the gradients;
//! * [`merge`] merges states that are in memory; [`check`] looks at starts and lists on the host.
//!
//! Elements are f16 or bf16, sums and `lse` f32. On an error nothing is launched and nothing written.
//!
//! # Masks
//! The kernel knows no kinds of masks. A query row sees the keys of at most two half-open intervals, and every [`Mask`] is a way to say
//! which. Query `i` of a sequence with `m` queries and `n` keys stands at position `p = i + n - m` among its keys (or `i` plus
//! [`Options::offset`]), so that the last query stands on the last key: what a decoder with a cache of keys wants. Then `Causal` is
//! `[0, p + 1)`, `Window` is `[p - left, p + right + 1)` with `[0, sink_tokens)` before it, `Prefix` is `[0, max(p + 1, prefix_len))`, and
//! with [`Mask::Intervals`] a tensor says both intervals of every row: documents, spans, blocks of a longer sequence.
//!
//! ```text
//!  n = 6, m = 4     Causal     Window{1,0,1}  Prefix (4)   AntiCausal
//!  p = 2            xxx...     xxx...         xxxx..       ...xxx
//!  p = 3            xxxx..     x.xx..         xxxx..       ....xx
//!  p = 4            xxxxx.     x..xx.         xxxxx.       .....x
//!  p = 5            xxxxxx     x...xx         xxxxxx       ......
//! ```
//!
//! A tile of keys that an interval holds for all rows costs two products and an exponential; one that no row reaches is not even
//! loaded; only the tiles on an edge compare. On top of the intervals a bitmap hides single keys from all rows
//! ([`Inputs::key_bits`]: padding), and a list leaves out whole tiles ([`Inputs::tiles`]: block-sparse patterns).
//!
//! The last row above sees nothing under `AntiCausal`. Its average over no keys is `o = 0` with `lse = -inf`, exactly: the result of
//! a sum without terms, and what the next section needs.
//!
//! # States
//! `(o, lse)` of a set of keys is all that is ever needed of it. For a second set, disjoint from the first,
//!
//! ```text
//!   lse = ln(exp lse_a + exp lse_b)      o = o_a + sigmoid(lse_b - lse_a) (o_b - o_a)
//! ```
//!
//! is the state of both, in any order and grouping, and that of no keys changes nothing. So keys may be split over blocks, caches and
//! devices. [`Output::Merge`] does it in the kernel: `o` and `lse` hold the state of earlier keys and get that of all. They stay f32
//! meanwhile: rounded to 16 bits at each of many merges, errors add up. The backward pass of a block of keys takes the *final* `lse`,
//! and gradients of blocks then simply add.
//!
//! # Examples
//! Two blocks of keys, one after the other, for causal queries:
//! ```no_run
//! use half::bf16;
//! use lookback_attention::{DeviceInfo, Inputs, Mask, Options, Output, Outputs, Plan, Shape};
//! # fn main() -> lookback_attention::Result<()> {
//! let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! let stream = context.default_stream();
//! let device = DeviceInfo::of(&context)?;
//! let (batch, len, heads, key_heads, dim) = (2, 1000, 8, 2, 64);
//! # let upload = |n: usize| stream.alloc_zeros::<bf16>(n).map_err(|e| lookback_device::driver(e, "upload"));
//! # let floats = |n: usize| stream.alloc_zeros::<f32>(n).map_err(|e| lookback_device::driver(e, "upload"));
//! let q = upload(batch * len * heads * dim)?;
//! let [k_old, v_old, k, v] = [(); 4].map(|()| upload(batch * len * key_heads * dim));
//! # let (k_old, v_old, k, v) = (k_old?, v_old?, k?, v?);
//! let (mut o, mut lse) = (floats(batch * len * heads * dim)?, floats(batch * len * heads)?);
//! let shape = Shape { key_heads, ..Shape::dense(batch, len, len, heads, dim) };
//!
//! // All queries see all of the older block ...
//! let options = Options { output: Output::F32, ..Options::new::<bf16>(&shape) };
//! let older = Plan::new(&shape, &options, &device)?;
//! older.run(&stream, &Inputs::of(&q, &k_old, &v_old), Outputs::with_lse(&mut o, &mut lse))?;
//! // ... and what is not after them of their own.
//! let options = Options { mask: Mask::Causal, output: Output::Merge, ..options };
//! let own = Plan::new(&shape, &options, &device)?;
//! own.run(&stream, &Inputs::of(&q, &k, &v), Outputs::with_lse(&mut o, &mut lse))?;
//! # Ok(())
//! # }
//! ```

mod allocate;
pub mod backward;
pub mod check;
mod hold;
pub mod merge;
mod options;
mod plan;
mod policy;
mod run;
mod shape;
mod tensors;

pub use allocate::{Attended, attention};
pub use backward::{BackwardInputs, BackwardOptions, BackwardPlan, attention_backward};
pub use lookback_device::strided::Stride;
pub use lookback_device::{DType, DeviceInfo, Element, Error, Result};
pub(crate) use lookback_device::{memory, strided};
pub use options::{Mask, Options, Output};
pub use plan::{MAX_DIM, MAX_LEN, MAX_SOFTCAP, MIN_SOFTCAP, Plan};
pub use shape::{Shape, Strides};
pub use tensors::{Inputs, Outputs, RawInputs, RawOutputs, Tiles};
