//! The kernels of the backward pass besides the reduction itself.

use super::{Map, job::Operand};
use crate::{Error, Result, Shape, strided::Strided};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::{DType, launch};
use lookback_kernels::{
    Kernel,
    args::{GroupSum, TimeReduceBwd, TimeReducePrepare, TimeReduceRowDot, TimeReduceTaylorBwd},
    find,
};

const OP: &str = super::backward::OP;
/// Values that a launch of the Taylor kernel takes.
pub(super) const TAYLOR_VALUES: usize = 64;

/// The kernel of that name and variant.
pub(super) fn kernel(name: &str, variant: &[(&str, &str)]) -> Result<&'static Kernel> {
    find(name, variant).ok_or_else(|| Error::NoKernel { op: OP, request: format!("{name} {variant:?}") })
}

fn blocks(n: u64, of: u64) -> u32 {
    u32::try_from(n.div_ceil(of)).unwrap_or(u32::MAX)
}

/// Rows of `[B,T]`.
fn rows(shape: &Shape) -> u64 {
    shape.batch as u64 * shape.seq_len as u64
}

/// Slots of blocks that have `tokens` tokens of a sequence each.
fn slots(shape: &Shape, tokens: usize) -> usize {
    match shape.packed {
        Some(n) => shape.seq_len / tokens + n,
        None => shape.seq_len.div_ceil(tokens),
    }
}

/// `dn = d_o / den` and `w = -dn . o` of every row.
///
/// # Safety
/// Addresses are readable and writable over their tensors until the launch has ended; so for all functions here.
pub(super) unsafe fn prepare(
    stream: &CudaStream,
    shape: &Shape,
    dtype: DType,
    (d_o, o, den): (Operand<'_>, Operand<'_>, CUdeviceptr),
    (dn, w): (CUdeviceptr, CUdeviceptr),
) -> Result<()> {
    let vec = 16 / dtype.size();
    let wide = shape.value_dim.is_multiple_of(vec) && d_o.wide(vec) && o.wide(vec) && dn.is_multiple_of(16);
    let vec = if wide { vec.to_string() } else { "1".into() };
    let kernel = kernel("time_reduce_prepare", &[("dtype", dtype.name()), ("vec", &vec)])?;
    let (a, b) = (d_o.tensor.strides, o.tensor.strides);
    let args = TimeReducePrepare {
        p_do: d_o.address,
        p_o: o.address,
        p_den: den,
        p_dn: dn,
        p_w: w,
        do_stride_batch: a[0],
        do_stride_token: a[1],
        do_stride_head: a[2],
        o_stride_batch: b[0],
        o_stride_token: b[1],
        o_stride_head: b[2],
        rows: rows(shape) as u32,
        seq_len: shape.seq_len as u32,
        heads: shape.heads as u32,
        width: shape.value_dim as u32,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, [blocks(rows(shape), 16), shape.heads as u32, 1], &args) }
}

/// `out[r] = -a[r] . b[r]`.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn row_dot(
    stream: &CudaStream,
    (rows, width): (u64, usize),
    (a, b): (CUdeviceptr, CUdeviceptr),
    out: CUdeviceptr,
) -> Result<()> {
    let args = TimeReduceRowDot { p_a: a, p_b: b, p_out: out, rows: rows as u32, width: width as u32 };
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel("time_reduce_row_dot", &[])?, [blocks(rows, 4), 1, 1], &args) }
}

/// What [`pull`] computes: `out[t] = phi'(y[t]) * (scale M x[t] + lift w[t] e)`.
#[derive(Clone, Copy)]
pub(super) struct Pull<'a> {
    pub x: Operand<'a>,
    pub y: Operand<'a>,
    pub m: CUdeviceptr,
    pub e: CUdeviceptr,
    pub w: CUdeviceptr,
    pub lse: CUdeviceptr,
    pub cu_seqlens: CUdeviceptr,
    pub len: CUdeviceptr,
    pub out: CUdeviceptr,
    pub out_f32: bool,
    pub scale: f32,
    pub lift: f32,
}

