//! What the device does at best: the same process measures it just before the cases that are compared with it.

mod text;

use crate::{Case, Facts, Launch, Memory, Scale};
use lookback_device::{
    DeviceInfo, Result,
    cudarc::{
        driver::{CudaFunction, CudaStream, LaunchConfig, PushKernelArg},
        nvrtc::Ptx,
    },
    driver,
};
use std::sync::Arc;

/// Threads of a block.
const BLOCK: u32 = 256;

/// A copy, a reading, and products of registers by the instruction that the kernels here use, on Hopper not its fastest. Named
/// `copy`, `read` and `products`.
pub fn ceilings(info: &DeviceInfo, scale: Scale) -> impl Iterator<Item = Case> {
    let (bytes, rounds) = match scale {
        Scale::Full => (2 << 30, 1 << 14),
        Scale::Small => (1 << 16, 4),
    };
    [copy(bytes), read(info, bytes), products(info, rounds)].into_iter()
}

fn facts(operation: &'static str, dtype: &'static str, bytes: usize, flops: u64) -> Facts {
    let facts = Facts::new("ceilings", operation, "", dtype, &[("bytes", bytes)]);
    Facts { name: operation.into(), bytes: bytes as u64, flops, ..facts }
}

/// `bytes` to another place, by the driver.
fn copy(bytes: usize) -> Case {
    let facts = facts("copy", "u8", 2 * bytes, 0);
    Case::planned(
        facts,
        Ok(()),
        move |()| [2 * bytes as u64, 0],
        move |(), memory: &mut Memory| -> Result<Launch> {
            let from = memory.normal::<f32>("from", &[bytes / 4])?;
            let mut to = memory.output::<f32>("to", &[bytes / 4])?;
            let stream = memory.stream();
            Ok(Box::new(move |_| stream.memcpy_dtod(&from, &mut to).map_err(|e| driver(e, "copy"))))
        },
    )
}

/// `bytes` from memory into registers and no further.
fn read(info: &DeviceInfo, bytes: usize) -> Case {
    let blocks = 8 * info.sm_count;
    let threads = blocks * BLOCK;
    let facts = facts("read", "u8", bytes, 0);
    Case::planned(
        facts,
        Ok(()),
        move |()| [bytes as u64, 0],
        move |(), memory: &mut Memory| -> Result<Launch> {
            let from = memory.normal::<f32>("from", &[bytes / 4])?;
            let mut sums = memory.output::<f32>("sums", &[threads as usize])?;
            let stream = memory.stream();
            let function = load(&stream, &text::read(), "read")?;
            let pieces = (bytes / text::PIECE) as u32;
            Ok(Box::new(move |_| {
                let mut launch = stream.launch_builder(&function);
                launch.arg(&from).arg(&mut sums).arg(&pieces);
                // SAFETY: `from` has `pieces` pieces and `sums` an element for each thread; the kernel touches nothing else.
                unsafe { launch.launch(config(blocks)) }.map_err(|e| driver(e, "read")).map(drop)
            }))
        },
    )
}

/// `mma.sync` of bf16 with sums in f32; two blocks of eight warps for each multiprocessor.
fn products(info: &DeviceInfo, rounds: u32) -> Case {
    let blocks = 2 * info.sm_count;
    let threads = blocks * BLOCK;
    let flops = u64::from(threads / 32) * u64::from(rounds) * text::ROUND_FLOPS;
    let bytes = 4 * threads as usize;
    let facts = facts("products", "bf16", bytes, flops);
    Case::planned(
        facts,
        Ok(()),
        move |()| [bytes as u64, flops],
        move |(), memory: &mut Memory| -> Result<Launch> {
            let mut sums = memory.output::<f32>("sums", &[threads as usize])?;
            let stream = memory.stream();
            let function = load(&stream, &text::products(), "products")?;
            Ok(Box::new(move |_| {
                let mut launch = stream.launch_builder(&function);
                launch.arg(&mut sums).arg(&rounds);
                // SAFETY: `sums` has an element for each thread, and the kernel writes that and nothing else.
                unsafe { launch.launch(config(blocks)) }.map_err(|e| driver(e, "products")).map(drop)
            }))
        },
    )
}

/// Megahertz of a multiprocessor just now, from its own counters of cycles and of nanoseconds over a tenth of a millisecond or `rounds`
/// of a loop; `None` where the counters stand still.
///
/// # Errors
/// Those of the driver.
pub fn clock_mhz(stream: &Arc<CudaStream>, rounds: u32) -> Result<Option<f64>> {
    let failed = |e| driver(e, "clock");
    let function = load(stream, &text::clock(), "clock")?;
    let mut passed = stream.alloc_zeros::<i64>(2).map_err(failed)?;
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut passed).arg(&rounds);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: `passed` has the two numbers that the kernel writes, and it touches nothing else.
    unsafe { launch.launch(config) }.map_err(failed)?;
    let passed = stream.clone_dtoh(&passed).map_err(failed)?;
    Ok(match passed[..] {
        [cycles, nanoseconds] if cycles > 0 && nanoseconds > 0 => Some(cycles as f64 / nanoseconds as f64 * 1e3),
        _ => None,
    })
}

fn config(blocks: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 }
}

fn load(stream: &Arc<CudaStream>, text: &str, entry: &'static str) -> Result<CudaFunction> {
    let module = stream.context().load_module(Ptx::from_src(text)).map_err(|e| driver(e, entry))?;
    module.load_function(entry).map_err(|e| driver(e, entry))
}
