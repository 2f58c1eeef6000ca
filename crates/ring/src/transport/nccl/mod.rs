//! A transport that leaves device memory where it is: NCCL moves it, on a stream of its own.

mod library;

use super::{Message, Staged, Transport};
use crate::{DeviceInfo, Error, Result, schedule::Parcel};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result::stream::get_priority_range,
};
use library::{Comm, Library, Part, UniqueId};
use lookback_device::{PeerFault, driver, memory};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Between two looks at what the device does.
const PAUSE: Duration = Duration::from_micros(20);

/// The version of NCCL on this machine, say 22304 for 2.23.4.
///
/// # Errors
/// [`Error::NoLibrary`] ← there is none, or it is older than 2.14.
pub fn nccl_version() -> Result<u32> {
    Library::get()?.version()
}

/// What one GPU can show of NCCL: makes a world of one rank, which sends a mebibyte to itself. Returns the library's version.
///
/// # Errors
/// Those of [`nccl`]; [`Error::Library`], also ← other bytes came than were sent.
pub fn nccl_alone(context: &Arc<CudaContext>) -> Result<u32> {
    // Longer than the first communicator of a process takes.
    let Some(control) = super::local(1, Duration::from_secs(60)).pop() else { return Library::get()?.version() };
    let mut alone = nccl(control, context)?;
    let stream = alone.stream.clone();
    let failed = |e| driver(e, "transfer to itself");
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let sent = stream.clone_htod(&bytes).map_err(failed)?;
    let mut came = stream.alloc_zeros::<u8>(bytes.len()).map_err(failed)?;
    let whole = |address| [Part { peer: 0, address, bytes: bytes.len() }];
    let (from, to) = (whole(sent.device_ptr(&stream).0), whole(came.device_ptr_mut(&stream).0));
    // SAFETY: both are as long as the part says, and live until the stream has come past this, which is waited for.
    unsafe { alone.comm.exchange(stream.cu_stream(), &from, &to)? };
    alone.settle(None)?;
    let done = stream.record_event(None).map_err(failed)?;
    alone.settle(Some((&done, 0, 0)))?;
    if stream.clone_dtoh(&came).map_err(failed)? != bytes {
        let why = "other bytes came than were sent".into();
        return Err(Error::Library { library: "NCCL", what: "transfer to itself", why });
    }
    Library::get()?.version()
}

/// Links that move device memory by NCCL. `control` is how the ranks meet and notice each other's faults; every message is announced
/// there, so that both ends see that they mean the same. Every rank calls this, from the thread that will use the transport.
///
/// # Errors
/// [`Error::NoLibrary`], [`Error::NoDriver`] ← the context is the emulator's; [`Error::Peer`] ← another rank cannot, or has another
/// version; [`Error::Library`] ← NCCL's own words. All ranks fail when one does.
pub fn nccl(mut control: Staged, context: &Arc<CudaContext>) -> Result<Nccl> {
    let began = Instant::now();
    let (rank, ranks) = (control.rank(), control.ranks());
    let found = find(context);
    // Nobody may wait in NCCL for one that will not come.
    let own = found.as_ref().map_or(0, |(_, version)| *version);
    let versions = control.all_gather(&own.to_le_bytes(), 4)?;
    let (library, _) = found?;
    if let Some(other) = versions.iter().position(|version| *version != own.to_le_bytes()) {
        return Err(control.wire.blame(other, 0, PeerFault::Mismatch, began));
    }
    let id = if rank == 0 { library.unique_id().map(Some) } else { Ok(None) };
    let word = id.as_ref().map_or(Vec::new(), |id| id.map_or(Vec::new(), |id| id.bytes.to_vec()));
    let words = control.all_gather(&word, 128)?;
    id?;
    let Some(Ok(bytes)) = words.first().map(|word| <[u8; 128]>::try_from(&word[..])) else {
        return Err(control.wire.blame(0, 0, PeerFault::Mismatch, began));
    };
    let failed = |e| driver(e, "stream for transfers");
    context.bind_to_thread().map_err(failed)?;
    let (_, highest) = get_priority_range().map_err(failed)?;
    let stream = context.new_stream_with_priority(highest).map_err(failed)?;
    control.announces();
    let made = Comm::new(library, ranks, rank, UniqueId { bytes });
    let comm = made.inspect_err(|error| control.abort(error))?;
    let mut all = Nccl { comm, stream, flights: Vec::new(), control };
    let settled = all.settle(None);
    settled.inspect_err(|error| all.abort(error))?;
    Ok(all)
}

/// The library and its version, if the device is one that it can use.
fn find(context: &Arc<CudaContext>) -> Result<(&'static Library, u32)> {
    let library = Library::get()?;
    if DeviceInfo::of(context)?.emulated {
        return Err(Error::NoDriver { tried: vec!["the emulator, which NCCL cannot use".into()] });
    }
    Ok((library, library.version()?))
}

