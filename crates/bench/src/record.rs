//! What was measured or counted, with where and when: written to a file, and read again.

use crate::{Counts, Facts, Timing};
use lookback_device::DeviceInfo;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// Number of the format.
const FORMAT: u64 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where.
    pub device: Device,
    /// Of the sources: a revision, or `unknown`.
    pub commit: String,
    /// UTC, as `2026-01-31T12:00:00Z`.
    pub date: String,
    /// `full` or `small`.
    pub scale: String,
    /// What the device does at best; `None` where nothing was timed.
    pub ceilings: Option<Ceilings>,
    /// One for each case.
    pub cases: Vec<Row>,
}

/// The device of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Name as the driver gives it.
    pub name: String,
    /// Whether it is the emulator: nothing was timed.
    pub emulated: bool,
    /// As `9.0`.
    pub compute_capability: String,
    /// Multiprocessors.
    pub sm_count: u64,
    /// CUDA version of the driver, as `13.0`.
    pub driver: String,
    /// Megahertz by what they are of; empty where nobody told.
    pub clocks_mhz: BTreeMap<String, f64>,
}

impl Device {
    /// What the driver says.
    pub fn new(info: &DeviceInfo, clocks_mhz: BTreeMap<String, f64>) -> Self {
        let (major, minor) = info.compute_capability;
        let driver = info.driver_version;
        Self {
            name: info.name.clone(),
            emulated: info.emulated,
            compute_capability: format!("{major}.{minor}"),
            sm_count: info.sm_count.into(),
            driver: format!("{}.{}", driver / 1000, driver % 1000 / 10),
            clocks_mhz,
        }
    }
}

/// Rates that no case exceeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written in a second by a copy.
    pub copy: f64,
    /// Bytes read in a second.
    pub read: f64,
    /// Flops in a second of products of bf16 by `mma.sync`.
    pub products: f64,
}

impl Ceilings {
    /// Seconds that this much work takes at least.
    pub fn floor(&self, bytes: u64, flops: u64) -> f64 {
        (bytes as f64 / self.copy).max(flops as f64 / self.products)
    }
}

/// One case of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// See [`Facts::name`].
    pub name: String,
    /// See [`Facts::operation`].
    pub operation: String,
    /// See [`Facts::family`].
    pub family: String,
    /// See [`Facts::shape`].
    pub shape: BTreeMap<String, u64>,
    /// See [`Facts::dtype`].
    pub dtype: String,
    /// See [`Facts::bytes`].
    pub bytes: u64,
    /// See [`Facts::flops`].
    pub flops: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Row {
    /// A case and what came of it.
    pub fn new(facts: &Facts, outcome: Outcome) -> Self {
        Self {
            name: facts.name.clone(),
            operation: facts.operation.into(),
            family: facts.family.into(),
            shape: facts.shape.iter().map(|(name, extent)| ((*name).into(), *extent as u64)).collect(),
            dtype: facts.dtype.into(),
            bytes: facts.bytes,
            flops: facts.flops,
            outcome,
        }
    }

    /// Seconds that were measured or, on the emulator, predicted.
    pub fn seconds(&self) -> Option<f64> {
        match &self.outcome {
            Outcome::Timed(timing) => Some(timing.median_us / 1e6),
            Outcome::Counted(counts) => Some(counts.predicted_seconds()),
            Outcome::Refused(_) => None,
        }
    }
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// On a GPU.
    Timed(Timing),
    /// On the emulator.
    Counted(Counts),
    /// It did not run, and why.
    Refused(String),
}

impl Record {
    /// Rates by which floors are computed: those measured, or those of the GPU whose times are predicted.
    pub fn rates(&self) -> Ceilings {
        self.ceilings.unwrap_or(crate::counts::CEILINGS)
    }

    /// Seconds that a case takes at least.
    pub fn floor(&self, row: &Row) -> f64 {
        self.rates().floor(row.bytes, row.flops)
    }

    /// Share of the floor, 1 at best.
    pub fn fraction(&self, row: &Row) -> Option<f64> {
        row.seconds().filter(|seconds| *seconds > 0.0).map(|seconds| self.floor(row) / seconds)
    }

    /// As it is written to a file.
    pub fn to_json(&self) -> Value {
        let ceilings = self.ceilings.map(|Ceilings { copy, read, products }| {
            json!({ "copy_bytes_per_second": copy, "read_bytes_per_second": read, "products_flops_per_second": products })
        });
        let Device { name, emulated, compute_capability, sm_count, driver, clocks_mhz } = &self.device;
        json!({
            "format": FORMAT,
            "device": name,
            "emulated": emulated,
            "compute_capability": compute_capability,
            "sm_count": sm_count,
            "driver": driver,
            "clocks_mhz": clocks_mhz,
            "commit": self.commit,
            "date": self.date,
            "scale": self.scale,
            "ceilings": ceilings,
            "predicted_for": emulated.then_some(crate::PREDICTED_FOR),
            "cases": self.cases.iter().map(|row| self.row_to_json(row)).collect::<Vec<_>>(),
        })
    }

