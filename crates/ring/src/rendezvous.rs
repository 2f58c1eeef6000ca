//! How ranks find each other: over TCP by the first rank's address, or by files in a folder that all of them see.
//!
//! Either way every rank learns where all others listen, then each connects to those below it.

use crate::{Error, Result};
use lookback_device::RendezvousFault;
use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// First bytes of a greeting: the protocol and its version.
const MAGIC: [u8; 4] = *b"LBH1";
/// Bytes of a greeting: magic, job, ranks, rank, port.
const GREETING: usize = 24;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Where ranks meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `host:port` where rank 0 listens.
    Address(String),
    /// A folder of this job alone.
    Folder(PathBuf),
}

/// Who meets where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// This rank.
    pub rank: usize,
    /// All of them.
    pub ranks: usize,
    /// Where.
    pub place: Place,
    /// Ranks of other jobs are turned away.
    pub job: u64,
    /// For all of it, and then for every message.
    pub timeout: Duration,
}

/// What a rank says first on a connection.
struct Greeting {
    job: u64,
    ranks: u32,
    rank: u32,
    port: u16,
}

impl Greeting {
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; GREETING];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..12].copy_from_slice(&self.job.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.ranks.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rank.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.port.to_le_bytes());
        to.write_all(&bytes)
    }

    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; GREETING];
        from.read_exact(&mut bytes)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let greeting = Self {
            job: u64::from(word(4)) | u64::from(word(8)) << 32,
            ranks: word(12),
            rank: word(16),
            port: u16::from_le_bytes([bytes[20], bytes[21]]),
        };
        Ok((bytes[..4] == MAGIC).then_some(greeting))
    }
}

impl Rendezvous {
    fn fault(&self, rank: usize, address: impl ToString, why: RendezvousFault) -> Error {
        Error::Rendezvous { rank: rank as u32, address: address.to_string(), why }
    }

    /// An error of this rank's own sockets.
    pub(crate) fn failed(&self, error: &io::Error) -> Error {
        self.fault(self.rank, self.name(), RendezvousFault::Io(error.kind()))
    }

    fn name(&self) -> String {
        match &self.place {
            Place::Address(address) => address.clone(),
            Place::Folder(folder) => folder.display().to_string(),
        }
    }

    /// One connection to each other rank, by rank.
    pub(crate) fn meet(&self) -> Result<Vec<Option<TcpStream>>> {
        let range = |arg, got: usize, lo: usize, hi: usize| match (lo..=hi).contains(&got) {
            true => Ok(()),
            false => {
                Err(Error::Range { op: "rendezvous", arg, at: None, lo: lo as i64, hi: hi as i64, got: got as i64 })
            }
        };
        range("ranks", self.ranks, 1, 1 << 16)?;
        range("rank", self.rank, 0, self.ranks - 1)?;
        if self.ranks == 1 {
            return Ok(vec![None]);
        }
        let until = Instant::now() + self.timeout;
        let own = |e: io::Error| self.failed(&e);
        let listener = TcpListener::bind((IpAddr::from([0, 0, 0, 0]), 0)).map_err(own)?;
        listener.set_nonblocking(true).map_err(own)?;
        let port = listener.local_addr().map_err(own)?.port();
        let addresses = match &self.place {
            Place::Address(address) if self.rank == 0 => self.host(address, port, until)?,
            Place::Address(address) => self.visit(address, port, until)?,
            Place::Folder(folder) => self.files(folder, port, until)?,
        };
        let mut links: Vec<Option<TcpStream>> = (0..self.ranks).map(|_| None).collect();
        for (peer, address) in addresses.iter().enumerate().take(self.rank) {
            let mut stream = self.connect(peer, *address, until)?;
            self.greet(&mut stream, port).map_err(|e| self.fault(peer, address, RendezvousFault::Io(e.kind())))?;
            links[peer] = Some(stream);
        }
        while let Some(missing) = (self.rank + 1..self.ranks).find(|peer| links[*peer].is_none()) {
            let (stream, greeting) = self.accept(&listener, missing, until)?;
            let peer = greeting.rank as usize;
            if peer <= self.rank || links[peer].is_some() {
                return Err(self.fault(peer, addresses[missing], RendezvousFault::Taken));
            }
            links[peer] = Some(stream);
        }
        Ok(links)
    }

    fn greet(&self, stream: &mut TcpStream, port: u16) -> io::Result<()> {
        Greeting { job: self.job, ranks: self.ranks as u32, rank: self.rank as u32, port }.write(stream)
    }

