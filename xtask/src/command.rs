//! Running other programs.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

/// Runs a program with its output shown; says how long it took.
pub fn show(title: &str, command: &mut Command) -> Result<(), String> {
    eprintln!("== {title}");
    let start = Instant::now();
    let status =
        command.current_dir(crate::root()).stdin(Stdio::null()).status().map_err(|e| format!("{title}: {e}"))?;
    eprintln!("== {title}: {:.0} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{title}: {status}")) }
}

/// Runs a program and gives what it printed, standard output before standard error.
pub fn capture(title: &str, command: &mut Command) -> Result<String, String> {
    let output =
        command.current_dir(crate::root()).stdin(Stdio::null()).output().map_err(|e| format!("{title}: {e}"))?;
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    if output.status.success() { Ok(text) } else { Err(format!("{title}: {}\n{text}", output.status)) }
}

/// The cargo that runs this program.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}