/// The gradient of keys or queries; `out` is dense `[B,T,heads,K]`.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn pull(
    stream: &CudaStream,
    shape: &Shape,
    (dtype, map, tokens): (DType, Map, usize),
    pull: &Pull<'_>,
) -> Result<()> {
    let values = match shape.value_dim {
        ..=64 => "64",
        65..=128 => "128",
        _ => "256",
    };
    let kernel = kernel("time_reduce_bwd", &[("dtype", dtype.name()), ("values", values)])?;
    let Pull { x, y, .. } = pull;
    let (xs, ys) = (x.tensor.strides, y.tensor.strides);
    let out = Strided::dense([shape.batch, shape.seq_len, shape.heads], shape.key_dim, 4);
    let tiles = shape.key_dim.div_ceil(64);
    let slots = slots(shape, tokens);
    let wide_out = shape.key_dim.is_multiple_of(4) && pull.out.is_multiple_of(16);
    let args = TimeReduceBwd {
        p_x: x.address,
        p_y: y.address,
        p_m: pull.m,
        p_e: pull.e,
        p_w: pull.w,
        p_lse: pull.lse,
        p_cu_seqlens: pull.cu_seqlens,
        p_len: pull.len,
        p_out: pull.out,
        x_stride_batch: xs[0],
        x_stride_token: xs[1],
        x_stride_head: xs[2],
        y_stride_batch: ys[0],
        y_stride_token: ys[1],
        y_stride_head: ys[2],
        out_stride_batch: out.strides[0],
        out_stride_token: out.strides[1],
        out_stride_head: out.strides[2],
        seq_len: shape.seq_len as u32,
        sequences: shape.packed.unwrap_or(1) as u32,
        heads: shape.heads as u32,
        y_group: (shape.heads / y.tensor.extents[2].max(1)).max(1) as u32,
        key_dim: shape.key_dim as u32,
        value_dim: shape.value_dim as u32,
        tiles: tiles as u32,
        apply_bits: tokens.trailing_zeros(),
        slope: match map {
            Map::Identity | Map::Taylor => 0,
            Map::EluPlusOne => 1,
            Map::Relu => 2,
            Map::Exp => 3,
            Map::Softmax => 4,
        },
        out_f32: u32::from(pull.out_f32),
        wide_rows: u32::from(x.wide(16 / dtype.size())) | u32::from(wide_out) << 3,
        scale: pull.scale,
        lift: pull.lift,
        ..bytemuck::Zeroable::zeroed()
    };
    let grid = [(slots * tiles) as u32, shape.heads as u32, shape.batch as u32];
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel, grid, &args) }
}

/// As [`pull`] for Taylor features, 64 values at a time: with more, `out` must be f32.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn pull_taylor(
    stream: &CudaStream,
    shape: &Shape,
    (dtype, tokens): (DType, usize),
    pull: &Pull<'_>,
) -> Result<()> {
    let kernel = kernel("time_reduce_taylor_bwd", &[("dtype", dtype.name())])?;
    let Pull { x, y, .. } = pull;
    let (xs, ys) = (x.tensor.strides, y.tensor.strides);
    let slots = slots(shape, tokens);
    for first in (0..shape.value_dim).step_by(TAYLOR_VALUES) {
        let args = TimeReduceTaylorBwd {
            p_x: x.address + (first * dtype.size()) as u64,
            p_y: y.address,
            p_m: pull.m + 4 * first as u64,
            p_e: if first == 0 { pull.e } else { 0 },
            p_w: pull.w,
            p_cu_seqlens: pull.cu_seqlens,
            p_len: pull.len,
            p_out: pull.out,
            x_stride_batch: xs[0],
            x_stride_token: xs[1],
            x_stride_head: xs[2],
            y_stride_batch: ys[0],
            y_stride_token: ys[1],
            y_stride_head: ys[2],
            seq_len: shape.seq_len as u32,
            sequences: shape.packed.unwrap_or(1) as u32,
            heads: shape.heads as u32,
            y_group: (shape.heads / y.tensor.extents[2].max(1)).max(1) as u32,
            key_dim: shape.key_dim as u32,
            value_dim: (shape.value_dim - first).min(TAYLOR_VALUES) as u32,
            row_values: shape.value_dim as u32,
            apply_bits: tokens.trailing_zeros(),
            out_f32: u32::from(pull.out_f32),
            accumulate: u32::from(first > 0),
            wide_rows: u32::from(x.wide(16 / dtype.size())),
            scale: pull.scale,
            lift: pull.lift,
            taylor_root: (shape.key_dim as f64).powf(-0.25) as f32,
        };
        // SAFETY: the caller's promise; launches of a stream follow each other.
        unsafe { launch(stream, kernel, [slots as u32, shape.heads as u32, shape.batch as u32], &args)? };
    }
    Ok(())
}

/// Dense f32 `[B,T,heads,K]` summed over each head's group, in order, into dense `[B,T,groups,K]` of the element type.
///
/// # Safety
/// As [`prepare`].
pub(super) unsafe fn group_sum(
    stream: &CudaStream,
    shape: &Shape,
    (dtype, groups): (DType, usize),
    x: CUdeviceptr,
    out: CUdeviceptr,
) -> Result<()> {
    let columns = (groups * shape.key_dim) as u64;
    let lane_bits = columns.min(256).next_power_of_two().trailing_zeros();
    let args = GroupSum {
        p_x: x,
        p_out: out,
        rows: rows(shape) as u32,
        seq_len: shape.seq_len as u32,
        heads: shape.heads as u32,
        width: shape.key_dim as u32,
        group: (shape.heads / groups) as u32,
        other_group: 1,
        lane_bits,
        ..bytemuck::Zeroable::zeroed()
    };
    let grid = [blocks(rows(shape), 256 >> lane_bits), blocks(columns, 1 << lane_bits), 1];
    // SAFETY: the caller's promise.
    unsafe { launch(stream, kernel("group_sum", &[("dtype", dtype.name())])?, grid, &args) }
}
