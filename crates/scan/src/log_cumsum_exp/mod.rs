//! `z[t] = log(e^z[t-1] + e^x[t])` along time, channel by channel, and the gates that LightNet makes of it:
//! `k[t] = e^(x[t] - z[t])`, the share of a token in the sum so far, and `g[t] = z[t-1] - z[t] <= 0`, the logarithm of what the
//! older ones keep.
//!
//! With `S[t] = e^g[t] S[t-1] + k[t] v[t]` the state is a softmax over the tokens so far: `S[t] = sum over j <= t of
//! softmax(x[..=t])[j] v[j]`. `z` is a running maximum and a sum beside it, so nothing overflows, and `g` is computed as
//! `-log1p(e^(x[t] - z[t-1]))`, which loses nothing where many tokens have gone before.
//!
//! # Examples
//! ```no_run
//! use lookback_scan::log_cumsum_exp::{Inputs, Options, Outputs, Plan, Shape};
//! # fn main() -> lookback_scan::Result<()> {
//! # let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! # let stream = context.default_stream();
//! # let zeros = |n: usize| stream.alloc_zeros::<f32>(n).map_err(|e| lookback_device::driver(e, "zeros"));
//! let shape = Shape::dense(2, 1000, 256);
//! let plan = Plan::new(&shape, &Options::new::<f32>(), &lookback_device::DeviceInfo::of(&context)?)?;
//! let (x, mut z, mut k, mut g) = (zeros(512_000)?, zeros(512_000)?, zeros(512_000)?, zeros(512_000)?);
//! let outputs = Outputs { z: Some(&mut z), k: Some(&mut k), g: Some(&mut g), last: None };
//! plan.run(&stream, &Inputs::of(&x), outputs)?;
//! # Ok(())
//! # }
//! ```

mod backward;
mod forward;

pub use backward::{BackwardInputs, BackwardOutputs, BackwardPlan, GateAdjoint, RawBackwardInputs, RawBackwardOutputs};
pub use forward::{Inputs, Outputs, Plan, RawInputs, RawOutputs};

use crate::{
    DType, DeviceInfo, Element, Error, Result, Stride,
    check::{self, Tensor},
};
use lookback_kernels::Kernel;

/// How a launch cuts the work: tuning as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    /// Runs that a sequence is cut into, a warp each; with one a thread walks all tokens of its channel.
    runs: usize,
    /// Channels of a block.
    channels: usize,
}

impl Policy {
    /// Runs read their tokens twice, so only where there are too few channels to keep the memory busy, and tokens to share out.
    fn of(shape: &Shape, device: &DeviceInfo) -> Self {
        let threads = shape.sequences().saturating_mul(shape.channels);
        let many = threads >= device.sm_count as usize * 1024;
        if many || shape.seq_len < 128 { Self { runs: 1, channels: 64 } } else { Self { runs: 16, channels: 32 } }
    }
}

/// Greatest number of sequences: they are the second dimension of the grid.
const MAX_SEQUENCES: usize = 65_535;

/// Sizes and strides. Tensors of `f32` (`z`, `g` and their adjoints) and `k` have no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, `B`. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row, `T`; of all packed sequences together.
    pub seq_len: usize,
    /// Channels of a token, `D`.
    pub channels: usize,
    /// Packed sequences in the only row: `cu_seqlens` has one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Steps of `x`.
    pub x: Stride,
    /// Steps of the adjoint of `k`.
    pub dk: Stride,
    /// Steps of `q`.
    pub q: Stride,
    /// Steps of the adjoint of `q`.
    pub dq: Stride,
    /// Steps of the adjoint of `x`.
    pub dx: Stride,
}

impl Shape {
    /// Rows of equal length, `[B,T,D]` without gaps.
    pub fn dense(batch: usize, seq_len: usize, channels: usize) -> Self {
        let clamp = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let stride = Stride { batch: clamp(seq_len.saturating_mul(channels)), token: clamp(channels) };
        Self { batch, seq_len, channels, packed: None, x: stride, dk: stride, q: stride, dq: stride, dx: stride }
    }

    /// `sequences` of any lengths, one after the other in `[1,total,D]` without gaps.
    pub fn packed(sequences: usize, total: usize, channels: usize) -> Self {
        Self { packed: Some(sequences), ..Self::dense(1, total, channels) }
    }

    /// Rows of the state tensors `[N,D]`.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }
}

