//! Who knocks: ranks of this job are let in, strangers are not, and nobody keeps the others waiting.

use super::{CHANNELS, PAUSE, Rendezvous};
use crate::Result;
use lookback_device::RendezvousFault;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

/// First bytes of a greeting: the protocol and its version.
const MAGIC: [u8; 4] = *b"LBH2";
/// Bytes of a greeting: magic, job, ranks, rank, port, channel.
const GREETING: usize = 24;
/// Most connections that have not said yet who they are; the first of them goes when more come.
const WAITING: usize = 256;

/// What a rank says first on a connection.
pub(super) struct Greeting {
    pub job: u64,
    pub ranks: u32,
    pub rank: u32,
    pub port: u16,
    pub channel: u8,
}

impl Greeting {
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; GREETING];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.job.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.ranks.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rank.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.port.to_le_bytes());
        bytes[22] = self.channel;
        to.write_all(&bytes)
    }

    /// Nothing if it is none.
    fn parse(bytes: &[u8; GREETING]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let greeting = Self {
            job: u64::from(word(4)) | u64::from(word(8)) << 32,
            ranks: word(12),
            rank: word(16),
            port: u16::from_le_bytes([bytes[20], bytes[21]]),
            channel: bytes[22],
        };
        (bytes[..4] == MAGIC && usize::from(greeting.channel) < CHANNELS).then_some(greeting)
    }
}

/// A connection that has not said all of its greeting.
struct Knock {
    stream: TcpStream,
    from: SocketAddr,
    bytes: [u8; GREETING],
    read: usize,
}

impl Knock {
    /// Whether all of the greeting is there; fails when it never will be.
    fn look(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut self.bytes[self.read..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.read += read,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => (),
            Err(e) => return Err(e),
        }
        Ok(self.read == GREETING)
    }
}

/// A listener, and those who knocked.
pub(super) struct Door {
    listener: TcpListener,
    knocks: Vec<Knock>,
}

impl Door {
    /// The listener does not block.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, knocks: Vec::new() }
    }

    /// The next rank of this job; strangers are turned away. `missing` is blamed for silence.
    pub fn next(&mut self, own: &Rendezvous, missing: usize, until: Instant) -> Result<(TcpStream, Greeting)> {
        loop {
            // First, so that no number of strangers makes it later.
            if Instant::now() > until {
                return Err(own.fault(missing, own.name(), RendezvousFault::Silent));
            }
            let is_quiet = self.accept().map_err(|e| own.failed(&e))?;
            while let Some((stream, from, greeting)) = self.greeted() {
                if greeting.job != own.job || greeting.rank as usize >= own.ranks {
                    continue;
                }
                if greeting.ranks as usize != own.ranks {
                    let (want, got) = (own.ranks as u32, greeting.ranks);
                    return Err(own.fault(greeting.rank as usize, from, RendezvousFault::Ranks { want, got }));
                }
                stream.set_nonblocking(false).map_err(|e| own.failed(&e))?;
                return Ok((stream, greeting));
            }
            if is_quiet {
                thread::sleep(PAUSE);
            }
        }
    }

    /// Lets one more in; whether there was none.
    fn accept(&mut self) -> io::Result<bool> {
        match self.listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(true)?;
                if self.knocks.len() == WAITING {
                    self.knocks.remove(0);
                }
                self.knocks.push(Knock { stream, from, bytes: [0; GREETING], read: 0 });
                Ok(false)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
            // One that has left again already.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// One that has said who it is. Those that never will are turned away.
    fn greeted(&mut self) -> Option<(TcpStream, SocketAddr, Greeting)> {
        let mut at = 0;
        while let Some(knock) = self.knocks.get_mut(at) {
            match knock.look() {
                Ok(false) => at += 1,
                Err(_) => drop(self.knocks.remove(at)),
                Ok(true) => {
                    let Knock { stream, from, bytes, .. } = self.knocks.remove(at);
                    if let Some(greeting) = Greeting::parse(&bytes) {
                        return Some((stream, from, greeting));
                    }
                }
            }
        }
        None
    }
}
