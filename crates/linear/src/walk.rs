//! The one primitive of the family: a walk over the tokens of each sequence with a matrix state `S` `[K,V]`.
//!
//! For tokens t in visit order, of sequence n and head h: the state decays, takes in `k[t] v[t]^T`, and is read,
//! `o[t] = scale S^T q[t]`, in the order that [`Order`] says. Forward modes are one or two walks, a backward pass is three with
//! the roles of the tensors exchanged.

use crate::{DType, DeviceInfo, Error, Path, Result, Stride, policy};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_kernels::Kernel;

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

impl Gate {
    /// No decay.
    pub const NONE: Self = Self { side: Side::None, at: 0, stride: Stride { batch: 0, token: 0, head: 0 } };
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
    /// Rows of the state, at most 256.
    pub key_dim: usize,
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
}

impl Walk {
    /// The kernels that [`launch`] takes for `path`, which may be [`Path::Auto`].
    pub fn resolve(&self, path: Path, sm_count: u32) -> Path {
        crate::policy::resolve(self, path, sm_count)
    }

    /// What runs this walk where it has no output, if `path` runs one that has.
    pub fn state_path(&self, path: Path) -> Path {
        let _ = path;
        Path::Recurrent
    }

    /// Values of a block's tile on the narrowest path, for the size of the grid.
    pub fn value_tile(&self) -> usize {
        policy::recurrent_tile(self.key_dim).map_or(1, |(_, columns)| columns)
    }

    /// Whether the kernels of a resolved path take this walk, and the device them.
    ///
    /// # Errors
    /// [`Error::NoKernel`], [`Error::Arch`].
    pub fn check(&self, path: Path, device: &DeviceInfo) -> Result<()> {
        for kernel in self.kernels(path)? {
            if !kernel.target.runs_on(device.compute_capability) {
                let got = device.compute_capability;
                return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
            }
        }
        Ok(())
    }

    fn kernels(&self, path: Path) -> Result<Vec<&'static Kernel>> {
        match path {
            Path::Auto | Path::Recurrent => Ok(vec![self.recurrent()?.0]),
            Path::Chain | Path::Parallel => Err(self.no_kernel("tensor cores")),
        }
    }

    /// The token-by-token kernel, and the values of its tile.
    fn recurrent(&self) -> Result<(&'static Kernel, usize)> {
        if self.normalize.is_some() && self.gate.side == Side::Value {
            return Err(self.no_kernel("decays of values with a normaliser"));
        }
        let none = || self.no_kernel("keys token by token");
        let (tile, columns) = policy::recurrent_tile(self.key_dim).ok_or_else(none)?;
        let variant = [("key_tile", tile), ("dtype", self.dtype.name())];
        Ok((lookback_kernels::find("linear_attention_recurrent", &variant).ok_or_else(none)?, columns))
    }

    /// Bytes of workspace that [`launch`] needs for a resolved path. 0 unless it is [`Path::Parallel`].
    pub fn workspace_bytes(&self, path: Path, sm_count: u32) -> u64 {
        let _ = (path, sm_count);
        0
    }

    fn no_kernel(&self, what: &str) -> Error {
        let request = format!("{what}: {} [{}, {}]", self.dtype, self.key_dim, self.value_dim);
        Error::NoKernel { op: "linear_attention", request }
    }
}

