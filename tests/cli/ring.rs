//! `run ring_attention` as processes: the bytes of threads, and what is left when one of them is killed or stopped.

use crate::files::{Folder, T, command, lookback, stderr};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// Seconds that ranks wait for each other where one of them fails: several times what a step takes on a busy machine.
const TIMEOUT: u64 = 8;
/// For anything that should not take long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every rank says once all have met.
const SIGN: &str = "all are here";

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}

/// `q`, `k`, `v`, and with `backward` the gradients of `o` and `lse`.
fn tensors([b, t, h, g, d]: [usize; 5], documents: &[i32], backward: bool) -> Vec<(&'static str, T)> {
    let floats = |phase, heads| T::bf16(&[b, t, heads, d], &wave(phase, b * t * heads * d));
    let mut all = vec![("q", floats(1.0, h)), ("k", floats(2.0, g)), ("v", floats(3.0, g))];
    if !documents.is_empty() {
        all.push(("cu_seqlens", T::i32(&[documents.len()], documents)));
    }
    if backward {
        all.push(("do", floats(4.0, h)));
        all.push(("dlse", T::f32(&[b, t, h], &wave(5.0, b * t * h))));
    }
    all
}

/// The same operation by threads and by processes: their files.
fn both(folder: &Folder, operation: &str, input: &Path, ranks: usize, set: &[&str]) -> [Vec<u8>; 2] {
    let [own, theirs] = ["threads", "processes"].map(|name| folder.path(name));
    let run = |out: &Path| {
        let path = |path: &Path| path.to_str().expect("utf-8").to_string();
        let mut args: Vec<String> =
            ["run", operation, "--in", &path(input), "--out", &path(out)].map(String::from).into();
        set.iter().for_each(|set| args.extend(["--set".into(), set.to_string()]));
        args
    };
    let threads = command().args(run(&own)).args(["--set", &format!("ranks={ranks}")]).output().expect("runs");
    assert!(threads.status.success(), "{set:?}: {}", stderr(&threads));
    let program = command().get_program().to_owned();
    let launched = command()
        .args(["launch", "-n", &ranks.to_string(), "--"])
        .arg(program)
        .args(run(&theirs))
        .output()
        .expect("runs");
    let said = stderr(&launched);
    assert!(launched.status.success(), "{set:?}: {said}");
    assert_eq!(said.matches(SIGN).count(), ranks, "{said}");
    [own, theirs].map(|path| {
        let bytes = fs::read(&path).expect("output");
        fs::remove_file(path).expect("once");
        bytes
    })
}

#[test]
fn processes_give_the_bytes_of_threads() {
    let folder = Folder::new("ring-same");
    let whole = folder.write("whole", &tensors([2, 53, 4, 2, 32], &[], false));
    let documents = folder.write("documents", &tensors([1, 67, 4, 4, 32], &[0, 20, 20, 67], false));
    let cases: [(&Path, usize, &[&str]); 8] = [
        (&whole, 2, &["schedule=ring", "mask=causal"]),
        (&whole, 4, &["schedule=ring", "partition=striped"]),
        (&whole, 4, &["schedule=bidirectional", "mask=causal"]),
        (&whole, 4, &["schedule=two_level", "mask=causal"]),
        (&documents, 4, &["schedule=tokenring", "mask=causal"]),
        (&documents, 2, &["schedule=allgather", "groups=2", "mask=causal", "partition=contiguous"]),
        (&documents, 4, &["schedule=ulysses", "mask=causal"]),
        (&whole, 4, &["schedule=auto", "mask=causal"]),
    ];
    for (input, ranks, set) in cases {
        let [threads, processes] = both(&folder, "ring_attention", input, ranks, set);
        assert!(!threads.is_empty() && threads == processes, "{ranks} {set:?}");
    }
}

