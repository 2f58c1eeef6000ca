//! A rank that leaves, falls silent or lies, and what the others say.

use lookback_device::{Error, PeerFault, Result, cudarc::driver::CudaStream};
use lookback_ring::transport::{Message, Staged, Transport, local};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// What a rank does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Leave,
    FallSilent,
    SendOtherShape,
    SendTwice,
    SendLess,
}

/// Those that take no waiting.
pub const QUICK: [Act; 4] = [Act::Leave, Act::SendOtherShape, Act::SendTwice, Act::SendLess];

impl Act {
    fn fault(self) -> PeerFault {
        match self {
            Self::Leave => PeerFault::Closed,
            Self::FallSilent => PeerFault::Silent,
            _ => PeerFault::Mismatch,
        }
    }
}

/// A step of a rank in which messages move, and the ranks that it sends to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    step: u32,
    to: Vec<usize>,
}

/// A transport of a rank that misbehaves in one step of its first operation, if it does at all.
pub struct Saboteur {
    inner: Staged,
    act: Option<(Act, u32)>,
    timeout: Duration,
    operations: u32,
    /// Of the first operation.
    moves: Vec<Moves>,
}

impl Transport for Saboteur {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn next_operation(&mut self) -> u32 {
        self.operations += 1;
        self.inner.next_operation()
    }

    unsafe fn begin(
        &mut self,
        step: u32,
        stream: &Arc<CudaStream>,
        send: &[Message],
        receive: &[Message],
    ) -> Result<()> {
        if self.operations == 1 && !(send.is_empty() && receive.is_empty()) {
            self.moves.push(Moves { step, to: send.iter().map(|message| message.peer).collect() });
        }
        let mut send = send.to_vec();
        if let Some((act, _)) = self.act.take_if(|(_, at)| *at == step) {
            let gone = Error::Peer { rank: self.rank() as u32, step, fault: PeerFault::Closed, waited: Duration::ZERO };
            match act {
                Act::Leave => return Err(gone),
                Act::FallSilent => {
                    thread::sleep(3 * self.timeout);
                    return Err(gone);
                }
                Act::SendOtherShape => send.iter_mut().for_each(|m| m.label.parcel.tokens.end += 1),
                Act::SendTwice => send.extend(send.clone()),
                Act::SendLess => send.iter_mut().for_each(|m| m.segments[0].1 -= 4),
            }
        }
        // SAFETY: the caller's promise; messages are no longer than the ones given.
        unsafe { self.inner.begin(step, stream, &send, receive) }
    }

    unsafe fn end(&mut self, step: u32, stream: &Arc<CudaStream>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.end(step, stream) }
    }

    fn all_gather(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
        self.inner.all_gather(bytes, most)
    }

    /// One that is gone tells nobody; others do.
    fn abort(&mut self, error: &Error) {
        if !matches!(error, Error::Peer { rank, .. } if *rank as usize == self.inner.rank()) {
            self.inner.abort(error);
        }
    }
}

/// A rank that misbehaves, at a step.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub rank: usize,
    pub step: u32,
    pub act: Act,
}

type Outcome = (Result<()>, Duration, Vec<Moves>);

/// Lets every rank `run` three operations: what is only found when the next message of a rank is looked for, in the second, is known to
/// all in the third.
fn trial(
    ranks: usize,
    timeout: Duration,
    fault: Option<Fault>,
    run: &(impl Fn(&mut Saboteur) -> Result<()> + Sync),
) -> Vec<Outcome> {
    let one = |inner: Staged| {
        let act = fault.filter(|fault| fault.rank == inner.rank()).map(|fault| (fault.act, fault.step));
        let mut end = Saboteur { inner, act, timeout, operations: 0, moves: Vec::new() };
        let began = Instant::now();
        let done = (0..3).try_for_each(|_| run(&mut end));
        (done, began.elapsed(), end.moves)
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = local(ranks, timeout).into_iter().map(|end| scope.spawn(move || one(end))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Every rank's steps when nobody misbehaves.
pub fn moves(ranks: usize, run: &(impl Fn(&mut Saboteur) -> Result<()> + Sync)) -> Vec<Vec<Moves>> {
    let told = trial(ranks, super::case::PATIENCE, None, run);
    told.into_iter().map(|(done, _, moves)| done.map(|()| moves).expect("all is well")).collect()
}

/// One fault: who hears of it names it. Those do to whom the culprit sends in this step, or, if it is gone, at all; with `all` everybody.
pub fn check(
    what: &str,
    fault: Fault,
    timeout: Duration,
    (all, moves): (bool, &[Vec<Moves>]),
    run: &(impl Fn(&mut Saboteur) -> Result<()> + Sync),
) {
    let Fault { rank: culprit, step, act } = fault;
    let what = format!("{what}, {fault:?}");
    let is_gone = matches!(act, Act::Leave | Act::FallSilent);
    let sends = |to: usize| moves[culprit].iter().any(|m| (is_gone || m.step == step) && m.to.contains(&to));
    let told = trial(moves.len(), timeout, Some(fault), run);
    for (rank, (done, took, _)) in told.into_iter().enumerate().filter(|(rank, _)| *rank != culprit) {
        match done {
            Ok(()) => assert!(!all && !sends(rank), "{what}: rank {rank} noticed nothing"),
            Err(Error::Peer { rank: named, fault, .. }) => {
                assert_eq!((named as usize, fault), (culprit, act.fault()), "{what}: rank {rank}");
                let most = if act == Act::FallSilent { 2 * timeout } else { timeout / 2 };
                assert!(took < most, "{what}: rank {rank} took {took:?}");
            }
            Err(error) => panic!("{what}: rank {rank}: {error}"),
        }
    }
}

/// Every quick fault of every rank at every step in which it moves anything: how many.
pub fn check_all(what: &str, ranks: usize, all: bool, run: impl Fn(&mut Saboteur) -> Result<()> + Sync) -> usize {
    let moves = moves(ranks, &run);
    let mut count = 0;
    for (rank, own) in moves.iter().enumerate() {
        for Moves { step, to } in own {
            for act in QUICK.into_iter().filter(|act| *act == Act::Leave || !to.is_empty()) {
                let fault = Fault { rank, step: *step, act };
                check(what, fault, super::case::PATIENCE, (all, &moves), &run);
                count += 1;
            }
        }
    }
    count
}