/// The arguments that all walk kernels share, and those of one kernel.
macro_rules! walk_arguments {
    ($kernel:ident, $walk:expr, { $($name:ident: $value:expr),* $(,)? }) => {{
        let w: &Walk = $walk;
        let [h0_stride_seq, h0_stride_head, h0_stride_key, h0_stride_value] = w.h0.stride;
        let [hf_stride_seq, hf_stride_head, hf_stride_key, hf_stride_value] = w.h_final.stride;
        lookback_kernels::args::$kernel {
            p_q: w.q.at,
            p_k: w.k.at,
            p_v: w.v.at,
            q_stride_batch: w.q.stride.batch,
            q_stride_token: w.q.stride.token,
            q_stride_head: w.q.stride.head,
            q_group: w.q.group as u32,
            k_stride_batch: w.k.stride.batch,
            k_stride_token: w.k.stride.token,
            k_stride_head: w.k.stride.head,
            k_group: w.k.group as u32,
            v_stride_batch: w.v.stride.batch,
            v_stride_token: w.v.stride.token,
            v_stride_head: w.v.stride.head,
            v_group: w.v.group as u32,
            p_g: w.gate.at,
            g_stride_batch: w.gate.stride.batch,
            g_stride_token: w.gate.stride.token,
            g_stride_head: w.gate.stride.head,
            p_u: w.bonus,
            p_flags: w.flags,
            flags_stride_batch: w.flags_stride_batch,
            flag_mask: w.flag_mask,
            flag_mask_reverse: w.flag_mask_reverse,
            p_cu_seqlens: w.cu_seqlens,
            p_prefix_len: w.prefix_len,
            p_h0: w.h0.at,
            h0_stride_seq,
            h0_stride_head,
            h0_stride_key,
            h0_stride_value,
            p_h_final: w.h_final.at,
            hf_stride_seq,
            hf_stride_head,
            hf_stride_key,
            hf_stride_value,
            p_z0: w.z0,
            p_z_final: w.z_final,
            p_den: w.den,
            p_o: w.o.at,
            o_stride_batch: w.o.stride.batch,
            o_stride_token: w.o.stride.token,
            o_stride_head: w.o.stride.head,
            seq_len: w.seq_len as u32,
            heads: w.heads as u32,
            key_dim: w.key_dim as u32,
            value_dim: w.value_dim as u32,
            split: w.split as u32,
            scale: w.scale,
            eps: w.normalize.unwrap_or(0.0),
            reverse: w.reverse.into(),
            order: w.order as u32,
            late_cut: w.late_cut.into(),
            shift: w.shift.into(),
            out_f32: w.out_f32.into(),
            accumulate: w.accumulate.into(),
            normalize: w.normalize.is_some().into(),
            $($name: $value,)*
            ..bytemuck::Zeroable::zeroed()
        }
    }};
}

/// Launches the walk. `path` is resolved; `workspace` has [`Walk::workspace_bytes`] bytes and is aligned to 256.
///
/// # Errors
/// [`Error::NoKernel`] ← sizes or features that no kernel of the path takes; those of the launch.
///
/// # Safety
/// * Every address that is not 0 is readable or writable over what the walk's sizes and strides reach until the launch has ended,
///   and aligned to its elements.
/// * Nothing else writes that memory meanwhile, and nothing reads `o`, `h_final`, `z_final` and `den`, which overlap nothing.
pub(crate) unsafe fn launch(stream: &CudaStream, walk: &Walk, path: Path, workspace: CUdeviceptr) -> Result<()> {
    let _ = workspace;
    if walk.sequences == 0 || walk.heads == 0 || walk.key_dim == 0 || walk.value_dim == 0 {
        return Ok(());
    }
    match path {
        // SAFETY: the caller's promise.
        Path::Auto | Path::Recurrent => unsafe { recurrent(stream, walk) },
        Path::Chain | Path::Parallel => Err(walk.no_kernel("tensor cores")),
    }
}

unsafe fn recurrent(stream: &CudaStream, walk: &Walk) -> Result<()> {
    let (kernel, columns) = walk.recurrent()?;
    let blocks = (walk.value_dim.div_ceil(columns) as u64).saturating_mul(walk.sequences as u64);
    let [x, y] = [blocks, walk.heads as u64].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let decay = match walk.gate.side {
        Side::None => 0,
        Side::Scalar => 1,
        Side::Key => 2,
        Side::Value => 3,
    };
    let args = walk_arguments!(LinearAttentionRecurrent, walk, { decay: decay });
    // SAFETY: the caller's promise covers the addresses; the rest is as the contract wants it.
    unsafe { lookback_device::launch(stream, kernel, [x, y, 1], &args) }
}
