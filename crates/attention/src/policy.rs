//! Tuning as data: which tile takes which sizes.

/// Tile of the forward kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Entries of a key, zeros past the last.
    pub keys: usize,
    /// Entries of a value, likewise.
    pub values: usize,
    /// Queries of a block.
    pub rows: usize,
}

/// The tiles of the forward kernel, from the least work to the most. Two fragments of queries a warp halve what is read from shared
/// memory for a product; wide values leave registers for one.
pub(crate) const FORWARD: [Tile; 7] = [
    Tile { keys: 32, values: 32, rows: 128 },
    Tile { keys: 64, values: 64, rows: 128 },
    Tile { keys: 96, values: 96, rows: 128 },
    Tile { keys: 128, values: 128, rows: 128 },
    Tile { keys: 192, values: 128, rows: 128 },
    Tile { keys: 192, values: 192, rows: 64 },
    Tile { keys: 256, values: 256, rows: 64 },
];

/// The smallest tile that has room.
pub(crate) fn tile(head_dim: usize, value_dim: usize) -> Option<Tile> {
    FORWARD.into_iter().find(|tile| head_dim <= tile.keys && value_dim <= tile.values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_tile_is_taken() {
        let of = |head_dim, value_dim| tile(head_dim, value_dim).map(|tile| (tile.keys, tile.values));
        assert_eq!(of(8, 8), Some((32, 32)));
        assert_eq!(of(32, 40), Some((64, 64)));
        assert_eq!(of(72, 64), Some((96, 96)));
        assert_eq!(of(192, 128), Some((192, 128)));
        assert_eq!(of(136, 136), Some((192, 192)));
        assert_eq!(of(128, 200), Some((256, 256)));
        assert_eq!(of(264, 8), None);
        assert!(FORWARD.is_sorted_by_key(|tile| tile.keys + tile.values));
    }
}
