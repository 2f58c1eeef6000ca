//! Running cases one after the other: each takes and gives back its memory.

use crate::{Result, session::Session};
use indicatif::ProgressBar;
use lookback_bench::{
    Case, Ceilings, Counts, Device, Effort, Outcome, Record, Row, Scale, Timing, ceilings, clock_mhz, now, time,
};
use lookback_device::{
    Error,
    cudarc::driver::{CudaStream, sys::CUdevice_attribute},
};
use std::{collections::BTreeMap, sync::Arc};

/// Rounds of the kernel that reads the clock, which ends sooner: after a tenth of a millisecond.
const CLOCK_ROUNDS: u32 = 1 << 20;

/// Everything that was wanted, and how many cases failed. What a device is too small or too old for is no failure. `keep` gets the
/// record as it grows.
pub fn all(
    session: &Session,
    scale: Scale,
    cases: Vec<Case>,
    keep: impl Fn(&Record) -> Result<()>,
) -> Result<(Record, usize)> {
    let stream = session.context.per_thread_stream();
    let emulated = session.info.emulated;
    let mut record = Record {
        device: Device::new(&session.info, if emulated { BTreeMap::new() } else { greatest_clocks(session) }),
        commit: commit(),
        date: now(),
        scale: if scale == Scale::Full { "full" } else { "small" }.into(),
        ceilings: None,
        cases: Vec::with_capacity(cases.len()),
    };
    keep(&record)?;
    if !emulated {
        record.ceilings = Some(measured(session, scale, &stream)?);
        note_clock(&mut record, "sm_before", &stream)?;
    }
    let progress = ProgressBar::new(cases.len() as u64);
    let mut failed = 0;
    for case in cases {
        let facts = case.facts.clone();
        let outcome = one(case, emulated, &stream);
        progress.inc(1);
        let lost = matches!(outcome, Err(Error::DeviceLost { .. }));
        let outcome = outcome.unwrap_or_else(|error| {
            let expected = matches!(error, Error::OutOfMemory { .. } | Error::Arch { .. } | Error::NoKernel { .. });
            failed += usize::from(!expected);
            Outcome::Refused(error.to_string())
        });
        record.cases.push(Row::new(&facts, outcome));
        keep(&record)?;
        if lost {
            // Every later call would answer the same.
            return Ok((record, failed));
        }
    }
    progress.finish_and_clear();
    if !emulated {
        note_clock(&mut record, "sm_after", &stream)?;
        keep(&record)?;
    }
    Ok((record, failed))
}

fn one(case: Case, emulated: bool, stream: &Arc<CudaStream>) -> lookback_device::Result<Outcome> {
    if emulated {
        let mut work = case.make(stream, 1)?;
        let counts = Counts::of(&mut work)?;
        return Ok(counts.map_or(Outcome::Refused("the emulator gave no counters".into()), Outcome::Counted));
    }
    let sets = case.facts.sets();
    Ok(Outcome::Timed(time(&mut case.make(stream, sets)?, &Effort::RECORD)?))
}

/// Rates of the kernels that do one thing only.
fn measured(session: &Session, scale: Scale, stream: &Arc<CudaStream>) -> Result<Ceilings> {
    let mut rates = Ceilings { copy: 0.0, read: 0.0, products: 0.0 };
    for case in ceilings(&session.info, scale) {
        let (bytes, flops) = (case.facts.bytes as f64, case.facts.flops as f64);
        let is_products = case.facts.operation == "products";
        let is_copy = case.facts.operation == "copy";
        let Timing { median_us, .. } = time(&mut case.make(stream, 1)?, &Effort::RECORD)?;
        let seconds = (median_us / 1e6).max(1e-9);
        match (is_products, is_copy) {
            (true, _) => rates.products = flops / seconds,
            (_, true) => rates.copy = bytes / seconds,
            _ => rates.read = bytes / seconds,
        }
    }
    Ok(rates)
}

/// Megahertz that the driver says are the greatest.
fn greatest_clocks(session: &Session) -> BTreeMap<String, f64> {
    let kilohertz = [
        ("sm_greatest", CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        ("memory_greatest", CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
    ];
    let told = kilohertz.into_iter().filter_map(|(name, attribute)| {
        let rate = session.context.attribute(attribute).ok().filter(|rate| *rate > 0)?;
        Some((name.to_string(), f64::from(rate) / 1e3))
    });
    told.collect()
}

/// The clock as it is under load, from before and after the cases: a hot card runs slower.
fn note_clock(record: &mut Record, name: &str, stream: &Arc<CudaStream>) -> Result<()> {
    if let Some(mhz) = clock_mhz(stream, CLOCK_ROUNDS)? {
        record.device.clocks_mhz.insert(name.into(), mhz.round());
    }
    Ok(())
}

/// Revision of the sources: as the environment says now, or said when this was built.
fn commit() -> String {
    let said = std::env::var("LOOKBACK_COMMIT").ok().filter(|commit| !commit.is_empty());
    said.unwrap_or_else(|| option_env!("LOOKBACK_COMMIT").unwrap_or("unknown").into())
}
