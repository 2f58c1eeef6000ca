//! Events. Work is over when the call that enqueued it returns, so a recorded event is always complete; its time is the
//! host's clock at that moment.

use super::api::api;
use super::args::Out;
use super::capture::{self, CapturedAt};
use super::context;
use super::errors::{CUresult, Outcome};
use super::handles::{Handle, Kind, Table, lock};
use super::operation::Operation;
use super::stream;
use std::sync::{Arc, Mutex};
use std::time::Instant;

static EVENTS: Table<Event> = Table::new(Kind::Event);

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;

/// What was last recorded in an event.
#[derive(Debug, Clone)]
pub(super) enum Mark {
    /// Nothing yet.
    Never,
    /// The work before this moment.
    At(Instant),
    /// A place in a graph that is or was being captured.
    Captured(CapturedAt),
}

/// An event.
#[derive(Debug)]
pub(super) struct Event {
    /// Handle of its context.
    pub(super) context: Handle,
    timing: bool,
    /// What was last recorded.
    pub(super) mark: Mutex<Mark>,
}

impl Event {
    /// Record the present moment.
    pub(super) fn stamp(&self) {
        *lock(&self.mark) = Mark::At(Instant::now());
    }

    fn mark(&self) -> Mark {
        lock(&self.mark).clone()
    }

    /// An error if the event belongs to a capture, whose work has not happened.
    fn check_not_captured(&self) -> Outcome {
        if let Mark::Captured(at) = self.mark() {
            at.invalidate();
            return Err(CUresult::CAPTURED_EVENT);
        }
        Ok(())
    }
}

/// The event of that handle.
pub(super) fn find(handle: Handle) -> Outcome<Arc<Event>> {
    EVENTS.get(handle).ok_or(CUresult::INVALID_HANDLE)
}

/// A context is gone.
pub(super) fn forget_context(context: Handle) {
    EVENTS.remove_where(|event| event.context == context);
}

fn record(event: Handle, stream: Handle, flags: u32) -> Outcome {
    let (context, stream) = stream::find_any(stream)?;
    let event = find(event)?;
    if event.context != stream.context {
        return Err(CUresult::INVALID_HANDLE);
    }
    match flags {
        0 if capture::record(&stream, &event)? => Ok(()),
        // 1 is CU_EVENT_RECORD_EXTERNAL: a node of its own while capturing
        0 | 1 => stream::submit(&context, &stream, Operation::RecordEvent(event)),
        _ => Err(CUresult::INVALID_VALUE),
    }
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Outcome {
    milliseconds.wanted()?;
    let (start, end) = (find(start)?, find(end)?);
    context::owner(start.context)?.check()?;
    if start.context != end.context || !start.timing || !end.timing {
        return Err(CUresult::INVALID_HANDLE);
    }
    start.check_not_captured()?;
    end.check_not_captured()?;
    let (Mark::At(start), Mark::At(end)) = (start.mark(), end.mark()) else {
        return Err(CUresult::INVALID_HANDLE);
    };
    let signed = match end.checked_duration_since(start) {
        Some(after) => after.as_secs_f64(),
        None => -start.duration_since(end).as_secs_f64(),
    };
    milliseconds.set((signed * 1e3) as f32)
}

api! {
    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        event.wanted()?;
        let context = context::current()?;
        // CU_EVENT_INTERPROCESS is not emulated.
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING) != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let handle = EVENTS.reserve();
        let timing = flags & DISABLE_TIMING == 0;
        EVENTS.insert(handle, Event { context: context.handle, timing, mark: Mutex::new(Mark::Never) });
        event.set(handle)
    }

    fn cuEventDestroy_v2(event: Handle) {
        let event = EVENTS.remove(event).ok_or(CUresult::INVALID_HANDLE)?;
        context::owner(event.context)?.check()
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream, 0)
    }

    fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        record(event, stream, flags)
    }

    fn cuEventQuery(event: Handle) {
        let event = find(event)?;
        context::owner(event.context)?.check()?;
        event.check_not_captured()?;
        capture::forbid_unsafe_call()
    }

    fn cuEventSynchronize(event: Handle) {
        let event = find(event)?;
        context::owner(event.context)?.check()?;
        event.check_not_captured()
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
