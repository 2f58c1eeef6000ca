//! Ranks at work: threads of this process that share the device, or, started by `lookback launch`, torchrun or the like, this process
//! among others.

use super::{Inputs, inputs::AttributeSpec};
use crate::{CliError, Result, output::note, session::Session};
use lookback_device::{DeviceInfo, Element, Error, cudarc::driver::CudaContext, driver};
use lookback_ring::{
    World,
    transport::{Staged, Transport, local, tcp},
};
use std::{sync::Arc, thread, time::Duration};

/// Seconds that ranks wait for each other.
pub const TIMEOUT: AttributeSpec = AttributeSpec {
    name: "timeout",
    values: "a number",
    default: "60",
    about: "seconds that ranks wait to meet, and for each message; a rank that computes longer counts as failed",
};

/// How messages travel.
pub const TRANSPORT: AttributeSpec = AttributeSpec {
    name: "transport",
    values: if cfg!(feature = "nccl") { "host|nccl" } else { "host" },
    default: "host",
    about: "how messages travel between ranks: through host memory; by NCCL, which wants a process and a GPU for every rank",
};

/// Most seconds that ranks wait for each other: a day.
const LONGEST: f64 = 86_400.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Host,
    #[cfg(feature = "nccl")]
    Nccl,
}

/// Who the ranks are.
pub struct Group {
    /// The launcher's word, if there is one; else ranks are threads.
    world: Option<World>,
    /// How many.
    pub ranks: usize,
    timeout: Duration,
    carrier: Carrier,
}

impl Group {
    /// Of the environment and the attributes.
    pub fn of(inputs: &Inputs) -> Result<Self> {
        let seconds = f64::from(inputs.number("timeout", 0.0)?);
        if !(seconds > 0.0 && seconds <= LONGEST) {
            return Err(inputs.wrong("timeout", format!("must be more than 0 and at most {LONGEST}, got {seconds}")));
        }
        let timeout = Duration::from_secs_f64(seconds);
        let mut world = World::from_env()?.filter(|world| world.ranks > 1);
        if let Some(world) = &mut world {
            world.rendezvous.timeout = timeout;
        }
        let ranks = match &world {
            Some(world) => world.ranks,
            None => inputs.parse("ranks")?,
        };
        if !(1..=64).contains(&ranks) {
            return Err(inputs.wrong("ranks", format!("must be 1 to 64, got {ranks}")));
        }
        let carrier = carrier(inputs)?;
        if carrier != Carrier::Host && world.is_none() && ranks > 1 {
            let why = "nccl wants a process and a GPU for every rank: start them with lookback launch, or set ranks=1";
            return Err(inputs.wrong("transport", why.into()));
        }
        Ok(Self { world, ranks, timeout, carrier })
    }

    /// Whether this process speaks for all.
    pub fn is_first(&self) -> bool {
        self.world.as_ref().is_none_or(|world| world.rank == 0)
    }
}

#[cfg(feature = "nccl")]
fn carrier(inputs: &Inputs) -> Result<Carrier> {
    inputs.choose("transport", &[("host", Carrier::Host), ("nccl", Carrier::Nccl)])
}

#[cfg(not(feature = "nccl"))]
fn carrier(inputs: &Inputs) -> Result<Carrier> {
    if inputs.attribute("transport") == "nccl" {
        return Err(inputs.wrong("transport", "must be host: this program was built without its feature nccl".into()));
    }
    inputs.choose("transport", &[("host", Carrier::Host)])
}

/// One rank: a stream of its own, and links to the others.
pub struct Rank<'a> {
    /// Its stream.
    pub session: &'a Session,
    /// Its number.
    pub rank: usize,
    /// Its links.
    pub transport: &'a mut dyn Transport,
}

/// Bytes of a rank's rows.
pub fn bytes<T: Element>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// A rank's rows of every output.
pub type Part = Vec<Vec<u8>>;

/// Lets every rank `act`: what each has made. No rank's part of an output has more than `most` bytes.
pub fn each(
    session: &Session,
    group: &Group,
    most: &[usize],
    act: impl Fn(Rank<'_>) -> Result<Part> + Sync,
) -> Result<Vec<Part>> {
    match &group.world {
        Some(world) => processes(&session.context, group, world, most, act),
        None => threads(&session.context, group, act),
    }
}

/// One rank's part, and its links.
fn one(
    context: &Arc<CudaContext>,
    carrier: Carrier,
    control: Staged,
    act: impl Fn(Rank<'_>) -> Result<Part>,
) -> Result<(Part, Box<dyn Transport>)> {
    context.bind_to_thread().map_err(|e| driver(e, "a rank's thread"))?;
    let stream = context.new_stream().map_err(|e| driver(e, "a rank's stream"))?;
    let session = Session { context: context.clone(), stream, info: DeviceInfo::of(context)? };
    let mut transport: Box<dyn Transport> = match carrier {
        Carrier::Host => Box::new(control),
        #[cfg(feature = "nccl")]
        Carrier::Nccl => Box::new(lookback_ring::transport::nccl(control, context)?),
    };
    let part = act(Rank { session: &session, rank: transport.rank(), transport: transport.as_mut() })?;
    Ok((part, transport))
}

fn threads(
    context: &Arc<CudaContext>,
    group: &Group,
    act: impl Fn(Rank<'_>) -> Result<Part> + Sync,
) -> Result<Vec<Part>> {
    let act = &act;
    thread::scope(|scope| {
        let ends = local(group.ranks, group.timeout).into_iter();
        let rank = |end| move || one(context, group.carrier, end, act).map(|(part, _)| part);
        let ranks: Vec<_> = ends.map(|end| scope.spawn(rank(end))).collect();
        let ended = ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|_| Err(CliError::Failed("a rank panicked".into()))));
        let ended: Vec<Result<Part>> = ended.collect();
        // What one rank found is the reason why the others gave up.
        let (done, failed): (Vec<_>, Vec<_>) = ended.into_iter().partition(Result::is_ok);
        let is_echo = |e: &CliError| matches!(e, CliError::Operation(Error::Peer { .. }));
        let mut failed: Vec<CliError> = failed.into_iter().filter_map(Result::err).collect();
        failed.sort_by_key(is_echo);
        match failed.into_iter().next() {
            Some(error) => Err(error),
            None => done.into_iter().collect(),
        }
    })
}

/// This process is one rank; every process ends with what all made.
fn processes(
    context: &Arc<CudaContext>,
    group: &Group,
    world: &World,
    most: &[usize],
    act: impl Fn(Rank<'_>) -> Result<Part>,
) -> Result<Vec<Part>> {
    let control = tcp(&world.rendezvous)?;
    note(format_args!("rank {} of {}: all are here", world.rank, world.ranks));
    let (part, mut transport) = one(context, group.carrier, control, act)?;
    let mut all: Vec<Part> = vec![Vec::new(); world.ranks];
    for (own, most) in part.iter().zip(most) {
        for (rank, bytes) in transport.all_gather(own, *most)?.into_iter().enumerate() {
            all[rank].push(bytes);
        }
    }
    Ok(all)
}
