//! The walk and the fix-up of lean decoding with nothing to compute: integer maps, which do not commute, against a loop.

use super::layout::{self, Row};
use cudarc::driver::{CudaSlice, DevicePtr};
use lookback_device::launch;
use lookback_kernels::{args::LeanProtocol, find};
use lookback_reference::lean_decode::schedule::{Cut, Schedule};
use lookback_suite::{
    buffer::{download, upload},
    counters::Switch,
    device,
    random::Random,
};
use std::collections::BTreeMap;

/// Words of a tile.
const WORDS: usize = 128;

/// A schedule of rows with these tiles, cut for exactly `blocks` blocks where there are so many tiles.
pub fn cut(counts: &[u64], blocks: u64) -> Schedule {
    Schedule::from_counts(counts, &Cut { rows: 16, tile: 64, slots: blocks, min_tiles: 1 })
}

/// A map `carry -> p carry + l`, and a sum.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    p: u32,
    l: u32,
    f: f32,
}

const NOTHING: State = State { p: 1, l: 0, f: 0.0 };

impl State {
    /// First this, then `next`.
    fn then(self, next: Self) -> Self {
        let l = next.p.wrapping_mul(self.l).wrapping_add(next.l);
        Self { p: self.p.wrapping_mul(next.p), l, f: self.f + next.f }
    }
}

pub struct Data {
    x: Vec<u32>,
    f: Vec<f32>,
}

impl Data {
    pub fn new(tiles: u64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let words = tiles as usize * WORDS;
        let x = (0..words).map(|_| random.below(u32::MAX as usize) as u32).collect();
        Self { x, f: (0..words).map(|_| random.normal() as f32).collect() }
    }

    fn tile(&self, t: u64, word: usize) -> State {
        let at = t as usize * WORDS + word;
        State { p: self.x[at] | 1, l: self.x[at], f: self.f[at] }
    }

    /// What one word of a row comes to: blocks fold their tiles, and their parts are folded in the order of blocks.
    fn want(&self, schedule: &Schedule, row: u64, word: usize) -> State {
        let (first, end) = (schedule.prefix[row as usize], schedule.prefix[row as usize + 1]);
        schedule.contributors(row).fold(NOTHING, |sum, c| {
            let tiles = schedule.begin(c).max(first)..schedule.begin(c + 1).min(end);
            sum.then(tiles.fold(NOTHING, |part, t| part.then(self.tile(t, word))))
        })
    }
}

/// The fix-up on the host, blocks' segments in any order that keeps each block's own: who finds all others counted folds.
#[test]
fn fixup_is_exact_in_every_order_of_blocks() {
    let mut random = Random::new(1);
    for case in 0..4000_u64 {
        let rows = 1 + random.below(6);
        let counts: Vec<u64> = (0..rows).map(|_| [0, 1, 2, 3, 5, 17, 40][random.below(7)]).collect();
        let total: u64 = counts.iter().sum();
        let blocks = [1, 2, 3, 7, total.max(1), total + 5][random.below(6)];
        let schedule = cut(&counts, blocks);
        let data =
            Data { x: (0..total as u32).map(|t| t.wrapping_mul(0x9e37_79b9) ^ case as u32).collect(), f: vec![] };
        let state = |t: u64| State { p: data.x[t as usize] | 1, l: data.x[t as usize], f: 0.0 };
        let mut left: Vec<Vec<_>> = (0..schedule.blocks).map(|c| schedule.segments(c)).collect();
        left.iter_mut().for_each(|segments| segments.reverse());
        let (mut slots, mut counters, mut done) = (BTreeMap::new(), vec![0; rows], BTreeMap::new());
        let mut tiles = vec![0; total as usize];
        while left.iter().any(|segments| !segments.is_empty()) {
            let c = random.below(left.len());
            let Some(segment) = left[c].pop() else { continue };
            let first = schedule.prefix[segment.row as usize];
            let part = (first + segment.from..first + segment.to).fold(NOTHING, |part, t| {
                tiles[t as usize] += 1;
                part.then(state(t))
            });
            let Some(slot) = segment.slot else {
                assert!(done.insert(segment.row, part).is_none());
                continue;
            };
            assert!(slot / 2 == c as u64 && slots.insert(slot, part).is_none(), "case {case}: slot {slot} twice");
            let parts = schedule.contributors(segment.row);
            counters[segment.row as usize] += 1;
            if counters[segment.row as usize] == parts.end - parts.start {
                counters[segment.row as usize] = 0;
                let sum = parts.fold(NOTHING, |sum, c| sum.then(slots[&schedule.slot(segment.row, c)]));
                assert!(done.insert(segment.row, sum).is_none());
            }
        }
        assert!(tiles.iter().all(|n| *n == 1) && counters.iter().all(|n| *n == 0), "case {case}");
        for (row, count) in counts.iter().enumerate() {
            let first = schedule.prefix[row];
            let want = (*count > 0).then(|| (first..first + count).fold(NOTHING, |sum, t| sum.then(state(t))));
            assert_eq!(done.get(&(row as u64)).copied(), want, "case {case}: row {row} of {counts:?} in {blocks}");
        }
    }
}