    /// Connects, trying again until the time is over.
    fn connect(&self, peer: usize, address: SocketAddr, until: Instant) -> Result<TcpStream> {
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
            let why = match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Ok(stream),
                Err(e) => RendezvousFault::Io(e.kind()),
            };
            if Instant::now() + PAUSE > until {
                return Err(self.fault(peer, address, why));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The next rank of this job that knocks; strangers are turned away. `missing` is blamed for silence.
    fn accept(&self, listener: &TcpListener, missing: usize, until: Instant) -> Result<(TcpStream, Greeting)> {
        let own = |e: io::Error| self.failed(&e);
        loop {
            match listener.accept() {
                Ok((mut stream, address)) => {
                    // A stranger that says nothing must not keep the others waiting.
                    let patience = until.saturating_duration_since(Instant::now()).clamp(PAUSE, Duration::from_secs(1));
                    stream
                        .set_nonblocking(false)
                        .and_then(|()| stream.set_read_timeout(Some(patience)))
                        .map_err(own)?;
                    let Ok(Some(greeting)) = Greeting::read(&mut stream) else { continue };
                    if greeting.job != self.job || greeting.rank as usize >= self.ranks {
                        continue;
                    }
                    if greeting.ranks as usize != self.ranks {
                        let (want, got) = (self.ranks as u32, greeting.ranks);
                        return Err(self.fault(greeting.rank as usize, address, RendezvousFault::Ranks { want, got }));
                    }
                    stream.set_read_timeout(None).map_err(own)?;
                    return Ok((stream, greeting));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > until {
                        return Err(self.fault(missing, self.name(), RendezvousFault::Silent));
                    }
                    thread::sleep(PAUSE);
                }
                Err(e) => return Err(own(e)),
            }
        }
    }

    /// Rank 0: hears where everybody listens, and tells everybody.
    fn host(&self, address: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>> {
        let own = |e: io::Error| self.failed(&e);
        let listener = TcpListener::bind(address).map_err(own)?;
        listener.set_nonblocking(true).map_err(own)?;
        let mut guests: Vec<Option<(TcpStream, SocketAddr)>> = (0..self.ranks).map(|_| None).collect();
        while let Some(missing) = (1..self.ranks).find(|peer| guests[*peer].is_none()) {
            let (stream, greeting) = self.accept(&listener, missing, until)?;
            let from = stream.peer_addr().map_err(own)?;
            let peer = greeting.rank as usize;
            if peer == 0 || guests[peer].is_some() {
                return Err(self.fault(peer, from, RendezvousFault::Taken));
            }
            guests[peer] = Some((stream, SocketAddr::new(from.ip(), greeting.port)));
        }
        // Every guest reached rank 0 at the address that its own connection came in by.
        let mut addresses = vec![SocketAddr::from(([127, 0, 0, 1], port)); self.ranks];
        for (peer, guest) in guests.iter().enumerate() {
            addresses[peer] = guest.as_ref().map_or(addresses[peer], |(_, address)| *address);
        }
        for (peer, guest) in guests.iter_mut().enumerate() {
            let Some((stream, from)) = guest else { continue };
            let here = stream.local_addr().map_err(own)?.ip();
            let mut table = String::new();
            for (rank, address) in addresses.iter().enumerate() {
                let address = if rank == 0 { SocketAddr::new(here, port) } else { *address };
                table.push_str(&format!("{address}\n"));
            }
            let sent =
                stream.write_all(&(table.len() as u32).to_le_bytes()).and_then(|()| stream.write_all(table.as_bytes()));
            sent.map_err(|e| self.fault(peer, *from, RendezvousFault::Io(e.kind())))?;
        }
        Ok(addresses)
    }

    /// Other ranks: tell rank 0 where they listen, and hear where everybody does.
    fn visit(&self, address: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>> {
        let fault = |e: io::Error| self.fault(0, address, RendezvousFault::Io(e.kind()));
        let host = address.to_socket_addrs().map_err(fault)?.next();
        let host = host.ok_or_else(|| self.fault(0, address, RendezvousFault::Io(io::ErrorKind::NotFound)))?;
        let mut stream = self.connect(0, host, until)?;
        self.greet(&mut stream, port).map_err(fault)?;
        let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
        stream.set_read_timeout(Some(left)).map_err(fault)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).map_err(fault)?;
        // An address takes fewer than 64 bytes.
        let limit = (self.ranks * 64) as u32;
        let mut table = String::new();
        let length = u64::from(u32::from_le_bytes(length).min(limit));
        stream.take(length).read_to_string(&mut table).map_err(fault)?;
        let addresses: Vec<SocketAddr> = table.lines().filter_map(|line| line.parse().ok()).collect();
        let (want, got) = (self.ranks as u32, addresses.len() as u32);
        if want == got { Ok(addresses) } else { Err(self.fault(0, address, RendezvousFault::Ranks { want, got })) }
    }

    /// Every rank writes a file with its address, and waits for all others.
    fn files(&self, folder: &Path, port: u16, until: Instant) -> Result<Vec<SocketAddr>> {
        let own = |e: io::Error| self.failed(&e);
        let file = |rank: usize| folder.join(format!("{:016x}-{rank}-of-{}", self.job, self.ranks));
        fs::create_dir_all(folder).map_err(own)?;
        let (name, part) = (file(self.rank), folder.join(format!(".{:016x}-{}", self.job, self.rank)));
        if name.exists() {
            return Err(self.fault(self.rank, name.display(), RendezvousFault::Taken));
        }
        fs::write(&part, format!("{}\n", SocketAddr::from((host_address(), port)))).map_err(own)?;
        fs::rename(&part, &name).map_err(own)?;
        let mut addresses = Vec::new();
        for rank in 0..self.ranks {
            addresses.push(loop {
                let address = fs::read_to_string(file(rank)).ok().and_then(|text| text.trim().parse().ok());
                match address {
                    Some(address) => break address,
                    None if Instant::now() > until => {
                        return Err(self.fault(rank, file(rank).display(), RendezvousFault::Silent));
                    }
                    None => thread::sleep(PAUSE),
                }
            });
        }
        Ok(addresses)
    }
}

/// The address that other machines reach this one at, or that of this machine to itself where there is no way out.
fn host_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only chooses the way.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").map(|()| s));
    socket.and_then(|s| s.local_addr()).map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}
