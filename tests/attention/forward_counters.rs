//! What the forward kernel costs, as the emulator counts it.

use super::forward_case::{ALL, Case, Data, Out, run};
use half::bf16;
use lookback_suite::counters::Counters;

fn counted(case: &Case) -> Option<Counters> {
    let data = Data::new::<bf16>(case, 1);
    Counters::of(|| drop(run::<bf16>(case, &data)))
}

/// Keys that queries `rows` see at least one of, by tiles of `keys`: for masks of one interval that moves with the row.
fn tiles_of(case: &Case, rows: std::ops::Range<usize>) -> usize {
    let (m, n, keys) = (case.query_len as i64, case.key_len as i64, case.tile()[1] as i64);
    let rows = rows.start as i64..(rows.end as i64).min(m);
    let far = |reach: i32| if reach == ALL { 1 << 40 } else { i64::from(reach) };
    let seen = rows.map(|i| {
        let p = i + n - m;
        ((p - far(case.left)).max(0), (p + far(case.right) + 1).min(n))
    });
    let seen: Vec<(i64, i64)> = seen.filter(|(lo, hi)| lo < hi).collect();
    let (Some(lo), Some(hi)) = (seen.iter().map(|s| s.0).min(), seen.iter().map(|s| s.1).max()) else { return 0 };
    ((hi + keys - 1) / keys - lo / keys) as usize
}

/// Tiles by warps of the whole launch, and by blocks.
fn tiles(case: &Case) -> [usize; 2] {
    let block = case.tile()[0];
    [block / 4, block].map(|rows| {
        let of = |at| tiles_of(case, at..at + rows);
        case.batch * case.heads * (0..case.query_len).step_by(rows).map(of).sum::<usize>()
    })
}

fn cases() -> Vec<Case> {
    let causal = Case { group: 2, padding: false, ..Case::causal(256, 384, 2, 128, 128) };
    vec![
        Case { right: ALL, ..causal.clone() },
        Case { left: 70, batch: 2, ..causal.clone() },
        Case { head_dim: 64, value_dim: 64, kt: 64, vt: 64, out: Out::F32, ..causal.clone() },
        Case { head_dim: 256, value_dim: 256, kt: 256, vt: 256, heads: 1, group: 1, query_len: 128, ..causal.clone() },
        Case { head_dim: 192, kt: 192, heads: 1, group: 1, ..causal.clone() },
        causal,
    ]
}

/// Every tile that some row of a warp sees is multiplied by that warp, and nothing else.
#[test]
fn forward_multiplies_what_is_seen() {
    for case in cases().into_iter().chain([Case::causal(300, 170, 1, 96, 96), Case::causal(70, 333, 2, 192, 192)]) {
        let Some(counted) = counted(&case) else { return };
        let [block, keys] = case.tile();
        let products = tiles(&case)[0] * (block / 64) * (keys / 8) * (case.kt + case.vt) / 16;
        assert_eq!(counted.number("tensor_flops"), products as u64 * 4096, "{case:?}");
    }
}

/// Of a triangle the tiles cover little more than its pairs.
#[test]
fn forward_causal_wastes_little() {
    let case = Case::causal(768, 768, 1, 64, 64);
    let Some(counted) = counted(&case) else { return };
    let pairs = 768 * 769 / 2;
    let need = pairs * 2 * (64 + 64);
    let done = counted.number("tensor_flops");
    assert!(done >= need && done * 10 <= need * 11, "{done} for {need}");
}

#[test]
fn forward_moves_what_its_tiling_says() {
    for case in cases() {
        let Some(counted) = counted(&case) else { return };
        let what = format!("{case:?}");
        let rows = case.batch * case.query_len * case.heads;
        let keys = case.batch * case.key_len * case.key_heads();
        let size = if case.out == Out::Same { 2 } else { 4 };
        let (q, o) = (rows * 2 * case.head_dim, rows * (size * case.value_dim + 4));
        let tile = case.tile()[1] * 2 * (case.head_dim + case.value_dim);
        assert_eq!(counted.number("async_copy_bytes"), (q + tiles(&case)[1] * tile) as u64, "{what}");
        assert_eq!(counted.number("global_stores/bytes"), o as u64, "{what}");
        let ideal = counted.number("global_loads/ideal_sectors");
        assert_eq!(counted.number("global_loads/sectors"), ideal, "{what}");
        // The window leaves keys out at the start.
        let seen = if case.left == ALL {
            keys
        } else {
            keys - case.batch * case.key_heads() * 128.min(case.key_len - case.query_len - case.left as usize) / 64 * 64
        };
        counted.assert_streams(&what, (q + o + seen * 2 * (case.head_dim + case.value_dim)) as u64);
    }
}

/// Instructions of a warp for one more tile of keys, and whether it is one that needs dressing.
fn of_a_tile(case: &Case, is_dressed: bool) -> Option<u64> {
    let count = |tiles: usize| {
        let key_len = case.query_len + tiles * case.tile()[1];
        let key_mask = if is_dressed { vec![1; key_len] } else { Vec::new() };
        counted(&Case { key_len, key_mask, ..case.clone() }).map(|c| c.number("warp_instructions"))
    };
    let warps = 4 * case.query_len / case.tile()[0];
    Some((count(4)? - count(2)?) / (2 * warps as u64))
}

/// What issues them is the second limit after the tensor cores, which a product keeps busy for about six cycles of a scheduler. A tile in the middle of a causal
/// mask costs no more than one without a mask.
#[test]
fn forward_instructions_stay_few() {
    for (kt, vt, most) in [
        (32, 32, 625),
        (64, 64, 760),
        (96, 96, 870),
        (128, 128, 1005),
        (192, 128, 700),
        (192, 192, 475),
        (256, 256, 550),
    ] {
        let case = Case::new(128, 128, 1, kt, vt);
        let Some(plain) = of_a_tile(&case, false) else { return };
        assert!(plain <= most, "{kt} {vt}: {plain} instructions, more than {most}");
        let causal = of_a_tile(&Case { right: 0, ..case.clone() }, false).unwrap_or(u64::MAX);
        assert!(causal <= plain + 20, "{kt} {vt}: {causal} instructions of a causal tile, {plain} of a full one");
        // A cap is a matter of products alone where nothing is hidden.
        let capped = of_a_tile(&Case { softcap: 20.0, ..case.clone() }, false).unwrap_or(u64::MAX);
        let scores = (case.tile()[0] * case.tile()[1] / 128) as u64;
        assert!(capped <= plain + 5 * scores + 40, "{kt} {vt}: {capped} instructions with a cap, {plain} without");
        let dressed = of_a_tile(&case, true).unwrap_or(0);
        assert!(dressed > plain * 5 / 4, "{kt} {vt}: {dressed} instructions for a bitmap, {plain} without");
    }
}
