//! `cuDeviceGetAttribute`: an H200 as far as it is emulated. What is not emulated (managed memory, mapped host memory,
//! clusters, tensor maps, virtual memory management ..) says no, so that a program which asks first is told the truth.

use super::options;
use crate::launch::{MAX_BLOCK_SHARED, MAX_BLOCK_THREADS, SM_REGISTERS, SM_SHARED, WARP};

/// `CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK`
pub(super) const MAX_THREADS_PER_BLOCK: u32 = 1;

/// Largest block in each dimension.
pub(super) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];

/// Largest grid in each dimension.
pub(super) const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];

/// Shared memory of a block that has not asked for more.
pub(super) const DEFAULT_BLOCK_SHARED: u32 = 48 * 1024;

/// Shared memory that every block costs besides its own.
pub(super) const RESERVED_SHARED: u32 = 1024;

/// Threads that one multiprocessor holds.
pub(super) const SM_THREADS: u32 = 2048;

/// The highest number that the header knows.
const LAST: u32 = 161;

/// The value of an attribute, or nothing for a number that is none.
pub(super) fn value(attribute: u32) -> Option<i32> {
    if !(1..=LAST).contains(&attribute) {
        return None;
    }
    Some(match attribute {
        MAX_THREADS_PER_BLOCK => MAX_BLOCK_THREADS as i32,
        2..=4 => MAX_BLOCK[attribute as usize - 2] as i32,
        5..=7 => MAX_GRID[attribute as usize - 5] as i32,
        // MAX_SHARED_MEMORY_PER_BLOCK
        8 => DEFAULT_BLOCK_SHARED as i32,
        // TOTAL_CONSTANT_MEMORY
        9 => 65_536,
        // WARP_SIZE
        10 => WARP as i32,
        // MAX_PITCH
        11 => i32::MAX,
        // MAX_REGISTERS_PER_BLOCK
        12 => SM_REGISTERS as i32,
        // CLOCK_RATE in kHz
        13 => 1_980_000,
        // TEXTURE_ALIGNMENT, SURFACE_ALIGNMENT
        14 | 30 => 512,
        // MULTIPROCESSOR_COUNT
        16 => i32::try_from(options::current().launch.sm_count).unwrap_or(i32::MAX),
        // CONCURRENT_KERNELS: launches of two host threads run side by side
        31 => 1,
        // MEMORY_CLOCK_RATE in kHz, GLOBAL_MEMORY_BUS_WIDTH in bits, L2_CACHE_SIZE: those of an H200
        36 => 3_201_000,
        37 => 6144,
        38 => 50 * 1024 * 1024,
        // MAX_THREADS_PER_MULTIPROCESSOR
        39 => SM_THREADS as i32,
        // UNIFIED_ADDRESSING: `cuMemcpy` tells device pointers from host pointers
        41 => 1,
        // TEXTURE_PITCH_ALIGNMENT
        51 => 32,
        // COMPUTE_CAPABILITY
        75 => 9,
        76 => 0,
        // STREAM_PRIORITIES_SUPPORTED, GLOBAL_L1_CACHE_SUPPORTED, LOCAL_L1_CACHE_SUPPORTED
        78..=80 => 1,
        81 => SM_SHARED as i32,
        82 => SM_REGISTERS as i32,
        // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        87 => 2,
        // COOPERATIVE_LAUNCH
        95 => 1,
        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        97 => MAX_BLOCK_SHARED as i32,
        // HOST_REGISTER_SUPPORTED
        99 => 1,
        // MAX_BLOCKS_PER_MULTIPROCESSOR
        106 => 32,
        111 => RESERVED_SHARED as i32,
        // MEMORY_POOLS_SUPPORTED
        115 => 1,
        // NUMA_ID, HOST_NUMA_ID: none
        131 | 134 => -1,
        _ => 0,
    })
}
