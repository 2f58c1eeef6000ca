//! A transport by way of host memory: copied down when the step begins, sent by threads beside the computing, copied up at its end.

use super::{
    Label, Message, Transport,
    frame::{Frame, Kind},
    wire::Wire,
};
use crate::{Error, Result};
use cudarc::driver::CudaStream;
use lookback_device::{PeerFault, memory};
use std::{sync::Arc, time::Instant};

/// Links over host memory: between threads by [`local`](super::local()), between processes by [`tcp`](super::tcp()).
///
/// A step's transfers run beside what is computed in it; copies between device and host do not.
pub struct Staged {
    pub(super) wire: Wire,
    /// Begun and not ended.
    awaited: Vec<Message>,
    /// Came before what is waited for: longer transfers began earlier.
    early: Vec<(usize, Frame)>,
    operations: u32,
    /// Steps of the operation below this have begun.
    begun: u32,
    /// Whether a frame's bytes can be those of a message.
    fits: fn(&Frame, &Message) -> bool,
}

impl Staged {
    pub(super) fn new(wire: Wire) -> Self {
        Self {
            wire,
            awaited: Vec::new(),
            early: Vec::new(),
            operations: 0,
            begun: 0,
            fits: |f, m| f.bytes.len() == m.bytes(),
        }
    }

    /// Fails if anybody has failed so far, or has sent what belongs to a step that has begun and is in none of its messages.
    fn poll(&mut self) -> Result<()> {
        self.wire.poll()?;
        let (operations, begun, awaited) = (self.operations, self.begun, &self.awaited);
        let is_stray = |peer: usize, label: &Label| {
            let ago = operations.wrapping_sub(label.operation);
            let is_past = (ago == 0 && label.step < begun) || (ago > 0 && ago < u32::MAX / 2);
            is_past && awaited.iter().all(|message| message.peer != peer || message.label != *label)
        };
        let stray = self.wire.waiting().find(|(peer, label)| is_stray(*peer, label));
        match stray.map(|(peer, label)| (peer, label.step)) {
            Some((peer, step)) => Err(self.wire.blame(peer, step, PeerFault::Mismatch, Instant::now())),
            None => Ok(()),
        }
    }

    /// The frame of a message.
    fn find(&mut self, message: &Message) -> Result<Frame> {
        let fits = self.fits;
        let is_it = |(peer, frame): &(usize, Frame), of: &Message| {
            *peer == of.peer && frame.kind == Kind::Data(of.label.clone()) && fits(frame, of)
        };
        if let Some(at) = self.early.iter().position(|came| is_it(came, message)) {
            return Ok(self.early.swap_remove(at).1);
        }
        loop {
            let began = Instant::now();
            let came = (message.peer, self.wire.receive(message.peer, message.label.step)?);
            if is_it(&came, message) {
                return Ok(came.1);
            }
            if !self.awaited.iter().any(|later| is_it(&came, later)) || self.early.contains(&came) {
                return Err(self.wire.blame(message.peer, message.label.step, PeerFault::Mismatch, began));
            }
            self.early.push(came);
        }
    }

    /// Hands over what is due with `step`, message by message.
    fn each_due(&mut self, step: u32, mut take: impl FnMut(&Message, Frame) -> Result<()>) -> Result<()> {
        self.poll()?;
        let due: Vec<Message> = self.awaited.extract_if(.., |message| message.due() <= step).collect();
        // Also those of this step that come after one that is looked for now.
        for (at, message) in due.iter().enumerate() {
            let rest = &due[at + 1..];
            self.awaited.extend_from_slice(rest);
            let found = self.find(message);
            self.awaited.truncate(self.awaited.len() - rest.len());
            take(message, found?)?;
        }
        Ok(())
    }
}

#[cfg(feature = "nccl")]
impl Staged {
    /// From now on frames only say what moves on another way, and how many bytes of it.
    pub(super) fn announces(&mut self) {
        self.fits = |frame, message| frame.bytes == (message.bytes() as u64).to_le_bytes();
    }

