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
