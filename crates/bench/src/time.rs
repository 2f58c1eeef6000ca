//! Time on a GPU, by its own events.

use crate::Work;
use lookback_device::{
    Result,
    cudarc::driver::{
        CudaEvent, CudaGraph, CudaStream,
        sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode},
    },
    driver,
};
use std::sync::Arc;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Samples that are thrown away.
    pub warm_ups: usize,
    /// Samples that count.
    pub samples: usize,
    /// Seconds that a sample takes at least.
    pub seconds: f64,
    /// Launches of a sample, unless they take longer than `longest`.
    pub launches: usize,
    /// Seconds that a sample takes at most, where one launch takes less.
    pub longest: f64,
}

impl Effort {
    /// As records have it: 3 samples to warm up and 15 that count, of 2 ms and 8 launches at least.
    pub const RECORD: Self = Self { warm_ups: 3, samples: 15, seconds: 2e-3, launches: 8, longest: 0.25 };
}

/// Launches of a sample at most: a graph of more takes long to make.
const MOST: usize = 4096;

/// What was measured, in microseconds of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The middle of the samples.
    pub median_us: f64,
    /// From the sample that a tenth is below to the one that a tenth is above.
    pub spread_us: f64,
    /// Launches of a sample.
    pub launches: usize,
    /// Whether they were one graph. Launches one by one include what the host takes, where that is longer.
    pub graph: bool,
}

/// Times a case: its sets in turn, back to back, samples of several launches between two events.
///
/// # Errors
/// Those of the operation, and [`Error::DeviceLost`](lookback_device::Error::DeviceLost) when a launch faulted.
pub fn time(work: &mut Work, effort: &Effort) -> Result<Timing> {
    let stream = work.stream().clone();
    // Loads the kernels, which cannot be done while a graph is made.
    work.launch(0)?;
    work.finish()?;
    let estimate = between(&stream, || (0..3).try_for_each(|set| work.launch(set)))? / 3.0;
    let launches = launches(effort, estimate, work.sets());
    let graph = capture(&stream, || (0..launches).try_for_each(|set| work.launch(set)))?;
    let mut sample = || {
        between(&stream, || match &graph {
            Some(graph) => graph.launch().map_err(|e| driver(e, "graph")),
            None => (0..launches).try_for_each(|set| work.launch(set)),
        })
    };
    for _ in 0..effort.warm_ups {
        sample()?;
    }
    let mut samples = Vec::with_capacity(effort.samples);
    for _ in 0..effort.samples.max(1) {
        samples.push(sample()? * 1e6 / launches as f64);
    }
    let [low, median, high] = quantiles(&mut samples);
    Ok(Timing { median_us: median, spread_us: high - low, launches, graph: graph.is_some() })
}

/// Enough to fill the time and to go through all sets, as far as both are affordable.
fn launches(effort: &Effort, estimate: f64, sets: usize) -> usize {
    let estimate = estimate.max(1e-7);
    let wanted = ((effort.seconds / estimate).ceil() as usize).max(effort.launches).max(sets);
    let affordable = (effort.longest / estimate).floor() as usize;
    wanted.min(affordable).clamp(1, MOST)
}

/// The tenth, the middle and the ninetieth of a hundred.
fn quantiles(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1) as f64;
    [0.1, 0.5, 0.9].map(|part| samples.get((last * part).round() as usize).copied().unwrap_or(0.0))
}

/// Seconds on the device.
fn between(stream: &Arc<CudaStream>, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let event = || -> Result<CudaEvent> {
        let event = stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map_err(|e| driver(e, "event"))
    };
    let (start, end) = (event()?, event()?);
    start.record(stream).map_err(|e| driver(e, "event"))?;
    run()?;
    end.record(stream).map_err(|e| driver(e, "event"))?;
    // Waits for the second event, so a launch that faulted is seen here.
    let milliseconds = start.elapsed_ms(&end).map_err(|e| driver(e, "event"))?;
    Ok(f64::from(milliseconds) / 1e3)
}

/// The launches as one graph; `None` where the driver cannot make one of them.
fn capture(stream: &Arc<CudaStream>, run: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
    let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    if stream.begin_capture(relaxed).is_err() {
        return Ok(None);
    }
    let ran = run();
    let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    match (ran, graph) {
        (Ok(()), Ok(graph)) => Ok(graph),
        // What cannot be captured may still be launched.
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_long_enough_go_through_all_sets_and_end() {
        let effort = Effort::RECORD;
        assert_eq!(launches(&effort, 10e-6, 4), 200, "two milliseconds");
        assert_eq!(launches(&effort, 1e-3, 4), 8, "eight launches");
        assert_eq!(launches(&effort, 1e-4, 100), 100, "every set once");
        assert_eq!(launches(&effort, 0.1, 2), 2, "a quarter of a second");
        assert_eq!(launches(&effort, 3.0, 2), 1);
        assert_eq!(launches(&effort, 0.0, 2), MOST);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_samples() {
        let mut samples: Vec<f64> = (0..11).rev().map(f64::from).collect();
        assert_eq!(quantiles(&mut samples), [1.0, 5.0, 9.0]);
        assert_eq!(quantiles(&mut [7.0]), [7.0; 3]);
    }
}
