//! The few functions of NCCL that are needed, found at run time, and a communicator of them that never blocks.
//!
//! Bindings elsewhere look for `libnccl.so`, which only development packages have, and panic without it; this looks for
//! `libnccl.so.2` first and says what is missing.

use crate::{Error, Result};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
    sync::OnceLock,
};

const NAME: &str = "NCCL";
#[cfg(windows)]
const NAMES: [&str; 1] = ["nccl.dll"];
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclResult_t`.
type Code = c_int;
const SUCCESS: Code = 0;
const IN_PROGRESS: Code = 7;
/// `ncclUint8` of `ncclDataType_t`.
const BYTE: c_int = 1;

/// `ncclComm_t`.
type Handle = *mut c_void;

/// `ncclUniqueId`: by which ranks find each other.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId {
    /// As they travel.
    pub bytes: [u8; 128],
}

/// `ncclConfig_t` as of 2.17; later ones read no more than `size` bytes.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// Addresses of functions, in the order of their use.
#[derive(Clone, Copy)]
pub struct Library {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    comm_init_rank_config: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Code,
    comm_get_async_error: unsafe extern "C" fn(Handle, *mut Code) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, CUstream) -> Code,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, CUstream) -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    comm_abort: unsafe extern "C" fn(Handle) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
}

impl Library {
    /// The machine's, once for the process; it is never unloaded.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] ← none of its names is found, or it lacks a function.
    pub fn get() -> Result<&'static Self> {
        static FOUND: OnceLock<std::result::Result<Library, Vec<String>>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let mut tried = Vec::new();
            for name in NAMES {
                match Self::load(name) {
                    Ok(library) => return Ok(library),
                    Err(why) => tried.push(format!("{name} ({why})")),
                }
            }
            Err(tried)
        });
        found.as_ref().map_err(|tried| Error::NoLibrary { library: NAME, tried: tried.clone() })
    }

    fn load(name: &str) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: NCCL's initialisers only read the environment.
        let library = unsafe { libloading::Library::new(name)? };
        // SAFETY: the types are those of `nccl.h` since 2.14; the library stays loaded, see below.
        let found = unsafe {
            Self {
                get_version: *library.get(b"ncclGetVersion\0")?,
                get_unique_id: *library.get(b"ncclGetUniqueId\0")?,
                comm_init_rank_config: *library.get(b"ncclCommInitRankConfig\0")?,
                comm_get_async_error: *library.get(b"ncclCommGetAsyncError\0")?,
                group_start: *library.get(b"ncclGroupStart\0")?,
                send: *library.get(b"ncclSend\0")?,
                recv: *library.get(b"ncclRecv\0")?,
                group_end: *library.get(b"ncclGroupEnd\0")?,
                comm_abort: *library.get(b"ncclCommAbort\0")?,
                get_error_string: *library.get(b"ncclGetErrorString\0")?,
            }
        };
        std::mem::forget(library);
        Ok(found)
    }

    /// Fails unless all is well or under way; says whether it is still under way.
    fn check(&self, what: &'static str, code: Code) -> Result<bool> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(code == IN_PROGRESS);
        }
        // SAFETY: the function takes any code and returns a constant text.
        let text = unsafe { (self.get_error_string)(code) };
        let why = if text.is_null() {
            format!("code {code}")
        } else {
            // SAFETY: a text of the library, which stays.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Library { library: NAME, what, why })
    }

    /// Its version: 22304 is 2.23.4.
    pub fn version(&self) -> Result<u32> {
        let mut version = 0;
        // SAFETY: the function writes one number.
        self.check("version", unsafe { (self.get_version)(&mut version) })?;
        Ok(version.unsigned_abs())
    }

    /// A new one.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId { bytes: [0; 128] };
        // SAFETY: the function fills the 128 bytes.
        self.check("unique id", unsafe { (self.get_unique_id)(&mut id) })?;
        Ok(id)
    }
}

/// Bytes of device memory for a peer or from it.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub peer: usize,
    pub address: CUdeviceptr,
    pub bytes: usize,
}

/// One rank's end of a communicator. Stays with the thread that made it.
pub struct Comm {
    library: &'static Library,
    /// Null once it was given up.
    handle: Handle,
}

impl Comm {
    /// Begins to make one, on the context that is current; [`is_busy`](Self::is_busy) until all ranks have come.
    pub fn new(library: &'static Library, ranks: usize, rank: usize, id: UniqueId) -> Result<Self> {
        let unset = c_int::MIN;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: unset,
            min_ctas: unset,
            max_ctas: unset,
            net_name: ptr::null(),
            split_share: unset,
        };
        let mut comm = Self { library, handle: ptr::null_mut() };
        // SAFETY: both pointers are to this frame and read or written before the call returns.
        let code = unsafe {
            (library.comm_init_rank_config)(&mut comm.handle, ranks as c_int, id, rank as c_int, &mut config)
        };
        library.check("communicator", code)?;
        Ok(comm)
    }

    /// Whether the last call is still under way.
    ///
    /// # Errors
    /// [`Error::Library`] ← it has failed, or what was queued before has.
    pub fn is_busy(&self) -> Result<bool> {
        if self.handle.is_null() {
            return Err(Error::Library { library: NAME, what: "communicator", why: "was given up".into() });
        }
        let mut state = SUCCESS;
        // SAFETY: the handle is live; the function writes one number.
        let code = unsafe { (self.library.comm_get_async_error)(self.handle, &mut state) };
        self.library.check("communicator", code)?;
        self.library.check("transfer", state)
    }

    /// Queues all of these at once. The communicator may be busy afterwards.
    ///
    /// # Safety
    /// Parts are memory of the stream's context; until the stream has come past this, nobody writes what is sent or uses what is
    /// received. Every part has its counterpart on the peer, in the same order.
    pub unsafe fn exchange(&self, stream: CUstream, send: &[Part], receive: &[Part]) -> Result<()> {
        self.is_busy()?;
        // SAFETY: the group is ended below, whatever happens in between.
        self.library.check("group", unsafe { (self.library.group_start)() })?;
        let mut queued = Ok(false);
        for Part { peer, address, bytes } in send {
            if queued.is_ok() {
                let (from, peer) = (*address as *const c_void, *peer as c_int);
                // SAFETY: the caller's promise.
                let code = unsafe { (self.library.send)(from, *bytes, BYTE, peer, self.handle, stream) };
                queued = self.library.check("send", code);
            }
        }
        for Part { peer, address, bytes } in receive {
            if queued.is_ok() {
                let (to, peer) = (*address as *mut c_void, *peer as c_int);
                // SAFETY: likewise.
                let code = unsafe { (self.library.recv)(to, *bytes, BYTE, peer, self.handle, stream) };
                queued = self.library.check("receive", code);
            }
        }
        // SAFETY: ends what was started above.
        let ended = self.library.check("group", unsafe { (self.library.group_end)() });
        queued.and(ended).map(|_| ())
    }

    /// Gives up what is under way: its kernels end.
    pub fn abort(&mut self) {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: the handle is live and not used again. There is nobody to tell an error.
            unsafe { (self.library.comm_abort)(handle) };
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU the library says so in its own words; with one, a communicator of one rank is made.
    #[test]
    fn a_communicator_is_made_or_the_reason_is_told() {
        let library = match Library::get() {
            Ok(library) => library,
            Err(error) => return assert!(matches!(error, Error::NoLibrary { .. }), "{error:?}"),
        };
        let id = library.unique_id().unwrap();
        assert_ne!(id, library.unique_id().unwrap(), "an id of its own for every communicator");
        let made = Comm::new(library, 1, 0, id).and_then(|comm| {
            while comm.is_busy()? {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Ok(comm)
        });
        match made {
            Ok(mut comm) => {
                comm.abort();
                assert!(matches!(comm.is_busy(), Err(Error::Library { .. })), "no use after it was given up");
            }
            Err(error) => assert!(matches!(&error, Error::Library { why, .. } if !why.is_empty()), "{error:?}"),
        }
    }
}
