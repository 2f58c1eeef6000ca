//! Ranks that meet, talk and fail, without a device.

use lookback_device::{PeerFault, RendezvousFault};
use lookback_ring::{
    Error, Place, Rendezvous, Result,
    transport::{Staged, Transport, local, tcp},
};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody listens at.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn at(place: Place, rank: usize, ranks: usize) -> Rendezvous {
    Rendezvous { rank, ranks, place, job: 7, timeout: PATIENCE }
}

/// Runs every rank on a thread.
fn each<T: Send + 'static>(
    ends: impl IntoIterator<Item = impl FnOnce() -> Result<Staged> + Send + 'static>,
    act: impl Fn(Staged) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let threads: Vec<_> = ends
        .into_iter()
        .map(|end| {
            let act = act.clone();
            thread::spawn(move || act(end().unwrap()))
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

fn local_ends(ranks: usize, timeout: Duration) -> Vec<impl FnOnce() -> Result<Staged> + Send + 'static> {
    local(ranks, timeout).into_iter().map(|end| move || Ok(end)).collect()
}

fn tcp_ends(ranks: usize, timeout: Duration) -> Vec<impl FnOnce() -> Result<Staged> + Send + 'static> {
    let address = free_address();
    (0..ranks)
        .map(|rank| {
            let place = Place::Address(address.clone());
            move || tcp(&Rendezvous { timeout, ..at(place, rank, ranks) })
        })
        .collect()
}

/// Three rounds in which everybody says who it is, at some length.
fn talk(mut end: Staged) {
    let (rank, ranks) = (end.rank(), end.ranks());
    for round in 0..3_usize {
        let word = |rank: usize| vec![(rank + round) as u8; 1 + rank * 70_000];
        let heard = end.all_gather(&word(rank), 1 << 20).unwrap();
        assert_eq!(heard, (0..ranks).map(word).collect::<Vec<_>>());
    }
}

#[test]
fn all_hear_all_between_threads() {
    for ranks in [1, 2, 5] {
        each(local_ends(ranks, PATIENCE), talk);
    }
}

#[test]
fn all_hear_all_over_tcp() {
    for ranks in [1, 2, 5] {
        each(tcp_ends(ranks, PATIENCE), talk);
    }
}

#[test]
fn ranks_meet_in_a_folder() {
    let folder = std::env::temp_dir().join(format!("lookback-meet-{}", std::process::id()));
    let ends = (0..3).map(|rank| {
        let place = Place::Folder(folder.clone());
        move || tcp(&at(place, rank, 3))
    });
    each(ends, talk);
    let again = tcp(&at(Place::Folder(folder.clone()), 1, 3)).err();
    assert!(matches!(again, Some(Error::Rendezvous { rank: 1, why: RendezvousFault::Taken, .. })), "{again:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let short = Rendezvous { timeout: Duration::from_millis(300), ..at(Place::Address(free_address()), 0, 3) };
    let began = Instant::now();
    let error = tcp(&short).err();
    assert!(matches!(error, Some(Error::Rendezvous { rank: 1, why: RendezvousFault::Silent, .. })), "{error:?}");
    let alone = Rendezvous { timeout: Duration::from_millis(300), ..at(Place::Address(free_address()), 2, 3) };
    let error = tcp(&alone).err();
    assert!(matches!(error, Some(Error::Rendezvous { rank: 0, why: RendezvousFault::Io(_), .. })), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2));
    for bad in [Rendezvous { rank: 3, ..short.clone() }, Rendezvous { ranks: 0, ..short }] {
        assert!(matches!(tcp(&bad).err(), Some(Error::Range { .. })));
    }
}

#[test]
fn strangers_are_turned_away_and_wrong_counts_are_named() {
    let address = free_address();
    let meet = |rank, ranks, job| {
        let place = Place::Address(address.clone());
        thread::spawn(move || tcp(&Rendezvous { job, timeout: Duration::from_secs(2), ..at(place, rank, ranks) }))
    };
    let host = meet(0, 2, 7);
    let garbage = (0..200).find_map(|_| {
        thread::sleep(Duration::from_millis(5));
        TcpStream::connect(&address).ok()
    });
    garbage.unwrap().write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n").unwrap();
    let other_job = meet(1, 2, 8);
    let own = meet(1, 2, 7);
    assert!(own.join().unwrap().is_ok() && host.join().unwrap().is_ok());
    assert!(other_job.join().unwrap().is_err());
    let (host, wrong) = (meet(0, 2, 7), meet(1, 3, 7));
    let error = host.join().unwrap().err();
    assert!(
        matches!(error, Some(Error::Rendezvous { rank: 1, why: RendezvousFault::Ranks { want: 2, got: 3 }, .. })),
        "{error:?}"
    );
    assert!(wrong.join().unwrap().is_err());
}

