//! The kernels around the walks.

use crate::{
    DType, Decay, Error, Result,
    walk::{Rows, Walk},
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::launch;
use lookback_kernels::{Kernel, args, find};

const OP: &str = super::OP;
/// Threads of a block.
const BLOCK: u64 = 256;

fn kernel(name: &str, variant: &[(&str, &str)]) -> Result<&'static Kernel> {
    find(name, variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{name} {variant:?}") })
}

fn blocks(n: u64, of: u64) -> u32 {
    u32::try_from(n.div_ceil(of)).unwrap_or(u32::MAX)
}

fn rows(walk: &Walk) -> u64 {
    walk.batch as u64 * walk.seq_len as u64
}

/// Rows of `[B,T,heads,width]` without gaps.
pub(super) fn dense(at: CUdeviceptr, walk: &Walk, heads: usize, width: usize) -> Rows {
    Rows {
        at,
        stride: crate::Stride::dense(walk.seq_len, heads, width),
        group: walk.heads.checked_div(heads).unwrap_or(1).max(1),
    }
}

/// Inputs and outputs of `prepare_bwd`; 0 is absent.
pub(super) struct Prepared {
    pub d_o: Rows,
    pub o: Rows,
    pub denominator: CUdeviceptr,
    pub d_rows: CUdeviceptr,
    pub v_rows: CUdeviceptr,
    pub weight: CUdeviceptr,
    pub width: usize,
}

/// Rewrites what the walks of a direction read; `walk` is the direction's walk of the forward pass.
///
/// # Safety
/// Addresses are readable and writable over their extents until the launch has ended.
pub(super) unsafe fn prepare(stream: &CudaStream, walk: &Walk, prepared: &Prepared) -> Result<()> {
    if rows(walk) == 0 || walk.heads == 0 {
        return Ok(());
    }
    let kernel = kernel("prepare_bwd", &[("dtype", walk.dtype.name())])?;
    let (d_o, o, v) = (prepared.d_o.stride, prepared.o.stride, walk.v.stride);
    let args = args::PrepareBwd {
        p_do: prepared.d_o.at,
        p_o: prepared.o.at,
        p_v: walk.v.at,
        p_den: prepared.denominator,
        p_flags: walk.flags,
        p_cu_seqlens: walk.cu_seqlens,
        p_d_ext: prepared.d_rows,
        p_v_ext: prepared.v_rows,
        p_weight: prepared.weight,
        rows: rows(walk) as u32,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        sequences: walk.sequences as u32,
        value_dim: walk.value_dim as u32,
        width: prepared.width as u32,
        split: walk.split as u32,
        reverse: walk.reverse.into(),
        flag_mask: walk.flag_mask,
        flag_mask_reverse: walk.flag_mask_reverse,
        shift: walk.shift.into(),
        scale: walk.scale,
        do_stride_batch: d_o.batch,
        do_stride_token: d_o.token,
        do_stride_head: d_o.head,
        o_stride_batch: o.batch,
        o_stride_token: o.token,
        o_stride_head: o.head,
        v_stride_batch: v.batch,
        v_stride_token: v.token,
        v_stride_head: v.head,
        flags_stride_batch: walk.flags_stride_batch,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, [blocks(rows(walk), 8), walk.heads as u32, 1], &args) }
}

/// Inputs and output of `decay_bwd`: f32 rows of every head, and dense states of `width` columns.
pub(super) struct DecayGradient {
    pub dq: Rows,
    pub dk: Rows,
    /// Final state.
    pub last: CUdeviceptr,
    /// Its adjoint over the scale; 0: zero.
    pub d_last: CUdeviceptr,
    pub width: usize,
    pub dg: CUdeviceptr,
}

