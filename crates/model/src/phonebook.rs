//! The phone book: how lines of text become tokens, and how the answer becomes text again.
//!
//! A book is lines of `Name 1234`. A name is one token, whatever its text: the token `NAME` plus one row from each of
//! four hashed tables. The model reads
//! `NAME d d d d  NAME d d d d ..  ASK NAME` (the prefix), then `BEGIN`, and writes four digits.
//!
//! All ids index one embedding table: rows `0..13` are the kinds (digits, `ASK`, `BEGIN`, `NAME`), and row
//! `13 + 64 j + b` is row `b` of the j-th hashed table. A token is the sum of up to [`IDS_PER_TOKEN`] rows.

use crate::flags::Segment;

/// Digits of a number.
pub const DIGITS: usize = 4;
/// Token kinds: ten digits, `ASK`, `BEGIN`, `NAME`.
pub const KINDS: usize = 13;
/// The kind that precedes the name asked for.
pub const ASK: i32 = 10;
/// The kind after which the answer is written. It is the first token of the causal part.
pub const BEGIN: i32 = 11;
/// The kind of every name.
pub const NAME: i32 = 12;
/// Hashed tables that a name is looked up in.
pub const NAME_TABLES: usize = 4;
/// Rows of each hashed table.
pub const NAME_ROWS: usize = 64;
/// Rows of the whole embedding table.
pub const TABLE_ROWS: usize = KINDS + NAME_TABLES * NAME_ROWS;
/// Rows that one token sums at most.
pub const IDS_PER_TOKEN: usize = 1 + NAME_TABLES;

/// The rows of the embedding table that one token sums; -1 marks an unused place.
pub type Token = [i32; IDS_PER_TOKEN];

/// What can be wrong with the text of a book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// A line has no second word.
    #[error("line {line}: wanted `Name 1234`, found `{found}`")]
    NoNumber {
        /// Line, from 1.
        line: usize,
        /// The text of the line.
        found: String,
    },
    /// The last word of a line is not four digits.
    #[error("line {line}: wanted a number of {DIGITS} digits, found `{found}`")]
    BadNumber {
        /// Line, from 1.
        line: usize,
        /// The last word of the line.
        found: String,
    },
    /// A name stands on two lines, so a question about it has no one answer.
    #[error("line {line}: `{name}` already stands on line {first}")]
    Repeated {
        /// Line, from 1.
        line: usize,
        /// The earlier line.
        first: usize,
        /// The name.
        name: String,
    },
    /// Two names hash to the same four rows: the model cannot tell them apart.
    #[error("line {line}: `{name}` hashes to the same rows as the name on line {first}")]
    Collision {
        /// Line, from 1.
        line: usize,
        /// The earlier line.
        first: usize,
        /// The name.
        name: String,
    },
    /// No line holds an entry.
    #[error("the book has no entries: wanted lines of `Name 1234`")]
    Empty,
    /// The name asked for is blank.
    #[error("the name to ask for is blank")]
    BlankQuestion,
}

/// One line of a book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, with runs of white space made one blank.
    pub name: String,
    /// The digits of the number, each 0..=9.
    pub number: [u8; DIGITS],
}

impl Entry {
    /// The number as text.
    pub fn number_text(&self) -> String {
        digits_text(&self.number)
    }
}

/// A phone book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    entries: Vec<Entry>,
}

/// One row for the model: the prefix, then `BEGIN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens, `BEGIN` last.
    pub tokens: Vec<Token>,
    /// Tokens of the prefix, which is read both ways: all but `BEGIN`.
    pub prefix_len: usize,
}

impl Prompt {
    /// The prompt as a sample of a packed row.
    pub fn segment(&self) -> Segment {
        Segment { len: self.tokens.len(), prefix_len: self.prefix_len }
    }
}

