//! Running cases one after the other: each takes and gives back its memory.

use crate::{
    Case, Ceilings, Counts, Device, Effort, Outcome, Record, Row, Scale, ceilings, clock_mhz, record::now, time,
};
use lookback_device::{
    DeviceInfo, Error, Result,
    cudarc::driver::{CudaStream, sys::CUdevice_attribute},
};
use std::{collections::BTreeMap, sync::Arc};

/// Rounds of the kernel that reads the clock, which ends sooner: after a tenth of a millisecond.
const CLOCK_ROUNDS: u32 = 1 << 16;

/// What is done with a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Timed, after the ceilings.
    Time(Effort),
    /// Launched once and counted, by the emulator.
    Count,
}

/// Where and how cases are run.
#[derive(Debug, Clone)]
pub struct Run {
    /// The stream that everything runs on; not the legacy one, which cannot be captured.
    pub stream: Arc<CudaStream>,
    /// Its device.
    pub info: DeviceInfo,
    /// Of the cases.
    pub scale: Scale,
    /// What is done.
    pub mode: Mode,
    /// Revision of the sources, for the record.
    pub commit: String,
}

impl Run {
    /// Runs all cases and gives the record with how many failed; what a device is too small or too old for is no failure. `keep` gets
    /// the record before the first case and after each. When the device is lost, the cases behind are left out.
    ///
    /// # Errors
    /// Those of `keep`, and of measuring the ceilings.
    pub fn all<E: From<Error>>(
        &self,
        cases: impl IntoIterator<Item = Case>,
        mut keep: impl FnMut(&Record) -> std::result::Result<(), E>,
    ) -> std::result::Result<(Record, usize), E> {
        let mut record = Record {
            device: Device::new(&self.info, BTreeMap::new()),
            commit: self.commit.clone(),
            date: now(),
            scale: if self.scale == Scale::Full { "full" } else { "small" }.into(),
            ceilings: None,
            cases: Vec::new(),
        };
        if let Mode::Time(effort) = &self.mode {
            record.device.clocks_mhz = self.greatest_clocks();
            record.ceilings = Some(self.ceilings(effort)?);
            self.note_clock(&mut record, "sm_before")?;
        }
        keep(&record)?;
        let mut failed = 0;
        for case in cases {
            let facts = case.facts.clone();
            let outcome = self.one(case);
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
        if matches!(self.mode, Mode::Time(_)) {
            self.note_clock(&mut record, "sm_after")?;
            keep(&record)?;
        }
        Ok((record, failed))
    }

    fn one(&self, case: Case) -> Result<Outcome> {
        match &self.mode {
            Mode::Time(effort) => {
                let sets = case.facts.sets();
                Ok(Outcome::Timed(time(&mut case.make(&self.stream, sets)?, effort)?))
            }
            Mode::Count => {
                let counts = Counts::of(&mut case.make(&self.stream, 1)?)?;
                Ok(counts.map_or(Outcome::Refused("only the emulator counts".into()), Outcome::Counted))
            }
        }
    }

    /// Rates of what does one thing only.
    fn ceilings(&self, effort: &Effort) -> Result<Ceilings> {
        let mut rates = Ceilings { copy: 0.0, read: 0.0, products: 0.0 };
        for case in ceilings(&self.info, self.scale) {
            let (operation, bytes, flops) = (case.facts.operation, case.facts.bytes as f64, case.facts.flops as f64);
            let seconds = time(&mut case.make(&self.stream, 1)?, effort)?.median_us.max(1e-3) / 1e6;
            match operation {
                "copy" => rates.copy = bytes / seconds,
                "read" => rates.read = bytes / seconds,
                _ => rates.products = flops / seconds,
            }
        }
        Ok(rates)
    }

    /// Megahertz that the driver says are the greatest.
    fn greatest_clocks(&self) -> BTreeMap<String, f64> {
        let kilohertz = [
            ("sm_greatest", CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            ("memory_greatest", CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
        ];
        let told = kilohertz.into_iter().filter_map(|(name, attribute)| {
            let rate = self.stream.context().attribute(attribute).ok().filter(|rate| *rate > 0)?;
            Some((name.to_string(), f64::from(rate) / 1e3))
        });
        told.collect()
    }

    /// The clock under load, from before and after the cases: a hot card runs slower.
    fn note_clock(&self, record: &mut Record, name: &str) -> Result<()> {
        if let Some(mhz) = clock_mhz(&self.stream, CLOCK_ROUNDS)? {
            record.device.clocks_mhz.insert(name.into(), mhz.round());
        }
        Ok(())
    }
}
