//! Thousands of inputs that are nearly right, for every reader. `fuzz/` feeds the same functions for hours.

use lookback_hostile::{READERS, Reader, is_ready, mutate::Mutator, seeds};
use std::time::Instant;

/// Inputs of a reader of this name; a command may run a kernel.
fn count(name: &str) -> usize {
    match name {
        "cost" => 1_500,
        "run" => 3_000,
        "ptx" | "contract" => 4_000,
        _ => 10_000,
    }
}

fn feed((name, read): Reader) {
    let seeds = seeds::of(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let began = Instant::now();
    let mut mutator = Mutator::new(1, &seeds::WORDS);
    let (mut taken, mut slowest) = (0, 0.0_f64);
    for _ in 0..count(name) {
        let bytes = mutator.next(&seeds);
        let start = Instant::now();
        taken += usize::from(read(&bytes));
        slowest = slowest.max(start.elapsed().as_secs_f64());
    }
    println!("{name}: {taken} of {} taken, slowest {slowest:.3} s, all {:.1?}", count(name), began.elapsed());
    // Both kinds must come, or the inputs say nothing.
    assert!(taken > 0 && taken < count(name), "{name}: {taken} of {} taken", count(name));
}

/// The reader of that name.
fn reader(name: &str) -> Reader {
    *READERS.iter().find(|(known, _)| *known == name).expect("a reader")
}

#[test]
fn contracts() {
    feed(reader("contract"));
}

#[test]
fn ring_headers_and_costs() {
    feed(reader("frame"));
    feed(reader("cost"));
}

#[test]
fn ptx_modules() {
    feed(reader("ptx"));
}

#[test]
fn commands() {
    assert!(is_ready(), "there is no emulator beside the tests");
    feed(reader("run"));
}

#[test]
fn weights_and_settings() {
    feed(reader("weights"));
    feed(reader("settings"));
}
