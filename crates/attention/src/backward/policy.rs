//! Tuning as data: which tile takes which sizes.

use crate::policy;

/// Tile of the kernel of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyTile {
    /// Entries of a key, zeros past the last.
    pub keys: usize,
    /// Entries of a value, likewise.
    pub values: usize,
    /// Keys of a block.
    pub tile: usize,
    /// Registers do not hold both gradients: a launch for each.
    pub is_split: bool,
}

/// The smallest tile that has room; `adds_dq`: blocks add to `dq` as well, whose factors take shared memory.
pub(super) fn tile(head_dim: usize, value_dim: usize, adds_dq: bool) -> Option<KeyTile> {
    let policy::Tile { keys, values, .. } = policy::tile(head_dim, value_dim)?;
    let is_wide = keys > 64 && (keys != 128 || adds_dq);
    Some(KeyTile { keys, values, tile: if is_wide { 64 } else { 128 }, is_split: values > 128 })
}

/// Queries of a block of the kernel of `dq`.
pub(super) fn query_rows(tile: KeyTile) -> usize {
    if tile.keys <= 128 { 128 } else { 64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_those_that_kernels_have() {
        let of =
            |head_dim, value_dim, adds| tile(head_dim, value_dim, adds).map(|t| (t.keys, t.values, t.tile, t.is_split));
        assert_eq!(of(8, 16, false), Some((32, 32, 128, false)));
        assert_eq!(of(64, 64, true), Some((64, 64, 128, false)));
        assert_eq!(of(80, 64, false), Some((96, 96, 64, false)));
        assert_eq!(of(128, 128, false), Some((128, 128, 128, false)));
        assert_eq!(of(128, 128, true), Some((128, 128, 64, false)));
        assert_eq!(of(192, 128, false), Some((192, 128, 64, false)));
        assert_eq!(of(192, 136, false), Some((192, 192, 64, true)));
        assert_eq!(of(200, 256, true), Some((256, 256, 64, true)));
        assert_eq!(of(264, 8, true), None);
    }
}
