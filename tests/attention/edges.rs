//! Lengths of nothing and one, logits far out, NaN and infinity.

use super::case::{Case, Computed, Data, run};
use half::{bf16, f16};
use lookback_attention::{Mask, Output};
use lookback_device::DType;
use lookback_suite::random::round;

#[test]
fn attention_lengths_of_nothing_and_one() {
    for queries in [0, 1, 2] {
        for keys in [0, 1, 2] {
            for mask in [Mask::Full, Mask::Causal, Mask::AntiCausal] {
                Case { mask, ..Case::new(DType::F16, 2, queries, keys, 8) }.check();
            }
            Case { sink: true, output: Output::F32, ..Case::new(DType::Bf16, 2, queries, keys, 8) }.check();
        }
    }
}

#[test]
fn attention_no_rows_is_no_work() {
    for case in [
        Case::new(DType::F16, 0, 5, 5, 8),
        Case { heads: 0, key_heads: 0, ..Case::new(DType::F16, 1, 5, 5, 8) },
        Case::new(DType::F16, 3, 0, 5, 8),
    ] {
        let got = run::<f16>(&case, &Data::new::<f16>(&case));
        assert!(got.o.is_empty() && got.lse.is_empty());
    }
}

#[test]
fn attention_no_keys_leave_a_state_as_it_was() {
    let case = Case { output: Output::Merge, ..Case::new(DType::F16, 1, 3, 0, 8) };
    let state = Computed { o: vec![0.5; 48], lse: vec![1.5; 6] };
    let data = Data { state: Some(state.clone()), ..Data::new::<f16>(&case) };
    assert_eq!(run::<f16>(&case, &data), state);
}

#[test]
fn attention_all_keys_equal_is_the_mean() {
    let case = Case::new(DType::F16, 1, 5, 256, 32);
    let mut data = Data::new::<f16>(&case);
    data.k.fill(0.5);
    data.v.iter_mut().enumerate().for_each(|(i, v)| *v = if i / 64 % 2 == 0 { 1.0 } else { 3.0 });
    let got = run::<f16>(&case, &data);
    assert!(got.o.iter().all(|o| *o == 2.0), "weights of one are exact");
    case.compare(&got, &data.oracle(&case));
}

/// Logits below what a sentinel would be, above what f16 holds, and a row whose keys differ by more than an exponent holds.
#[test]
fn attention_logits_far_out() {
    for (scale, size) in [(1.0, 60.0), (-1.0, 60.0), (100.0, 30.0), (1e-3, 1e-3)] {
        for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(3), right: Some(0), sink_tokens: 0 }] {
            let case = Case { scale, mask, heads: 1, key_heads: 1, ..Case::new(DType::Bf16, 1, 40, 70, 64) };
            let mut data = Data::new::<bf16>(&case);
            // One key points the way of all queries: its logit is 64 size^2 scale, that of the others a fraction of it.
            data.q.iter_mut().for_each(|q| *q = round::<bf16>(size));
            let share = |key: usize| if key == 69 { 1.0 } else { -0.25 - (key % 3) as f64 };
            data.k.iter_mut().enumerate().for_each(|(i, k)| *k = round::<bf16>(size * share(i / 64)));
            case.check_data::<bf16>(&data);
        }
    }
}

#[test]
fn attention_values_near_the_ends_of_the_type() {
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 1, 40, 70, 32) };
    for size in [60000.0, 1e-7] {
        let mut data = Data::new::<f16>(&case);
        data.v.iter_mut().for_each(|v| *v = round::<f16>(size * v.signum()));
        // Sums of subnormal values are rounded to steps of 2^-24: the gate is for what is above them.
        if size > 1.0 {
            case.check_data::<f16>(&data);
        } else {
            let (got, want) = (run::<f16>(&case, &data), data.oracle(&case));
            assert!(got.o.iter().zip(&want.o).all(|(got, want)| (got - want).abs() <= 6.1e-8), "{:?}", got.o);
        }
    }
}

