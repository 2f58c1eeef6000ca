//! The caller's slices as device addresses for the time of a launch, and new memory for outputs.
//!
//! For the crates of operations.

use crate::{Result, driver};
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits, result,
    sys::{self, CUdeviceptr},
};
use std::sync::Arc;

/// What must outlive the launch.
pub type Guard<'a> = Option<SyncOnDrop<'a>>;

/// An address and the guard that must outlive the launch; 0 and no guard when the tensor is absent.
pub type Held<'a> = (CUdeviceptr, Guard<'a>);

/// Address of an input.
pub fn input<'a, T>(slice: Option<&'a dyn DevicePtr<T>>, stream: &'a CudaStream) -> Held<'a> {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr(stream);
        (address, Some(guard))
    })
}

/// Address of an output.
pub fn output<'a, 'b: 'a, T>(slice: Option<&'a mut (dyn DevicePtrMut<T> + 'b)>, stream: &'a CudaStream) -> Held<'a> {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr_mut(stream);
        (address, Some(guard))
    })
}

/// Zeroed memory for `len` elements of an output; `what` names it in the error. An empty tensor gets one element, because the driver
/// has no allocation of zero bytes.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) and what else the driver says.
pub fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: u64,
    what: &'static str,
) -> Result<CudaSlice<T>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX).max(1);
    stream.alloc_zeros::<T>(len).map_err(|e| driver(e, what))
}

/// Copies bytes of the host to device memory, behind what is queued on the stream. Returns when `bytes` may be changed.
///
/// # Errors
/// Those of the driver.
///
/// # Safety
/// `bytes.len()` bytes from `address` on are memory of the stream's context, and nothing else uses them until the copy has ended.
pub unsafe fn upload(stream: &CudaStream, address: CUdeviceptr, bytes: &[u8]) -> Result<()> {
    stream.context().bind_to_thread().map_err(|e| driver(e, "upload"))?;
    // SAFETY: the caller vouches for the device memory; the driver stages pageable host memory before it returns.
    unsafe { result::memcpy_htod_async(address, bytes, stream.cu_stream()) }.map_err(|e| driver(e, "upload"))
}

/// Copies device memory to bytes of the host, behind what is queued on the stream. Returns when they are there.
///
/// # Errors
/// Those of the driver.
///
/// # Safety
/// `bytes.len()` bytes from `address` on are memory of the stream's context, and nothing else writes them until the copy has ended.
pub unsafe fn download(stream: &CudaStream, address: CUdeviceptr, bytes: &mut [u8]) -> Result<()> {
    stream.context().bind_to_thread().map_err(|e| driver(e, "download"))?;
    // SAFETY: the caller vouches for the device memory; `bytes` outlives the wait below.
    unsafe { result::memcpy_dtoh_async(bytes, address, stream.cu_stream()) }.map_err(|e| driver(e, "download"))?;
    stream.synchronize().map_err(|e| driver(e, "download"))
}

/// Sets 32-bit words of device memory, behind what is queued on the stream.
///
/// # Errors
/// Those of the driver.
///
/// # Safety
/// `words` 32-bit words from `address` on are memory of the stream's context, and nothing else uses them until this has ended.
pub unsafe fn fill(stream: &CudaStream, address: CUdeviceptr, word: u32, words: usize) -> Result<()> {
    stream.context().bind_to_thread().map_err(|e| driver(e, "fill"))?;
    // SAFETY: the caller vouches for the memory; the stream is live.
    let code = unsafe { sys::cuMemsetD32Async(address, word, words, stream.cu_stream()) };
    code.result().map_err(|e| driver(e, "fill"))
}

/// Copies device memory to device memory, behind what is queued on the stream.
///
/// # Errors
/// Those of the driver.
///
/// # Safety
/// `bytes` bytes from either address on are memory of the stream's context and do not overlap; nothing else writes them or reads `to`
/// until this has ended.
pub unsafe fn copy(stream: &CudaStream, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
    stream.context().bind_to_thread().map_err(|e| driver(e, "copy"))?;
    // SAFETY: the caller vouches for the memory; the stream is live.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.map_err(|e| driver(e, "copy"))
}