/// Out, sum, finished and used of a launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Result {
    out: Vec<u32>,
    sum: Vec<u32>,
    finished: Vec<u32>,
    used: Vec<u32>,
}

pub fn run(schedule: &Schedule, data: &Data, slots: usize, counters: &CudaSlice<u32>) -> Result {
    let rows = schedule.prefix.len() - 1;
    let words = upload(&layout::words(schedule, &vec![Row::default(); rows], &[[0; 4]; 2], slots));
    let mut random = Random::new(rows as u64);
    // One block in four is slow, before it leaves a part or before it says so, so that later ones overtake it.
    let delays: Vec<u32> = (0..slots).map(|_| [0, 0, 0, 0, 0, 0, 300, 300 << 16][random.below(8)]).collect();
    let (x, f, delays) = (upload(&data.x), upload(&data.f), upload(&delays));
    let partials = upload(&vec![0xdead_beef_u32; 2 * slots * 3 * WORDS]);
    let (out, sum) = (upload(&vec![7_u32; rows * WORDS]), upload(&vec![f32::NAN; rows * WORDS]));
    let (finished, used) = (upload(&vec![0_u32; rows]), upload(&vec![0_u32; 2 * slots]));
    let stream = device::stream();
    let address = |slice: &CudaSlice<u32>| slice.device_ptr(&stream).0;
    let real = |slice: &CudaSlice<f32>| slice.device_ptr(&stream).0;
    let args = LeanProtocol {
        p_schedule: address(&words),
        p_x: address(&x),
        p_f: real(&f),
        p_delays: address(&delays),
        p_partials: address(&partials),
        p_counters: address(counters),
        p_out: address(&out),
        p_sum: real(&sum),
        p_finished: address(&finished),
        p_used: address(&used),
        rows: rows as u32,
        requests: 2,
    };
    let kernel = find("lean_protocol", &[]).expect("it has one variant");
    // SAFETY: all buffers have the extents that the kernel's contract names, and live until their contents are read back.
    unsafe { launch(&stream, kernel, [slots as u32, 1, 1], &args) }.unwrap_or_else(|e| panic!("{e}"));
    device::finish();
    let sum = download(&sum).iter().map(|v| v.to_bits()).collect();
    Result { out: download(&out), sum, finished: download(&finished), used: download(&used) }
}

fn orders() -> Vec<(&'static str, &'static str)> {
    if device::info().emulated {
        vec![
            ("inorder", "auto"),
            ("inorder", "1"),
            ("reversed", "1"),
            ("reversed", "3"),
            ("random:5", "1"),
            ("random:6", "auto"),
        ]
    } else {
        vec![("inorder", "auto")]
    }
}

#[test]
fn protocol_folds_every_row_once_in_the_order_of_blocks() {
    for (counts, slots) in [
        (vec![23, 1, 0, 9, 40], vec![1, 2, 3, 13, 73]),
        (vec![1], vec![1, 4]),
        (vec![0, 5, 0, 0, 5, 0], vec![2, 3, 10]),
        (vec![64], vec![64, 48]),
    ] {
        for slots in slots {
            let schedule = cut(&counts, slots as u64);
            let data = Data::new(schedule.total(), 3);
            let counters = upload(&vec![0_u32; counts.len()]);
            let mut first: Option<Result> = None;
            for (order, residency) in orders() {
                let _order = Switch::set("order", order, "inorder");
                let _residency = Switch::set("residency", residency, "auto");
                let _quantum = Switch::set("quantum", "50", "20000");
                let what = format!("{counts:?} in {slots}, {order}, {residency} resident");
                let result = run(&schedule, &data, slots, &counters);
                check(&what, &schedule, &data, &result);
                assert!(download(&counters).iter().all(|count| *count == 0), "{what}: counters");
                if let Some(first) = &first {
                    assert_eq!(&result, first, "{what}");
                }
                first.get_or_insert(result);
            }
        }
    }
}

fn check(what: &str, schedule: &Schedule, data: &Data, result: &Result) {
    for row in 0..schedule.prefix.len() - 1 {
        let tiles = schedule.prefix[row + 1] - schedule.prefix[row];
        assert_eq!(result.finished[row], u32::from(tiles > 0), "{what}: results of row {row}");
        for word in 0..WORDS {
            let at = row * WORDS + word;
            let want = data.want(schedule, row as u64, word);
            let (l, f) = if tiles > 0 { (want.l, want.f.to_bits()) } else { (7, f32::NAN.to_bits()) };
            assert_eq!((result.out[at], result.sum[at]), (l, f), "{what}: row {row}, word {word}");
        }
    }
    let mut used = vec![0; result.used.len()];
    for c in 0..schedule.blocks {
        for segment in schedule.segments(c) {
            segment.slot.into_iter().for_each(|slot| used[slot as usize] += segment.row as u32 + 1);
        }
    }
    assert_eq!(result.used, used, "{what}: slots");
}
