//! From PTX text to programs, with a log in the words of `ptxas` that names the line.

use super::args::{In, Out, fill_text};
use super::errors::{CUresult, Outcome};
use crate::decode::{self, Program};
use crate::ptx;
use std::fmt::Write;

/// The newest `.version` that this driver's release understands.
const NEWEST_PTX: (u32, u32) = (9, 0);

/// Targets from the first to the last are taken.
const TARGETS: std::ops::RangeInclusive<u32> = 80..=90;

/// `CUjit_option`
const WALL_TIME: u32 = 2;
const INFO_LOG: u32 = 3;
const INFO_LOG_BYTES: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;
const NUMBER_OF_OPTIONS: u32 = 36;

/// Why a text cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error.
    pub(super) code: CUresult,
    /// Lines as `ptxas` writes them.
    pub(super) log: String,
}

impl Refusal {
    fn new<'a>(code: CUresult, errors: impl IntoIterator<Item = (u32, &'a str)>) -> Self {
        let mut log = String::new();
        for (line, message) in errors {
            // Writing to a string cannot fail.
            let _ = writeln!(log, "ptxas application ptx input, line {line}; error   : {message}");
        }
        log.push_str("ptxas fatal   : Ptx assembly aborted due to errors");
        Self { code, log }
    }
}

/// A directive of the head of the text.
struct Directive<'a> {
    line: u32,
    value: &'a str,
}

/// The first `.version` and `.target`, found without parsing the rest, which may be written in a PTX that the parser does
/// not know yet.
fn head(text: &str) -> [Option<Directive<'_>>; 2] {
    let mut found = [None, None];
    let mut comment = false;
    for (index, line) in text.lines().enumerate() {
        let mut rest = line;
        let mut code = "";
        // Directives stand at the start of a line in every text that compilers and people write; block comments may
        // come before them.
        loop {
            if comment {
                let Some(end) = rest.find("*/") else { break };
                comment = false;
                rest = &rest[end + 2..];
            }
            rest = rest.trim_start();
            match rest.find("/*") {
                Some(0) => {
                    comment = true;
                    rest = &rest[2..];
                }
                Some(start) => {
                    code = &rest[..start];
                    comment = !rest[start + 2..].contains("*/");
                    break;
                }
                None => {
                    code = rest;
                    break;
                }
            }
        }
        let mut words = code.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
        let place = match words.next() {
            Some(".version") => 0,
            Some(".target") => 1,
            // A body: the head is over.
            Some(word) if word.contains('{') => break,
            _ => continue,
        };
        if let Some(value) = words.next() {
            found[place].get_or_insert(Directive { line: index as u32 + 1, value });
        }
    }
    found
}

/// Whether this driver takes the text's version and target at all.
fn check_head(text: &str) -> Result<(), Refusal> {
    let [version, target] = head(text);
    if let Some(Directive { line, value }) = version
        && let Some((major, minor)) = value.split_once('.')
        && let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>())
        && (major, minor) > NEWEST_PTX
    {
        let (new_major, new_minor) = NEWEST_PTX;
        let why = format!("Unsupported .version {value}; current version is '{new_major}.{new_minor}'");
        return Err(Refusal::new(CUresult::UNSUPPORTED_PTX_VERSION, [(line, why.as_str())]));
    }
    if let Some(Directive { line, value }) = target
        && let Some(number) = value.strip_prefix("sm_")
    {
        let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
        // The suffix means the features of one architecture alone; of those only sm_90's are emulated.
        let known = matches!(digits.parse(), Ok(number) if TARGETS.contains(&number));
        if !known || !matches!((digits, &number[digits.len()..]), (_, "") | ("90", "a")) {
            let why = format!("SM version '{value}' does not run on this device, which takes sm_80 to sm_90a");
            return Err(Refusal::new(CUresult::NO_BINARY_FOR_GPU, [(line, why.as_str())]));
        }
    }
    Ok(())
}

/// Parse a text.
pub(super) fn parse(text: &str) -> Result<ptx::Module, Refusal> {
    check_head(text)?;
    ptx::parse(text).map_err(|why| Refusal::new(CUresult::INVALID_PTX, [(why.line, why.message.as_str())]))
}

