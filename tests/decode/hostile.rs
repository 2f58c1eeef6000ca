//! Lengths and tables that lead outside: nothing is followed, what they name is left out, the rest is right, and the status says so.

use super::case::{Case, Data, Kind, On, Tables};
use half::bf16;
use lookback_decode::{CacheType, Scales};
use lookback_device::Error;
use lookback_suite::device;

/// Runs with spoilt tables, on the tensors of good ones, beside the oracle with the spoilt ones. Outputs of queries that no request
/// claims are not written.
fn hostile(case: &Case, arg: &str, spoil: &dyn Fn(&mut Tables)) {
    let good = Tables::new(case);
    let mut data = Data::new::<bf16>(case, &good);
    let mut tables = good;
    spoil(&mut tables);
    // Keys that only spoilt tables reach are no poison: they are somebody else's.
    for values in [&mut data.k, &mut data.v, &mut data.k_scale, &mut data.v_scale] {
        values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.015625);
    }
    let mut on = On::<bf16>::new(case, &tables, &data);
    let mut got = on.run();
    match &got.status {
        Err(Error::Masked { arg: a, .. }) => assert_eq!(*a, arg, "{tables:?}"),
        other => panic!("{other:?} of {tables:?}"),
    }
    assert!(on.plan.status(&device::stream(), &mut on.schedule).is_ok(), "told once");
    let mut want = data.oracle(case, &tables);
    let attention = tables.reference(case);
    let claimed = |token: usize| (0..case.keys.len()).any(|b| attention.queries(b, case.tokens()).contains(&token));
    let width = case.heads * case.value_dim;
    for token in (0..case.tokens()).filter(|token| !claimed(*token)) {
        let row = token * width..(token + 1) * width;
        assert!(got.o[row.clone()].iter().all(|o| o.is_nan()), "token {token} of nobody is written: {tables:?}");
        got.o[row.clone()].fill(0.0);
        want.o[row].fill(0.0);
        let row = token * case.heads..(token + 1) * case.heads;
        got.lse[row.clone()].fill(0.0);
        want.lse[row].fill(0.0);
    }
    case.compare(&got, &want);
}

#[test]
fn lean_decode_pages_outside_are_left_out() {
    let base = Case { kind: Kind::Paged(16), ..Case::new(&[150, 70, 3]) }.slots(4).min_tiles(1);
    for cache in [CacheType::Same, CacheType::E4m3(Scales::Token)] {
        for page in [-1, 19, i32::MAX, i32::MIN, 1 << 30] {
            for at in [0, 4, 9, 10, 14, 15] {
                let case = Case { cache, query_len: 2, ..base.clone() };
                hostile(&case, "kv_indices", &|t| t.kv_indices.as_mut().expect("a table")[at] = page);
            }
        }
    }
    hostile(&base, "kv_indices", &|t| t.kv_indices.as_mut().expect("a table").fill(-1));
}

#[test]
fn lean_decode_lengths_and_starts_outside_are_clamped() {
    let base = Case { query_len: 2, ..Case::new(&[150, 70, 3]) };
    for kind in [Kind::Dense(160), Kind::Ragged, Kind::Paged(16)] {
        let case = Case { kind, ..base.clone() };
        for length in [-1, i32::MIN, i32::MAX, 1 << 28] {
            hostile(&case, "kv_len", &|t| t.kv_len[1] = length);
        }
    }
    for kind in [Kind::Ragged, Kind::Paged(16)] {
        let case = Case { kind, ..base.clone() };
        for entry in [-1, 1 << 30, i32::MAX, i32::MIN] {
            // Who has no keys left is told first.
            hostile(&case, "kv_len", &|t| t.kv_indptr.as_mut().expect("starts")[2] = entry);
        }
    }
    let packed = Case { packed: Some(vec![2, 1, 2]), ..base };
    for (at, entry) in [(1, -1), (1, 9), (2, 5), (3, i32::MIN), (3, i32::MAX)] {
        hostile(&packed, "cu_seqlens_q", &|t| t.cu_seqlens_q.as_mut().expect("starts")[at] = entry);
    }
}

#[test]
fn lean_decode_list_entries_outside_are_left_out() {
    let case = Case { list: Some(60), kind: Kind::Paged(16), ..Case::new(&[150, 70, 3]) };
    for position in [150, i32::MAX, 1 << 28] {
        hostile(&case, "list", &|t| t.list.as_mut().expect("lists").0[7] = position);
        hostile(&case, "list", &|t| t.list.as_mut().expect("lists").0[60 * 4] = position);
    }
    for length in [-3, 61, i32::MAX] {
        hostile(&case, "list_len", &|t| t.list.as_mut().expect("lists").1[0] = length);
    }
    // Below zero names nobody, and is nobody's fault.
    let mut tables = Tables::new(&case);
    tables.list.as_mut().expect("lists").0[..30].fill(i32::MIN);
    let data = Data::new::<bf16>(&case, &tables);
    case.check_data::<bf16>(&tables, &data);
}

/// A table that changes after the schedule was made is read as it is then.
#[test]
fn lean_decode_tables_may_change_after_the_schedule() {
    let case = Case { kind: Kind::Paged(16), ..Case::new(&[100, 40]) };
    let tables = Tables::new(&case);
    let data = Data::new::<bf16>(&case, &tables);
    let mut on = On::<bf16>::new(&case, &tables, &data);
    on.schedule();
    let mut spoilt = tables.clone();
    spoilt.kv_indices.as_mut().expect("a table")[3] = 1 << 20;
    let mut other = On::<bf16>::new(&case, &spoilt, &data);
    std::mem::swap(&mut on.schedule, &mut other.schedule);
    let got = other.attend();
    assert!(matches!(got.status, Err(Error::Masked { arg: "kv_indices", .. })), "{:?}", got.status);
    case.compare(&got, &data.oracle(&case, &spoilt));
}
