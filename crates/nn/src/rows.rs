//! Launch geometry and variants shared by kernels that walk a matrix row by row.

use crate::check::Rows;
use cudarc::driver::sys::CUdeviceptr;
use lookback_device::{DType, Error, Result, strided::Strided};
use lookback_kernels::{Kernel, find};

/// Threads of a block of most of these kernels.
pub(crate) const BLOCK: usize = 256;

/// A kernel in two variants: wide accesses, and one element at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variants {
    wide: &'static Kernel,
    single: &'static Kernel,
    /// Elements of a wide access.
    elements: u32,
}

impl Variants {
    /// Looks both up, with accesses of 16 bytes; `extra` are variant keys besides `dtype` and `vec`.
    pub fn find(op: &'static str, name: &str, dtype: DType, extra: &[(&str, &str)]) -> Result<Self> {
        Self::with_vec(op, name, dtype, extra, if dtype == DType::F32 { "4" } else { "8" })
    }

    /// With accesses of four elements, for kernels that keep much in registers.
    pub fn of_four(op: &'static str, name: &str, dtype: DType, extra: &[(&str, &str)]) -> Result<Self> {
        Self::with_vec(op, name, dtype, extra, "4")
    }

    fn with_vec(op: &'static str, name: &str, dtype: DType, extra: &[(&str, &str)], vec: &str) -> Result<Self> {
        let of = |vec: &str| {
            let mut request = vec![("dtype", dtype.name()), ("vec", vec)];
            request.extend_from_slice(extra);
            find(name, &request).ok_or_else(|| Error::NoKernel { op, request: format!("{name} {request:?}") })
        };
        Ok(Self { wide: of(vec)?, single: of("1")?, elements: if vec == "8" { 8 } else { 4 } })
    }

    /// The variant that fits anything, and its elements per access.
    pub fn single(&self) -> (&'static Kernel, u32) {
        (self.single, 1)
    }

    /// The variant that fits every matrix at its address, and its elements per access: those of `f32` beside 16-bit ones, too.
    pub fn pick(&self, matrices: &[(CUdeviceptr, &Rows)]) -> (&'static Kernel, u32) {
        let tensors: Vec<_> = matrices.iter().map(|(address, rows)| (*address, rows.strided())).collect();
        self.pick_strided(&tensors)
    }

    /// The same for tensors of more dimensions.
    pub fn pick_strided(&self, tensors: &[(CUdeviceptr, Strided)]) -> (&'static Kernel, u32) {
        let fits = |(address, tensor): &(CUdeviceptr, Strided)| {
            let elements = self.elements as usize;
            // The widest access has 16 bytes.
            let bytes = (u64::from(self.elements) * tensor.size).min(16);
            address.is_multiple_of(bytes) && tensor.steps_by(elements) && tensor.width.is_multiple_of(elements)
        };
        if tensors.iter().all(fits) { (self.wide, self.elements) } else { self.single() }
    }
}

/// The threads that share a row in kernels that reduce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Team {
    /// 32 threads; a block has eight rows.
    Warp,
    /// A block.
    Block,
}

impl Team {
    /// A warp while it needs at most four accesses of 16 bytes to a thread, or so.
    pub fn of(width: usize) -> Self {
        if width <= 1024 { Team::Warp } else { Team::Block }
    }

    /// Its name in kernel variants.
    pub fn name(self) -> &'static str {
        match self {
            Team::Warp => "warp",
            Team::Block => "block",
        }
    }

    /// Blocks for that many rows.
    pub fn blocks(self, rows: usize) -> u32 {
        match self {
            Team::Warp => rows.div_ceil(8) as u32,
            Team::Block => rows as u32,
        }
    }
}

/// log2 of the threads that share a row, or a group of its columns, when each makes up to `held` accesses: as few as that, but no fewer than make accesses
/// of a warp lie side by side.
pub(crate) fn lane_bits(width: usize, vec: u32, held: usize) -> u32 {
    let accesses = width.div_ceil(vec as usize);
    accesses.div_ceil(held).max(accesses.min(32)).min(BLOCK).next_power_of_two().trailing_zeros()
}

/// Rows of a slice, for kernels whose blocks walk a slice of all rows, or of a group of their columns, and leave what they add up: each team
/// has a row at least, and there is one wave of blocks.
pub(crate) fn slice_rows(rows: usize, groups: usize, teams: usize, sm_count: u32) -> usize {
    let wanted = (2 * sm_count.max(1) as usize).div_ceil(groups.max(1));
    rows.div_ceil(wanted).max(teams)
}

