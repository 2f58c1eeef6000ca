//! One rank that leaves, falls silent or lies, at every step: all others say so in time, and name it.

use super::case::Case;
use half::bf16;
use lookback_device::{
    Element, Error, PeerFault, Result,
    cudarc::driver::{CudaStream, DevicePtr},
};
use lookback_ring::{
    Partition, Visible,
    attention::{Inputs, Options, Outputs, Plan},
    schedule::Kind,
    transport::{Message, Staged, Transport, local},
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// What a rank does to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Leave,
    FallSilent,
    SendOtherShape,
    SendTwice,
    SendLess,
}

/// A transport of a rank that misbehaves in one step of its first operation.
struct Saboteur {
    inner: Staged,
    act: Option<Act>,
    at: u32,
    timeout: Duration,
}

impl Transport for Saboteur {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn next_operation(&mut self) -> u32 {
        self.inner.next_operation()
    }

    unsafe fn begin(
        &mut self,
        step: u32,
        stream: &Arc<CudaStream>,
        send: &[Message],
        receive: &[Message],
    ) -> Result<()> {
        let mut send = send.to_vec();
        if step == self.at {
            let gone = Error::Peer { rank: self.rank() as u32, step, fault: PeerFault::Closed, waited: Duration::ZERO };
            match self.act.take() {
                None => {}
                Some(Act::Leave) => return Err(gone),
                Some(Act::FallSilent) => {
                    thread::sleep(3 * self.timeout);
                    return Err(gone);
                }
                Some(Act::SendOtherShape) => send.iter_mut().for_each(|m| m.label.parcel.tokens.end += 1),
                Some(Act::SendTwice) => send.extend(send.clone()),
                Some(Act::SendLess) => send.iter_mut().for_each(|m| m.segments[0].1 -= 4),
            }
        }
        // SAFETY: the caller's promise; messages are no longer than the ones given.
        unsafe { self.inner.begin(step, stream, &send, receive) }
    }

    unsafe fn end(&mut self, step: u32, stream: &Arc<CudaStream>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.end(step, stream) }
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.inner.all_gather(bytes)
    }

    /// One that is gone tells nobody.
    fn abort(&mut self, _: &Error) {}
}

/// Two operations of one rank, and how long they took.
fn rank(case: &Case, mut end: Saboteur) -> (Result<()>, Duration) {
    let stream = device::stream();
    let shape = case.shape();
    let options = Options { kind: case.kind, ..Options::new(&shape, bf16::DTYPE) };
    let plan = Plan::new(&shape, &options, &case.layout, &case.visible, end.rank(), &device::info()).unwrap();
    let mut workspace = plan.workspace(&stream).unwrap();
    let rows = plan.tokens() * case.heads;
    let ones = |heads: usize| upload_as::<bf16>(&vec![1.0; plan.tokens() * heads * 32]);
    let (q, k, v) = (ones(case.heads), ones(case.key_heads), ones(case.key_heads));
    let mut o = Guarded::<bf16>::poisoned(rows * 32, 0);
    let mut lse = Guarded::<f32>::poisoned(rows, 0);
    let began = Instant::now();
    let mut run = || {
        let inputs = Inputs { q: &q as &dyn DevicePtr<bf16>, k: &k, v: &v };
        let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
        plan.run(&stream, &inputs, Outputs { o: &mut o, lse: &mut lse }, &mut workspace, &mut end)
    };
    let done = run().and_then(|()| run());
    (done, began.elapsed())
}

fn sabotage(kind: Kind, ranks: usize, culprit: usize, at: u32, act: Act, timeout: Duration) {
    let case = Case { heads: 2, ..Case::new(kind, Partition::Zigzag, ranks, Visible::causal(8 * ranks)) };
    let what = format!("{kind:?} of {ranks}, rank {culprit} at step {at}: {act:?}");
    let ends = local(ranks, timeout).into_iter();
    let ends = ends.map(|inner| {
        let act = (inner.rank() == culprit).then_some(act);
        Saboteur { inner, act, at, timeout }
    });
    let ended: Vec<_> = thread::scope(|scope| {
        let case = &case;
        let ranks: Vec<_> = ends.map(|end| scope.spawn(move || rank(case, end))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let survivors = ended.iter().enumerate().filter(|(rank, _)| *rank != culprit);
    for (rank, (done, took)) in survivors {
        let error = done.as_ref().expect_err(&format!("{what}: rank {rank} noticed nothing"));
        let Error::Peer { rank: named, fault, .. } = error else { panic!("{what}: rank {rank}: {error}") };
        assert_eq!(*named as usize, culprit, "{what}: rank {rank}: {error}");
        let want = match act {
            Act::Leave => PeerFault::Closed,
            Act::FallSilent => PeerFault::Silent,
            _ => PeerFault::Mismatch,
        };
        assert_eq!(*fault, want, "{what}: rank {rank}: {error}");
        assert!(act != Act::FallSilent || *took < 2 * timeout, "{what}: rank {rank} took {took:?}");
    }
}

#[test]
fn every_survivor_names_the_culprit_at_every_step() {
    let patient = Duration::from_secs(60);
    for ranks in [2, 3, 4] {
        for culprit in 0..ranks {
            for at in 0..ranks as u32 - 1 {
                for act in [Act::Leave, Act::SendOtherShape, Act::SendTwice, Act::SendLess] {
                    sabotage(Kind::Ring, ranks, culprit, at, act, patient);
                }
            }
        }
    }
    for (kind, at) in [(Kind::TokenRing, 1), (Kind::Bidirectional, 0), (Kind::AllGather { groups: 1 }, 0)] {
        for act in [Act::Leave, Act::SendOtherShape, Act::SendTwice, Act::SendLess] {
            sabotage(kind, 3, 1, at, act, patient);
        }
    }
}

#[test]
fn a_silent_rank_is_named_within_twice_the_timeout() {
    // Several times what a step takes on a busy machine, and as long as the test.
    let timeout = Duration::from_secs(2);
    thread::scope(|scope| {
        for (ranks, culprit, at) in [(2, 0, 0), (3, 1, 1), (4, 3, 0), (4, 2, 2)] {
            scope.spawn(move || sabotage(Kind::Ring, ranks, culprit, at, Act::FallSilent, timeout));
        }
    });
}
