//! Linear attention over all tokens of a sequence at once: `KV = sum of phi(k[t]) v[t]^T`, then `o[t] = scale phi(q[t])^T KV`.
//!
//! Sums run over whole sequences or their first tokens ([`Inputs::prefix_len`]); every token of a sequence reads. One launch does both:
//! early heads are read while later ones are summed. With no queries it is an encoder's state.

mod adjoint;
mod allocate;
mod backward;
mod job;
mod plan;
mod policy;
mod run;
mod workspace;

pub use allocate::{Reduced, time_reduce};
pub use backward::{BackwardInputs, BackwardOutputs, BackwardPlan, RawBackwardInputs, RawBackwardOutputs};
pub use plan::Plan;
pub use policy::Policy;
pub use workspace::{RawWorkspace, Workspace};

use crate::DType;
use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// Greatest `key_dim` of [`Map::Taylor`].
pub const TAYLOR_DIM: usize = 16;
/// Features of [`Map::Taylor`].
pub const TAYLOR_FEATURES: usize = 1 + TAYLOR_DIM + TAYLOR_DIM * (TAYLOR_DIM + 1) / 2;

/// Features of keys and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Map {
    /// `x`.
    Identity,
    /// `x + 1` above 0, else `e^x`.
    EluPlusOne,
    /// `max(x, 0)`.
    Relu,
    /// `e^x`. For `f16` keys and queries up to 11: features have the type of the tensors.
    Exp,
    /// Of keys, entry by entry, the softmax over the tokens that are summed; queries as they are. Already normalised.
    Softmax,
    /// `1, y_a, y_a y_b` for `a <= b`, those with `a = b` divided by `sqrt 2`, where `y = x K^(-1/4)`, and 0 from `K` to [`TAYLOR_DIM`]. The
    /// product of two tokens' features is `1 + s + s^2 / 2` with `s = x . x' / sqrt K`.
    Taylor,
}

impl Map {
    /// Features of `key_dim` entries: rows of the state.
    pub fn features(self, key_dim: usize) -> usize {
        if self == Map::Taylor { TAYLOR_FEATURES } else { key_dim }
    }
}

/// Element type and switches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of `q`, `k`, `v` and `o`; states, sums and denominators are `f32`.
    pub dtype: DType,
    /// Features of keys and queries.
    pub map: Map,
    /// Factor of every read.
    pub scale: f32,
    /// Divide by `scale phi(q) . ksum + eps`; the number is `eps`.
    pub normalize: Option<f32>,
    /// How the work is cut up; [`Policy::of`] the shape and the device without.
    pub policy: Option<Policy>,
}

impl Options {
    /// Scale 1, no normaliser.
    pub fn new(dtype: DType, map: Map) -> Self {
        Self { dtype, map, scale: 1.0, normalize: None, policy: None }
    }
}

/// What a launch reads. A view into a wider tensor begins at its first element.
pub struct Inputs<'a, T> {
    /// `[B,T,query_heads,K]`; without, nothing is read out.
    pub q: Option<&'a dyn DevicePtr<T>>,
    /// `[B,T,key_heads,K]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,T,H,V]`.
    pub v: &'a dyn DevicePtr<T>,
    /// `[N+1]`, for a packed shape; see [`check::cu_seqlens`](crate::check::cu_seqlens).
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[N]`: tokens of each sequence that are summed, from its first; all without.
    pub prefix_len: Option<&'a dyn DevicePtr<i32>>,
}

/// What a launch writes.
pub struct Outputs<'a, T> {
    /// `[B,T,H,V]`, given when `q` is.
    pub o: Option<&'a mut dyn DevicePtrMut<T>>,
    /// `[B,T,H]`: what `o` was divided by, with [`Options::normalize`]; the backward pass needs it.
    pub den: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,F,V]`: `KV`, with `F` features.
    pub kv: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,F]`: sums of `phi(k)`; for [`Map::Softmax`] the logarithm of the sum of `e^k`, minus infinity of nothing.
    pub ksum: Option<&'a mut dyn DevicePtrMut<f32>>,
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawInputs {
    /// See [`Inputs::q`].
    pub q: CUdeviceptr,
    /// See [`Inputs::k`].
    pub k: CUdeviceptr,
    /// See [`Inputs::v`].
    pub v: CUdeviceptr,
    /// See [`Inputs::cu_seqlens`].
    pub cu_seqlens: CUdeviceptr,
    /// See [`Inputs::prefix_len`].
    pub prefix_len: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawOutputs {
    /// See [`Outputs::o`].
    pub o: CUdeviceptr,
    /// See [`Outputs::den`].
    pub den: CUdeviceptr,
    /// See [`Outputs::kv`].
    pub kv: CUdeviceptr,
    /// See [`Outputs::ksum`].
    pub ksum: CUdeviceptr,
}
