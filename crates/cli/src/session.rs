//! An open device.

use crate::{CliError, Result};
use lookback_device::{
    DeviceInfo, DevicePick,
    cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits},
    driver, open,
};
use std::sync::Arc;

/// A context, its stream, and what plans need to know of the device.
pub struct Session {
    /// The context.
    pub context: Arc<CudaContext>,
    /// The stream that everything runs on.
    pub stream: Arc<CudaStream>,
    /// Facts about the device.
    pub info: DeviceInfo,
}

impl Session {
    /// Opens the device.
    pub fn open(pick: DevicePick) -> Result<Self> {
        // `open` would report a wrong word as a missing driver.
        if let (DevicePick::Auto, Some(text)) = (pick, std::env::var_os("LOOKBACK_DEVICE")) {
            let parsed = text.to_string_lossy().parse::<DevicePick>();
            parsed.map_err(|why| CliError::input("LOOKBACK_DEVICE", why))?;
        }
        let context = open(pick)?;
        let info = DeviceInfo::of(&context)?;
        Ok(Self { stream: context.default_stream(), context, info })
    }

    /// One line that says where the numbers come from.
    pub fn device_line(&self) -> String {
        let DeviceInfo { name, compute_capability: (major, minor), sm_count, .. } = &self.info;
        let kind = if self.info.emulated { " (no GPU: PTX interpreted on the CPU)" } else { "" };
        format!("device: {name}, compute capability {major}.{minor}, {sm_count} SMs{kind}")
    }

    /// Copies to the device.
    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> Result<CudaSlice<T>> {
        let copied = if host.is_empty() { self.stream.null() } else { self.stream.clone_htod(host) };
        Ok(copied.map_err(|e| driver(e, "copy to the device"))?)
    }

    /// Allocates zeros.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        let made = if len == 0 { self.stream.null() } else { self.stream.alloc_zeros(len) };
        Ok(made.map_err(|e| driver(e, "allocate"))?)
    }

    /// Copies from the device.
    pub fn download<T: DeviceRepr + Clone>(&self, slice: &impl DevicePtr<T>) -> Result<Vec<T>> {
        if slice.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.stream.clone_dtoh(slice).map_err(|e| driver(e, "copy from the device"))?)
    }
}
