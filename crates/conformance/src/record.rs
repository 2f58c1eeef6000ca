//! What a device gave, as a file.

use crate::{
    Error, Result,
    device::{Results, Runner},
    examine::{Hash, Outcome, examine},
    form::Form,
    forms,
    operations::{OPERATIONS, Produced},
};
use lookback_device::{DeviceInfo, Error as DeviceError, emulator};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// The layout of the file.
const FORMAT: u64 = 1;

/// Everything that was recorded on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The device.
    pub device: DeviceInfo,
    /// Stride of the sweeps.
    pub stride: u64,
    /// Forms by their names.
    pub forms: Vec<(String, Recorded)>,
    /// Operations by their names.
    pub operations: Vec<(String, std::result::Result<Produced, String>)>,
}

/// What became of a form.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// It ran.
    Ran(Box<Outcome>),
    /// The device does not have it, or its driver refused the program.
    Refused(String),
}

/// What to record.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Stride of the sweeps.
    pub stride: u64,
    /// Only names that contain this.
    pub filter: String,
    /// Not these names.
    pub skip: Vec<String>,
    /// All results go here too, a file for each form.
    pub raw: Option<PathBuf>,
}

/// What [`record`] came to.
pub struct Recording {
    /// What was recorded.
    pub record: Record,
    /// What ended it early: a device that is lost stays lost, so the rest is for another process.
    pub stopped: Option<(String, Error)>,
}

/// Runs everything that was chosen. A form that the device refuses is recorded as that; a fault ends the recording.
///
/// # Errors
/// When a file cannot be written.
pub fn record(runner: &Runner, choice: &Choice) -> Result<Recording> {
    if let Some(dir) = &choice.raw {
        fs::create_dir_all(dir).map_err(Error::file(dir))?;
    }
    let mut record =
        Record { device: runner.info.clone(), stride: choice.stride, forms: Vec::new(), operations: Vec::new() };
    let chosen = |name: &str| name.contains(&choice.filter) && !choice.skip.iter().any(|skip| skip == name);
    if runner.info.emulated {
        // The arithmetic of the device that it says it is.
        emulator::set_option("mma", "hopper");
    }
    for (number, form) in forms::table().iter().enumerate() {
        let name = form.name();
        if !chosen(&name) {
            continue;
        }
        match record_form(runner, choice, form, number) {
            Ok(recorded) => record.forms.push((name, recorded)),
            Err(error @ Error::File { .. }) => return Err(error),
            Err(error) => return Ok(Recording { record, stopped: Some((name, error)) }),
        }
    }
    for operation in OPERATIONS.iter().filter(|operation| chosen(operation.name)) {
        let produced = operation.run(runner, &runner.info).map_err(|e| e.to_string());
        record.operations.push((operation.name.into(), produced));
    }
    Ok(Recording { record, stopped: None })
}

