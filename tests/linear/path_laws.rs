//! Laws that hold on the chunked paths, too.

use super::case::{Case, Data, Direction, run};
use half::bf16;
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Path, Read};
use lookback_suite::{
    measure::{Gate, assert_close},
    random::round,
};

const PATHS: [(Path, usize); 2] = [(Path::Chain, 100), (Path::Parallel, 270)];

fn case(path: Path, seq_len: usize, decay: Decay) -> Case {
    let heads = Case { heads: 1, query_heads: 1, key_heads: 1, ..Case::new(DType::Bf16, 1, seq_len, 32, 64) };
    Case { path, decay, ..heads }
}

/// Tokens `from..to` of one row.
fn part(case: &Case, data: &Data, from: usize, to: usize) -> (Case, Data) {
    let cut = |values: &[f64]| {
        let width = values.len() / case.seq_len;
        values[from * width..to * width].to_vec()
    };
    let own =
        Direction { q: cut(&data.own.q), k: cut(&data.own.k), g: cut(&data.own.g), state: data.own.state.clone() };
    (Case { seq_len: to - from, ..case.clone() }, Data { own, v: cut(&data.v), ..data.clone() })
}

#[test]
fn linear_attention_paths_two_parts_with_a_carried_state_equal_the_whole() {
    for (path, seq_len) in PATHS {
        for decay in [Decay::Scalar, Decay::Vector] {
            let whole = case(path, seq_len, decay);
            let data = Data::new::<bf16>(&whole);
            let all = run::<bf16>(&whole, &data);
            for at in [16, 61, 131].into_iter().filter(|at| *at < seq_len) {
                let (first, first_data) = part(&whole, &data, 0, at);
                let first = run::<bf16>(&first, &first_data);
                let (second, mut second_data) = part(&whole, &data, at, seq_len);
                second_data.own.state = Some(first.state);
                let second = run::<bf16>(&second, &second_data);
                let what = format!("{path:?} {decay:?} at {at}");
                assert_close(&what, &[first.o, second.o].concat(), &all.o, 64, Gate::BF16);
                assert_close(&what, &second.state, &all.state, 32 * 64, Gate::BF16);
            }
        }
    }
}

#[test]
fn linear_attention_paths_a_token_changes_only_what_may_see_it() {
    for (path, seq_len) in PATHS {
        for (mode, read) in
            [(Mode::Causal, Read::Inclusive), (Mode::Reverse, Read::Shifted), (Mode::Causal, Read::ExclusiveBonus)]
        {
            let case = Case { mode, read, ..case(path, seq_len, Decay::None) };
            let data = Data::new::<bf16>(&case);
            let before = run::<bf16>(&case, &data).o;
            for at in [0, 15, 16, 63, seq_len - 1] {
                let mut moved = data.clone();
                moved.v[at * 64..(at + 1) * 64].iter_mut().for_each(|v| *v += 8.0);
                let after = run::<bf16>(&case, &moved).o;
                for t in 0..seq_len {
                    let changed = before[t * 64..(t + 1) * 64] != after[t * 64..(t + 1) * 64];
                    let later = if mode == Mode::Causal { t > at } else { t < at };
                    let sees = later || (t == at && read != Read::Shifted);
                    assert_eq!(changed, sees, "{path:?} {mode:?} {read:?}: token {at}, output {t}");
                }
            }
        }
    }
}

#[test]
fn linear_attention_paths_decays_far_out() {
    for (path, seq_len) in PATHS {
        for decay in [Decay::Head, Decay::Scalar, Decay::Vector] {
            for g in [0.0, -1e-4, -5.0, -80.0] {
                let case = case(path, seq_len, decay);
                let mut data = Data::new::<bf16>(&case);
                data.own.g.fill(f64::from(g as f32));
                case.check_data::<bf16>(&data);
            }
        }
    }
}

/// A rounding error of a constant decay points the same way at every token, and here all terms of a sum have the same sign.
#[test]
fn linear_attention_paths_constant_decays_with_long_memories() {
    for (path, _) in PATHS {
        for decay in [Decay::Head, Decay::Vector] {
            for g in [-1e-5, -3e-3] {
                let case = Case { states: false, ..case(path, 2000, decay) };
                let mut data = Data::new::<bf16>(&case);
                data.own.g.fill(f64::from(g as f32));
                for tensor in [&mut data.own.q, &mut data.own.k, &mut data.v] {
                    tensor.iter_mut().for_each(|x| *x = round::<bf16>(x.abs() + 0.1));
                }
                case.check_data::<bf16>(&data);
            }
        }
    }
}
