//! Prefixes, both directions with tensors of their own, and directions by heads.

use super::case::{Case, Data, run};
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Read};
use lookback_suite::measure::{Gate, assert_close};

#[test]
fn linear_attention_reverse_direction_with_tensors_and_states_of_its_own() {
    for decay in [Decay::None, Decay::Head, Decay::Scalar, Decay::Vector] {
        for read in [Read::Inclusive, Read::Shifted] {
            for (dtype, flags_every) in [(DType::F32, 0), (DType::Bf16, 5)] {
                let case = Case::new(dtype, 2, 17, 16, 8);
                Case { decay, read, flags_every, mode: Mode::Bidirectional, own_reverse: true, ..case }.check();
            }
        }
    }
}

#[test]
fn linear_attention_shifted_both_ways_never_sees_the_token_itself() {
    let case = Case {
        read: Read::Shifted,
        mode: Mode::Bidirectional,
        states: false,
        decay: Decay::Scalar,
        ..Case::new(DType::F32, 1, 12, 8, 4)
    };
    let data = Data::new::<f32>(&case);
    let before = run::<f32>(&case, &data).o;
    let mut moved = data.clone();
    let row = 2 * 4;
    moved.v[5 * row..6 * row].iter_mut().for_each(|v| *v += 1.0);
    let after = run::<f32>(&case, &moved).o;
    for t in 0..12 {
        let same = before[t * row..(t + 1) * row] == after[t * row..(t + 1) * row];
        assert_eq!(same, t == 5, "token {t}");
    }
}

#[test]
fn linear_attention_prefix_state_is_causal_from_the_given_state() {
    let case = Case { mode: Mode::PrefixState, decay: Decay::Scalar, ..Case::new(DType::F32, 2, 15, 16, 8) };
    case.check();
    Case { normalize: Some(1e-3), decay: Decay::None, ..case }.check();
}

#[test]
fn linear_attention_prefix_read_of_every_length() {
    for states in [false, true] {
        for normalize in [None, Some(1e-3)] {
            let case = Case::new(DType::F32, 5, 13, 16, 8);
            let prefix = vec![0, 1, 5, 12, 13];
            Case { mode: Mode::PrefixRead, prefix, states, normalize, ..case }.check();
        }
    }
    let starts = Some(vec![0, 9, 9, 10, 30]);
    let case =
        Case { mode: Mode::PrefixRead, prefix: vec![4, 0, 1, 20], starts, ..Case::new(DType::Bf16, 1, 30, 16, 8) };
    case.check();
}

#[test]
fn linear_attention_prefix_tokens_see_each_other_and_the_rest_what_came_before() {
    let case = Case { mode: Mode::PrefixRead, prefix: vec![4], states: false, ..Case::new(DType::F32, 1, 9, 8, 4) };
    let data = Data::new::<f32>(&case);
    let before = run::<f32>(&case, &data).o;
    let row = 2 * 4;
    for at in 0..9 {
        let mut moved = data.clone();
        moved.v[at * row..(at + 1) * row].iter_mut().for_each(|v| *v += 1.0);
        let after = run::<f32>(&case, &moved).o;
        for t in 0..9 {
            let same = before[t * row..(t + 1) * row] == after[t * row..(t + 1) * row];
            assert_eq!(!same, at < 4 || t >= at, "token {at} and the output at {t}");
        }
    }
}

#[test]
fn linear_attention_lengths_of_prefixes_outside_are_clamped() {
    let case = Case { mode: Mode::PrefixRead, ..Case::new(DType::F32, 3, 7, 8, 4) };
    let hostile = Case { prefix: vec![i32::MIN, -1, i32::MAX], ..case.clone() };
    let data = Data::new::<f32>(&hostile);
    let got = run::<f32>(&hostile, &data);
    let want = data.oracle(&Case { prefix: vec![0, 0, 7], ..case });
    assert_close("o", &got.o, &want.o, 4, Gate::F32);
    assert_close("state", &got.state, &want.state, 32, Gate::F32);
}

#[test]
fn linear_attention_split_at_either_end_is_one_direction() {
    for (split, mode) in [(0, Mode::Reverse), (2, Mode::Causal)] {
        let one = Case { mode, decay: Decay::Vector, flags_every: 4, ..Case::new(DType::F32, 1, 18, 16, 8) };
        let data = Data::new::<f32>(&one);
        let split = Case { mode: Mode::Split(split), ..one.clone() };
        assert_eq!(run::<f32>(&one, &data), run::<f32>(&split, &data), "{mode:?}");
    }
}
