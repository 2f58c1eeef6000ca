//! What the emulator counts of a case, and what a GPU would make of that by arithmetic.

use crate::{Work, record::Ceilings};
use lookback_device::{Result, driver, emulator};
use serde_json::Value;

/// Counters of one launch of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts(Value);

/// The GPU whose time is predicted.
pub const PREDICTED_FOR: &str = "one H200, products by mma.sync";
/// Multiprocessors of it.
const SMS: f64 = 132.0;
/// Cycles in a second.
const CLOCK: f64 = 1.755e9;
/// Its rates: those of a copy were measured elsewhere, products by `mma.sync` are said to reach this.
pub(crate) const CEILINGS: Ceilings = Ceilings { copy: 4.3e12, read: 4.5e12, products: 4.9e14 };
/// Warp instructions that a multiprocessor issues in a cycle.
const ISSUED: f64 = 4.0;
/// Lanes of special functions in a cycle of a multiprocessor.
const SPECIAL_LANES: f64 = 16.0;
/// Until the first bytes of a launch arrive, and between two launches.
const FILL: f64 = 1.5e-6;
const LAUNCH: f64 = 2e-6;

impl Counts {
    /// Launches set 0 once and gives what was counted; `None` on a GPU.
    ///
    /// # Errors
    /// Those of the launch.
    pub fn of(work: &mut Work) -> Result<Option<Self>> {
        emulator::set_option("counting", "full");
        emulator::reset_counters();
        let launched = work.launch(0).and_then(|()| work.finish());
        emulator::set_option("counting", "basic");
        launched?;
        let counters = emulator::counters().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        Ok(counters.and_then(|mut all| all.get_mut("total").map(Value::take)).map(Self))
    }

    /// Those of a record.
    pub fn from_json(value: &Value) -> Option<Self> {
        value.is_object().then(|| Self(value.clone()))
    }

    /// All of them, as the emulator gives them.
    pub fn to_json(&self) -> &Value {
        &self.0
    }

    /// A number by path, e.g. `global_loads/sectors`; 0 where there is none of that name.
    pub fn number(&self, path: &str) -> u64 {
        self.0.pointer(&format!("/{path}")).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Bytes of global memory that were read or written at least once, launch by launch.
    pub fn unique_bytes(&self) -> u64 {
        self.number("global_loads/unique_bytes") + self.number("global_stores/unique_bytes")
    }

    /// Sectors that requests touched over those that their bytes need; 1 where nothing was asked for.
    pub fn sector_ratio(&self) -> f64 {
        let sum = |name: &str| {
            ["global_loads", "global_stores"].iter().map(|kind| self.number(&format!("{kind}/{name}"))).sum::<u64>()
        };
        match sum("ideal_sectors") {
            0 => 1.0,
            ideal => sum("sectors") as f64 / ideal as f64,
        }
    }

    /// Share of warp instructions of each class, greatest first.
    pub fn mix(&self) -> Vec<(String, f64)> {
        let all = self.number("warp_instructions").max(1) as f64;
        let classes = self.0.get("instructions").and_then(Value::as_object);
        let share = |(name, count): (&String, &Value)| (name.clone(), count.as_u64().unwrap_or(0) as f64 / all);
        let mut mix: Vec<_> = classes.into_iter().flatten().map(share).filter(|(_, share)| *share > 0.0).collect();
        mix.sort_by(|a, b| b.1.total_cmp(&a.1));
        mix
    }

    /// Seconds on [`PREDICTED_FOR`]: the resource that is busy longest over how well one is used, plus starting. Of blocks that leave
    /// multiprocessors idle only as many count as there are, except for bytes. Nothing here knows of waiting for memory or for
    /// other threads: it ranks variants, it does not promise.
    pub fn predicted_seconds(&self) -> f64 {
        let launches = self.number("launches").max(1) as f64;
        let blocks = (self.number("ctas") as f64 / launches).max(1.0);
        let busy = blocks.min(SMS);
        let slots = (self.number("max_resident_ctas") as f64).max(busy);
        let waves = (blocks / slots).ceil() / (blocks / slots);
        let of_sms = |work: f64, each_cycle: f64| work / (each_cycle * CLOCK * busy) * waves.min(2.0);
        let wavefronts: u64 = ["shared_loads", "shared_stores", "shared_atomics", "matrix_loads"]
            .iter()
            .map(|kind| self.number(&format!("{kind}/wavefronts")))
            .sum();
        let tensor = self.number("tensor_flops") as f64;
        let mut limits = [
            self.unique_bytes() as f64 / CEILINGS.copy,
            of_sms(tensor, CEILINGS.products / (CLOCK * SMS)),
            of_sms(self.number("warp_instructions") as f64, ISSUED),
            of_sms(32.0 * self.number("instructions/special") as f64, SPECIAL_LANES),
            of_sms(wavefronts as f64, 1.0),
        ];
        let is_tensor = limits[1] >= limits.iter().copied().fold(0.0, f64::max);
        limits.sort_by(|a, b| b.total_cmp(a));
        let used = match limits {
            [first, second, ..] if second > 0.8 * first => 0.7,
            _ if is_tensor => 0.85,
            _ => 0.88,
        };
        limits[0] / used + launches * (FILL + LAUNCH)
    }
}

impl Work {
    /// Waits for what was launched.
    ///
    /// # Errors
    /// [`Error::DeviceLost`](lookback_device::Error::DeviceLost) when a launch faulted.
    pub fn finish(&self) -> Result<()> {
        self.stream().synchronize().map_err(|e| driver(e, "launch"))
    }
}
