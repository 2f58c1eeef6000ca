//! The kernels of `tests/kernels`, each with data, a launch and the expected result.

use crate::harness::{Arg, Machine};
use lookback_emulator::launch::{Fault, Options};

/// A kernel and how to run it.
pub struct Scenario {
    pub name: &'static str,
    pub text: &'static str,
    /// Runs a text, the kernel's own or a changed one. A wrong result panics.
    pub run: fn(&str, &Options) -> Result<(), Fault>,
    /// All CTAs have to be resident at once.
    pub whole_grid_resident: bool,
}

macro_rules! scenario {
    ($name:ident, $resident:expr) => {
        Scenario {
            name: stringify!($name),
            text: include_str!(concat!("../kernels/", stringify!($name), ".ptx")),
            run: $name,
            whole_grid_resident: $resident,
        }
    };
}

pub const SCENARIOS: [Scenario; 10] = [
    scenario!(pipeline, false),
    scenario!(reduce, false),
    scenario!(lookback, false),
    scenario!(handoff, false),
    scenario!(grid_barrier, true),
    scenario!(histogram, false),
    scenario!(transpose, false),
    scenario!(segments, false),
    scenario!(phases, false),
    scenario!(fragments, false),
];

/// The scenario of that name.
pub fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap_or_else(|| panic!("no kernel {name}"))
}

fn pipeline(text: &str, options: &Options) -> Result<(), Fault> {
    const ROWS: usize = 150;
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..ROWS as u32 * 4).map(|i| i * i + 1).collect();
    let out = machine.uninitialized(64 * 16);
    let args = [Arg::U64(machine.words(&input)), Arg::U64(out), Arg::U32(3), Arg::U32(ROWS as u32)];
    machine.run(1, 64, &args, options)?;
    let expected: Vec<u32> = (0..64 * 4)
        .map(|i| {
            let (row, column) = (63 - i / 4, i % 4);
            (0..3).map(|tile| input.get((tile * 64 + row) * 4 + column).copied().unwrap_or(0)).sum()
        })
        .collect();
    assert_eq!(machine.read(out, 64 * 4), expected);
    Ok(())
}

fn reduce(text: &str, options: &Options) -> Result<(), Fault> {
    const COUNT: usize = 150;
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..COUNT).map(|i| (i as f32 + 1.0).to_bits()).collect();
    let out = machine.uninitialized(3 * 4);
    let args = [Arg::U64(machine.words(&input)), Arg::U64(out), Arg::U32(COUNT as u32)];
    machine.run(3, 64, &args, options)?;
    let sum = |range: std::ops::Range<usize>| range.map(|i| i as f32 + 1.0).sum::<f32>().to_bits();
    assert_eq!(machine.read(out, 3), [sum(0..64), sum(64..128), sum(128..150)]);
    Ok(())
}

fn lookback(text: &str, options: &Options) -> Result<(), Fault> {
    prefix_sum(text, 6, options)
}

/// The look-back kernel on that many tiles.
pub fn prefix_sum(text: &str, tiles: usize, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..tiles as u32 * 32).map(|i| i * 3 + 1).collect();
    let out = machine.uninitialized(tiles * 128);
    let args = [
        Arg::U64(machine.words(&input)),
        Arg::U64(out),
        Arg::U64(machine.zeros(1)),
        Arg::U64(machine.zeros(tiles)),
        Arg::U64(machine.uninitialized(tiles * 8)),
    ];
    machine.run(tiles as u32, 32, &args, options)?;
    let mut sum = 0;
    let expected: Vec<u32> = input
        .iter()
        .map(|value| {
            sum += value;
            sum
        })
        .collect();
    assert_eq!(machine.read(out, tiles * 32), expected);
    Ok(())
}

fn handoff(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let out = machine.uninitialized(128);
    machine.run(1, 64, &[Arg::U64(out), Arg::U32(3)], options)?;
    let expected: Vec<u32> = (0..32).map(|lane| (0..3).map(|round| 31 - lane + 100 * round).sum()).collect();
    assert_eq!(machine.read(out, 32), expected);
    Ok(())
}

fn grid_barrier(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let out = machine.uninitialized(16);
    let args = [Arg::U64(machine.uninitialized(16)), Arg::U64(machine.zeros(1)), Arg::U64(out)];
    machine.run(4, 32, &args, options)?;
    assert_eq!(machine.read(out, 4), [1 + 8 + 15 + 22; 4]);
    Ok(())
}

fn histogram(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..256).map(|i| i * i / 3).collect();
    let out = machine.zeros(8);
    machine.run(4, 64, &[Arg::U64(machine.words(&input)), Arg::U64(out)], options)?;
    let expected: Vec<u32> = (0..8).map(|bin| input.iter().filter(|value| **value & 7 == bin).count() as u32).collect();
    assert_eq!(machine.read(out, 8), expected);
    Ok(())
}

fn transpose(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let input: Vec<u32> = (1000..1256).collect();
    let out = machine.uninitialized(1024);
    machine.run(1, 256, &[Arg::U64(machine.words(&input)), Arg::U64(out)], options)?;
    let expected: Vec<u32> = (0..256).map(|i| 1000 + (i % 32) * 8 + i / 32).collect();
    assert_eq!(machine.read(out, 256), expected);
    Ok(())
}

fn segments(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..32).map(|i| i * i).collect();
    let out = machine.uninitialized(16);
    machine.run(1, 32, &[Arg::U64(machine.words(&input)), Arg::U64(out)], options)?;
    let sum = |range: std::ops::Range<usize>| input[range].iter().sum::<u32>();
    assert_eq!(machine.read(out, 4), [sum(0..16), sum(16..32), 8, 8]);
    Ok(())
}

fn phases(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let input: Vec<u32> = (0..128).map(|i| i * i).collect();
    let out = machine.uninitialized(256);
    machine.run(1, 64, &[Arg::U64(machine.words(&input)), Arg::U64(out)], options)?;
    let expected: Vec<u32> = (0..64).map(|i| input[63 - i] + input[127 - i]).collect();
    assert_eq!(machine.read(out, 64), expected);
    Ok(())
}

fn fragments(text: &str, options: &Options) -> Result<(), Fault> {
    let machine = Machine::new(text);
    let a = |row: usize, k: usize| ((row * 5 + k * 3) % 17) as f32 - 8.0;
    let b = |k: usize, column: usize| ((k * 7 + column * 2) % 13) as f32 - 6.0;
    let halves = |value: f32| half::f16::from_f32(value).to_le_bytes();
    let bytes_a: Vec<u8> = (0..256).flat_map(|i| halves(a(i / 16, i % 16))).collect();
    let bytes_b: Vec<u8> = (0..128).flat_map(|i| halves(b(i / 8, i % 8))).collect();
    let out = machine.uninitialized(512);
    let args = [Arg::U64(machine.bytes(&bytes_a)), Arg::U64(machine.bytes(&bytes_b)), Arg::U64(out)];
    machine.run(1, 64, &args, options)?;
    let expected: Vec<u32> =
        (0..128).map(|i| (0..16).map(|k| a(i / 8, k) * b(k, i % 8)).sum::<f32>().to_bits()).collect();
    assert_eq!(machine.read(out, 128), expected);
    Ok(())
}
