//! The caller's slices as device addresses for the time of a launch, and new memory for outputs.
//!
//! For the crates of operations.

use crate::{Result, driver};
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits, sys::CUdeviceptr,
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
