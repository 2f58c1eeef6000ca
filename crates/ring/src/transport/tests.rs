//! Peers that are late, slow or lie.

use super::{
    frame::{Frame, HEADER, Kind},
    local, tcp,
    wire::{PIECE, Wire},
};
use crate::{Error, Place, Rendezvous, Result};
use lookback_device::PeerFault;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// For what should not take long.
const PATIENCE: Duration = Duration::from_secs(20);

fn meeting(ranks: usize, timeout: Duration) -> Vec<Rendezvous> {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let place = Place::Address(address.to_string());
    (0..ranks).map(|rank| Rendezvous { rank, ranks, place: place.clone(), job: 1, timeout }).collect()
}

/// Lets every rank of a meeting `act` on its wire.
fn each<T: Send>(
    wires: Vec<impl FnOnce() -> Wire + Send>,
    act: impl Fn(usize, &mut Wire) -> T + Sync,
) -> Vec<(T, Duration)> {
    let act = &act;
    thread::scope(|scope| {
        let one = |make: Box<dyn FnOnce() -> Wire + Send>| {
            let mut wire = make();
            let began = Instant::now();
            (act(wire.rank(), &mut wire), began.elapsed())
        };
        let threads: Vec<_> = wires.into_iter().map(|make| scope.spawn(move || one(Box::new(make)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn over_tcp(ranks: usize, timeout: Duration) -> Vec<impl FnOnce() -> Wire + Send> {
    let one = |rendezvous: Rendezvous| move || tcp(&rendezvous).expect("all come").wire;
    meeting(ranks, timeout).into_iter().map(one).collect()
}

/// Rank 0, and the two connections of a rank 1 that does what the test says.
fn pair(timeout: Duration) -> (Wire, TcpStream, TcpStream) {
    let [own, other] = <[Rendezvous; 2]>::try_from(meeting(2, timeout)).expect("two");
    thread::scope(|scope| {
        let met = scope.spawn(move || tcp(&own).expect("both come").wire);
        let mut links = other.meet().expect("both come");
        let [data, words] = links.swap_remove(0).expect("two connections");
        (met.join().expect("no panic"), data, words)
    })
}

fn fault(result: Result<impl std::fmt::Debug>) -> (u32, PeerFault) {
    match result {
        Err(Error::Peer { rank, fault, .. }) => (rank, fault),
        other => panic!("{other:?}"),
    }
}

/// The header of a frame that says to have as many bytes.
fn header(kind: Kind, length: u64) -> [u8; HEADER] {
    let mut header = Frame::empty(kind).header();
    header[40..].copy_from_slice(&length.to_le_bytes());
    header
}

/// How many bytes the other side takes before it has taken none for a while.
fn taken(stream: &mut TcpStream, limit: usize) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let zeros = vec![0; 1 << 20];
    let mut all = 0;
    while all < limit {
        match stream.write(&zeros) {
            Ok(more) if more > 0 => all += more,
            _ => break,
        }
    }
    all
}

#[test]
fn words_do_not_wait_behind_data() {
    let (wire, _data, mut words) = pair(PATIENCE);
    // More than all buffers between the two take: nobody reads it.
    wire.send(1, Frame { kind: Kind::Gather(1), bytes: vec![0; 64 << 20] });
    words.write_all(&Frame::empty(Kind::Ping).header()).expect("a ping");
    words.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut header = [0; HEADER];
    words.read_exact(&mut header).expect("an answer");
    assert_eq!(Frame::parse(&header), Some((Kind::Pong { waits_for: None, age: 0 }, 0)));
}

#[test]
fn a_frame_that_is_long_in_coming_is_not_late() {
    let timeout = Duration::from_millis(1200);
    let (mut wire, mut data, _words) = pair(timeout);
    let pieces = 4;
    wire.expect(1, Kind::Gather(1), pieces * PIECE);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            data.write_all(&header(Kind::Gather(1), (pieces * PIECE) as u64)).expect("a header");
            for _ in 0..pieces {
                thread::sleep(timeout / 2);
                data.write_all(&vec![7; PIECE]).expect("a piece");
            }
            // Until the other side has it all.
            let _ = data.read(&mut [0]);
        });
        let frame = wire.receive(1, 0).expect("the frame");
        assert_eq!(frame.bytes, vec![7; pieces * PIECE]);
        assert!(began.elapsed() >= 2 * timeout, "too fast for this test");
        // A peer that answers nothing and sends nothing more is dead.
        let again = Instant::now();
        assert_eq!(fault(wire.receive(1, 0)), (1, PeerFault::Silent));
        assert!(again.elapsed() < 2 * timeout);
        drop(wire);
    });
}

#[test]
fn no_more_is_read_than_is_expected() {
    let limit = 1 << 30;
    // Longer than what is expected.
    let (mut wire, mut data, _words) = pair(PATIENCE);
    wire.expect(1, Kind::Gather(1), 100);
    data.write_all(&header(Kind::Gather(1), 1 << 40)).expect("a header");
    assert!(taken(&mut data, limit) < limit / 8);
    assert_eq!(fault(wire.receive(1, 0)), (1, PeerFault::Mismatch));
    // What nobody expects.
    let (mut wire, mut data, _words) = pair(PATIENCE);
    wire.expect(1, Kind::Gather(1), 100);
    data.write_all(&header(Kind::Gather(2), 1 << 40)).expect("a header");
    assert!(taken(&mut data, limit) < limit / 8);
    assert_eq!(fault(wire.receive(1, 0)), (1, PeerFault::Mismatch));
    // Many small ones: those without a byte, too, count for what they take.
    let (mut wire, mut data, _words) = pair(PATIENCE);
    data.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let many = header(Kind::Gather(2), 0).repeat(1000);
    let sent = (0..10_000).take_while(|_| data.write_all(&many).is_ok()).count();
    assert!(sent < 2000, "{sent} thousand frames");
    assert_eq!(fault(wire.all_gather(b"x", 1)), (1, PeerFault::Mismatch));
    // A word with bytes, data among words, and what is no frame.
    for (kind, length, among_words) in [(Kind::Ping, 1 << 40, true), (Kind::Gather(1), 1, true), (Kind::Ping, 0, false)]
    {
        let (mut wire, mut data, mut words) = pair(PATIENCE);
        wire.expect(1, Kind::Gather(1), 100);
        let to = if among_words { &mut words } else { &mut data };
        to.write_all(&header(kind, length)).expect("a header");
        assert_eq!(fault(wire.receive(1, 0)), (1, PeerFault::Mismatch));
    }
}

/// A peer that is ahead by more than is kept is waited for, and nothing of it is lost.
#[test]
fn what_is_far_ahead_waits_until_it_is_expected() {
    let long = vec![3; 8 << 20];
    let told = each(over_tcp(2, PATIENCE), |rank, wire| {
        if rank == 1 {
            (0..4).for_each(|_| wire.send(0, Frame { kind: Kind::Gather(9), bytes: long.clone() }));
            return wire.receive(0, 0).map(|frame| frame.bytes);
        }
        thread::sleep(Duration::from_millis(200));
        for _ in 0..4 {
            wire.expect(1, Kind::Gather(9), long.len());
            assert_eq!(wire.receive(1, 0).expect("a frame").bytes, long);
        }
        wire.send(1, Frame { kind: Kind::Gather(1), bytes: b"done".to_vec() });
        Ok(b"done".to_vec())
    });
    assert!(told.iter().all(|(bytes, _)| bytes.as_ref().is_ok_and(|bytes| bytes == b"done")), "{told:?}");
}

/// Rank 0 waits for rank 1, which comes late and then waits for rank 2, which has stopped: that is the one to name.
#[test]
fn a_late_rank_is_not_taken_for_the_one_that_it_waits_for() {
    let timeout = Duration::from_millis(1500);
    let ends = local(3, timeout).into_iter().map(|end| move || end.wire).collect();
    let told = each(ends, |rank, wire| match rank {
        0 => Some(fault(wire.receive(1, 0))),
        1 => {
            thread::sleep(timeout * 8 / 10);
            Some(fault(wire.receive(2, 0)))
        }
        _ => {
            thread::sleep(timeout * 2);
            None
        }
    });
    for (said, took) in &told[..2] {
        assert_eq!(*said, Some((2, PeerFault::Silent)));
        assert!(*took < 2 * timeout, "{took:?}");
    }
}

/// As above, but the last rank only works for long: nobody is to blame before the one that waits for it may lose its patience.
#[test]
fn nobody_is_blamed_while_others_may_still_wait() {
    let timeout = Duration::from_millis(1500);
    let word = |kind| Frame { kind, bytes: b"here".to_vec() };
    let told = each(over_tcp(3, timeout), |rank, wire| match rank {
        0 => wire.receive(1, 0).map(|frame| frame.bytes),
        1 => {
            thread::sleep(timeout * 9 / 10);
            let frame = wire.receive(2, 0)?;
            wire.send(0, word(frame.kind));
            Ok(frame.bytes)
        }
        _ => {
            thread::sleep(timeout * 2);
            wire.send(1, word(Kind::Gather(1)));
            Ok(b"here".to_vec())
        }
    });
    for (said, _) in &told {
        assert!(said.as_ref().is_ok_and(|bytes| bytes == b"here"), "{told:?}");
    }
}
