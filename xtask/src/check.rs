//! Everything that CI runs, in the order in which it fails soonest.

use crate::{command, command::cargo, ptxas, root};
use std::{fs, process::Command};

/// Runs all checks; stops at the first that fails.
pub fn run() -> Result<(), String> {
    command::show("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    command::show("clippy", &mut cargo(&clippy))?;
    let nccl =
        ["clippy", "--package", "lookback-ring", "--features", "nccl", "--all-targets", "--", "--deny", "warnings"];
    command::show("clippy of the feature nccl", &mut cargo(&nccl))?;
    command::show("tests", &mut cargo(&["test"]))?;
    let nccl = ["test", "--package", "lookback-ring", "--features", "nccl", "--lib", "--test", "nccl"];
    command::show("tests of the feature nccl", &mut cargo(&nccl))?;
    // The tools are not among the default members.
    command::show("tests of the tools", &mut cargo(&["test", "--package", "xtask"]))?;
    // Every case once, as the emulator counts it.
    command::show("benches", &mut cargo(&["test", "--package", "lookback-suite", "--bench", "operations"]))?;
    peers()?;
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    command::show("docs", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    ptxas::run(false)
}

/// The Python beside other libraries launches what our host code launches: the same bytes come out, on the emulator.
fn peers() -> Result<(), String> {
    let launches = root().join("target/launches");
    // Missing at first; what an earlier run left would be repeated too.
    let _ = fs::remove_dir_all(&launches);
    let folder = launches.display().to_string();
    let list = ["run", "--quiet", "--package", "lookback-cli", "--", "bench", "launches", &folder, "--small"];
    command::show("launch files", &mut cargo(&list))?;
    let emulator = root().join("target/debug/deps/liblookback_emulator.so").display().to_string();
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(args).env("PYTHONPATH", root().join("benches")).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    command::show("tests of benches/peers", &mut python(&["-m", "unittest", "peers.test_without_gpu"]))?;
    let replay = ["-m", "peers", "--launches", &folder, "--replay", &emulator];
    command::show("launches repeated from Python", &mut python(&replay))
}
