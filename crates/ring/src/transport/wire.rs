//! Frames between one rank and all others.
//!
//! All frames arrive in one queue, so that a rank that waits for one peer hears when any other gives up. Words that must not wait (who
//! has failed, who is there) do not stand behind data. Only frames that somebody expects take memory, but for a few small ones.

use super::{
    Label,
    frame::{Frame, Kind},
    patience::{Next, Patience, Pulse},
    posted::Posted,
};
use crate::{Error, Result};
use lookback_device::PeerFault;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What came from a peer.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Frame),
    /// As `Frame`, before it was expected.
    Early(Frame),
    /// The next frame is not read before it is expected.
    Held,
    /// The connection has ended.
    Closed,
    /// What came is no frame, or longer than was expected.
    Garbage,
}

/// Bytes of a frame that count as a sign of life.
pub(super) const PIECE: usize = 64 << 10;

/// One peer.
pub(super) struct Link {
    /// Takes frames that leave, and nothing as the last one; never blocks.
    pub(super) out: Sender<Option<Frame>>,
    /// Sends a frame without data ahead of all others.
    pub(super) tell: Box<dyn Fn(Kind) + Send>,
    /// What may come, where frames come from outside of the process.
    pub(super) posted: Option<Arc<Posted>>,
    /// Bytes that came so far, of whole pieces and ends of frames.
    pub(super) moved: Arc<AtomicU64>,
    /// Frames that came and were not asked for yet.
    pub(super) inbox: VecDeque<Event>,
    /// Cuts the connection, so that threads that wait for it end.
    pub(super) cut: Box<dyn Fn() + Send>,
    /// Ends when the last frame is written.
    pub(super) writer: Option<JoinHandle<()>>,
    /// End when the peer has written its last, if it takes threads to hear that.
    pub(super) readers: Vec<JoinHandle<()>>,
}

/// All links of one rank.
pub(super) struct Wire {
    rank: usize,
    timeout: Duration,
    /// By rank; none for the rank itself.
    links: Vec<Option<Link>>,
    events: Receiver<(usize, Event)>,
    pulse: Arc<Pulse>,
    gathers: u32,
    /// Who failed, once somebody has.
    failed: Option<(u32, u32, PeerFault)>,
}

impl Wire {
    pub(super) fn new(
        rank: usize,
        timeout: Duration,
        links: Vec<Option<Link>>,
        events: Receiver<(usize, Event)>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self { rank, timeout, links, events, pulse, gathers: 0, failed: None }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn ranks(&self) -> usize {
        self.links.len()
    }

    #[cfg(feature = "nccl")]
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What those hear who ask: this rank waits for a peer elsewhere than here, or no longer does.
    #[cfg(feature = "nccl")]
    pub(super) fn waits(&self, since: Option<(usize, Instant)>) {
        self.pulse.waits(since);
    }

    fn link(&mut self, peer: usize) -> Option<&mut Link> {
        self.links.get_mut(peer)?.as_mut()
    }

    /// Hands a frame over; the peer may be gone, which only matters to who waits for it.
    pub(super) fn send(&self, peer: usize, frame: Frame) {
        if let Some(Some(link)) = self.links.get(peer) {
            let _ = link.out.send(Some(frame));
        }
    }

    fn tell(&self, peer: usize, kind: Kind) {
        if let Some(Some(link)) = self.links.get(peer) {
            (link.tell)(kind);
        }
    }

    fn tell_all(&self, kind: &Kind) {
        (0..self.links.len()).for_each(|peer| self.tell(peer, kind.clone()));
    }

    /// Lets a frame of a peer come, with no more than `most` bytes.
    pub(super) fn expect(&self, peer: usize, kind: Kind, most: usize) {
        if let Some(Some(Link { posted: Some(posted), .. })) = self.links.get(peer) {
            posted.expect(kind, most);
        }
    }

    /// The next frame of `peer`.
    pub(super) fn receive(&mut self, peer: usize, step: u32) -> Result<Frame> {
        let began = Instant::now();
        self.pulse.waits(Some((peer, began)));
        let received = self.wait(peer, step, began);
        self.pulse.waits(None);
        received
    }

    fn wait(&mut self, peer: usize, step: u32, began: Instant) -> Result<Frame> {
        let mut patience = Patience::new(self.timeout, began);
        let mut moved = self.moved(peer);
        loop {
            self.check(began)?;
            if let Some(event) = self.link(peer).and_then(|link| link.inbox.pop_front()) {
                match self.open(peer, event) {
                    Ok(None) => continue,
                    Ok(Some(frame)) => return Ok(frame),
                    Err(fault) => return Err(self.blame(peer, step, fault, began)),
                }
            }
            let left = patience.limit().saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok((from, event)) => self.sort(from, event),
                Err(RecvTimeoutError::Disconnected) => return Err(self.blame(peer, step, PeerFault::Closed, began)),
                // A frame that is long in coming is not late.
                Err(RecvTimeoutError::Timeout) if self.moved(peer) > moved => {
                    moved = self.moved(peer);
                    patience.renew(Instant::now());
                    self.pulse.waits(Some((peer, patience.since())));
                }
                Err(RecvTimeoutError::Timeout) => match patience.next(self.rank, peer, &self.pulse) {
                    Next::Ask => {
                        self.pulse.forget();
                        self.tell_all(&Kind::Ping);
                    }
                    Next::Wait => self.pulse.waits(Some((peer, patience.since()))),
                    Next::Blame(culprit) => {
                        let is_closed = |event: &Event| matches!(event, Event::Closed);
                        let has_left = self.link(culprit).is_some_and(|link| link.inbox.iter().any(is_closed));
                        let fault = if has_left { PeerFault::Closed } else { PeerFault::Silent };
                        return Err(self.blame(culprit, step, fault, began));
                    }
                },
            }
        }
    }

