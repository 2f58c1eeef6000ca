//! One green run of an operation, then its launches again and again with a kernel that lacks something.

use super::sites::{Change, Site, Sites};
use lookback_device::emulator;
use lookback_emulator::{
    decode::Program,
    launch::{AsyncCopies, Convergence, CtaOrder, FaultKind, LaneOrder, Options, launch},
    snapshot::{Snapshot, snapshots},
};
use lookback_kernels::Kernel;
use lookback_suite::device;

/// The launches that `run` makes, with the memory that each found. None on a GPU.
pub fn record(run: impl FnOnce()) -> Option<Vec<Snapshot>> {
    device::context();
    if !emulator::is_loaded() {
        return None;
    }
    emulator::keep_launches(true);
    run();
    device::finish();
    let bytes = emulator::kept_launches().expect("the emulator keeps launches");
    emulator::keep_launches(false);
    Some(snapshots(&bytes).expect("the emulator's own format"))
}

/// What a GPU leaves to chance: long turns in order with copies that land late, short turns in another order, diverged lanes
/// that meet where they must and nowhere else.
fn schedules() -> [Options; 4] {
    let natural = Convergence::Natural;
    [
        (natural, AsyncCopies::Late, 20_000, CtaOrder::InOrder),
        (Convergence::Random(1), AsyncCopies::Late, 7, CtaOrder::Reversed),
        (Convergence::Random(2), AsyncCopies::Eager, 50, CtaOrder::Random(1)),
        (natural, AsyncCopies::Eager, 3, CtaOrder::Random(2)),
    ]
    .map(|(convergence, async_copies, quantum, order)| {
        let mut options = Options::default();
        options.lane_order = LaneOrder::Synchronised;
        options.convergence = convergence;
        options.async_copies = async_copies;
        options.quantum = quantum;
        options.order = order;
        options
    })
}

/// A report of the sanitizer.
pub type Report = (FaultKind, String);

/// One change and the first report that it gave.
pub struct Verdict {
    pub site: Site,
    pub change: Change,
    pub seen: Option<Report>,
}

/// Launches of one kernel, short ones first, on every schedule.
struct Trials<'a>(Vec<(&'a Snapshot, Options)>);

impl<'a> Trials<'a> {
    /// # Panics
    /// When the kernel itself is reported.
    fn new(whole: &Program, launches: &[&'a Snapshot]) -> Self {
        let mut trials = Vec::new();
        for (number, options) in schedules().into_iter().enumerate() {
            for launched in launches {
                let instructions = replay(launched, whole, &options).unwrap_or_else(|(_, story)| {
                    panic!("as it is, {options:?}: {story}");
                });
                let mut options = options.clone();
                // A mutant may wait for ever.
                options.instruction_limit = 20 * instructions + 100_000;
                trials.push((number, instructions, *launched, options));
            }
        }
        trials.sort_by_key(|(number, instructions, ..)| (*number, *instructions));
        Self(trials.into_iter().map(|(_, _, launched, options)| (launched, options)).collect())
    }

    /// The first report of a program.
    fn report(&self, program: &Program) -> Option<Report> {
        self.0.iter().find_map(|(launched, options)| replay(launched, program, options).err())
    }
}

/// Instructions of a launch, or how it ends.
fn replay(launched: &Snapshot, program: &Program, options: &Options) -> Result<u64, Report> {
    let memory = launched.memory().expect("memory");
    let ended = launch(program, &memory, &launched.config, &launched.parameters, options);
    ended.map(|counters| counters.instructions.iter().sum()).map_err(|fault| (fault.kind, fault.to_string()))
}

/// Every change of every site of a kernel, on all its launches. Those that are taken for harmless are made all at once; one by
/// one only if that is reported.
pub fn verdicts(
    kernel: &'static Kernel,
    launches: &[&Snapshot],
    is_harmless: impl Fn(&Site, Change) -> bool,
) -> Vec<Verdict> {
    let mut sites = Sites::of(kernel);
    let trials = Trials::new(&sites.program(), launches);
    let all: Vec<(Site, Change)> =
        sites.all.iter().flat_map(|site| site.changes.iter().map(|change| (site.clone(), *change))).collect();
    let (harmless, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(site, change)| is_harmless(site, *change));
    let are_harmless = harmless.is_empty() || trials.report(&sites.mutant(&harmless)).is_none();
    let mut judge = |(site, change): (Site, Change), known: bool| {
        let seen = if known { None } else { trials.report(&sites.mutant(&[(site.clone(), change)])) };
        Verdict { site, change, seen }
    };
    let mut verdicts: Vec<Verdict> = rest.into_iter().map(|mutant| judge(mutant, false)).collect();
    verdicts.extend(harmless.into_iter().map(|mutant| judge(mutant, are_harmless)));
    verdicts
}

/// Taken for harmless all at once, no mutant goes unseen that is seen on its own.
#[test]
fn what_is_taken_for_harmless_is_tried() {
    use crate::nn::gemm::{Case, check};
    use lookback_nn::gemm::{Right, Tile};
    let run = || check::<f32, f32>(Case::new(Right::Transposed, Tile::Small, 70, 66, 200));
    let Some(launches) = record(run) else {
        eprintln!("skipped: only the emulator keeps launches");
        return;
    };
    let kernel = lookback_kernels::KERNELS.iter().find(|kernel| kernel.entry == launches[0].kernel);
    let reports = |is_harmless: bool| {
        let verdicts = verdicts(kernel.expect("registered"), &[&launches[0]], |_, _| is_harmless);
        verdicts.into_iter().map(|verdict| verdict.seen).collect::<Vec<_>>()
    };
    assert!(reports(false).iter().filter(|seen| seen.is_some()).count() > 3);
    assert_eq!(reports(true), reports(false));
}
