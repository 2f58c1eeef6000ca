//! `lookback bench launches`: what the cases of the benchmarks would launch, as files that a program without Rust repeats on a
//! GPU, beside other libraries in the same process.
//!
//! A case is made and launched on the emulator, which lists the work and does none of it, so shapes of gigabytes cost nothing.
//! The folder holds a file `<case>.json` for each case, the texts of its kernels in `ptx`, and what the host copied to the
//! device in `data`, one file for equal contents.

mod folder;
mod relocate;

use crate::{CliError, Result, output, session::Session};
use clap::Args;
use folder::Folder;
use lookback_bench::{Case, Facts, Role, Scale, Work, cases};
use lookback_device::{DeviceInfo, DevicePick, emulator};
use relocate::Buffers;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Of the files.
const FORMAT: u32 = 1;

/// Arguments of `lookback bench launches`.
#[derive(Args)]
pub struct Arguments {
    /// The folder to write to; made if it is not there.
    folder: PathBuf,
    /// Only cases whose name contains this text, or of the family that is named so.
    #[arg(default_value = "")]
    filter: String,
    /// Small shapes, and what the emulator writes for them: a test for whoever repeats the launches.
    #[arg(long)]
    small: bool,
}

/// Writes the files.
pub fn bench(arguments: &Arguments) -> Result<()> {
    let session = Session::open(DevicePick::Emulated)?;
    let scale = if arguments.small { Scale::Small } else { Scale::Full };
    let mut folder = Folder::create(&arguments.folder)?;
    let is_family = cases(&session.info, scale).any(|case| case.facts.family == arguments.filter);
    let wanted = |case: &Case| super::wanted(&arguments.filter, is_family, &case.facts.name, case.facts.family);
    let mut written = 0_usize;
    for case in cases(&session.info, scale).filter(wanted) {
        let name = case.facts.name.clone();
        match record(&session, case, &mut folder) {
            Ok(recorded) => {
                let expected =
                    if arguments.small { expected(&session, scale, &name, &mut folder)? } else { Vec::new() };
                folder.write_case(&name, &recorded.into_json(&session.info, expected))?;
                written += 1;
            }
            // A case that this device has no kernel for is none of the others' business.
            Err(CliError::Operation(why)) => output::note(format_args!("left out: {name}: {why}")),
            Err(other) => return Err(other),
        }
    }
    if written == 0 {
        return Err(CliError::input("FILTER", format!("nothing is named `{}`", arguments.filter)));
    }
    output::line(format_args!("{written} cases, {} bytes in {}", folder.bytes(), arguments.folder.display()))
}

/// A case as the emulator listed it.
struct Recorded {
    facts: Facts,
    buffers: Buffers,
    setup: Vec<Value>,
    launches: Vec<Value>,
}

/// The calling thread records as long as this lives.
struct Recording;

impl Recording {
    fn start() -> Result<Self> {
        if !emulator::set_option("record", "on") {
            return Err(CliError::Failed(
                "the emulator beside this program is an older one: it does not record".into(),
            ));
        }
        emulator::reset_recording();
        Ok(Self)
    }

    /// What was listed since the start or the last call.
    fn take(&self) -> Result<Vec<Value>> {
        let text = emulator::recording().unwrap_or_default();
        emulator::reset_recording();
        serde_json::from_str(&text).map_err(|e| CliError::Failed(format!("the emulator's recording: {e}")))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        emulator::set_option("record", "off");
        emulator::reset_recording();
    }
}

/// Lists how a case is set up and what one launch of it does.
fn record(session: &Session, case: Case, folder: &mut Folder) -> Result<Recorded> {
    let recording = Recording::start()?;
    let mut work = case.make(&session.stream, 1)?;
    let setup = recording.take()?;
    work.launch(0)?;
    let launches = recording.take()?;
    work.launch(0)?;
    if launches != recording.take()? {
        return Err(CliError::Failed(format!("{}: its second launch is another one than its first", work.facts.name)));
    }
    drop(recording);
    let buffers = Buffers::new(work.tensors(), &setup);
    let mut relocated = |events: Vec<Value>| -> Result<Vec<Value>> {
        let events = events.into_iter().filter(|event| event["kind"] != "allocation");
        events.map(|event| buffers.relocate(event, folder)).collect()
    };
    let (setup, launches) = (relocated(setup)?, relocated(launches)?);
    Ok(Recorded { facts: work.facts, buffers, setup, launches })
}

impl Recorded {
    fn into_json(self, info: &DeviceInfo, expected: Vec<(&'static str, String)>) -> Value {
        let Self { facts, buffers, setup, launches } = self;
        let (major, minor) = info.compute_capability;
        let shape: Vec<Value> = facts.shape.iter().map(|(name, extent)| json!([name, extent])).collect();
        let expected: Map<String, Value> =
            expected.into_iter().map(|(name, file)| (name.to_string(), Value::from(file))).collect();
        json!({
            "format": FORMAT,
            "name": facts.name,
            "operation": facts.operation,
            "family": facts.family,
            "dtype": facts.dtype,
            "shape": shape,
            "bytes": facts.bytes,
            "flops": facts.flops,
            "device": { "name": info.name, "sm_count": info.sm_count, "compute_capability": [major, minor] },
            "buffers": buffers.into_json(),
            "setup": setup,
            "launches": launches,
            "expected": expected,
        })
    }
}

/// What one launch of that case writes, run on the emulator: a file for each output.
fn expected(session: &Session, scale: Scale, name: &str, folder: &mut Folder) -> Result<Vec<(&'static str, String)>> {
    let Some(case) = cases(&session.info, scale).find(|case| case.facts.name == name) else { return Ok(Vec::new()) };
    let mut work: Work = case.make(&session.stream, 1)?;
    work.launch(0)?;
    let outputs = work.tensors().iter().filter(|tensor| matches!(tensor.role, Role::Output | Role::Both));
    outputs
        .map(|tensor| {
            let contents = usize::try_from(tensor.bytes).ok().and_then(|bytes| emulator::read(tensor.address, bytes));
            let contents =
                contents.ok_or_else(|| CliError::Failed(format!("{name}: {} cannot be read", tensor.name)))?;
            Ok((tensor.name, folder.write_data(&contents)?))
        })
        .collect()
}
