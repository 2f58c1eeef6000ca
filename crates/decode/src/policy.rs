//! Tuning as data: which kernel runs a shape, and how finely its work is cut.

use crate::{CacheType, DType, DeviceInfo, Error, Options, Result, Shape, strided};
use lookback_kernels::{Kernel, find};

/// Tiles of keys that a block should have at least: below, what blocks hand each other costs more than it saves.
const MIN_TILES: u32 = 2;
/// Blocks of a launch at most: each has two slots of partial states.
const MAX_SLOTS: usize = 1 << 20;
/// Tiles of a head that kernels have.
const DIMS: [usize; 3] = [64, 128, 256];

/// How a plan is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Channels of keys and values that the kernel has room for.
    pub dim: usize,
    /// Query rows, tokens times heads of a group, of a tile.
    pub rows: usize,
    /// Blocks of a launch.
    pub slots: u32,
    /// Tiles of 64 keys that a block has at least.
    pub min_tiles: u32,
}

impl Policy {
    /// The policy of a checked shape, and its kernel.
    ///
    /// The narrowest kernel that has room; tiles of 16 rows as long as one holds all rows of a request, and of 32 where the kernel has them,
    /// which halves how often keys are read; as many blocks as the device holds at once.
    ///
    /// # Errors
    /// [`Error::NoKernel`] ← no variant fits; [`Error::Range`] ← tuning that no launch can have.
    pub(crate) fn of(
        op: &'static str,
        shape: &Shape,
        options: &Options,
        device: &DeviceInfo,
    ) -> Result<(Self, &'static Kernel)> {
        let widest = shape.head_dim.max(shape.value_dim);
        let no_kernel = |what: String| Error::NoKernel { op, request: what };
        if options.dtype == DType::F32 {
            return Err(no_kernel("queries of f32: tensor cores take f16 and bf16".into()));
        }
        let fits = DIMS.into_iter().find(|dim| *dim >= widest);
        let dim = fits.ok_or_else(|| no_kernel(format!("{widest} channels")))?;
        let rows = match options.tuning.rows {
            Some(rows) => rows as usize,
            None if shape.query_len.saturating_mul(shape.group()) > 16 && dim < 256 => 32,
            None => 16,
        };
        let cache = if options.cache == CacheType::Same { "same" } else { "e4m3" };
        let variant =
            [("dtype", options.dtype.name()), ("cache", cache), ("dim", &dim.to_string()), ("rows", &rows.to_string())];
        let kernel = find("lean_decode", &variant).ok_or_else(|| no_kernel(format!("lean_decode {variant:?}")))?;
        let resident = kernel.min_ctas.saturating_mul(device.sm_count).max(1);
        let slots = options.tuning.slots.unwrap_or(resident);
        strided::range(op, "slots", slots as usize, 1, MAX_SLOTS)?;
        let min_tiles = options.tuning.min_tiles.unwrap_or(MIN_TILES);
        strided::range(op, "min_tiles", min_tiles as usize, 1, strided::MAX_EXTENT)?;
        Ok((Self { dim, rows, slots, min_tiles }, kernel))
    }
}
