//! PTX text to a resolved syntax tree. Strict about syntax, scopes and names; opcodes and modifiers are the decoder's.

pub mod ast;
mod body;
mod constant;
mod cursor;
mod declare;
mod lexer;
mod operand;
mod parse;
mod scope;
mod special;
#[cfg(test)]
mod tests;

pub use ast::{Entry, Module};
pub use parse::parse;

/// The text is not what the parser accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What was expected and what was found.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}
