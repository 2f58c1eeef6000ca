use crate::support::{code, context, kernel};
use cudarc::driver::LaunchConfig;
use cudarc::driver::sys::{CUfunction_attribute as Attribute, CUresult};

#[test]
fn threads_and_shared_memory_limit_the_blocks() {
    let context = context();
    let empty = kernel(&context, "empty");
    let blocks = |threads, shared| empty.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None);
    // 2048 threads and 32 blocks is what a multiprocessor holds.
    assert_eq!(blocks(1024, 0).unwrap(), 2);
    assert_eq!(blocks(256, 0).unwrap(), 8);
    assert_eq!(blocks(32, 0).unwrap(), 32);
    // 228 KiB shared, of which each block costs 1 KiB besides its own.
    assert_eq!(blocks(32, 37 * 1024).unwrap(), 6);
    assert_eq!(blocks(32, 48 * 1024).unwrap(), 4);
    assert_eq!(blocks(32, 100 * 1024).unwrap(), 0, "not without asking");
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    empty.set_attribute(attribute, 227 * 1024).unwrap();
    assert_eq!(blocks(32, 100 * 1024).unwrap(), 2);
    assert_eq!(blocks(32, 227 * 1024).unwrap(), 1);
    assert_eq!(code(blocks(0, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);
}

extern "C" fn a_kilobyte_per_warp(threads: i32) -> usize {
    threads as usize / 32 * 1024
}

extern "C" fn nothing(_: i32) -> usize {
    0
}

#[test]
fn the_best_block_and_the_room_left() {
    let context = context();
    let stream = context.default_stream();
    let (empty, scale) = (kernel(&context, "empty"), kernel(&context, "scale"));
    assert_eq!(empty.occupancy_max_potential_block_size(nothing, 0, 0, None).unwrap(), (2 * 132, 1024));
    assert_eq!(scale.occupancy_max_potential_block_size(nothing, 0, 0, None).unwrap(), (8 * 132, 256));
    assert_eq!(empty.occupancy_max_potential_block_size(nothing, 0, 128, None).unwrap(), (16 * 132, 128));
    let (grid, block) = empty.occupancy_max_potential_block_size(a_kilobyte_per_warp, 0, 0, None).unwrap();
    assert_eq!((grid, block), (2 * 132, 1024));
    assert_eq!(empty.occupancy_available_dynamic_smem_per_block(2, 256).unwrap(), 113 * 1024);
    assert_eq!(empty.occupancy_available_dynamic_smem_per_block(1, 256).unwrap(), 227 * 1024);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (512, 1, 1), shared_mem_bytes: 0 };
    assert_eq!(empty.occupancy_max_active_clusters(config, &stream).unwrap(), 4 * 132);
    assert_eq!(empty.occupancy_max_potential_cluster_size(config, &stream).unwrap(), 1);
}
