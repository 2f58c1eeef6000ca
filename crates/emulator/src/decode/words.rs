//! The modifiers of one opcode, consumed from left to right.

use super::DecodeError;
use super::op::{Order, Scope};
use crate::numerics::Rounding;
use crate::ptx::ast::{Instruction, Type};

/// A cursor over the modifiers. Whoever decodes takes what it knows in the order of the manual; [`Words::finish`] then
/// refuses whatever is left.
pub(crate) struct Words<'a> {
    ins: &'a Instruction,
    at: usize,
}

impl<'a> Words<'a> {
    /// All modifiers of an instruction.
    pub fn new(ins: &'a Instruction) -> Self {
        Self { ins, at: 0 }
    }

    /// The next modifier, not consumed.
    pub fn peek(&self) -> Option<&'a str> {
        self.ins.modifiers.get(self.at).map(String::as_str)
    }

    /// The last modifier.
    pub fn last(&self) -> Option<&'a str> {
        self.ins.modifiers.last().map(String::as_str)
    }

    /// Consume the next modifier whatever it is.
    pub fn next(&mut self) -> Result<&'a str, DecodeError> {
        let word = self.peek().ok_or_else(|| self.error("a modifier is missing"))?;
        self.at += 1;
        Ok(word)
    }

    /// Consume the next modifier if it is this word.
    pub fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    /// Consume the next modifier, which must be this word.
    pub fn expect(&mut self, word: &str) -> Result<(), DecodeError> {
        if self.take(word) { Ok(()) } else { Err(self.unexpected(&format!(".{word}"))) }
    }

    /// Consume the next modifier if it is one of these; its index.
    pub fn any(&mut self, words: &[&str]) -> Option<usize> {
        let word = self.peek()?;
        let index = words.iter().position(|known| *known == word)?;
        self.at += 1;
        Some(index)
    }

    /// Consume a type.
    pub fn ty(&mut self) -> Result<Type, DecodeError> {
        match self.peek().and_then(Type::from_name) {
            Some(ty) => {
                self.at += 1;
                Ok(ty)
            }
            None => Err(self.unexpected("a type")),
        }
    }

    /// Consume a rounding of floating-point arithmetic.
    pub fn rounding(&mut self) -> Option<Rounding> {
        const ROUNDINGS: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];
        self.any(&["rn", "rz", "rm", "rp"]).map(|index| ROUNDINGS[index])
    }

    /// Consume a scope.
    pub fn scope(&mut self) -> Result<Option<Scope>, DecodeError> {
        if self.peek() == Some("cluster") {
            return Err(self.error("clusters are not supported"));
        }
        Ok(self.any(&["cta", "gpu", "sys"]).map(|index| [Scope::Cta, Scope::Gpu, Scope::System][index]))
    }

    /// Consume the ordering of an atomic operation; relaxed when none is written.
    pub fn atomic_order(&mut self) -> Order {
        const ORDERS: [Order; 4] = [Order::Relaxed, Order::Acquire, Order::Release, Order::AcquireRelease];
        self.any(&["relaxed", "acquire", "release", "acq_rel"]).map_or(Order::Relaxed, |index| ORDERS[index])
    }

    /// Refuse what was not consumed.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.peek() {
            None => Ok(()),
            Some(word) => Err(self.error(&format!(".{word} is not supported here"))),
        }
    }

    /// The opcode with all its modifiers, as written.
    pub fn text(&self) -> String {
        let mut text = self.ins.opcode.clone();
        for word in &self.ins.modifiers {
            text.push('.');
            text.push_str(word);
        }
        text
    }

    /// An error about this instruction.
    pub fn error(&self, what: &str) -> DecodeError {
        DecodeError { line: self.ins.line, message: format!("{}: {what}", self.text()) }
    }

    fn unexpected(&self, wanted: &str) -> DecodeError {
        match self.peek() {
            Some(word) => self.error(&format!("expected {wanted}, found .{word}")),
            None => self.error(&format!("expected {wanted} at the end")),
        }
    }
}
