use crate::support::{context, library};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use std::ffi::CStr;

#[test]
fn the_device_says_what_it_is() {
    let context = context();
    assert_eq!(context.name().unwrap(), "lookback emulator (sm_90a)");
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    assert_eq!(context.uuid().unwrap().bytes.map(|byte| byte as u8), *b"lookback-emulate");
    assert!(context.total_mem().unwrap() >= 1 << 20);
    for (attribute, value) in [
        (Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132),
        (Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, i32::MAX),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 * 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 * 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 228 * 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65_536),
        (Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
        (Attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0),
        (Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 0),
    ] {
        assert_eq!(context.attribute(attribute).unwrap(), value, "{attribute:?}");
    }
}

#[test]
fn there_is_one_device() {
    let context = context();
    let mut version = 0;
    let mut other = 0;
    // SAFETY: both pointers are valid for the write of an int.
    unsafe {
        assert_eq!(sys::cuDriverGetVersion(&raw mut version), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuDeviceGet(&raw mut other, 1), CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
    assert_eq!(version, 13_000);
    assert_eq!(cudarc::driver::CudaContext::device_count().unwrap(), 1);
    assert!(cudarc::driver::CudaContext::new(1).is_err());
    drop(context);
}

#[test]
fn a_short_buffer_cuts_the_name() {
    let context = context();
    let mut name = [0x7f_u8; 9];
    // SAFETY: the buffer has 9 bytes.
    let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 9, context.cu_device()) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    assert_eq!(CStr::from_bytes_until_nul(&name).unwrap(), c"lookback");
}

#[test]
fn errors_have_names_and_texts() {
    library();
    let error = cudarc::driver::DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.error_string().unwrap(), c"an illegal memory access was encountered");
}

#[test]
fn limits_flags_and_cache_settings_are_kept() {
    let context = crate::support::own_context();
    let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
    assert_eq!(context.get_limit(stack).unwrap(), 1024);
    context.set_limit(stack, 4096).unwrap();
    assert_eq!(context.get_limit(stack).unwrap(), 4096);
    let cache = sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_L1;
    context.set_cache_config(cache).unwrap();
    assert_eq!(context.get_cache_config().unwrap(), cache);
    context.set_blocking_synchronize().unwrap();
    context.synchronize().unwrap();
}

#[test]
fn every_symbol_of_the_header_is_there() {
    // The names of functions in cudarc's bindings, oldest and newest of each subject; all others are checked by the
    // table that `cuGetProcAddress` uses.
    for name in ["cuMemAdvise", "cuMulticastCreate", "cuTensorMapEncodeTiled", "cuLogsDumpToFile", "cuLaunchGrid"] {
        let symbol = std::ffi::CString::new(name).unwrap();
        // SAFETY: the symbol is only looked up.
        let found = unsafe { library().get::<unsafe extern "C" fn() -> u32>(symbol.as_bytes_with_nul()) };
        // SAFETY: functions that are not emulated take no arguments and answer at once.
        let answer = unsafe { found.unwrap_or_else(|why| panic!("{name}: {why}"))() };
        assert_eq!(answer, 801, "{name}");
        assert!(crate::support::last_fault().contains(name));
    }
}
