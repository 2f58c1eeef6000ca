//! Whole steps, from lengths to outputs, against loops in f64.

use super::case::{Case, Data, Kind, On, Tables};
use half::{bf16, f16};
use lookback_decode::{CacheType, Options, Output, Scales, Tuning, lean_decode};
use lookback_device::{DType, Error};
use lookback_suite::{
    buffer::download,
    device,
    measure::{Gate, assert_close},
    random::round,
};

fn kinds() -> [(Kind, bool); 7] {
    [
        (Kind::Dense(300), false),
        (Kind::Dense(200), true),
        (Kind::Ragged, false),
        (Kind::Paged(1), false),
        (Kind::Paged(3), true),
        (Kind::Paged(16), true),
        (Kind::Paged(64), false),
    ]
}

#[test]
fn lean_decode_caches_of_every_kind_and_any_lengths() {
    for (kind, heads_first) in kinds() {
        // The same lengths, different ones, none and one.
        for keys in [vec![130, 130], vec![200, 1, 0, 65], vec![0, 0]] {
            Case { kind, heads_first, ..Case::new(&keys) }.check();
        }
    }
}

#[test]
fn lean_decode_caches_of_8_bits() {
    for (scales, (kind, heads_first)) in [Scales::Tensor, Scales::Head, Scales::Token].into_iter().zip(&kinds()[3..]) {
        for dtype in [DType::F16, DType::Bf16] {
            let cache = CacheType::E4m3(scales);
            let (kind, heads_first) = (*kind, *heads_first);
            Case { cache, dtype, kind, heads_first, ..Case::new(&[150, 0, 33]) }.check();
        }
    }
    for (kind, heads_first) in [(Kind::Dense(150), true), (Kind::Ragged, false)] {
        let cache = CacheType::E4m3(Scales::Token);
        Case { cache, kind, heads_first, query_len: 3, ..Case::new(&[150, 33]) }.check();
    }
}

#[test]
fn lean_decode_heads_groups_and_widths() {
    for (heads, key_heads, head_dim, value_dim) in [
        (1, 1, 8, 8),
        (7, 1, 40, 64),
        (16, 2, 128, 128),
        (6, 3, 64, 128),
        (20, 1, 72, 24),
        (2, 1, 256, 160),
        (34, 1, 64, 64),
    ] {
        let case = Case { heads, key_heads, head_dim, value_dim, ..Case::new(&[100, 7]) };
        case.check();
        Case { dtype: DType::F16, kind: Kind::Paged(16), ..case }.check();
    }
}

#[test]
fn lean_decode_several_queries_are_causal() {
    for (kind, query_len, keys) in
        [(Kind::Dense(80), 5, [80, 3, 5]), (Kind::Paged(16), 40, [130, 39, 0]), (Kind::Ragged, 2, [1, 2, 3])]
    {
        let case = Case { kind, query_len, ..Case::new(&keys) };
        case.check();
        Case { left: Some(9), sink_tokens: 2, ..case.clone() }.check();
        let packed = Some(vec![query_len, 0, query_len / 2]);
        Case { packed, tuning: Tuning { rows: Some(16), ..Tuning::default() }, ..case }.check();
    }
}

#[test]
fn lean_decode_windows_caps_slopes_and_sinks() {
    let long = Case { kind: Kind::Paged(16), ..Case::new(&[700, 64, 0]) };
    for (left, sink_tokens) in [(Some(0), 0), (Some(63), 4), (Some(64), 70), (Some(300), 1), (Some(5000), 9), (None, 9)]
    {
        Case { left, sink_tokens, ..long.clone() }.check();
    }
    let dressed = Case { softcap: Some(1.5), alibi: true, sink: true, ..long };
    dressed.check();
    Case { left: Some(100), sink_tokens: 3, query_len: 4, cache: CacheType::E4m3(Scales::Head), ..dressed }.check();
}

#[test]
fn lean_decode_lists_name_the_keys() {
    for entries in [1, 64, 100, 300] {
        let case = Case { list: Some(entries), kind: Kind::Paged(16), ..Case::new(&[300, 0, 40]) };
        case.check();
        Case { left: Some(90), sink_tokens: 3, query_len: 2, alibi: true, ..case }.check();
    }
}

