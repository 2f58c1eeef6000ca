//! A folder that runs on another x86-64 Linux host without Rust, and the same packed in one file: the command line, tests, the
//! conformance recorder, what runs beside other libraries, assets and `run.sh`.

use crate::{command, command::cargo, root};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What the folder's user runs.
const RUN_SH: &str = include_str!("run.sh");

/// Packages whose tests need a device: what only looks at the emulator or at files has been tested before it travels.
const TESTED: [&str; 3] = ["lookback-suite", "lookback-cli", "lookback-ring"];

/// Builds everything in release mode and copies it, stripped, into `dir`.
pub fn run(dir: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    for sub in ["tests", "assets"] {
        fs::create_dir_all(dir.join(sub)).map_err(io)?;
    }
    let commit = command::capture("git", Command::new("git").args(["rev-parse", "--short", "HEAD"]));
    let commit = commit.map_or("unknown".into(), |text| text.trim().to_string());
    let packages = ["--package", "lookback-cli", "--package", "lookback-conformance"];
    let mut build = cargo(&["build", "--release"]);
    build.args(packages).args(["--features", "lookback-cli/nccl"]).env("LOOKBACK_COMMIT", commit);
    command::show("build", &mut build)?;
    let release = root().join("target/release");
    for program in ["lookback", "lookback-conformance"] {
        copy(&release.join(program), &dir.join(program))?;
    }
    copy(&release.join("deps/liblookback_emulator.so"), &dir.join("liblookback_emulator.so"))?;
    let mut tests = cargo(&["test", "--release", "--no-run", "--message-format", "json"]);
    tests.args(TESTED.iter().flat_map(|package| ["--package", package]));
    for (name, path) in executables(&command::capture("tests", &mut tests)?) {
        copy(&path, &dir.join("tests").join(name))?;
    }
    for asset in fs::read_dir(root().join("assets")).map_err(io)?.filter_map(Result::ok) {
        fs::copy(asset.path(), dir.join("assets").join(asset.file_name())).map_err(io)?;
    }
    copy_python(&root().join("benches/peers"), &dir.join("peers")).map_err(io)?;
    let script = dir.join("run.sh");
    fs::write(&script, RUN_SH).map_err(io)?;
    command::capture("chmod", Command::new("chmod").arg("+x").arg(fs::canonicalize(&script).map_err(io)?))?;
    let packed = dir.with_extension("tar.gz");
    let (folder, name) = (dir.parent().unwrap_or(Path::new(".")), dir.file_name().unwrap_or_default());
    let absolute = std::path::absolute(folder).map_err(io)?;
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--gzip").arg("--file").arg(std::path::absolute(&packed).map_err(io)?);
    command::capture("tar", tar.arg("--directory").arg(absolute).arg(name))?;
    let bytes = fs::metadata(&packed).map_err(io)?.len();
    eprintln!("== bundle: {} bytes in {}, {bytes} packed", size(dir), dir.display());
    Ok(())
}

/// Name and path of every integration test in cargo's messages. Unit tests stay at home: they need no device.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed
        .filter_map(|message| {
            let path = PathBuf::from(message.get("executable")?.as_str()?);
            let kind = message.pointer("/target/kind/0")?.as_str()?;
            if kind != "test" {
                return None;
            }
            let package =
                message.get("package_id")?.as_str()?.rsplit(['/', '#']).find(|p| !p.contains('@'))?.to_string();
            let name = message.get("target")?.get("name")?.as_str()?.to_string();
            Some((if name.contains(&package) { name } else { format!("{package}-{name}") }, path))
        })
        .collect()
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map_err(|e| format!("{}: {e}", from.display()))?;
    command::capture(
        "strip",
        Command::new("strip").arg("--strip-unneeded").arg(fs::canonicalize(to).map_err(|e| e.to_string())?),
    )
    .map(drop)
}

/// Programs and texts of a folder; what Python compiled stays at home.
fn copy_python(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.filter_map(Result::ok) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() && entry.file_name() != "__pycache__" {
            copy_python(&path, &target)?;
        } else if path.extension().is_some_and(|e| e == "py" || e == "md" || e == "txt") {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.map(|e| if e.path().is_dir() { size(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) }).sum()
}
