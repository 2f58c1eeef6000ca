//! The committed figures as Markdown.

use crate::assemble::{Measured, SASS_TARGET, TARGETS, threads};
use std::fmt::Write;

/// File names and texts.
pub fn all(rows: &[Measured]) -> [(&'static str, String); 2] {
    [("docs/resources.md", resources(rows)), ("docs/sass.md", sass(rows))]
}

fn resources(rows: &[Measured]) -> String {
    let mut text = String::from(
        "# Resources of every kernel\n\nRegisters of a thread by target, as ptxas 13.0.88 assembles it; no kernel spills. \
         Shared memory is static plus dynamic bytes of a block. `cargo xtask bless` writes this file, `cargo xtask ptxas` \
         checks it. What the machine code looks like is in sass.md.\n\n| kernel | block | shared |",
    );
    for target in TARGETS {
        let _ = write!(text, " {target} |");
    }
    text.push_str(" budget |\n|---|---|---|");
    text.push_str(&"---|".repeat(TARGETS.len() + 1));
    for (kernel, row) in rows {
        let _ = write!(text, "\n| {} | {} | {} |", kernel.entry, threads(kernel), row.get("shared"));
        for target in TARGETS {
            let registers = row.get(&format!("regs {target}"));
            let _ = write!(text, " {} |", if registers == 0 { "-".into() } else { registers.to_string() });
        }
        let _ = write!(text, " {} |", kernel.budget.regs);
    }
    text.push('\n');
    text
}

fn sass(rows: &[Measured]) -> String {
    let mut text = format!(
        "# Machine code of every kernel\n\nWhat ptxas 13.0.88 makes of each kernel for {SASS_TARGET}, read with nvdisasm: no \
         timing, nothing here was run. `cargo xtask bless` writes this file and resources.json, which has more figures; \
         `cargo xtask ptxas` fails when one gets worse by more than 3 %.\n\n\
         - code: bytes of the kernel.\n\
         - loop: instructions of a turn of the hottest loop, inner loops once. Hottest is the loop whose own instructions weigh \
         most in tensor operations, or where there are none, in instructions, if each loop turns four times for each turn of \
         the loop around it. Slow ways that a good run does not take (`CALL`, `BRA.DIV`) are left out. `-`: no loop.\n\
         - mma, special, bar: tensor, special-function and barrier instructions of that loop.\n\
         - narrow: share of the bytes of global memory, loops weighed as above, that are not in accesses of 16 bytes.\n\
         - blocks: how many fit on a multiprocessor. asked: KiB that all warps of these blocks ask of global memory in one turn.\n\
         - issue, special use: issue slots and special-function clocks of a turn against the clocks that its tensor \
         operations, or its bytes at 4.3 TB/s if these take longer, need. Above 1 it is they that bound the kernel. A byte \
         that comes from L2 counts like one of device memory.\n\n\
         | kernel | code | loop | mma | special | bar | narrow % | blocks | asked | issue | special use |\n\
         |---|---|---|---|---|---|---|---|---|---|---|",
    );
    for (kernel, row) in rows {
        let count = |name: &str| row.get(name).to_string();
        let ratio = |name: &str| format!("{}.{:02}", row.get(name) / 1000, row.get(name) % 1000 / 10);
        let asked = row.get("asked") * row.get("blocks") * u64::from(threads(kernel).div_ceil(32)) / 1024;
        let cells = [
            kernel.entry.to_string(),
            count("code"),
            if row.get("loop") == 0 { "-".into() } else { count("loop") },
            count("loop tensor"),
            count("loop mufu"),
            count("loop barriers"),
            (row.get("narrow") / 10).to_string(),
            count("blocks"),
            asked.to_string(),
            ratio("issue pressure"),
            ratio("mufu pressure"),
        ];
        let _ = write!(text, "\n| {} |", cells.join(" | "));
    }
    text.push('\n');
    text
}
