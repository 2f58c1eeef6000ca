//! Loading the emulator, and kernels to run.

use cudarc::driver::{CudaContext, CudaFunction, sys};
use cudarc::nvrtc::Ptx;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Where cargo puts the shared library: beside the test executable.
fn path() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own path");
    let beside = executable.with_file_name("liblookback_emulator.so");
    // A bundle has the tests one folder below the library.
    if beside.exists() {
        beside
    } else {
        beside.parent().map_or(beside.clone(), |dir| dir.with_file_name("liblookback_emulator.so"))
    }
}

/// The loaded emulator. From then on cudarc's own search for `libcuda.so.1` finds it.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // SAFETY: the library has no initialisers beyond those of Rust's own runtime.
        let library = unsafe { Library::open(Some(path()), RTLD_NOW | RTLD_GLOBAL) };
        library.unwrap_or_else(|why| panic!("{}: {why}", path().display()))
    })
}

/// The primary context, which stays until the process ends: with its last owner all its objects would go.
pub fn context() -> Arc<CudaContext> {
    static CONTEXT: OnceLock<Arc<CudaContext>> = OnceLock::new();
    library();
    Arc::clone(CONTEXT.get_or_init(|| CudaContext::new(0).expect("the emulator has a device")))
}

/// A context of its own, for tests that break it.
pub fn own_context() -> Arc<CudaContext> {
    library();
    let mut raw = std::ptr::null_mut();
    // SAFETY: `cuInit` takes only flags; the context is handed out through a valid pointer and wrapped once.
    unsafe {
        assert_eq!(sys::cuInit(0), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxCreate_v4(&raw mut raw, std::ptr::null_mut(), 0, 0), sys::CUresult::CUDA_SUCCESS);
        CudaContext::from_raw_context(0, 0, raw).expect("a fresh context can be made current")
    }
}

/// Call an exported function of the emulator that fills a text buffer.
fn text(symbol: &[u8]) -> String {
    type Fill = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: the symbols that this is called for have this signature; the buffer has the length that is passed.
    unsafe {
        let fill = library().get::<Fill>(symbol).expect("the symbol is exported");
        let length = fill(std::ptr::null_mut(), 0);
        let mut buffer = vec![0_u8; length + 1];
        assert_eq!(fill(buffer.as_mut_ptr().cast(), buffer.len()), length);
        assert_eq!(buffer.pop(), Some(0));
        String::from_utf8(buffer).expect("the emulator writes UTF-8")
    }
}

/// Story of the last fault or refusal of this thread.
pub fn last_fault() -> String {
    text(b"lookback_emulator_last_fault\0")
}

/// Counters of this thread as JSON.
pub fn counters() -> String {
    text(b"lookback_emulator_counters\0")
}

/// What this thread has recorded, as JSON.
pub fn recording() -> String {
    text(b"lookback_emulator_recording\0")
}

/// Start this thread's recording anew.
pub fn reset_recording() {
    call(b"lookback_emulator_reset_recording\0");
}

fn call(symbol: &[u8]) {
    // SAFETY: the symbols that this is called for take nothing and return nothing.
    unsafe { library().get::<unsafe extern "C" fn()>(symbol).expect("the symbol is exported")() }
}

/// Start this thread's counters anew.
pub fn reset_counters() {
    call(b"lookback_emulator_reset_counters\0");
}

/// Mend this thread's current context.
pub fn clear_fault() {
    call(b"lookback_emulator_clear_fault\0");
}

/// From now on keep this thread's launches, or no longer.
pub fn keep_launches(on: bool) {
    // SAFETY: the symbol has this signature.
    unsafe {
        library()
            .get::<unsafe extern "C" fn(i32)>(b"lookback_emulator_keep_launches\0")
            .expect("the symbol is exported")(on.into());
    }
}

/// The launches that were kept.
pub fn kept_launches() -> Vec<u8> {
    type Kept = unsafe extern "C" fn(*mut u8, usize) -> usize;
    // SAFETY: the symbol has this signature, and the buffer has the length that is stated.
    unsafe {
        let kept = library().get::<Kept>(b"lookback_emulator_kept_launches\0").expect("the symbol is exported");
        let mut bytes = vec![0; kept(std::ptr::null_mut(), 0)];
        assert_eq!(kept(bytes.as_mut_ptr(), bytes.len()), bytes.len());
        bytes
    }
}

/// Set an option of this thread; whether the emulator took it.
pub fn set_option(key: &str, value: &str) -> bool {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> i32;
    let (key, value) = (CString::new(key).expect("no NUL"), CString::new(value).expect("no NUL"));
    // SAFETY: the symbol has this signature and both texts end in NUL.
    unsafe {
        let set = library().get::<Set>(b"lookback_emulator_set_options\0").expect("the symbol is exported");
        set(key.as_ptr(), value.as_ptr()) == 0
    }
}

