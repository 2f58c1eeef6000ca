//! A position in the token list, and the words in which a mismatch is reported.

use super::ParseError;
use super::lexer::{Kind, Token};

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Reads tokens in order. The list ends with [`Kind::End`], which is never passed.
pub(super) struct Cursor<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

const END: Token<'static> = Token { kind: Kind::End, text: "", line: 0 };

impl<'a> Cursor<'a> {
    pub fn new(tokens: Vec<Token<'a>>) -> Self {
        Self { tokens, at: 0 }
    }

    pub fn peek(&self) -> Token<'a> {
        self.peek_at(0)
    }

    /// The token that many places ahead; past the end, the last one.
    pub fn peek_at(&self, ahead: usize) -> Token<'a> {
        self.tokens.get(self.at + ahead).or(self.tokens.last()).copied().unwrap_or(END)
    }

    pub fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    pub fn line(&self) -> u32 {
        self.peek().line
    }

    /// The error that the current token is not what it should be.
    pub fn expected(&self, what: &str) -> ParseError {
        let found = self.peek();
        ParseError::new(found.line, format!("expected {what}, found {}", found.describe()))
    }

    /// Takes the punctuation if it is next.
    pub fn take(&mut self, punctuation: &str) -> bool {
        let taken = self.peek().is(punctuation);
        if taken {
            self.next();
        }
        taken
    }

    /// Takes the directive, named without its dot, if it is next.
    pub fn take_directive(&mut self, name: &str) -> bool {
        let taken = self.peek().is_directive(name);
        if taken {
            self.next();
        }
        taken
    }

    pub fn expect(&mut self, punctuation: &str) -> Result<()> {
        if self.take(punctuation) { Ok(()) } else { Err(self.expected(&format!("`{punctuation}`"))) }
    }

    pub fn expect_directive(&mut self, name: &str) -> Result<()> {
        if self.take_directive(name) { Ok(()) } else { Err(self.expected(&format!("`.{name}`"))) }
    }

    /// Takes a token of that kind.
    pub fn expect_kind(&mut self, kind: Kind, what: &str) -> Result<Token<'a>> {
        if self.peek().kind == kind { Ok(self.next()) } else { Err(self.expected(what)) }
    }
}
