//! One launch of the kernel, in whatever roles its tensors play: the gradient is a reduction of other tensors.

use super::{Map, Policy, TAYLOR_DIM, workspace};
use crate::{
    Error, Result, Shape,
    strided::{self, Strided},
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_device::{DType, DeviceInfo, launch};
use lookback_kernels::{Kernel, args::TimeReduce, find};

/// Columns of a value tile.
const TILE: usize = 64;

/// A tensor of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand<'a> {
    pub address: CUdeviceptr,
    pub tensor: &'a Strided,
}

impl Operand<'_> {
    /// Whether rows may be accessed this many elements at a time, from their starts.
    pub fn wide(&self, elements: usize) -> bool {
        self.tensor.steps_by(elements) && self.address.is_multiple_of(elements as u64 * self.tensor.size)
    }
}

/// The tensors, 0 for absent. Heads of `k` and `q` may be fewer than those of `v`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roles<'a> {
    pub k: Operand<'a>,
    pub v: Operand<'a>,
    pub q: Operand<'a>,
    pub o: Operand<'a>,
    pub weights: CUdeviceptr,
    pub lse: CUdeviceptr,
    pub cu_seqlens: CUdeviceptr,
    pub prefix_len: CUdeviceptr,
    pub read_len: CUdeviceptr,
    pub den: CUdeviceptr,
    pub kv: CUdeviceptr,
    pub ksum: CUdeviceptr,
    pub kv_in: CUdeviceptr,
    pub ksum_in: CUdeviceptr,
    pub scale: f32,
    pub sum_scale: f32,
    pub normalize: Option<f32>,
}

/// Variant and geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    kernel: &'static Kernel,
    shape: Shape,
    map: Map,
    policy: Policy,
    tiles: usize,
    parts: usize,
    merges: usize,
    applies: usize,
    cell_bytes: u64,
}

impl Job {
    pub fn new(
        op: &'static str,
        shape: &Shape,
        dtype: DType,
        map: Map,
        policy: Policy,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let Policy { part_tokens, apply_tokens, lag } = policy;
        for (arg, tokens, least) in [("part_tokens", part_tokens, 32), ("apply_tokens", apply_tokens, 64)] {
            strided::range(op, arg, tokens, least, 1 << 30)?;
            if !tokens.is_power_of_two() {
                return Err(Error::Shape { op, arg, want: "a power of two".into(), got: vec![tokens as u64] });
            }
        }
        strided::range(op, "lag", lag, 1, 1 << 20)?;
        let keys = match map {
            Map::Taylor => 192,
            _ if shape.key_dim <= 64 => 64,
            _ if shape.key_dim <= 128 => 128,
            _ => 256,
        };
        let name = match map {
            Map::Identity => "identity",
            Map::EluPlusOne | Map::Relu | Map::Exp => "pointwise",
            Map::Softmax => "softmax",
            Map::Taylor => "taylor",
        };
        let variant = [("map", name), ("dtype", dtype.name()), ("keys", &keys.to_string())];
        let kernel = find("time_reduce", &variant)
            .ok_or_else(|| Error::NoKernel { op, request: format!("time_reduce {variant:?}") })?;
        if !kernel.target.runs_on(device.compute_capability) {
            let got = device.compute_capability;
            return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
        }
        let tiles = shape.value_dim.div_ceil(TILE);
        let in_row = shape.packed.unwrap_or(1);
        // Slots of packed sequences: floor(first / tokens) + n + segment.
        let slots = |tokens: usize| match shape.packed {
            Some(n) => shape.seq_len / tokens + n,
            None => shape.seq_len.div_ceil(tokens).max(1),
        };
        let whole = part_tokens >= shape.seq_len;
        let job = Self {
            kernel,
            shape: *shape,
            map,
            policy,
            tiles,
            parts: slots(part_tokens).saturating_mul(tiles),
            merges: if whole { 0 } else { in_row.saturating_mul(tiles).saturating_mul(keys / 16) },
            applies: slots(apply_tokens).saturating_mul(tiles),
            cell_bytes: 264 * keys as u64,
        };
        strided::range(op, "blocks", job.blocks(), 0, (1 << 31) - 1)?;
        Ok(job)
    }

    fn units(&self) -> usize {
        self.shape.batch.saturating_mul(self.shape.heads)
    }

    fn blocks(&self) -> usize {
        self.units().saturating_mul(self.parts.saturating_add(self.merges).saturating_add(self.applies))
    }

    /// Cells of sequences.
    fn cells(&self) -> u64 {
        (self.shape.sequences() as u64).saturating_mul(self.shape.heads as u64).saturating_mul(self.tiles as u64)
    }

