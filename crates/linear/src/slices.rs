//! The caller's slices as addresses for the time of a launch.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop, sys::CUdeviceptr};

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
