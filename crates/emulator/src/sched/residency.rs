//! How many CTAs are resident at once.

use crate::decode::Program;
use crate::launch::{MAX_BLOCK_SHARED, MAX_BLOCK_THREADS, Options, SM_REGISTERS, SM_SHARED, WARP};

/// Threads that a multiprocessor holds.
const SM_THREADS: u32 = 2048;

/// CTAs that a multiprocessor holds at most.
const SM_CTAS: u32 = 32;

/// Shared memory that the system takes from each CTA.
const RESERVED_SHARED: u32 = 1024;

/// CTAs resident at once whatever is asked for: each takes its registers and shared memory from the host.
const MOST: u32 = 1 << 20;

/// CTAs of that shape on one multiprocessor; 0 when not one fits.
pub(crate) fn occupancy(program: &Program, threads: u32, dynamic_shared: u32) -> u32 {
    let shared = program.shared_bytes(dynamic_shared);
    if threads == 0 || threads > MAX_BLOCK_THREADS || shared > MAX_BLOCK_SHARED {
        return 0;
    }
    let threads = threads.next_multiple_of(WARP);
    // Registers come in units of 256 per warp.
    let per_warp = (program.registers * WARP).next_multiple_of(256);
    let by_registers = SM_REGISTERS / (per_warp * (threads / WARP));
    let by_shared = SM_SHARED / (shared + RESERVED_SHARED);
    // A compiler would spill rather than miss what the kernel asks for.
    let by_registers = by_registers.max(program.min_ctas.unwrap_or(1));
    SM_CTAS.min(SM_THREADS / threads).min(by_shared).min(by_registers)
}

/// CTAs resident at once in a launch.
pub(super) fn limit(program: &Program, threads: u32, dynamic_shared: u32, options: &Options) -> u32 {
    match options.residency {
        Some(limit) => limit.clamp(1, MOST),
        None => occupancy(program, threads, dynamic_shared).saturating_mul(options.sm_count).max(1),
    }
}