    /// Says what is about to leave and to come.
    pub(super) fn announce(&mut self, step: u32, send: &[Message], receive: &[Message]) -> Result<()> {
        self.poll()?;
        self.begun = step + 1;
        for message in receive {
            self.wire.expect(message.peer, Kind::Data(message.label.clone()), size_of::<u64>());
        }
        for message in send {
            let bytes = (message.bytes() as u64).to_le_bytes().to_vec();
            self.wire.send(message.peer, Frame { kind: Kind::Data(message.label.clone()), bytes });
        }
        self.awaited.extend_from_slice(receive);
        Ok(())
    }

    /// Checks that what is due with `step` was announced by those that it comes from.
    pub(super) fn announced(&mut self, step: u32) -> Result<()> {
        self.each_due(step, |_, _| Ok(()))
    }
}

/// Puts the bytes of a message where they belong.
///
/// # Safety
/// As for [`Transport::end`].
unsafe fn put(message: &Message, frame: &Frame, stream: &CudaStream) -> Result<()> {
    let mut rest = &frame.bytes[..];
    for (address, bytes) in &message.segments {
        let (part, after) = rest.split_at(*bytes);
        rest = after;
        // SAFETY: the caller vouches for the segment until this step's end.
        unsafe { memory::upload(stream, *address, part)? };
    }
    Ok(())
}

impl Transport for Staged {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn ranks(&self) -> usize {
        self.wire.ranks()
    }

    fn next_operation(&mut self) -> u32 {
        self.operations = self.operations.wrapping_add(1);
        self.begun = 0;
        self.operations
    }

    unsafe fn begin(
        &mut self,
        step: u32,
        stream: &Arc<CudaStream>,
        send: &[Message],
        receive: &[Message],
    ) -> Result<()> {
        self.poll()?;
        self.begun = step + 1;
        for message in receive {
            self.wire.expect(message.peer, Kind::Data(message.label.clone()), message.bytes());
        }
        for message in send {
            let mut bytes = vec![0; message.bytes()];
            let mut rest = &mut bytes[..];
            for (address, length) in &message.segments {
                let (part, after) = rest.split_at_mut(*length);
                rest = after;
                // SAFETY: the caller vouches for the segment until the message is due.
                unsafe { memory::download(stream, *address, part)? };
            }
            self.wire.send(message.peer, Frame { kind: Kind::Data(message.label.clone()), bytes });
        }
        self.awaited.extend_from_slice(receive);
        Ok(())
    }

    unsafe fn end(&mut self, step: u32, stream: &Arc<CudaStream>) -> Result<()> {
        // SAFETY: the caller's promise.
        self.each_due(step, |message, frame| unsafe { put(message, &frame, stream) })
    }

    fn all_gather(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
        self.wire.all_gather(bytes, most)
    }

    fn abort(&mut self, error: &Error) {
        let (rank, step, fault) = match error {
            Error::Peer { rank, step, fault, .. } => (*rank as usize, *step, *fault),
            _ => (self.wire.rank(), 0, PeerFault::Closed),
        };
        self.wire.blame(rank, step, fault, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        schedule::{Item, Parcel},
        transport::local,
    };
    use std::{thread, time::Duration};

    /// Whether a rank in its second operation, of which one step has begun, takes a message of another.
    fn is_taken(operation: u32, step: u32, is_awaited: bool) -> bool {
        let [mut own, other] =
            <[Staged; 2]>::try_from(local(2, Duration::from_secs(20))).unwrap_or_else(|_| panic!("two"));
        let parcel = Parcel { item: Item::Keys, owner: 1, tokens: 0..4, heads: 0..2 };
        let label = Label { operation, step, parcel };
        own.next_operation();
        own.next_operation();
        own.begun = 1;
        if is_awaited {
            own.awaited.push(Message { peer: 1, label: label.clone(), segments: Vec::new(), steps: 1 });
        }
        other.wire.send(0, Frame { kind: Kind::Data(label), bytes: vec![0; 8] });
        while own.wire.poll().is_ok() && own.wire.waiting().next().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        match own.poll() {
            Ok(()) => true,
            Err(Error::Peer { rank: 1, fault: PeerFault::Mismatch, .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_comes_too_late_is_refused_before_anybody_waits_for_more() {
        assert!(is_taken(2, 0, true), "what is awaited");
        assert!(is_taken(2, 1, false) && is_taken(3, 0, false), "what is ahead");
        assert!(!is_taken(2, 0, false) && !is_taken(1, 5, false), "a duplicate");
    }
}
