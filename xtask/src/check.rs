//! Everything that CI runs, in the order in which it fails soonest.

use crate::{command, command::cargo, ptxas};

/// Runs all checks; stops at the first that fails.
pub fn run() -> Result<(), String> {
    command::show("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    command::show("clippy", &mut cargo(&clippy))?;
    command::show("tests", &mut cargo(&["test"]))?;
    // Every case once, as the emulator counts it.
    command::show("benches", &mut cargo(&["test", "--package", "lookback-suite", "--bench", "operations"]))?;
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    command::show("docs", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    ptxas::run(false)
}