    fn row_to_json(&self, row: &Row) -> Value {
        let mut object = Map::new();
        let mut set = |key: &str, value: Value| object.insert(key.into(), value);
        set("name", json!(row.name));
        set("operation", json!(row.operation));
        set("family", json!(row.family));
        set("shape", json!(row.shape));
        set("dtype", json!(row.dtype));
        set("bytes", json!(row.bytes));
        set("flops", json!(row.flops));
        set("floor_us", json!(self.floor(row) * 1e6));
        match &row.outcome {
            Outcome::Timed(Timing { median_us, spread_us, launches, graph }) => {
                set("median_us", json!(median_us));
                set("spread_us", json!(spread_us));
                set("fraction", json!(self.fraction(row)));
                set("launches", json!(launches));
                set("graph", json!(graph));
            }
            Outcome::Counted(counts) => {
                set("predicted_us", json!(counts.predicted_seconds() * 1e6));
                set("predicted_fraction", json!(self.fraction(row)));
                set("counters", counts.to_json().clone());
            }
            Outcome::Refused(why) => {
                set("refused", json!(why));
            }
        }
        Value::Object(object)
    }

    /// A record from the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        match all.get("format").and_then(Value::as_u64) {
            Some(FORMAT) => (),
            Some(other) => return Err(format!("has format {other}, this program reads {FORMAT}")),
            None => return Err("has no `format`: it is not a record of a bench".into()),
        }
        let at = Fields(&all);
        let ceilings = match all.get("ceilings") {
            None | Some(Value::Null) => None,
            Some(rates) => {
                let rates = Fields(rates);
                let rate = |name| rates.number(name).and_then(|r| if r > 0.0 { Ok(r) } else { Err(wrong(name)) });
                Some(Ceilings {
                    copy: rate("copy_bytes_per_second")?,
                    read: rate("read_bytes_per_second")?,
                    products: rate("products_flops_per_second")?,
                })
            }
        };
        let device = Device {
            name: at.text("device")?,
            emulated: at.get("emulated", Value::as_bool)?,
            compute_capability: at.text("compute_capability")?,
            sm_count: at.whole("sm_count")?,
            driver: at.text("driver")?,
            clocks_mhz: at.map("clocks_mhz", Value::as_f64)?,
        };
        if ceilings.is_none() && !device.emulated {
            return Err(wrong("ceilings"));
        }
        let rows = at.get("cases", Value::as_array)?;
        Ok(Self {
            device,
            commit: at.text("commit")?,
            date: at.text("date")?,
            scale: at.text("scale")?,
            ceilings,
            cases: rows.iter().map(row_from_json).collect::<Result<_, _>>()?,
        })
    }
}

fn row_from_json(value: &Value) -> Result<Row, String> {
    let at = Fields(value);
    let has = |name: &str| value.get(name).is_some();
    let outcome = if has("median_us") {
        Outcome::Timed(Timing {
            median_us: at.number("median_us")?,
            spread_us: at.number("spread_us")?,
            launches: at.whole("launches")? as usize,
            graph: at.get("graph", Value::as_bool)?,
        })
    } else if has("counters") {
        Outcome::Counted(at.get("counters", Counts::from_json)?)
    } else {
        Outcome::Refused(at.text("refused")?)
    };
    Ok(Row {
        name: at.text("name")?,
        operation: at.text("operation")?,
        family: at.text("family")?,
        shape: at.map("shape", Value::as_u64)?,
        dtype: at.text("dtype")?,
        bytes: at.whole("bytes")?,
        flops: at.whole("flops")?,
        outcome,
    })
}

fn wrong(name: &str) -> String {
    format!("`{name}` is missing or wrong")
}

/// Members of an object, each named in the error.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get<T>(&self, name: &str, as_type: impl FnOnce(&'a Value) -> Option<T>) -> Result<T, String> {
        self.0.get(name).and_then(as_type).ok_or_else(|| wrong(name))
    }

    fn text(&self, name: &str) -> Result<String, String> {
        self.get(name, Value::as_str).map(String::from)
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        self.get(name, Value::as_f64)
    }

    fn whole(&self, name: &str) -> Result<u64, String> {
        self.get(name, Value::as_u64)
    }

    fn map<T>(&self, name: &str, as_type: impl Fn(&'a Value) -> Option<T>) -> Result<BTreeMap<String, T>, String> {
        let entries = self.get(name, Value::as_object)?.iter();
        entries.map(|(key, value)| Ok((key.clone(), as_type(value).ok_or_else(|| wrong(name))?))).collect()
    }
}

/// The time of this moment, UTC, as records have it.
pub fn now() -> String {
    date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as a date, by the rules of the Gregorian calendar.
fn date(seconds: u64) -> String {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let wrong = |text: &str, part: &str| {
            let why = Record::parse(text).expect_err(text);
            assert!(why.contains(part), "{why}");
        };
        wrong("{", "not JSON");
        wrong("[]", "no `format`");
        wrong(r#"{"format": 2}"#, "format 2");
        wrong(r#"{"format": 1}"#, "`device`");
        let zero = r#"{"format": 1, "ceilings": {"copy_bytes_per_second": 0}}"#;
        wrong(zero, "copy_bytes_per_second");
    }
}