/// Decode every kernel; all that fail are named. `globals` are the addresses of the module's variables.
pub(super) fn decode(module: &ptx::Module, globals: &[u64]) -> Result<Vec<Program>, Refusal> {
    let mut programs = Vec::new();
    let mut errors = Vec::new();
    for entry in &module.entries {
        match decode::decode(module, entry, globals) {
            Ok(program) => programs.push(program),
            Err(why) => errors.push((why.line, format!("entry '{}': {}", entry.name, why.message))),
        }
    }
    if errors.is_empty() {
        return Ok(programs);
    }
    let errors = errors.iter().map(|(line, message)| (*line, message.as_str()));
    Err(Refusal::new(CUresult::INVALID_PTX, errors))
}

/// A log buffer of the program.
#[derive(Clone, Copy)]
struct Log {
    buffer: Option<Out<u8>>,
    size: Option<(usize, usize)>,
}

/// Options of `cuModuleLoadDataEx`.
pub(super) struct Options {
    values: Out<usize>,
    error: Log,
    info: Log,
    wall_time: Option<usize>,
}

impl Options {
    /// Read the two arrays. Only the logs and the wall time mean something to an interpreter.
    pub(super) fn read(count: u32, options: In<u32>, values: Out<usize>) -> Outcome<Self> {
        let none = Log { buffer: None, size: None };
        let mut read = Self { values, error: none, info: none, wall_time: None };
        if count > NUMBER_OF_OPTIONS {
            return Err(CUresult::INVALID_VALUE);
        }
        for index in 0..count as usize {
            let option = options.get_at(index)?;
            let value = In::from_out(values).get_at(index)?;
            let buffer = || Out::from_address(value);
            // The size is an unsigned int that was cast to a pointer.
            let size = (index, value & 0xffff_ffff);
            match option {
                WALL_TIME => read.wall_time = Some(index),
                INFO_LOG => read.info.buffer = Some(buffer()),
                INFO_LOG_BYTES => read.info.size = Some(size),
                ERROR_LOG => read.error.buffer = Some(buffer()),
                ERROR_LOG_BYTES => read.error.size = Some(size),
                option if option < NUMBER_OF_OPTIONS => {}
                _ => return Err(CUresult::INVALID_VALUE),
            }
        }
        Ok(read)
    }

    /// Hand out what the program asked for.
    pub(super) fn report(&self, error: &str, seconds: f64) -> Outcome {
        self.write(self.error, error)?;
        self.write(self.info, "")?;
        if let Some(index) = self.wall_time {
            self.values.set_at(index, ((seconds * 1e3) as f32).to_bits() as usize)?;
        }
        Ok(())
    }

    fn write(&self, log: Log, text: &str) -> Outcome {
        if let (Some(buffer), Some((index, size))) = (log.buffer, log.size) {
            fill_text(buffer, size, text);
            let filled = if text.is_empty() { 0 } else { text.len().min(size.saturating_sub(1)) + 1 };
            self.values.set_at(index, filled)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_and_other_targets_are_refused_by_line() {
        let text = |version: &str, target: &str| {
            format!("// .version 99.0\n/* .target sm_999\n */ .version {version}\n.target {target}, debug\n")
        };
        for (version, target) in [("7.0", "sm_80"), ("8.7", "sm_89"), ("9.0", "sm_90a"), ("9.0", "sm_90")] {
            assert_eq!(check_head(&text(version, target)), Ok(()), "{version} {target}");
        }
        let version = check_head(&text("9.1", "sm_90")).unwrap_err();
        assert_eq!(version.code, CUresult::UNSUPPORTED_PTX_VERSION);
        assert!(version.log.starts_with("ptxas application ptx input, line 3; error   : "), "{}", version.log);
        for target in ["sm_100", "sm_100a", "sm_120", "sm_75", "sm_86a", "sm_90f"] {
            let refusal = check_head(&text("8.0", target)).unwrap_err();
            assert_eq!(refusal.code, CUresult::NO_BINARY_FOR_GPU, "{target}");
            assert!(refusal.log.contains("line 4;"), "{}", refusal.log);
        }
    }
}
