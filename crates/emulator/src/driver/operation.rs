//! What can be enqueued: run at once in a stream, or kept as a node of a graph and run at each launch of it.

use super::api;
use super::context::Context;
use super::errors::{CUresult, Outcome};
use super::event::Event;
use super::handles::Handle;
use super::launch::KernelLaunch;
use super::memory;
use super::recording;
use std::sync::Arc;

/// `CUhostFn`
pub(super) type HostFunction = unsafe extern "C" fn(data: usize);

/// `CUstreamCallback`
pub(super) type StreamCallback = unsafe extern "C" fn(stream: Handle, status: CUresult, data: usize);

/// A rectangle of device memory that is filled with one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    /// First byte.
    pub(super) to: u64,
    /// The value, in its low bytes.
    pub(super) value: u32,
    /// Bytes of the value: 1, 2 or 4.
    pub(super) width: u8,
    /// Values in a row.
    pub(super) columns: u64,
    /// Rows.
    pub(super) rows: u64,
    /// Bytes from one row to the next.
    pub(super) pitch: u64,
}

/// One piece of work.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    /// A kernel with its arguments.
    Kernel(Arc<KernelLaunch>),
    /// Copy between any two places; each is a device pointer or a host address.
    Copy {
        /// Target.
        to: u64,
        /// Source.
        from: u64,
        /// Length.
        bytes: u64,
    },
    /// Fill device memory.
    Fill(Fill),
    /// Call back into the program.
    HostFunction {
        /// What to call.
        function: HostFunction,
        /// Its argument.
        data: usize,
    },
    /// Call back into the program, in the older form.
    StreamCallback {
        /// What to call.
        callback: StreamCallback,
        /// Its first argument.
        stream: Handle,
        /// Its last argument.
        data: usize,
    },
    /// Record an event.
    RecordEvent(Arc<Event>),
    /// Wait for an event: nothing to do, since an event is complete when the call that records it returns.
    WaitEvent,
}

impl Operation {
    /// Do it, or list it. A fault of a kernel breaks the context and is reported by later calls, as on hardware.
    pub(super) fn run(&self, context: &Context) -> Outcome {
        if let Some(recorded) = recording::take(self) {
            return recorded;
        }
        match self {
            Self::Kernel(launch) => launch.run(context),
            Self::Copy { to, from, bytes } => memory::copy(*to, *from, *bytes),
            Self::Fill(fill) => memory::fill(fill),
            Self::HostFunction { function, data } => {
                // SAFETY: the program gave this function to be called with this argument.
                api::in_callback(|| unsafe { function(*data) });
                Ok(())
            }
            Self::StreamCallback { callback, stream, data } => {
                // SAFETY: the program gave this function to be called with these arguments.
                api::in_callback(|| unsafe { callback(*stream, CUresult::SUCCESS, *data) });
                Ok(())
            }
            Self::RecordEvent(event) => {
                event.stamp();
                Ok(())
            }
            Self::WaitEvent => Ok(()),
        }
    }

    /// `CUgraphNodeType`
    pub(super) fn node_type(&self) -> u32 {
        match self {
            Self::Kernel(_) => 0,
            Self::Copy { .. } => 1,
            Self::Fill(_) => 2,
            Self::HostFunction { .. } | Self::StreamCallback { .. } => 3,
            Self::WaitEvent => 6,
            Self::RecordEvent(_) => 7,
        }
    }
}
