//! Marks that a kernel's machine code should meet, and the misses that are known.
//!
//! A mark that is missed promises a loss; one that is met promises nothing but that this loss is not there. Misses are
//! listed in `xtask/accepted.txt` with the worst value accepted and the reason; a miss beyond what is listed fails, and so
//! does an entry that no kernel needs any more.

use crate::{
    accepted::{self, Entry},
    assemble::{Measured, threads},
    lint,
    row::Row,
};
use lookback_kernels::Kernel;

/// A figure and what it should be.
struct Mark {
    name: &'static str,
    /// What a user of the report should know of it.
    says: &'static str,
    limit: u64,
    /// The figure; none where the mark means nothing for the kernel.
    figure: fn(&Kernel, &Row) -> Option<u64>,
    /// Whether the figure has to be at least the limit, not at most.
    at_least: bool,
}

const MARKS: [Mark; 8] = [
    Mark {
        name: "issue",
        says: "issue slots of a turn for 1000 clocks of what bounds it (tensor cores or device memory)",
        limit: 700,
        figure: |_, row| some(row.get("issue pressure")),
        at_least: false,
    },
    Mark {
        name: "special",
        says: "clocks of special functions for the same",
        limit: 600,
        figure: |_, row| some(row.get("mufu pressure")),
        at_least: false,
    },
    Mark {
        name: "narrow",
        says: "per mille of the global bytes in accesses below 16 bytes",
        limit: 50,
        figure: |_, row| some(row.get("narrow")),
        at_least: false,
    },
    Mark {
        name: "loop-code",
        says: "bytes of the hottest loop",
        limit: 16 * 1024,
        figure: |_, row| some(16 * row.get("loop")),
        at_least: false,
    },
    Mark {
        name: "barriers",
        says: "barriers in a turn of the hottest loop",
        limit: 3,
        figure: |_, row| some(row.get("loop barriers")),
        at_least: false,
    },
    Mark {
        name: "blocks",
        says: "per mille of the blocks on a multiprocessor that the contract's min_ctas says",
        limit: 1000,
        figure: |kernel, row| Some(1000 * row.get("blocks") / u64::from(kernel.min_ctas.max(1))),
        at_least: true,
    },
    Mark {
        name: "warps",
        says: "warps on a multiprocessor, of kernels that stream through registers",
        limit: 16,
        figure: |kernel, row| is_streaming(row).then(|| warps(kernel, row)),
        at_least: true,
    },
    Mark {
        name: "asked",
        says: "KiB asked of global memory at once by the warps of a multiprocessor, of kernels that stream through registers",
        limit: 48,
        figure: |kernel, row| is_streaming(row).then(|| row.get("asked") * warps(kernel, row) / 1024),
        at_least: true,
    },
];

fn some(figure: u64) -> Option<u64> {
    (figure > 0).then_some(figure)
}

/// Neither tensor cores nor copies past the registers, and enough to read that it matters.
fn is_streaming(row: &Row) -> bool {
    row.get("asked") >= 512 && !row.iter().any(|(name, _)| name.starts_with("tensor ") || name.starts_with("copy "))
}

fn warps(kernel: &Kernel, row: &Row) -> u64 {
    row.get("blocks") * u64::from(threads(kernel).div_ceil(32))
}

impl Mark {
    fn is_missed(&self, figure: u64, limit: u64) -> bool {
        if self.at_least { figure < limit } else { figure > limit }
    }
}

/// A mark that a kernel misses.
struct Miss<'a> {
    mark: &'a Mark,
    entry: &'static str,
    figure: u64,
    /// The entry of the list that accepts it.
    accepted: Option<usize>,
}

