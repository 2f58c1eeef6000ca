//! What appending costs, as the emulator counts it.

use super::append_case::{Case, run, slots, turn};
use half::bf16;
use lookback_decode::{
    Cache, Scales,
    append::{Plan, Style},
};
use lookback_device::Element;
use lookback_suite::{counters::Counters, device};

fn case(scales: Option<Scales>) -> Case {
    let tokens = 64;
    Case {
        heads: 8,
        head_dim: 128,
        value_dim: 128,
        cache: Cache::Paged { pages: 16, page_size: 16, table: 16 },
        // All over the pool, each place once.
        slot_map: Some((0..tokens as i64).map(|t| (t * 37) % 256).collect()),
        positions: None,
        tokens,
        scales,
        ..slots()
    }
}

fn streams<T: Element>(case: &Case) {
    let rows = case.new_rows::<T>(1);
    let plan = Plan::new(&case.shape(), &case.options::<T>(), &device::info()).unwrap();
    let Some(counters) = Counters::of(|| drop(run::<T>(case, &rows))) else { return };
    let what = format!("append {} {:?} {:?}", T::DTYPE, case.scales, case.rotary);
    assert_eq!(counters.number("launches"), 1, "{what}");
    let (from, to) = (T::DTYPE.size(), if case.scales.is_none() { T::DTYPE.size() } else { 1 });
    let elements = case.tokens * case.heads * (case.head_dim + case.value_dim);
    let computed = case.scales == Some(Scales::Token);
    let scales = if computed { 8 * case.tokens * case.heads } else { 0 };
    // Rows in, rows out, scales that are computed.
    assert_eq!(plan.bytes_moved(), (elements * (from + to) + scales) as u64, "{what}");
    assert_eq!(counters.number("global_stores/bytes"), (elements * to + scales) as u64, "{what}: stored once");
    assert_eq!(counters.number("global_stores/unique_bytes"), (elements * to + scales) as u64, "{what}");
    // Besides rows: a slot, a position, and given scales.
    let given = match case.scales {
        Some(Scales::Tensor) => 8,
        Some(Scales::Head) => 8 * case.heads,
        _ => 0,
    };
    let small = 8 * case.tokens + if case.rotary.is_some() { 4 * case.tokens } else { 0 } + given;
    assert_eq!(counters.number("global_loads/unique_bytes"), (elements * from + small) as u64, "{what}");
    // No row is asked for twice, not even where its scale is computed first. Every lane of a row asks for the small ones.
    let lanes = case.head_dim / 2 / if from == 4 { 4 } else { 8 };
    let asked = 8 + if case.rotary.is_some() { 4 } else { 0 } + if given > 0 { 4 } else { 0 };
    let all = 2 * case.tokens * case.heads * lanes;
    assert_eq!(counters.number("global_loads/bytes"), (elements * from + asked * all) as u64, "{what}");
    // Rows fill their sectors. A scale is alone in its own: neighbours in memory belong to other tokens.
    let sectors = |kind: &str| counters.number(&format!("{kind}/sectors"));
    assert_eq!(sectors("global_loads"), counters.number("global_loads/ideal_sectors"), "{what}");
    assert_eq!(sectors("global_stores"), (elements * to / 32 + scales / 4) as u64, "{what}");
}

#[test]
fn append_counters_are_at_the_floor() {
    for scales in [None, Some(Scales::Tensor), Some(Scales::Head), Some(Scales::Token)] {
        streams::<bf16>(&case(scales));
        let positions = Some((0..64).collect());
        streams::<bf16>(&Case { rotary: turn(Style::Half, 128), positions, ..case(scales) });
    }
    streams::<f32>(&case(Some(Scales::Token)));
}
