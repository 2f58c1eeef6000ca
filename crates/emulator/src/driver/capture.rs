//! Capture of streams into graphs: what is enqueued becomes a node, events carry dependencies from stream to stream,
//! and whatever would need the captured work to have happened is refused.

use super::api::api;
use super::args::Out;
use super::errors::{CUresult, Outcome};
use super::event::{Event, Mark};
use super::graph::{self, Node};
use super::handles::{Handle, lock};
use super::operation::Operation;
use super::stream::{self, Flavor, Stream};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, ThreadId};

/// `CU_STREAM_CAPTURE_MODE_*`
const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

/// Number of captures under way; nearly always 0, and then nothing here costs more than reading it.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static CAPTURES: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

thread_local! {
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// One capture, from begin to end.
#[derive(Debug)]
pub(super) struct Capture {
    id: u64,
    mode: u32,
    thread: ThreadId,
    context: Handle,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    valid: bool,
    ended: bool,
    /// A stream takes part that synchronises with the legacy stream.
    blocking: bool,
    members: Vec<Weak<Stream>>,
}

/// A stream's part in a capture.
#[derive(Debug)]
pub(super) struct Membership {
    capture: Arc<Capture>,
    origin: bool,
    /// The nodes that the stream's next node depends on.
    frontier: Vec<usize>,
}

/// What an event holds that was recorded in a capturing stream.
#[derive(Debug, Clone)]
pub(super) struct CapturedAt {
    capture: Arc<Capture>,
    frontier: Vec<usize>,
}

impl CapturedAt {
    /// The program waited for what has not happened.
    pub(super) fn invalidate(&self) {
        self.capture.invalidate();
    }
}

impl Capture {
    fn invalidate(&self) {
        lock(&self.state).valid = false;
    }

    fn check(&self) -> Outcome {
        if lock(&self.state).valid { Ok(()) } else { Err(CUresult::STREAM_CAPTURE_INVALIDATED) }
    }

    fn join(self: &Arc<Self>, stream: &Arc<Stream>, origin: bool, frontier: Vec<usize>) -> Membership {
        let mut state = lock(&self.state);
        state.blocking |= stream.flavor != Flavor::NonBlocking;
        state.members.push(Arc::downgrade(stream));
        Membership { capture: Arc::clone(self), origin, frontier }
    }

    /// Let all streams go. Gives the nodes and whether they may be used, or nothing if that was done before.
    fn end(self: &Arc<Self>) -> Option<Ended> {
        let (nodes, valid, members) = {
            let mut state = lock(&self.state);
            if std::mem::replace(&mut state.ended, true) {
                return None;
            }
            (std::mem::take(&mut state.nodes), state.valid, std::mem::take(&mut state.members))
        };
        let mut ended = Ended { nodes, valid, joined: Vec::new(), forks: Vec::new() };
        for stream in members.iter().filter_map(Weak::upgrade) {
            let mut membership = lock(&stream.capture);
            if let Some(own) = membership.take_if(|membership| Arc::ptr_eq(&membership.capture, self)) {
                if own.origin {
                    ended.joined = own.frontier;
                } else {
                    ended.forks.extend(own.frontier);
                }
            }
        }
        lock(&CAPTURES).retain(|capture| !Arc::ptr_eq(capture, self));
        ACTIVE.fetch_sub(1, Ordering::AcqRel);
        Some(ended)
    }
}

/// What is left of a capture.
struct Ended {
    nodes: Vec<Node>,
    valid: bool,
    /// Last nodes of the stream that the capture began in.
    joined: Vec<usize>,
    /// Last nodes of all other streams.
    forks: Vec<usize>,
}

impl Ended {
    /// Whether all work of the other streams leads back to the first.
    fn is_joined(&self) -> bool {
        let mut reached = vec![false; self.nodes.len()];
        let mut open = self.joined.clone();
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                open.extend(&self.nodes[node].dependencies);
            }
        }
        self.forks.iter().all(|node| reached[*node])
    }
}

fn none_active() -> bool {
    ACTIVE.load(Ordering::Acquire) == 0
}

fn active() -> Vec<Arc<Capture>> {
    lock(&CAPTURES).clone()
}

/// The legacy stream waits for every blocking stream, which none may do that is being captured.
fn forbid_legacy(stream: &Stream) -> Outcome {
    if stream.flavor != Flavor::Legacy || none_active() {
        return Ok(());
    }
    let blocking = |capture: &&Arc<Capture>| capture.context == stream.context && lock(&capture.state).blocking;
    match active().iter().find(blocking) {
        Some(capture) => {
            capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_IMPLICIT)
        }
        None => Ok(()),
    }
}

