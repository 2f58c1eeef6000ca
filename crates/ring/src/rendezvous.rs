//! How ranks find each other: over TCP by the first rank's address, or by files in a folder that all of them see.
//!
//! Either way every rank learns where all others listen, then each connects to those below it, twice: one connection is for data, one for
//! words that must not wait behind data.

use crate::{Error, Result};
use door::{Door, Greeting};
use lookback_device::RendezvousFault;
use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

mod door;

/// Connections between every two ranks.
const CHANNELS: usize = 2;
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

    /// The connections to each other rank, by rank: for data, and for words.
    pub(crate) fn meet(&self) -> Result<Vec<Option<[TcpStream; CHANNELS]>>> {
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
        let mut door = Door::new(listener);
        let mut links: Vec<[Option<TcpStream>; CHANNELS]> = (0..self.ranks).map(|_| [None, None]).collect();
        for (peer, address) in addresses.iter().enumerate().take(self.rank) {
            for (channel, link) in links[peer].iter_mut().enumerate() {
                let mut stream = self.connect(peer, *address, until)?;
                let greeted = self.greet(&mut stream, port, channel, until);
                greeted.map_err(|e| self.fault(peer, address, RendezvousFault::Io(e.kind())))?;
                *link = Some(stream);
            }
        }
        while let Some(missing) = (self.rank + 1..self.ranks).find(|peer| links[*peer].iter().any(Option::is_none)) {
            let (stream, greeting) = door.next(self, missing, until)?;
            let (peer, channel) = (greeting.rank as usize, usize::from(greeting.channel));
            if peer <= self.rank || links[peer][channel].is_some() {
                return Err(self.fault(peer, addresses[missing], RendezvousFault::Taken));
            }
            links[peer][channel] = Some(stream);
        }
        let both = |[data, words]: [Option<TcpStream>; CHANNELS]| Some([data?, words?]);
        Ok(links.into_iter().map(both).collect())
    }

    fn greet(&self, stream: &mut TcpStream, port: u16, channel: usize, until: Instant) -> io::Result<()> {
        stream.set_write_timeout(Some(left(until)))?;
        let (ranks, rank, channel) = (self.ranks as u32, self.rank as u32, channel as u8);
        Greeting { job: self.job, ranks, rank, port, channel }.write(stream)?;
        stream.set_write_timeout(None)
    }

    /// Connects, trying again until the time is over.
    fn connect(&self, peer: usize, address: SocketAddr, until: Instant) -> Result<TcpStream> {
        loop {
            let why = match TcpStream::connect_timeout(&address, left(until)) {
                Ok(stream) => return Ok(stream),
                Err(e) => RendezvousFault::Io(e.kind()),
            };
            if Instant::now() + PAUSE > until {
                return Err(self.fault(peer, address, why));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Rank 0: hears where everybody listens, and tells everybody.
    fn host(&self, address: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>> {
        let own = |e: io::Error| self.failed(&e);
        let listener = TcpListener::bind(address).map_err(own)?;
        listener.set_nonblocking(true).map_err(own)?;
        let mut door = Door::new(listener);
        let mut guests: Vec<Option<(TcpStream, SocketAddr)>> = (0..self.ranks).map(|_| None).collect();
        while let Some(missing) = (1..self.ranks).find(|peer| guests[*peer].is_none()) {
            let (stream, greeting) = door.next(self, missing, until)?;
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
            let words = [&(table.len() as u32).to_le_bytes(), table.as_bytes()].concat();
            let sent = stream.set_write_timeout(Some(left(until))).and_then(|()| stream.write_all(&words));
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
        self.greet(&mut stream, port, 0, until).map_err(fault)?;
        let mut length = [0; 4];
        fill(&mut stream, &mut length, until).map_err(fault)?;
        // An address takes fewer than 64 bytes.
        let mut table = vec![0; (u32::from_le_bytes(length) as usize).min(self.ranks * 64)];
        fill(&mut stream, &mut table, until).map_err(fault)?;
        let table = String::from_utf8_lossy(&table);
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

/// What is left of the time, and never nothing.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(PAUSE)
}

/// Reads all of it in time, however slowly it comes.
fn fill(stream: &mut TcpStream, bytes: &mut [u8], until: Instant) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left(until)))?;
        match stream.read(&mut bytes[at..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => at += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The address that other machines reach this one at, or that of this machine to itself where there is no way out.
fn host_address() -> IpAddr {
    // Nothing is sent: connecting a datagram socket only chooses the way.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").map(|()| s));
    socket.and_then(|s| s.local_addr()).map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}