/// Gradient of a direction's log-decays, or of each sequence's share for decays of heads; `walk` is that of the forward pass.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn decay(stream: &CudaStream, walk: &Walk, decay: Decay, gradient: &DecayGradient) -> Result<()> {
    let (name, channels) = match decay {
        Decay::None => return Ok(()),
        Decay::Head => ("head", 1),
        Decay::Scalar => ("scalar", 1),
        Decay::Vector => ("vector", walk.key_dim),
    };
    if walk.sequences == 0 || walk.heads == 0 {
        return Ok(());
    }
    let kernel = kernel("decay_bwd", &[("dtype", walk.dtype.name()), ("decay", name)])?;
    let DecayGradient { dq, dk, .. } = gradient;
    let dg = match decay {
        Decay::Head => crate::Stride { batch: walk.heads as i64, token: 0, head: 1 },
        _ => crate::Stride::dense(walk.seq_len, walk.heads, channels),
    };
    let args = args::DecayBwd {
        p_dq: dq.at,
        p_dk: dk.at,
        p_q: walk.q.at,
        p_k: walk.k.at,
        p_flags: walk.flags,
        p_cu_seqlens: walk.cu_seqlens,
        p_s_final: gradient.last,
        p_ds_final: gradient.d_last,
        p_dg: gradient.dg,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        key_dim: walk.key_dim as u32,
        state_width: gradient.width as u32,
        q_group: walk.q.group as u32,
        k_group: walk.k.group as u32,
        split: walk.split as u32,
        reverse: walk.reverse.into(),
        flag_mask: walk.flag_mask,
        flag_mask_reverse: walk.flag_mask_reverse,
        exclusive: (walk.order == crate::walk::Order::ReadDecayAdd).into(),
        state_factor: walk.scale,
        dq_stride_batch: dq.stride.batch,
        dq_stride_token: dq.stride.token,
        dq_stride_head: dq.stride.head,
        dk_stride_batch: dk.stride.batch,
        dk_stride_token: dk.stride.token,
        dk_stride_head: dk.stride.head,
        q_stride_batch: walk.q.stride.batch,
        q_stride_token: walk.q.stride.token,
        q_stride_head: walk.q.stride.head,
        k_stride_batch: walk.k.stride.batch,
        k_stride_token: walk.k.stride.token,
        k_stride_head: walk.k.stride.head,
        flags_stride_batch: walk.flags_stride_batch,
        dg_stride_batch: dg.batch,
        dg_stride_token: dg.token,
        dg_stride_head: dg.head,
    };
    let grid = [walk.sequences as u32, walk.heads as u32, blocks(channels as u64, 32)];
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, grid, &args) }
}

/// What `group_sum` adds up for each head, f32 and dense; 0 is absent.
pub(super) struct Terms {
    pub x: CUdeviceptr,
    pub y: CUdeviceptr,
    /// The bonus part: weight of each row, bonus of each head, and the rows that they multiply.
    pub bonus: Option<(CUdeviceptr, CUdeviceptr, Rows)>,
}

/// Dense `[B,T,heads,width]` terms into `[B,T,heads / group,width]` of type `dtype`.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn group_sum(
    stream: &CudaStream,
    walk: &Walk,
    terms: &Terms,
    (group, width, dtype): (usize, usize, DType),
    out: CUdeviceptr,
) -> Result<()> {
    if rows(walk) == 0 || walk.heads == 0 {
        return Ok(());
    }
    let kernel = kernel("group_sum", &[("dtype", dtype.name())])?;
    let columns = (walk.heads / group * width) as u64;
    let lane_bits = columns.min(BLOCK).next_power_of_two().trailing_zeros();
    let none = Rows { at: 0, stride: crate::Stride::default(), group: 1 };
    let (weight, u, other) = terms.bonus.unwrap_or((0, 0, none));
    let args = args::GroupSum {
        p_x: terms.x,
        p_y: terms.y,
        p_weight: weight,
        p_u: u,
        p_other: other.at,
        p_out: out,
        rows: rows(walk) as u32,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        width: width as u32,
        group: group as u32,
        other_group: other.group as u32,
        other_stride_batch: other.stride.batch,
        other_stride_token: other.stride.token,
        other_stride_head: other.stride.head,
        lane_bits,
        ..bytemuck::Zeroable::zeroed()
    };
    let grid = [blocks(rows(walk), BLOCK >> lane_bits), blocks(columns, 1 << lane_bits), 1];
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, grid, &args) }
}

/// Rows of states: `out[r] = factor [s[r], z[r], z[r] or 0, 0..]` of `out_width` columns, and
/// `z_out[r] = factor (s[r,width] + s[r,width + 1])`; 0 is absent.
pub(super) struct Columns {
    pub s: CUdeviceptr,
    pub s_stride: usize,
    pub z: CUdeviceptr,
    pub out: CUdeviceptr,
    pub out_width: usize,
    pub z_out: CUdeviceptr,
    pub factor: f32,
    /// `z` in two columns.
    pub twice: bool,
}

