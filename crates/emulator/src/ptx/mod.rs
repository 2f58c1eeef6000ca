//! PTX text to a resolved syntax tree. Strict about syntax, scopes and names; opcodes and modifiers are the decoder's.

pub mod ast;

pub use ast::{Entry, Module};