/// Links by NCCL. Messages of several steps go behind shorter ones of the same step; all share one stream.
///
/// [`end`](Transport::end) waits on the host until what is due has come, so that a rank that is gone is noticed; computing goes on
/// meanwhile.
pub struct Nccl {
    // First, so that its kernels have ended when memory and links go.
    comm: Comm,
    stream: Arc<CudaStream>,
    flights: Vec<Flight>,
    control: Staged,
}

/// Transfers that were queued together.
struct Flight {
    /// The step that they end with.
    due: u32,
    done: CudaEvent,
    /// A rank at another end, to blame for silence.
    peer: usize,
    /// Memory of messages in several pieces.
    _packed: Vec<CudaSlice<u8>>,
}

impl Nccl {
    /// Waits until the communicator is done with the last call, and `event` has come, if there is one. Fails when any rank has failed,
    /// or when the time is over; nothing is under way then.
    fn settle(&mut self, event: Option<(&CudaEvent, u32, usize)>) -> Result<()> {
        let next = (self.control.rank() + 1) % self.control.ranks();
        let (step, peer) = event.map_or((0, next), |(_, step, peer)| (step, peer));
        let began = Instant::now();
        self.control.wire.waits(Some((peer, began)));
        let settled = self.wait(event.map(|(event, ..)| event), (step, peer), began);
        self.control.wire.waits(None);
        if settled.is_err() {
            self.comm.abort();
        }
        settled
    }

    fn wait(&mut self, event: Option<&CudaEvent>, (step, peer): (u32, usize), began: Instant) -> Result<()> {
        let timeout = self.control.wire.timeout();
        loop {
            self.control.wire.poll()?;
            let is_busy = self.comm.is_busy()?;
            let is_done = match event {
                Some(event) => event.try_is_complete().map_err(|e| driver(e, "transfer"))?,
                None => true,
            };
            if is_done && !is_busy {
                return Ok(());
            }
            if began.elapsed() > timeout {
                return Err(self.control.wire.blame(peer, step, PeerFault::Silent, began));
            }
            thread::sleep(PAUSE);
        }
    }

    /// One part for each message that is not empty; those in several pieces get memory of their own.
    fn parts(&self, messages: &[&Message], packed: &mut Vec<CudaSlice<u8>>) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        for message in messages {
            let bytes = message.bytes();
            let address = match &message.segments[..] {
                [(address, _)] => *address,
                _ => {
                    // SAFETY: what is sent is packed before it is read, what is received comes before it is unpacked.
                    let memory = unsafe { self.stream.alloc::<u8>(bytes) };
                    packed.push(memory.map_err(|e| driver(e, "memory of a message"))?);
                    let last = packed.len() - 1;
                    packed[last].device_ptr_mut(&self.stream).0
                }
            };
            parts.push(Part { peer: message.peer, address, bytes });
        }
        Ok(parts)
    }

    /// Copies between the pieces of messages and the memory that travels.
    ///
    /// # Safety
    /// As for [`Transport::begin`].
    unsafe fn pack(&self, messages: &[&Message], parts: &[Part], is_sent: bool) -> Result<()> {
        for (message, part) in messages.iter().zip(parts).filter(|(message, _)| message.segments.len() > 1) {
            let mut at = part.address;
            for (address, bytes) in &message.segments {
                let (to, from) = if is_sent { (at, *address) } else { (*address, at) };
                if *bytes > 0 {
                    // SAFETY: the caller vouches for the segment, the other side is this message's own memory.
                    unsafe { memory::copy(&self.stream, to, from, *bytes)? };
                }
                at += *bytes as u64;
            }
        }
        Ok(())
    }

    /// Queues messages that are due together.
    ///
    /// # Safety
    /// As for [`Transport::begin`].
    unsafe fn launch(&mut self, due: u32, send: &[&Message], receive: &[&Message]) -> Result<()> {
        let Some(peer) = receive.iter().chain(send).map(|message| message.peer).next() else { return Ok(()) };
        let mut packed = Vec::new();
        let leaving = self.parts(send, &mut packed)?;
        let coming = self.parts(receive, &mut packed)?;
        // SAFETY: the caller's promise; both ends list their messages in one order.
        unsafe {
            self.pack(send, &leaving, true)?;
            self.comm.exchange(self.stream.cu_stream(), &leaving, &coming)?;
        }
        // What is queued from the background must be there before what goes behind it.
        self.settle(None)?;
        // SAFETY: the caller's promise.
        unsafe { self.pack(receive, &coming, false)? };
        let done = self.stream.record_event(None).map_err(|e| driver(e, "end of transfers"))?;
        self.flights.push(Flight { due, done, peer, _packed: packed });
        Ok(())
    }
}

