//! Ranks that are processes, of which one kills or stops itself.

use super::{
    threads::meeting,
    walk::{Place, Walk, settled_threads, threads, walks},
};
use lookback_device::{DevicePick, open};
use lookback_ring::{
    Error,
    schedule::Pass,
    transport::{Transport, tcp},
};
use rustix::process::{Signal, getpid, kill_process};
use std::{
    env,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Says to this program that it is a rank, and which one of what.
const VARIABLE: &str = "LOOKBACK_FAULTS_RANK";

/// What a rank does to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Kill,
    Stop,
}

impl Act {
    /// That ranks wait for each other: as long as the busiest machine needs, or several times what starting to walk takes.
    fn timeout(self) -> Duration {
        if self == Self::Kill { Duration::from_secs(30) } else { Duration::from_secs(2) }
    }

    /// What survivors call it.
    fn fault(self) -> &'static str {
        if self == Self::Kill { "Closed" } else { "Silent" }
    }
}

struct Trial {
    /// Number of the walk among all.
    walk: usize,
    place: Place,
    act: Act,
}

fn all_walks() -> Vec<Walk> {
    walks(&[Pass::Forward])
}

pub fn is_child() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// One rank: walks, and says what it was told: the rank that failed, how, after how many milliseconds, and its threads before and after.
pub fn child() {
    let text = env::var(VARIABLE).expect("words");
    let (folder, numbers) = text.split_once('|').expect("a folder");
    let numbers: Vec<usize> = numbers.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [walk, rank, culprit, step, stops] = numbers[..] else { panic!("{text}") };
    let (walk, act) = (all_walks()[walk], if stops == 1 { Act::Stop } else { Act::Kill });
    let context = open(DevicePick::Emulated).expect("the emulator");
    let stream = context.new_stream().expect("a stream");
    let before = threads();
    let mut end = tcp(&meeting(Path::new(folder), rank, walk.ranks, 1, act.timeout())).expect("all come");
    // One that has heard of all others may be gone before they have heard of it.
    let met = end.all_gather(&[], 0);
    let began = Instant::now();
    let walked = |_| {
        walk.run(&mut end, &stream, |at, _| {
            if rank == culprit && at == step {
                let signal = if act == Act::Kill { Signal::KILL } else { Signal::STOP };
                kill_process(getpid(), signal).expect("a signal");
            }
            Ok(())
        })
    };
    let done = met.and_then(walked);
    let took = began.elapsed();
    drop(end);
    let after = settled_threads(before);
    match done {
        Err(Error::Peer { rank, fault, .. }) => println!("{rank} {fault:?} {} {before} {after}", took.as_millis()),
        other => println!("{other:?}"),
    }
}

/// Processes of a trial, none of which outlives it.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(trial: &Trial, folder: &Path) {
    let Trial { walk: number, place, act } = trial;
    let walk = all_walks()[*number];
    let what = format!("{walk:?}, {place:?}: {act:?}");
    let start = |rank: usize| {
        let stops = u8::from(*act == Act::Stop);
        let words = format!("{}|{number} {rank} {} {} {stops}", folder.display(), place.rank, place.step);
        let program = env::current_exe().expect("this program");
        Command::new(program).env(VARIABLE, words).stdout(Stdio::piped()).spawn().expect("a process")
    };
    let mut ranks = Processes((0..walk.ranks).map(start).collect());
    let limit = Instant::now() + act.timeout() * 2 + Duration::from_secs(20);
    for (rank, child) in ranks.0.iter_mut().enumerate().filter(|(rank, _)| *rank != place.rank) {
        while child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < limit, "{what}: rank {rank} hangs");
            thread::sleep(Duration::from_millis(5));
        }
        let mut said = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut said).expect("words");
        let words: Vec<&str> = said.split_whitespace().collect();
        let [culprit, fault, took, before, after] = words[..] else { panic!("{what}: rank {rank}: {said}") };
        assert_eq!((culprit, fault), (&*place.rank.to_string(), act.fault()), "{what}: rank {rank}");
        // Those who see that a connection has ended do not wait.
        let most = if *act == Act::Kill { act.timeout() / 3 } else { 2 * act.timeout() };
        let took: u128 = took.parse().expect("milliseconds");
        assert!(took < most.as_millis(), "{what}: rank {rank} took {took} ms");
        assert_eq!(before, after, "{what}: rank {rank} has threads left");
    }
}

/// All places, as many at once as the waiting allows.
fn all(act: Act, at_once: usize) -> usize {
    let walks = all_walks().into_iter().enumerate();
    let trials = walks.flat_map(|(walk, of)| of.places().into_iter().map(move |place| Trial { walk, place, act }));
    let trials: Vec<Trial> = trials.collect();
    let (next, folder) = (AtomicUsize::new(0), env::temp_dir().join(format!("lookback-faults-{}", std::process::id())));
    let first_panic = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < trials.len()) {
                    let own: PathBuf = folder.join(at.to_string());
                    if let Err(why) = std::panic::catch_unwind(|| run(&trials[at], &own)) {
                        first_panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
                        next.store(trials.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    std::fs::remove_dir_all(folder).expect("a folder");
    if let Some(why) = first_panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        std::panic::resume_unwind(why);
    }
    trials.len()
}

/// By a signal that cannot be caught.
pub fn killed() -> usize {
    all(Act::Kill, 4)
}

/// By a signal after which a process is there and does nothing.
pub fn stopped() -> usize {
    all(Act::Stop, 40)
}
