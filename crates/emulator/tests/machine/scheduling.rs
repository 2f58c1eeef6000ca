//! Orders, residency and turns: what they may not change, and what they must show.

use crate::harness::{Arg, Machine, kernel, options};
use crate::scenarios::{prefix_sum, scenario};
use lookback_emulator::launch::{Checks, CtaOrder, FaultKind, LaunchConfig, Options, launch, occupancy};

const ORDERS: [CtaOrder; 5] =
    [CtaOrder::InOrder, CtaOrder::Reversed, CtaOrder::Random(1), CtaOrder::Random(2), CtaOrder::Random(3)];

#[test]
fn look_back_with_tickets_runs_in_any_order() {
    let text = scenario("lookback").text;
    for tiles in [1, 2, 17, 100] {
        for order in ORDERS {
            for residency in [Some(1), Some(2), Some(7), None] {
                for quantum in [1, 13, 20_000] {
                    let options = options(|o| (o.order, o.residency, o.quantum) = (order, residency, quantum));
                    prefix_sum(text, tiles, &options).unwrap_or_else(|fault| panic!("{fault}\nwith {options:?}"));
                }
            }
        }
    }
}

#[test]
fn look_back_without_tickets_needs_ctas_to_start_in_order() {
    let text =
        scenario("lookback").text.replace("atom.global.add.u32 %tile, [%ticket], 1;", "mov.u32 %tile, %ctaid.x;");
    for residency in [Some(1), Some(3), None] {
        prefix_sum(&text, 20, &options(|o| o.residency = residency)).unwrap();
    }
    // With everything resident any order is as good.
    prefix_sum(&text, 20, &options(|o| o.order = CtaOrder::Reversed)).unwrap();
    for residency in [1, 3, 19] {
        let options = options(|o| (o.order, o.residency) = (CtaOrder::Reversed, Some(residency)));
        let fault = prefix_sum(&text, 20, &options).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    }
}

#[test]
fn a_grid_barrier_needs_all_ctas_resident() {
    let grid_barrier = scenario("grid_barrier");
    for residency in 1..8 {
        let verdict = (grid_barrier.run)(grid_barrier.text, &options(|o| o.residency = Some(residency)));
        match verdict {
            Ok(()) => assert!(residency >= 4),
            Err(fault) => {
                assert!(residency < 4, "{fault}");
                assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
            }
        }
    }
}

#[test]
fn cooperative_launches_are_refused_when_they_cannot_be_resident() {
    let machine = Machine::new(&kernel("", ".reg .b32 %x; mov.u32 %x, 0;"));
    let mut config = LaunchConfig { grid: [4, 2, 1], block: [32, 1, 1], dynamic_shared: 0, cooperative: true };
    let run = |config: &LaunchConfig, residency| {
        let options = options(|o| o.residency = residency);
        launch(&machine.program, &machine.memory, config, &[], &options).map(|_| ()).map_err(|fault| fault.kind)
    };
    assert_eq!(run(&config, None), Ok(()));
    assert_eq!(run(&config, Some(8)), Ok(()));
    assert_eq!(run(&config, Some(7)), Err(FaultKind::CooperativeTooLarge));
    config.grid = [100_000, 1, 1];
    assert_eq!(run(&config, None), Err(FaultKind::CooperativeTooLarge));
    config.cooperative = false;
    assert_eq!(run(&config, None), Ok(()));
}

#[test]
fn impossible_launches_are_refused() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .b8 dynamic[];
        .visible .entry test() .maxntid 128 { .reg .b32 %x; mov.u32 %x, dynamic; }";
    let machine = Machine::new(text);
    let run = |grid, block, dynamic_shared| {
        let config = LaunchConfig { grid, block, dynamic_shared, cooperative: false };
        launch(&machine.program, &machine.memory, &config, &[], &Options::default())
            .map(|_| ())
            .map_err(|fault| fault.kind)
    };
    assert_eq!(run([1; 3], [128, 1, 1], 0), Ok(()));
    assert_eq!(run([1; 3], [16, 8, 1], 227 * 1024), Ok(()));
    for (grid, block, shared) in [
        ([0, 1, 1], [32, 1, 1], 0),
        ([1, 1, 1], [32, 0, 1], 0),
        ([1, 1, 1], [129, 1, 1], 0),
        ([1, 1, 1], [64, 4, 1], 0),
        ([1, 65_536, 1], [32, 1, 1], 0),
        ([1, 1, 1], [32, 1, 1], 227 * 1024 + 1),
    ] {
        let kind = run(grid, block, shared).unwrap_err();
        assert!(matches!(kind, FaultKind::InvalidLaunch | FaultKind::OutOfResources), "{grid:?} {block:?} {shared}");
    }
    let exact = Machine::new(&kernel("", "ret;").replace("test()", "test() .reqntid 64, 2"));
    let run = |block| {
        let config = LaunchConfig { grid: [1; 3], block, dynamic_shared: 0, cooperative: false };
        launch(&exact.program, &exact.memory, &config, &[], &Options::default()).map(|_| ()).map_err(|fault| fault.kind)
    };
    assert_eq!(run([64, 2, 1]), Ok(()));
    assert_eq!(run([128, 1, 1]), Err(FaultKind::InvalidLaunch));
}

#[test]
fn residency_follows_from_threads_and_shared_memory() {
    let machine = Machine::new(&kernel("", ".reg .b32 %x; mov.u32 %x, 0;"));
    assert_eq!(occupancy(&machine.program, 1024, 0), 2);
    assert_eq!(occupancy(&machine.program, 256, 0), 8);
    assert_eq!(occupancy(&machine.program, 32, 0), 32);
    assert_eq!(occupancy(&machine.program, 128, 100 * 1024), 2);
    assert_eq!(occupancy(&machine.program, 128, 227 * 1024), 1);
    assert_eq!(occupancy(&machine.program, 128, 228 * 1024), 0);
}

#[test]
fn the_same_options_give_the_same_counters() {
    let text = scenario("histogram").text;
    let run = |options: &Options| {
        let machine = Machine::new(text);
        let args = [Arg::U64(machine.words(&[3; 64 * 9])), Arg::U64(machine.zeros(8))];
        format!("{:?}", machine.succeed(9, 64, &args, options))
    };
    let random = options(|o| (o.order, o.quantum) = (CtaOrder::Random(5), 3));
    assert_eq!(run(&random), run(&random));
    let unchecked = options(|o| o.checks = Checks::Off);
    assert_eq!(run(&unchecked), run(&unchecked));
}

#[test]
fn without_checks_the_results_are_the_same() {
    for name in
        ["pipeline", "reduce", "lookback", "handoff", "histogram", "transpose", "segments", "phases", "fragments"]
    {
        let scenario = scenario(name);
        (scenario.run)(scenario.text, &options(|o| o.checks = Checks::Off)).unwrap_or_else(|fault| panic!("{fault}"));
    }
}
