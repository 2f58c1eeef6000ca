//! Every operation of `lookback run`, while the device fails: at its first allocation or call, then at its second, and so on until it
//! succeeds. Every failure is an error that blames the machine, gives back all memory, and leaves a context that goes on.

use lookback_cli::{
    CliError,
    trial::{Sample, Trial, samples},
};
use lookback_device::{Class, DevicePick, Error, emulator};
use std::collections::BTreeMap;

/// The shortest case of every operation.
fn operations() -> Vec<Sample> {
    let mut shortest: BTreeMap<&str, Sample> = BTreeMap::new();
    for sample in samples().expect("samples") {
        let best = shortest.entry(sample.operation).or_insert_with(|| sample.clone());
        if sample.file.len() < best.file.len() {
            *best = sample;
        }
    }
    shortest.into_values().collect()
}

/// Bytes that this thread has allocated.
fn used(trial: &Trial) -> usize {
    let (free, total) = trial.context().mem_get_info().expect("how much memory is free");
    total - free
}

/// Runs with one failure, and says what failed.
fn run(trial: &Trial, sample: &Sample, switch: &str, n: usize) -> (Result<Vec<u8>, CliError>, Option<String>) {
    assert!(emulator::set_option(switch, &n.to_string()));
    // A switch that there is not: its refusal stands where the last reason was.
    emulator::set_option("nothing", "");
    let result = trial.run(sample.operation, &sample.file, &sample.attributes);
    let failed = emulator::last_fault().filter(|reason| reason.contains("told to fail"));
    emulator::set_option(switch, "off");
    (result, failed)
}

/// Fails every allocation or call of every operation in turn.
fn survive(switch: &str, is_right: fn(&Error) -> bool) {
    let trial = Trial::open(DevicePick::Emulated).unwrap_or_else(|e| panic!("{e}"));
    assert!(emulator::set_option("memory_mib", "256"));
    let (mut failures, mut swallowed) = (0, 0);
    for sample in operations() {
        let what = |n: usize| format!("{} ({}), {switch} {n}", sample.operation, sample.case);
        let mut wanted = None;
        for n in 1.. {
            let before = used(&trial);
            let (result, failed) = run(&trial, &sample, switch, n);
            match result {
                Ok(file) if failed.is_none() => {
                    wanted = Some(file);
                    break;
                }
                // What went wrong when a guard was dropped is told by the next call.
                Ok(_) => swallowed += 1,
                Err(CliError::Operation(error)) => {
                    assert!(failed.is_some() && is_right(&error), "{}, {failed:?}: {error}", what(n));
                }
                Err(error) => panic!("{}: {error}", what(n)),
            }
            failures += 1;
            // That next call.
            let _ = trial.stream().synchronize();
            let _ = trial.context().check_err();
            // cudarc itself loses a slice whose events cannot be made, for which it looks at the context again.
            let of_event = ["cuEventCreate", "cuCtxGetCurrent", "cuCtxSetCurrent"];
            let is_lost = failed.as_ref().is_some_and(|reason| of_event.iter().any(|name| reason.contains(name)));
            assert!(is_lost || used(&trial) == before, "{}, {failed:?}: memory was kept", what(n));
        }
        let (again, failed) = run(&trial, &sample, switch, usize::MAX);
        assert!(failed.is_none() && again.ok() == wanted, "{}: the context does not go on as before", what(0));
    }
    println!("{switch}: {failures} failures, {swallowed} of them told by the next call");
    assert!(failures > 100, "{failures}");
}

#[test]
fn operations_survive_every_allocation() {
    survive("fail_allocation", |error| matches!(error, Error::OutOfMemory { .. }));
}

#[test]
fn operations_survive_failing_calls() {
    survive("fail_call", |error| {
        matches!(error.class(), Class::Run | Class::Machine) && !matches!(error, Error::DeviceLost { .. })
    });
}