fn misses(measured: &[Measured], list: &[Entry]) -> Vec<Miss<'static>> {
    let mut all = Vec::new();
    for (kernel, row) in measured {
        for mark in &MARKS {
            let Some(figure) = (mark.figure)(kernel, row).filter(|f| mark.is_missed(*f, mark.limit)) else { continue };
            let accepted = list
                .iter()
                .position(|e| e.subject == mark.name && !mark.is_missed(figure, e.limit) && e.is_for(kernel.entry));
            all.push(Miss { mark, entry: kernel.entry, figure, accepted });
        }
    }
    all
}

/// What an entry of the list may be about, marks only.
pub fn subjects() -> Vec<String> {
    MARKS.iter().map(|m| m.name.to_string()).collect()
}

fn list() -> Result<Vec<Entry>, String> {
    accepted::read(&subjects(), &[subjects(), lint::subjects()].concat())
}

/// Misses that are not accepted, and entries that accept nothing.
pub fn check(measured: &[Measured]) -> Result<Vec<String>, String> {
    Ok(problems(measured, &list()?))
}

fn problems(measured: &[Measured], list: &[Entry]) -> Vec<String> {
    let misses = misses(measured, list);
    let open = misses.iter().filter(|m| m.accepted.is_none());
    let mut lines: Vec<String> = open
        .map(|Miss { mark, entry, figure, .. }| {
            let side = if mark.at_least { "at least" } else { "at most" };
            format!("missed  {entry}: {} {figure}, should be {side} {} ({})", mark.name, mark.limit, mark.says)
        })
        .collect();
    lines.extend(accepted::stale(list, |i| misses.iter().any(|m| m.accepted == Some(i))));
    lines
}

/// Every mark: who misses it, by how much, and why that is accepted.
pub fn report(measured: &[Measured]) -> Result<String, String> {
    let list = list()?;
    let misses = misses(measured, &list);
    let mut lines = Vec::new();
    for mark in &MARKS {
        let of_mark: Vec<&Miss> = misses.iter().filter(|m| m.mark.name == mark.name).collect();
        let side = if mark.at_least { ">=" } else { "<=" };
        let head = format!("{} {side} {}: {}", mark.name, mark.limit, mark.says);
        lines.push(format!("{head}; {} of {} kernels miss it", of_mark.len(), measured.len()));
        for (i, entry) in list.iter().enumerate() {
            let mine: Vec<u64> = of_mark.iter().filter(|m| m.accepted == Some(i)).map(|m| m.figure).collect();
            if let (Some(least), Some(most)) = (mine.iter().min(), mine.iter().max()) {
                lines.push(format!(
                    "    {} kernels like {}, {least} to {most}: {}",
                    mine.len(),
                    entry.kernels,
                    entry.reason
                ));
            }
        }
        let open = of_mark.iter().filter(|m| m.accepted.is_none());
        lines.extend(open.map(|m| format!("    NOT ACCEPTED {} {}", m.entry, m.figure)));
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lookback_kernels::KERNELS;

    fn measured(figures: &[(&str, u64)]) -> Vec<Measured> {
        let mut row = Row::default();
        row.set("blocks", 32);
        figures.iter().for_each(|(name, value)| row.set(name, *value));
        vec![(&KERNELS[0], row)]
    }

    #[test]
    fn a_miss_needs_an_entry_that_reaches_it_and_an_entry_needs_a_miss() {
        let of = |figures: &[(&str, u64)], text: &str| {
            problems(&measured(figures), &accepted::parse(text, &subjects()).expect("a list"))
        };
        assert!(of(&[("issue pressure", 700)], "").is_empty());
        assert!(of(&[("issue pressure", 701)], "")[0].starts_with("missed"));
        assert!(of(&[("issue pressure", 701)], "# why\nissue 900 * small").is_empty());
        assert_eq!(
            of(&[("issue pressure", 901)], "issue 900 * small").len(),
            2,
            "beyond the entry, which is then stale"
        );
        assert!(of(&[], "issue 900 * small")[0].starts_with("stale"));
        assert!(of(&[("asked", 512), ("blocks", 1)], "")[0].contains("at least"), "too few warps");
    }
}
