//! Errors of the command line and their exit status: 2 for input that the user can mend, 1 for everything else.

use lookback_device::{Class, Error};
use std::process::ExitCode;

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The user's file or argument is wrong.
    #[error("{}", one_line(.0))]
    Input(String),
    /// An operation or the device failed.
    #[error(transparent)]
    Operation(#[from] Error),
    /// A check found an error above its gate, or standard output cannot be written.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// Input that names a file or argument, and what is wrong with it.
    pub fn input(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Input(format!("{what}: {why}"))
    }

    /// The status to exit with.
    pub fn exit_code(&self) -> ExitCode {
        let usage = match self {
            Self::Input(_) => true,
            // What a kernel left out stood in the user's file.
            Self::Operation(Error::Masked { .. }) => true,
            Self::Operation(error) => matches!(error.class(), Class::Caller | Class::Data),
            Self::Failed(_) => false,
        };
        ExitCode::from(if usage { 2 } else { 1 })
    }
}

/// What the user wrote, with control characters escaped and no longer than a line bears.
fn one_line(text: &str) -> String {
    const MOST: usize = 1000;
    let mut line = String::new();
    for c in text.chars().take(MOST) {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    if text.chars().nth(MOST).is_some() {
        line.push_str("..");
    }
    line
}
