//! From the parser's words to a program that the interpreter can run without looking back.
//!
//! Every operand becomes the number of a register slot (immediates, special registers and parameters are slots that a
//! launch fills before the first instruction), every opcode with its modifiers and types becomes one [`op::Op`]. What
//! is not known here is an error that names the line: nothing is skipped and nothing is guessed.

mod program;

pub use program::{Program, Target};

use crate::ptx::ast;
use std::fmt;

/// Why a kernel cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Line of the PTX text.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for DecodeError {}

/// Decode one kernel of a module.
///
/// `globals` are the device addresses of [`ast::Module::globals`], in that order; the caller allocates them and copies
/// their initial bytes.
pub fn decode(module: &ast::Module, entry: &ast::Entry, globals: &[u64]) -> Result<Program, DecodeError> {
    program::build(module, entry, globals)
}