/// Add `operation` to the capture that `stream` takes part in; false if it takes part in none.
pub(super) fn append(stream: &Stream, operation: &Operation) -> Outcome<bool> {
    if none_active() {
        return Ok(false);
    }
    forbid_legacy(stream)?;
    let mut membership = lock(&stream.capture);
    let Some(membership) = membership.as_mut() else { return Ok(false) };
    membership.capture.check()?;
    let mut state = lock(&membership.capture.state);
    let dependencies = std::mem::replace(&mut membership.frontier, vec![state.nodes.len()]);
    state.nodes.push(Node::new(operation.clone(), dependencies));
    Ok(true)
}

/// Record `event` in a capture; false if `stream` takes part in none.
pub(super) fn record(stream: &Stream, event: &Event) -> Outcome<bool> {
    if none_active() {
        return Ok(false);
    }
    let membership = lock(&stream.capture);
    let Some(membership) = membership.as_ref() else { return Ok(false) };
    membership.capture.check()?;
    let at = CapturedAt { capture: Arc::clone(&membership.capture), frontier: membership.frontier.clone() };
    *lock(&event.mark) = Mark::Captured(at);
    Ok(true)
}

/// `stream` waits for `event`: a dependency while capturing, and nothing to do otherwise since recorded work is over.
pub(super) fn wait(stream: &Arc<Stream>, event: &Event) -> Outcome {
    let mark = lock(&event.mark).clone();
    if none_active() {
        return if matches!(mark, Mark::Captured(_)) { Err(CUresult::CAPTURED_EVENT) } else { Ok(()) };
    }
    let mut membership = lock(&stream.capture);
    match (membership.as_mut(), mark) {
        (None, Mark::Never | Mark::At(_)) => forbid_legacy(stream),
        (Some(own), Mark::Never) => own.capture.check(),
        (Some(own), Mark::At(_)) => {
            own.capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_ISOLATION)
        }
        (Some(own), Mark::Captured(at)) if Arc::ptr_eq(&own.capture, &at.capture) => {
            own.capture.check()?;
            own.frontier.extend(at.frontier);
            own.frontier.sort_unstable();
            own.frontier.dedup();
            Ok(())
        }
        (Some(own), Mark::Captured(at)) => {
            own.capture.invalidate();
            at.capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_MERGE)
        }
        (None, Mark::Captured(at)) if lock(&at.capture.state).ended => Err(CUresult::CAPTURED_EVENT),
        (None, Mark::Captured(at)) if stream.flavor == Flavor::Legacy => {
            at.capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_IMPLICIT)
        }
        (None, Mark::Captured(at)) => {
            at.capture.check()?;
            *membership = Some(at.capture.join(stream, false, at.frontier));
            Ok(())
        }
    }
}

/// Refuse a call that needs the work of `stream` done, or makes no node.
pub(super) fn forbid_on_stream(stream: &Stream) -> Outcome {
    if none_active() {
        return Ok(());
    }
    forbid_legacy(stream)?;
    match lock(&stream.capture).as_ref() {
        Some(membership) => {
            membership.capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_UNSUPPORTED)
        }
        None => Ok(()),
    }
}

/// Refuse a call that needs all work of a context done.
pub(super) fn forbid_in_context(context: Handle) -> Outcome {
    forbid_while(|capture| capture.context == context)
}

/// Refuse a call that may synchronise behind the program's back (allocation, synchronous copies ..), as far as the
/// capture modes of this thread and of the captures say so.
pub(super) fn forbid_unsafe_call() -> Outcome {
    let me = thread::current().id();
    match MODE.get() {
        RELAXED => Ok(()),
        THREAD_LOCAL => forbid_while(|capture| capture.mode != RELAXED && capture.thread == me),
        _ => forbid_while(|capture| capture.mode == GLOBAL || (capture.mode != RELAXED && capture.thread == me)),
    }
}

fn forbid_while(condition: impl Fn(&Capture) -> bool) -> Outcome {
    if none_active() {
        return Ok(());
    }
    match active().iter().find(|capture| condition(capture)) {
        Some(capture) => {
            capture.invalidate();
            Err(CUresult::STREAM_CAPTURE_UNSUPPORTED)
        }
        None => Ok(()),
    }
}

