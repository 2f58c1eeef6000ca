//! Everything that CI runs, in the order in which it fails soonest.

use crate::{command, command::cargo, ptxas};

/// Runs all checks; stops at the first that fails.
pub fn run() -> Result<(), String> {
    command::show("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    command::show("clippy", &mut cargo(&clippy))?;
    let nccl =
        ["clippy", "--package", "lookback-ring", "--features", "nccl", "--all-targets", "--", "--deny", "warnings"];
    command::show("clippy of the feature nccl", &mut cargo(&nccl))?;
    command::show("tests", &mut cargo(&["test"]))?;
    command::show(
        "tests of the feature nccl",
        &mut cargo(&["test", "--package", "lookback-ring", "--features", "nccl"]),
    )?;
    // The tools are not among the default members.
    command::show("tests of the tools", &mut cargo(&["test", "--package", "xtask"]))?;
    // Every case once, as the emulator counts it.
    command::show("benches", &mut cargo(&["test", "--package", "lookback-suite", "--bench", "operations"]))?;
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    command::show("docs", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    ptxas::run(false)
}
