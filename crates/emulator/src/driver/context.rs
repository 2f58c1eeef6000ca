//! Contexts: the primary one and those that a program creates, and which one a host thread has current.

use super::api::api;
use super::args::Out;
use super::device::{self, CUdevice};
use super::errors::{CUresult, Outcome};
use super::handles::{Handle, Kind, Table, lock};
use super::report;
use super::stream::{self, Flavor, Stream};
use super::{capture, event, memory, module};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::ThreadId;

static CONTEXTS: Table<Context> = Table::new(Kind::Context);

static PRIMARY: Mutex<Primary> = Mutex::new(Primary { handle: None, retained: 0, flags: 0 });

thread_local! {
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// All flags that `cuCtxCreate` knows.
const FLAGS: u32 = 0xff;

/// The primary context has one handle for the life of the process, as on a GPU.
#[derive(Debug)]
struct Primary {
    handle: Option<Handle>,
    retained: u32,
    flags: u32,
}

/// A context.
#[derive(Debug)]
pub(super) struct Context {
    /// Its handle.
    pub(super) handle: Handle,
    /// A number that no other context has had.
    id: u64,
    primary: bool,
    flags: AtomicU32,
    /// `CUresult` of the fault that broke this context, or 0.
    fault: AtomicU32,
    /// What that fault was.
    story: Mutex<String>,
    cache_config: AtomicU32,
    shared_config: AtomicU32,
    limits: Mutex<BTreeMap<u32, usize>>,
    /// The stream with handle 0, which waits for all blocking streams and they for it.
    pub(super) legacy: Arc<Stream>,
    per_thread: Mutex<HashMap<ThreadId, Arc<Stream>>>,
    /// Held for writing while the legacy stream works, for reading while a blocking stream does.
    pub(super) gate: RwLock<()>,
}

impl Context {
    fn create(handle: Handle, flags: u32, primary: bool) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        CONTEXTS.insert(
            handle,
            Self {
                handle,
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                primary,
                flags: AtomicU32::new(flags),
                fault: AtomicU32::new(0),
                story: Mutex::default(),
                cache_config: AtomicU32::new(0),
                shared_config: AtomicU32::new(1),
                limits: Mutex::default(),
                legacy: Arc::new(Stream::new(handle, Flavor::Legacy, 0)),
                per_thread: Mutex::default(),
                gate: RwLock::new(()),
            },
        )
    }

    /// An error if a fault has broken this context: the same one for ever, as on hardware.
    pub(super) fn check(&self) -> Outcome {
        match self.fault.load(Ordering::Acquire) {
            0 => Ok(()),
            code => Err(CUresult(code)),
        }
    }

    /// Break this context. The first fault stays.
    pub(super) fn fail(&self, code: CUresult, story: String) {
        report::announce(story.clone());
        let mut kept = lock(&self.story);
        if self.fault.compare_exchange(0, code.0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            *kept = story;
        }
    }

    /// The per-thread default stream of the calling thread.
    pub(super) fn per_thread_stream(&self) -> Arc<Stream> {
        let mut streams = lock(&self.per_thread);
        let create = || Arc::new(Stream::new(self.handle, Flavor::PerThread, 0));
        Arc::clone(streams.entry(std::thread::current().id()).or_insert_with(create))
    }

    /// Every stream that exists in this context.
    fn streams(&self) -> Vec<Arc<Stream>> {
        let mut streams = stream::of_context(self.handle);
        streams.extend(lock(&self.per_thread).values().cloned());
        streams.push(Arc::clone(&self.legacy));
        streams
    }

    /// Wait for what other host threads have under way.
    fn synchronize(&self) -> Outcome {
        capture::forbid_in_context(self.handle)?;
        for stream in self.streams() {
            stream.in_order(self, || ());
        }
        self.check()
    }

    /// Take everything that belongs to this context away.
    fn destroy(&self) {
        CONTEXTS.remove(self.handle);
        capture::abandon_context(self.handle);
        stream::forget_context(self.handle);
        event::forget_context(self.handle);
        module::forget_context(self.handle);
        memory::forget_context(self.handle);
    }
}

fn find(handle: Handle) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).ok_or(CUresult::INVALID_CONTEXT)
}