/// A stream is destroyed.
pub(super) fn abandon_stream(stream: &Stream) {
    let membership = lock(&stream.capture).take();
    if let Some(membership) = membership {
        membership.capture.invalidate();
        if membership.origin {
            membership.capture.end();
        }
    }
}

/// A context is destroyed.
pub(super) fn abandon_context(context: Handle) {
    for capture in active().iter().filter(|capture| capture.context == context) {
        capture.end();
    }
}

/// `CUstreamCaptureStatus` and the number of the capture.
fn status(stream: &Stream) -> Outcome<(u32, u64)> {
    forbid_legacy(stream)?;
    Ok(match lock(&stream.capture).as_ref() {
        None => (0, 0),
        Some(membership) if membership.capture.check().is_ok() => (1, membership.capture.id),
        Some(membership) => (2, membership.capture.id),
    })
}

api! {
    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let (_, stream) = stream::find_any(stream)?;
        if mode > RELAXED {
            return Err(CUresult::INVALID_VALUE);
        }
        if stream.flavor == Flavor::Legacy {
            return Err(CUresult::STREAM_CAPTURE_UNSUPPORTED);
        }
        let mut membership = lock(&stream.capture);
        if membership.is_some() {
            return Err(CUresult::ILLEGAL_STATE);
        }
        let state = State { nodes: Vec::new(), valid: true, ended: false, blocking: false, members: Vec::new() };
        let capture = Arc::new(Capture {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            mode,
            thread: thread::current().id(),
            context: stream.context,
            state: Mutex::new(state),
        });
        *membership = Some(capture.join(&stream, true, Vec::new()));
        lock(&CAPTURES).push(capture);
        ACTIVE.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        graph.wanted()?;
        let (_, stream) = stream::find_any(stream)?;
        graph.set(0)?;
        let (capture, origin) = {
            let membership = lock(&stream.capture);
            let membership = membership.as_ref().ok_or(CUresult::ILLEGAL_STATE)?;
            (Arc::clone(&membership.capture), membership.origin)
        };
        if !origin {
            capture.invalidate();
            return Err(CUresult::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != thread::current().id() {
            return Err(CUresult::STREAM_CAPTURE_WRONG_THREAD);
        }
        let ended = capture.end().ok_or(CUresult::ILLEGAL_STATE)?;
        if !ended.valid {
            return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
        }
        if !ended.is_joined() {
            return Err(CUresult::STREAM_CAPTURE_UNJOINED);
        }
        graph.set(graph::create(ended.nodes))
    }

    fn cuStreamIsCapturing(stream: Handle, out: Out<u32>) {
        out.wanted()?;
        let (_, stream) = stream::find_any(stream)?;
        out.set(status(&stream)?.0)
    }

    fn cuStreamGetCaptureInfo(stream: Handle, out: Out<u32>, id: Out<u64>) {
        out.wanted()?;
        let (_, stream) = stream::find_any(stream)?;
        let (state, number) = status(&stream)?;
        id.set_if_wanted(number);
        out.set(state)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: Handle,
        out: Out<u32>,
        id: Out<u64>,
        graph: Out<Handle>,
        dependencies: Out<usize>,
        count: Out<usize>,
    ) {
        capture_info(stream, out, id, [graph, dependencies, count])
    }

    fn cuStreamGetCaptureInfo_v3(
        stream: Handle,
        out: Out<u32>,
        id: Out<u64>,
        graph: Out<Handle>,
        dependencies: Out<usize>,
        edges: Out<usize>,
        count: Out<usize>,
    ) {
        if !edges.is_null() {
            return Err(CUresult::NOT_SUPPORTED);
        }
        capture_info(stream, out, id, [graph, dependencies, count])
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let new = mode.get()?;
        if new > RELAXED {
            return Err(CUresult::INVALID_VALUE);
        }
        mode.set(MODE.replace(new))
    }
}

/// Status and number; the graph under construction cannot be had.
fn capture_info(stream: Handle, out: Out<u32>, id: Out<u64>, details: [Out<usize>; 3]) -> Outcome {
    out.wanted()?;
    let (_, stream) = stream::find_any(stream)?;
    let (state, number) = status(&stream)?;
    if state != 0 && details.iter().any(|detail| !detail.is_null()) {
        return Err(CUresult::NOT_SUPPORTED);
    }
    id.set_if_wanted(number);
    out.set(state)
}
