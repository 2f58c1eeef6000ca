//! What a launch costs besides reading the cache, by its plan and the model of its schedule.

use lookback_decode::{Cache, Options, Plan, Shape, TILE};
use lookback_device::DeviceInfo;
use lookback_reference::lean_decode::schedule::{Cut, Schedule};

use half::bf16;

fn device() -> DeviceInfo {
    DeviceInfo {
        name: "none".into(),
        compute_capability: (9, 0),
        sm_count: 132,
        shared_per_block_optin: 232_448,
        driver_version: 12_000,
        emulated: false,
    }
}

fn plan(batch: usize, heads: usize, key_heads: usize, dim: usize, capacity: usize) -> Plan {
    let shape = Shape::new(batch, heads, key_heads, dim, Cache::Dense { capacity });
    Plan::new(&shape, &Options::new::<bf16>(&shape), &device()).expect("good")
}

/// Schedule of requests with these lengths, one row tile a head.
fn schedule(plan: &Plan, key_heads: usize, lengths: &[usize]) -> Schedule {
    let policy = plan.policy();
    let tiles = lengths.iter().map(|n| n.div_ceil(TILE).max(1) as u64);
    let counts: Vec<u64> = tiles.flat_map(|n| std::iter::repeat_n(n, key_heads)).collect();
    let (slots, min_tiles) = (u64::from(policy.slots), u64::from(policy.min_tiles));
    Schedule::from_counts(&counts, &Cut { rows: policy.rows, tile: TILE, slots, min_tiles })
}

/// Bytes of partial states written and read again: the valid rows of every segment that is not a whole row.
fn handed(schedule: &Schedule, group: usize, value_dim: usize) -> u64 {
    let parts = (0..schedule.blocks).flat_map(|c| schedule.segments(c)).filter(|s| s.slot.is_some()).count() as u64;
    2 * parts * 4 * (group * (value_dim + 2)) as u64
}

#[test]
fn lean_decode_partial_states_are_under_two_percent_at_32k_keys() {
    for (batch, heads, key_heads, dim) in
        [(1, 32, 8, 128), (1, 8, 8, 128), (4, 32, 8, 64), (4, 16, 2, 256), (2, 32, 4, 128)]
    {
        let plan = plan(batch, heads, key_heads, dim, 32_768);
        let lengths = vec![32_768; batch];
        let handed = handed(&schedule(&plan, key_heads, &lengths), heads / key_heads, dim);
        let moved = plan.bytes_moved(&lengths);
        assert!(handed * 50 < moved, "{batch} {heads} {key_heads} {dim}: {handed} bytes handed on of {moved}");
    }
}

#[test]
fn lean_decode_shares_of_any_lengths_differ_by_one_tile() {
    let lengths: Vec<usize> = (0..37).map(|b| [1, 70_000, 513, 0, 4096][b % 5] + b).collect();
    let plan = plan(37, 32, 8, 128, 100_000);
    let schedule = schedule(&plan, 8, &lengths);
    assert_eq!(schedule.blocks, 264, "two blocks for each of 132 multiprocessors");
    let shares: Vec<u64> = (0..264).map(|c| schedule.begin(c + 1) - schedule.begin(c)).collect();
    let (least, most) = (shares.iter().min(), shares.iter().max());
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{shares:?}");
    // Blocks of a fixed split, by request: the longest request's would do this many tiles.
    let tiles: u64 = shares.iter().sum();
    assert!(shares[0] <= tiles / 264 + 1);
}

#[test]
fn lean_decode_memory_does_not_grow_with_the_context() {
    let of = |capacity| {
        let plan = plan(16, 32, 8, 128, capacity);
        (plan.workspace_bytes(), plan.schedule_bytes())
    };
    assert_eq!(of(100), of(1 << 27));
    let (workspace, schedule) = of(1 << 27);
    // Two partial states of 16 rows a block; counters have a sixteenth of all.
    let partials = 2 * 264 * 4 * 16 * 130;
    assert!(workspace >= partials && workspace <= partials * 16 / 15 + 256, "{workspace}");
    assert!(schedule < 8192, "{schedule}");
}

#[test]
fn lean_decode_plans_count_visible_keys() {
    let shape = Shape::new(2, 8, 2, 64, Cache::Dense { capacity: 1000 });
    let options = Options::new::<bf16>(&shape);
    let plan = |options| Plan::new(&shape, &options, &device()).expect("good");
    let vectors = 2 * (2 * 8 * 64 * 2) + 4 * 2 * 8;
    assert_eq!(plan(options).bytes_moved(&[1000, 10]), 1010 * 2 * 64 * 2 * 2 + vectors);
    assert_eq!(plan(options).flops(&[1000, 10]), 2 * 1010 * 8 * 128);
    let windowed = Options { left: Some(99), sink_tokens: 4, ..options };
    assert_eq!(plan(windowed).bytes_moved(&[1000, 10]), (104 + 10) * 2 * 64 * 2 * 2 + vectors);
}