/// # Safety
/// As [`prepare`]; `out` may be `s` where they have the same rows.
pub(super) unsafe fn state_column(stream: &CudaStream, walk: &Walk, columns: &Columns) -> Result<()> {
    let rows = walk.sequences as u64 * walk.heads as u64 * walk.key_dim as u64;
    if rows == 0 || (columns.out == 0 && columns.z_out == 0) {
        return Ok(());
    }
    let args = args::StateColumn {
        p_s: columns.s,
        p_z: columns.z,
        p_out: columns.out,
        p_z_out: columns.z_out,
        rows: rows as u32,
        width: walk.value_dim as u32,
        out_width: columns.out_width as u32,
        s_stride: columns.s_stride as u32,
        factor: columns.factor,
        twice: columns.twice.into(),
    };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel("state_column", &[])?, [blocks(rows, 8), 1, 1], &args) }
}

/// Gradient of the bonus from the weights that [`prepare`] wrote.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn bonus(stream: &CudaStream, walk: &Walk, weight: CUdeviceptr, du: CUdeviceptr) -> Result<()> {
    if walk.heads == 0 {
        return Ok(());
    }
    let kernel = kernel("bonus_bwd", &[("dtype", walk.dtype.name())])?;
    let args = args::BonusBwd {
        p_weight: weight,
        p_q: walk.q.at,
        p_k: walk.k.at,
        p_du: du,
        batch: walk.batch as u32,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        key_dim: walk.key_dim as u32,
        q_group: walk.q.group as u32,
        k_group: walk.k.group as u32,
        q_stride_batch: walk.q.stride.batch,
        q_stride_token: walk.q.stride.token,
        q_stride_head: walk.q.stride.head,
        k_stride_batch: walk.k.stride.batch,
        k_stride_token: walk.k.stride.token,
        k_stride_head: walk.k.stride.head,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, [blocks(walk.key_dim as u64, 32), walk.heads as u32, 1], &args) }
}

/// `[slices,width]` f32 summed over slices.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn column_sum(
    stream: &CudaStream,
    parts: CUdeviceptr,
    slices: usize,
    width: usize,
    out: CUdeviceptr,
) -> Result<()> {
    if width == 0 {
        return Ok(());
    }
    let args = args::ColumnSum { p_parts: parts, p_out: out, slices: slices as u32, width: width as u32 };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel("column_sum", &[])?, [blocks(width as u64, BLOCK), 1, 1], &args) }
}

/// Adjoints of the state behind a prefix, and the rows of `dk` and `dv` that they reach.
pub(super) struct Prefix {
    pub d_state: CUdeviceptr,
    pub d_sums: CUdeviceptr,
    pub prefix_len: CUdeviceptr,
    /// Dense rows of every head.
    pub dk: CUdeviceptr,
    /// Whether `dk` is f32 whatever the type.
    pub in_f32: bool,
    pub dv: CUdeviceptr,
}

/// Rows of `dk` and `dv` within prefixes; `walk` is that of the forward pass.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn prefix(stream: &CudaStream, walk: &Walk, prefix: &Prefix) -> Result<()> {
    if rows(walk) == 0 || walk.sequences == 0 || walk.heads == 0 {
        return Ok(());
    }
    let is_wide = prefix.in_f32 && walk.dtype != DType::F32;
    let kernel = kernel("prefix_bwd", &[("dtype", walk.dtype.name()), ("rows", if is_wide { "f32" } else { "same" })])?;
    let args = args::PrefixBwd {
        p_dp: prefix.d_state,
        p_dz: prefix.d_sums,
        p_k: walk.k.at,
        p_v: walk.v.at,
        p_cu_seqlens: walk.cu_seqlens,
        p_prefix_len: prefix.prefix_len,
        p_dk: prefix.dk,
        p_dv: prefix.dv,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        key_dim: walk.key_dim as u32,
        value_dim: walk.value_dim as u32,
        k_group: walk.k.group as u32,
        k_stride_batch: walk.k.stride.batch,
        k_stride_token: walk.k.stride.token,
        k_stride_head: walk.k.stride.head,
        v_stride_batch: walk.v.stride.batch,
        v_stride_token: walk.v.stride.token,
        v_stride_head: walk.v.stride.head,
        ..bytemuck::Zeroable::zeroed()
    };
    // Lengths are the device's to know; a block takes every so many tiles of 16 tokens.
    let tiles = blocks(walk.seq_len as u64, 16).min(32);
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, [walk.sequences as u32, walk.heads as u32, tiles], &args) }
}
