//! Ranks that are threads, of which one lies or leaves.

use super::walk::{Place, Walk, settled_threads, threads, walks};
use lookback_device::{
    DevicePick, PeerFault,
    cudarc::driver::{CudaContext, CudaStream},
    open,
};
use lookback_ring::{
    Error, Rendezvous, Result,
    schedule::Pass,
    transport::{Message, Staged, Transport, local, tcp},
};
use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Far longer than any of this takes: what is found out by a message or a closed connection is not waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Leave,
    SendOtherShape,
    SendTwice,
    SendLess,
}

impl Act {
    fn change(self, messages: &mut Vec<Message>) {
        match self {
            Self::Leave => (),
            Self::SendOtherShape => messages.iter_mut().for_each(|m| m.label.parcel.tokens.end += 1),
            Self::SendTwice => messages.extend(messages.clone()),
            Self::SendLess => messages.iter_mut().for_each(|m| m.segments[0].1 -= 4),
        }
    }

    fn fault(self) -> PeerFault {
        if self == Self::Leave { PeerFault::Closed } else { PeerFault::Mismatch }
    }
}

/// What every rank but the culprit says, and after how long.
fn trial(
    walk: &Walk,
    place: Place,
    act: Act,
    ends: Vec<Box<dyn FnOnce() -> Staged + Send>>,
    (context, streams): (&Arc<CudaContext>, &[Arc<CudaStream>]),
) -> Vec<(Result<()>, Duration)> {
    let rank = |end: Box<dyn FnOnce() -> Staged + Send>, stream: &Arc<CudaStream>| {
        context.bind_to_thread().expect("a context");
        let mut end = end();
        let is_culprit = end.rank() == place.rank;
        let began = Instant::now();
        let done = walk.run(&mut end, stream, |step, messages| {
            if is_culprit && step == place.step {
                act.change(messages);
                if act == Act::Leave {
                    return Err(Error::NoKernel { op: "test", request: "one that leaves".into() });
                }
            }
            Ok(())
        });
        (!is_culprit).then(|| (done, began.elapsed()))
    };
    thread::scope(|scope| {
        let ranks: Vec<_> =
            ends.into_iter().zip(streams).map(|(end, stream)| scope.spawn(|| rank(end, stream))).collect();
        ranks.into_iter().filter_map(|rank| rank.join().expect("no panic")).collect()
    })
}

fn all(walks: &[Walk], ends: impl Fn(usize, usize) -> Vec<Box<dyn FnOnce() -> Staged + Send>>) -> usize {
    let context = open(DevicePick::Emulated).expect("the emulator");
    let streams: Vec<_> = (0..4).map(|_| context.new_stream().expect("a stream")).collect();
    let before = threads();
    let mut count = 0;
    for walk in walks {
        for place in walk.places() {
            for act in [Act::Leave, Act::SendOtherShape, Act::SendTwice, Act::SendLess] {
                if act != Act::Leave && !place.sends {
                    continue;
                }
                let what = format!("{walk:?}, {place:?}: {act:?}");
                let told = trial(walk, place, act, ends(walk.ranks, count), (&context, &streams));
                assert_eq!(told.len(), walk.ranks - 1);
                for (done, took) in told {
                    let error = done.expect_err(&what);
                    let Error::Peer { rank, step, fault, .. } = error else { panic!("{what}: {error}") };
                    assert_eq!((rank as usize, fault), (place.rank, act.fault()), "{what}: {error}");
                    assert!((step as usize) < walk.steps(), "{what}: {error}");
                    assert!(took < TIMEOUT / 4, "{what}: took {took:?}");
                }
                count += 1;
            }
        }
        assert_eq!(settled_threads(before), before, "{walk:?}: threads are left");
    }
    count
}

/// Between threads of one process.
pub fn local_messages() -> usize {
    all(&walks(&[Pass::Forward, Pass::Backward]), |ranks, _| {
        let end = |end: Staged| -> Box<dyn FnOnce() -> Staged + Send> { Box::new(move || end) };
        local(ranks, TIMEOUT).into_iter().map(end).collect()
    })
}

/// Over TCP.
pub fn tcp_messages() -> usize {
    let folder = std::env::temp_dir().join(format!("lookback-faults-tcp-{}", std::process::id()));
    let count = all(&walks(&[Pass::Forward]), |ranks, job| {
        let end = |rank: usize| -> Box<dyn FnOnce() -> Staged + Send> {
            let rendezvous = meeting(&folder, rank, ranks, job as u64, TIMEOUT);
            Box::new(move || tcp(&rendezvous).expect("all come"))
        };
        (0..ranks).map(end).collect()
    });
    std::fs::remove_dir_all(folder).expect("a folder");
    count
}

/// Where ranks of one trial meet.
pub fn meeting(folder: &Path, rank: usize, ranks: usize, job: u64, timeout: Duration) -> Rendezvous {
    Rendezvous { rank, ranks, place: lookback_ring::Place::Folder(folder.into()), job, timeout }
}
