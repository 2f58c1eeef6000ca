//! Device addresses for the time of a launch.

use crate::Result;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits, sys::CUdeviceptr,
};
use lookback_device::driver;
use std::sync::Arc;

/// What must outlive the launch.
pub(crate) type Guard<'a> = Option<SyncOnDrop<'a>>;

/// Address of an input, 0 when it is absent.
pub(crate) fn input<'a, T>(slice: Option<&'a dyn DevicePtr<T>>, stream: &'a CudaStream) -> (CUdeviceptr, Guard<'a>) {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr(stream);
        (address, Some(guard))
    })
}

/// Address of an output, 0 when it is absent.
pub(crate) fn output<'a, 'b: 'a, T>(
    slice: Option<&'a mut (dyn DevicePtrMut<T> + 'b)>,
    stream: &'a CudaStream,
) -> (CUdeviceptr, Guard<'a>) {
    slice.map_or((0, None), |s| {
        let (address, guard) = s.device_ptr_mut(stream);
        (address, Some(guard))
    })
}

/// Memory for an output. An empty tensor gets one element, because the driver has no allocation of zero bytes.
pub(crate) fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: usize,
    what: &'static str,
) -> Result<CudaSlice<T>> {
    stream.alloc_zeros::<T>(len.max(1)).map_err(|e| driver(e, what))
}
