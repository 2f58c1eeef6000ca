//! `lookback bench`: what operations cost on canonical shapes, timed on a GPU or counted on the emulator.

mod launches;
mod report;
mod ring;

use crate::{CliError, Result, output::line, session::Session};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use lookback_bench::{Effort, Mode, Record, Run, Scale, cases, plot};
use lookback_device::DevicePick;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Arguments of `lookback bench`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    family: Option<Family>,
    /// A family (scan, linear, attention, decode, nn), or a part of the names that are wanted.
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
    /// File for the record: the device, its ceilings, and every case.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for a picture of each family, as SVG.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Shows a record that was written before, instead of running anything.
    #[arg(long, value_name = "RECORD", conflicts_with_all = ["json", "list"])]
    from: Option<PathBuf>,
    /// Only names the cases.
    #[arg(long, conflicts_with_all = ["json", "plot"])]
    list: bool,
}

/// What is measured otherwise or, where that takes a machine that is not there, predicted.
#[derive(Subcommand)]
enum Family {
    /// Attention of a sequence that is dealt to several ranks: what every schedule moves, its time by the model, and on a GPU how much
    /// of its transfers computing hides.
    Ring(ring::Arguments),
    /// Writes what the cases launch as files that are repeated elsewhere, beside other libraries.
    Launches(launches::Arguments),
}

/// Runs, shows or lists cases.
pub fn bench(pick: DevicePick, arguments: &Arguments) -> Result<()> {
    match &arguments.family {
        Some(Family::Ring(arguments)) => return ring::bench(pick, arguments),
        Some(Family::Launches(arguments)) => return launches::bench(arguments),
        None => (),
    }
    if let Some(path) = &arguments.from {
        let mut record = read(path)?;
        let is_family = record.cases.iter().any(|row| row.family == arguments.filter);
        record.cases.retain(|row| wanted(&arguments.filter, is_family, &row.name, &row.family));
        return show(&record, arguments);
    }
    let session = Session::open(pick)?;
    let (scale, mode) = match session.info.emulated {
        true => (Scale::Small, Mode::Count),
        false => (Scale::Full, Mode::Time(Effort::RECORD)),
    };
    let mut cases: Vec<_> = cases(&session.info, scale).collect();
    let is_family = cases.iter().any(|case| case.facts.family == arguments.filter);
    cases.retain(|case| wanted(&arguments.filter, is_family, &case.facts.name, case.facts.family));
    if cases.is_empty() {
        return Err(CliError::input("FILTER", format!("nothing is named `{}`", arguments.filter)));
    }
    if arguments.list {
        return cases.iter().try_for_each(|case| line(&case.facts.name));
    }
    let stream = session.context.per_thread_stream();
    let run = Run { stream, info: session.info.clone(), scale, mode, commit: commit() };
    let progress = ProgressBar::new(cases.len() as u64);
    // From before the first case on: a path that cannot be written is found early, and what was measured is there, whatever
    // ends the run.
    let keep = |record: &Record| {
        progress.set_position(record.cases.len() as u64);
        match &arguments.json {
            Some(path) => write(path, &format!("{:#}\n", record.to_json())),
            None => Ok(()),
        }
    };
    let (record, failed) = run.all(cases, keep)?;
    progress.finish_and_clear();
    show(&record, arguments)?;
    match failed {
        0 => Ok(()),
        failed => Err(CliError::Failed(format!("{failed} of {} cases failed", record.cases.len()))),
    }
}

/// Revision of the sources: as the environment says now, or said when this was built.
fn commit() -> String {
    let said = std::env::var("LOOKBACK_COMMIT").ok().filter(|commit| !commit.is_empty());
    said.unwrap_or_else(|| option_env!("LOOKBACK_COMMIT").unwrap_or("unknown").into())
}

/// Whether the filter means this case; `is_family` where there is a family of that name.
fn wanted(filter: &str, is_family: bool, name: &str, family: &str) -> bool {
    if is_family { family == filter } else { name.contains(filter) }
}

/// Prints and draws.
fn show(record: &Record, arguments: &Arguments) -> Result<()> {
    report::print(record)?;
    let Some(folder) = &arguments.plot else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| CliError::input(folder.display(), e))?;
    for (family, picture) in plot(record) {
        // Families of a record are anybody's words.
        let name: String = family.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        write(&folder.join(format!("{name}.svg")), &picture)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Record> {
    let text = fs::read_to_string(path).map_err(|e| CliError::input(path.display(), e))?;
    Record::parse(&text).map_err(|why| CliError::input(path.display(), why))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| CliError::input(path.display(), e))
}
