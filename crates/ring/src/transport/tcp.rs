//! Ranks that are processes: one TCP connection between every two of them.

use super::{
    frame::{Frame, HEADER, Kind},
    staged::Staged,
    wire::{Event, Link, Wire},
};
use crate::{Result, rendezvous::Rendezvous};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

/// Meets all other ranks and connects to each. Every rank calls it.
///
/// # Errors
/// [`Error::Rendezvous`](crate::Error::Rendezvous) ← a rank that did not come, or is of another job; it names the address.
pub fn tcp(rendezvous: &Rendezvous) -> Result<Staged> {
    let (arrived, events) = mpsc::channel();
    let links = rendezvous.meet()?.into_iter().enumerate();
    let links = links.map(|(peer, stream)| stream.map(|s| link(peer, s, arrived.clone())).transpose());
    let links = links.collect::<io::Result<Vec<Option<Link>>>>().map_err(|e| rendezvous.failed(&e))?;
    Ok(Staged::new(Wire::new(rendezvous.rank, rendezvous.timeout, links, events)))
}

/// Threads that write and read one connection.
fn link(peer: usize, stream: TcpStream, arrived: Sender<(usize, Event)>) -> io::Result<Link> {
    stream.set_nodelay(true)?;
    let (out, outgoing) = mpsc::channel();
    let (to, from, pongs) = (stream.try_clone()?, stream.try_clone()?, out.clone());
    let writer = thread::spawn(move || write(to, &outgoing));
    let reader = thread::spawn(move || {
        let event = read(from, peer, &arrived, &pongs);
        let _ = arrived.send((peer, event));
    });
    let cut = Box::new(move || {
        let _ = stream.shutdown(Shutdown::Both);
    });
    Ok(Link { out, inbox: VecDeque::new(), cut, writer: Some(writer), reader: Some(reader) })
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

/// Reads frames until the connection ends, and says how it did.
fn read(mut stream: TcpStream, peer: usize, arrived: &Sender<(usize, Event)>, pongs: &Sender<Option<Frame>>) -> Event {
    let mut header = [0; HEADER];
    loop {
        if stream.read_exact(&mut header).is_err() {
            return Event::Closed;
        }
        let Some((kind, length)) = Frame::parse(&header) else { return Event::Garbage };
        // Grows with what comes: a length alone makes no memory.
        let mut bytes = Vec::new();
        match (&mut stream).take(length).read_to_end(&mut bytes) {
            Ok(read) if read as u64 == length => (),
            _ => return Event::Closed,
        }
        if kind == Kind::Ping {
            let _ = pongs.send(Some(Frame::empty(Kind::Pong)));
        } else if arrived.send((peer, Event::Frame(Frame { kind, bytes }))).is_err() {
            return Event::Closed;
        }
    }
}
