//! Appending to caches against the oracle.

use super::append_case::{Case, check, check_rows, dense, paged, ragged, run, slots, turn};
use half::{bf16, f16};
use lookback_decode::{Cache, Scales, append::Style};
use lookback_device::Element;
use lookback_reference::kv_append::{KV_LEN, PAGE, SLOT, STARTS, TOKENS};
use lookback_suite::{counters::Switch, device};

const ALL_SCALES: [Scales; 3] = [Scales::Tensor, Scales::Head, Scales::Token];

#[test]
fn append_matches_the_oracle_for_every_cache_and_place() {
    for case in [paged(), dense(), ragged(), slots()] {
        for heads_first in [false, true] {
            let case = Case { heads_first, ..case.clone() };
            check::<bf16>(&case);
            check::<f16>(&case);
            for scales in ALL_SCALES.map(Some) {
                check::<bf16>(&Case { scales, ..case.clone() });
                check::<f16>(&Case { scales, ..case.clone() });
                check::<f32>(&Case { scales, ..case.clone() });
            }
        }
    }
}

#[test]
fn append_turns_keys() {
    for style in [Style::Half, Style::Interleaved] {
        for rotary_dim in [64, 32, 16, 6, 0] {
            for case in [paged(), dense(), ragged(), slots()] {
                let case = Case { rotary: turn(style, rotary_dim), ..case };
                check::<bf16>(&case);
                check::<f16>(&Case { scales: Some(Scales::Token), ..case.clone() });
                check::<f32>(&Case { scales: Some(Scales::Head), ..case });
            }
        }
        // Positions that are given count, not places.
        let positions = Some(vec![7, 1 << 20, 3, 0, 999_983]);
        check::<bf16>(&Case { rotary: turn(style, 64), positions, ..paged() });
    }
}

#[test]
fn append_takes_any_width_and_layout() {
    for (head_dim, value_dim) in [(1, 2), (7, 5), (8, 16), (80, 80), (96, 40), (128, 128), (192, 128), (576, 512)] {
        for scales in [None, Some(Scales::Head), Some(Scales::Token)] {
            for rotary in [None, turn(Style::Half, head_dim / 2 / 2 * 2), turn(Style::Interleaved, head_dim / 4 * 2)] {
                let case = Case { head_dim, value_dim, heads: 2, scales, rotary, ..paged() };
                check::<bf16>(&case);
            }
            check::<f16>(&Case { head_dim, value_dim, heads: 2, scales, gap: 3, ..dense() });
        }
        let (scales, rotary) = (Some(Scales::Token), turn(Style::Half, head_dim / 2 * 2));
        check::<f32>(&Case { head_dim, value_dim, scales, rotary, ..ragged() });
    }
    for (gap, shift) in [(8, 0), (16, 8), (1, 1), (0, 3), (24, 0)] {
        for scales in [None, Some(Scales::Tensor), Some(Scales::Token)] {
            let case = Case { gap, shift, scales, ..slots() };
            check::<bf16>(&case);
            check::<bf16>(&Case { rotary: turn(Style::Half, 48), slot_map: None, ..case });
        }
    }
}

#[test]
fn append_many_tokens_share_their_angles_among_heads() {
    // So many that a block walks several heads of a token.
    let tokens = 4200;
    let slot_map = (0..tokens as i64).map(|t| (t * 11) % 4201).collect();
    let case = Case {
        heads: 12,
        head_dim: 32,
        value_dim: 16,
        cache: Cache::Ragged { tokens: 4201 },
        slot_map: Some(slot_map),
        positions: Some((0..tokens as i32).collect()),
        tokens,
        rotary: turn(Style::Half, 32),
        ..slots()
    };
    check::<bf16>(&case);
    check::<bf16>(&Case { scales: Some(Scales::Token), ..case });
}

#[test]
fn append_keys_are_those_of_the_rotary_operation() {
    use lookback_nn::rotary::{Inputs, Options, Plan, Shape, Style as NnStyle};
    use lookback_suite::buffer::{download, upload, upload_as};
    for (style, nn_style) in [(Style::Half, NnStyle::Half), (Style::Interleaved, NnStyle::Interleaved)] {
        let case = Case { rotary: turn(style, 32), ..slots() };
        let rows = case.new_rows::<bf16>(3);
        let rotary = case.rotary.expect("turned");
        let options = Options {
            base: rotary.base,
            rotary_dim: 32,
            theta_dim: rotary.theta_dim,
            ..Options::new(bf16::DTYPE, nn_style, 64)
        };
        let plan = Plan::new(&Shape::dense(1, 5, 3, 64), &options, &device::info()).unwrap();
        let (x, positions) = (upload_as::<bf16>(&rows[0]), upload(case.positions.as_ref().expect("given")));
        let mut out = upload_as::<bf16>(&vec![0.0; rows[0].len()]);
        plan.run(
            &device::stream(),
            &x,
            Inputs { positions: Some(&positions), cu_seqlens: None, frequencies: None },
            &mut out,
        )
        .unwrap();
        device::finish();
        let turned: Vec<f64> = download(&out).into_iter().map(f64::from).collect();
        let after = run::<bf16>(&case, &rows);
        for (t, slot) in case.slot_map.as_ref().expect("given").iter().enumerate().filter(|(_, s)| **s >= 0) {
            let (slot, row) = (*slot as usize, 3 * 64);
            assert_eq!(after.k.values[slot * row..][..row], turned[t * row..][..row], "{style:?} token {t}");
        }
    }
}

