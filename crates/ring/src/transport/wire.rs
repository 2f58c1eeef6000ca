//! Frames between one rank and all others, and the rules by which a silent rank is found out.
//!
//! All frames arrive in one queue, so that a rank that waits for one peer hears when any other gives up. A peer that says nothing for
//! the timeout is asked whether it is there. Its process answers even while it computes or waits, unless it is stopped or gone: then it
//! is to blame. If it answers, somebody farther away is, and whoever waits for that one will say so.

use super::frame::{Frame, Kind};
use crate::{Error, Result};
use lookback_device::PeerFault;
use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What came from a peer.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Frame),
    /// The connection has ended.
    Closed,
    /// What came is no frame.
    Garbage,
}

/// One peer.
pub(super) struct Link {
    /// Takes frames that leave, and nothing as the last one; never blocks.
    pub(super) out: Sender<Option<Frame>>,
    /// Frames that came and were not asked for yet.
    pub(super) inbox: VecDeque<Event>,
    /// Cuts the connection, so that threads that wait for it end.
    pub(super) cut: Box<dyn Fn() + Send>,
    /// Ends when the last frame is written.
    pub(super) writer: Option<JoinHandle<()>>,
    /// Ends when the peer has written its last, if it takes a thread to hear that.
    pub(super) reader: Option<JoinHandle<()>>,
}

/// All links of one rank.
pub(super) struct Wire {
    rank: usize,
    timeout: Duration,
    /// By rank; none for the rank itself.
    links: Vec<Option<Link>>,
    events: Receiver<(usize, Event)>,
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
    ) -> Self {
        Self { rank, timeout, links, events, gathers: 0, failed: None }
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

    /// Hands a frame over; the peer may be gone, which only matters to who waits for it.
    pub(super) fn send(&self, peer: usize, frame: Frame) {
        if let Some(Some(link)) = self.links.get(peer) {
            let _ = link.out.send(Some(frame));
        }
    }

    /// The next frame of `peer`.
    pub(super) fn receive(&mut self, peer: usize, step: u32) -> Result<Frame> {
        let began = Instant::now();
        let (quarter, mut asked, mut is_there) = (self.timeout / 4, false, false);
        loop {
            self.check(began)?;
            let event = self.links.get_mut(peer).and_then(|link| link.as_mut()?.inbox.pop_front());
            match event {
                Some(Event::Frame(Frame { kind: Kind::Pong, .. })) => is_there = true,
                Some(Event::Frame(frame)) => return Ok(frame),
                Some(Event::Closed) => return Err(self.blame(peer, step, PeerFault::Closed, began)),
                Some(Event::Garbage) => return Err(self.blame(peer, step, PeerFault::Mismatch, began)),
                None => {
                    let limit = match (asked, is_there) {
                        (false, _) => self.timeout,
                        (true, false) => self.timeout + quarter,
                        (true, true) => self.timeout + 3 * quarter,
                    };
                    let left = limit.saturating_sub(began.elapsed());
                    match self.events.recv_timeout(left) {
                        Ok((from, event)) => self.sort(from, event),
                        Err(RecvTimeoutError::Disconnected) => {
                            return Err(self.blame(peer, step, PeerFault::Closed, began));
                        }
                        Err(RecvTimeoutError::Timeout) if asked => {
                            return Err(self.blame(peer, step, PeerFault::Silent, began));
                        }
                        Err(RecvTimeoutError::Timeout) => {
                            asked = true;
                            self.send(peer, Frame::empty(Kind::Ping));
                        }
                    }
                }
            }
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
            Event::Frame(Frame { kind: Kind::Ping, .. }) => self.send(from, Frame::empty(Kind::Pong)),
            event => {
                if let Some(Some(link)) = self.links.get_mut(from) {
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

    fn check(&self, began: Instant) -> Result<()> {
        match self.failed {
            None => Ok(()),
            Some((rank, step, fault)) => Err(Error::Peer { rank, step, fault, waited: began.elapsed() }),
        }
    }

    /// Tells everybody else who has failed.
    pub(super) fn blame(&mut self, culprit: usize, step: u32, fault: PeerFault, began: Instant) -> Error {
        let (culprit, step, fault) = *self.failed.get_or_insert((culprit as u32, step, fault));
        for peer in 0..self.links.len() {
            self.send(peer, Frame::empty(Kind::Abort { culprit, step, fault }));
        }
        Error::Peer { rank: culprit, step, fault, waited: began.elapsed() }
    }

    /// Bytes of every rank, by rank.
    pub(super) fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.poll()?;
        self.gathers += 1;
        let number = self.gathers;
        let began = Instant::now();
        let peers = || (0..self.links.len()).filter(|peer| *peer != self.rank);
        for peer in peers() {
            self.send(peer, Frame { kind: Kind::Gather(number), bytes: bytes.to_vec() });
        }
        let peers: Vec<usize> = peers().collect();
        let mut all = vec![bytes.to_vec(); self.links.len()];
        for peer in peers {
            let frame = self.receive(peer, 0)?;
            if frame.kind != Kind::Gather(number) {
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
            wait(&link.writer, limit);
        }
        let limit = Instant::now() + PARTING.min(self.timeout);
        for link in self.links.iter().flatten() {
            wait(&link.reader, limit);
        }
        for link in self.links.iter_mut().flatten() {
            (link.cut)();
            for thread in [link.writer.take(), link.reader.take()].into_iter().flatten() {
                let _ = thread.join();
            }
        }
    }
}

fn wait(thread: &Option<JoinHandle<()>>, limit: Instant) {
    while thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
}