/// Those that are due with a step, in an order that both ends agree on.
fn due_in(messages: &[Message], due: u32) -> Vec<&Message> {
    let mut found: Vec<&Message> = messages.iter().filter(|m| m.due() == due && m.bytes() > 0).collect();
    found.sort_by_key(|message| {
        let Parcel { item, owner, tokens, heads } = &message.label.parcel;
        (message.peer, *item, *owner, tokens.start, heads.start)
    });
    found
}

impl Transport for Nccl {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn ranks(&self) -> usize {
        self.control.ranks()
    }

    fn next_operation(&mut self) -> u32 {
        self.control.next_operation()
    }

    unsafe fn begin(
        &mut self,
        step: u32,
        stream: &Arc<CudaStream>,
        send: &[Message],
        receive: &[Message],
    ) -> Result<()> {
        self.control.announce(step, send, receive)?;
        let failed = |e| driver(e, "begin of transfers");
        let ready = stream.record_event(None).map_err(failed)?;
        self.stream.wait(&ready).map_err(failed)?;
        let mut dues: Vec<u32> = send.iter().chain(receive).map(Message::due).collect();
        dues.sort_unstable();
        dues.dedup();
        for due in dues {
            // SAFETY: the caller's promise.
            unsafe { self.launch(due, &due_in(send, due), &due_in(receive, due))? };
        }
        Ok(())
    }

    unsafe fn end(&mut self, step: u32, stream: &Arc<CudaStream>) -> Result<()> {
        self.control.announced(step)?;
        for Flight { done, peer, .. } in self.flights.extract_if(.., |flight| flight.due <= step).collect::<Vec<_>>() {
            self.settle(Some((&done, step, peer)))?;
            stream.wait(&done).map_err(|e| driver(e, "end of transfers"))?;
        }
        Ok(())
    }

    fn all_gather(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
        self.control.all_gather(bytes, most)
    }

    fn abort(&mut self, error: &Error) {
        self.control.abort(error);
        self.comm.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Layout, Partition, Visible,
        schedule::{Job, Kind, Needs, Pass, Schedule, Transfer, schedule},
        transport::Label,
    };

    fn messages(step: usize, transfers: &[Transfer]) -> Vec<Message> {
        let message = |Transfer { peer, parcel, steps }: &Transfer| Message {
            peer: *peer,
            label: Label { operation: 0, step: step as u32, parcel: parcel.clone() },
            segments: vec![(0, 1)],
            steps: *steps as u32,
        };
        transfers.iter().map(message).collect()
    }

    /// NCCL pairs messages between two ranks by their order alone.
    #[test]
    fn both_ends_list_their_messages_in_one_order() {
        let ranks = 4;
        let kinds = [
            Kind::Ring,
            Kind::Bidirectional,
            Kind::TwoLevel { node: 2 },
            Kind::TokenRing,
            Kind::AllGather { groups: 2 },
            Kind::Ulysses,
        ];
        let mut compared = 0;
        for partition in [Partition::Contiguous, Partition::Zigzag, Partition::Striped] {
            let layout = Layout { partition, tokens: 61, ranks };
            let job = Job { layout, heads: 8, key_heads: 4, needs: Needs::new(&layout, &Visible::causal(61)) };
            for (kind, pass) in kinds.into_iter().flat_map(|kind| [(kind, Pass::Forward), (kind, Pass::Backward)]) {
                let all: Vec<Schedule> = (0..ranks).map(|rank| schedule(kind, pass, &job, rank).unwrap()).collect();
                let steps = all.iter().map(|s| s.steps.len()).max().unwrap();
                for (step, from, to) in
                    (0..steps).flat_map(|s| (0..ranks * ranks).map(move |i| (s, i / ranks, i % ranks)))
                {
                    let of = |rank: usize, peer: usize, is_sent: bool| -> Vec<Label> {
                        let Some(found) = all[rank].steps.get(step) else { return Vec::new() };
                        let mut found = messages(step, if is_sent { &found.send } else { &found.receive });
                        // Whatever order a schedule lists them in.
                        if !is_sent {
                            found.reverse();
                        }
                        let dues = step as u32..(step + steps) as u32;
                        let due = dues.flat_map(|due| due_in(&found, due).into_iter().cloned().collect::<Vec<_>>());
                        due.filter(|message| message.peer == peer).map(|message| message.label).collect()
                    };
                    let (sent, received) = (of(from, to, true), of(to, from, false));
                    assert_eq!(sent, received, "{kind:?} {pass:?} {partition:?}: {from} to {to} in step {step}");
                    compared += sent.len();
                }
            }
        }
        assert!(compared > 500, "{compared}");
    }
}