/// How a pointwise kernel covers a matrix; `kernels/tile/rows.ptx` has the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cover {
    /// 2^lane_bits threads share a row.
    pub lane_bits: u32,
    /// Elements from a thread's column to its next.
    pub column_step: u32,
    pub grid: [u32; 3],
}

/// Blocks for each multiprocessor beyond which a thread walks several columns instead.
const BLOCKS_PER_SM: usize = 16;
/// The driver's limit on the y extent of a grid.
const MAX_GRID_Y: usize = 65_535;

impl Cover {
    /// As few of the block's threads to a row as reach its end in one access; wider rows get more blocks, up to some for each
    /// of the multiprocessors.
    pub fn new(rows: usize, width: usize, vec: u32, sm_count: u32) -> Self {
        let whole = Self::whole(rows, width, vec, BLOCK);
        let wanted = (sm_count.max(1) as usize * BLOCKS_PER_SM).div_ceil(whole.grid[0].max(1) as usize);
        let columns = whole.grid[1].min(wanted as u32);
        Self {
            column_step: whole.column_step / whole.grid[1].max(1) * columns,
            grid: [whole.grid[0], columns, 1],
            ..whole
        }
    }

    /// One access for each thread, while the grid allows it.
    pub fn whole(rows: usize, width: usize, vec: u32, block: usize) -> Self {
        Self::narrow(rows, width, vec, block, block.trailing_zeros())
    }

    /// The same with at most 2^lane_bits threads to a row in a block.
    pub fn narrow(rows: usize, width: usize, vec: u32, block: usize, lane_bits: u32) -> Self {
        let accesses = width.div_ceil(vec as usize);
        let lane_bits = accesses.min(1 << lane_bits).next_power_of_two().trailing_zeros();
        let lanes = 1_usize << lane_bits;
        let columns = accesses.div_ceil(lanes).min(MAX_GRID_Y);
        Self {
            lane_bits,
            column_step: (columns * lanes) as u32 * vec,
            grid: [rows.div_ceil(block >> lane_bits) as u32, columns as u32, 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_reaches_every_element() {
        for rows in [1, 2, 7, 1000] {
            for width in [1, 2, 3, 31, 256, 257, 2048, 5000] {
                for (vec, sm_count) in [(1, 132), (4, 132), (8, 1)] {
                    let cover = Cover::new(rows, width, vec, sm_count);
                    let lanes = 1 << cover.lane_bits;
                    assert!(cover.grid[0] as usize * (BLOCK / lanes) >= rows);
                    assert!((cover.grid[0] as usize - 1) * (BLOCK / lanes) < rows, "no idle block");
                    assert_eq!(cover.column_step, cover.grid[1] * lanes as u32 * vec);
                    let blocks = cover.grid[0] * cover.grid[1];
                    assert!(cover.column_step as usize >= width || blocks >= sm_count * BLOCKS_PER_SM as u32);
                    assert!(Cover::whole(rows, width, vec, 128).column_step as usize >= width);
                }
            }
        }
    }

    #[test]
    fn a_team_reaches_the_end_of_its_row_or_is_a_block() {
        for width in [1, 2, 7, 64, 128, 1000, 8192, 100_000] {
            for (vec, held) in [(1, 4), (4, 4), (8, 3), (8, 4)] {
                let lanes = 1_usize << lane_bits(width, vec, held);
                let accesses = width.div_ceil(vec as usize);
                assert!(lanes * held >= accesses || lanes == BLOCK);
                assert!(lanes >= 32 || lanes >= accesses, "one access each below a warp");
                assert!(lanes < 2 * accesses, "no more than half the team is idle");
            }
        }
    }

    #[test]
    fn slices_cover_the_rows_in_one_wave() {
        for rows in [1, 31, 1000, 100_000] {
            for (groups, teams, sm_count) in [(1, 16, 132), (1, 1, 132), (64, 8, 132), (1, 1, 1)] {
                let length = slice_rows(rows, groups, teams, sm_count);
                let slices = rows.div_ceil(length);
                assert!(slices * length >= rows && (slices - 1) * length < rows);
                assert!(slices * groups < 2 * sm_count as usize + groups);
            }
        }
    }

    #[test]
    fn the_widest_row_stays_in_range() {
        let cover = Cover::whole(1, crate::check::MAX_EXTENT, 1, BLOCK);
        assert!(u64::from(cover.column_step) + (crate::check::MAX_EXTENT as u64) < 1 << 32);
        assert_eq!(cover.grid[1], 65_535);
    }
}
