use crate::support::{KERNELS, code, context, kernel, last_fault};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult};
use cudarc::nvrtc::Ptx;
use std::ffi::{CStr, CString, c_void};

/// Load `text` with a log buffer of `size` bytes: the code, the log and what was filled of the buffer.
fn load_with_log(text: &str, size: usize) -> (CUresult, String, usize) {
    context().bind_to_thread().unwrap();
    let text = CString::new(text).unwrap();
    let mut log = vec![0x55_u8; size.max(1)];
    let mut module = std::ptr::null_mut();
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), size as *mut c_void];
    // SAFETY: the text ends in NUL, the arrays have two elements and the log has the size that is passed.
    let result = unsafe {
        sys::cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
    (result, text.unwrap_or_default(), values[1] as usize)
}

fn with_line(line: usize, replacement: &str) -> String {
    let replace = |(index, text)| if index + 1 == line { replacement } else { text };
    KERNELS.lines().enumerate().map(replace).collect::<Vec<_>>().join("\n")
}

/// Line of the first `ret;` in the text.
fn line_of_ret() -> usize {
    KERNELS.lines().position(|line| line.trim() == "ret;").unwrap() + 1
}

#[test]
fn the_log_of_a_refused_text_names_the_line() {
    let line = line_of_ret();
    for broken in ["    frobnicate.u32;", "    add.u32 %nowhere, 1, 2;", "    ret"] {
        let (result, log, filled) = load_with_log(&with_line(line, broken), 1000);
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX, "{broken}");
        let next = if broken == "    ret" { line + 1 } else { line };
        let head = format!("ptxas application ptx input, line {next}; error   : ");
        assert!(log.starts_with(&head), "{broken}: {log}");
        assert!(log.ends_with("ptxas fatal   : Ptx assembly aborted due to errors"), "{log}");
        assert_eq!(filled, log.len() + 1);
        assert_eq!(last_fault(), log);
    }
    let (_, log, filled) = load_with_log(&with_line(line, "    frobnicate.u32;"), 20);
    assert_eq!((log.as_str(), filled), ("ptxas application p", 20));
}

#[test]
fn versions_and_targets_are_refused_as_a_driver_would() {
    for (version, target, expected) in [
        ("7.0", "sm_80", CUresult::CUDA_SUCCESS),
        ("9.0", "sm_90a", CUresult::CUDA_SUCCESS),
        ("9.1", "sm_80", CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        ("8.7", "sm_100", CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("8.7", "sm_120a", CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
    ] {
        let text = format!(".version {version}\n.target {target}\n.address_size 64\n.visible .entry k() {{ ret; }}\n");
        let (result, log, _) = load_with_log(&text, 500);
        assert_eq!(result, expected, "{version} {target}: {log}");
        assert_eq!(log.is_empty(), result == CUresult::CUDA_SUCCESS);
    }
}

#[test]
fn binaries_and_missing_files_are_refused() {
    let context = context();
    for (magic, expected) in [
        (*b"\x7fELF", CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
        (0xba55_ed50_u32.to_le_bytes(), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU),
        ([0xff, 0xfe, 0, 0], CUresult::CUDA_ERROR_INVALID_IMAGE),
    ] {
        let loaded = context.load_module(Ptx::from_binary(magic.to_vec()));
        assert_eq!(code(loaded), expected);
    }
    let missing = context.load_module(Ptx::from_file("no/such/file.ptx"));
    assert_eq!(code(missing), CUresult::CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn variables_have_their_initial_values_on_the_device() {
    let context = context();
    let stream = context.default_stream();
    let module = context.load_module(Ptx::from_src(KERNELS)).unwrap();
    let answers = module.get_global("answers", &stream).unwrap();
    assert_eq!(answers.len(), 12);
    let bytes = stream.clone_dtoh(&answers).unwrap();
    assert_eq!(bytes, [41, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(code(module.get_global("questions", &stream)), CUresult::CUDA_ERROR_NOT_FOUND);
    assert_eq!(code(module.load_function("nothing")), CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn functions_tell_about_themselves() {
    let context = context();
    let scale = kernel(&context, "scale");
    assert_eq!(scale.max_threads_per_block().unwrap(), 256);
    assert_eq!(scale.shared_size_bytes().unwrap(), 0);
    assert_eq!(scale.const_size_bytes().unwrap(), 4);
    assert_eq!(scale.local_size_bytes().unwrap(), 0);
    assert_eq!(scale.ptx_version().unwrap(), 80);
    assert_eq!(scale.binary_version().unwrap(), 90);
    let registers = scale.num_regs().unwrap();
    assert!((5..=40).contains(&registers), "{registers}");
    let dynamic = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(scale.get_attribute(dynamic).unwrap(), 48 * 1024);
    scale.set_attribute(dynamic, 227 * 1024).unwrap();
    assert_eq!(scale.get_attribute(dynamic).unwrap(), 227 * 1024);
    for wrong in [-1, 227 * 1024 + 1] {
        assert_eq!(code(scale.set_attribute(dynamic, wrong)), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let threads = Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    assert_eq!(code(scale.set_attribute(threads, 1)), CUresult::CUDA_ERROR_INVALID_VALUE);
    scale.set_function_cache_config(sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_SHARED).unwrap();
    let function = scale.cu_function();
    let (mut count, mut offset, mut size) = (0, 0, 0);
    let mut name = std::ptr::null();
    // SAFETY: all results go to variables of their types; the name lives as long as the module.
    unsafe {
        assert_eq!(sys::cuFuncGetParamCount(function, &raw mut count), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuFuncGetParamInfo(function, 3, &raw mut offset, &raw mut size), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuFuncGetName(&raw mut name, function), CUresult::CUDA_SUCCESS);
        assert_eq!(CStr::from_ptr(name), c"scale");
    }
    assert_eq!((count, offset, size), (4, 20, 4));
}

#[test]
fn too_much_static_shared_memory_is_refused_by_line() {
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n\n.visible .entry big()\n{\n    .shared .align 4 .b8 \
                a[49156];\n    ret;\n}\n";
    let (result, log, _) = load_with_log(text, 500);
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("line 7;") && log.contains("static shared"), "{log}");
}

#[test]
fn an_unloaded_module_leaves_no_valid_handles() {
    let context = context();
    let module = context.load_module(Ptx::from_src(KERNELS)).unwrap();
    let function = module.load_function("empty").unwrap().cu_function();
    drop(module);
    let mut value = 0;
    // SAFETY: a stale handle is an error that is answered.
    let result = unsafe { sys::cuFuncGetAttribute(&raw mut value, Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS, function) };
    assert_eq!(result, CUresult::CUDA_ERROR_INVALID_HANDLE);
}