/// Element type and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Of `x`, `k`, `q` and their adjoints. `z`, `g` and states are `f32`.
    pub dtype: DType,
    /// From the last token to the first.
    pub reverse: bool,
}

impl Options {
    /// Forward in time.
    pub fn new<T: Element>() -> Self {
        Self { dtype: T::DTYPE, reverse: false }
    }
}

/// What both passes share.
#[derive(Debug, Clone, Copy)]
struct Frame {
    shape: Shape,
    options: Options,
    policy: Policy,
    kernel: &'static Kernel,
}

impl Frame {
    fn new(
        op: &'static str,
        kernel: &'static str,
        shape: &Shape,
        options: &Options,
        device: &DeviceInfo,
    ) -> Result<Self> {
        check::range(op, "seq_len", shape.seq_len, 0, check::MAX_EXTENT)?;
        check::range(op, "channels", shape.channels, 0, check::MAX_EXTENT)?;
        match shape.packed {
            None => check::range(op, "batch", shape.batch, 0, MAX_SEQUENCES)?,
            Some(sequences) => {
                check::range(op, "packed", sequences, 1, MAX_SEQUENCES - 1)?;
                check::range(op, "batch", shape.batch, 1, 1)?;
            }
        }
        let policy = Policy::of(shape, device);
        let runs = policy.runs.to_string();
        let found = lookback_kernels::find(kernel, &[("runs", &runs), ("dtype", options.dtype.name())]);
        let request = || format!("{kernel}, {}", options.dtype);
        let kernel = found.ok_or_else(|| Error::NoKernel { op, request: request() })?;
        if !kernel.target.runs_on(device.compute_capability) {
            let (need, got) = (kernel.target.to_string(), device.compute_capability);
            return Err(Error::Arch { kernel: kernel.entry, need, got });
        }
        let frame = Self { shape: *shape, options: *options, policy, kernel };
        // The span of the largest tensor without gaps.
        frame.floats().readable(op, "z")?;
        Ok(frame)
    }

    /// A `[B,T,D]` tensor of elements.
    fn tensor(&self, stride: Stride) -> Tensor {
        let Shape { batch, seq_len, channels, .. } = self.shape;
        check::tokens([batch, seq_len], channels, stride, self.options.dtype.size())
    }

    /// The same without gaps.
    fn dense(&self) -> Tensor {
        let Shape { batch, seq_len, channels, .. } = self.shape;
        self.tensor(Shape::dense(batch, seq_len, channels).x)
    }

    /// `[B,T,D]` f32 without gaps.
    fn floats(&self) -> Tensor {
        Tensor { size: 4, ..self.dense() }
    }

    /// `[N,D]` f32.
    fn states(&self) -> Tensor {
        check::rows(self.shape.sequences(), self.shape.channels, 4)
    }

    /// `[B,T]` u8.
    fn flags(&self) -> Tensor {
        check::rows(self.shape.batch, self.shape.seq_len, 1)
    }

    /// `[N+1]` i32.
    fn starts(&self) -> Tensor {
        check::rows(1, self.shape.sequences() + 1, 4)
    }

    /// Whether there is nothing to launch.
    fn is_empty(&self) -> bool {
        self.shape.batch == 0 || self.shape.channels == 0
    }

    /// A column of blocks a sequence, and one for the tokens that packed sequences do not cover.
    fn grid(&self) -> [u32; 3] {
        let walks = self.shape.packed.map_or(self.shape.batch, |sequences| sequences + 1);
        [self.shape.channels.div_ceil(self.policy.channels) as u32, walks as u32, 1]
    }
}

/// A tensor that is given has enough elements.
fn long_enough(op: &'static str, given: &[(&'static str, Option<usize>, Tensor)]) -> Result<()> {
    given
        .iter()
        .try_for_each(|(name, len, tensor)| len.map_or(Ok(()), |len| check::length(op, name, tensor.span(), len)))
}

/// Addresses that are given are aligned, and no output touches an input or another output.
fn apart(op: &'static str, outputs: &[check::Placed<'_>], inputs: &[check::Placed<'_>]) -> Result<()> {
    for placed in outputs.iter().chain(inputs) {
        if placed.1 != 0 {
            check::placed(op, *placed)?;
        }
    }
    for (i, output) in outputs.iter().enumerate() {
        check::disjoint(op, *output, inputs)?;
        check::disjoint(op, *output, &outputs[i + 1..])?;
    }
    Ok(())
}
