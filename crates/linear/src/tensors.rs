//! The tensors of a forward pass: as the caller's memory, and as device addresses.

use crate::{Error, Result};
use cudarc::driver::{DevicePtr, DevicePtrMut, sys::CUdeviceptr};

/// What the reverse direction of [`Mode::Bidirectional`](crate::Mode::Bidirectional) reads instead of the forward one's; absent
/// tensors are shared. Shapes and strides are the same.
pub struct ReverseInputs<'a, T> {
    /// As `q`.
    pub q: Option<&'a dyn DevicePtr<T>>,
    /// As `k`.
    pub k: Option<&'a dyn DevicePtr<T>>,
    /// As `g`.
    pub g: Option<&'a dyn DevicePtr<f32>>,
    /// As `state`: before the last token; zero without.
    pub state: Option<&'a dyn DevicePtr<f32>>,
}

impl<T> Default for ReverseInputs<'_, T> {
    fn default() -> Self {
        Self { q: None, k: None, g: None, state: None }
    }
}

/// Inputs of a forward pass. A view into a wider tensor begins at its first element.
pub struct Inputs<'a, T> {
    /// `[B,T,query_heads,K]`.
    pub q: &'a dyn DevicePtr<T>,
    /// `[B,T,key_heads,K]`.
    pub k: &'a dyn DevicePtr<T>,
    /// `[B,T,H,V]`.
    pub v: &'a dyn DevicePtr<T>,
    /// Natural logarithms of the decays, at most 0: `[H]`, `[B,T,H]` or `[B,T,H,K]` as [`Decay`](crate::Decay) says.
    pub g: Option<&'a dyn DevicePtr<f32>>,
    /// `[H,K]`, `u` of [`Read::ExclusiveBonus`](crate::Read::ExclusiveBonus); zero without.
    pub bonus: Option<&'a dyn DevicePtr<f32>>,
    /// `[B,T]`: bit 0 cuts the state into this token from the one before, bit 1 from the one after. The decay of a cut token is
    /// not used. With [`Mode::PrefixRead`](crate::Mode::PrefixRead) a cut drops the sum of the prefix, too.
    pub flags: Option<&'a dyn DevicePtr<u8>>,
    /// `[N+1]`, for a packed shape; see [`check::cu_seqlens`](crate::check::cu_seqlens).
    pub cu_seqlens: Option<&'a dyn DevicePtr<i32>>,
    /// `[N]`, for [`Mode::PrefixRead`](crate::Mode::PrefixRead): tokens of each sequence that see each other both ways.
    pub prefix_len: Option<&'a dyn DevicePtr<i32>>,
    /// `[N,H,K,V]` states before the first visited token; zero without. With [`Features`](crate::Features) `K` of states and sums is
    /// their number.
    pub state: Option<&'a dyn DevicePtr<f32>>,
    /// `[N,H,K]` sums of keys before the first visited token; zero without.
    pub normalizer: Option<&'a dyn DevicePtr<f32>>,
    /// Tensors of the reverse direction's own.
    pub reverse: ReverseInputs<'a, T>,
}

impl<'a, T> Inputs<'a, T> {
    /// Queries, keys and values alone.
    pub fn of(q: &'a dyn DevicePtr<T>, k: &'a dyn DevicePtr<T>, v: &'a dyn DevicePtr<T>) -> Self {
        Self {
            q,
            k,
            v,
            g: None,
            bonus: None,
            flags: None,
            cu_seqlens: None,
            prefix_len: None,
            state: None,
            normalizer: None,
            reverse: ReverseInputs::default(),
        }
    }
}

/// Outputs of a forward pass.
pub struct Outputs<'a, T> {
    /// `[B,T,H,V]`.
    pub o: &'a mut dyn DevicePtrMut<T>,
    /// `[N,H,K,V]` states after the last visited token of each sequence.
    pub state: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K,V]` states of the reverse direction of [`Mode::Bidirectional`](crate::Mode::Bidirectional), after the first token.
    pub reverse_state: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N,H,K]` sums of keys after the last visited token, with a normaliser.
    pub normalizer: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[B,T,H]` what the outputs were divided by, with a normaliser; the backward pass needs it.
    pub denominator: Option<&'a mut dyn DevicePtrMut<f32>>,
}

impl<'a, T> Outputs<'a, T> {
    /// The output alone.
    pub fn of(o: &'a mut dyn DevicePtrMut<T>) -> Self {
        Self { o, state: None, reverse_state: None, normalizer: None, denominator: None }
    }
}

/// [`Inputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawInputs {
    /// Queries.
    pub q: CUdeviceptr,
    /// Keys.
    pub k: CUdeviceptr,
    /// Values.
    pub v: CUdeviceptr,
    /// Log-decays.
    pub g: CUdeviceptr,
    /// Bonus.
    pub bonus: CUdeviceptr,
    /// Cuts.
    pub flags: CUdeviceptr,
    /// Starts of packed sequences.
    pub cu_seqlens: CUdeviceptr,
    /// Lengths of prefixes.
    pub prefix_len: CUdeviceptr,
    /// Initial states.
    pub state: CUdeviceptr,
    /// Initial sums of keys.
    pub normalizer: CUdeviceptr,
    /// Queries of the reverse direction; 0: the same.
    pub reverse_q: CUdeviceptr,
    /// Keys of the reverse direction; 0: the same.
    pub reverse_k: CUdeviceptr,
    /// Log-decays of the reverse direction; 0: the same.
    pub reverse_g: CUdeviceptr,
    /// Initial states of the reverse direction.
    pub reverse_state: CUdeviceptr,
}

/// [`Outputs`] as device addresses; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawOutputs {
    /// Output.
    pub o: CUdeviceptr,
    /// Final states.
    pub state: CUdeviceptr,
    /// Final states of the reverse direction.
    pub reverse_state: CUdeviceptr,
    /// Final sums of keys.
    pub normalizer: CUdeviceptr,
    /// Denominators.
    pub denominator: CUdeviceptr,
}

/// Memory for what a plan's launches leave each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawWorkspace {
    /// A multiple of 16; any where the plan needs none.
    pub address: CUdeviceptr,
    /// Its length.
    pub bytes: u64,
}

impl RawWorkspace {
    /// Large enough and aligned.
    pub(crate) fn check(self, op: &'static str, need: u64) -> Result<()> {
        let Self { address, bytes } = self;
        if bytes < need {
            return Err(Error::Workspace { op, need, got: bytes });
        }
        if need > 0 && (address == 0 || !address.is_multiple_of(16)) {
            return Err(Error::Align { op, arg: "workspace", need: 16, addr: address });
        }
        Ok(())
    }
}
