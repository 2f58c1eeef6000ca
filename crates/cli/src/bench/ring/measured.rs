//! Rings on this device: ranks are threads that share it, messages pass through host memory.
//!
//! Three times are taken of a schedule: of what it computes, of what it moves, and of both together. All but reading the clock is the same on
//! the emulator, whose clock says nothing.

use crate::{CliError, Result, session::Session};
use half::bf16;
use lookback_device::{
    DeviceInfo, Element,
    cudarc::driver::{CudaContext, CudaStream, sys::CUevent_flags},
    driver,
};
use lookback_ring::{
    Layout, Partition, Visible,
    attention::{Inputs, Options, Outputs, Part, Plan, Shape},
    schedule::Kind,
    transport::{Staged, Transport, local},
};
use std::{sync::Arc, thread, time::Duration};

/// For one message: far longer than any takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What is timed.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Sizes of all ranks.
    pub shape: Shape,
    /// Tokens of all ranks, which see causally.
    pub tokens: usize,
    /// Ranks.
    pub ranks: usize,
    /// Schedule.
    pub kind: Kind,
    /// Which tokens a rank has.
    pub partition: Partition,
}

/// Seconds of the slowest rank, the least of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Nothing moves.
    pub compute: f64,
    /// Nothing is computed.
    pub transfers: f64,
    /// As it runs.
    pub both: f64,
}

impl Times {
    /// What transfers add to computing.
    pub fn exposed(&self) -> f64 {
        (self.both - self.compute).max(0.0)
    }

    /// The share of the transfers' own time that they do not add: 0 if they run one after the other, 1 if computing hides them.
    pub fn overlap(&self) -> f64 {
        if self.transfers > 0.0 { (1.0 - self.exposed() / self.transfers).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// Of every round of every rank, part by part.
    fn of(ranks: &[[Vec<f64>; 3]]) -> Option<Self> {
        let least = |part: usize| {
            let rounds = ranks.iter().map(|parts| parts[part].len()).min()?;
            let slowest = |round: usize| ranks.iter().map(|parts| parts[part][round]).fold(0.0, f64::max);
            (0..rounds).map(slowest).reduce(f64::min)
        };
        // In the order of `PARTS`.
        Some(Self { both: least(0)?, compute: least(1)?, transfers: least(2)? })
    }
}

/// All first, so that what the others read is there.
const PARTS: [Part; 3] = [Part::All, Part::Compute, Part::Transfers];

/// Runs a schedule in parts; nothing on the emulator, after it has run just so.
pub fn measure(session: &Session, job: &Job) -> Result<Option<Times>> {
    let rounds = if session.info.emulated { 1 } else { 4 };
    let parts = thread::scope(|scope| {
        let ranks: Vec<_> = local(job.ranks, TIMEOUT)
            .into_iter()
            .map(|end| scope.spawn(move || rank(&session.context, job, rounds, end)))
            .collect();
        let joined = ranks.into_iter().map(|rank| rank.join());
        joined
            .map(|done| done.unwrap_or_else(|_| Err(CliError::Failed("a rank panicked".into()))))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(Times::of(&parts))
}

/// One rank: seconds of every round but the first, part by part; none on the emulator.
fn rank(context: &Arc<CudaContext>, job: &Job, rounds: usize, mut end: Staged) -> Result<[Vec<f64>; 3]> {
    context.bind_to_thread().map_err(|e| driver(e, "a rank's thread"))?;
    let stream = context.new_stream().map_err(|e| driver(e, "a rank's stream"))?;
    let session = Session { context: context.clone(), stream, info: DeviceInfo::of(context)? };
    let Session { stream, info, .. } = &session;
    let Job { shape, tokens, ranks, kind, partition } = *job;
    let layout = Layout { partition, tokens, ranks };
    let options = Options { kind, ..Options::new(&shape, bf16::DTYPE) };
    let plan = Plan::new(&shape, &options, &layout, &Visible::causal(tokens), end.rank(), info)?;
    let mut workspace = plan.workspace(stream)?;
    let rows = |heads: usize, width: usize| session.zeros::<bf16>(shape.batch * plan.tokens() * heads * width);
    let (q, k) = (rows(shape.heads, shape.head_dim)?, rows(shape.key_heads, shape.head_dim)?);
    let (v, mut o) = (rows(shape.key_heads, shape.value_dim)?, rows(shape.heads, shape.value_dim)?);
    let mut lse = session.zeros::<f32>(shape.batch * plan.tokens() * shape.heads)?;
    let mut seconds = [const { Vec::new() }; 3];
    for (part, seconds) in PARTS.into_iter().zip(&mut seconds) {
        for round in 0..rounds {
            // Nobody is measured while others still do something else.
            stream.synchronize().map_err(|e| driver(e, "a rank's round"))?;
            end.all_gather(&[], 0)?;
            let outputs = Outputs { o: &mut o, lse: &mut lse };
            let run =
                || plan.run_part(part, stream, &Inputs { q: &q, k: &k, v: &v }, outputs, &mut workspace, &mut end);
            if info.emulated {
                run()?;
            } else {
                let taken = between(stream, run)?;
                // The first one loads kernels.
                seconds.extend((round > 0).then_some(taken));
            }
        }
    }
    Ok(seconds)
}

/// Seconds between two events on the stream.
fn between(stream: &Arc<CudaStream>, run: impl FnOnce() -> lookback_device::Result<()>) -> Result<f64> {
    let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(|e| driver(e, "event"));
    let (start, end) = (event()?, event()?);
    start.record(stream).map_err(|e| driver(e, "event"))?;
    run()?;
    end.record(stream).map_err(|e| driver(e, "event"))?;
    let milliseconds = start.elapsed_ms(&end).map_err(|e| driver(e, "event"))?;
    Ok(f64::from(milliseconds) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exposed_is_what_transfers_add() {
        let times = Times { compute: 4.0, transfers: 2.0, both: 4.5 };
        assert_eq!((times.exposed(), times.overlap()), (0.5, 0.75));
        let one_after_the_other = Times { both: 6.5, ..times };
        assert_eq!((one_after_the_other.exposed(), one_after_the_other.overlap()), (2.5, 0.0));
        let hidden = Times { both: 3.9, ..times };
        assert_eq!((hidden.exposed(), hidden.overlap()), (0.0, 1.0));
        let nothing_moves = Times { transfers: 0.0, ..times };
        assert_eq!(nothing_moves.overlap(), 1.0);
    }

    #[test]
    fn the_slowest_rank_of_the_best_round_counts() {
        let ranks =
            [[vec![5.0, 6.0], vec![3.0, 2.0], vec![1.0, 1.0]], [vec![7.0, 6.5], vec![2.0, 2.5], vec![0.5, 2.0]]];
        assert_eq!(Times::of(&ranks), Some(Times { both: 6.5, compute: 2.5, transfers: 1.0 }));
        assert_eq!(Times::of(&[[const { Vec::new() }; 3]]), None);
    }
}
