//! The emulator's own switches and counters, which a GPU does not have.
//!
//! All answer `None` or do nothing unless [`open`](crate::open) loaded the emulator.

use libloading::Library;
use std::{
    ffi::{CString, c_char, c_void},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// How the name of the emulated device begins.
pub const DEVICE_NAME: &str = "lookback emulator";

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// Sets a switch for launches of the calling thread, e.g. `("order", "random:7")`. Whether the emulator knew it.
pub fn set_option(key: &str, value: &str) -> bool {
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> i32;
    let (Some(library), Ok(key), Ok(value)) = (LIBRARY.get(), CString::new(key), CString::new(value)) else {
        return false;
    };
    // SAFETY: the emulator exports this symbol with this signature.
    let Ok(set) = (unsafe { library.get::<Set>(b"lookback_emulator_set_options\0") }) else { return false };
    // SAFETY: both strings end in NUL and outlive the call.
    unsafe { set(key.as_ptr(), value.as_ptr()) == 0 }
}

/// Counters of the calling thread's launches since [`reset_counters`], as JSON.
pub fn counters() -> Option<String> {
    text(b"lookback_emulator_counters\0")
}

/// The full story of the last fault: kernel, line, block, thread, what was read, who raced.
pub fn last_fault() -> Option<String> {
    text(b"lookback_emulator_last_fault\0").filter(|t| !t.is_empty())
}

/// Starts counting anew.
pub fn reset_counters() {
    call(b"lookback_emulator_reset_counters\0");
}

/// What the calling thread would have had the device do since [`reset_recording`], as a JSON list; with the switch `record` on,
/// kernels are listed and not run.
pub fn recording() -> Option<String> {
    text(b"lookback_emulator_recording\0")
}

/// Starts the recording anew.
pub fn reset_recording() {
    call(b"lookback_emulator_reset_recording\0");
}

/// Bytes of device memory by their address, which the emulator checks; `None` where it holds no such bytes.
pub fn read(address: u64, bytes: usize) -> Option<Vec<u8>> {
    type Copy = unsafe extern "C" fn(*mut c_void, u64, usize) -> i32;
    let library = LIBRARY.get()?;
    // SAFETY: the symbol has this signature.
    let copy = unsafe { library.get::<Copy>(b"cuMemcpyDtoH_v2\0") }.ok()?;
    let mut target = vec![0; bytes];
    // SAFETY: the target has the stated length, and an address that is none of a live allocation is refused.
    (unsafe { copy(target.as_mut_ptr().cast(), address, bytes) } == 0).then_some(target)
}

fn call(symbol: &[u8]) {
    type Call = unsafe extern "C" fn();
    let Some(library) = LIBRARY.get() else { return };
    // SAFETY: the emulator exports the symbols that this is called for as functions without arguments.
    if let Ok(function) = unsafe { library.get::<Call>(symbol) } {
        // SAFETY: as above; they touch only the emulator's own state.
        unsafe { function() }
    }
}

/// From now on keeps the calling thread's launches with the memory that they find, or no longer; forgets those kept so far.
pub fn keep_launches(on: bool) {
    type Keep = unsafe extern "C" fn(i32);
    let Some(library) = LIBRARY.get() else { return };
    // SAFETY: the emulator exports this symbol with this signature.
    if let Ok(keep) = unsafe { library.get::<Keep>(b"lookback_emulator_keep_launches\0") } {
        // SAFETY: as above; it touches only the emulator's own state.
        unsafe { keep(on.into()) }
    }
}

/// The launches since [`keep_launches`], for `lookback_emulator::snapshot::snapshots` to read.
pub fn kept_launches() -> Option<Vec<u8>> {
    type Kept = unsafe extern "C" fn(*mut u8, usize) -> usize;
    let library = LIBRARY.get()?;
    // SAFETY: the emulator exports this symbol with this signature.
    let kept = unsafe { library.get::<Kept>(b"lookback_emulator_kept_launches\0") }.ok()?;
    // SAFETY: a null buffer of length 0 asks for the length alone.
    let mut bytes = vec![0; unsafe { kept(std::ptr::null_mut(), 0) }];
    // SAFETY: the buffer has the stated length.
    unsafe { kept(bytes.as_mut_ptr(), bytes.len()) };
    Some(bytes)
}

fn text(symbol: &[u8]) -> Option<String> {
    type Text = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    let library = LIBRARY.get()?;
    // SAFETY: the emulator exports these symbols with this signature.
    let function = unsafe { library.get::<Text>(symbol) }.ok()?;
    // SAFETY: a null buffer of length 0 asks for the length alone.
    let length = unsafe { function(std::ptr::null_mut(), 0) };
    let mut buffer = vec![0_u8; length + 1];
    // SAFETY: the buffer has the stated length.
    let written = unsafe { function(buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(written.min(length));
    String::from_utf8(buffer).ok()
}

/// Whether this process has loaded the emulator.
pub fn is_loaded() -> bool {
    LIBRARY.get().is_some()
}

/// Loads the emulator so that a later `dlopen("libcuda.so.1")` finds it. Gives the paths tried when there is none.
pub(crate) fn load() -> Result<(), Vec<String>> {
    if is_loaded() {
        return Ok(());
    }
    let mut tried = Vec::new();
    for path in candidates() {
        match load_path(&path) {
            Ok(library) => {
                // A second thread may have been quicker; both loaded the same file.
                let _ = LIBRARY.set(library);
                return Ok(());
            }
            Err(why) => tried.push(why),
        }
    }
    Err(tried)
}

/// Beside the executable, where a bundle has it; and where cargo puts the libraries of binaries, examples and tests.
fn candidates() -> Vec<PathBuf> {
    let Some(dir) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) else {
        return Vec::new();
    };
    let name = format!("{}lookback_emulator{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let mut dirs = vec![dir.clone(), dir.join("deps")];
    if let Some(parent) = dir.parent() {
        dirs.extend([parent.to_path_buf(), parent.join("deps")]);
    }
    dirs.into_iter().map(|d| d.join(&name)).collect()
}

#[cfg(unix)]
fn load_path(path: &Path) -> Result<Library, String> {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW};
    if !path.exists() {
        return Err(path.display().to_string());
    }
    // SAFETY: the library is this workspace's own and its initialisers do nothing.
    let library = unsafe { UnixLibrary::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(Library::from).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(not(unix))]
fn load_path(path: &Path) -> Result<Library, String> {
    Err(format!("{}: the emulator runs on Linux", path.display()))
}
