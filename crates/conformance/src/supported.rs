//! `SUPPORTED.md`: every form that the emulator supports, how far it is proven, and who uses it.

use crate::{
    Result,
    device::Runner,
    form::{Class, Form},
    forms,
    record::Record,
    replay::{Verdict, replay},
    used,
};
use lookback_device::DevicePick;
use lookback_emulator::decode;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

/// Forms that kernels use and that have no case, with the reason.
pub const WAIVERS: [(&str, &str); 0] = [];

/// How far a form is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Accepted, and nothing is known about its results.
    Untested,
    /// Agrees with an independent computation.
    Oracle,
    /// Agrees with what a GPU gave, to the last bit.
    Golden,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Oracle => "oracle",
            Self::Golden => "golden",
        }
    }
}

/// The records of real devices in a folder. None if there is no such folder.
///
/// # Errors
/// When a record cannot be read, or one is of an emulator: that proves nothing.
pub fn records(folder: &Path) -> Result<Vec<Record>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries.filter_map(std::result::Result::ok).map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let record = Record::read(&path)?;
        if record.device.emulated {
            return Err(crate::Error::Record { path, what: "this was recorded on an emulator".into() });
        }
        records.push(record);
    }
    Ok(records)
}

/// Names of cases that agree with some record to the last bit.
///
/// # Errors
/// Those of [`replay`].
pub fn golden(records: &[Record]) -> Result<BTreeSet<String>> {
    let mut golden = BTreeSet::new();
    if records.is_empty() {
        return Ok(golden);
    }
    let runner = Runner::open(DevicePick::Emulated)?;
    for record in records {
        let verdicts = replay(record, &runner, None)?;
        golden.extend(verdicts.into_iter().filter(|(_, verdict)| *verdict == Verdict::Same).map(|(name, _)| name));
    }
    Ok(golden)
}

/// The state of each form: that of the weakest of its cases.
pub fn states(golden: &BTreeSet<String>) -> BTreeMap<String, (State, Class)> {
    let mut states: BTreeMap<String, (State, Class)> = BTreeMap::new();
    for form in forms::table() {
        let state = match &form.oracle {
            _ if golden.contains(&form.name()) => State::Golden,
            Some(_) => State::Oracle,
            None => State::Untested,
        };
        for key in keys(&form) {
            let entry = states.entry(key.into()).or_insert((state, form.class));
            entry.0 = entry.0.min(state);
        }
    }
    states
}

/// The forms that a case is about.
pub fn keys(form: &Form) -> impl Iterator<Item = &str> {
    std::iter::once(form.key.as_str()).chain(form.also.iter().map(String::as_str))
}

/// The page.
///
/// # Errors
/// When a kernel of the registry is not accepted.
pub fn render(golden: &BTreeSet<String>) -> Result<String> {
    let (used, states) = (used::by_kernels()?, states(golden));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, &used, &states);
    Ok(text)
}

type Used = BTreeMap<String, BTreeSet<&'static str>>;

fn write(text: &mut String, used: &Used, states: &BTreeMap<String, (State, Class)>) -> std::fmt::Result {
    writeln!(
        text,
        "# What the emulator supports\n\n\
         Written by `lookback-conformance supported`; a test fails when it is stale. A form is an opcode with its modifiers, \
         and with what else makes it\nanother instruction: `{{2}}` a vector of `mov`, `p|q` a second result, `source` a copy with a \
         size of its source, `ignore` one with a predicate.\n\n\
         | state | meaning |\n|---|---|\n\
         | untested | accepted, and nothing is known about its results |\n\
         | oracle | agrees with an independent computation: bit for bit but for the payloads of NaN; approximations (`~`) within \
         the documented error, sums of tensor cores (`+`) within that of any order of additions |\n\
         | golden | agrees with what a GPU gave, to the last bit |\n\n\
         What an instruction does besides giving results (the order that a fence or a scope asks for, a hint, a pause) shows in no \
         result: there a state says\nthat the instruction is accepted and does no harm.\n"
    )?;
    let count = |wanted| states.values().filter(|(state, _)| *state == wanted).count();
    let [untested, oracle, golden] = [State::Untested, State::Oracle, State::Golden].map(count);
    writeln!(text, "{} forms: {golden} golden, {oracle} oracle, {untested} untested.\n", states.len())?;
    writeln!(text, "## Used by kernels\n\n| form | state | kernels |\n|---|---|---|")?;
    for (form, kernels) in used {
        let waiver = WAIVERS.iter().find(|(waived, _)| waived == form);
        let state = match (states.get(form), waiver) {
            (Some(state), _) => marked(*state),
            (None, Some((_, why))) => format!("untested: {why}"),
            (None, None) => "untested".into(),
        };
        writeln!(text, "| {} | {state} | {} |", code(form), names(kernels))?;
    }
    writeln!(text, "\n## Accepted beyond that\n\n| form | types | state |\n|---|---|---|")?;
    // One row for the types of a form that are in the same state.
    let mut rows: BTreeMap<(&str, &str, String), Vec<&str>> = BTreeMap::new();
    for (form, state) in states.iter().filter(|(form, _)| !used.contains_key(*form)) {
        let (words, suffix) = form.split_at(form.find(' ').unwrap_or(form.len()));
        let (head, ty) = words.rsplit_once('.').unwrap_or((words, ""));
        rows.entry((head, suffix, marked(*state))).or_default().push(ty);
    }
    for ((head, suffix, state), types) in rows {
        writeln!(text, "| {} | {} | {state} |", code(&format!("{head}{suffix}")), types.join(" "))?;
    }
    let tested: BTreeSet<&str> = states.keys().filter_map(|form| form.split(['.', ' ']).next()).collect();
    let rest: Vec<String> = decode::opcodes().filter(|opcode| !tested.contains(opcode)).map(code).collect();
    writeln!(text, "\nOpcodes that are accepted and have no case: {}.", rest.join(", "))
}

fn marked((state, class): (State, Class)) -> String {
    let mark = match class {
        Class::Exact => "",
        Class::Approximate => " ~",
        Class::Tensor => " +",
    };
    // Golden is the last bit whatever the class.
    if state == State::Golden { state.name().into() } else { format!("{}{mark}", state.name()) }
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// Names of a few kernels, and how many there are besides.
fn names(kernels: &BTreeSet<&'static str>) -> String {
    const MOST: usize = 5;
    let mut names: Vec<&str> = kernels.iter().copied().take(MOST).collect();
    let more = format!("and {} more", kernels.len().saturating_sub(MOST));
    if kernels.len() > MOST {
        names.push(&more);
    }
    names.join(", ")
}
