//! Kernels with one known mistake each. The assembler takes all of them; the sanitizer must take none, must say what
//! kind of mistake it is and name the right line. The kernels without a mistake must pass under every schedule.

mod memory;
mod order;

use crate::harness::options;
use crate::scenarios::{SCENARIOS, Scenario, scenario};
use lookback_emulator::launch::{AsyncCopies, Convergence, CtaOrder, Fault, FaultKind, Options};

/// One mistake.
#[derive(Clone)]
struct Mutant {
    kernel: &'static str,
    what: &'static str,
    /// Text to find, exactly once, and what takes its place.
    edits: &'static [(&'static str, &'static str)],
    /// Any of these kinds is right: which party of a race comes second is up to the schedule.
    kinds: &'static [FaultKind],
    /// Text of the lines of which one must be named.
    lines: &'static [&'static str],
    under: Under,
}

/// What it takes for the mistake to be executed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Under {
    Any,
    /// The lanes of a warp stay together, so that they do it with one instruction.
    Converged,
    /// Warps take turns after every instruction.
    FineTurns,
    /// CTAs start from the last, one at a time.
    ReversedOneByOne,
}

/// Schedules under which a mistake must be found.
fn schedules(under: Under) -> Vec<Options> {
    let changes: [fn(&mut Options); 6] = [
        |_| (),
        |o| o.async_copies = AsyncCopies::Eager,
        |o| (o.order, o.quantum) = (CtaOrder::Reversed, 3),
        |o| (o.order, o.quantum) = (CtaOrder::Random(11), 5),
        |o| (o.convergence, o.quantum) = (Convergence::Random(5), 7),
        |o| (o.convergence, o.async_copies) = (Convergence::Random(77), AsyncCopies::Eager),
    ];
    let mut all: Vec<Options> = changes.iter().map(|change| options(change)).collect();
    for options in &mut all {
        options.instruction_limit = 1_000_000;
        match under {
            Under::Any => {}
            Under::Converged => options.convergence = Convergence::Natural,
            Under::FineTurns => options.quantum = 1,
            Under::ReversedOneByOne => (options.order, options.residency) = (CtaOrder::Reversed, Some(1)),
        }
    }
    all
}

const fn bug(
    kernel: &'static str,
    what: &'static str,
    edits: &'static [(&'static str, &'static str)],
    kinds: &'static [FaultKind],
    lines: &'static [&'static str],
) -> Mutant {
    Mutant { kernel, what, edits, kinds, lines, under: Under::Any }
}

const fn under(under: Under, mutant: Mutant) -> Mutant {
    Mutant { under, ..mutant }
}

impl Mutant {
    fn text(&self, scenario: &Scenario) -> String {
        let mut text = scenario.text.to_owned();
        for (find, replace) in self.edits {
            assert_eq!(text.matches(find).count(), 1, "{}: {}: {find:?}", self.kernel, self.what);
            text = text.replacen(find, replace, 1);
        }
        text
    }

    /// Numbers of the lines that may be named.
    fn line_numbers(&self, text: &str) -> Vec<u32> {
        let numbers = self.lines.iter().map(|wanted| {
            let mut found = text.lines().enumerate().filter(|(_, line)| line.contains(wanted));
            let (index, _) = found.next().unwrap_or_else(|| panic!("{}: no line {wanted:?}", self.what));
            assert!(found.next().is_none(), "{}: line {wanted:?} is not unique", self.what);
            index as u32 + 1
        });
        numbers.collect()
    }

    /// What is wrong with the verdict, if anything.
    fn judge(&self, lines: &[u32], verdict: &Result<(), Fault>) -> Option<String> {
        match verdict {
            Ok(()) => Some("not caught".to_owned()),
            Err(fault) if !self.kinds.contains(&fault.kind) => Some(format!("wrong kind: {fault}")),
            Err(fault) if !lines.contains(&fault.line) => Some(format!("wrong line, not of {lines:?}: {fault}")),
            Err(_) => None,
        }
    }
}

#[test]
fn every_mistake_is_caught_and_named() {
    let all = [memory::mutants(), order::mutants()].concat();
    let mut complaints = Vec::new();
    for mutant in &all {
        let scenario = scenario(mutant.kernel);
        let text = mutant.text(scenario);
        let lines = mutant.line_numbers(&text);
        for (number, options) in schedules(mutant.under).iter().enumerate() {
            // A result that is only wrong is a panic of the scenario, and as little a finding as a right one.
            let run = || (scenario.run)(&text, options);
            let verdict = std::panic::catch_unwind(run).unwrap_or(Ok(()));
            if let Some(complaint) = mutant.judge(&lines, &verdict) {
                complaints.push(format!("{}, {}, schedule {number}: {complaint}", mutant.kernel, mutant.what));
            }
        }
    }
    assert!(complaints.is_empty(), "{} of {} mutants:\n{}", complaints.len(), all.len(), complaints.join("\n"));
}

#[test]
fn kernels_without_a_mistake_pass_under_every_schedule() {
    for scenario in &SCENARIOS {
        for order in [CtaOrder::InOrder, CtaOrder::Reversed, CtaOrder::Random(3)] {
            for residency in [None, Some(1), Some(2)] {
                for convergence in [Convergence::Natural, Convergence::Random(9)] {
                    for async_copies in [AsyncCopies::Late, AsyncCopies::Eager] {
                        for quantum in [20_000, 7, 1] {
                            let options = options(|o| {
                                (o.order, o.residency, o.convergence) = (order, residency, convergence);
                                (o.async_copies, o.quantum) = (async_copies, quantum);
                            });
                            if scenario.whole_grid_resident && residency.is_some() {
                                continue;
                            }
                            let verdict = (scenario.run)(scenario.text, &options);
                            assert!(verdict.is_ok(), "{}: {}\nwith {options:?}", scenario.name, verdict.unwrap_err());
                        }
                    }
                }
            }
        }
    }
}
