//! How many blocks a multiprocessor holds, by threads, shared memory and registers.

use super::api::api;
use super::args::{In, Out};
use super::attributes::RESERVED_SHARED;
use super::errors::{CUresult, Outcome};
use super::function::{self, Function};
use super::handles::Handle;
use super::launch::CUlaunchConfig;
use super::options;
use crate::launch::{self, MAX_BLOCK_SHARED, MAX_BLOCK_THREADS, SM_SHARED, WARP};

/// Shared memory is given out in these units.
const SHARED_UNIT: u32 = 128;

/// `CUoccupancyB2DSize`
type SharedOfBlock = unsafe extern "C" fn(block_threads: i32) -> usize;

/// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE` is the only flag, and caching in L1 changes nothing here.
const FLAGS: u32 = 1;

/// Blocks of that shape on one multiprocessor; 0 for a shape that could not be launched.
fn blocks(function: &Function, threads: u32, dynamic: usize) -> u32 {
    match u32::try_from(dynamic) {
        Ok(dynamic) if dynamic <= function.max_dynamic() && threads <= function.max_threads() => {
            launch::occupancy(&function.program, threads, dynamic)
        }
        _ => 0,
    }
}

fn multiprocessors() -> u32 {
    options::current().launch.sm_count
}

fn to_int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn max_active_blocks(out: Out<i32>, function: Handle, threads: i32, dynamic: usize, flags: u32) -> Outcome {
    out.wanted()?;
    let function = function::find(function)?;
    let threads = u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(CUresult::INVALID_VALUE)?;
    if flags & !FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    out.set(to_int(blocks(&function, threads, dynamic)))
}

/// The largest block that fills a multiprocessor best, and the grid that fills the device with it.
fn best_block(
    grid: Out<i32>,
    block: Out<i32>,
    function: Handle,
    shared: Option<SharedOfBlock>,
    dynamic: usize,
    limit: i32,
    flags: u32,
) -> Outcome {
    grid.wanted()?;
    block.wanted()?;
    let function = function::find(function)?;
    let limit = u32::try_from(limit).map_err(|_| CUresult::INVALID_VALUE)?;
    if flags & !FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let most = if limit == 0 { MAX_BLOCK_THREADS } else { limit }.min(function.max_threads());
    let sizes = (1..=most.div_ceil(WARP)).rev().map(|warps| (warps * WARP).min(most));
    let mut best = (0, 0, 0);
    for threads in sizes {
        let dynamic = match shared {
            // SAFETY: the program gave this function to be asked for the shared memory of a block size.
            Some(shared) => unsafe { shared(to_int(threads)) },
            None => dynamic,
        };
        let count = blocks(&function, threads, dynamic);
        if count * threads > best.0 {
            best = (count * threads, threads, count);
        }
    }
    let (_, threads, count) = best;
    block.set(to_int(threads))?;
    grid.set(to_int(count.saturating_mul(multiprocessors())))
}

api! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: Out<i32>, function: Handle, threads: i32, dynamic: usize) {
        max_active_blocks(out, function, threads, dynamic, 0)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: Out<i32>,
        function: Handle,
        threads: i32,
        dynamic: usize,
        flags: u32,
    ) {
        max_active_blocks(out, function, threads, dynamic, flags)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>,
        block: Out<i32>,
        function: Handle,
        shared: Option<SharedOfBlock>,
        dynamic: usize,
        limit: i32,
    ) {
        best_block(grid, block, function, shared, dynamic, limit, 0)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>,
        block: Out<i32>,
        function: Handle,
        shared: Option<SharedOfBlock>,
        dynamic: usize,
        limit: i32,
        flags: u32,
    ) {
        best_block(grid, block, function, shared, dynamic, limit, flags)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(out: Out<usize>, function: Handle, count: i32, threads: i32) {
        out.wanted()?;
        let function = function::find(function)?;
        let positive = |number: i32| u32::try_from(number).ok().filter(|number| *number > 0);
        let (count, threads) = positive(count).zip(positive(threads)).ok_or(CUresult::INVALID_VALUE)?;
        if blocks(&function, threads, 0) < count {
            return Err(CUresult::INVALID_VALUE);
        }
        let share = (SM_SHARED / count).saturating_sub(RESERVED_SHARED) / SHARED_UNIT * SHARED_UNIT;
        let own = function.program.static_shared_bytes();
        out.set(share.min(MAX_BLOCK_SHARED).saturating_sub(own) as usize)
    }

    fn cuOccupancyMaxActiveClusters(out: Out<i32>, function: Handle, config: In<CUlaunchConfig>) {
        out.wanted()?;
        let function = function::find(function)?;
        // Without clusters every CTA is one of its own.
        let shape = config.get()?.shape()?;
        let threads = shape.block.iter().try_fold(1_u32, |product, extent| product.checked_mul(*extent));
        let threads = threads.filter(|threads| *threads > 0).ok_or(CUresult::INVALID_VALUE)?;
        let count = blocks(&function, threads, shape.dynamic_shared as usize);
        out.set(to_int(count.saturating_mul(multiprocessors())))
    }

    fn cuOccupancyMaxPotentialClusterSize(out: Out<i32>, function: Handle, config: In<CUlaunchConfig>) {
        out.wanted()?;
        function::find(function)?;
        config.get()?.shape()?;
        out.set(1)
    }
}