fn record_form(runner: &Runner, choice: &Choice, form: &Form, number: usize) -> Result<Recorded> {
    let mut raw = choice.raw.as_deref().map(|dir| RawWriter::create(dir, &form.name())).transpose()?;
    let outcome = examine(runner, form, number, choice.stride, |_, results| {
        if let Some(raw) = &mut raw {
            raw.write(form, results);
        }
    });
    if let Some(raw) = raw {
        raw.finish()?;
    }
    match outcome {
        Ok(outcome) => Ok(Recorded::Ran(Box::new(outcome))),
        Err(Error::Device(error @ (DeviceError::Arch { .. } | DeviceError::Ptx { .. }))) => {
            Ok(Recorded::Refused(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// The file of all results of a form: words of 32 or 64 bits, the outputs of one index side by side.
pub fn raw_path(dir: &Path, name: &str) -> PathBuf {
    let mut hash = Hash::default();
    hash.add_text(name);
    dir.join(format!("{:016x}.raw", hash.value()))
}

struct RawWriter {
    path: PathBuf,
    file: BufWriter<fs::File>,
    failed: Option<std::io::Error>,
}

impl RawWriter {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = raw_path(dir, name);
        let file = fs::File::create(&path).map_err(Error::file(&path))?;
        Ok(Self { path, file: BufWriter::new(file), failed: None })
    }

    fn write(&mut self, form: &Form, results: &Results) {
        for i in 0..results.first().map_or(0, Vec::len) {
            for (output, register) in results.iter().zip(&form.outputs) {
                if let Err(error) = self.file.write_all(&output[i].to_le_bytes()[..register.bytes()]) {
                    self.failed.get_or_insert(error);
                }
            }
        }
    }

    fn finish(mut self) -> Result<()> {
        let flushed = self.file.flush();
        match self.failed.map_or(flushed, Err) {
            Ok(()) => Ok(()),
            Err(source) => Err(Error::File { path: self.path, source }),
        }
    }
}

fn hex(bits: u64) -> String {
    format!("{bits:x}")
}

impl Record {
    /// Writes the file: one line for each form, so that differences between records can be read.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let DeviceInfo { name, compute_capability: (major, minor), sm_count, driver_version, emulated, .. } =
            &self.device;
        let head = json!({
            "format": FORMAT, "device": name, "compute_capability": [major, minor], "sm_count": sm_count,
            "shared_per_block_optin": self.device.shared_per_block_optin, "driver_version": driver_version,
            "emulated": emulated, "stride": self.stride,
        });
        let lines = |items: Vec<Value>| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",\n");
        let forms = lines(self.forms.iter().map(|(name, recorded)| form_json(name, recorded)).collect());
        let operations = lines(self.operations.iter().map(|(name, produced)| operation_json(name, produced)).collect());
        let head = head.to_string();
        let text =
            format!("{},\n\"forms\":[\n{forms}\n],\n\"operations\":[\n{operations}\n]}}\n", head.trim_end_matches('}'));
        fs::write(path, text).map_err(Error::file(path))
    }

    /// Reads a file that [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::Record`] for anything else than such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        let wrong = |what: String| Error::Record { path: path.into(), what };
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        parse(&value).map_err(wrong)
    }
}

fn form_json(name: &str, recorded: &Recorded) -> Value {
    let outcome = match recorded {
        Recorded::Refused(why) => return json!({ "form": name, "refused": why }),
        Recorded::Ran(outcome) => outcome,
    };
    let blocks: String = outcome.blocks.iter().map(|hash| format!("{hash:016x}")).collect();
    let words = |bits: &[u64]| bits.iter().map(|bits| hex(*bits)).collect::<Vec<_>>().join(" ");
    let sample: Vec<Value> = outcome.sample.iter().map(|(index, bits)| json!([index, words(bits)])).collect();
    let mut value = json!({
        "form": name, "program": hex(outcome.program), "inputs": hex(outcome.inputs), "results": outcome.results,
        "blocks": blocks, "sample": sample, "checked": outcome.checked,
    });
    // What is usually nothing is left out.
    if outcome.worst > 0.0 {
        value["worst"] = outcome.worst.into();
    }
    if outcome.wrong > 0 {
        value["wrong"] = outcome.wrong.into();
        value["mistakes"] = outcome.mistakes.iter().map(ToString::to_string).collect();
    }
    value
}

fn operation_json(name: &str, produced: &std::result::Result<Produced, String>) -> Value {
    match produced {
        Err(why) => json!({ "operation": name, "refused": why }),
        Ok(Produced { hashes, heads }) => {
            let head = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            json!({
                "operation": name, "hashes": hashes.iter().map(|hash| hex(*hash)).collect::<Vec<_>>(),
                "heads": heads.iter().map(head).collect::<Vec<_>>(),
            })
        }
    }
}

type Parsed<T> = std::result::Result<T, String>;

fn number(value: &Value, key: &str) -> Parsed<u64> {
    value.get(key).and_then(Value::as_u64).ok_or_else(|| format!("`{key}` must be a number"))
}

fn text<'a>(value: &'a Value, key: &str) -> Parsed<&'a str> {
    value.get(key).and_then(Value::as_str).ok_or_else(|| format!("`{key}` must be a text"))
}

