//! The checks that CI runs, and the tools around them. `cargo xtask <command>`.

mod bundle;
mod check;
mod command;
mod ptxas;

use std::{path::PathBuf, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask <command>
  check          everything that CI runs: format, clippy, tests, docs, ptxas
  ptxas          assemble every kernel for every target and compare with docs/resources.md
  bless          the same, and rewrite docs/resources.md
  bundle DIR     executables, assets and run.sh for a host without Rust";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["check"] => check::run(),
        ["ptxas"] => ptxas::run(false),
        ["bless"] => ptxas::run(true),
        ["bundle", dir] => bundle::run(&PathBuf::from(dir)),
        _ => Err(USAGE.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}
