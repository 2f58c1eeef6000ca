//! Text to tokens. Everything is a slice of the text; nothing is copied.

use super::ParseError;

/// A token and the line it begins on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    /// The characters of the token; a dot word comes without its dot, a string without its quotes.
    pub text: &'a str,
    pub line: u32,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `ld`, `%r1`, `_`, `$L1`
    Word,
    /// `.global`, `.m16n8k16`, `.L2::128B`
    DotWord,
    /// Digits with whatever prefix, suffix, point or exponent follows; the value is read by [`super::constant`].
    Number,
    /// `"nounroll"`
    Text,
    /// One punctuation character, or one of `<<`, `>>`.
    Punctuation,
    /// After the last token.
    End,
}

impl Token<'_> {
    pub fn is(&self, punctuation: &str) -> bool {
        self.kind == Kind::Punctuation && self.text == punctuation
    }

    pub fn is_directive(&self, name: &str) -> bool {
        self.kind == Kind::DotWord && self.text == name
    }

    /// How an error message names what was found.
    pub fn describe(&self) -> String {
        const SHOWN: usize = 40;
        let shown: String = self.text.chars().take(SHOWN).collect();
        let more = if self.text.len() > SHOWN { ".." } else { "" };
        match self.kind {
            Kind::End => "the end of the text".to_owned(),
            Kind::DotWord => format!("`.{shown}{more}`"),
            Kind::Text => format!("\"{shown}{more}\""),
            _ => format!("`{shown}{more}`"),
        }
    }
}

/// Splits the whole text; the last token is [`Kind::End`].
pub(super) fn tokenize(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blanks()?;
        let (start, line) = (self.at, self.line);
        let first = self.peek(0);
        let kind = match first {
            _ if start >= self.bytes.len() => Kind::End,
            b'.' if is_word(self.peek(1)) => {
                self.at += 1;
                self.eat_word();
                while self.peek(0) == b':' && self.peek(1) == b':' && is_word(self.peek(2)) {
                    self.at += 2;
                    self.eat_word();
                }
                return Ok(Token { kind: Kind::DotWord, text: self.slice(start + 1), line });
            }
            b'%' if is_word(self.peek(1)) && !self.peek(1).is_ascii_digit() => {
                self.at += 1;
                self.eat_word();
                Kind::Word
            }
            b'0'..=b'9' => {
                self.eat_number();
                Kind::Number
            }
            _ if is_word(first) => {
                self.eat_word();
                Kind::Word
            }
            b'"' => return self.string(),
            b'<' | b'>' if self.peek(1) == first => {
                self.at += 2;
                Kind::Punctuation
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'&' | b'|' | b'^' | b'~' | b'!' | b'=' | b'@' => {
                self.at += 1;
                Kind::Punctuation
            }
            _ => return Err(self.unexpected_character()),
        };
        Ok(Token { kind, text: self.slice(start), line })
    }

    fn slice(&self, start: usize) -> &'a str {
        // Every character that a token is made of is ASCII, so both ends are character boundaries.
        self.text.get(start..self.at).unwrap_or("")
    }

    fn unexpected_character(&self) -> ParseError {
        let found = self.text.get(self.at..).and_then(|rest| rest.chars().next());
        let what = match found {
            Some(c) if c.is_ascii_graphic() => format!("unexpected character `{c}`"),
            Some(c) if c.is_ascii() => format!("unexpected control character 0x{:02x}", u32::from(c)),
            _ => "unexpected character outside ASCII".to_owned(),
        };
        ParseError::new(self.line, what)
    }

    fn eat_word(&mut self) {
        while is_word(self.peek(0)) {
            self.at += 1;
        }
    }

    /// Takes everything that could belong to a number, so that `08`, `1.0f` or `0x12G` fail as one bad number.
    fn eat_number(&mut self) {
        let hexadecimal = self.peek(0) == b'0' && matches!(self.peek(1), b'x' | b'X' | b'f' | b'F' | b'd' | b'D');
        loop {
            let byte = self.peek(0);
            let signed_exponent = !hexadecimal && matches!(byte, b'e' | b'E') && matches!(self.peek(1), b'+' | b'-');
            if signed_exponent {
                self.at += 2;
            } else if is_word(byte) || byte == b'.' {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn string(&mut self) -> Result<Token<'a>, ParseError> {
        let line = self.line;
        self.at += 1;
        let start = self.at;
        while !matches!(self.peek(0), b'"' | b'\n' | 0) {
            if !self.peek(0).is_ascii() {
                return Err(self.unexpected_character());
            }
            self.at += 1;
        }
        if self.peek(0) != b'"' {
            return Err(ParseError::new(line, "expected `\"` before the end of the line"));
        }
        let text = self.slice(start);
        self.at += 1;
        Ok(Token { kind: Kind::Text, text, line })
    }

    fn skip_blanks(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line = self.line.saturating_add(1);
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.comment_character()?;
                    }
                }
                (b'/', b'*') => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), ParseError> {
        let opened = self.line;
        self.at += 2;
        while !(self.peek(0) == b'*' && self.peek(1) == b'/') {
            if self.at >= self.bytes.len() {
                return Err(ParseError::new(opened, "expected `*/`: this comment is never closed"));
            }
            if self.peek(0) == b'\n' {
                self.line = self.line.saturating_add(1);
            }
            self.comment_character()?;
        }
        self.at += 2;
        Ok(())
    }

    /// The assembler takes no character outside ASCII, not even in a comment; neither do we.
    fn comment_character(&mut self) -> Result<(), ParseError> {
        if !self.peek(0).is_ascii() {
            return Err(self.unexpected_character());
        }
        self.at += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        tokenize(text).unwrap().iter().map(|token| token.text).collect()
    }

    #[test]
    fn splits_an_instruction() {
        assert_eq!(
            words("@!%p1 ld.global.L2::128B.v4.f32 {%a, _}, [%b+-0x10];"),
            [
                "@", "!", "%p1", "ld", "global", "L2::128B", "v4", "f32", "{", "%a", ",", "_", "}", ",", "[", "%b",
                "+", "-", "0x10", "]", ";", ""
            ]
        );
    }

    #[test]
    fn numbers_are_one_token() {
        assert_eq!(words("0f3F800000 1.5e-3 0xFFU 1. 017"), ["0f3F800000", "1.5e-3", "0xFFU", "1.", "017", ""]);
        assert_eq!(words("0xe+1"), ["0xe", "+", "1", ""]);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let tokens = tokenize("a // b\n/* c\n d */ e\n\"x\"").unwrap();
        let seen: Vec<_> = tokens.iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(seen, [("a", 1), ("e", 3), ("x", 4), ("", 4)]);
    }

    #[test]
    fn refuses_what_no_token_begins_with() {
        for (text, line) in [("a\n#", 2), ("\n\n\\", 3), ("a\n// \u{fc}", 2), ("/*\n", 1), ("\"a\nb\"", 1), ("\0", 1)] {
            assert_eq!(tokenize(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
