//! Every case on the emulator: what is launched does the work that the case says, on tensors that it names.

use lookback_bench::{
    Case, Counts, Effort, Facts, Mode, Outcome, Record, Role, Run, Scale, cases, ceilings, clock_mhz, time,
};
use lookback_device::{
    DeviceInfo, DevicePick, Error,
    cudarc::driver::{CudaContext, CudaStream},
    open,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

fn stream() -> Arc<CudaStream> {
    static CONTEXT: OnceLock<Arc<CudaContext>> = OnceLock::new();
    CONTEXT.get_or_init(|| open(DevicePick::Emulated).expect("the emulator")).per_thread_stream()
}

fn info() -> DeviceInfo {
    DeviceInfo::of(stream().context()).expect("facts")
}

fn counted(case: Case) -> (Facts, Counts) {
    let name = case.facts.name.clone();
    let mut work = case.make(&stream(), 1).unwrap_or_else(|e| panic!("{name}: {e}"));
    let counts = Counts::of(&mut work).unwrap_or_else(|e| panic!("{name}: {e}")).expect("the emulator counts");
    (work.facts, counts)
}

fn named(name: &str) -> Case {
    cases(&info(), Scale::Small).find(|case| case.facts.name.starts_with(name)).expect(name)
}

#[test]
fn names_are_unique_and_every_case_has_a_plan_and_work() {
    for scale in [Scale::Full, Scale::Small] {
        let mut names = BTreeSet::new();
        for Facts { name, operation, family, bytes, shape, .. } in cases(&info(), scale).map(|case| case.facts) {
            assert!(name.starts_with(operation) && !shape.is_empty(), "{name}");
            assert!(["scan", "linear", "attention", "decode", "nn"].contains(&family), "{name}: {family}");
            // A case without a plan has no work.
            assert!(bytes > 0, "{name}: {bytes} bytes");
            assert!(names.insert(name.clone()), "{name} is there twice");
        }
        assert!(names.len() > 60, "{}", names.len());
    }
}

#[test]
fn full_cases_fit_a_card_of_80_gigabytes_and_exceed_its_caches() {
    for facts in cases(&info(), Scale::Full).map(|case| case.facts) {
        let (sets, bytes) = (facts.sets() as u64, facts.bytes);
        assert!(bytes * sets < 30 << 30, "{}: {bytes} bytes, {sets} times", facts.name);
        assert!(bytes * sets >= 200_000_000 || sets == 512, "{}: {bytes} bytes, {sets} times", facts.name);
    }
}

#[test]
fn launches_do_the_work_of_their_case_and_floors_are_below_it() {
    for case in cases(&info(), Scale::Small) {
        let (Facts { name, bytes, flops, .. }, counts) = counted(case);
        let moved = counts.unique_bytes() as f64 / bytes as f64;
        assert!((0.999..8.0).contains(&moved), "{name}: moves {moved} of its bytes");
        if flops > 0 {
            let multiplied = counts.number("tensor_flops") as f64 / flops as f64;
            assert!((0.999..5.0).contains(&multiplied), "{name}: multiplies {multiplied} of its flops");
        }
        assert!((1.0..2.0).contains(&counts.sector_ratio()), "{name}: sectors {}", counts.sector_ratio());
        // Hundreds of tokens take microseconds, most of which is starting.
        let predicted = counts.predicted_seconds();
        assert!((3e-6..2e-4).contains(&predicted), "{name}: {predicted} s");
        let shares: f64 = counts.mix().iter().map(|(_, share)| share).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{name}: {shares}");
    }
}

#[test]
fn tensors_are_named_once_and_apart_and_an_operation_reads_and_writes_some() {
    for case in cases(&info(), Scale::Small) {
        let work = case.make(&stream(), 2).expect("memory");
        let (name, tensors) = (&work.facts.name, work.tensors());
        let names: BTreeSet<&str> = tensors.iter().map(|t| t.name).collect();
        assert_eq!(names.len(), tensors.len(), "{name}: {tensors:?}");
        let has = |roles: [Role; 2]| tensors.iter().any(|t| roles.contains(&t.role));
        assert!(has([Role::Input, Role::Both]) && has([Role::Output, Role::Both]), "{name}: {tensors:?}");
        let mut places: Vec<_> = tensors.iter().map(|t| (t.address, t.address + t.bytes)).collect();
        places.sort_unstable();
        assert!(places.is_sorted_by(|a, b| a.1 <= b.0), "{name}: {tensors:?}");
        for tensor in tensors {
            let size = match tensor.dtype {
                "u8" => 1,
                "f16" | "bf16" => 2,
                "f32" | "i32" => 4,
                other => other.strip_prefix('i').and_then(|bits| bits.parse::<u64>().ok()).expect(other) / 8,
            };
            assert_eq!(tensor.bytes, size * tensor.shape.iter().product::<usize>() as u64, "{name}: {tensor:?}");
        }
    }
}

#[test]
fn ceilings_do_one_thing_only() {
    let [copy, read, products] = ["copy", "read", "products"].map(|wanted| {
        let case = ceilings(&info(), Scale::Small).find(|case| case.facts.name == wanted).expect(wanted);
        counted(case)
    });
    assert_eq!(copy.1.number("launches"), 0, "the driver copies");
    assert_eq!(read.1.number("global_loads/unique_bytes"), read.0.bytes);
    assert_eq!(read.1.number("global_loads/bytes"), read.0.bytes, "every byte once");
    assert!((read.1.sector_ratio() - 1.0).abs() < 1e-9);
    assert_eq!(products.1.number("tensor_flops"), products.0.flops);
    assert_eq!(products.1.number("global_loads/bytes"), 0);
    let clock = clock_mhz(&stream(), 1000).expect("a launch");
    assert!(clock.is_none_or(|mhz| mhz > 0.0), "{clock:?}");
}

#[test]
fn timing_goes_through_a_graph_of_all_sets() {
    let effort = Effort { warm_ups: 1, samples: 3, seconds: 0.0, launches: 2, longest: 60.0 };
    for name in ["rms_norm", "gated_scan f32", "lean_decode paged", "time_reduce_backward", "attention_backward"] {
        let mut work = named(name).make(&stream(), 3).expect("memory");
        let timing = time(&mut work, &effort).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(timing.graph, "{name} is not captured");
        assert_eq!(timing.launches, 3, "{name}: every set once");
        assert!(timing.median_us > 0.0 && timing.spread_us >= 0.0, "{name}: {timing:?}");
    }
}

/// The interpreter's times say nothing, but the way that a GPU takes is the same.
#[test]
fn a_run_measures_ceilings_first_and_keeps_what_it_has() {
    let effort = Effort { warm_ups: 0, samples: 2, seconds: 0.0, launches: 1, longest: 0.0 };
    let run = |mode| Run { stream: stream(), info: info(), scale: Scale::Small, mode, commit: "abc".into() };
    let some = || ["gate gelu", "rms_norm bf16"].map(named);
    let mut kept = Vec::new();
    let keep = |record: &Record| {
        kept.push((record.ceilings.is_some(), record.cases.len()));
        Ok::<(), Error>(())
    };
    let (timed, failed) = run(Mode::Time(effort)).all(some(), keep).expect("a run");
    assert_eq!((failed, kept), (0, vec![(true, 0), (true, 1), (true, 2), (true, 2)]));
    let rates = timed.ceilings.expect("rates");
    assert!([rates.copy, rates.read, rates.products].iter().all(|rate| *rate > 0.0), "{rates:?}");
    for row in &timed.cases {
        let Outcome::Timed(timing) = &row.outcome else { panic!("{row:?}") };
        let share = row.bytes as f64 / rates.copy / (timing.median_us / 1e6);
        let fraction = timed.fraction(row).expect("a fraction");
        assert!((fraction / share - 1.0).abs() < 1e-9, "{fraction} {share}");
    }
    assert_eq!(Record::parse(&timed.to_json().to_string()), Ok(timed));

    let (counted, failed) = run(Mode::Count).all(some(), |_| Ok::<(), Error>(())).expect("a run");
    assert!(failed == 0 && counted.ceilings.is_none() && counted.device.emulated && counted.commit == "abc");
    assert!(counted.cases.iter().all(|row| matches!(row.outcome, Outcome::Counted(_))));
    let mut calls = 0;
    let stopped = run(Mode::Count).all(some(), |_| {
        calls += 1;
        if calls == 2 { Err(Error::OutOfMemory { what: "kept" }) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error::OutOfMemory { what: "kept" })), "{stopped:?}");
}
