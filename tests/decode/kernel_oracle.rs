//! The decode kernel against its oracle, launched by hand: every variant, every way to lay a cache out, every mask.

use super::kernel_case::{Case, Factors, Place, check};

#[test]
fn kernel_dense_rows_of_one_and_of_many_blocks() {
    for slots in [1, 3, 5, 12] {
        check(&Case { slots, ..Case::new(128, &[200, 64, 1], 8, 2) });
    }
}

#[test]
fn kernel_every_variant() {
    for e4m3 in [false, true] {
        for (dim, rows) in [(64, 16), (64, 32), (128, 16), (128, 32), (256, 16)] {
            let heads = if rows == 32 { 24 } else { 5 };
            let place = Place::Paged(16);
            let factors = if e4m3 { Factors::Token } else { Factors::None };
            check(&Case { e4m3, rows, place, factors, slots: 4, ..Case::new(dim, &[150, 70], heads, 1) });
        }
    }
}

#[test]
fn kernel_narrow_heads_in_wide_tiles() {
    check(&Case { head_dim: 48, value_dim: 56, ..Case::new(64, &[90], 3, 3) });
    check(&Case { head_dim: 96, value_dim: 72, hnd: true, ..Case::new(128, &[90], 4, 2) });
    check(&Case { head_dim: 80, value_dim: 16, e4m3: true, ..Case::new(128, &[90], 4, 2) });
    check(&Case { head_dim: 192, value_dim: 128, ..Case::new(256, &[130], 2, 1) });
}

#[test]
fn kernel_caches_of_every_layout() {
    let lengths = [131, 0, 17, 64];
    for (place, hnd) in [
        (Place::Dense(140), false),
        (Place::Dense(131), true),
        (Place::Ragged, false),
        (Place::Ragged, true),
        (Place::Paged(1), false),
        (Place::Paged(7), true),
        (Place::Paged(16), true),
        (Place::Paged(64), false),
        (Place::Paged(200), false),
    ] {
        check(&Case { place, hnd, ..Case::new(64, &lengths, 4, 2) });
    }
}

#[test]
fn kernel_e4m3_caches_with_and_without_factors() {
    for factors in [Factors::None, Factors::Tensor, Factors::Token] {
        for (dim, place) in [(64, Place::Paged(16)), (128, Place::Ragged), (256, Place::Dense(80))] {
            check(&Case { e4m3: true, factors, place, slots: 3, ..Case::new(dim, &[77, 20], 4, 2) });
        }
    }
}

#[test]
fn kernel_lengths_around_tiles() {
    for n in [0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129] {
        check(&Case { slots: 2, place: Place::Paged(8), ..Case::new(64, &[n], 2, 1) });
    }
    check(&Case { sink: true, ..Case::new(64, &[0, 5, 0], 2, 1) });
}

#[test]
fn kernel_several_queries_are_right_aligned() {
    for (query_len, kv_len) in [(2, vec![70, 1]), (9, vec![100, 5, 0]), (20, vec![33])] {
        check(&Case { query_len, ..Case::new(64, &kv_len, 6, 2) });
        check(&Case { query_len, rows: 32, e4m3: true, place: Place::Ragged, ..Case::new(64, &kv_len, 6, 2) });
    }
    let packed = Some(vec![3, 0, 7, 1]);
    check(&Case { query_len: 7, packed, place: Place::Paged(16), ..Case::new(64, &[40, 50, 7, 130], 6, 2) });
}

#[test]
fn kernel_windows_and_first_tokens() {
    for (left, first, query_len) in [(0, 0, 1), (20, 0, 1), (100, 4, 1), (30, 70, 3), (65, 1, 9), (64, 300, 2)] {
        let case = Case { left: Some(left), first, query_len, ..Case::new(64, &[300, 90, 12], 4, 2) };
        check(&Case { place: Place::Paged(16), ..case.clone() });
        check(&Case { slots: 13, e4m3: true, sink: true, ..case });
    }
}

#[test]
fn kernel_lists_of_keys_for_each_head() {
    let lists = Some(vec![70, 3, 0, 129, 64, 1]);
    let case = Case { lists, ..Case::new(64, &[200, 80, 140], 4, 2) };
    check(&case);
    check(&Case { place: Place::Paged(8), logits: true, ..case.clone() });
    check(&Case { query_len: 3, left: Some(50), first: 6, place: Place::Ragged, e4m3: true, ..case });
}

#[test]
fn kernel_logits_softcap_slopes_and_sinks() {
    let case = Case { logits: true, place: Place::Paged(16), ..Case::new(64, &[100, 0, 66], 6, 2) };
    check(&case);
    check(&Case { softcap: Some(2.5), ..case.clone() });
    check(&Case { alibi: true, query_len: 3, ..case.clone() });
    check(&Case { sink: true, ..case.clone() });
    let all = Case { softcap: Some(5.0), alibi: true, sink: true, left: Some(40), first: 3, ..case };
    check(&Case { query_len: 4, packed: Some(vec![1, 4, 2]), ..all.clone() });
    check(&Case { e4m3: true, factors: Factors::Token, ..all.clone() });
    check(&Case { logits: false, out_f32: true, ..all });
}

#[test]
fn kernel_groups_fill_one_and_more_tiles_of_rows() {
    for heads in [1, 7, 8, 16, 17, 33] {
        check(&Case { slots: 3, ..Case::new(64, &[70], heads, 1) });
    }
    check(&Case { rows: 32, slots: 3, ..Case::new(128, &[70], 33, 1) });
}
