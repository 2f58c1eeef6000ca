//! Tuning as data: which kernels run a walk, and how finely they cut it.

use crate::{
    DType, Features, Path,
    walk::{Side, Walk},
};

/// Tokens that a segment has at least: below, its states move more bytes than its tokens.
const LEAST_SEGMENT: usize = 128;
/// Segments end on multiples of this.
const SEGMENT_STEP: usize = 64;
/// Blocks a multiprocessor that segments aim at.
const BLOCKS_PER_SM: u64 = 2;

/// The path of a walk on its device. f32, and sizes that tensor cores cannot take, go token by token. Else one pass, where
/// sequences, heads and tiles of values are enough blocks to fill three quarters of the device, or segments would be too short; else
/// segments. Features have one pass, or nothing.
pub(crate) fn path(walk: &Walk, has_chain: bool) -> Path {
    if walk.features == Features::Taylor {
        return Path::Chain;
    }
    if !has_chain {
        return Path::Recurrent;
    }
    let blocks = walk.blocks(Path::Chain).saturating_mul(walk.heads as u64);
    let fills = blocks.saturating_mul(4) >= u64::from(walk.sm_count) * 3;
    if fills || walk.seq_len < 4 * LEAST_SEGMENT { Path::Chain } else { Path::Parallel }
}

/// Tile of the token-by-token kernel: its keys, as the variant is named, and its values. A thread has 32 entries of the state, a
/// block 128 threads.
pub(crate) fn recurrent_tile(key_dim: usize) -> Option<(&'static str, usize)> {
    Some(match key_dim {
        0..=32 => ("32", 128),
        33..=64 => ("64", 64),
        65..=128 => ("128", 32),
        129..=256 => ("256", 16),
        _ => return None,
    })
}

/// Tile of the chunked kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainTile {
    /// Keys, zeros past the last.
    pub keys: usize,
    /// Values of a block.
    pub values: usize,
}

/// The tile that a walk takes, if tensor cores can: 16-bit elements, keys and values in steps of 16 bytes, decays of an entry
/// likewise. The wide tile reads keys half as often; the narrow one makes twice the blocks, and has exact
/// factors and features.
pub(crate) fn chain_tile(walk: &Walk) -> Option<ChainTile> {
    let keys = match walk.key_dim {
        8 | 16 if walk.features == Features::Taylor => 160,
        _ if walk.features == Features::Taylor => return None,
        1..=32 => 32,
        33..=64 => 64,
        65..=128 => 128,
        129..=256 => 256,
        _ => return None,
    };
    let multiple = |values: &[i64], of: i64| values.iter().all(|v| v % of == 0);
    let steps = |rows: &crate::walk::Rows| [rows.stride.batch, rows.stride.token, rows.stride.head];
    let by_entry = matches!(walk.gate.side, Side::Key | Side::Value);
    let gate = [walk.gate.stride.batch, walk.gate.stride.token, walk.gate.stride.head];
    let fits = walk.dtype != DType::F32
        && walk.key_dim.is_multiple_of(8)
        && walk.value_dim.is_multiple_of(8)
        && [walk.q, walk.k, walk.v].iter().all(|rows| multiple(&steps(rows), 8))
        && multiple(&steps(&walk.o), if walk.out_f32 { 2 } else { 4 })
        && (!by_entry || multiple(&gate, 4));
    if !fits {
        return None;
    }
    let blocks = |values: usize| (walk.value_dim.div_ceil(values) * walk.heads) as u64 * walk.sequences as u64;
    let has_wide = if walk.exact || walk.features == Features::Taylor {
        false
    } else if by_entry {
        keys > 32 && !(walk.gate.side == Side::Value && keys == 256)
    } else {
        keys < 256 || walk.normalize.is_none()
    };
    let wide = has_wide && walk.value_dim > 64 && blocks(128) >= u64::from(walk.sm_count);
    Some(ChainTile { keys, values: if wide { 128 } else { 64 } })
}

/// Tokens of a segment of [`Path::Parallel`].
pub(crate) fn segment_tokens(walk: &Walk) -> usize {
    let blocks = walk.blocks(Path::Chain).saturating_mul(walk.heads as u64).max(1);
    let segments = (u64::from(walk.sm_count) * BLOCKS_PER_SM).div_ceil(blocks).max(1);
    let tokens = (walk.seq_len as u64).div_ceil(segments) as usize;
    tokens.next_multiple_of(SEGMENT_STEP).max(LEAST_SEGMENT)
}
