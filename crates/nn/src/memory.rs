//! Device addresses for the time of a launch: [`lookback_device::memory`], and parameters of either type.

use crate::Param;
use cudarc::driver::CudaStream;
use lookback_device::Element;
pub(crate) use lookback_device::memory::{Held, allocate, input, output};

/// Address of a parameter.
pub(crate) fn param<'a, T: Element>(param: Param<'a, T>, stream: &'a CudaStream) -> Held<'a> {
    match param {
        Param::None => (0, None),
        Param::Same(slice) => input(Some(slice), stream),
        Param::F32(slice) => input(Some(slice), stream),
    }
}
