//! Standard output.

use crate::{CliError, Result};
use std::io::{ErrorKind, Write};

/// Prints a line. Where the reader has closed the pipe, as `head` does, the line is dropped.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(CliError::Failed(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// Prints a line on standard error; where that cannot be written, nobody can be told.
pub fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
