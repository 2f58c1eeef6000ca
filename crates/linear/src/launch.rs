//! Which kernels run a walk, and their launches.

use crate::{
    DeviceInfo, Error, Features, Path, Result,
    policy::{self, ChainTile},
    walk::{Side, States, Walk},
};
use cudarc::driver::{CudaStream, sys::CUdeviceptr};
use lookback_kernels::Kernel;

/// Parts of the workspace are multiples of this.
const PART: u64 = 256;

impl Walk {
    /// The kernels that [`launch`] takes for `path`: [`Path::Auto`] becomes another one, which has kernels for this walk.
    pub fn resolve(&self, path: Path) -> Path {
        match path {
            Path::Auto => policy::path(self, self.chain_kernels(false).is_ok()),
            path => path,
        }
    }

    /// `path`, or [`Path::Recurrent`] where the addresses are not aligned as its kernels need them; features have no
    /// other path.
    pub fn aligned_path(&self, path: Path) -> Path {
        if self.features == Features::Taylor || self.check_addresses(path).is_ok() { path } else { Path::Recurrent }
    }

    /// What runs this walk where it has no output, if `path` runs one that has: all of a sequence at once.
    pub fn state_path(&self, path: Path) -> Path {
        if path != Path::Recurrent && self.chain_kernels(false).is_ok() { Path::Chain } else { Path::Recurrent }
    }

    /// Blocks of the grid along x.
    pub fn blocks(&self, path: Path) -> u64 {
        let tile = match path {
            Path::Auto | Path::Recurrent => policy::recurrent_tile(self.key_dim).map(|(_, columns)| columns),
            Path::Chain | Path::Parallel => policy::chain_tile(self).map(|tile| tile.values),
        };
        let segments = if path == Path::Parallel { self.segments().1 } else { 1 };
        let tiles = self.value_dim.div_ceil(tile.unwrap_or(1)) as u64;
        tiles.saturating_mul(self.sequences as u64).saturating_mul(segments as u64)
    }

    /// Whether the kernels of a resolved path take this walk, and the device them.
    ///
    /// # Errors
    /// [`Error::NoKernel`], [`Error::Arch`].
    pub fn check(&self, path: Path, device: &DeviceInfo) -> Result<()> {
        let kernels = match path {
            Path::Auto | Path::Recurrent => vec![self.recurrent_kernel()?.0],
            Path::Chain => self.chain_kernels(false)?,
            Path::Parallel => self.chain_kernels(true)?,
        };
        for kernel in kernels {
            if !kernel.target.runs_on(device.compute_capability) {
                let got = device.compute_capability;
                return Err(Error::Arch { kernel: kernel.entry, need: kernel.target.to_string(), got });
            }
            if kernel.dynamic_smem > device.shared_per_block_optin {
                return Err(self.no_kernel("shared memory of this device"));
            }
        }
        Ok(())
    }

    /// The token-by-token kernel, and the values of its tile.
    fn recurrent_kernel(&self) -> Result<(&'static Kernel, usize)> {
        if self.normalize.is_some() && self.gate.side == Side::Value {
            return Err(self.no_kernel("steps token by token"));
        }
        let none = || self.no_kernel("steps token by token");
        if self.features == Features::Taylor {
            return Err(none());
        }
        let (tile, columns) = policy::recurrent_tile(self.key_dim).ok_or_else(none)?;
        let variant = [("key_tile", tile), ("dtype", self.dtype.name())];
        Ok((lookback_kernels::find("linear_attention_recurrent", &variant).ok_or_else(none)?, columns))
    }

