//! The list of what is known and accepted: marks that a kernel misses, findings of a lint.

use crate::root;
use std::fs;

/// The list.
pub const FILE: &str = "xtask/accepted.txt";

/// A line of the list: `subject limit kernels reason`.
pub struct Entry {
    /// Line in the file, from 1.
    pub line: usize,
    /// A mark, or `lint-` and a rule.
    pub subject: String,
    /// The worst figure that is accepted, or the most findings in a kernel.
    pub limit: u64,
    /// Entries of kernels; a star stands for any letters.
    pub kernels: String,
    /// Why.
    pub reason: String,
}

impl Entry {
    /// Whether it speaks of that kernel.
    pub fn is_for(&self, entry: &str) -> bool {
        is_like(entry, &self.kernels)
    }
}

/// The entries of the file that are about one of these subjects. Subjects outside `all` are refused.
pub fn read(mine: &[String], all: &[String]) -> Result<Vec<Entry>, String> {
    let text = fs::read_to_string(root().join(FILE)).map_err(|e| format!("{FILE}: {e}"))?;
    let entries = parse(&text, all)?;
    Ok(entries.into_iter().filter(|e| mine.contains(&e.subject)).collect())
}

/// All entries of a list.
pub fn parse(text: &str, subjects: &[String]) -> Result<Vec<Entry>, String> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    let entries = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    entries
        .map(|(line, text)| {
            let bad = |what: &str| format!("{FILE}:{line}: {what}");
            let mut words = text.split_whitespace();
            let mut word = || words.next().map(str::to_string);
            let (Some(subject), Some(limit), Some(kernels)) = (word(), word(), word()) else {
                return Err(bad("wants `subject limit kernels reason`"));
            };
            let reason = words.collect::<Vec<_>>().join(" ");
            let limit = limit.parse().map_err(|_| bad("the limit is no number"))?;
            if !subjects.contains(&subject) {
                return Err(bad("no such mark or rule"));
            }
            if reason.is_empty() { Err(bad("no reason")) } else { Ok(Entry { line, subject, limit, kernels, reason }) }
        })
        .collect()
}

/// A line for each entry of the list that nothing needs.
pub fn stale(list: &[Entry], is_used: impl Fn(usize) -> bool) -> Vec<String> {
    let stale = list.iter().enumerate().filter(|(i, _)| !is_used(*i));
    stale
        .map(|(_, e)| format!("stale   {FILE}:{}: no kernel needs `{} {}` now", e.line, e.subject, e.kernels))
        .collect()
}

/// Whether `name` is of the form `pattern`, in which a star stands for any letters.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((head, rest)) => name
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|i| tail.is_char_boundary(i) && is_like(&tail[i..], rest))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_entry_is_refused_with_its_number() {
        let subjects = ["issue".to_string()];
        let cases = [
            ("issue 900", "wants"),
            ("issue x * a", "no number"),
            ("speed 1 * a", "no such"),
            ("issue 1 *", "no reason"),
        ];
        for (text, what) in cases {
            let error = parse(&format!("# list\n{text}"), &subjects).err().expect(text);
            assert!(error.contains(":2: ") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn stars_stand_for_any_letters() {
        assert!(is_like("gemm_f32_nk", "gemm_*nk") && is_like("gemm", "*") && is_like("a_b_c", "*b*"));
        assert!(!is_like("gemm_f32_kn", "gemm_*nk") && !is_like("gemm", "gem") && !is_like("", "a*"));
    }
}
