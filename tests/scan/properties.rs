//! Laws that hold whatever the numbers are.

use super::case::{Case, Data, backward, forward};
use lookback_device::DType;
use lookback_scan::Source;
use lookback_suite::measure::{Gate, assert_close};

const SOURCES: [Source; 3] =
    [Source::Tensor, Source::GatedSsm { normalize: true }, Source::RgLru { unit_at_reset: true }];

fn tokens(values: &[f64], channels: usize, range: std::ops::Range<usize>) -> Vec<f64> {
    values[range.start * channels..range.end * channels].to_vec()
}

/// The part of a one-row case.
fn part(data: &Data, channels: usize, range: std::ops::Range<usize>) -> Data {
    let cut = |v: &[f64]| tokens(v, channels, range.clone());
    Data { a: cut(&data.a), b: cut(&data.b), x: cut(&data.x), dh: cut(&data.dh), ..data.clone() }
}

#[test]
fn gated_scan_two_parts_with_a_carried_state_equal_the_whole() {
    for source in SOURCES {
        let whole = Case::new(source, DType::F32, 1, 300, 6);
        let data = Data::new::<f32>(&whole);
        let all = forward::<f32>(&whole, &data);
        let all_back = backward::<f32>(&whole, &data, &all.h);
        for at in [1, 128, 200] {
            let (first, second) = (Case { seq_len: at, ..whole.clone() }, Case { seq_len: 300 - at, ..whole.clone() });
            let first_data = part(&data, 6, 0..at);
            let first_out = forward::<f32>(&first, &first_data);
            let second_data = Data { initial: Some(first_out.last.clone()), ..part(&data, 6, at..300) };
            let second_out = forward::<f32>(&second, &second_data);
            let what = format!("{source:?} cut at {at}");
            let joined = [first_out.h.clone(), second_out.h.clone()].concat();
            assert_close(&what, &joined, &all.h, 6, Gate::F32);
            assert_close(&what, &second_out.last, &all.last, 6, Gate::F32);
            // The adjoint of the second part's initial state is that of the first part's final state.
            let second_back = backward::<f32>(&second, &second_data, &second_out.h);
            let first_data = Data { d_last: Some(second_back.d_initial.clone()), ..first_data };
            let first_back = backward::<f32>(&first, &first_data, &first_out.h);
            for (got, want) in [
                ([first_back.a, second_back.a].concat(), &all_back.a),
                ([first_back.b, second_back.b].concat(), &all_back.b),
                ([first_back.x, second_back.x].concat(), &all_back.x),
                (first_back.d_initial, &all_back.d_initial),
            ] {
                assert_close(&what, &got, want, 6, Gate::F32);
            }
        }
    }
}

#[test]
fn gated_scan_reverse_is_flip_forward_flip_to_the_bit() {
    for source in SOURCES {
        let reverse = Case { split: 0, flags_every: 30, ..Case::new(source, DType::F32, 1, 200, 6) };
        let data = Data::new::<f32>(&reverse);
        let flip = |v: &[f64]| v.chunks(6).rev().flatten().copied().collect::<Vec<_>>();
        let flags = data.flags.as_ref().map(|f| f.iter().rev().map(|f| f >> 1).collect());
        let flipped_data =
            Data { a: flip(&data.a), b: flip(&data.b), x: flip(&data.x), dh: flip(&data.dh), flags, ..data.clone() };
        let forward_case = Case { split: 6, ..reverse.clone() };
        let (got, want) = (forward::<f32>(&reverse, &data), forward::<f32>(&forward_case, &flipped_data));
        assert_eq!(got.h, flip(&want.h), "{source:?}");
        assert_eq!(got.last, want.last, "{source:?}");
        let (got, want) =
            (backward::<f32>(&reverse, &data, &got.h), backward::<f32>(&forward_case, &flipped_data, &want.h));
        assert_eq!((got.a, got.b), (flip(&want.a), flip(&want.b)), "{source:?}");
        assert_eq!((got.channel.len(), got.d_initial), (want.channel.len(), want.d_initial), "{source:?}");
    }
}

#[test]
fn gated_scan_a_token_changes_only_what_comes_after_it() {
    let case = Case { split: 4, ..Case::new(Source::Tensor, DType::F32, 1, 300, 8) };
    let data = Data::new::<f32>(&case);
    let before = forward::<f32>(&case, &data);
    for at in [0, 5, 127, 128, 200, 299] {
        let mut moved = data.clone();
        moved.b[at * 8..(at + 1) * 8].iter_mut().for_each(|v| *v += 1.0);
        let after = forward::<f32>(&case, &moved);
        for t in 0..300 {
            for d in 0..8 {
                let same = before.h[t * 8 + d].to_bits() == after.h[t * 8 + d].to_bits();
                let reached = if d < 4 { t >= at } else { t <= at };
                assert!(same || reached, "token {at} changed [{t},{d}]");
                assert!(!same || t != at, "token {at} did not change [{t},{d}]");
            }
        }
    }
}
