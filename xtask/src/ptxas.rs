//! The figures that are committed, and holding new ones to them.
//!
//! `docs/resources.json` has a line a kernel. A change of 3 % or less passes: it is noise of another scheduling. A figure
//! that got worse by more fails; so does one that got better by more, until `cargo xtask bless` makes it the new measure.
//! The tables for people are written from the same file.

use crate::{
    assemble::{self, Measured},
    root,
    row::{self, Row},
    tables,
};
use lookback_kernels::Kernel;
use serde_json::Value;
use std::{collections::BTreeMap, fs};

const FIGURES: &str = "docs/resources.json";

/// Compares what ptxas gives now with what is committed, or with `bless` writes it.
pub fn run(bless: bool) -> Result<(), String> {
    if bless { write_all() } else { check() }
}

/// Reads the PTX, compares what it assembles to with what is committed, and holds it to the marks.
fn check() -> Result<(), String> {
    crate::lint::run()?;
    let measured = assemble::measure()?;
    let text = read(FIGURES)?;
    let golden = parse(&text)?;
    let mut problems = compare(&golden, &measured);
    let committed: Vec<Measured> =
        measured.iter().filter_map(|(k, _)| Some((*k, golden.get(k.entry)?.clone()))).collect();
    for (file, wanted) in tables::all(&committed) {
        if problems.is_empty() && read(file)? != wanted {
            problems.push(format!("{file} is not what {FIGURES} makes of it: `cargo xtask bless` writes both"));
        }
    }
    problems.extend(crate::marks::check(&measured)?);
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    eprintln!("== ptxas: no spills, all within budget, no figure worse, every missed mark accounted for");
    Ok(())
}

/// Writes the committed figures anew, and says what got worse and what got better.
fn write_all() -> Result<(), String> {
    let measured = assemble::measure()?;
    if let Ok(golden) = read(FIGURES).and_then(|text| parse(&text)) {
        compare(&golden, &measured).iter().for_each(|line| eprintln!("{line}"));
    }
    write(FIGURES, &render(&measured))?;
    for (file, text) in tables::all(&measured) {
        write(file, &text)?;
    }
    let problems = crate::marks::check(&measured)?;
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(root().join(file)).map_err(|e| format!("{file}: {e}"))
}

fn write(file: &str, text: &str) -> Result<(), String> {
    fs::write(root().join(file), text).map_err(|e| format!("{file}: {e}"))
}

fn render(measured: &[Measured]) -> String {
    let lines: Vec<String> =
        measured.iter().map(|(kernel, row)| format!("\"{}\":{}", kernel.entry, row.line())).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn parse(text: &str) -> Result<BTreeMap<String, Row>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("{FIGURES}: {e}"))?;
    let rows = value.as_object().and_then(|rows| {
        rows.iter().map(|(entry, row)| Some((entry.clone(), Row::from_json(row)?))).collect::<Option<_>>()
    });
    rows.ok_or_else(|| format!("{FIGURES}: not a table of whole numbers"))
}

/// A line for each figure that is not within 3 % of the committed one, and for each kernel on one side only.
fn compare(golden: &BTreeMap<String, Row>, measured: &[(&Kernel, Row)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (kernel, row) in measured {
        let Some(before) = golden.get(kernel.entry) else {
            lines.push(format!("new     {}: `cargo xtask bless`", kernel.entry));
            continue;
        };
        let changes = row::compare(before, row);
        lines.extend(changes.worse.iter().map(|change| format!("worse   {}: {change}", kernel.entry)));
        lines.extend(
            changes.better.iter().map(|change| format!("better  {}: {change}: `cargo xtask bless`", kernel.entry)),
        );
    }
    let is_measured = |entry: &String| measured.iter().any(|(k, _)| k.entry == entry);
    lines
        .extend(golden.keys().filter(|e| !is_measured(e)).map(|entry| format!("gone    {entry}: `cargo xtask bless`")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use lookback_kernels::KERNELS;

    fn row(figures: &[(&str, u64)]) -> Row {
        let mut row = Row::default();
        figures.iter().for_each(|(name, value)| row.set(name, *value));
        row
    }

    #[test]
    fn what_is_written_is_read_back() {
        let measured =
            [(&KERNELS[0], row(&[("regs sm_80", 40), ("loop", 100)])), (&KERNELS[1], row(&[("code", 1024)]))];
        let golden = parse(&render(&measured)).expect("just written");
        assert_eq!(golden[KERNELS[0].entry], measured[0].1);
        assert!(compare(&golden, &measured).is_empty());
        assert!(parse("{\"a\":{\"loop\":-1}}").is_err() && parse("[]").is_err() && parse("{").is_err());
    }

    #[test]
    fn three_percent_pass_and_more_is_named_with_its_size() {
        let entry = KERNELS[0].entry;
        let golden = BTreeMap::from([(entry.to_string(), row(&[("loop", 100), ("blocks", 4), ("code", 1000)]))]);
        let lines = |figures: &[(&str, u64)]| compare(&golden, &[(&KERNELS[0], row(figures))]);
        assert!(lines(&[("loop", 103), ("blocks", 4), ("code", 970)]).is_empty());
        assert_eq!(
            lines(&[("loop", 104), ("blocks", 4), ("code", 1000)]),
            [format!("worse   {entry}: loop 100 -> 104 (+4.0 %)")]
        );
        assert!(lines(&[("loop", 96), ("blocks", 4), ("code", 1000)])[0].starts_with("better"));
        assert!(
            lines(&[("loop", 100), ("blocks", 3), ("code", 1000)])[0].starts_with("worse"),
            "fewer blocks are worse"
        );
        assert!(lines(&[("loop", 100), ("blocks", 4), ("code", 1000), ("load 4", 1)])[0].contains("(new)"));
    }

    #[test]
    fn kernels_on_one_side_only_are_named() {
        let golden = BTreeMap::from([("old".to_string(), row(&[("loop", 1)]))]);
        let lines = compare(&golden, &[(&KERNELS[0], row(&[("loop", 1)]))]);
        assert_eq!(
            lines,
            [format!("new     {}: `cargo xtask bless`", KERNELS[0].entry), "gone    old: `cargo xtask bless`".into()]
        );
    }
}
