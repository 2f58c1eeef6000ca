//! Device addresses for the time of a launch.

use crate::{Param, Result};
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits, sys::CUdeviceptr,
};
use lookback_device::{Element, driver};
use std::sync::Arc;

/// An address and the guard that must outlive the launch; address 0 and no guard when the tensor is absent.
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

/// Address of a parameter.
pub(crate) fn param<'a, T: Element>(param: Param<'a, T>, stream: &'a CudaStream) -> Held<'a> {
    match param {
        Param::None => (0, None),
        Param::Same(slice) => input(Some(slice), stream),
        Param::F32(slice) => input(Some(slice), stream),
    }
}

/// Memory for an output that the next launch writes completely. An empty tensor gets one element, because the driver has no
/// allocation of zero bytes.
pub(crate) fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: usize,
    what: &'static str,
) -> Result<CudaSlice<T>> {
    stream.alloc_zeros::<T>(len.max(1)).map_err(|e| driver(e, what))
}