#[test]
fn gradients_of_processes_are_the_bytes_of_threads() {
    let folder = Folder::new("ring-same-gradients");
    let whole = folder.write("whole", &tensors([1, 53, 4, 2, 32], &[], true));
    let documents = folder.write("documents", &tensors([1, 67, 4, 4, 32], &[0, 20, 20, 67], true));
    let cases: [(&Path, usize, &[&str]); 3] = [
        (&whole, 2, &["schedule=bidirectional", "mask=causal", "out=f32"]),
        (&documents, 4, &["schedule=ring", "mask=causal"]),
        (&documents, 4, &["schedule=tokenring", "mask=window", "left=9", "sink_tokens=2"]),
    ];
    for (input, ranks, set) in cases {
        let [threads, processes] = both(&folder, "ring_attention_backward", input, ranks, set);
        assert!(!threads.is_empty() && threads == processes, "{ranks} {set:?}");
    }
}

#[test]
fn heads_that_share_keys_unevenly_are_refused() {
    let folder = Folder::new("ring-uneven");
    // Six of twelve heads on a rank: four share one key head and two another.
    for (operation, backward) in [("ring_attention", false), ("ring_attention_backward", true)] {
        let input = folder.write("in", &tensors([1, 9, 12, 3, 8], &[], backward));
        let out = folder.path("out");
        let [input, to] = [&input, &out].map(|path| path.to_str().expect("utf-8"));
        let set = ["--set", "schedule=ulysses", "--set", "ranks=2"];
        let done = lookback(&[&["run", operation, "--in", input, "--out", to], &set[..]].concat());
        assert_eq!(done.status.code(), Some(2), "{}", stderr(&done));
        assert!(stderr(&done).contains("`ranks`") && !out.exists(), "{}", stderr(&done));
    }
}

#[test]
fn the_model_s_choice_is_told_with_what_came_next() {
    let folder = Folder::new("ring-auto");
    let input = folder.write("in", &tensors([1, 64, 8, 2, 32], &[], false));
    let out = folder.path("out");
    let [input, out] = [&input, &out].map(|path| path.to_str().expect("utf-8"));
    let run = |set: &[&str]| {
        let mut args = vec!["run", "ring_attention", "--in", input, "--out", out, "--set", "mask=causal"];
        set.iter().for_each(|set| args.extend(["--set", set]));
        lookback(&args)
    };
    let done = run(&["schedule=auto"]);
    let said = stderr(&done);
    assert!(done.status.success(), "{said}");
    assert_eq!((said.matches("auto took").count(), said.matches("auto before").count()), (1, 2), "{said}");
    assert!(said.contains("us exposed") && said.contains("MB on the busiest link"), "{said}");
    let done = run(&["schedule=auto", "partition=striped"]);
    let said = stderr(&done);
    assert!(said.contains("Striped") && !said.contains("Zigzag"), "{said}");
    for timeout in ["0", "-1", "nan", "1e9", "soon"] {
        let done = run(&[&format!("timeout={timeout}")]);
        assert_eq!(done.status.code(), Some(2), "{timeout}: {}", stderr(&done));
        assert!(stderr(&done).contains("`timeout`"), "{timeout}: {}", stderr(&done));
    }
}

/// Processes of a test, none of which outlives it.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a process ended, if it did in time.
fn ended(child: &mut Child, limit: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait().expect("a child") {
            Some(status) => return Some(status),
            None if Instant::now() > limit => return None,
            None => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Lines of a process' standard error, as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let (to, from) = channel();
    let pipe = BufReader::new(child.stderr.take().expect("piped"));
    thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    from
}

/// Waits for as many signs of life.
fn signs(of: &Receiver<String>, count: usize) {
    let limit = Instant::now() + PATIENCE;
    let (mut seen, mut said) = (0, String::new());
    while seen < count {
        let left = limit.saturating_duration_since(Instant::now());
        let line = of.recv_timeout(left).unwrap_or_else(|e| panic!("{e}: {said}"));
        seen += usize::from(line.contains(SIGN));
        said.push_str(&line);
    }
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().expect("kill").success());
}

/// Whether a process is there and not only waits to be buried.
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Until all ranks have ended: those that compute look up after their step, which takes a busy machine long. That nobody waits longer than
/// twice the timeout is tested where steps are short, by `lookback-ring`.
const END: Duration = Duration::from_secs(2 * TIMEOUT + PATIENCE.as_secs());