    fn moved(&self, peer: usize) -> u64 {
        let link = self.links.get(peer).and_then(Option::as_ref);
        link.map_or(0, |link| link.moved.load(Ordering::Relaxed))
    }

    /// The frame of an event, if it is one.
    fn open(&mut self, peer: usize, event: Event) -> std::result::Result<Option<Frame>, PeerFault> {
        let posted = self.link(peer).and_then(|link| link.posted.clone());
        match event {
            Event::Frame(frame) => Ok(Some(frame)),
            Event::Early(frame) => {
                posted.iter().for_each(|posted| posted.taken(&frame.kind, frame.bytes.len()));
                Ok(Some(frame))
            }
            // Whoever waits for a frame expects all that stand before it.
            Event::Held if posted.is_some_and(|posted| posted.holds()) => Err(PeerFault::Mismatch),
            Event::Held => Ok(None),
            Event::Closed => Err(PeerFault::Closed),
            Event::Garbage => Err(PeerFault::Mismatch),
        }
    }

    /// Puts what came where it is looked for.
    fn sort(&mut self, from: usize, event: Event) {
        match event {
            // Passed on, so that no peer sees this rank leave before it has heard why.
            Event::Frame(Frame { kind: Kind::Abort { culprit, step, fault }, .. }) => {
                if self.failed.is_none() {
                    self.blame(culprit as usize, step, fault, Instant::now());
                }
            }
            // Where no thread of its own answers, the rank does when it looks.
            Event::Frame(Frame { kind: Kind::Ping, .. }) => {
                let (waits_for, age) = self.pulse.own();
                self.tell(from, Kind::Pong { waits_for, age });
            }
            Event::Frame(Frame { kind: Kind::Pong { waits_for, age }, .. }) => self.pulse.heard(from, waits_for, age),
            event => {
                if let Some(link) = self.link(from) {
                    link.inbox.push_back(event);
                }
            }
        }
    }

    /// Fails if anybody has failed so far.
    pub(super) fn poll(&mut self) -> Result<()> {
        while let Ok((from, event)) = self.events.try_recv() {
            self.sort(from, event);
        }
        self.check(Instant::now())
    }

    /// Messages that came and were not asked for yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (usize, &Label)> {
        let links = self.links.iter().enumerate().filter_map(|(peer, link)| Some((peer, link.as_ref()?)));
        links.flat_map(|(peer, link)| {
            link.inbox.iter().filter_map(move |event| match event {
                Event::Frame(Frame { kind: Kind::Data(label), .. })
                | Event::Early(Frame { kind: Kind::Data(label), .. }) => Some((peer, label)),
                _ => None,
            })
        })
    }

    fn check(&self, began: Instant) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some((rank, step, fault)) => Err(Error::Peer { rank, step, fault, waited: began.elapsed() }),
        }
    }

    /// Tells everybody else who has failed.
    pub(super) fn blame(&mut self, culprit: usize, step: u32, fault: PeerFault, began: Instant) -> Error {
        let (culprit, step, fault) = *self.failed.get_or_insert((culprit as u32, step, fault));
        self.tell_all(&Kind::Abort { culprit, step, fault });
        Error::Peer { rank: culprit, step, fault, waited: began.elapsed() }
    }

    /// Bytes of every rank, by rank; of no other more than `most`.
    pub(super) fn all_gather(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
        self.poll()?;
        self.gathers += 1;
        let number = self.gathers;
        let began = Instant::now();
        let peers = || (0..self.links.len()).filter(|peer| *peer != self.rank);
        for peer in peers() {
            self.expect(peer, Kind::Gather(number), most);
            self.send(peer, Frame { kind: Kind::Gather(number), bytes: bytes.to_vec() });
        }
        let peers: Vec<usize> = peers().collect();
        let mut all = vec![bytes.to_vec(); self.links.len()];
        for peer in peers {
            let frame = self.receive(peer, 0)?;
            if frame.kind != Kind::Gather(number) || frame.bytes.len() > most {
                return Err(self.blame(peer, 0, PeerFault::Mismatch, began));
            }
            all[peer] = frame.bytes;
        }
        Ok(all)
    }
}

/// How long a rank that is done waits for others to be.
const PARTING: Duration = Duration::from_millis(200);

impl Drop for Wire {
    /// Lets writers write what is queued, for as long as the timeout, and peers a moment to do likewise, so that what either has sent
    /// is not lost; then cuts the connections and waits for their threads.
    fn drop(&mut self) {
        let limit = Instant::now() + if self.failed.is_some() { self.timeout / 8 } else { self.timeout };
        for link in self.links.iter().flatten() {
            let _ = link.out.send(None);
        }
        for link in self.links.iter().flatten() {
            link.writer.iter().for_each(|writer| wait(writer, limit));
        }
        let limit = Instant::now() + PARTING.min(self.timeout);
        for link in self.links.iter().flatten() {
            link.readers.iter().for_each(|reader| wait(reader, limit));
        }
        for link in self.links.iter_mut().flatten() {
            (link.cut)();
            for thread in link.writer.take().into_iter().chain(link.readers.drain(..)) {
                let _ = thread.join();
            }
        }
    }
}

fn wait(thread: &JoinHandle<()>, limit: Instant) {
    while !thread.is_finished() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
}