    /// Bytes of all cells.
    pub fn cells_bytes(&self) -> u64 {
        let parts = if self.merges > 0 { self.units().saturating_mul(self.parts) as u64 } else { 0 };
        self.cells().saturating_add(parts).saturating_mul(self.cell_bytes)
    }

    pub fn workspace_bytes(&self) -> u64 {
        workspace::bytes_for(self.cells_bytes())
    }

    /// Multiplications and additions of both products.
    pub fn flops(&self) -> u64 {
        let tokens = (self.shape.batch * self.shape.seq_len * self.shape.heads) as u64;
        4 * tokens * (self.map.features(self.shape.key_dim) * self.shape.value_dim) as u64
    }

    /// # Safety
    /// Every address is readable or writable over its tensor until the launch has ended; the workspace was zeroed once and serves one launch at
    /// a time; nothing that is written overlaps anything else.
    pub unsafe fn launch(&self, stream: &CudaStream, roles: &Roles<'_>, parts: workspace::Parts) -> Result<()> {
        let Self { shape, policy, tiles, .. } = self;
        let Roles { k, v, q, o, .. } = roles;
        let element = 16 / v.tensor.size as usize;
        let fours = shape.value_dim.is_multiple_of(4);
        let wide = [
            k.wide(element),
            v.wide(element),
            q.wide(element),
            fours && o.wide(4),
            fours && roles.kv.is_multiple_of(16),
        ];
        let group = |operand: &Operand<'_>| (shape.heads / operand.tensor.extents[2].max(1)).max(1) as u32;
        let args = TimeReduce {
            p_k: k.address,
            p_v: v.address,
            p_q: q.address,
            p_weights: roles.weights,
            p_lse: roles.lse,
            p_cu_seqlens: roles.cu_seqlens,
            p_prefix_len: roles.prefix_len,
            p_read_len: roles.read_len,
            p_kv_in: roles.kv_in,
            p_ksum_in: roles.ksum_in,
            p_o: o.address,
            p_den: roles.den,
            p_kv: roles.kv,
            p_ksum: roles.ksum,
            p_header: parts.header,
            p_control: parts.control,
            p_cells: parts.cells,
            p_parts: parts.cells + self.cells() * self.cell_bytes,
            k_stride_batch: k.tensor.strides[0],
            k_stride_token: k.tensor.strides[1],
            k_stride_head: k.tensor.strides[2],
            v_stride_batch: v.tensor.strides[0],
            v_stride_token: v.tensor.strides[1],
            v_stride_head: v.tensor.strides[2],
            q_stride_batch: q.tensor.strides[0],
            q_stride_token: q.tensor.strides[1],
            q_stride_head: q.tensor.strides[2],
            o_stride_batch: o.tensor.strides[0],
            o_stride_token: o.tensor.strides[1],
            o_stride_head: o.tensor.strides[2],
            seq_len: shape.seq_len as u32,
            sequences: shape.packed.unwrap_or(1) as u32,
            heads: shape.heads as u32,
            k_group: group(k),
            q_group: group(q),
            key_dim: shape.key_dim as u32,
            value_dim: shape.value_dim as u32,
            units: self.units() as u32,
            parts: self.parts as u32,
            merges: self.merges as u32,
            applies: self.applies as u32,
            lag: policy.lag as u32,
            tiles: *tiles as u32,
            part_bits: policy.part_tokens.trailing_zeros(),
            apply_bits: policy.apply_tokens.trailing_zeros(),
            pointwise: match self.map {
                Map::EluPlusOne => 1,
                Map::Relu => 2,
                Map::Exp => 3,
                _ => 0,
            },
            normalizes: u32::from(roles.normalize.is_some()),
            wide_rows: wide.iter().enumerate().map(|(bit, wide)| u32::from(*wide) << bit).sum(),
            scale: roles.scale,
            sum_scale: roles.sum_scale,
            eps: roles.normalize.unwrap_or(0.0),
            taylor_root: (shape.key_dim as f64).powf(-0.25) as f32,
        };
        // SAFETY: the caller's promise covers the pointers; sizes and strides were checked against the contract.
        unsafe { launch(stream, self.kernel, [self.blocks() as u32, 1, 1], &args) }
    }
}

/// Checks the key dimension of a map.
pub(super) fn key_dim(op: &'static str, map: Map, key_dim: usize) -> Result<()> {
    strided::range(op, "key_dim", key_dim, 1, if map == Map::Taylor { TAYLOR_DIM } else { crate::MAX_KEY_DIM })
}
