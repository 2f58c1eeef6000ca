//! The caller's slices as addresses for the time of a launch.

use crate::Result;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits, sys::CUdeviceptr,
};
use lookback_device::driver;
use std::sync::Arc;

/// An address and the guard that must outlive the launch; 0 and no guard when the tensor is absent.
pub(crate) type Held<'a> = (CUdeviceptr, Option<SyncOnDrop<'a>>);

/// Address of an optional input.
pub(crate) fn input<'a, T>(slice: Option<&'a dyn DevicePtr<T>>, stream: &'a CudaStream) -> Held<'a> {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr(stream);
        (address, Some(guard))
    })
}

/// Address of an optional output.
pub(crate) fn output<'a, 'b: 'a, T>(
    slice: Option<&'a mut (dyn DevicePtrMut<T> + 'b)>,
    stream: &'a CudaStream,
) -> Held<'a> {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr_mut(stream);
        (address, Some(guard))
    })
}

/// Memory for an output. An empty tensor gets one element, because the driver has no allocation of zero bytes.
pub(crate) fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: u64,
    what: &'static str,
) -> Result<CudaSlice<T>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX).max(1);
    stream.alloc_zeros::<T>(len).map_err(|e| driver(e, what))
}
