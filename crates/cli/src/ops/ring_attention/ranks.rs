//! Ranks at work: threads of this process, or this process among others.

use super::job::{Group, Job};
use crate::{
    CliError, Result,
    output::note,
    session::Session,
    tensor::{Kind, Tensor, Tensors},
};
use lookback_device::{DType, DeviceInfo, Element, Error, cudarc::driver::CudaContext, driver};
use lookback_ring::{
    World,
    transport::{Transport, local, tcp},
};
use std::{sync::Arc, thread};

/// A tensor that the ranks make together: a row for every token.
pub struct Output {
    name: &'static str,
    dtype: DType,
    /// Extents after those of rows and tokens.
    row: Vec<usize>,
}

impl Output {
    /// `[B,T]` and the extents of a token's row.
    pub fn new(name: &'static str, dtype: DType, row: &[usize]) -> Self {
        Self { name, dtype, row: row.to_vec() }
    }

    fn row_bytes(&self) -> usize {
        self.row.iter().product::<usize>() * self.dtype.size()
    }
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
type Part = Vec<Vec<u8>>;

/// Lets every rank `act`, and puts what they made together.
pub fn gather(
    session: &Session,
    group: &Group,
    job: &Job,
    outputs: &[Output],
    act: impl Fn(Rank<'_>) -> Result<Part> + Sync,
) -> Result<Tensors> {
    let parts = match &group.world {
        Some(world) => processes(&session.context, world, act)?,
        None => threads(&session.context, group, act)?,
    };
    let mut found = Tensors::new();
    for (at, output) in outputs.iter().enumerate() {
        let shape: Vec<usize> = [job.shape.batch, job.layout.tokens].iter().chain(&output.row).copied().collect();
        let mut all = vec![0_u8; shape.iter().product::<usize>() * output.dtype.size()];
        for (rank, part) in parts.iter().enumerate() {
            job.put(rank, &part[at], &mut all, output.row_bytes());
        }
        found.insert(output.name.into(), Tensor::new(Kind::Float(output.dtype), &shape, all));
    }
    Ok(found)
}

/// One rank's part.
fn one(
    context: &Arc<CudaContext>,
    transport: &mut dyn Transport,
    act: impl Fn(Rank<'_>) -> Result<Part>,
) -> Result<Part> {
    context.bind_to_thread().map_err(|e| driver(e, "a rank's thread"))?;
    let stream = context.new_stream().map_err(|e| driver(e, "a rank's stream"))?;
    let session = Session { context: context.clone(), stream, info: DeviceInfo::of(context)? };
    act(Rank { session: &session, rank: transport.rank(), transport })
}

fn threads(
    context: &Arc<CudaContext>,
    group: &Group,
    act: impl Fn(Rank<'_>) -> Result<Part> + Sync,
) -> Result<Vec<Part>> {
    let act = &act;
    thread::scope(|scope| {
        let ends = local(group.ranks, group.timeout).into_iter();
        let ranks: Vec<_> = ends.map(|mut end| scope.spawn(move || one(context, &mut end, act))).collect();
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
fn processes(context: &Arc<CudaContext>, world: &World, act: impl Fn(Rank<'_>) -> Result<Part>) -> Result<Vec<Part>> {
    let mut transport = tcp(&world.rendezvous)?;
    note(format_args!("rank {} of {}: all are here", world.rank, world.ranks));
    let part = one(context, &mut transport, act)?;
    let mut all: Vec<Part> = vec![Vec::new(); world.ranks];
    for own in &part {
        for (rank, bytes) in transport.all_gather(own)?.into_iter().enumerate() {
            all[rank].push(bytes);
        }
    }
    Ok(all)
}
