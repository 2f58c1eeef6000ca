//! Kernels of a family, the operations that launch them, and what becomes of each without one of its barriers.

use super::{
    reasons,
    replay::{Verdict, record, verdicts},
    sites::{Site, Sites},
};
use lookback_emulator::{launch::FaultKind, snapshot::Snapshot};
use lookback_kernels::{KERNELS, Kernel};
use std::collections::BTreeMap;

/// Launches of a kernel that are looked at, the first ones.
const MOST_LAUNCHES: usize = 6;

/// What missing synchronisation may be reported as.
const REPORTS: [FaultKind; 6] = [
    FaultKind::Race,
    FaultKind::Uninitialized,
    FaultKind::AsyncMisuse,
    FaultKind::BarrierMisuse,
    FaultKind::Divergence,
    FaultKind::Deadlock,
];

/// Kernels, and calls that launch every variant of them that synchronises in another way.
pub struct Family {
    /// Names of the kernels.
    pub kernels: &'static [&'static str],
    /// Which of their variants.
    pub variants: fn(&Kernel) -> bool,
    pub runs: &'static [fn()],
}

/// All variants.
pub fn every(_: &Kernel) -> bool {
    true
}

impl Family {
    pub fn has(&self, kernel: &Kernel) -> bool {
        self.kernels.contains(&kernel.name) && (self.variants)(kernel)
    }

    /// Every change of every site of every kernel is reported, or written down as harmless.
    ///
    /// # Panics
    /// When one is not, when one that is written down is reported, and when nothing launches a kernel.
    pub fn check(&self) {
        let mut launches = Vec::new();
        for run in self.runs {
            let Some(recorded) = record(run) else {
                eprintln!("skipped: only the emulator keeps launches");
                return;
            };
            launches.extend(recorded);
        }
        let of = |kernel: &Kernel| {
            launches.iter().filter(|l| l.kernel == kernel.entry).take(MOST_LAUNCHES).collect::<Vec<&Snapshot>>()
        };
        let (mut wrong, mut all) = (Vec::new(), Vec::new());
        for group in self.groups() {
            let Some(kernel) = group.iter().copied().find(|kernel| !of(kernel).is_empty()) else {
                let entries: Vec<&str> = group.iter().map(|kernel| kernel.entry).collect();
                wrong.push(format!("nothing launches any of {}", entries.join(", ")));
                continue;
            };
            let is_harmless = |site: &Site, change| reasons::of(kernel, site, change).is_some();
            let verdicts = verdicts(kernel, &of(kernel), is_harmless);
            wrong.extend(verdicts.iter().filter_map(|verdict| judge(kernel, verdict)));
            all.push(verdicts);
        }
        summarise(&all);
        assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// The variants of each kernel by what synchronises in them.
    fn groups(&self) -> Vec<Vec<&'static Kernel>> {
        let mut groups: BTreeMap<(&str, Vec<String>), Vec<&'static Kernel>> = BTreeMap::new();
        for kernel in KERNELS.iter().filter(|kernel| self.has(kernel)) {
            groups.entry((kernel.name, Sites::of(kernel).signature())).or_default().push(kernel);
        }
        groups.into_iter().filter(|((_, signature), _)| !signature.is_empty()).map(|(_, group)| group).collect()
    }
}

/// Says how many there are, and what reported them.
fn summarise(all: &[Vec<Verdict>]) {
    let mut reports: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sites = 0;
    for verdicts in all {
        let mut places: Vec<usize> = verdicts.iter().map(|verdict| verdict.site.index).collect();
        places.sort_unstable();
        places.dedup();
        sites += places.len();
        for verdict in verdicts {
            *reports.entry(verdict.seen.as_ref().map_or("harmless", |(kind, _)| kind.title())).or_default() += 1;
        }
    }
    let mutants: usize = all.iter().map(Vec::len).sum();
    eprintln!("{} kernels, {sites} sites, {mutants} mutants: {reports:?}", all.len());
}

/// What is wrong with a verdict.
fn judge(kernel: &Kernel, verdict: &Verdict) -> Option<String> {
    let Verdict { site, change, seen } = verdict;
    let Site { line, name, label, nth, .. } = site;
    let what = format!("{} line {line}, {name} {nth} after {label}, {change:?}", kernel.entry);
    match (seen, reasons::of(kernel, site, *change)) {
        (None, None) => Some(format!("{what}: no report")),
        (Some((_, story)), Some(reason)) => {
            Some(format!("{what}: is written down as harmless ({}), and is not: {story}", reason.why))
        }
        (Some((kind, story)), None) => (!REPORTS.contains(kind)).then(|| format!("{what}: {story}")),
        (None, Some(_)) => None,
    }
}