/// Go back to the process default for all options of this thread.
pub fn unset_options() {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> i32;
    // SAFETY: the symbol has this signature and takes null for "all".
    unsafe {
        let set = library().get::<Set>(b"lookback_emulator_set_options\0").expect("the symbol is exported");
        assert_eq!(set(std::ptr::null(), std::ptr::null()), 0);
    }
}

/// One kernel of [`KERNELS`].
pub fn kernel(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(KERNELS)).unwrap_or_else(|_| panic!("{}", last_fault()));
    module.load_function(name).expect("the kernel is in the module")
}

/// The `CUresult` of a failed call.
pub fn code<T>(result: Result<T, cudarc::driver::DriverError>) -> sys::CUresult {
    match result {
        Ok(_) => sys::CUresult::CUDA_SUCCESS,
        Err(error) => error.0,
    }
}

/// Kernels that do one thing each.
pub const KERNELS: &str = r"
.version 7.0
.target sm_80
.address_size 64

.global .align 4 .u32 answers[3] = {41, 42};
.global .align 4 .u32 step = 7;
.const .align 4 .u32 unread = 9;

.visible .entry empty()
{
    ret;
}

// out[i] = factor * in[i] for i < count
.visible .entry scale(.param .u64 p_out, .param .u64 p_in, .param .f32 p_factor, .param .u32 p_count)
.maxntid 256, 1, 1
{
    .reg .pred %past;
    .reg .b32 %i, %t, %n;
    .reg .b64 %in, %out, %at;
    .reg .f32 %x, %factor;
    ld.param.u64 %out, [p_out];
    ld.param.u64 %in, [p_in];
    ld.param.f32 %factor, [p_factor];
    ld.param.u32 %n, [p_count];
    cvta.to.global.u64 %out, %out;
    cvta.to.global.u64 %in, %in;
    mov.u32 %i, %ctaid.x;
    mov.u32 %t, %ntid.x;
    mul.lo.u32 %i, %i, %t;
    mov.u32 %t, %tid.x;
    add.u32 %i, %i, %t;
    setp.ge.u32 %past, %i, %n;
    @%past bra DONE;
    mul.wide.u32 %at, %i, 4;
    add.u64 %in, %in, %at;
    add.u64 %out, %out, %at;
    ld.global.f32 %x, [%in];
    mul.f32 %x, %x, %factor;
    st.global.f32 [%out], %x;
DONE:
    ret;
}

// *at += step, by one thread
.visible .entry count(.param .u64 p_at)
{
    .reg .b64 %at;
    .reg .b32 %v, %by;
    ld.param.u64 %at, [p_at];
    cvta.to.global.u64 %at, %at;
    ld.global.u32 %by, [step];
    ld.global.u32 %v, [%at];
    add.u32 %v, %v, %by;
    st.global.u32 [%at], %v;
    ret;
}

// writes 1 to whatever address it is given
.visible .entry poke(.param .u64 p_at)
{
    .reg .b64 %at;
    .reg .b32 %v;
    ld.param.u64 %at, [p_at];
    cvta.to.global.u64 %at, %at;
    mov.u32 %v, 1;
    st.global.u32 [%at], %v;
    ret;
}

// goes round so many times, then writes the number
.visible .entry spin(.param .u64 p_at, .param .u32 p_rounds)
{
    .reg .b64 %at;
    .reg .b32 %i, %rounds;
    .reg .pred %more;
    ld.param.u64 %at, [p_at];
    cvta.to.global.u64 %at, %at;
    ld.param.u32 %rounds, [p_rounds];
    mov.u32 %i, 0;
AGAIN:
    add.u32 %i, %i, 1;
    setp.lt.u32 %more, %i, %rounds;
    @%more bra AGAIN;
    st.global.u32 [%at], %i;
    ret;
}

// at[tid] = tid, through dynamic shared memory
.extern .shared .align 16 .b8 pool[];
.visible .entry through_shared(.param .u64 p_at)
{
    .reg .b64 %at, %offset;
    .reg .b32 %t, %v, %pool;
    ld.param.u64 %at, [p_at];
    cvta.to.global.u64 %at, %at;
    mov.u32 %t, %tid.x;
    mov.u32 %pool, pool;
    shl.b32 %v, %t, 2;
    add.u32 %pool, %pool, %v;
    st.shared.u32 [%pool], %t;
    bar.sync 0;
    ld.shared.u32 %v, [%pool];
    mul.wide.u32 %offset, %t, 4;
    add.u64 %at, %at, %offset;
    st.global.u32 [%at], %v;
    ret;
}

// must run with blocks of exactly 64 threads
.visible .entry exact()
.reqntid 64, 1, 1
{
    ret;
}
";