#[test]
fn lean_decode_any_number_of_blocks_cuts_the_same_work() {
    let keys = [700, 1, 0, 130, 64];
    let tiles = 2 * (11 + 1 + 1 + 3 + 1);
    for slots in [1, 2, 3, 7, tiles, 1000] {
        let case = Case { kind: Kind::Paged(3), dtype: DType::F16, ..Case::new(&keys) };
        case.slots(slots).min_tiles(1).check();
    }
}

#[test]
fn lean_decode_logits_by_key_and_by_entry() {
    for kind in [Kind::Dense(130), Kind::Ragged, Kind::Paged(16)] {
        let case = Case { kind, logits: Some(130), softcap: Some(2.0), alibi: true, ..Case::new(&[130, 0, 70]) };
        case.check();
        Case { left: Some(30), sink_tokens: 2, query_len: 3, ..case.clone() }.check();
        Case { packed: Some(vec![2, 0, 3]), query_len: 3, sink: true, ..case.clone() }.check();
        Case { list: Some(67), logits: Some(67), ..case }.check();
    }
}

#[test]
fn lean_decode_states_in_f32_are_not_rounded() {
    let case = Case { kind: Kind::Paged(16), ..Case::new(&[150, 0, 70]) }.slots(3).min_tiles(1);
    let tables = Tables::new(&case);
    let data = Data::new::<bf16>(&case, &tables);
    let on = On::<bf16>::new(&case, &tables, &data);
    let options = Options { output: Output::F32, ..case.options() };
    let got = lean_decode::<bf16, f32>(&device::stream(), &case.shape(&tables), &options, &on.inputs()).expect("good");
    let read = |slice| download(slice).into_iter().map(f64::from).collect::<Vec<_>>();
    let (o, want) = (read(&got.o), data.oracle(&case, &tables));
    assert_close("o in f32", &o, &want.o, case.value_dim, Gate::BF16);
    assert_close("lse", &read(&got.lse), &want.lse, case.heads, Gate::F32);
    let rounded = lean_decode::<bf16, bf16>(&device::stream(), &case.shape(&tables), &case.options(), &on.inputs());
    let rounded: Vec<f64> = download(&rounded.expect("good").o).into_iter().map(f64::from).collect();
    assert_eq!(o.iter().map(|o| round::<bf16>(*o)).collect::<Vec<_>>(), rounded);
    let wrong = lean_decode::<bf16, bf16>(&device::stream(), &case.shape(&tables), &options, &on.inputs());
    assert!(matches!(wrong, Err(Error::Dtype { arg: "o", want: DType::F32, .. })), "{wrong:?}");
}

/// What a request's keys give is what two caches of half of them each give, merged.
#[test]
fn lean_decode_halves_of_a_cache_merge() {
    let case = Case { kind: Kind::Paged(16), dtype: DType::F16, ..Case::new(&[150, 70]) };
    let tables = Tables::new(&case);
    let data = Data::new::<f16>(&case, &tables);
    let options = Options { output: Output::F32, ..case.options() };
    let part = |first: bool| {
        let mut part = tables.clone();
        part.kv_len = if first { vec![64, 64] } else { vec![150 - 64, 70 - 64] };
        if !first {
            // Both tables without their first four pages.
            let indices = part.kv_indices.as_mut().expect("a table");
            let starts = part.kv_indptr.clone().expect("starts");
            let kept = [4..starts[1] as usize, starts[1] as usize + 4..starts[2] as usize];
            let kept: Vec<i32> = kept.into_iter().flatten().map(|at| indices[at]).collect();
            part.kv_indptr = Some(vec![0, starts[1] - 4, starts[2] - 8]);
            indices[..kept.len()].copy_from_slice(&kept);
        }
        let on = On::<f16>::new(&case, &part, &data);
        let got = lean_decode::<f16, f32>(&device::stream(), &case.shape(&part), &options, &on.inputs()).expect("good");
        let read = |slice| download(slice).into_iter().map(f64::from).collect::<Vec<_>>();
        (read(&got.o), read(&got.lse))
    };
    let ((mut o, lse), (other, other_lse)) = (part(true), part(false));
    for (row, o) in o.chunks_exact_mut(case.value_dim).enumerate() {
        let weight = 1.0 / (1.0 + (lse[row] - other_lse[row]).exp());
        o.iter_mut().zip(&other[row * case.value_dim..]).for_each(|(o, other)| *o += weight * (other - *o));
    }
    assert_close("merged halves", &o, &data.oracle(&case, &tables).o, case.value_dim, Gate::F16);
}
