//! Merging of states against the oracle.

use super::merge_case::{CASE, Case, Data, assert_lse, check, run};
use half::{bf16, f16};
use lookback_attention::merge::{Inputs, Options, Outputs, Plan, Raw, Shape, StateStride, Strides, merge_states};
use lookback_device::{
    DType, Element, Error,
    cudarc::driver::{DevicePtr, DevicePtrMut},
    strided::Stride,
};
use lookback_reference::attention::state::{State, merge, merge_pair};
use lookback_suite::{
    buffer::{Guarded, download, upload, upload_as},
    counters::Switch,
    device,
    measure::{assert_close, errors, gate},
    random::{Random, round},
};

#[test]
fn merge_matches_the_oracle_for_every_pair_of_types() {
    for (states, value_dim) in [(1, 8), (2, 64), (4, 96), (5, 128), (9, 130)] {
        let case = Case { states, value_dim, empty_every: 4, ..CASE };
        check::<f32, f32>(&case);
        check::<f32, f16>(&Case { sink: true, ..case.clone() });
        check::<f32, bf16>(&case);
        check::<f16, f16>(&case);
        check::<bf16, bf16>(&Case { sink: true, ..case.clone() });
        check::<f16, f32>(&Case { accumulate: true, ..case.clone() });
        check::<bf16, f32>(&Case { accumulate: true, sink: true, ..case });
    }
}

#[test]
fn merge_matches_the_oracle_for_every_width() {
    // Less than an access, a tail, one access a lane, several.
    for value_dim in [1, 2, 3, 4, 7, 12, 31, 33, 100, 256, 300, 516] {
        let case = Case { value_dim, batch: 1, heads: 2, tokens: 3, ..CASE };
        check::<f32, f32>(&Case { accumulate: true, ..case.clone() });
        check::<bf16, bf16>(&case);
    }
    // More rows than a block has teams, the last block with a rest.
    check::<f32, f32>(&Case { tokens: 11, heads: 13, value_dim: 20, states: 2, ..CASE });
}

#[test]
fn merge_matches_the_oracle_for_every_layout() {
    for (gap, shift) in [(8, 0), (4, 0), (3, 0), (0, 1), (8, 8), (5, 3)] {
        check::<f32, f32>(&Case { gap, shift, empty_every: 5, accumulate: true, ..CASE });
        check::<bf16, bf16>(&Case { gap, shift, sink: true, ..CASE });
        check::<f32, bf16>(&Case { gap, shift, ..CASE });
        let starts = Some(vec![0, 2, 2, 3, 7, 9]);
        check::<f16, f32>(&Case { gap, shift, batch: 1, states: 9, starts, ..CASE });
    }
}

/// All states the same for every head, `lse` as given.
fn column<T: Element>(lse: &[f64], running: Option<f64>, value_dim: usize) -> (Case, Data) {
    let case =
        Case { states: lse.len(), batch: 1, tokens: 1, heads: 1, value_dim, accumulate: running.is_some(), ..CASE };
    let mut data = case.data::<T>(7);
    data.lse = lse.to_vec();
    data.lse_out = vec![running.unwrap_or(0.0)];
    for (s, lse) in lse.iter().enumerate() {
        if *lse == f64::NEG_INFINITY {
            data.o[s * value_dim..][..value_dim].fill(f64::NAN);
        }
    }
    if running == Some(f64::NEG_INFINITY) {
        data.out.fill(f64::NAN);
    }
    (case, data)
}

