//! Sequence kernels in hand-written PTX, on your own cudarc slices and stream.
//!
//! This crate is the one to add. It re-exports the families and the cudarc that they are built with:
//! * [`linear`]: linear attention `S[t] = e^g[t] S[t-1] + k[t] v[t]^T` in chunks on tensor cores, in every mode, forward and backward;
//!   its decode step, sums without an order in time, Flow-Attention;
//! * [`scan`]: gated scans `h[t] = a[t] h[t-1] + b[t]`, forward and backward, in one launch by decoupled look-back;
//! * [`attention`]: softmax attention in blocks, forward and backward, with every mask, and results that merge;
//! * [`decode`]: attention of a few queries to long caches, dense, ragged or in pages, with equal work for every block;
//! * [`ring`]: sequences dealt to several ranks: attention, and the states of linear attention and scans; between threads and processes,
//!   between GPUs with the feature `nccl`;
//! * [`nn`]: matrix product, norms, embedding, gate, short convolution, rotary positions, argmax, cross-entropy;
//! * [`model`]: Birdie's Gated SSM, Mamba-2, Hydra, LightNet, Based and JRT, GLA and RetNet, BERT, LLaMA;
//! * [`open`] and [`DeviceInfo`]: a device, or the emulator where there is none. Contexts that you opened yourself do as well.
//!
//! Every operation has a `Plan`: `Plan::new` validates sizes, strides and options and allocates nothing; `Plan::run` checks the
//! slices and launches, nothing else, so it can be captured into a CUDA graph; `Plan::run_raw` does the same on device
//! addresses, for memory that cudarc does not own. A function beside each plan allocates its outputs, for trying things out.
//!
//! # Examples
//! A running sum over time that forgets, for 256 channels of two rows: your context, your stream, your slices.
//! ```no_run
//! use lookback::{
//!     DeviceInfo,
//!     cudarc::driver::CudaContext,
//!     scan::{Gates, Inputs, Options, Outputs, Plan, Shape, Source, Workspace},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = CudaContext::new(0)?;
//! let stream = context.default_stream();
//! let shape = Shape::dense(2, 4096, 256); // [batch, time, channels]
//! let a = stream.clone_htod(&vec![0.99_f32; 2 * 4096 * 256])?;
//! let b = stream.clone_htod(&vec![1.0_f32; 2 * 4096 * 256])?;
//! let mut h = stream.alloc_zeros::<f32>(2 * 4096 * 256)?;
//!
//! // Once per shape: everything is checked here.
//! let plan = Plan::new(&shape, &Options::new::<f32>(Source::Tensor, &shape), &DeviceInfo::of(&context)?)?;
//! let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
//!
//! // As often as you like: one launch, nothing allocated.
//! plan.run(&stream, &Inputs::of(Gates::tensor(&a, &b)), Outputs { h: &mut h, last: None }, &mut workspace)?;
//! println!("{:?}", &stream.clone_dtoh(&h)?[..4]);
//! # Ok(())
//! # }
//! ```

pub use lookback_attention as attention;
pub use lookback_decode as decode;
pub use lookback_device::{
    Class, DType, DeviceInfo, DevicePick, Element, Error, PeerFault, RendezvousFault, Result, WeightsFault, cudarc,
    emulator, open,
};
pub use lookback_linear as linear;
pub use lookback_model as model;
pub use lookback_nn as nn;
pub use lookback_ring as ring;
pub use lookback_scan as scan;