/// An operation that takes every rank a second or more on the emulator, in several steps.
fn long(folder: &Folder) -> Vec<String> {
    let input = folder.write("in", &tensors([1, 4096, 4, 2, 64], &[], false));
    let paths = [input, folder.path("out")].map(|path| path.to_str().expect("utf-8").to_string());
    let timeout = format!("timeout={TIMEOUT}");
    let args = ["run", "ring_attention", "--device", "emulated", "--in", &paths[0], "--out", &paths[1]];
    let set = ["--set", "mask=causal", "--set", &timeout];
    args.iter().chain(&set).map(|word| word.to_string()).collect()
}

/// Ranks without a launcher, of which one gets a signal in the middle: what all others say.
fn survivors(name: &str, ranks: usize, victim: usize, what: &str) -> Vec<String> {
    let folder = Folder::new(name);
    let args = long(&folder);
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let start = |rank: usize| {
        command()
            .args(&args)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", ranks.to_string())
            .env("LOOKBACK_RENDEZVOUS", address.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process")
    };
    let mut processes = Processes((0..ranks).map(start).collect());
    let said: Vec<Receiver<String>> = processes.0.iter_mut().map(lines).collect();
    said.iter().for_each(|said| signs(said, 1));
    signal(what, processes.0[victim].id());
    let limit = Instant::now() + END;
    let mut told = Vec::new();
    for (rank, (child, said)) in processes.0.iter_mut().zip(&said).enumerate() {
        if rank == victim {
            continue;
        }
        let status = ended(child, limit).unwrap_or_else(|| panic!("rank {rank} still runs"));
        let said: Vec<String> = said.iter().collect();
        assert_eq!(status.code(), Some(1), "rank {rank}: {said:?}");
        told.push(said.join("\n"));
    }
    assert!(!folder.path("out").exists(), "half a result");
    told
}

#[test]
fn all_survivors_name_a_killed_process() {
    for (rank, said) in survivors("ring-killed", 4, 2, "-KILL").iter().enumerate() {
        assert!(said.contains("error: rank 2 at step") && said.contains("Closed"), "{rank}: {said}");
    }
}

#[test]
fn all_survivors_name_a_stopped_process() {
    for (rank, said) in survivors("ring-stopped", 3, 1, "-STOP").iter().enumerate() {
        assert!(said.contains("error: rank 1 at step") && said.contains("Silent"), "{rank}: {said}");
    }
}

/// Under a launcher, which gets one of its ranks killed or stopped: what it and the others say.
fn launched(name: &str, ranks: usize, victim: usize, what: &str) -> String {
    let folder = Folder::new(name);
    let place = |rank: usize| -> PathBuf { folder.path(&format!("pid-{rank}")) };
    let script = format!("echo $$ > {}-$RANK; exec \"$@\"", folder.path("pid").display());
    let program = command().get_program().to_owned();
    let launcher = command()
        .args(["launch", "-n", &ranks.to_string(), "--grace", "1", "--", "sh", "-c", &script, "sh"])
        .arg(program)
        .args(long(&folder))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a launcher");
    let mut launcher = Processes(vec![launcher]);
    let said = lines(&mut launcher.0[0]);
    signs(&said, ranks);
    let pid = |rank: usize| fs::read_to_string(place(rank)).expect("a pid").trim().parse::<u32>().expect("a number");
    let pids: Vec<u32> = (0..ranks).map(pid).collect();
    assert!(pids.iter().all(|pid| lives(*pid)), "the operation is too short for this test");
    signal(what, pids[victim]);
    let limit = Instant::now() + END;
    let status = ended(&mut launcher.0[0], limit).expect("the launcher still runs");
    assert_eq!(status.code(), Some(1));
    for (rank, pid) in pids.iter().enumerate() {
        assert!(!lives(*pid), "rank {rank} lives");
    }
    said.iter().collect::<Vec<_>>().join("\n")
}

#[test]
fn a_launcher_leaves_nothing_of_ranks_of_which_one_was_killed() {
    let said = launched("ring-launch-killed", 4, 1, "-KILL");
    assert!(said.contains("rank 1 failed") || said.contains("rank 1 at step"), "{said}");
}

#[test]
fn a_launcher_leaves_nothing_of_ranks_of_which_one_was_stopped() {
    let said = launched("ring-launch-stopped", 2, 0, "-STOP");
    assert!(said.contains("error: rank 0 at step") && said.contains("rank 1 failed"), "{said}");
}
