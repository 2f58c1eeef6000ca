//! The checks that CI runs, and the tools around them. `cargo xtask <command>`.

mod accepted;
mod assemble;
mod bundle;
mod check;
mod command;
mod flow;
mod lint;
mod marks;
mod occupancy;
mod parallel;
mod ptxas;
mod report;
mod row;
mod sass;
mod tables;
mod tools;

use std::{path::PathBuf, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask <command>
  check          everything that CI runs: format, clippy, tests, benches, peers, docs, ptxas
  lint           read every kernel's PTX for mistakes that a test may not see
  ptxas          lint; assemble every kernel for every target; compare figures and marks with what is committed
  bless          assemble, and rewrite docs/resources.json, docs/resources.md and docs/sass.md
  report         which kernels miss which mark, and why that is accepted
  bundle DIR     executables, assets and run.sh for a host without Rust, as a folder and packed";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["check"] => check::run(),
        ["lint"] => lint::run(),
        ["ptxas"] => ptxas::run(false),
        ["bless"] => ptxas::run(true),
        ["report"] => report::run(),
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
