//! The sanitizer against a slow model that keeps a clock for every thread and every access ever made.
//!
//! On random programs the sanitizer must never find a race that the model does not. It may miss a few percent, because
//! of its approximations: reads between the first and the latest one, and lanes that acquired different things.

use super::*;

const CTAS: u32 = 3;
const WARPS: u32 = 2;
const THREADS: usize = (CTAS * WARPS * 32) as usize;
const MASKS: [u32; 5] = [ALL, ALL, 1, 2, 0xFF];

/// Not good, but the same everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % u64::from(sides)) as u32
    }
}

type Clock = Vec<u32>;

fn join(clock: &mut Clock, other: &Clock) {
    for (mine, theirs) in clock.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

#[derive(Clone)]
struct Past {
    thread: usize,
    time: u32,
    write: bool,
}

/// Exact happens-before.
struct Model {
    clocks: Vec<Clock>,
    fences: Vec<Option<Clock>>,
    seen: Vec<Option<Clock>>,
    flags: Vec<Option<Clock>>,
    history: std::collections::HashMap<u64, Vec<Past>>,
}

impl Model {
    fn new() -> Self {
        let clocks = (0..THREADS)
            .map(|thread| {
                let mut clock = vec![0; THREADS];
                clock[thread] = 1;
                clock
            })
            .collect();
        let none = || vec![None; THREADS];
        Self { clocks, fences: none(), seen: none(), flags: vec![None; 4], history: Default::default() }
    }

    /// An access by a thread at each of some places; true if it races with none before it.
    fn access(&mut self, who: &[(usize, u64)], write: bool) -> bool {
        let free = self.may_access(who, write);
        for &(thread, place) in who {
            let time = self.clocks[thread][thread];
            self.history.entry(place).or_default().push(Past { thread, time, write });
        }
        free
    }

    fn may_access(&self, who: &[(usize, u64)], write: bool) -> bool {
        who.iter().all(|(thread, place)| {
            self.history.get(place).into_iter().flatten().all(|before| {
                let apart = !(before.write || write) || before.thread / 32 == thread / 32;
                apart || before.time <= self.clocks[*thread][before.thread]
            })
        })
    }

    fn tick(&mut self, thread: usize) {
        self.clocks[thread][thread] += 1;
    }

    fn meet(&mut self, threads: &[usize]) {
        let mut all = vec![0; THREADS];
        for &thread in threads {
            join(&mut all, &self.clocks[thread]);
        }
        for &thread in threads {
            self.clocks[thread].clone_from(&all);
            self.tick(thread);
        }
    }

    fn fence(&mut self, thread: usize) {
        if let Some(seen) = self.seen[thread].take() {
            join(&mut self.clocks[thread], &seen);
        }
        self.fences[thread] = Some(self.clocks[thread].clone());
        self.tick(thread);
    }

    fn write_flag(&mut self, thread: usize, flag: usize, release: bool, modify: bool) {
        let published = if release { Some(self.clocks[thread].clone()) } else { self.fences[thread].clone() };
        let before = self.flags[flag].take().filter(|_| modify);
        self.flags[flag] = match (before, published) {
            (Some(mut before), Some(published)) => {
                join(&mut before, &published);
                Some(before)
            }
            (before, published) => before.or(published),
        };
        self.tick(thread);
    }

    fn read_flag(&mut self, thread: usize, flag: usize, acquire: bool) {
        let Some(published) = self.flags[flag].clone() else { return };
        if acquire {
            join(&mut self.clocks[thread], &published);
        } else {
            join(self.seen[thread].get_or_insert_with(|| vec![0; THREADS]), &published);
        }
    }
}

fn threads(who: Agent, mask: u32) -> Vec<usize> {
    let first = ((who.cta * WARPS + who.warp) * 32) as usize;
    (0..32).filter(|lane| mask >> lane & 1 == 1).map(|lane| first + lane).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Silent,
    Found,
    Missed,
}

/// One random program, until the first race. Most accesses that would race are left out, so that programs get long.
fn play(seed: u64) -> Outcome {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1);
    let mut scene = Scene::new(CTAS, WARPS);
    let mut model = Model::new();
    let data = scene.data;
    let words = |lanes: &[usize], first: u64| -> Vec<(usize, u64)> {
        lanes.iter().map(|thread| (*thread, first + (thread % 32) as u64)).collect()
    };
    for cta in 0..CTAS {
        scene.shared(agent(cta, 0), ALL, Kind::Store, 0, 16, 1).unwrap();
        model.access(&words(&threads(agent(cta, 0), ALL), u64::from(cta) << 32), true);
        scene.barrier(cta, 0, WARPS);
        let all: Vec<usize> = (0..WARPS).flat_map(|warp| threads(agent(cta, warp), ALL)).collect();
        model.meet(&all);
    }
    for step in 0..300 {
        let who = agent(dice.roll(CTAS), dice.roll(WARPS));
        let mask = MASKS[dice.roll(5) as usize];
        let lanes = threads(who, mask);
        let line = 100 + step;
        let action = dice.roll(12);
        let (free, found) = match action {
            0..5 => {
                let kind = if dice.roll(2) == 0 { Kind::Store } else { Kind::Load };
                let place = u64::from(dice.roll(8));
                let shared = action == 4;
                let first = if shared { u64::from(who.cta) << 32 } else { 1 << 40 | (64 * place) };
                let touched = words(&lanes, first);
                if !model.may_access(&touched, kind == Kind::Store) && dice.roll(50) != 0 {
                    continue;
                }
                let found = if shared {
                    scene.shared(who, mask, kind, 0, 16, line)
                } else {
                    scene.global(who, mask, kind, data + 4096 + 256 * place, 4, line)
                };
                (model.access(&touched, kind == Kind::Store), found)
            }
            5 => {
                scene.sanitizer.warp_sync(who, mask);
                model.meet(&lanes);
                (true, Ok(()))
            }
            6 => {
                scene.barrier(who.cta, dice.roll(2), WARPS);
                let all: Vec<usize> = (0..WARPS).flat_map(|warp| threads(agent(who.cta, warp), ALL)).collect();
                model.meet(&all);
                (true, Ok(()))
            }
            7 => {
                scene.sanitizer.fence(who, mask, Scope::Gpu);
                lanes.iter().for_each(|thread| model.fence(*thread));
                (true, Ok(()))
            }
            kind => {
                // One lane signals; strong accesses to flags race with nothing but are part of the history.
                let lane = mask & mask.wrapping_neg();
                let thread = threads(who, lane)[0];
                let flag = dice.roll(4) as usize;
                let place = data + 64 * flag as u64;
                let strong = dice.roll(2) == 0;
                let (order, kind) = match kind {
                    8..10 => (if strong { Order::Acquire } else { Order::Relaxed }, Kind::Load),
                    10 => (if strong { Order::Release } else { Order::Relaxed }, Kind::Store),
                    _ => (if strong { Order::AcquireRelease } else { Order::Relaxed }, Kind::Atomic),
                };
                let found = scene.signal(who, lane, kind, (order, Scope::Gpu), place, line);
                if kind.reads() {
                    model.read_flag(thread, flag, strong);
                }
                if kind.writes() {
                    model.write_flag(thread, flag, strong, kind == Kind::Atomic);
                }
                (true, found)
            }
        };
        match (free, found) {
            (true, Ok(())) => {}
            (true, Err(violation)) => panic!("seed {seed} step {step}: false alarm: {violation}"),
            (false, Err(_)) => return Outcome::Found,
            (false, Ok(())) => return Outcome::Missed,
        }
    }
    Outcome::Silent
}

#[test]
fn random_programs_agree_with_the_model() {
    let (mut found, mut missed, mut silent) = (0, 0, 0);
    for seed in 0..2000 {
        match play(seed) {
            Outcome::Found => found += 1,
            Outcome::Missed => missed += 1,
            Outcome::Silent => silent += 1,
        }
    }
    println!("{found} races found, {missed} missed, {silent} programs without");
    assert!(found > 500 && silent > 100, "the programs prove nothing: {found} races, {silent} without");
    assert!(missed * 25 < found, "{missed} of {} races missed", found + missed);
}
