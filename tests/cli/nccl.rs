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

#[cfg(not(feature = "nccl"))]
#[test]
fn what_was_not_built_in_is_said() {
    let (code, said) = ring("nccl-left-out", "1", false);
    assert!(code == Some(2) && said.contains("`transport`") && said.contains("built without"), "{said}");
}

/// Without the library, or with it on the emulator.
#[cfg(feature = "nccl")]
#[test]
fn what_is_missing_is_named() {
    let is_named =
        |said: &str| said.contains("NCCL was not found; tried libnccl.so.2") || said.contains("the emulator");
    let (code, said) = ring("nccl-one", "1", false);
    assert!(code == Some(1) && is_named(&said), "{code:?}: {said}");
    let (code, said) = ring("nccl-threads", "2", false);
    assert!(code == Some(2) && said.contains("`transport`") && said.contains("lookback launch"), "{code:?}: {said}");
}

#[cfg(all(feature = "nccl", target_os = "linux"))]
#[test]
fn no_rank_waits_for_one_that_lacks_it() {
    let began = std::time::Instant::now();
    let (code, said) = ring("nccl-processes", "2", true);
    let is_named = said.contains("NCCL was not found; tried libnccl.so.2") || said.contains("the emulator");
    assert!(code == Some(1) && is_named, "{code:?}: {said}");
    assert!(began.elapsed().as_secs() < 15, "ranks waited for each other");
}

/// What one device can show is shown, and what it cannot is said to be skipped.
#[test]
fn a_world_of_one_is_tried_or_skipped_aloud() {
    let said = stdout(&lookback(&["info", "--device", "emulated"]));
    assert!(said.contains("NCCL: skipped, "), "{said}");
}
