//! Lengths of nothing and one, cuts everywhere, decays far out, NaN and infinity.

use super::case::{Case, Data, run};
use lookback_device::DType;
use lookback_linear::{Decay, Mode, Read};
use lookback_suite::measure::{Gate, assert_close};

#[test]
fn linear_attention_short_lengths() {
    for seq_len in [0, 1, 2, 7, 8, 9] {
        for mode in [Mode::Causal, Mode::Bidirectional] {
            for read in [Read::Inclusive, Read::ExclusiveBonus, Read::Shifted] {
                Case { mode, read, decay: Decay::Scalar, ..Case::new(DType::F32, 2, seq_len, 8, 4) }.check();
            }
        }
    }
}

#[test]
fn linear_attention_without_tokens_copies_states() {
    let case = Case { normalize: Some(0.5), ..Case::new(DType::Bf16, 2, 0, 16, 8) };
    let data = Data::new::<half::bf16>(&case);
    let got = run::<half::bf16>(&case, &data);
    assert_eq!(Some(got.state), data.own.state);
    assert_eq!(Some(got.normalizer), data.normalizer);
}

#[test]
fn linear_attention_no_rows_is_no_work() {
    for case in [Case::new(DType::F32, 0, 5, 8, 4), Case { heads: 0, ..Case::new(DType::F32, 1, 5, 8, 4) }] {
        let case = Case { states: false, ..case };
        let got = run::<f32>(&case, &Data::new::<f32>(&case));
        assert!(got.o.is_empty() && got.state.is_empty());
    }
}

#[test]
fn linear_attention_segments_of_one_token_on_stage_borders_and_over_several_stages() {
    for (read, mode) in
        [(Read::Inclusive, Mode::Causal), (Read::Shifted, Mode::Bidirectional), (Read::ExclusiveBonus, Mode::Reverse)]
    {
        let case = Case { read, mode, decay: Decay::Vector, ..Case::new(DType::F32, 1, 60, 8, 4) };
        let mut data = Data::new::<f32>(&case);
        // Segments [0,3), [3,4), [4,5), [5,8), [8,16), [16,48), [48,59), [59,60).
        let mut flags = vec![0; 60];
        for start in [3, 4, 5, 8, 16, 48, 59] {
            flags[start] |= 1;
            flags[start - 1] |= 2;
        }
        data.flags = Some(flags);
        case.check_data::<f32>(&data);
        data.flags = Some(vec![3; 60]);
        case.check_data::<f32>(&data);
    }
}

#[test]
fn linear_attention_decays_far_out() {
    for g in [0.0, -1e-4, -5.0, -80.0, -200.0, f64::NEG_INFINITY] {
        for decay in [Decay::Head, Decay::Vector] {
            let case = Case { decay, ..Case::new(DType::F32, 1, 20, 8, 4) };
            let mut data = Data::new::<f32>(&case);
            data.own.g.fill(f64::from(g as f32));
            if g == f64::NEG_INFINITY {
                // Nothing is left of what was before: the oracle's state is finite, so it forgets it, too.
                data.own.state = None;
            }
            case.check_data::<f32>(&data);
        }
    }
}

#[test]
fn linear_attention_nan_reaches_later_tokens_of_its_head_up_to_a_cut() {
    let case = Case { decay: Decay::Scalar, ..Case::new(DType::F32, 2, 30, 8, 4) };
    for value in [f64::NAN, f64::INFINITY] {
        let mut data = Data::new::<f32>(&case);
        let mut flags = vec![0; 60];
        flags[30 + 20] = 1;
        data.flags = Some(flags);
        // Row 1, token 9, head 1.
        data.v[((30 + 9) * 2 + 1) * 4 + 2] = value;
        let got = run::<f32>(&case, &data);
        for (i, o) in got.o.iter().enumerate() {
            let (column, head, t, b) = (i % 4, i / 4 % 2, i / 8 % 30, i / 240);
            let reached = b == 1 && head == 1 && column == 2 && (9..20).contains(&t);
            assert_eq!(o.is_finite(), !reached, "[{b},{t},{head},{column}] = {o}");
        }
        assert!(got.state.iter().all(|s| s.is_finite()));
    }
}

#[test]
fn linear_attention_decay_at_a_cut_is_not_read() {
    for (mode, read, bit) in
        [(Mode::Causal, Read::Inclusive, 1), (Mode::Reverse, Read::ExclusiveBonus, 2), (Mode::Causal, Read::Shifted, 1)]
    {
        for decay in [Decay::Scalar, Decay::Vector] {
            let case = Case { mode, read, decay, ..Case::new(DType::F32, 1, 25, 8, 4) };
            let mut data = Data::new::<f32>(&case);
            let mut flags = vec![0; 25];
            let width = data.own.g.len() / 25;
            for at in [0, 7, 8, 24] {
                flags[at] = bit;
                data.own.g[at * width..(at + 1) * width].fill(f64::NAN);
            }
            data.flags = Some(flags);
            let got = run::<f32>(&case, &data);
            assert!(got.o.iter().chain(&got.state).all(|v| v.is_finite()), "{case:?}");
            data.own.g.iter_mut().filter(|g| g.is_nan()).for_each(|g| *g = -0.5);
            assert_close("o", &got.o, &data.oracle(&case).o, 4, Gate::F32);
        }
    }
}

#[test]
fn linear_attention_masked_keys_are_not_read() {
    let case = Case { mode: Mode::PrefixRead, prefix: vec![5], ..Case::new(DType::F32, 1, 12, 8, 4) };
    let mut data = Data::new::<f32>(&case);
    // A key of the prefix is summed once, before the walk: were it added again times zero, infinity would become NaN.
    data.own.k[2 * 16..3 * 16].fill(f64::INFINITY);
    data.v[2 * 8..3 * 8].fill(1.0);
    for tensor in [&mut data.own.q, &mut data.v] {
        tensor.iter_mut().for_each(|v| *v = v.abs() + 0.1);
    }
    data.own.state = None;
    let got = run::<f32>(&case, &data);
    assert!(got.o.iter().chain(&got.state).all(|v| *v == f64::INFINITY), "{:?}", got.o);
}