    /// The chunked kernel of one pass; or with `segmented` that of the segments' states, the pass over them, and that kernel.
    fn chain_kernels(&self, segmented: bool) -> Result<Vec<&'static Kernel>> {
        let none = || self.no_kernel("tensor cores");
        let tile = policy::chain_tile(self).ok_or_else(none)?;
        let mut kernels = Vec::new();
        if segmented {
            kernels.push(self.chain_kernel(&tile, "state").ok_or_else(none)?);
            let side = match self.gate.side {
                Side::None | Side::Scalar => "scalar",
                Side::Key => "key",
                Side::Value => "value",
            };
            kernels.push(lookback_kernels::find("linear_attention_state_pass", &[("decay", side)]).ok_or_else(none)?);
        }
        kernels.push(self.chain_kernel(&tile, "whole").ok_or_else(none)?);
        Ok(kernels)
    }

    fn chain_kernel(&self, tile: &ChainTile, part: &str) -> Option<&'static Kernel> {
        let (keys, values) = (tile.keys.to_string(), tile.values.to_string());
        let norm = if self.normalize.is_some() { "yes" } else { "no" };
        let mut variant =
            vec![("dtype", self.dtype.name()), ("kt", &keys), ("bv", &values), ("norm", norm), ("part", part)];
        variant.push(("exact", if self.exact { "yes" } else { "no" }));
        let name = match self.gate.side {
            Side::None | Side::Scalar => {
                variant.push(("feature", if self.features == Features::Taylor { "taylor" } else { "identity" }));
                "linear_attention_chain"
            }
            side => {
                variant.push(("side", if side == Side::Key { "key" } else { "value" }));
                "linear_attention_chain_vector"
            }
        };
        lookback_kernels::find(name, &variant)
    }

    /// Addresses as the kernels of a resolved path read them: the chunked ones in pieces of 16 and 8 bytes.
    ///
    /// # Errors
    /// [`Error::Align`].
    pub fn check_addresses(&self, path: Path) -> Result<()> {
        if !matches!(path, Path::Chain | Path::Parallel) {
            return Ok(());
        }
        // A sum of 153 keys begins anywhere.
        let sums = if self.features == Features::Taylor { 4 } else { 8 };
        let decays = if matches!(self.gate.side, Side::Key | Side::Value) { 16 } else { 4 };
        for (arg, at, need) in [
            ("q", self.q.at, 16),
            ("k", self.k.at, 16),
            ("v", self.v.at, 16),
            ("g", self.gate.at, decays),
            ("bonus", self.bonus, 16),
            ("normalizer", self.z0, sums),
            ("final normalizer", self.z_final, sums),
            ("o", self.o.at, 8),
        ] {
            if !at.is_multiple_of(need) {
                return Err(Error::Align { op: "linear_attention", arg, need, addr: at });
            }
        }
        Ok(())
    }

    /// Tokens of a segment, and segments of the longest sequence that there may be.
    fn segments(&self) -> (usize, usize) {
        let tokens = policy::segment_tokens(self);
        (tokens, self.seq_len.div_ceil(tokens).max(1))
    }

    /// Bytes of workspace that [`launch`] needs for a resolved path. 0 unless it is [`Path::Parallel`].
    pub fn workspace_bytes(&self, path: Path) -> u64 {
        if path == Path::Parallel { Slots::new(self, 0).bytes } else { 0 }
    }

    fn no_kernel(&self, what: &str) -> Error {
        let Walk { dtype, key_dim, value_dim, .. } = self;
        let side = match self.gate.side {
            Side::None => "no decay",
            Side::Scalar => "a decay of the state",
            Side::Key => "decays of keys",
            Side::Value => "decays of values",
        };
        let normalized = if self.normalize.is_some() { ", a normaliser" } else { "" };
        let features = if self.features == Features::Taylor { ", Taylor features" } else { "" };
        let request = format!("{what} with {dtype} states of [{key_dim}, {value_dim}], {side}{normalized}{features}");
        Error::NoKernel { op: "linear_attention", request }
    }
}

/// The workspace of [`Path::Parallel`]: what segments add, later the states that they start from.
struct Slots {
    states: States,
    /// `[slots,H,K]`; 0 without a normaliser.
    sums: CUdeviceptr,
    /// `[slots,H]`, or with a row of decays each.
    carry: CUdeviceptr,
    bytes: u64,
}

impl Slots {
    fn new(walk: &Walk, address: CUdeviceptr) -> Self {
        let Walk { batch, seq_len, sequences, heads, key_dim, value_dim, .. } = *walk;
        let (tokens, _) = walk.segments();
        let slots = (batch as u64).saturating_mul(seq_len as u64).div_ceil(tokens as u64) + sequences as u64;
        let part = |width: usize| {
            let bytes = [heads, width, 4].iter().fold(slots, |n, e| n.saturating_mul(*e as u64));
            bytes.checked_next_multiple_of(PART).unwrap_or(u64::MAX)
        };
        let states = part(key_dim.saturating_mul(value_dim));
        let sums = if walk.normalize.is_some() { part(key_dim) } else { 0 };
        let carry = part(match walk.gate.side {
            Side::None | Side::Scalar => 1,
            Side::Key => key_dim,
            Side::Value => value_dim,
        });
        let after = address.saturating_add(states);
        Self {
            states: States::dense(address, heads, key_dim, value_dim),
            sums: if sums > 0 { after } else { 0 },
            carry: after.saturating_add(sums),
            bytes: states.saturating_add(sums).saturating_add(carry),
        }
    }
}