/// However many strangers come, and whatever they say or do not.
#[test]
fn strangers_do_not_keep_ranks_waiting() {
    let (address, timeout) = (free_address(), Duration::from_millis(600));
    let silent = Arc::new(Mutex::new(Vec::new()));
    let is_over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..3)
        .map(|at| {
            let (address, silent, is_over) = (address.clone(), silent.clone(), is_over.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(&address) else { continue };
                    match at {
                        0 => drop(stream.write_all(&[b'x'; 24])),
                        1 => drop(stream.write_all(b"LBH2")),
                        _ => silent.lock().unwrap().push(stream),
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    let began = Instant::now();
    let error = tcp(&Rendezvous { timeout, ..at(Place::Address(address.clone()), 0, 2) }).err();
    assert!(matches!(error, Some(Error::Rendezvous { rank: 1, why: RendezvousFault::Silent, .. })), "{error:?}");
    assert!(began.elapsed() < 2 * timeout, "{:?}", began.elapsed());
    let meet = |rank| {
        let place = Place::Address(address.clone());
        thread::spawn(move || tcp(&at(place, rank, 2)).map(|_| ()))
    };
    let began = Instant::now();
    let [host, guest] = [meet(0), meet(1)].map(|rank| rank.join().unwrap());
    assert!(host.is_ok() && guest.is_ok(), "{host:?} {guest:?}");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    is_over.store(true, Ordering::Relaxed);
    crowd.into_iter().for_each(|stranger| stranger.join().unwrap());
}

#[test]
fn no_rank_says_more_than_it_may() {
    for ends in [each(local_ends(3, PATIENCE), too_much), each(tcp_ends(3, PATIENCE), too_much)] {
        for (rank, error) in ends.into_iter().filter(|(rank, _)| *rank != 1) {
            let is_it = matches!(error, Some(Error::Peer { rank: 1, fault: PeerFault::Mismatch, .. }));
            assert!(is_it, "{rank}: {error:?}");
        }
    }
}

/// The second rank says more than others let it.
fn too_much(mut end: Staged) -> (usize, Option<Error>) {
    let rank = end.rank();
    (rank, end.all_gather(&vec![0; if rank == 1 { 3 << 20 } else { 10 }], 2 << 20).err())
}

/// What every survivor says when one rank leaves after some rounds.
fn survivors(
    ends: Vec<impl FnOnce() -> Result<Staged> + Send + 'static>,
    gone: usize,
    linger: Duration,
) -> Vec<(usize, Error, Duration)> {
    let told = each(ends, move |mut end| {
        let rank = end.rank();
        let hello = end.all_gather(b"hello", 16);
        if rank == gone {
            thread::sleep(linger);
            return None;
        }
        let began = Instant::now();
        // Others may have finished the first round, and missed the one that left, before this one has.
        let error = hello.and_then(|_| end.all_gather(b"still there", 16)).unwrap_err();
        assert!(end.all_gather(b"and now", 16).is_err(), "no use after an error");
        Some((rank, error, began.elapsed()))
    });
    told.into_iter().flatten().collect()
}

#[test]
fn all_survivors_name_the_rank_that_left() {
    for ranks in [2, 4] {
        for gone in 0..ranks {
            for (rank, error, _) in survivors(local_ends(ranks, PATIENCE), gone, Duration::ZERO) {
                assert!(
                    matches!(error, Error::Peer { rank, fault: PeerFault::Closed, .. } if rank as usize == gone),
                    "{rank}: {error:?}"
                );
            }
            for (rank, error, _) in survivors(tcp_ends(ranks, PATIENCE), gone, Duration::ZERO) {
                assert!(
                    matches!(error, Error::Peer { rank, fault: PeerFault::Closed, .. } if rank as usize == gone),
                    "{rank}: {error:?}"
                );
            }
        }
    }
}

#[test]
fn all_survivors_name_a_silent_rank_within_twice_the_timeout() {
    let timeout = Duration::from_millis(400);
    for ends in [survivors(local_ends(3, timeout), 1, 3 * timeout), survivors(tcp_ends(3, timeout), 1, 3 * timeout)] {
        assert_eq!(ends.len(), 2);
        for (rank, error, took) in ends {
            assert!(matches!(error, Error::Peer { rank: 1, fault: PeerFault::Silent, .. }), "{rank}: {error:?}");
            assert!(took < 2 * timeout, "{rank} took {took:?}");
        }
    }
}
