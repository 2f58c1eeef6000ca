//! Kernels with one known mistake each. The assembler takes all of them; the sanitizer must take none, must say what
//! kind of mistake it is and name the right line. The kernels without a mistake must pass under every schedule.

use crate::harness::options;
use crate::scenarios::{SCENARIOS, Scenario, scenario};
use lookback_emulator::launch::{AsyncCopies, Convergence, CtaOrder, Fault, FaultKind, Options};

use FaultKind::{
    AsyncMisuse, BarrierMisuse, Deadlock, Divergence, IllegalAddress, IllegalInstruction, MisalignedAddress, Race,
    Uninitialized,
};

/// One mistake.
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

fn mutants() -> Vec<Mutant> {
    vec![
        bug(
            "pipeline",
            "barrier after the wait for cp.async dropped",
            &[("bar.sync        0;", "")],
            &[AsyncMisuse, Race, Uninitialized],
            &["ld.shared.v4.u32"],
        ),
        bug(
            "pipeline",
            "one group too many may be in flight",
            &[("wait_group 1;", "wait_group 2;")],
            &[AsyncMisuse],
            &["ld.shared.v4.u32"],
        ),
        bug(
            "pipeline",
            "barrier at the end of the loop dropped",
            &[("bar.sync        1;", "")],
            &[AsyncMisuse, Race],
            &["ld.shared.v4.u32", "cp.async.cg"],
        ),
        bug(
            "pipeline",
            "both stages are the same buffer",
            &[
                ("%stage, %step, 1;               // stage to fill", "%stage, %step, 0;"),
                ("%stage, %stage, 1;", "%stage, %stage, 0;"),
            ],
            &[AsyncMisuse, Race],
            &["ld.shared.v4.u32", "cp.async.cg"],
        ),
        bug(
            "pipeline",
            "reads the stage that is being filled",
            &[("%stage, %step, 1;\n    and.b32", "%stage, %step, 0;\n    and.b32")],
            &[AsyncMisuse],
            &["ld.shared.v4.u32"],
        ),
        bug(
            "pipeline",
            "copies without a group are never waited for",
            &[("cp.async.commit_group;", "")],
            &[AsyncMisuse],
            &["ld.shared.v4.u32"],
        ),
        bug(
            "pipeline",
            "one row past the end is copied",
            &[
                ("setp.lt.u32     %inside", "setp.le.u32     %inside"),
                ("sub.u32         %last, %rows, 1;", "mov.u32 %last, %rows;"),
            ],
            &[IllegalAddress],
            &["cp.async.cg"],
        ),
        bug(
            "pipeline",
            "accumulator not initialised",
            &[("mov.u32         %sum2, 0;", "")],
            &[Uninitialized],
            &["add.u32         %sum2"],
        ),
        bug(
            "pipeline",
            "result written past the end of the buffer",
            &[("mul.wide.u32    %source, %thread, 16;", "mul.wide.u32    %source, %thread, 32;")],
            &[IllegalAddress],
            &["st.global.v4.u32"],
        ),
        bug(
            "pipeline",
            "destination of a 16-byte copy misaligned",
            &[("shl.b32         %offset, %thread, 4;", "shl.b32         %offset, %thread, 3;")],
            &[MisalignedAddress],
            &["cp.async.cg"],
        ),
        bug(
            "reduce",
            "barrier before the combination dropped",
            &[("bar.sync        0;", "")],
            &[Race, Uninitialized],
            &["ld.shared.v2.f32", "st.shared.f32"],
        ),
        bug(
            "reduce",
            "guard lets one element past the end",
            &[("setp.lt.u32     %inside", "setp.le.u32     %inside")],
            &[IllegalAddress],
            &["ld.global.f32"],
        ),
        bug(
            "reduce",
            "two CTAs write one word",
            &[("%offset, %cta, 4;", "%offset, %cta, 0;")],
            &[Race],
            &["st.global.f32"],
        ),
        bug(
            "reduce",
            "result written one place too far",
            &[("mul.wide.u32    %offset, %cta, 4;", "mad.wide.u32    %offset, %cta, 4, 4;")],
            &[IllegalAddress],
            &["st.global.f32"],
        ),
        bug(
            "reduce",
            "bar.sync under a predicate that diverges",
            &[("bar.sync        0;", "@%leads_warp bar.sync 0;")],
            &[Divergence],
            &["bar.sync"],
        ),
        bug(
            "reduce",
            "register of the threads past the end not initialised",
            &[("mov.f32         %sum, 0f00000000;", "")],
            &[Uninitialized],
            &["%other, %sum, 16,"],
        ),
        bug(
            "reduce",
            "word of shared memory not initialised",
            &[("setp.eq.u32     %leads_warp, %lane, 0;", "setp.eq.u32     %leads_warp, %thread, 0;")],
            &[Uninitialized],
            &["ld.shared.v2.f32"],
        ),
        bug(
            "reduce",
            "vector load misaligned",
            &[("[partial];", "[partial+4];")],
            &[MisalignedAddress],
            &["ld.shared.v2.f32"],
        ),
        bug(
            "reduce",
            "read past the end of shared memory",
            &[("[partial];", "[partial+16];")],
            &[IllegalAddress],
            &["ld.shared.v2.f32"],
        ),
        bug(
            "reduce",
            "lanes of one store write different values to one word",
            &[("@%leads_warp st.shared.f32 [%slot], %sum;", "st.shared.b32 [%slot], %lane;")],
            &[Race],
            &["st.shared.b32"],
        ),
        bug(
            "reduce",
            "shuffle that some lanes of its mask never reach",
            &[(
                "shfl.sync.bfly.b32 %other, %sum, 16,",
                "mov.f32 %other, %sum; @%inside shfl.sync.bfly.b32 %other, %sum, 16,",
            )],
            &[Divergence, Deadlock],
            &["%other, %sum, 16,"],
        ),
        bug(
            "lookback",
            "inclusive sum published without release",
            &[("st.release.gpu.global.u32 [%my_flag], 2;", "st.relaxed.gpu.global.u32 [%my_flag], 2;")],
            &[Race],
            &["// an inclusive sum"],
        ),
        bug(
            "lookback",
            "flag is a plain store",
            &[("st.release.gpu.global.u32 [%my_flag], 2;", "st.global.u32 [%my_flag], 2;")],
            &[Race],
            &["ld.acquire.gpu", "st.global.u32 [%my_flag]"],
        ),
        under(
            Under::FineTurns,
            bug(
                "lookback",
                "aggregate published without release",
                &[("st.release.gpu.global.u32 [%my_flag], 1;", "st.relaxed.gpu.global.u32 [%my_flag], 1;")],
                &[Race],
                &["// an aggregate"],
            ),
        ),
        bug(
            "lookback",
            "release reaches only the CTA",
            &[("st.release.gpu.global.u32 [%my_flag], 2;", "st.release.cta.global.u32 [%my_flag], 2;")],
            &[Race],
            &["// an inclusive sum", "ld.acquire.gpu", "st.release.cta"],
        ),
        bug(
            "lookback",
            "flag read without acquire",
            &[("ld.acquire.gpu.global.u32", "ld.relaxed.gpu.global.u32")],
            &[Race],
            &["// an inclusive sum", "// an aggregate"],
        ),
        bug(
            "lookback",
            "flag read as volatile",
            &[("ld.acquire.gpu.global.u32", "ld.volatile.global.u32")],
            &[Race],
            &["// an inclusive sum", "// an aggregate"],
        ),
        bug(
            "lookback",
            "flag polled with plain loads",
            &[("ld.acquire.gpu.global.u32", "ld.global.u32")],
            &[Race],
            &[
                "ld.global.u32 %flag",
                "st.release.gpu.global.u32 [%my_flag], 1",
                "st.release.gpu.global.u32 [%my_flag], 2",
            ],
        ),
        bug(
            "lookback",
            "read-only path for what the grid writes",
            &[("ld.global.u32   %part, [%that_sums+4];", "ld.global.nc.u32 %part, [%that_sums+4];")],
            &[Race],
            &["// an inclusive sum"],
        ),
        bug(
            "lookback",
            "flag set before the sum is stored",
            &[
                ("st.global.u32   [%my_sums+4], %part;", "st.release.gpu.global.u32 [%my_flag], 2; "),
                ("st.release.gpu.global.u32 [%my_flag], 2;\nJOIN", "st.global.u32 [%my_sums+4], %part;\nJOIN"),
            ],
            &[Race, Uninitialized],
            &["// an inclusive sum", "st.global.u32 [%my_sums+4], %part;"],
        ),
        bug(
            "lookback",
            "flag never set",
            &[("st.release.gpu.global.u32 [%my_flag], 2;", "")],
            &[Deadlock],
            &["ld.acquire.gpu", "@%empty bra"],
        ),
        under(
            Under::ReversedOneByOne,
            bug(
                "lookback",
                "tiles taken by CTA index, which says nothing about who starts first",
                &[("atom.global.add.u32 %tile, [%ticket], 1;", "mov.u32 %tile, %ctaid.x;")],
                &[Deadlock],
                &["ld.acquire.gpu", "@%empty bra"],
            ),
        ),
        bug(
            "lookback",
            "tiles overlap",
            &[("%index, %tile, 32, %lane;", "%index, %tile, 16, %lane;")],
            &[Race],
            &["st.global.u32   [%out], %value;"],
        ),
        bug(
            "handoff",
            "the two sides of a named barrier disagree on its size",
            &[("bar.sync        1, 64;", "bar.sync        1, 96;")],
            &[BarrierMisuse, Deadlock],
            &["bar.sync        1, 96;", "bar.arrive      1, 64;"],
        ),
        bug(
            "handoff",
            "both sides wait for a warp that is not there",
            &[
                ("bar.sync        1, 64;", "bar.sync        1, 96;"),
                ("bar.arrive      1, 64;", "bar.arrive      1, 96;"),
            ],
            &[BarrierMisuse, Deadlock],
            &["bar.sync        1, 96;", "bar.arrive      1, 96;", "// wait for empty"],
        ),
        bug(
            "handoff",
            "consumer waits at another barrier than the producer signals",
            &[("bar.sync        1, 64;", "bar.sync        3, 64;")],
            &[Deadlock, BarrierMisuse],
            &["bar.sync        3, 64;", "// wait for empty"],
        ),
        bug(
            "handoff",
            "full is never signalled",
            &[("bar.arrive      1, 64;", "")],
            &[Deadlock],
            &["// wait for full", "// wait for empty"],
        ),
        bug(
            "handoff",
            "producer does not wait for empty",
            &[("bar.sync        2, 64;                          // wait for empty", "")],
            &[Race, BarrierMisuse],
            &["st.shared.b32", "ld.shared.b32", "bar.arrive      1, 64;", "// empty again"],
        ),
        bug(
            "handoff",
            "consumer does not wait for full",
            &[("bar.sync        1, 64;", "")],
            &[Race, Uninitialized, BarrierMisuse],
            &["st.shared.b32", "ld.shared.b32", "// empty again"],
        ),
        under(
            Under::ReversedOneByOne,
            bug(
                "grid_barrier",
                "co-residency needed, one CTA resident",
                &[],
                &[Deadlock],
                &["ld.relaxed.gpu", "@%more bra      WAIT"],
            ),
        ),
        bug(
            "grid_barrier",
            "no fence before the arrival",
            &[("fence.acq_rel.gpu;\n    red", "\n    red")],
            &[Race],
            &["ld.global.u32   %number", "st.global.u32   [%at]"],
        ),
        bug(
            "grid_barrier",
            "no fence after the wait",
            &[("fence.acq_rel.gpu;                              //", "//")],
            &[Race],
            &["ld.global.u32   %number"],
        ),
        bug(
            "grid_barrier",
            "counter polled with plain loads",
            &[("ld.relaxed.gpu.global.u32", "ld.global.u32")],
            &[Race],
            &["ld.global.u32 %arrived", "red.relaxed.gpu"],
        ),
        bug(
            "grid_barrier",
            "waits for one CTA more than there are",
            &[("setp.lt.u32     %more, %arrived, %ctas;", "setp.le.u32     %more, %arrived, %ctas;")],
            &[Deadlock],
            &["ld.relaxed.gpu", "setp.le.u32", "@%more bra      WAIT"],
        ),
        bug(
            "grid_barrier",
            "word of the workspace not initialised",
            &[("st.global.u32   [%at], %number;", "")],
            &[Uninitialized],
            &["ld.global.u32   %number"],
        ),
        bug(
            "grid_barrier",
            "reads one number too many",
            &[("setp.lt.u32     %more, %index, %ctas;", "setp.le.u32     %more, %index, %ctas;")],
            &[IllegalAddress],
            &["ld.global.u32   %number"],
        ),
        bug(
            "histogram",
            "shared counter not atomic",
            &[(
                "red.shared.add.u32 [%bin], 1;",
                "ld.shared.b32 %count, [%bin]; add.u32 %count, %count, %thread; st.shared.b32 [%bin], %count;",
            )],
            &[Race],
            &["st.shared.b32 [%bin]"],
        ),
        bug(
            "histogram",
            "global counter not atomic",
            &[("red.global.add.u32 [%out], %count;", "st.global.u32 [%out], %count;")],
            &[Race],
            &["st.global.u32"],
        ),
        bug(
            "histogram",
            "barrier between clearing and counting dropped",
            &[("bar.sync        0;                              // bins are clear", "")],
            &[Race, Uninitialized],
            &["red.shared", "@%clears st.shared"],
        ),
        bug(
            "histogram",
            "barrier between counting and reading dropped",
            &[("bar.sync        0;                              // bins are full", "")],
            &[Race],
            &["red.shared", "ld.shared.b32"],
        ),
        bug(
            "histogram",
            "half of the counters not cleared",
            &[("%clears, %thread, 8;", "%clears, %thread, 4;")],
            &[Uninitialized],
            &["red.shared"],
        ),
        bug(
            "transpose",
            "shared offset used as a generic address",
            &[("cvta.shared.u64 %shared, %shared;               // for the store", "")],
            &[IllegalAddress],
            &["st.u32          [%shared]"],
        ),
        bug(
            "transpose",
            "generic address used as a shared one",
            &[("st.u32          [%shared]", "st.shared.u32   [%shared]")],
            &[IllegalAddress],
            &["st.shared.u32   [%shared]"],
        ),
        bug(
            "transpose",
            "row pitch too large for the buffer",
            &[("%index, %column, 32, %row;", "%index, %column, 33, %row;")],
            &[IllegalAddress],
            &["st.u32          [%shared]"],
        ),
        bug(
            "transpose",
            "vector load of shared memory misaligned",
            &[("%offset, %thread, 16;", "%offset, %thread, 8;")],
            &[MisalignedAddress],
            &["ld.v4.u32"],
        ),
        bug(
            "transpose",
            "barrier between writing and reading dropped",
            &[("bar.sync        0;", "")],
            &[Race, Uninitialized],
            &["ld.v4.u32", "st.u32          [%shared]"],
        ),
        bug(
            "segments",
            "lanes use a mask that they are not in",
            &[("0xffff0000;", "0xff000000;")],
            &[IllegalInstruction, Divergence],
            &["vote.sync"],
        ),
        bug(
            "segments",
            "shuffle reads a lane that does not take part",
            &[("%other, %value, 8, 31,", "%other, %value, 16, 31,")],
            &[IllegalInstruction, Divergence, Uninitialized],
            &["%other, %value, 16,"],
        ),
        under(
            Under::Converged,
            bug(
                "segments",
                "lanes of one vote disagree on the mask",
                &[("%members, 0x0000ffff;", "%members, 0xffffffff;")],
                &[IllegalInstruction, Divergence, Deadlock],
                &["vote.sync"],
            ),
        ),
        under(
            Under::Converged,
            bug(
                "segments",
                "two lanes store different values to one word",
                &[("shr.u32         %place, %lane, 4;", "shr.u32         %place, %lane, 5;")],
                &[Race],
                &["st.global.u32 [%out], %value;"],
            ),
        ),
        bug(
            "phases",
            "mbarrier expects one arrival too many",
            &[("[landed], 64;", "[landed], 65;")],
            &[Deadlock],
            &["mbarrier.test_wait", "@!%done bra"],
        ),
        bug(
            "phases",
            "mbarrier counts the copies' arrivals twice",
            &[("arrive.noinc.shared", "arrive.shared")],
            &[Deadlock],
            &["mbarrier.test_wait", "@!%done bra"],
        ),
        bug(
            "phases",
            "mbarrier not initialised",
            &[("@%first mbarrier.init.shared.b64 [landed], 64;", "")],
            &[BarrierMisuse, Uninitialized],
            &["cp.async.mbarrier.arrive"],
        ),
        bug(
            "phases",
            "arrival does not wait for the copy",
            &[("cp.async.mbarrier.arrive.noinc.shared.b64 [landed];", "mbarrier.arrive.shared.b64 _, [landed];")],
            &[AsyncMisuse],
            &["ld.shared.b32"],
        ),
        bug(
            "phases",
            "waits for the phase before",
            &[("and.b32         %parity, %round, 1;", "not.b32 %parity, %round; and.b32 %parity, %parity, 1;")],
            &[AsyncMisuse, Race, Uninitialized],
            &["ld.shared.b32"],
        ),
        bug(
            "phases",
            "buffer filled again while it is read",
            &[("bar.sync        0;                              // the buffer", "//")],
            &[AsyncMisuse, Race],
            &["cp.async.ca", "ld.shared.b32"],
        ),
        bug(
            "fragments",
            "barrier before ldmatrix dropped",
            &[("bar.sync        0;", "")],
            &[Race, Uninitialized],
            &["ldmatrix.sync.aligned.m8n8.x4", "st.shared.v4.b32 [%at_a]", "st.shared.v4.b32 [%at_b]"],
        ),
        bug(
            "fragments",
            "accumulator of mma not initialised",
            &[("mov.f32         %d2, 0f00000000;", "")],
            &[Uninitialized],
            &["mma.sync"],
        ),
        bug(
            "fragments",
            "row address of ldmatrix misaligned",
            &[("%at_a, %half, 16, %at_a;", "%at_a, %half, 8, %at_a;")],
            &[MisalignedAddress],
            &["ldmatrix.sync.aligned.m8n8.x4"],
        ),
        bug(
            "fragments",
            "ldmatrix by half a warp",
            &[("@!%helps bra    DONE;", "setp.lt.u32 %helps, %thread, 16; @!%helps bra DONE;")],
            &[Divergence],
            &["ldmatrix.sync.aligned.m8n8.x4"],
        ),
    ]
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
    let all = mutants();
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