fn top() -> Handle {
    // At the end of a thread there is no current context any more.
    STACK.try_with(|stack| stack.borrow().last().copied().unwrap_or(0)).unwrap_or(0)
}

fn with_stack<T>(change: impl FnOnce(&mut Vec<Handle>) -> T) -> Outcome<T> {
    STACK.try_with(|stack| change(&mut stack.borrow_mut())).map_err(|_| CUresult::INVALID_CONTEXT)
}

/// The current context, broken or not: for calls that give something back.
pub(super) fn current_even_broken() -> Outcome<Arc<Context>> {
    match top() {
        0 => Err(CUresult::INVALID_CONTEXT),
        handle => CONTEXTS.get(handle).ok_or(CUresult::CONTEXT_IS_DESTROYED),
    }
}

/// The current context, if it works.
pub(super) fn current() -> Outcome<Arc<Context>> {
    let context = current_even_broken()?;
    context.check()?;
    Ok(context)
}

/// The story of the fault that broke the current context, whichever thread's kernel it was.
pub(super) fn story() -> Option<String> {
    let context = current_even_broken().ok()?;
    context.check().is_err().then(|| lock(&context.story).clone())
}

/// The context of an object that remembers only its handle.
pub(super) fn owner(handle: Handle) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).ok_or(CUresult::CONTEXT_IS_DESTROYED)
}

/// An error unless `handle` names a context; 0 is not one.
pub(super) fn check_handle(handle: Handle) -> Outcome {
    find(handle).map(drop)
}

fn create_and_push(out: Out<Handle>, flags: u32, device: CUdevice) -> Outcome {
    out.wanted()?;
    device::check(device)?;
    if flags & !FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let handle = CONTEXTS.reserve();
    with_stack(|stack| stack.push(handle))?;
    Context::create(handle, flags, false);
    out.set(handle)
}

/// Starting value of a limit; nothing if the architecture has no such limit.
fn default_limit(limit: u32) -> Outcome<usize> {
    match limit {
        // Stack of a thread, printf buffer, malloc heap, pending device launches, L2 fetch granularity, persisting L2
        0 => Ok(1024),
        1 => Ok(1 << 20),
        2 => Ok(8 << 20),
        4 => Ok(2048),
        5 => Ok(64),
        6 => Ok(0),
        3 | 7..=10 => Err(CUresult::UNSUPPORTED_LIMIT),
        _ => Err(CUresult::INVALID_VALUE),
    }
}

