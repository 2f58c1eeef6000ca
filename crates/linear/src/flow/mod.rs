//! Flow-Attention: linear attention that conserves flow, so that no query receives from, and no key sends to, everybody alike.
//!
//! Queries and keys are mapped to positive numbers by a sigmoid; `e = 1e-6` is added to both factors of every product. The flow
//! into a query is its product with the sum of all keys, the flow out of a key its product with the sum of all queries. Divided by
//! these, the other side's sums give the conserved flows: a sigmoid of what a query receives (its *allocation* `a`), a softmax
//! over keys of what a key sends (its *competition* `c`). Then
//! ```text
//! out[i] = a[i] (q[i] / in[i])^T  sum over j of  k[j] (c[j] v[j])^T
//! ```
//! In the causal form every sum goes as far as the token, and flows and conserved flows are averages over the tokens seen.
//!
//! One kernel does all of that in f32 and writes queries and keys of a linear attention without decay, which one or two walks of this
//! crate compute. The backward pass does the same again, walks with exchanged roles, and ends in one kernel; it needs nothing of
//! the forward pass but its inputs.
//!
//! # Examples
//! ```no_run
//! use lookback_linear::flow::{Options, Shape, flow_attention};
//! # fn main() -> lookback_linear::Result<()> {
//! # let context = lookback_device::open(lookback_device::DevicePick::Auto)?;
//! # let stream = context.default_stream();
//! # let zeros = |n: usize| stream.alloc_zeros::<f32>(n).map_err(|e| lookback_device::driver(e, "zeros"));
//! let shape = Shape::causal(2, 1000, 4, 64, 64);
//! let (q, k, v) = (zeros(512_000)?, zeros(512_000)?, zeros(512_000)?);
//! let out = flow_attention(&stream, &shape, &Options::new::<f32>(), &q, &k, &v)?;
//! # let _ = out;
//! # Ok(())
//! # }
//! ```

mod backward;
mod forward;
mod work;

pub use backward::{BackwardOutputs, BackwardPlan, Gradients, RawBackwardOutputs, flow_attention_backward};
pub use forward::{Inputs, Plan, RawInputs, flow_attention};

use crate::{
    DType, DeviceInfo, Element, Error, MAX_KEY_DIM, Result, Stride,
    strided::{self, MAX_EXTENT, Strided},
};
use lookback_kernels::Kernel;

/// Added to both factors of every product.
pub const EPSILON: f32 = 1e-6;
/// Greatest number of heads: they are the grid's y.
const MAX_HEADS: usize = 65_535;

/// Steps of the caller's tensors; `None`: without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// Of `q`.
    pub q: Option<Stride>,
    /// Of `k`.
    pub k: Option<Stride>,
    /// Of `v`.
    pub v: Option<Stride>,
    /// Of the output, and of its adjoint.
    pub out: Option<Stride>,
    /// Of the adjoint of `q`.
    pub dq: Option<Stride>,
    /// Of the adjoint of `k`.
    pub dk: Option<Stride>,
    /// Of the adjoint of `v`.
    pub dv: Option<Stride>,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, `B`. One with packed sequences.
    pub batch: usize,
    /// Tokens of a row of `q` and of the output, `L`; of all packed sequences together.
    pub queries: usize,
    /// Tokens of a row of `k` and `v`, `S`; as many as queries if causal.
    pub keys: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Entries of a query or key, `K`: 1 to 256.
    pub key_dim: usize,
    /// Entries of a value, `V`; for the backward pass 1 to 256.
    pub value_dim: usize,
    /// A token sees itself and those before it; else all keys.
    pub causal: bool,
    /// Packed sequences in the only row: starts have one entry more. Without, each row is a sequence.
    pub packed: Option<usize>,
    /// Steps of the tensors.
    pub strides: Strides,
}

impl Shape {
    /// Every token sees itself and those before it.
    pub fn causal(batch: usize, seq_len: usize, heads: usize, key_dim: usize, value_dim: usize) -> Self {
        Self { causal: true, ..Self::normal(batch, [seq_len, seq_len], heads, key_dim, value_dim) }
    }

    /// Every one of `queries` sees all of `keys`.
    pub fn normal(batch: usize, [queries, keys]: [usize; 2], heads: usize, key_dim: usize, value_dim: usize) -> Self {
        let strides = Strides::default();
        Self { batch, queries, keys, heads, key_dim, value_dim, causal: false, packed: None, strides }
    }

    /// Sequences, `N`.
    pub fn sequences(&self) -> usize {
        self.packed.unwrap_or(self.batch)
    }
}

/// Element type and variants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of every tensor.
    pub dtype: DType,
    /// Bound of the conserved flow out of a key, from both sides, before the softmax: above 0. Published models have 1 (the core
    /// and language modelling), 10 and 5 (causal), and none (time series). The mean of that flow is 1 in self-attention, so a bound
    /// of 1 stops about half of its gradients.
    pub clamp: Option<f32>,
    /// Added to every product once more: 1e-6 in the image models, else 0.
    pub extra_eps: f32,
    /// `q` and `k` are positive already, and come without the sigmoid.
    pub mapped: bool,
}

