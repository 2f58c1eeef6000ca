use crate::support::{context, kernel, library, own_context};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;

/// A handle that never was.
fn wrong<T>() -> *mut T {
    0x1234_5678 as *mut T
}

#[test]
fn wrong_handles_are_answered() {
    let context = context();
    let function = kernel(&context, "empty");
    let empty = function.cu_function();
    let null = std::ptr::null_mut::<*mut c_void>();
    let (handle, value) = (CUresult::CUDA_ERROR_INVALID_HANDLE, CUresult::CUDA_ERROR_INVALID_VALUE);
    let mut milliseconds = 0.0;
    let mut out = std::ptr::null_mut();
    // SAFETY: every wrong handle is an error that is answered, and every other pointer is valid.
    unsafe {
        assert_eq!(sys::cuStreamSynchronize(wrong()), handle);
        assert_eq!(sys::cuStreamDestroy_v2(wrong()), handle);
        assert_eq!(sys::cuStreamDestroy_v2(std::ptr::null_mut()), handle);
        assert_eq!(sys::cuEventRecord(wrong(), std::ptr::null_mut()), handle);
        assert_eq!(sys::cuEventElapsedTime_v2(&raw mut milliseconds, wrong(), wrong()), handle);
        assert_eq!(sys::cuEventDestroy_v2(wrong()), handle);
        assert_eq!(sys::cuModuleUnload(wrong()), handle);
        assert_eq!(sys::cuModuleGetFunction(&raw mut out, wrong(), c"x".as_ptr()), handle);
        assert_eq!(sys::cuLaunchKernel(wrong(), 1, 1, 1, 1, 1, 1, 0, std::ptr::null_mut(), null, null), handle);
        assert_eq!(sys::cuLaunchKernel(empty, 1, 1, 1, 1, 1, 1, 0, wrong(), null, null), handle);
        // A handle of another kind is as wrong.
        assert_eq!(sys::cuLaunchKernel(empty, 1, 1, 1, 1, 1, 1, 0, empty.cast(), null, null), handle);
        assert_eq!(sys::cuGraphLaunch(wrong(), std::ptr::null_mut()), value);
        assert_eq!(sys::cuGraphDestroy(wrong()), value);
        assert_eq!(sys::cuMemPoolTrimTo(wrong(), 0), value);
        assert_eq!(sys::cuCtxSetCurrent(wrong()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(sys::cuCtxDestroy_v2(context.cu_ctx()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
}

#[test]
fn missing_pointers_are_answered() {
    let context = context();
    context.bind_to_thread().unwrap();
    let value = CUresult::CUDA_ERROR_INVALID_VALUE;
    // SAFETY: null is an error that is answered.
    unsafe {
        assert_eq!(sys::cuDeviceGetCount(std::ptr::null_mut()), value);
        assert_eq!(sys::cuMemAlloc_v2(std::ptr::null_mut(), 16), value);
        assert_eq!(sys::cuStreamCreate(std::ptr::null_mut(), 0), value);
        assert_eq!(sys::cuModuleLoadData(std::ptr::null_mut(), c"".as_ptr().cast()), value);
        let mut module = std::ptr::null_mut();
        assert_eq!(sys::cuModuleLoadData(&raw mut module, std::ptr::null()), value);
        assert_eq!(sys::cuMemGetInfo_v2(std::ptr::null_mut(), std::ptr::null_mut()), value);
    }
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    let context = own_context();
    let raw = context.cu_ctx() as usize;
    std::thread::spawn(move || {
        let mut current = wrong();
        let mut pointer = 0;
        // SAFETY: the results go to variables of their types; the context lives through the thread.
        unsafe {
            assert_eq!(sys::cuCtxGetCurrent(&raw mut current), CUresult::CUDA_SUCCESS);
            assert!(current.is_null());
            assert_eq!(sys::cuMemAlloc_v2(&raw mut pointer, 16), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            assert_eq!(sys::cuCtxPushCurrent_v2(raw as sys::CUcontext), CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuMemAlloc_v2(&raw mut pointer, 16), CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuMemFree_v2(pointer), CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuCtxPopCurrent_v2(&raw mut current), CUresult::CUDA_SUCCESS);
            assert_eq!(current as usize, raw);
            assert_eq!(sys::cuCtxPopCurrent_v2(&raw mut current), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
    })
    .join()
    .unwrap();
}

#[test]
fn a_destroyed_context_stays_destroyed() {
    library();
    let mut raw = std::ptr::null_mut();
    let mut pointer = 0;
    // SAFETY: the results go to variables of their types.
    unsafe {
        assert_eq!(sys::cuInit(0), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxCreate_v4(&raw mut raw, std::ptr::null_mut(), 0, 0), CUresult::CUDA_SUCCESS);
        let other = std::thread::spawn({
            let raw = raw as usize;
            move || sys::cuCtxDestroy_v2(raw as sys::CUcontext)
        });
        assert_eq!(other.join().unwrap(), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemAlloc_v2(&raw mut pointer, 16), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        assert_eq!(sys::cuCtxDestroy_v2(raw), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(sys::cuCtxSetCurrent(std::ptr::null_mut()), CUresult::CUDA_SUCCESS);
    }
}
