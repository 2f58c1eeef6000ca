//! Tuning as data: which kernels run a walk.

use crate::{Path, walk::Walk};

/// The path that a walk takes.
pub(crate) fn resolve(walk: &Walk, path: Path, sm_count: u32) -> Path {
    let _ = (walk, sm_count);
    match path {
        Path::Auto => Path::Recurrent,
        path => path,
    }
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