impl Options {
    /// A bound of 1, as published.
    pub fn new<T: Element>() -> Self {
        Self { dtype: T::DTYPE, clamp: Some(1.0), extra_eps: 0.0, mapped: false }
    }
}

/// The caller's tensors, checked.
#[derive(Debug, Clone, Copy)]
struct Frame {
    shape: Shape,
    options: Options,
    q: Strided,
    k: Strided,
    v: Strided,
    out: Strided,
    /// `[N+1]` i32.
    starts: Strided,
    sm_count: u32,
}

fn steps(stride: Stride) -> [i64; 3] {
    [stride.batch, stride.token, stride.head]
}

impl Frame {
    fn new(op: &'static str, shape: &Shape, options: &Options, device: &DeviceInfo) -> Result<Self> {
        let Shape { batch, queries, keys, heads, key_dim, value_dim, causal, packed, strides } = *shape;
        strided::range(op, "batch", batch, 0, MAX_EXTENT)?;
        strided::range(op, "queries", queries, 0, MAX_EXTENT)?;
        strided::range(op, "keys", keys, 0, MAX_EXTENT)?;
        if causal {
            strided::range(op, "keys", keys, queries, queries)?;
        }
        strided::range(op, "heads", heads, 0, MAX_HEADS)?;
        strided::range(op, "key_dim", key_dim, 1, MAX_KEY_DIM)?;
        strided::range(op, "value_dim", value_dim, 1, MAX_EXTENT)?;
        if let Some(sequences) = packed {
            strided::range(op, "packed", sequences, 1, MAX_EXTENT)?;
            strided::range(op, "batch", batch, 1, 1)?;
        }
        let number = |arg, value: f32, good: bool| {
            let got = value.clamp(-1e18, 1e18) as i64;
            if good { Ok(()) } else { Err(Error::Range { op, arg, at: None, lo: 0, hi: i64::MAX, got }) }
        };
        options.clamp.map_or(Ok(()), |c| number("clamp", c, c > 0.0 && c.is_finite()))?;
        number("extra_eps", options.extra_eps, options.extra_eps >= 0.0 && options.extra_eps.is_finite())?;
        let size = options.dtype.size();
        let rows = |tokens: usize, width: usize, stride: Option<Stride>| match stride {
            Some(stride) => Strided::new([batch, tokens, heads], steps(stride), width, size),
            None => Strided::dense([batch, tokens, heads], width, size),
        };
        let frame = Self {
            shape: *shape,
            options: *options,
            q: rows(queries, key_dim, strides.q),
            k: rows(keys, key_dim, strides.k),
            v: rows(keys, value_dim, strides.v),
            out: rows(queries, value_dim, strides.out),
            starts: Strided::dense([1, 1, 1], shape.sequences() + 1, 4),
            sm_count: device.sm_count,
        };
        for (arg, tensor) in [("q", frame.q), ("k", frame.k), ("v", frame.v)] {
            tensor.readable(op, arg)?;
            // The tensors of the linear attention, and their adjoints in f32, have no gaps.
            Strided::dense(tensor.extents, tensor.width, 4).readable(op, arg)?;
        }
        Ok(frame)
    }

    /// The kernel before or after the walks.
    fn kernel(&self, op: &'static str, backward: bool, device: &DeviceInfo) -> Result<&'static Kernel> {
        let name = match (self.shape.causal, backward) {
            (true, false) => "flow_causal",
            (true, true) => "flow_causal_bwd",
            (false, false) => "flow_normal",
            (false, true) => "flow_normal_bwd",
        };
        let tile = self.key_tile().to_string();
        let found = lookback_kernels::find(name, &[("key_tile", &tile), ("dtype", self.options.dtype.name())]);
        let request = || format!("{name}, {}, keys of {}", self.options.dtype, self.shape.key_dim);
        let kernel = found.ok_or_else(|| Error::NoKernel { op, request: request() })?;
        if !kernel.target.runs_on(device.compute_capability) {
            let (need, got) = (kernel.target.to_string(), device.compute_capability);
            return Err(Error::Arch { kernel: kernel.entry, need, got });
        }
        Ok(kernel)
    }

    /// Entries of a row that a warp holds.
    fn key_tile(&self) -> usize {
        match self.shape.key_dim {
            0..=64 => 64,
            65..=128 => 128,
            _ => 256,
        }
    }

    /// Nothing to compute, nothing to write.
    fn is_empty(&self) -> bool {
        self.shape.sequences() == 0 || self.shape.heads == 0
    }

    fn grid(&self) -> [u32; 3] {
        [self.shape.sequences() as u32, self.shape.heads as u32, 1]
    }

    /// Of the queries that the walks read: what keeps `q / in`, about `2 / (K t)` at token t, a normal number in f16.
    fn factor(&self) -> f32 {
        if self.options.dtype == DType::F16 { 256.0 } else { 1.0 }
    }

    fn clamp(&self) -> f32 {
        self.options.clamp.unwrap_or(f32::INFINITY)
    }
}
