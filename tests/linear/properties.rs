//! Laws that hold whatever the numbers are.

use super::case::{Case, Data, Direction, run};
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Read};
use lookback_suite::measure::{Gate, assert_close};

const READS: [Read; 3] = [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted];

fn case(read: Read, seq_len: usize) -> Case {
    Case { read, decay: Decay::Vector, ..Case::new(DType::F32, 1, seq_len, 12, 6) }
}

/// Values of each token, as `f` orders or picks the tokens.
fn tokens(values: &[f64], seq_len: usize, f: impl Fn(usize) -> usize, count: usize) -> Vec<f64> {
    let width = values.len() / seq_len;
    (0..count).flat_map(|t| values[f(t) * width..(f(t) + 1) * width].to_vec()).collect()
}

fn part(data: &Data, seq_len: usize, from: usize, to: usize) -> Data {
    let cut = |values: &[f64]| tokens(values, seq_len, |t| from + t, to - from);
    let own =
        Direction { q: cut(&data.own.q), k: cut(&data.own.k), g: cut(&data.own.g), state: data.own.state.clone() };
    Data { own, v: cut(&data.v), ..data.clone() }
}

#[test]
fn linear_attention_two_parts_with_a_carried_state_equal_the_whole() {
    for read in [Read::Inclusive, Read::ExclusiveBonus] {
        let whole = case(read, 40);
        let data = Data::new::<f32>(&whole);
        let all = run::<f32>(&whole, &data);
        for at in [1, 8, 23] {
            let first = run::<f32>(&Case { seq_len: at, ..whole.clone() }, &part(&data, 40, 0, at));
            let mut rest = part(&data, 40, at, 40);
            rest.own.state = Some(first.state);
            let second = run::<f32>(&Case { seq_len: 40 - at, ..whole.clone() }, &rest);
            // Stages begin elsewhere, but each step is the same.
            assert_eq!([first.o, second.o].concat(), all.o, "{read:?} at {at}");
            assert_eq!(second.state, all.state, "{read:?} at {at}");
        }
    }
}

#[test]
fn linear_attention_reverse_is_flip_forward_flip_to_the_bit() {
    for read in READS {
        let reverse = Case { mode: Mode::Reverse, flags_every: 5, ..case(read, 27) };
        let data = Data::new::<f32>(&reverse);
        let flip = |values: &[f64]| tokens(values, 27, |t| 26 - t, 27);
        let flags = data.flags.as_ref().map(|f| f.iter().rev().map(|f| f >> 1).collect());
        let own = Direction {
            q: flip(&data.own.q),
            k: flip(&data.own.k),
            g: flip(&data.own.g),
            state: data.own.state.clone(),
        };
        let flipped = Data { own, v: flip(&data.v), flags, ..data.clone() };
        let forward = Case { mode: Mode::Causal, ..reverse.clone() };
        let (got, want) = (run::<f32>(&reverse, &data), run::<f32>(&forward, &flipped));
        assert_eq!(got.o, flip(&want.o), "{read:?}");
        assert_eq!(got.state, want.state, "{read:?}");
    }
}

#[test]
fn linear_attention_a_token_changes_only_what_may_see_it() {
    for read in READS {
        for mode in [Mode::Causal, Mode::Reverse] {
            let case = Case { mode, ..case(read, 21) };
            let data = Data::new::<f32>(&case);
            let before = run::<f32>(&case, &data).o;
            for at in [0, 7, 8, 20] {
                let mut moved = data.clone();
                moved.v[at * 12..(at + 1) * 12].iter_mut().for_each(|v| *v += 1.0);
                let after = run::<f32>(&case, &moved).o;
                for t in 0..21 {
                    let changed = before[t * 12..(t + 1) * 12] != after[t * 12..(t + 1) * 12];
                    let later = if mode == Mode::Causal { t > at } else { t < at };
                    let sees = later || (t == at && read != Read::Shifted);
                    assert_eq!(changed, sees, "{read:?} {mode:?}: token {at}, output {t}");
                }
            }
        }
    }
}

#[test]
fn linear_attention_both_ways_without_decay_is_the_sum_over_all_tokens() {
    let case = Case { mode: Mode::Bidirectional, states: false, ..Case::new(DType::F32, 1, 30, 8, 4) };
    let data = Data::new::<f32>(&case);
    let got = run::<f32>(&case, &data);
    let mut want = vec![0.0; got.o.len()];
    for h in 0..2 {
        for t in 0..30 {
            for s in 0..30 {
                let row = |values: &[f64], t: usize| values[(t * 2 + h) * 8..][..8].to_vec();
                let score: f64 = row(&data.own.q, t).iter().zip(row(&data.own.k, s)).map(|(q, k)| q * k).sum();
                for v in 0..4 {
                    want[(t * 2 + h) * 4 + v] += f64::from(case.scale) * score * data.v[(s * 2 + h) * 4 + v];
                }
            }
        }
    }
    assert_close("o", &got.o, &want, 4, Gate::F32);
    assert_close("both states", &got.state, &got.reverse_state, 32, Gate::F32);
}