api! {
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: CUdevice) {
        context.wanted()?;
        device::check(device)?;
        let mut primary = lock(&PRIMARY);
        let handle = *primary.handle.get_or_insert_with(|| CONTEXTS.reserve());
        if primary.retained == 0 {
            Context::create(handle, primary.flags, true);
        }
        primary.retained += 1;
        context.set(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) {
        device::check(device)?;
        let mut primary = lock(&PRIMARY);
        primary.retained = primary.retained.checked_sub(1).ok_or(CUresult::INVALID_CONTEXT)?;
        if primary.retained == 0
            && let Some(context) = primary.handle.and_then(|handle| CONTEXTS.get(handle))
        {
            context.destroy();
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) {
        device::check(device)?;
        let primary = lock(&PRIMARY);
        if let Some(context) = primary.handle.and_then(|handle| CONTEXTS.get(handle)) {
            context.destroy();
            Context::create(context.handle, primary.flags, true);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: Out<u32>, active: Out<i32>) {
        flags.wanted()?;
        active.wanted()?;
        device::check(device)?;
        let primary = lock(&PRIMARY);
        flags.set(primary.flags)?;
        active.set(i32::from(primary.retained > 0))
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: u32) {
        device::check(device)?;
        if flags & !FLAGS != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let mut primary = lock(&PRIMARY);
        primary.flags = flags;
        if let Some(context) = primary.handle.and_then(|handle| CONTEXTS.get(handle)) {
            context.flags.store(flags, Ordering::Relaxed);
        }
        Ok(())
    }

    fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: CUdevice) {
        create_and_push(context, flags, device)
    }

    fn cuCtxCreate_v3(context: Out<Handle>, _affinity: usize, count: i32, flags: u32, device: CUdevice) {
        if count != 0 {
            return Err(CUresult::UNSUPPORTED_EXEC_AFFINITY);
        }
        create_and_push(context, flags, device)
    }

    fn cuCtxCreate_v4(context: Out<Handle>, parameters: usize, flags: u32, device: CUdevice) {
        // Execution affinity and graphics interoperation are all that the parameters can ask for.
        if parameters != 0 {
            return Err(CUresult::NOT_SUPPORTED);
        }
        create_and_push(context, flags, device)
    }

    fn cuCtxDestroy_v2(context: Handle) {
        let context = find(context)?;
        if context.primary {
            return Err(CUresult::INVALID_CONTEXT);
        }
        context.destroy();
        with_stack(|stack| {
            if stack.last() == Some(&context.handle) {
                stack.pop();
            }
        })
    }

    fn cuCtxGetCurrent(context: Out<Handle>) {
        context.set(top())
    }

    fn cuCtxSetCurrent(context: Handle) {
        if context != 0 {
            find(context)?;
        }
        with_stack(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        })
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        find(context)?;
        with_stack(|stack| stack.push(context))
    }

    fn cuCtxPopCurrent_v2(context: Out<Handle>) {
        let popped = with_stack(Vec::pop)?.ok_or(CUresult::INVALID_CONTEXT)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    fn cuCtxSynchronize() {
        current()?.synchronize()
    }

    fn cuCtxSynchronize_v2(context: Handle) {
        let context = if context == 0 { current()? } else { find(context)? };
        context.check()?;
        context.synchronize()
    }

    fn cuCtxGetDevice(device: Out<CUdevice>) {
        device.wanted()?;
        current_even_broken()?;
        device.set(0)
    }

    fn cuCtxGetDevice_v2(device: Out<CUdevice>, context: Handle) {
        device.wanted()?;
        if context == 0 { current_even_broken()? } else { find(context)? };
        device.set(0)
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.set(current()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) {
        if flags & !FLAGS != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        id.wanted()?;
        let context = if context == 0 { current_even_broken()? } else { find(context)? };
        id.set(context.id)
    }

    fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        version.wanted()?;
        if context == 0 { current_even_broken()? } else { find(context)? };
        // What real drivers have answered since contexts took their present form.
        version.set(3020)
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        value.wanted()?;
        let context = current()?;
        let default = default_limit(limit)?;
        let limits = lock(&context.limits);
        value.set(limits.get(&limit).copied().unwrap_or(default))
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        default_limit(limit)?;
        lock(&current()?.limits).insert(limit, value);
        Ok(())
    }

    fn cuCtxGetCacheConfig(config: Out<u32>) {
        config.set(current()?.cache_config.load(Ordering::Relaxed))
    }

    fn cuCtxSetCacheConfig(config: u32) {
        if config > 3 {
            return Err(CUresult::INVALID_VALUE);
        }
        current()?.cache_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetSharedMemConfig(config: Out<u32>) {
        config.set(current()?.shared_config.load(Ordering::Relaxed))
    }

    fn cuCtxSetSharedMemConfig(config: u32) {
        if config > 2 {
            return Err(CUresult::INVALID_VALUE);
        }
        current()?.shared_config.store(config, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.set_if_wanted(stream::LEAST_PRIORITY);
        greatest.set_if_wanted(stream::GREATEST_PRIORITY);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() {
        current().map(drop)
    }

    fn cuCtxEnablePeerAccess(peer: Handle, flags: u32) {
        current()?;
        find(peer)?;
        if flags != 0 { Err(CUresult::INVALID_VALUE) } else { Err(CUresult::PEER_ACCESS_UNSUPPORTED) }
    }

    fn cuCtxDisablePeerAccess(peer: Handle) {
        current()?;
        find(peer)?;
        Err(CUresult::PEER_ACCESS_NOT_ENABLED)
    }
}

/// Makes the calling thread's current context usable again after a fault, and forgets the fault's story. No GPU can do
/// that: it is for tests that cause faults on purpose.
#[unsafe(no_mangle)]
pub(in crate::driver) unsafe extern "C" fn lookback_emulator_clear_fault() {
    if let Ok(context) = current_even_broken() {
        context.fault.store(0, Ordering::Release);
    }
    report::clear();
}
