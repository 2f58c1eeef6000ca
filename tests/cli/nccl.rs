//! `--set transport=nccl` where there is nothing that it could use: a word about why, in time.

use crate::files::{Folder, T, command, lookback, stderr, stdout};

/// Exit status and words of a ring by NCCL, of as many threads or processes.
fn ring(name: &str, ranks: &str, is_launched: bool) -> (Option<i32>, String) {
    let folder = Folder::new(name);
    let values: Vec<f64> = (0..16 * 2 * 8).map(|i| f64::from(i).sin()).collect();
    let input = folder.write("in", &["q", "k", "v"].map(|name| (name, T::bf16(&[1, 16, 2, 8], &values))));
    let out = folder.path("out");
    let program = command().get_program().to_owned();
    let mut run = command();
    if is_launched {
        run.args(["launch", "-n", ranks, "--"]).arg(program);
    }
    run.args(["run", "ring_attention", "--device", "emulated", "--in"]).arg(input).arg("--out").arg(&out);
    run.args(["--set", "transport=nccl", "--set", &format!("ranks={ranks}"), "--set", "timeout=20"]);
    let done = run.output().expect("runs");
    assert!(!out.exists(), "a result");
    (done.status.code(), stderr(&done))
}

/// Whether the program was built with it, by its own words: a bundle's may be, though these tests are not.
fn is_built_in() -> bool {
    let list = stdout(&lookback(&["run", "--list"]));
    assert!(list.contains("transport"), "{list}");
    list.contains("host|nccl")
}

/// Without the feature, without the library, or with it on the emulator.
fn is_named(said: &str) -> bool {
    match is_built_in() {
        true => said.contains("NCCL was not found; tried libnccl.so.2") || said.contains("the emulator, which NCCL"),
        false => said.contains("`transport`") && said.contains("built without its feature nccl"),
    }
}

#[test]
fn what_is_missing_is_named() {
    let (code, said) = ring("nccl-one", "1", false);
    assert!(is_named(&said) && code == Some(if is_built_in() { 1 } else { 2 }), "{code:?}: {said}");
    let (code, said) = ring("nccl-threads", "2", false);
    let wants_processes = said.contains("`transport`") && said.contains("lookback launch");
    assert!(code == Some(2) && wants_processes == is_built_in(), "{code:?}: {said}");
}

#[cfg(target_os = "linux")]
#[test]
fn no_rank_waits_for_one_that_lacks_it() {
    let began = std::time::Instant::now();
    let (code, said) = ring("nccl-processes", "2", true);
    assert!(code == Some(1) && is_named(&said), "{code:?}: {said}");
    assert!(began.elapsed().as_secs() < 15, "ranks waited for each other");
}

/// What one device can show is shown, and what it cannot is said to be skipped.
#[test]
fn a_world_of_one_is_tried_or_skipped_aloud() {
    let said = stdout(&lookback(&["info", "--device", "emulated"]));
    assert!(said.contains("NCCL: skipped, "), "{said}");
}
