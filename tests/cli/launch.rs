//! `lookback launch`: what ranks are told, and that none outlives the others.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("lookback-launch-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn launch(ranks: &str, script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lookback"));
    command.args(["launch", "-n", ranks, "--grace", "1", "--", "sh", "-c", script]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Whether a process is there and not only waits to be buried.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn every_rank_knows_who_it_is() {
    let at = folder("names");
    let script = format!("echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR > {}/$RANK", at.display());
    assert!(launch("3", &script).status().unwrap().success());
    for rank in 0..3 {
        let told = fs::read_to_string(at.join(rank.to_string())).unwrap();
        assert_eq!(told.trim(), format!("{rank} {rank} 3 127.0.0.1"));
    }
    fs::remove_dir_all(at).unwrap();
}

#[test]
fn one_that_fails_ends_all() {
    let at = folder("fails");
    // The others do not end when they are asked to, only when they are made to.
    let script = format!(
        "echo $$ > {}/$RANK; if [ $RANK = 1 ]; then sleep 0.2; exit 7; fi; trap '' TERM; while true; do sleep 0.1; done",
        at.display()
    );
    let began = Instant::now();
    let out = launch("3", &script).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("rank 1 failed") && said.contains('7'), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10));
    for rank in 0..3 {
        assert!(!lives(&fs::read_to_string(at.join(rank.to_string())).unwrap()), "rank {rank} lives");
    }
    fs::remove_dir_all(at).unwrap();
}

#[test]
fn a_signal_ends_all() {
    let at = folder("signal");
    let script = format!("echo $$ > {}/$RANK; exec sleep 60", at.display());
    let mut launcher = launch("2", &script).spawn().unwrap();
    let pids = || (0..2).map(|rank| fs::read_to_string(at.join(rank.to_string()))).collect::<Result<Vec<_>, _>>();
    let limit = Instant::now() + Duration::from_secs(20);
    while !pids().is_ok_and(|pids| pids.iter().all(|pid| !pid.is_empty())) && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pids = pids().unwrap();
    assert!(pids.iter().all(|pid| lives(pid)));
    assert!(Command::new("kill").args(["-TERM", &launcher.id().to_string()]).status().unwrap().success());
    assert_eq!(launcher.wait().unwrap().code(), Some(1));
    assert!(pids.iter().all(|pid| !lives(pid)), "a rank lives");
    fs::remove_dir_all(at).unwrap();
}

#[test]
fn what_cannot_be_started_is_named() {
    let out =
        Command::new(env!("CARGO_BIN_EXE_lookback")).args(["launch", "-n", "2", "--", "/nowhere/to/be/found"]).output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nowhere/to/be/found"));
}
