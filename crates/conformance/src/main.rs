//! `lookback-conformance`: record what a device computes, and hold the emulator against it.

use clap::{Parser, Subcommand};
use lookback_conformance::{
    Error, Result, STRIDE,
    device::Runner,
    form::Level,
    forms, program,
    record::{Choice, Record, Recorded, Recording, record},
    replay::{Verdict, replay},
    supported,
};
use lookback_device::DevicePick;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Proof that the emulator computes what the hardware computes.
#[derive(Parser)]
#[command(name = "lookback-conformance", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every form and writes hashes and samples of the results. Exits with 1 if some are not what the definition says.
    Record {
        /// The file.
        #[arg(long)]
        out: PathBuf,
        /// Where to run: auto, cuda, cuda:N or emulated.
        #[arg(long, default_value = "auto")]
        device: DevicePick,
        /// Every n-th of all 2^32 operands of sweeps; 1 takes minutes a form.
        #[arg(long, default_value_t = STRIDE)]
        stride: u64,
        /// Only forms and operations whose name contains this.
        #[arg(long, default_value = "")]
        filter: String,
        /// Not this form; may be given again. For what a first run could not get past.
        #[arg(long)]
        skip: Vec<String>,
        /// A folder that gets all results too, some 300 MB, so that `replay` can show each that differs.
        #[arg(long)]
        raw: Option<PathBuf>,
    },
    /// Recomputes a record on the emulator and lists what differs. Exits with 1 if anything does that may not.
    Replay {
        /// What `record` wrote.
        file: PathBuf,
        /// The folder that `record --raw` wrote.
        #[arg(long)]
        raw: Option<PathBuf>,
        /// Approximations, too, must agree to the last bit.
        #[arg(long)]
        strict: bool,
    },
    /// Prints the page of supported forms.
    Supported {
        /// The folder of records of real devices.
        #[arg(long, default_value = "tests/conformance/record")]
        records: PathBuf,
    },
    /// Writes the program of every form, one file for each target, so that an assembler can check them.
    Programs {
        /// The folder.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Record { out, device, stride, filter, skip, raw } => {
            run_record(&out, device, Choice { stride: stride.max(1), filter, skip, raw })
        }
        Command::Replay { file, raw, strict } => run_replay(&file, raw.as_deref(), strict),
        Command::Supported { records } => supported_page(&records),
        Command::Programs { dir } => write_programs(&dir),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(story) = lookback_device::emulator::last_fault() {
                eprintln!("{story}");
            }
            ExitCode::from(2)
        }
    }
}

/// Prints a line; a reader that went away is no error.
fn line(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn run_record(out: &Path, device: DevicePick, choice: Choice) -> Result<bool> {
    let runner = Runner::open(device)?;
    let info = &runner.info;
    line(format_args!("device: {} (driver {})", info.name, info.driver_version));
    let Recording { record: recorded, stopped } = record(&runner, &choice)?;
    recorded.write(out)?;
    let (mut results, mut wrong, mut refused) = (0, 0, 0);
    for (name, form) in &recorded.forms {
        match form {
            Recorded::Refused(why) => {
                refused += 1;
                line(format_args!("refused  {name}: {}", why.lines().next().unwrap_or_default()));
            }
            Recorded::Ran(outcome) => {
                results += outcome.results;
                if outcome.wrong > 0 {
                    wrong += 1;
                    line(format_args!("wrong    {name}: {} of {}", outcome.wrong, outcome.checked));
                    outcome.mistakes.iter().for_each(|mistake| line(format_args!("         {mistake}")));
                }
            }
        }
    }
    let mut failed = 0;
    for (name, produced) in &recorded.operations {
        if let Err(why) = produced {
            failed += 1;
            line(format_args!("failed   {name}: {why}"));
        }
    }
    let forms = recorded.forms.len();
    line(format_args!(
        "{forms} forms, {results} results; {wrong} not as defined, {refused} refused; {failed} operations failed"
    ));
    if let Some((name, error)) = stopped {
        line(format_args!("stopped at {name}: run the rest with --skip"));
        return Err(error);
    }
    Ok(wrong == 0 && failed == 0)
}

fn run_replay(file: &Path, raw: Option<&Path>, strict: bool) -> Result<bool> {
    let recorded = Record::read(file)?;
    let runner = Runner::open(DevicePick::Emulated)?;
    line(format_args!("recorded on: {} (driver {})", recorded.device.name, recorded.device.driver_version));
    if recorded.device.emulated {
        line(format_args!("this record is the emulator's own: that they agree says nothing about hardware"));
    }
    let verdicts = replay(&recorded, &runner, raw)?;
    let (mut same, mut allowed, mut failed) = (0, 0, 0);
    for (name, verdict) in &verdicts {
        match verdict {
            Verdict::Same => same += 1,
            Verdict::Stale => line(format_args!("stale    {name}: recorded from another program")),
            Verdict::Refused => line(format_args!("refused  {name} by the device")),
            Verdict::Undefined(wrong) => {
                failed += 1;
                line(format_args!("wrong    {name}: {wrong} results of the device are not as defined"));
            }
            Verdict::Differs { blocks: (differ, of), results, shown, allowed: may } => {
                let word = if *may && !strict { "within  " } else { "differs " };
                *(if *may && !strict { &mut allowed } else { &mut failed }) += 1;
                let results = results.map_or_else(String::new, |results| format!(", {results} results"));
                line(format_args!("{word} {name}: {differ} of {of} blocks{results}"));
                shown.iter().for_each(|difference| line(format_args!("         {difference}")));
            }
        }
    }
    line(format_args!("{} compared: {same} the same, {allowed} within tolerance, {failed} not", verdicts.len()));
    Ok(failed == 0)
}

fn supported_page(folder: &Path) -> Result<bool> {
    let records = supported::records(folder)?;
    let page = supported::render(&supported::golden(&records)?)?;
    let _ = std::io::stdout().write_all(page.as_bytes());
    Ok(true)
}

fn write_programs(dir: &Path) -> Result<bool> {
    fs::create_dir_all(dir).map_err(Error::file(dir))?;
    for (level, file) in [(Level::Sm80, "sm_80.ptx"), (Level::Sm90, "sm_90.ptx")] {
        let mut all = String::new();
        for (number, form) in forms::table().iter().enumerate().filter(|(_, form)| form.level == level) {
            let text = program::render(form, &program::entry(number));
            // One head for the whole file.
            let body = text.find(".visible").unwrap_or(0);
            if all.is_empty() {
                all.push_str(&text[..body]);
            }
            all.push_str(&format!("// {}\n{}", form.name(), &text[body..]));
        }
        let path = dir.join(file);
        fs::write(&path, all).map_err(Error::file(&path))?;
    }
    Ok(true)
}