/// A query that is not a number spoils its own row, and no other.
#[test]
fn attention_nan_in_a_query_stays_in_its_row() {
    for value in [f64::NAN, f64::INFINITY] {
        let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 2, 130, 130, 64) };
        let mut data = Data::new::<f16>(&case);
        let row = (130 + 77) * 2 + 1;
        data.q[row * 64 + 3] = value;
        let got = run::<f16>(&case, &data);
        let want = run::<f16>(&case, &Data::new::<f16>(&case));
        for i in 0..case.rows() {
            let o = |of: &Computed| of.o[i * 64..][..64].iter().map(|o| o.to_bits()).collect::<Vec<_>>();
            if i == row {
                assert!(got.o[i * 64..][..64].iter().all(|o| o.is_nan()), "row {i} with {value}");
            } else {
                assert_eq!((o(&got), got.lse[i]), (o(&want), want.lse[i]), "row {i} with {value}");
            }
        }
    }
}

/// A key or a value reaches the rows that see it. A hidden key reaches nothing.
#[test]
fn attention_nan_in_a_key_reaches_the_rows_that_see_it() {
    let case = Case { mask: Mask::Causal, heads: 1, key_heads: 1, ..Case::new(DType::Bf16, 1, 200, 200, 64) };
    let clean = run::<bf16>(&case, &Data::new::<bf16>(&case));
    for at in [0, 64, 150] {
        let mut data = Data::new::<bf16>(&case);
        data.k[at * 64 + 9] = f64::NAN;
        let got = run::<bf16>(&case, &data);
        for row in 0..200 {
            let o = &got.o[row * 64..][..64];
            if row >= at {
                assert!(o.iter().all(|o| o.is_nan()) && got.lse[row].is_nan(), "key {at}, row {row}");
            } else {
                assert_eq!((o, got.lse[row]), (&clean.o[row * 64..][..64], clean.lse[row]), "key {at}, row {row}");
            }
        }
        // Hidden, it may be anything.
        let mut mask = vec![1; 200];
        mask[at] = 0;
        let hidden = Case { key_mask: Some(mask), ..case.clone() };
        let want = run::<bf16>(&hidden, &Data::new::<bf16>(&case));
        assert_eq!(run::<bf16>(&hidden, &data).bits(), want.bits(), "hidden key {at}");
    }
}

#[test]
fn attention_nan_in_a_value_reaches_its_column_where_it_is_seen() {
    let case = Case { mask: Mask::Causal, heads: 1, key_heads: 1, ..Case::new(DType::F16, 1, 200, 200, 64) };
    let clean = run::<f16>(&case, &Data::new::<f16>(&case));
    for at in [0, 64, 150] {
        let mut data = Data::new::<f16>(&case);
        data.v[at * 64 + 9] = f64::NAN;
        let got = run::<f16>(&case, &data);
        for (i, (got, clean)) in got.o.iter().zip(&clean.o).enumerate() {
            let (row, column) = (i / 64, i % 64);
            // Rows that see another key of its tile, but not it, multiply it by 0: the contract says so.
            let untold = column == 9 && row >= at / 64 * 64 && row < at;
            let reached = column == 9 && row >= at;
            assert!(
                untold || if reached { got.is_nan() } else { got == clean },
                "value {at}, [{row},{column}] is {got}"
            );
        }
        assert_eq!(got.lse, clean.lse, "value {at}");
    }
}

#[test]
fn attention_logits_of_minus_infinity_are_no_keys() {
    // A key of -infinity against positive queries: its weight is 0 and its value finite. A row that has only such keys is empty.
    let case = Case { mask: Mask::Causal, heads: 1, key_heads: 1, ..Case::new(DType::F16, 1, 40, 40, 32) };
    let mut data = Data::new::<f16>(&case);
    data.q.iter_mut().for_each(|q| *q = q.abs() + 0.125);
    for key in [0, 1, 2, 20] {
        data.k[key * 32..][..32].fill(f64::NEG_INFINITY);
    }
    data.q.iter_mut().for_each(|q| *q = round::<f16>(*q));
    let got = run::<f16>(&case, &data);
    assert!(got.lse[..3].iter().all(|lse| *lse == f64::NEG_INFINITY), "{:?}", &got.lse[..3]);
    case.compare(&got, &data.oracle(&case));
}

#[test]
fn attention_sinks_of_minus_infinity_are_none() {
    let case = Case { mask: Mask::Causal, ..Case::new(DType::F16, 1, 70, 40, 32) };
    let data = Data::new::<f16>(&case);
    let with = run::<f16>(&case, &Data { sink: Some(vec![f64::NEG_INFINITY; 2]), ..data.clone() });
    assert_eq!(with.bits(), run::<f16>(&case, &data).bits());
}