impl Book {
    /// Reads lines of `Name 1234`. Blank lines, and lines that open with `#`, say nothing.
    pub fn parse(text: &str) -> Result<Self, BookError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: Vec<usize> = Vec::new();
        // Some editors open a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text.trim())) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, number) =
                text.rsplit_once(char::is_whitespace).ok_or(BookError::NoNumber { line, found: text.into() })?;
            let number = parse_number(number).ok_or(BookError::BadNumber { line, found: number.into() })?;
            let name = tidy(name);
            if let Some(other) = entries.iter().position(|entry| entry.name == name) {
                return Err(BookError::Repeated { line, first: lines[other], name });
            }
            if let Some(other) = entries.iter().position(|entry| name_rows(&entry.name) == name_rows(&name)) {
                return Err(BookError::Collision { line, first: lines[other], name });
            }
            entries.push(Entry { name, number });
            lines.push(line);
        }
        if entries.is_empty() { Err(BookError::Empty) } else { Ok(Self { entries }) }
    }

    /// The entries, in the order of the lines.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a name, if the book has it.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let name = tidy(name);
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The row that asks for a name. A name that the book lacks may be asked for; the answer then means nothing.
    pub fn prompt(&self, name: &str) -> Result<Prompt, BookError> {
        let name = tidy(name);
        if name.is_empty() {
            return Err(BookError::BlankQuestion);
        }
        let mut tokens = Vec::with_capacity(self.entries.len() * (1 + DIGITS) + 3);
        for entry in &self.entries {
            tokens.push(name_token(name_rows(&entry.name)));
            tokens.extend(entry.number.map(digit_token));
        }
        tokens.push(kind_token(ASK));
        tokens.push(name_token(name_rows(&name)));
        let prefix_len = tokens.len();
        tokens.push(kind_token(BEGIN));
        Ok(Prompt { tokens, prefix_len })
    }
}

/// A token that is only its kind.
pub fn kind_token(kind: i32) -> Token {
    let mut token = [-1; IDS_PER_TOKEN];
    token[0] = kind;
    token
}

/// The token of a digit 0..=9.
pub fn digit_token(digit: u8) -> Token {
    kind_token(i32::from(digit))
}

/// The token of a name, from its row in each hashed table (each below [`NAME_ROWS`]).
pub fn name_token(rows: [u8; NAME_TABLES]) -> Token {
    let mut token = kind_token(NAME);
    for (table, row) in rows.into_iter().enumerate() {
        token[1 + table] = (KINDS + table * NAME_ROWS) as i32 + i32::from(row);
    }
    token
}

/// The row of a name in each hashed table.
///
/// FNV-1a over the UTF-8 bytes (64 bits), then the finishing steps of splitmix64; table j takes the low six bits of
/// the j-th 16-bit word, counted from the low end.
pub fn name_rows(name: &str) -> [u8; NAME_TABLES] {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut hash = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    std::array::from_fn(|table| (hash >> (16 * table)) as u8 % NAME_ROWS as u8)
}

/// The digits of an answer as text.
pub fn digits_text(digits: &[u8]) -> String {
    digits.iter().map(|&digit| char::from(b'0' + digit.min(9))).collect()
}

fn parse_number(text: &str) -> Option<[u8; DIGITS]> {
    let bytes: [u8; DIGITS] = text.as_bytes().try_into().ok()?;
    bytes.iter().all(u8::is_ascii_digit).then(|| bytes.map(|byte| byte - b'0'))
}

fn tidy(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_of_any_text() {
        let book = Book::parse("\u{feff}# staff\nZoë  van Dijk\t0042\n\n李雷 9876\r\n").unwrap();
        assert_eq!(book.entries().len(), 2);
        assert_eq!(book.entries()[0], Entry { name: "Zoë van Dijk".into(), number: [0, 0, 4, 2] });
        assert_eq!(book.find(" 李雷 ").unwrap().number_text(), "9876");
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| Book::parse(text).unwrap_err();
        assert_eq!(error("Ada 1815\nGrace"), BookError::NoNumber { line: 2, found: "Grace".into() });
        assert_eq!(error("\nAda 18x5"), BookError::BadNumber { line: 2, found: "18x5".into() });
        assert_eq!(error("Ada 18155"), BookError::BadNumber { line: 1, found: "18155".into() });
        assert_eq!(error("Ada 1815\n#\nAda 1816"), BookError::Repeated { line: 3, first: 1, name: "Ada".into() });
        assert_eq!(error("\n# nobody\n"), BookError::Empty);
        assert_eq!(Book::parse("Ada 1815").unwrap().prompt("  "), Err(BookError::BlankQuestion));
    }

    #[test]
    fn prompt_is_entries_then_question_then_begin() {
        let prompt = Book::parse("Ada 1815").unwrap().prompt("Ada").unwrap();
        let kinds: Vec<i32> = prompt.tokens.iter().map(|token| token[0]).collect();
        assert_eq!(kinds, [NAME, 1, 8, 1, 5, ASK, NAME, BEGIN]);
        assert_eq!(prompt.prefix_len, 7);
        assert_eq!(prompt.tokens[0], prompt.tokens[6]);
        for (table, id) in prompt.tokens[0][1..].iter().enumerate() {
            let first = (KINDS + table * NAME_ROWS) as i32;
            assert!((first..first + NAME_ROWS as i32).contains(id));
        }
    }
}
