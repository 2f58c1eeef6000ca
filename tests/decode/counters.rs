//! What a step moves, against what its plan says.

use super::case::{Case, Data, Kind, On, Tables};
use half::bf16;
use lookback_decode::{CacheType, Lengths, Options, Plan, Scales, Schedule, Shape, TILE};
use lookback_suite::{buffer::upload, counters::Counters, device};

/// One block has every row to itself: nothing is handed on.
#[test]
fn lean_decode_moves_what_its_plan_says() {
    let long = Case::new(&[1000, 520]).slots(1);
    for case in [
        Case { kind: Kind::Paged(16), ..long.clone() },
        Case { kind: Kind::Dense(1000), query_len: 4, heads: 8, ..long.clone() },
        Case { kind: Kind::Ragged, left: Some(63), sink_tokens: 64, query_len: 1, ..long.clone() },
        Case { kind: Kind::Paged(64), cache: CacheType::E4m3(Scales::Head), ..long },
    ] {
        let tables = Tables::new(&case);
        let mut on = On::<bf16>::new(&case, &tables, &Data::new::<bf16>(&case, &tables));
        on.schedule();
        let Some(counters) = Counters::of(|| drop(on.attend())) else { return };
        let (moved, said) = (counters.unique_bytes(), on.plan.bytes_moved(&case.keys));
        // Tiles of a window begin where 64 keys do; tables, lengths and the schedule are read besides.
        let window = if case.left.is_some() { 2 * 2 * TILE as u64 * 2 * 64 * 2 * 2 } else { 0 };
        assert!(moved >= said && moved <= said + window + 4096, "{moved} bytes, the plan says {said}: {case:?}");
        // Every row of a cache is asked for once, with its page and scales, which are near.
        let beside = 32 * (case.keys.iter().sum::<usize>() * case.key_heads) as u64;
        let loaded = counters.number("global_loads/bytes");
        assert!(loaded <= said + window + beside, "{loaded} bytes loaded, the plan says {said}: {case:?}");
    }
}

/// The launch once a step: a few words a request, a row and a block.
#[test]
fn lean_plan_moves_words_alone() {
    let (batch, key_heads) = (100, 8);
    let shape = Shape::new(batch, 32, key_heads, 128, lookback_decode::Cache::Dense { capacity: 1 << 20 });
    let plan = Plan::new(&shape, &Options::new::<bf16>(&shape), &device::info()).expect("good");
    let stream = device::stream();
    let mut schedule = Schedule::new(&stream, plan.schedule_bytes()).expect("memory");
    let kv_len = upload(&(0..batch as i32).map(|b| 70_000 + 977 * b).collect::<Vec<_>>());
    let run = || plan.schedule(&stream, &Lengths::dense(&kv_len), &mut schedule).expect("good");
    let Some(counters) = Counters::of(run) else { return };
    let (rows, blocks) = ((batch * key_heads) as u64, u64::from(plan.policy().slots));
    assert_eq!(counters.number("global_stores/bytes"), 16 * (batch as u64 + rows + 1) + 8 * blocks + 20);
    assert_eq!(counters.number("global_stores/unique_bytes"), plan.schedule_bytes() - 64 + 20);
    // Each row reads its request, each block halves the rows until it has found one.
    let halvings = 8 * u64::from(u64::BITS - rows.leading_zeros());
    let loaded = counters.number("global_loads/bytes");
    assert!(loaded <= 4 * batch as u64 + 16 * rows + blocks * halvings, "{loaded}");
    assert_eq!(counters.number("bank_conflicts"), 0);
}
