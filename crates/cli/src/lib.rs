//! `lookback`: what the kernels do, on a GPU or on a machine without one.

mod ask;
mod bench;
mod check;
mod error;
mod info;
mod launch;
mod nccl;
mod ops;
mod output;
mod run;
mod session;
mod tensor;
pub mod trial;

pub use error::CliError;

use clap::{Parser, Subcommand};
use lookback_device::DevicePick;
use std::{path::PathBuf, process::ExitCode};

/// Sequence kernels in hand-written PTX: gated scans and the model made of them.
#[derive(Parser)]
#[command(name = "lookback", version, about)]
struct Cli {
    /// Where to run: auto, cuda, cuda:N or emulated.
    #[arg(long, global = true, default_value = "auto")]
    device: DevicePick,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the device and which kernels load on it.
    Info {
        /// Also has the driver compile every kernel, and reports those it refuses.
        #[arg(long)]
        load: bool,
    },
    /// Reads a phone book (a line is `Name 1234`) and answers from memory.
    Ask {
        /// The book.
        book: PathBuf,
        /// Names to ask for; without any, asks for all and reports the accuracy.
        names: Vec<String>,
        /// Only reads forward.
        #[arg(long, conflicts_with = "model")]
        causal: bool,
        /// Weights to use instead of the ones that come with lookback.
        #[arg(long)]
        model: Option<PathBuf>,
    },
    /// Runs one operation on the tensors of a safetensors file.
    Run(run::Arguments),
    /// Starts a command as several ranks of this machine, and ends all when one fails.
    Launch(launch::Arguments),
    /// Times operations on canonical shapes, or without a GPU counts what they do.
    Bench(bench::Arguments),
    /// Compares every operation with its f64 reference.
    Check(check::Arguments),
}

/// The program: reads its arguments, does what they say, and gives the status to exit with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Info { load } => info::info(cli.device, load),
        Command::Ask { book, names, causal, model } => ask::ask(cli.device, &book, &names, causal, model.as_deref()),
        Command::Run(arguments) => run::run(cli.device, &arguments),
        Command::Launch(arguments) => launch::launch(&arguments),
        Command::Bench(arguments) => bench::bench(cli.device, &arguments),
        Command::Check(arguments) => check::check(cli.device, &arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {error}"));
            error.exit_code()
        }
    }
}

/// Result of a command.
type Result<T> = std::result::Result<T, CliError>;
