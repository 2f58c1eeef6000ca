//! What the backward kernels cost, as the emulator counts it.

use super::{
    backward_case::{Backward, Given, run},
    forward_case::{ALL, Case},
};
use half::bf16;
use lookback_attention::backward::Gradient;
use lookback_suite::counters::Counters;

fn counted(backward: &Backward) -> Option<Counters> {
    let given = Given::new::<bf16>(backward, 1);
    Counters::of(|| drop(run::<bf16>(backward, &given)))
}

/// Keys and queries that a warp multiplies at once: of the kernel of keys its own keys and a step's queries, of that of queries the other way.
struct Steps {
    keys: [usize; 2],
    queries: [usize; 2],
}

fn steps(case: &Case, adds: bool) -> Steps {
    let narrow = case.kt <= 64;
    let rows = if case.kt == 256 || (case.kt == 192 && (adds || case.vt == 128)) { 16 } else { 32 };
    Steps { keys: [if narrow { 32 } else { 16 }, rows], queries: [if case.kt <= 128 { 32 } else { 16 }, 32] }
}

/// Pairs of a run of `a` keys and a run of `b` queries, of which one sees one: for masks of one interval.
fn reached(case: &Case, [keys, queries]: [usize; 2]) -> u64 {
    let (m, n) = (case.query_len as i64, case.key_len as i64);
    let far = |reach: i32| if reach == ALL { 1 << 40 } else { i64::from(reach) };
    let sees = |k0: i64, i0: i64| {
        (i0..(i0 + queries as i64).min(m)).any(|i| {
            let p = i + n - m;
            let (lo, hi) =
                ((p - far(case.left)).max(0).max(k0), (p + far(case.right) + 1).min(n).min(k0 + keys as i64));
            lo < hi
        })
    };
    let count = (0..n).step_by(keys).flat_map(|k0| (0..m).step_by(queries).map(move |i0| (k0, i0)));
    count.filter(|(k0, i0)| sees(*k0, *i0)).count() as u64
}

/// Products of 16x8x16: scores and do.v for each pair of runs, then what is summed; dq in the kernel of keys by whole blocks.
fn products(backward: &Backward) -> u64 {
    let case = &backward.case;
    let (kt, vt) = (case.kt as u64 / 16, case.vt as u64 / 16);
    let adds = !backward.deterministic;
    let steps = steps(case, adds);
    let unit = |[a, b]: [usize; 2]| (a * b / 128) as u64;
    let heads = (case.batch * case.heads) as u64;
    let work = |pair: [usize; 2]| reached(case, pair) * unit(pair);
    // Values wider than 128 take a launch each for dk and dv, which both need the scores; only the first adds to dq.
    let of_keys = if case.vt > 128 {
        work(steps.keys) * (2 * kt + vt) + work(self::steps(case, false).keys) * (kt + vt)
    } else {
        work(steps.keys) * 2 * (kt + vt)
    };
    let of_queries = if !adds {
        work(steps.queries) * (2 * kt + vt)
    } else {
        let tile = if case.kt <= 64 { 128 } else { 64 };
        work([tile, steps.keys[1]]) * kt
    };
    heads * (of_keys + of_queries)
}

fn cases() -> Vec<Case> {
    let causal = Case { group: 2, padding: false, ..Case::causal(128, 256, 2, 128, 128) };
    let of = |dim: usize| Case { head_dim: dim, value_dim: dim, kt: dim, vt: dim, ..causal.clone() };
    vec![
        causal.clone(),
        Case { right: ALL, ..of(64) },
        Case { left: 70, batch: 2, ..of(32) },
        of(96),
        Case { kt: 192, head_dim: 192, ..causal.clone() },
        Case { heads: 1, group: 1, ..of(192) },
        Case { heads: 1, group: 1, ..of(256) },
    ]
}

/// Tiles that a warp's keys, or queries, see nothing of are not multiplied.
#[test]
fn backward_multiplies_what_is_seen() {
    for case in cases().into_iter().chain([Case::causal(300, 170, 1, 64, 64), Case::causal(70, 333, 1, 128, 128)]) {
        for deterministic in [true, false] {
            let backward = Backward { deterministic, ..case.clone().into() };
            let Some(counted) = counted(&backward) else { return };
            assert_eq!(counted.number("tensor_flops"), products(&backward) * 4096, "{backward:?}");
        }
    }
}

/// No bank conflicts, whole sectors, and every gradient written once.
#[test]
fn backward_moves_what_its_tiling_says() {
    for case in cases() {
        let backward = Backward { gradient: Gradient::Same, ..case.clone().into() };
        let Some(counted) = counted(&backward) else { return };
        let what = format!("{case:?}");
        let (rows, keys) = (case.batch * case.query_len * case.heads, case.batch * case.key_len * case.key_heads());
        let stored = 2 * (rows * case.head_dim + keys * (case.head_dim + case.value_dim)) + 8 * rows;
        assert_eq!(counted.number("global_stores/bytes"), stored as u64, "{what}");
        let (sectors, ideal) = (counted.number("global_stores/sectors"), counted.number("global_stores/ideal_sectors"));
        // Two numbers of a row are written by the lane that has them.
        assert!(sectors - ideal <= rows as u64, "{what}: {sectors} sectors for {ideal}");
        assert_eq!(counted.number("bank_conflicts"), 0, "{what}");
    }
}

/// Instructions of a step beyond its products and loads of factors: what issues them is a limit after tensor cores and shared memory.
#[test]
fn backward_instructions_stay_few() {
    for (dim, most) in [(64, 6.7), (128, 5.4)] {
        let count = |query_len: usize| {
            let case = Case { padding: false, ..Case::new(query_len, 128, 1, dim, dim) };
            counted(&case.into()).map(|c| [c.number("warp_instructions"), c.number("tensor_flops") / 4096])
        };
        let (Some(few), Some(many)) = (count(128), count(384)) else { return };
        let each = (many[0] - few[0]) as f64 / (many[1] - few[1]) as f64;
        println!("{dim}: {each} instructions a product");
        assert!(each <= most, "{dim}: {each} instructions a product, more than {most}");
    }
}