fn column_is_right<T: Element, U: Element>(lse: &[f64], running: Option<f64>) {
    let (case, data) = column::<T>(lse, running, 24);
    let ((out, got), (want, want_lse)) = (run::<T, U>(&case, &data), case.oracle(&data));
    let what = format!("{} to {} {lse:?} {running:?}", T::DTYPE, U::DTYPE);
    assert_lse(&what, &got, &want_lse);
    assert_close(&what, &out, &want, 24, gate(U::DTYPE));
    let there: Vec<usize> = (0..lse.len()).filter(|s| lse[*s] != f64::NEG_INFINITY).collect();
    if running.is_none() && there.len() == 1 {
        // What is alone comes out as it went in.
        assert_eq!(got[0], lse[there[0]], "{what}");
        let alone = &data.o[there[0] * 24..][..24];
        assert!(out.iter().zip(alone).all(|(a, b)| *a == round::<U>(*b)), "{what}");
    }
    if running.unwrap_or(f64::NEG_INFINITY) == f64::NEG_INFINITY && there.is_empty() {
        assert!(out.iter().all(|v| *v == 0.0) && got[0] == f64::NEG_INFINITY, "{what}: {out:?} {got:?}");
    }
}

#[test]
fn merge_every_combination_of_empty_states_is_exact() {
    let none = f64::NEG_INFINITY;
    for bits in 0..8_u32 {
        for scale in [1.0, 1e4, -1e4] {
            let lse: Vec<f64> =
                (0..3).map(|s| if bits >> s & 1 == 1 { round::<f32>(scale + f64::from(s)) } else { none }).collect();
            column_is_right::<f32, f32>(&lse, None);
            column_is_right::<f16, f16>(&lse, None);
            column_is_right::<bf16, f32>(&lse, None);
            column_is_right::<f32, bf16>(&lse, None);
            column_is_right::<bf16, f32>(&lse[1..], Some(lse[0]));
            column_is_right::<f32, f32>(&lse[..1], Some(lse[2]));
        }
    }
    column_is_right::<f32, f32>(&[], None);
    column_is_right::<f32, f32>(&[], Some(3.5));
}

#[test]
fn merge_magnitudes_and_distances_do_not_overflow() {
    for base in [0.0, 25.0, -25.0, 1e4, -1e4] {
        for distance in [0.0, 1e-3, 17.0, 88.0, 200.0, 2e4] {
            for (a, b) in [(0.0, distance), (distance, 0.0)] {
                let lse = [a, b].map(|d| round::<f32>(base + d));
                column_is_right::<f32, f32>(&lse, None);
                column_is_right::<f32, f32>(&lse[1..], Some(lse[0]));
                column_is_right::<bf16, bf16>(&[lse[0], f64::NEG_INFINITY, lse[1], lse[0]], None);
                column_is_right::<f16, f32>(&[f64::NEG_INFINITY, lse[1], lse[0]], Some(lse[1]));
                let (case, mut data) = column::<f32>(&lse[..1], None, 24);
                let case = Case { sink: true, ..case };
                data.sink = vec![lse[1]];
                let ((out, got), (want, want_lse)) = (run::<f32, f32>(&case, &data), case.oracle(&data));
                assert_lse("sink", &got, &want_lse);
                // An average that a sink leaves nothing of is small, not zero, in the oracle.
                assert!(out.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 5e-6 * b.abs() + 1e-37), "{lse:?}");
            }
        }
    }
}

#[test]
fn merge_nan_and_infinite_lse_show() {
    for bad in [f64::NAN, f64::INFINITY] {
        for at in 0..3 {
            let mut lse = [1.0, 2.0, 3.0];
            lse[at] = bad;
            let (case, data) = column::<f32>(&lse, None, 8);
            let (out, got) = run::<f32, f32>(&case, &data);
            assert!(out.iter().chain(&got).all(|v| v.is_nan()), "{lse:?}: {out:?} {got:?}");
            let (case, data) = column::<f32>(&lse[..2], Some(lse[2]), 8);
            let (out, got) = run::<f32, f32>(&case, &data);
            assert!(out.iter().chain(&got).all(|v| v.is_nan()), "{lse:?} running: {out:?} {got:?}");
        }
    }
    // An element that is NaN stays alone.
    let (case, mut data) = column::<f32>(&[1.0, 2.0], None, 8);
    data.o[3] = f64::NAN;
    let (out, got) = run::<f32, f32>(&case, &data);
    assert!(out.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 3)) && !got[0].is_nan(), "{out:?}");
}