/// The arguments that all walk kernels share, and those of one kernel.
macro_rules! walk_arguments {
    ($kernel:ident, $walk:expr, { $($name:ident: $value:expr,)* $(..$rest:expr)? }) => {{
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
            $(..$rest)?
        }
    }};
}

/// Launches the walk. `path` is resolved; `workspace` has [`Walk::workspace_bytes`] bytes and is aligned to 16.
///
/// # Errors
/// [`Error::NoKernel`] ← sizes or features that no kernel of the path takes; [`Error::Align`] ← addresses that it cannot read, see
/// [`Walk::aligned_path`]; those of the launch.
///
/// # Safety
/// * Every address that is not 0 is readable or writable over what the walk's sizes and strides reach until the launch has ended,
///   and aligned to its elements.
/// * Nothing else writes that memory meanwhile, and nothing reads `o`, `h_final`, `z_final` and `den`, which overlap nothing.
pub(crate) unsafe fn launch(stream: &CudaStream, walk: &Walk, path: Path, workspace: CUdeviceptr) -> Result<()> {
    if walk.sequences == 0 || walk.heads == 0 || walk.key_dim == 0 || walk.value_dim == 0 {
        return Ok(());
    }
    match path {
        // SAFETY: the caller's promise.
        Path::Auto | Path::Recurrent => unsafe { recurrent(stream, walk) },
        Path::Chain => {
            walk.check_addresses(path)?;
            let kernels = walk.chain_kernels(false)?;
            // SAFETY: the caller's promise.
            kernels.iter().try_for_each(|kernel| unsafe { chain(stream, walk, None, kernel, Path::Chain, 0) })
        }
        // SAFETY: the caller's promise.
        Path::Parallel => unsafe { parallel(stream, walk, workspace) },
    }
}

/// Launches a walk and then one that adds to what it wrote: both in one launch, where the same chunked kernel takes them in one pass.
///
/// # Errors
/// Those of [`launch`].
///
/// # Safety
/// As for [`launch`], of both.
pub(crate) unsafe fn launch_both(stream: &CudaStream, walks: [(&Walk, Path); 2], workspace: CUdeviceptr) -> Result<()> {
    let [(first, first_path), (second, second_path)] = walks;
    let is_empty = [first, second].iter().any(|w| [w.sequences, w.heads, w.key_dim, w.value_dim].contains(&0));
    if !is_empty && first_path == Path::Chain && second_path == Path::Chain {
        walks.iter().try_for_each(|(walk, path)| walk.check_addresses(*path))?;
        let (one, other) = (first.chain_kernels(false)?, second.chain_kernels(false)?);
        if let ([kernel], true) = (&one[..], one == other) {
            // SAFETY: the caller's promise.
            return unsafe { chain(stream, first, Some(second), kernel, Path::Chain, 0) };
        }
    }
    // SAFETY: the caller's promise; the launches follow each other on the stream, so both may use the workspace.
    walks.iter().try_for_each(|(walk, path)| unsafe { launch(stream, walk, *path, workspace) })
}

unsafe fn recurrent(stream: &CudaStream, walk: &Walk) -> Result<()> {
    let (kernel, _) = walk.recurrent_kernel()?;
    let decay = match walk.gate.side {
        Side::None => 0,
        Side::Scalar => 1,
        Side::Key => 2,
        Side::Value => 3,
    };
    let args = walk_arguments!(LinearAttentionRecurrent, walk, { decay: decay, ..bytemuck::Zeroable::zeroed() });
    // SAFETY: the caller's promise covers the addresses; the rest is as the contract wants it.
    unsafe { lookback_device::launch(stream, kernel, grid(walk, Path::Recurrent), &args) }
}

/// Too large a grid is refused by the driver.
fn grid(walk: &Walk, path: Path) -> [u32; 3] {
    let [x, y] = [walk.blocks(path), walk.heads as u64].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    [x, y, 1]
}

