//! Kernels as loaded functions, kept per context.

use crate::{DeviceInfo, Error, Result, driver, info::driver_version};
use cudarc::{
    driver::{CudaContext, CudaFunction, DriverError, sys},
    nvrtc::Ptx,
};
use lookback_kernels::Kernel;
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

type Key = (usize, &'static str);

/// A cached function holds its module, and that its context: an entry can never outlive the context its key names.
fn cache() -> &'static Mutex<HashMap<Key, CudaFunction>> {
    static CACHE: OnceLock<Mutex<HashMap<Key, CudaFunction>>> = OnceLock::new();
    CACHE.get_or_init(Mutex::default)
}

/// The kernel as a function of this context; the driver compiles it on the first call.
///
/// # Errors
/// [`Error::DriverTooOld`] and [`Error::Arch`] before the driver sees the text, [`Error::Ptx`] with the compiler's log when
/// it refuses it.
///
/// # Cost
/// First call: tens of milliseconds for the driver's compiler. Later: a lock and a look-up.
pub fn function(context: &Arc<CudaContext>, kernel: &'static Kernel) -> Result<CudaFunction> {
    let key = (context.cu_ctx() as usize, kernel.entry);
    let mut cache = cache().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = cache.get(&key) {
        return Ok(function.clone());
    }
    let function = load(context, kernel)?;
    cache.insert(key, function.clone());
    Ok(function)
}

fn load(context: &Arc<CudaContext>, kernel: &'static Kernel) -> Result<CudaFunction> {
    let (need, got) = (minimum_driver(kernel.ptx_version), driver_version()?);
    if got < need {
        return Err(Error::DriverTooOld { kernel: kernel.entry, need, got });
    }
    let info = DeviceInfo::of(context)?;
    if !kernel.target.runs_on(info.compute_capability) {
        let need = kernel.target.to_string();
        return Err(Error::Arch { kernel: kernel.entry, need, got: info.compute_capability });
    }
    let module = context.load_module(Ptx::from_src(kernel.ptx())).map_err(|e| refused(kernel, e))?;
    let function = module.load_function(kernel.entry).map_err(|e| driver(e, kernel.entry))?;
    // Above 48 KiB a block must ask; `set_attribute` does not bind the context, `load_module` above did.
    if kernel.dynamic_smem > 48 * 1024 {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, kernel.dynamic_smem as i32).map_err(|e| driver(e, kernel.entry))?;
    }
    Ok(function)
}

/// The first CUDA release whose driver reads this PTX version, times 1000.
fn minimum_driver((major, minor): (u8, u8)) -> u32 {
    let minor = u32::from(minor);
    match major {
        ..=7 => 11_000 + 10 * minor,
        8 if minor <= 5 => 12_000 + 10 * minor,
        // CUDA 12.6 brought no new PTX version.
        8 => 12_000 + 10 * (minor + 1),
        _ => 1000 * (u32::from(major) + 4) + 10 * minor,
    }
}

/// The same text once more, with a buffer for the compiler's log, which cudarc's own loading does not ask for.
fn refused(kernel: &'static Kernel, error: DriverError) -> Error {
    use sys::CUjit_option as Option_;
    const LOG_BYTES: usize = 8192;
    let Ok(text) = CString::new(kernel.ptx().into_owned()) else {
        return Error::Ptx { kernel: kernel.entry, code: error.0, log: "the text contains a NUL byte".into() };
    };
    let mut log = vec![0_u8; LOG_BYTES];
    let mut module = std::ptr::null_mut();
    let mut options = [Option_::CU_JIT_ERROR_LOG_BUFFER, Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), LOG_BYTES as *mut c_void];
    // SAFETY: `text` ends in NUL and outlives the call; both options point to arrays of two; the log buffer has the size that
    // the second option states; `module` takes one handle.
    let code = unsafe {
        sys::cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    if code == sys::CUresult::CUDA_SUCCESS {
        // SAFETY: the call above created this module and nothing else has its handle.
        let _ = unsafe { sys::cuModuleUnload(module) };
        // Then it was not the text.
        return driver(error, kernel.entry);
    }
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    Error::Ptx { kernel: kernel.entry, code: error.0, log: String::from_utf8_lossy(&log[..end]).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::minimum_driver;

    #[test]
    fn minimum_driver_follows_the_ptx_release_table() {
        for (version, driver) in
            [((7, 0), 11_000), ((7, 8), 11_080), ((8, 5), 12_050), ((8, 6), 12_070), ((9, 0), 13_000)]
        {
            assert_eq!(minimum_driver(version), driver, "PTX {version:?}");
        }
    }
}
