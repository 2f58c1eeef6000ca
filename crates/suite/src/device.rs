//! The device that the tests run on.

use lookback_device::{
    DeviceInfo, DevicePick,
    cudarc::driver::{CudaContext, CudaStream},
    open,
};
use std::sync::{Arc, OnceLock};

/// The context that all tests of this process share.
///
/// # Panics
/// When there is neither a GPU nor the emulator, or when `LOOKBACK_REQUIRE_GPU=1` and the device is emulated: a test
/// without a device proves nothing.
pub fn context() -> Arc<CudaContext> {
    static CONTEXT: OnceLock<Arc<CudaContext>> = OnceLock::new();
    let context = CONTEXT.get_or_init(|| {
        let context = open(DevicePick::Auto).unwrap_or_else(|e| panic!("{e}"));
        let info = info_of(&context);
        let required = std::env::var("LOOKBACK_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(!(required && info.emulated), "LOOKBACK_REQUIRE_GPU=1, but the device is {}", info.name);
        context
    });
    context.clone()
}

/// The calling thread's own stream: the legacy stream is one queue for the whole process, and tests would wait in it.
pub fn stream() -> Arc<CudaStream> {
    context().per_thread_stream()
}

/// Waits for the launches of this thread.
///
/// # Panics
/// When one of them faulted.
pub fn finish() {
    let done = stream().synchronize();
    assert!(done.is_ok(), "{}", lookback_device::emulator::last_fault().unwrap_or_default());
}

/// Facts about the device.
pub fn info() -> DeviceInfo {
    info_of(&context())
}

fn info_of(context: &Arc<CudaContext>) -> DeviceInfo {
    DeviceInfo::of(context).unwrap_or_else(|e| panic!("{e}"))
}
