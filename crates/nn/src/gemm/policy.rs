//! Tiles by type and size, as data.

use super::{Right, Shape};
use crate::check;
use lookback_device::{DType, DeviceInfo};

/// Part of `C` that one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 128 x 128; 128 x 64 for `f32`.
    Large,
    /// 64 x 64.
    Small,
    /// Up to 16 x 16, for up to 16 rows of `A` and `B` as `[n, k]`: a token of decoding. `B` goes straight to the tensor cores.
    Skinny,
}

impl Tile {
    pub(super) fn name(self) -> &'static str {
        match self {
            Tile::Large => "large",
            Tile::Small => "small",
            Tile::Skinny => "skinny",
        }
    }

    /// Rows and columns.
    pub fn extents(self, dtype: DType) -> (usize, usize) {
        match (self, dtype) {
            (Tile::Large, DType::F32) => (128, 64),
            (Tile::Large, _) => (128, 128),
            (Tile::Small, _) => (64, 64),
            (Tile::Skinny, _) => (16, 16),
        }
    }
}

/// How a product is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Part of `C` for a block.
    pub tile: Tile,
}

/// Row tiles that neighbouring blocks walk down before the next column of tiles, so that `B` stays in the L2 cache.
const GROUP: usize = 8;
/// The driver's limit on the y and z extents of a grid.
const MAX_GRID: usize = 65_535;

impl Policy {
    /// Large tiles once they give every multiprocessor a block: they read shared memory half as often for a product. Few rows
    /// leave tiles empty and the product limited by reading `B`: that is what skinny ones are for.
    pub fn of(dtype: DType, shape: &Shape, device: &DeviceInfo) -> Self {
        if Self::allows_skinny(dtype, shape) {
            return Self { tile: Tile::Skinny };
        }
        let (rows, columns) = Tile::Large.extents(dtype);
        let blocks = shape.m.div_ceil(rows).saturating_mul(shape.n.div_ceil(columns));
        let enough = blocks >= device.sm_count as usize;
        Self { tile: if enough && shape.m > 64 { Tile::Large } else { Tile::Small } }
    }

    /// Whether the kernel for few rows can compute this: it reads whole chunks of 16 bytes along `k`.
    pub(super) fn allows_skinny(dtype: DType, shape: &Shape) -> bool {
        let (rows, _) = Tile::Skinny.extents(dtype);
        shape.m <= rows && shape.right == Right::Transposed && (shape.k * dtype.size()).is_multiple_of(16)
    }

    /// Greatest `m` and `n` whose tiles fit a grid. The kernel for odd strides has small tiles.
    pub(super) fn max_extents(&self, dtype: DType) -> (usize, usize) {
        let (rows, columns) = Tile::Small.extents(dtype);
        ((MAX_GRID * GROUP * rows).min(check::MAX_EXTENT), (MAX_GRID * columns).min(check::MAX_EXTENT))
    }

    /// x: row tiles of a group, y: column tiles, z: groups. x runs fastest.
    pub(super) fn grid(&self, dtype: DType, tile: Tile, m: usize, n: usize) -> [u32; 3] {
        let (rows, columns) = tile.extents(dtype);
        if tile == Tile::Skinny {
            return [n.div_ceil(columns) as u32, 1, 1];
        }
        let row_tiles = m.div_ceil(rows);
        [row_tiles.min(GROUP) as u32, n.div_ceil(columns) as u32, row_tiles.div_ceil(GROUP) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_every_tile_once() {
        let policy = Policy { tile: Tile::Small };
        for m in [1, 63, 64, 65, 512, 513, 5000] {
            for n in [1, 64, 65, 300] {
                let [x, y, z] = policy.grid(DType::Bf16, Tile::Small, m, n);
                assert!(x as usize * z as usize >= m.div_ceil(64));
                assert!(x as usize <= GROUP && (z as usize - 1) * GROUP < m.div_ceil(64));
                assert_eq!(y as usize, n.div_ceil(64));
            }
        }
    }

    #[test]
    fn small_problems_get_small_tiles() {
        let device = DeviceInfo {
            name: String::new(),
            compute_capability: (9, 0),
            sm_count: 132,
            shared_per_block_optin: 232_448,
            driver_version: 13_000,
            emulated: true,
        };
        let of = |m, n| Policy::of(DType::Bf16, &Shape::linear(m, n, 512), &device).tile;
        assert_eq!(of(1, 100_000), Tile::Skinny);
        assert_eq!(of(16, 512), Tile::Skinny);
        assert_eq!(of(17, 512), Tile::Small);
        let tile = |shape: Shape| Policy::of(DType::Bf16, &shape, &device).tile;
        assert_eq!(tile(Shape::plain(1, 512, 512)), Tile::Small);
        assert_eq!(tile(Shape::linear(1, 512, 516)), Tile::Small);
        assert_eq!(of(512, 512), Tile::Small);
        assert_eq!(of(4096, 4096), Tile::Large);
    }
}
