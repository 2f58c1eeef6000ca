//! Reading every kernel's PTX for mistakes that a test may not see: they need a GPU, or bad luck, to show.
//!
//! The rules read what the emulator's parser makes of the text, variant by variant. Each says what it can prove; none of them
//! needs to run anything. What is known and accepted stands in `xtask/accepted.txt` as `lint-<rule> <findings> <kernels>
//! <reason>`; an entry that no kernel needs any more fails.

mod code;
mod copies;
mod order;
mod plain;
mod pointers;
#[cfg(test)]
mod tests;
mod uniform;

use crate::{
    accepted::{self, Entry},
    marks, parallel,
};
use code::Code;
use lookback_kernels::{KERNELS, Kernel};
use std::collections::{BTreeMap, BTreeSet};

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Line of the rendered text; 0 for the whole kernel.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

/// Looks at a kernel.
type Check = fn(&Code) -> Vec<Finding>;

/// The rule that is asked of a kernel's variants together.
const UNUSED: &str = "unused";

/// Name, what it demands, and how.
const RULES: [(&str, &str, Check); 12] = [
    ("wait", "a loop that can only wait for memory reads it with ld.acquire.gpu", order::waits),
    ("atomic", "an atomic operation is ordered, between two fences, or comes before every store", order::atomics),
    ("release", "a barrier lies between what other lanes stored and the release", order::releases),
    ("acquire", "a barrier lies between an acquire and what other lanes read", order::acquires),
    ("commit", "copies are committed before a wait, and waited for before the end", copies::commits),
    ("copy-barrier", "a barrier lies between a wait for copies and the next read of shared memory", copies::barriers),
    (
        "proxy",
        "fence.proxy.async lies between a store to shared memory and what reads it through the async proxy",
        copies::proxies,
    ),
    ("space", "every access names its memory space", plain::spaces),
    ("division", "no integer division by a constant", plain::divisions),
    (UNUSED, "some variant of a kernel reads every register and jumps to every label", plain::unused),
    (
        "pointer",
        "stores go to what the contract calls out, inout or scratch; ld.global.nc reads what it calls in",
        pointers::check,
    ),
    ("uniform", "no bar.sync of a whole block where threads may have parted", uniform::check),
];

/// What an entry of the list of accepted things may be about, rules only.
pub fn subjects() -> Vec<String> {
    RULES.iter().map(|(name, ..)| format!("lint-{name}")).collect()
}

/// All rules on all kernels.
pub fn run() -> Result<(), String> {
    let list = accepted::read(&subjects(), &[marks::subjects(), subjects()].concat())?;
    let kernels: Vec<&Kernel> = KERNELS.iter().collect();
    eprintln!("== lint: {} kernels, {} rules", kernels.len(), RULES.len());
    let found = parallel::map(&kernels, |kernel| Ok((*kernel, of_kernel(kernel)?)));
    let mut found = found.into_iter().collect::<Result<Vec<_>, String>>()?;
    keep_what_no_variant_uses(&mut found);
    let problems = problems(&found, &list);
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// Rule by rule, what is wrong with a kernel.
type Findings = Vec<(&'static str, Vec<Finding>)>;

fn of_kernel(kernel: &Kernel) -> Result<Findings, String> {
    of_text(&kernel.ptx(), kernel).map_err(|e| format!("{}: {e}", kernel.entry))
}

fn of_text(text: &str, kernel: &Kernel) -> Result<Findings, String> {
    let module = lookback_emulator::ptx::parse(text).map_err(|e| e.to_string())?;
    let entry = module.entry(kernel.entry).ok_or("the text has no entry of that name")?;
    let code = Code::new(text, entry, kernel)?;
    Ok(RULES.iter().map(|(name, _, check)| (*name, check(&code))).filter(|(_, found)| !found.is_empty()).collect())
}

/// A template declares what one of its variants needs: unused is only what no variant of the kernel uses.
fn keep_what_no_variant_uses(found: &mut [(&Kernel, Findings)]) {
    let mut common: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (kernel, findings) in found.iter() {
        let unused = findings.iter().filter(|(rule, _)| *rule == UNUSED).flat_map(|(_, found)| found);
        let own: BTreeSet<String> = unused.map(|f| f.message.clone()).collect();
        common.entry(kernel.name).and_modify(|all| all.retain(|m| own.contains(m))).or_insert(own);
    }
    for (kernel, findings) in found {
        let is_common = |f: &Finding| common.get(kernel.name).is_some_and(|all| all.contains(&f.message));
        findings.iter_mut().filter(|(rule, _)| *rule == UNUSED).for_each(|(_, found)| found.retain(is_common));
        findings.retain(|(_, found)| !found.is_empty());
    }
}

fn problems(found: &[(&Kernel, Findings)], list: &[Entry]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut is_used = vec![false; list.len()];
    let all = found.iter().flat_map(|(kernel, f)| f.iter().map(move |(rule, findings)| (kernel.entry, rule, findings)));
    for (entry, rule, findings) in all {
        let subject = format!("lint-{rule}");
        let accepts = |e: &Entry| e.subject == subject && findings.len() as u64 <= e.limit && e.is_for(entry);
        match list.iter().position(accepts) {
            Some(i) => is_used[i] = true,
            None => {
                let demand = RULES.iter().find(|(name, ..)| name == rule).map_or("", |(_, demand, _)| demand);
                let first = &findings[0];
                let more =
                    if findings.len() > 1 { format!(", and {} more", findings.len() - 1) } else { String::new() };
                lines.push(format!("{rule}  {entry}:{}: {}{more} ({demand})", first.line, first.message));
            }
        }
    }
    lines.extend(accepted::stale(list, |i| is_used[i]));
    lines
}
