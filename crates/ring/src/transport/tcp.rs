//! Ranks that are processes: two TCP connections between every two of them, one for data and one for words that must not wait.

use super::{
    frame::{Frame, HEADER, Kind},
    patience::Pulse,
    posted::{Posted, Verdict},
    staged::Staged,
    wire::{Event, Link, PIECE, Wire},
};
use crate::{Result, rendezvous::Rendezvous};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

/// Meets all other ranks and connects to each. Every rank calls it.
///
/// # Errors
/// [`Error::Rendezvous`](crate::Error::Rendezvous) ← a rank that did not come, or is of another job; it names the address.
pub fn tcp(rendezvous: &Rendezvous) -> Result<Staged> {
    let (arrived, events) = mpsc::channel();
    let pulse = Arc::new(Pulse::new(rendezvous.ranks));
    let link = |(peer, streams): (usize, Option<[TcpStream; 2]>)| {
        let Some(streams) = streams else { return Ok(None) };
        let ear = Ear { peer, arrived: arrived.clone(), pulse: pulse.clone() };
        link(streams, ear, rendezvous.timeout).map(Some)
    };
    let links = rendezvous.meet()?.into_iter().enumerate().map(link).collect::<io::Result<Vec<Option<Link>>>>();
    let links = links.map_err(|e| rendezvous.failed(&e))?;
    Ok(Staged::new(Wire::new(rendezvous.rank, rendezvous.timeout, links, events, pulse)))
}

/// Where what a peer sends is put.
#[derive(Clone)]
struct Ear {
    peer: usize,
    arrived: Sender<(usize, Event)>,
    pulse: Arc<Pulse>,
}

/// Threads that write and read a peer's connections.
fn link([data, words]: [TcpStream; 2], ear: Ear, timeout: Duration) -> io::Result<Link> {
    for stream in [&data, &words] {
        stream.set_nodelay(true)?;
    }
    // A word fits a buffer unless the peer has stopped long ago.
    words.set_write_timeout(Some((timeout / 8).max(Duration::from_millis(1))))?;
    let (out, outgoing) = mpsc::channel();
    let (posted, moved) = (Arc::new(Posted::default()), Arc::new(AtomicU64::new(0)));
    let mouth = Arc::new(Mutex::new(words.try_clone()?));
    let (to, last) = (data.try_clone()?, words.try_clone()?);
    let (from, heard, own_ear) = (data.try_clone()?, words.try_clone()?, ear.clone());
    let (answers, tells) = (mouth.clone(), mouth);
    let (is_heard, all_heard) = mpsc::channel();
    let (expected, count, cut_off) = (posted.clone(), moved.clone(), posted.clone());
    let writer = thread::spawn(move || {
        write(to, &outgoing);
        let _ = last.shutdown(Shutdown::Write);
    });
    let listener = thread::spawn(move || {
        listen(heard, &own_ear, &answers);
        drop(is_heard);
    });
    let reader = thread::spawn(move || {
        let event = read(from, &ear, &expected, &count);
        // Why a peer leaves is said by its last word.
        if matches!(event, Event::Closed) {
            let _: std::result::Result<(), _> = all_heard.recv();
        }
        let _ = ear.arrived.send((ear.peer, event));
    });
    Ok(Link {
        out,
        tell: Box::new(move |kind| say(&tells, kind)),
        posted: Some(posted),
        moved,
        inbox: VecDeque::new(),
        cut: Box::new(move || {
            cut_off.cut();
            for stream in [&data, &words] {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }),
        writer: Some(writer),
        readers: vec![listener, reader],
    })
}

/// Writes frames until the last, or until the peer takes no more; whoever waits for the peer will find that it is gone.
fn write(mut stream: TcpStream, frames: &Receiver<Option<Frame>>) {
    for frame in frames.iter().map_while(|frame| frame) {
        if stream.write_all(&frame.header()).and_then(|()| stream.write_all(&frame.bytes)).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Says a word, or does not if the peer is gone.
fn say(mouth: &Mutex<TcpStream>, kind: Kind) {
    let mut stream = mouth.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = stream.write_all(&Frame::empty(kind).header());
}

/// Hears words until the connection ends. Answers are only noted, and the first word of a failure is enough: whatever a peer sends here
/// takes no memory.
fn listen(mut stream: TcpStream, ear: &Ear, mouth: &Mutex<TcpStream>) {
    let mut header = [0; HEADER];
    let mut has_failed = false;
    while stream.read_exact(&mut header).is_ok() {
        match Frame::parse(&header) {
            Some((Kind::Ping, 0)) => {
                let (waits_for, age) = ear.pulse.own();
                say(mouth, Kind::Pong { waits_for, age });
            }
            Some((Kind::Pong { waits_for, age }, 0)) => ear.pulse.heard(ear.peer, waits_for, age),
            Some((kind @ Kind::Abort { .. }, 0)) if !has_failed => {
                has_failed = true;
                let _ = ear.arrived.send((ear.peer, Event::Frame(Frame::empty(kind))));
            }
            Some((Kind::Abort { .. }, 0)) => (),
            _ => {
                let _ = ear.arrived.send((ear.peer, Event::Garbage));
                return;
            }
        }
    }
}

/// Reads frames until the connection ends, and says how it did.
fn read(mut stream: TcpStream, ear: &Ear, posted: &Posted, moved: &AtomicU64) -> Event {
    let mut header = [0; HEADER];
    loop {
        if stream.read_exact(&mut header).is_err() {
            return Event::Closed;
        }
        let (kind, length) = match Frame::parse(&header) {
            Some((kind, length)) if !kind.is_word() => (kind, length),
            _ => return Event::Garbage,
        };
        let held = || drop(ear.arrived.send((ear.peer, Event::Held)));
        let verdict = posted.admit(&kind, length, held);
        let (true, Ok(length)) = (matches!(verdict, Verdict::Expected | Verdict::Early), usize::try_from(length))
        else {
            return if verdict == Verdict::Cut { Event::Closed } else { Event::Garbage };
        };
        // Grows with what comes.
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let at = bytes.len();
            bytes.resize(length.min(at + PIECE), 0);
            if stream.read_exact(&mut bytes[at..]).is_err() {
                return Event::Closed;
            }
            moved.fetch_add((bytes.len() - at) as u64, Ordering::Relaxed);
        }
        let frame = Frame { kind, bytes };
        let event = if verdict == Verdict::Early { Event::Early(frame) } else { Event::Frame(frame) };
        if ear.arrived.send((ear.peer, event)).is_err() {
            return Event::Closed;
        }
    }
}