/// One launch of a chunked kernel, which takes `second` after `walk` if there is one. With [`Path::Parallel`] the states of `walk` on one
/// side are those of segments.
unsafe fn chain(
    stream: &CudaStream,
    walk: &Walk,
    second: Option<&Walk>,
    kernel: &'static Kernel,
    path: Path,
    p_carry: CUdeviceptr,
) -> Result<()> {
    let (segment_tokens, segments) = match path {
        Path::Parallel => walk.segments(),
        _ => (0, 1),
    };
    let (segment_tokens, segments) = (segment_tokens as u32, segments as u32);
    let grid = grid(walk, path);
    let sequences = walk.sequences as u32;
    if matches!(walk.gate.side, Side::None | Side::Scalar) {
        let arguments = |walk: &Walk| {
            walk_arguments!(LinearAttentionChain, walk, {
                p_carry: p_carry,
                sequences: sequences,
                segment_tokens: segment_tokens,
                segments: segments,
            })
        };
        let args = [arguments(walk), second.map_or(bytemuck::Zeroable::zeroed(), arguments)];
        // SAFETY: the caller's promise covers the addresses; the rest is as the contract wants it.
        return unsafe { lookback_device::launch(stream, kernel, grid, &args) };
    }
    let arguments = |walk: &Walk| {
        walk_arguments!(LinearAttentionChainVector, walk, {
            p_carry: p_carry,
            sequences: sequences,
            segment_tokens: segment_tokens,
            segments: segments,
        })
    };
    let args = [arguments(walk), second.map_or(bytemuck::Zeroable::zeroed(), arguments)];
    // SAFETY: as above.
    unsafe { lookback_device::launch(stream, kernel, grid, &args) }
}

/// What each segment adds to a state from zero; the states that segments start from, one after the other; all segments at once.
unsafe fn parallel(stream: &CudaStream, walk: &Walk, workspace: CUdeviceptr) -> Result<()> {
    walk.check_addresses(Path::Parallel)?;
    let slots = Slots::new(walk, workspace);
    let [states, pass, whole] = walk.chain_kernels(true)?[..] else { return Err(walk.no_kernel("segments")) };
    let (segment_tokens, _) = walk.segments();
    let none = States::default();
    let of_segments = Walk { h0: none, z0: 0, h_final: slots.states, z_final: slots.sums, ..*walk };
    // SAFETY: the caller's promise covers the walk's addresses and the workspace, which has room for all slots.
    unsafe { chain(stream, &of_segments, None, states, Path::Parallel, slots.carry) }?;

    let [h0_stride_seq, h0_stride_head, h0_stride_key, h0_stride_value] = walk.h0.stride;
    let [hf_stride_seq, hf_stride_head, hf_stride_key, hf_stride_value] = walk.h_final.stride;
    let args = lookback_kernels::args::LinearAttentionStatePass {
        p_slots: slots.states.at,
        p_z_slots: slots.sums,
        p_carry: slots.carry,
        p_cu_seqlens: walk.cu_seqlens,
        p_h0: walk.h0.at,
        p_z0: walk.z0,
        p_h_final: walk.h_final.at,
        p_z_final: walk.z_final,
        h0_stride_seq,
        h0_stride_head,
        h0_stride_key,
        h0_stride_value,
        hf_stride_seq,
        hf_stride_head,
        hf_stride_key,
        hf_stride_value,
        seq_len: walk.seq_len as u32,
        heads: walk.heads as u32,
        key_dim: walk.key_dim as u32,
        value_dim: walk.value_dim as u32,
        segment_tokens: segment_tokens as u32,
        ..bytemuck::Zeroable::zeroed()
    };
    let elements = walk.key_dim as u64 * walk.value_dim as u64 + if slots.sums != 0 { walk.key_dim as u64 } else { 0 };
    let blocks = elements.div_ceil(u64::from(pass.block[0])).saturating_mul(walk.sequences as u64);
    let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), walk.heads as u32, 1];
    // SAFETY: as above; the slots are those that the launch before wrote.
    unsafe { lookback_device::launch(stream, pass, grid, &args) }?;

    let from_slots = Walk { h0: slots.states, z0: slots.sums, h_final: none, z_final: 0, ..*walk };
    // SAFETY: as above.
    unsafe { chain(stream, &from_slots, None, whole, Path::Parallel, 0) }
}