#[test]
fn merge_tokens_with_any_number_of_states() {
    for starts in [vec![0, 0, 0, 0], vec![0, 1, 5, 5], vec![0, 4, 4, 11], vec![3, 3, 9, 11]] {
        let case =
            Case { batch: 1, tokens: 3, states: 11, value_dim: 40, starts: Some(starts), empty_every: 3, ..CASE };
        check::<f32, f32>(&case);
        check::<f16, f32>(&Case { accumulate: true, ..case.clone() });
        check::<bf16, bf16>(&Case { sink: true, ..case });
    }
}

#[test]
fn merge_hostile_starts_stay_within_the_states() {
    for starts in [vec![-5, 3, 900, i32::MAX], vec![i32::MIN, -1, 2, 2], vec![9, 4, 1, 0], vec![900, 901, 902, -7]] {
        let case = Case { batch: 1, tokens: 3, states: 5, starts: Some(starts), ..CASE };
        check::<f32, f32>(&case);
    }
}

#[test]
fn merge_part_of_the_tokens_of_running_states() {
    for (before, after) in [(4, 0), (0, 4), (3, 1)] {
        let case = Case { before, after, states: 1, accumulate: true, ..CASE };
        check::<bf16, f32>(&case);
        check::<f32, f32>(&Case { gap: 3, ..case.clone() });
        check::<f32, f32>(&Case { accumulate: false, states: 2, ..case });
    }
}

#[test]
fn merge_sixty_four_pieces_are_as_good_as_one() {
    let (pieces, rows, dv) = (64, 6, 32);
    let mut random = Random::new(64);
    let case = Case { states: pieces, batch: 1, tokens: rows, heads: 1, value_dim: dv, ..CASE };
    let data = case.data::<bf16>(64);
    let (want, want_lse) = case.oracle(&data);
    let (once, _) = run::<bf16, f32>(&case, &data);
    // In an order of its own, pairwise in place, from states of no keys on.
    let mut order: Vec<usize> = (0..pieces).collect();
    (1..pieces).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let pair = Case { states: 1, accumulate: true, ..case.clone() };
    let (mut out, mut lse) = (vec![0.0; rows * dv], vec![f64::NEG_INFINITY; rows]);
    for piece in order {
        let part = Data {
            o: data.o[piece * rows * dv..][..rows * dv].to_vec(),
            lse: data.lse[piece * rows..][..rows].to_vec(),
            sink: vec![],
            out,
            lse_out: lse,
        };
        (out, lse) = run::<bf16, f32>(&pair, &part);
    }
    assert_lse("64 pieces", &lse, &want_lse);
    let of = |out: &[f64]| errors(out, &want, dv).expect("finite").rel;
    assert!(of(&out) < 2e-6 && of(&once) < 1e-6, "{} in 64 pieces, {} in one launch", of(&out), of(&once));
}