/// What is left out, and the bits that say so.
fn masks(case: Case, status: u32) {
    for scales in [None, Some(Scales::Token)] {
        let case = Case { scales, ..case.clone() };
        let rows = case.new_rows::<bf16>(1);
        assert_eq!(case.oracle(&rows).0.status, status, "{case:?}: the oracle");
        check_rows::<bf16>(&case, &rows);
    }
}

#[test]
fn append_never_follows_what_leads_outside() {
    masks(Case { slot_map: Some(vec![31, 32, -1, -2, 5]), ..slots() }, SLOT);
    masks(Case { slot_map: Some(vec![i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 3, 0]), ..slots() }, SLOT);
    masks(Case { kv_len: vec![13, 0, 6], ..paged() }, KV_LEN);
    masks(Case { kv_len: vec![1, i32::MIN, i32::MAX], ..paged() }, KV_LEN);
    masks(Case { kv_len: vec![10, -1, 6], ..dense() }, KV_LEN);
    masks(Case { kv_indices: vec![6, 8, -1, 7, 0, 0], ..paged() }, PAGE);
    masks(Case { kv_indices: vec![6, 1, i32::MAX, i32::MIN, 0, 0], ..paged() }, PAGE);
    masks(Case { kv_indptr: vec![0, 3, 3, 7], ..paged() }, STARTS);
    masks(Case { kv_indptr: vec![-1, 3, 3, 5], ..paged() }, STARTS);
    masks(Case { kv_indptr: vec![0, 9, 9, 18], ..ragged() }, STARTS);
    masks(Case { kv_indptr: vec![4, 2, 9, 17], ..ragged() }, STARTS);
    masks(Case { kv_indptr: vec![0, 8, 9, 17], ..ragged() }, KV_LEN);
    masks(Case { cu_seqlens: Some(vec![0, 2, 2, 6]), ..paged() }, TOKENS);
    masks(Case { cu_seqlens: Some(vec![-1, 2, 2, 5]), ..paged() }, TOKENS);
    // Tokens behind the last request, and requests without any, are no mistake.
    masks(Case { cu_seqlens: Some(vec![0, 2, 2, 4]), ..paged() }, 0);
    masks(Case { cu_seqlens: Some(vec![0, 0, 0, 0]), ..paged() }, 0);
    // An empty table.
    let cache = Cache::Paged { pages: 8, page_size: 4, table: 0 };
    masks(Case { cache, kv_indptr: vec![0; 4], kv_indices: vec![], ..paged() }, KV_LEN);
}

#[test]
fn append_nothing_is_nothing() {
    let none = || Case { tokens: 0, slot_map: Some(vec![]), positions: Some(vec![]), ..slots() };
    check::<bf16>(&none());
    check::<f16>(&Case { scales: Some(Scales::Token), rotary: turn(Style::Half, 64), ..none() });
    check::<bf16>(&Case { tokens: 0, cu_seqlens: Some(vec![0; 4]), ..paged() });
    check::<bf16>(&Case { tokens: 0, ..dense() });
    check::<bf16>(&Case { heads: 0, ..paged() });
    let nobody = Case { tokens: 0, kv_len: vec![], cu_seqlens: Some(vec![0]), kv_indptr: vec![0], ..paged() };
    check::<bf16>(&nobody);
}

#[test]
fn append_same_bits_under_every_schedule() {
    let case = Case { scales: Some(Scales::Token), rotary: turn(Style::Interleaved, 32), ..paged() };
    let rows = case.new_rows::<bf16>(2);
    let first = run::<bf16>(&case, &rows);
    for (key, value, default) in [
        ("order", "reversed", "inorder"),
        ("order", "random:5", "inorder"),
        ("quantum", "7", "20000"),
        ("convergence", "random:2", "natural"),
    ] {
        let _switch = Switch::set(key, value, default);
        // NaN marks what is not stored.
        let again = run::<bf16>(&case, &rows);
        assert_eq!((&again.k.codes, &again.v.codes), (&first.k.codes, &first.v.codes), "{key} {value}");
        let bits = |scales: &[f64]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&again.k.scales), bits(&first.k.scales), "{key} {value}");
    }
}
