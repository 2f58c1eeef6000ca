//! How many blocks fit on a multiprocessor of an H100 or H200.

/// Registers of each of the four parts of a multiprocessor.
const REGISTERS: u32 = 16384;
/// Shared memory of a multiprocessor; a block costs 1 KiB more than it uses.
const SHARED: u32 = 228 * 1024;
const THREADS: u32 = 2048;
const BLOCKS: u32 = 32;

/// Blocks of `threads` threads, each of `registers` registers, that use `shared` bytes a block.
pub fn blocks(registers: u32, threads: u32, shared: u32) -> u32 {
    let warps = threads.div_ceil(32).max(1);
    // Registers are given to a warp in units of 256, and a warp lies in one part.
    let of_warp = (registers * 32).next_multiple_of(256).max(256);
    let by_registers = 4 * (REGISTERS / of_warp) / warps;
    let by_shared = SHARED / (shared + 1024);
    by_registers.min(by_shared).min(THREADS / (32 * warps)).min(BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_limits_in_turn() {
        assert_eq!(blocks(32, 256, 0), 8, "threads");
        assert_eq!(blocks(16, 32, 0), 32, "blocks");
        assert_eq!(blocks(168, 384, 0), 1, "registers");
        assert_eq!(blocks(255, 256, 0), 1, "registers, the most of a thread");
        assert_eq!(blocks(128, 128, 100 * 1024), 2, "shared memory");
        // 65 registers are 72: six warps in each part, not seven.
        assert_eq!(blocks(65, 128, 0), 7);
    }
}