#[test]
fn merge_oracles_of_two_and_of_many_agree() {
    let mut random = Random::new(5);
    let state = |random: &mut Random| State { o: random.normals::<f32>(4), lse: random.uniform(-9.0, 9.0) };
    let states: Vec<State> = (0..5).map(|_| state(&mut random)).collect();
    let folded = states.iter().skip(1).fold(states[0].clone(), |a, b| merge_pair(&a, b));
    let all = merge(&states, 4);
    assert!((folded.lse - all.lse).abs() < 1e-12);
    assert!(folded.o.iter().zip(&all.o).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn merge_same_bits_under_every_schedule() {
    let case = Case { tokens: 40, heads: 7, states: 6, accumulate: true, sink: true, empty_every: 5, ..CASE };
    let data = case.data::<bf16>(3);
    let first = run::<bf16, f32>(&case, &data);
    for (order, residency, quantum) in [("inorder", "1", "7"), ("reversed", "3", "20000"), ("random:1", "5", "50")] {
        let _order = Switch::set("order", order, "inorder");
        let _residency = Switch::set("residency", residency, "auto");
        let _quantum = Switch::set("quantum", quantum, "20000");
        assert_eq!(run::<bf16, f32>(&case, &data), first, "{order}, {residency} resident");
    }
    let _lanes = Switch::set("convergence", "random:3", "natural");
    assert_eq!(run::<bf16, f32>(&case, &data), first, "lanes that part");
}

#[test]
fn merge_nothing_is_nothing() {
    for case in [Case { tokens: 0, ..CASE }, Case { batch: 0, ..CASE }, Case { heads: 0, ..CASE }] {
        check::<f32, f32>(&case);
        check::<f32, f32>(&Case { accumulate: true, ..case });
    }
    // No states: every row is of no keys, or of the sink alone.
    check::<f32, f32>(&Case { states: 0, ..CASE });
    check::<bf16, bf16>(&Case { states: 0, sink: true, ..CASE });
}

#[test]
fn merge_into_new_memory() {
    let case = Case { sink: true, ..CASE };
    let data = case.data::<f16>(1);
    let (o, lse, sink) = (upload_as::<f16>(&data.o), upload_as::<f32>(&data.lse), upload_as::<f32>(&data.sink));
    let (out, lse_out) = merge_states(&device::stream(), &o, &lse, Some(&sink), (3, 2, 5, 3, 64)).unwrap();
    let (want, want_lse) = case.oracle(&data);
    let read: Vec<f64> = download(&out).into_iter().map(f64::from).collect();
    assert_close("merge_states", &read, &want, 64, gate(DType::F16));
    assert_lse("merge_states", &download(&lse_out).into_iter().map(f64::from).collect::<Vec<_>>(), &want_lse);
}

#[test]
fn merge_bad_calls_are_refused() {
    let info = device::info();
    let dense = Shape::dense(2, 2, 4, 3, 8);
    let f32s = Options::new(DType::F32);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { states: 1 << 40, ..dense }, f32s), Error::Range { arg: "states", .. }));
    assert!(matches!(refused(Shape { batch: 1 << 17, ..dense }, f32s), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { tokens: 1 << 40, ..dense }, f32s), Error::Range { arg: "tokens", .. }));
    assert!(matches!(refused(Shape { value_dim: 0, ..dense }, f32s), Error::Range { arg: "value_dim", .. }));
    assert!(matches!(refused(Shape { out_tokens: 3, ..dense }, f32s), Error::Range { arg: "out_tokens", .. }));
    assert!(matches!(refused(Shape { first_token: 1, ..dense }, f32s), Error::Range { arg: "first_token", .. }));
    assert!(matches!(refused(Shape { ragged: true, ..dense }, f32s), Error::Range { arg: "batch", .. }));
    let huge = Shape { tokens: 1 << 20, heads: 1 << 20, out_tokens: 1 << 20, ..dense };
    assert!(matches!(refused(huge, f32s), Error::Range { arg: "tokens heads", .. }));
    let mixed = Options { out: DType::F16, ..Options::new(DType::Bf16) };
    assert!(matches!(refused(dense, mixed), Error::Dtype { arg: "out", .. }));
    let narrow = Options { accumulate: true, ..Options::new(DType::Bf16) };
    assert!(matches!(refused(dense, narrow), Error::Dtype { arg: "out", want: DType::F32, .. }));
    let backwards = StateStride { state: -192, within: Stride { batch: 96, token: 24, head: 8 } };
    let strides = Strides { o: Some(backwards), ..Strides::default() };
    assert!(matches!(refused(Shape { strides, ..dense }, f32s), Error::Layout { arg: "o", .. }));
    let strides = Strides { lse_out: Some(Stride { batch: 1, token: 1, head: 1 }), ..Strides::default() };
    assert!(matches!(refused(Shape { strides, ..dense }, f32s), Error::Layout { arg: "lse_out", .. }));
    let strides = Strides { out: Some(Stride { batch: 96, token: 23, head: 8 }), ..Strides::default() };
    assert!(matches!(refused(Shape { strides, ..dense }, f32s), Error::Layout { arg: "out", .. }));

    let (o, lse) = (upload_as::<f32>(&[1.0; 384]), upload_as::<f32>(&[1.0; 48]));
    let (short, words) = (upload_as::<f32>(&[1.0; 2]), upload(&[0_i32; 5]));
    let mut out = Guarded::<f32>::poisoned(192, 0);
    let mut lse_out = Guarded::<f32>::poisoned(24, 0);
    let inputs = Inputs { o: &o, lse: &lse, starts: None, sink: None };
    let plan = Plan::new(&dense, &f32s, &info).unwrap();
    let named = |plan: &Plan, inputs: &Inputs<'_, f32>, out: &mut Guarded<f32>, lse: Option<&mut Guarded<f32>>| {
        let (mut view, mut lse_view) = (out.view_mut(), lse.map(|l| l.view_mut()));
        let lse = lse_view.as_mut().map(|l| l as &mut dyn DevicePtrMut<f32>);
        match plan.run(&device::stream(), inputs, Outputs { out: &mut view, lse }) {
            Err(Error::Shape { arg, .. } | Error::Dtype { arg, .. }) => arg,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(named(&plan, &Inputs { o: &short, ..inputs }, &mut out, None), "o");
    assert_eq!(named(&plan, &Inputs { lse: &short, ..inputs }, &mut out, None), "lse");
    assert_eq!(named(&plan, &Inputs { sink: Some(&short), ..inputs }, &mut out, None), "sink");
    assert_eq!(named(&plan, &Inputs { starts: Some(&words), ..inputs }, &mut out, None), "starts");
    assert_eq!(named(&plan, &inputs, &mut Guarded::poisoned(191, 0), None), "out");
    assert_eq!(named(&plan, &inputs, &mut out, Some(&mut Guarded::poisoned(23, 0))), "lse_out");
    let running = Plan::new(&dense, &Options::accumulate(DType::F32), &info).unwrap();
    assert_eq!(named(&running, &inputs, &mut out, None), "lse_out");
    let ragged = Plan::new(&Shape::ragged(8, 5, 3, 8), &f32s, &info).unwrap();
    assert_eq!(named(&ragged, &inputs, &mut out, None), "starts");
    assert_eq!(named(&ragged, &Inputs { starts: Some(&words), ..inputs }, &mut out, None), "starts");
    let halves = Plan::new(&dense, &Options::new(DType::F16), &info).unwrap();
    assert_eq!(named(&halves, &inputs, &mut out, None), "o");

    let stream = device::stream();
    let raw = Raw { o: o.device_ptr(&stream).0, lse: lse.device_ptr(&stream).0, ..Raw::default() };
    let (mut out_view, mut lse_view) = (out.view_mut(), lse_out.view_mut());
    let raw = Raw { out: out_view.device_ptr_mut(&stream).0, lse_out: lse_view.device_ptr_mut(&stream).0, ..raw };
    // SAFETY: the host refuses each call before any launch.
    let error = |raw: Raw| unsafe { plan.run_raw(&stream, &raw) }.unwrap_err();
    assert!(matches!(error(Raw { out: raw.o + 1532, ..raw }), Error::Alias { a: "out", b: "o", .. }));
    assert!(matches!(error(Raw { lse_out: raw.out, ..raw }), Error::Alias { .. }));
    assert!(matches!(error(Raw { sink: raw.lse_out, ..raw }), Error::Alias { a: "lse_out", b: "sink", .. }));
    assert!(matches!(error(Raw { o: raw.o + 2, ..raw }), Error::Align { arg: "o", .. }));
    assert!(matches!(error(Raw { lse: 0, ..raw }), Error::Align { arg: "lse", .. }));
    device::finish();
    assert!(out.read().iter().chain(&lse_out.read()).all(|v| v.is_nan()), "nothing may be written on an error");
}