fn list<'a>(value: &'a Value, key: &str) -> Parsed<&'a Vec<Value>> {
    value.get(key).and_then(Value::as_array).ok_or_else(|| format!("`{key}` must be a list"))
}

fn bits(digits: &str) -> Parsed<u64> {
    u64::from_str_radix(digits, 16).map_err(|_| format!("`{digits}` is not a hexadecimal number"))
}

fn parse(value: &Value) -> Parsed<Record> {
    let format = number(value, "format")?;
    if format != FORMAT {
        return Err(format!("format {format} is not {FORMAT}"));
    }
    let small = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let field = |key| value.get(key).and_then(small).ok_or_else(|| format!("`{key}` must be a small number"));
    let capability = match list(value, "compute_capability")?.as_slice() {
        [major, minor] => small(major).zip(small(minor)),
        _ => None,
    };
    let device = DeviceInfo {
        name: text(value, "device")?.into(),
        compute_capability: capability.ok_or("`compute_capability` must be two numbers")?,
        sm_count: field("sm_count")?,
        shared_per_block_optin: field("shared_per_block_optin")?,
        driver_version: field("driver_version")?,
        emulated: value.get("emulated").and_then(Value::as_bool).ok_or("`emulated` must be true or false")?,
    };
    let forms = list(value, "forms")?.iter().map(parse_form).collect::<Parsed<_>>()?;
    let operations = list(value, "operations")?.iter().map(parse_operation).collect::<Parsed<_>>()?;
    Ok(Record { device, stride: number(value, "stride")?, forms, operations })
}

fn parse_form(value: &Value) -> Parsed<(String, Recorded)> {
    let name = text(value, "form")?.to_string();
    if let Ok(why) = text(value, "refused") {
        return Ok((name, Recorded::Refused(why.into())));
    }
    let digits = text(value, "blocks")?;
    let blocks =
        (0..digits.len() / 16).map(|i| bits(digits.get(16 * i..16 * i + 16).unwrap_or(""))).collect::<Parsed<_>>()?;
    let sample = list(value, "sample")?.iter().map(|item| {
        let index = item.get(0).and_then(Value::as_u64).ok_or("a sample begins with its index")?;
        let words = item.get(1).and_then(Value::as_str).ok_or("a sample has bits")?;
        Ok((index, words.split_whitespace().map(bits).collect::<Parsed<_>>()?))
    });
    let outcome = Outcome {
        program: bits(text(value, "program")?)?,
        inputs: bits(text(value, "inputs")?)?,
        results: number(value, "results")?,
        blocks,
        sample: sample.collect::<Parsed<_>>()?,
        checked: number(value, "checked")?,
        wrong: number(value, "wrong").unwrap_or(0),
        worst: value.get("worst").and_then(Value::as_f64).unwrap_or(0.0),
        mistakes: Vec::new(),
    };
    Ok((name, Recorded::Ran(Box::new(outcome))))
}

fn parse_operation(value: &Value) -> Parsed<(String, std::result::Result<Produced, String>)> {
    let name = text(value, "operation")?.to_string();
    if let Ok(why) = text(value, "refused") {
        return Ok((name, Err(why.into())));
    }
    let texts = |key| list(value, key).map(|items| items.iter().filter_map(Value::as_str));
    let hashes = texts("hashes")?.map(bits).collect::<Parsed<_>>()?;
    let byte = |digits: &str, i: usize| digits.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let head = |digits: &str| (0..digits.len() / 2).map(|i| byte(digits, i)).collect::<Option<Vec<u8>>>();
    let heads = texts("heads")?.map(head).collect::<Option<_>>().ok_or("`heads` must be hexadecimal")?;
    Ok((name, Ok(Produced { hashes, heads })))
}
