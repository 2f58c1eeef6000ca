//! The one primitive of the family: a walk over the tokens of each sequence with a matrix state `S` `[K,V]`.
//!
//! For tokens t in visit order, of sequence n and head h: the state decays, takes in `k[t] v[t]^T`, and is read,
//! `o[t] = scale S^T q[t]`, in the order that [`Order`] says. Forward modes are one or two walks, a backward pass is three with
//! the roles of the tensors exchanged.

pub(crate) use crate::launch::launch;
use crate::{DType, Features, Stride};
use cudarc::driver::sys::CUdeviceptr;

/// A tensor of rows `[batch, token, head / group]`, each contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Address of the first element; 0 is absent.
    pub at: CUdeviceptr,
    /// Steps in elements.
    pub stride: Stride,
    /// Neighbouring heads that share a row, at least 1.
    pub group: usize,
}

/// A tensor of f32 states `[sequence, head, K, V]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct States {
    /// Address of the first element; 0 is absent.
    pub at: CUdeviceptr,
    /// Steps in elements, along sequences, heads, the walk's keys and the walk's values.
    pub stride: [i64; 4],
}

impl States {
    /// `[N,heads,keys,values]` without gaps.
    pub fn dense(at: CUdeviceptr, heads: usize, keys: usize, values: usize) -> Self {
        Self { at, stride: [(heads * keys * values) as i64, (keys * values) as i64, values as i64, 1] }
    }

    /// The same memory with keys and values exchanged.
    pub fn transposed(self) -> Self {
        let [sequence, head, key, value] = self.stride;
        Self { at: self.at, stride: [sequence, head, value, key] }
    }
}

/// What a log-decay acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// Nothing decays.
    None,
    /// The whole state: `g` `[b,t,h]`.
    Scalar,
    /// Rows of the state: `g` `[b,t,h,K]`.
    Key,
    /// Columns of the state: `g` `[b,t,h,V]`.
    Value,
}

/// Log-decays, f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate {
    /// What they act on.
    pub side: Side,
    /// Address of the first element.
    pub at: CUdeviceptr,
    /// Steps in elements; 0 along tokens is one decay for all.
    pub stride: Stride,
}

/// What happens at a token, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// Inclusive read.
    DecayAddRead = 0,
    /// The adjoint of [`Order::DecayAddRead`], walked the other way.
    AddReadDecay = 1,
    /// Exclusive read, with the bonus if there is one; its own adjoint.
    ReadDecayAdd = 2,
}

/// A walk over all sequences and heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Walk {
    /// Type of `q`, `k`, `v`, and of `o` unless `out_f32`.
    pub dtype: DType,
    /// Rows of the tensors.
    pub batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Sequences: `batch`, or those of `cu_seqlens`.
    pub sequences: usize,
    /// Heads.
    pub heads: usize,
    /// Entries of a row of `q` and `k`, at most 256: rows of the state, unless they have features.
    pub key_dim: usize,
    /// What of them goes into the state.
    pub features: Features,
    /// Columns of the state.
    pub value_dim: usize,
    /// Reads the state: `[.., K]`.
    pub q: Rows,
    /// Rows that are added: `[.., K]`.
    pub k: Rows,
    /// Columns that are added: `[.., V]`.
    pub v: Rows,
    /// Decays.
    pub gate: Gate,
    /// `[H,K]` f32, with [`Order::ReadDecayAdd`]; 0: none.
    pub bonus: CUdeviceptr,
    /// `[B,T]` u8; 0: none.
    pub flags: CUdeviceptr,
    /// Elements from a row of flags to the next.
    pub flags_stride_batch: i64,
    /// Bit that cuts heads below `split`.
    pub flag_mask: u32,
    /// Bit that cuts the others.
    pub flag_mask_reverse: u32,
    /// `[N+1]` i32; 0: each row is a sequence.
    pub cu_seqlens: CUdeviceptr,
    /// `[N]` i32; 0: none. Keys of the first tokens of a sequence are not added; without an output, only those are.
    pub prefix_len: CUdeviceptr,
    /// State before the first token; absent: zero.
    pub h0: States,
    /// State after the last token; absent: not wanted.
    pub h_final: States,
    /// `[N,H,K]` f32, the normaliser's state before the first token; 0: zero.
    pub z0: CUdeviceptr,
    /// `[N,H,K]` f32; 0: not wanted.
    pub z_final: CUdeviceptr,
    /// `[B,T,H]` f32, what the outputs were divided by; 0: not wanted.
    pub den: CUdeviceptr,
    /// Output `[.., V]`; absent: nothing is read.
    pub o: Rows,
    /// `o` is f32 whatever the type of the inputs.
    pub out_f32: bool,
    /// `o` is added to.
    pub accumulate: bool,
    /// Heads from here on walk the other way; `heads`: none.
    pub split: usize,
    /// Factor of every read.
    pub scale: f32,
    /// Added to the denominator; with it, outputs are divided.
    pub normalize: Option<f32>,
    /// Heads below `split` walk from the last token to the first.
    pub reverse: bool,
    /// What happens at a token.
    pub order: Order,
    /// A flag cuts after its token in visit order, not before it.
    pub late_cut: bool,
    /// Outputs move to the next visited token.
    pub shift: bool,
    /// Factors keep 16 bits more than the type has, wherever the kernels round them.
    pub exact: bool,
    /// Multiprocessors of the device that it will run on: how finely it is cut depends on them.
    pub sm_count: u32,
}
