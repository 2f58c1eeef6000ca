//! Launching.

use crate::{Error, Result, driver, function};
use bytemuck::Pod;
use cudarc::driver::{CudaStream, result, sys::CUresult};
use lookback_kernels::Kernel;
use std::ffi::c_void;

/// Launches a kernel of the registry with its parameter structure. A grid with a zero extent launches nothing.
///
/// # Errors
/// Those of [`function`], and [`Error::Launch`] or [`Error::DeviceLost`] when the driver refuses the launch.
///
/// # Safety
/// * Every pointer in `args` is valid on the stream's device for what the kernel's contract reads and writes, and stays so
///   until the launch has ended.
/// * The shapes, strides and limits of the contract hold.
/// * Nothing else writes that memory meanwhile, and nothing reads what the kernel writes.
pub unsafe fn launch<A: Pod>(stream: &CudaStream, kernel: &'static Kernel, grid: [u32; 3], args: &A) -> Result<()> {
    if size_of::<A>() != kernel.args_bytes {
        return Err(Error::Launch { kernel: kernel.entry, code: CUresult::CUDA_ERROR_INVALID_VALUE });
    }
    if grid.contains(&0) {
        return Ok(());
    }
    let function = function(stream.context(), kernel)?;
    stream.context().bind_to_thread().map_err(|e| driver(e, "bind context"))?;
    let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
    let [x, y, z] = kernel.block;
    // SAFETY: the kernel takes one parameter of `args_bytes` bytes, which `args` has; the driver copies it before it returns.
    // The rest is the caller's promise.
    let launched = unsafe {
        result::launch_kernel(
            function.cu_function(),
            (grid[0], grid[1], grid[2]),
            (x, y, z),
            kernel.dynamic_smem,
            stream.cu_stream(),
            &mut parameters,
        )
    };
    launched.map_err(|e| match driver(e, kernel.entry) {
        Error::Driver { code, .. } => Error::Launch { kernel: kernel.entry, code },
        other => other,
    })
}
