//! Streams. Work runs on the calling thread when it is enqueued, so all that a stream keeps is the order in which host
//! threads take their turns, and the capture that it takes part in.

use super::api::api;
use super::args::Out;
use super::capture::{self, Membership};
use super::context::{self, Context};
use super::device::CUdevice;
use super::errors::{CUresult, Outcome};
use super::event;
use super::handles::{Handle, Kind, Table, lock};
use super::operation::{HostFunction, Operation, StreamCallback};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

static STREAMS: Table<Stream> = Table::new(Kind::Stream);

/// Priorities count downwards; these are a data-center GPU's.
pub(super) const LEAST_PRIORITY: i32 = 0;
/// The other end of the range.
pub(super) const GREATEST_PRIORITY: i32 = -5;

/// How a stream stands to the legacy stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavor {
    /// The legacy default stream: handles 0 and 1.
    Legacy,
    /// The default stream of one host thread: handle 2. Synchronises with the legacy stream.
    PerThread,
    /// Created; synchronises with the legacy stream.
    Blocking,
    /// Created with `CU_STREAM_NON_BLOCKING`.
    NonBlocking,
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Handle of its context.
    pub(super) context: Handle,
    /// How it stands to the legacy stream.
    pub(super) flavor: Flavor,
    id: u64,
    priority: i32,
    order: Mutex<()>,
    /// The capture that it takes part in.
    pub(super) capture: Mutex<Option<Membership>>,
}

impl Stream {
    /// A new stream of that context.
    pub(super) fn new(context: Handle, flavor: Flavor, priority: i32) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { context, flavor, id, priority, order: Mutex::new(()), capture: Mutex::new(None) }
    }

    /// Do `work` when everything that other host threads have begun before it on this stream is done.
    pub(super) fn in_order<T>(&self, context: &Context, work: impl FnOnce() -> T) -> T {
        match self.flavor {
            Flavor::Legacy => {
                let _every_blocking_stream = context.gate.write().unwrap_or_else(PoisonError::into_inner);
                work()
            }
            Flavor::PerThread | Flavor::Blocking => {
                let _not_the_legacy_stream = context.gate.read().unwrap_or_else(PoisonError::into_inner);
                let _this_stream = lock(&self.order);
                work()
            }
            Flavor::NonBlocking => {
                let _this_stream = lock(&self.order);
                work()
            }
        }
    }

    /// Whether nothing runs in this stream now.
    fn is_idle(&self, context: &Context) -> bool {
        match self.flavor {
            Flavor::Legacy => !matches!(context.gate.try_write(), Err(TryLockError::WouldBlock)),
            _ => !matches!(self.order.try_lock(), Err(TryLockError::WouldBlock)),
        }
    }
}

/// The stream of that handle, which must belong to the current context.
pub(super) fn find(handle: Handle, context: &Context) -> Outcome<Arc<Stream>> {
    match handle {
        0 | 1 => Ok(Arc::clone(&context.legacy)),
        2 => Ok(context.per_thread_stream()),
        _ => STREAMS.get(handle).filter(|stream| stream.context == context.handle).ok_or(CUresult::INVALID_HANDLE),
    }
}

/// The stream of that handle and its context, whichever that is.
pub(super) fn find_any(handle: Handle) -> Outcome<(Arc<Context>, Arc<Stream>)> {
    if handle <= 2 {
        let context = context::current()?;
        let stream = find(handle, &context)?;
        return Ok((context, stream));
    }
    let stream = STREAMS.get(handle).ok_or(CUresult::INVALID_HANDLE)?;
    let context = context::owner(stream.context)?;
    context.check()?;
    Ok((context, stream))
}

/// The created streams of a context.
pub(super) fn of_context(context: Handle) -> Vec<Arc<Stream>> {
    STREAMS.all().into_iter().filter(|stream| stream.context == context).collect()
}

/// A context is gone.
pub(super) fn forget_context(context: Handle) {
    STREAMS.remove_where(|stream| stream.context == context);
}

/// Enqueue `operation`: run it now, or add it to the graph that is being captured.
pub(super) fn submit(context: &Context, stream: &Arc<Stream>, operation: Operation) -> Outcome {
    if capture::append(stream, &operation)? {
        return Ok(());
    }
    stream.in_order(context, || {
        // Another host thread may have broken the context while this one waited.
        context.check()?;
        operation.run(context)
    })
}

fn create(out: Out<Handle>, flags: u32, priority: i32) -> Outcome {
    out.wanted()?;
    let context = context::current()?;
    let flavor = match flags {
        0 => Flavor::Blocking,
        1 => Flavor::NonBlocking,
        _ => return Err(CUresult::INVALID_VALUE),
    };
    let handle = STREAMS.reserve();
    let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
    STREAMS.insert(handle, Stream::new(context.handle, flavor, priority));
    out.set(handle)
}

api! {
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags, LEAST_PRIORITY)
    }

    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        let stream = STREAMS.remove(stream).ok_or(CUresult::INVALID_HANDLE)?;
        capture::abandon_stream(&stream);
        context::owner(stream.context)?.check()
    }

    fn cuStreamSynchronize(stream: Handle) {
        let (context, stream) = find_any(stream)?;
        capture::forbid_on_stream(&stream)?;
        stream.in_order(&context, || ());
        context.check()
    }

    fn cuStreamQuery(stream: Handle) {
        let (context, stream) = find_any(stream)?;
        capture::forbid_on_stream(&stream)?;
        if stream.is_idle(&context) { Ok(()) } else { Err(CUresult::NOT_READY) }
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        let (context, stream) = find_any(stream)?;
        let event = event::find(event)?;
        match flags {
            0 => capture::wait(&stream, &event),
            // CU_EVENT_WAIT_EXTERNAL: a node of its own while capturing
            1 => submit(&context, &stream, Operation::WaitEvent),
            _ => Err(CUresult::INVALID_VALUE),
        }
    }

    fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) {
        priority.set(find_any(stream)?.1.priority)
    }

    fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        flags.set(u32::from(find_any(stream)?.1.flavor == Flavor::NonBlocking))
    }

    fn cuStreamGetId(stream: Handle, id: Out<u64>) {
        id.set(find_any(stream)?.1.id)
    }

    fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) {
        context.set(find_any(stream)?.1.context)
    }

    fn cuStreamGetCtx_v2(stream: Handle, context: Out<Handle>, green: Out<Handle>) {
        context.set(find_any(stream)?.1.context)?;
        green.set_if_wanted(0);
        Ok(())
    }

    fn cuStreamGetDevice(stream: Handle, device: Out<CUdevice>) {
        find_any(stream)?;
        device.set(0)
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, data: usize) {
        let (context, stream) = find_any(stream)?;
        let function = function.ok_or(CUresult::INVALID_VALUE)?;
        submit(&context, &stream, Operation::HostFunction { function, data })
    }

    fn cuStreamAddCallback(stream: Handle, callback: Option<StreamCallback>, data: usize, flags: u32) {
        let handle = stream;
        let (context, stream) = find_any(handle)?;
        let callback = callback.ok_or(CUresult::INVALID_VALUE)?;
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        capture::forbid_on_stream(&stream)?;
        submit(&context, &stream, Operation::StreamCallback { callback, stream: handle, data })
    }
}
