//! Facts about a device that plans depend on.

use crate::{Result, driver};
use cudarc::driver::{CudaContext, sys};
use std::sync::Arc;

/// What a plan needs to know about the device it will run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name as the driver gives it.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub sm_count: u32,
    /// Dynamic shared memory that a block can ask for, in bytes.
    pub shared_per_block_optin: u32,
    /// CUDA version that the driver supports, times 1000: 12040 is 12.4.
    pub driver_version: u32,
    /// Whether this is lookback's emulator and not a GPU.
    pub emulated: bool,
}

impl DeviceInfo {
    /// Asks the driver.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver) if the driver refuses a query.
    pub fn of(context: &Arc<CudaContext>) -> Result<Self> {
        use sys::CUdevice_attribute as A;
        let attribute = |a| context.attribute(a).map(|v| v.max(0) as u32).map_err(|e| driver(e, "device attribute"));
        let name = context.name().map_err(|e| driver(e, "device name"))?;
        Ok(Self {
            emulated: name.starts_with(crate::emulator::DEVICE_NAME),
            name,
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            sm_count: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block_optin: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            driver_version: driver_version()?,
        })
    }
}

/// The CUDA version that the driver supports, times 1000.
pub(crate) fn driver_version() -> Result<u32> {
    let mut version = 0;
    // SAFETY: the pointer is valid for the write of one `int`.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    code.result().map_err(|e| driver(e, "driver version"))?;
    Ok(version.max(0) as u32)
}
