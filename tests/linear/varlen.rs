//! Packed sequences.

use super::case::{Case, Computed, Data, Direction, Uploaded, run, run_inputs};
use cudarc::driver::DevicePtr;
use half::f16;
use lookback_device::{DType, Element};
use lookback_linear::{Decay, Inputs, Mode, Path, Read};
use lookback_suite::{buffer::upload, random::Random};

const STARTS: [i32; 8] = [0, 0, 1, 9, 9, 17, 33, 40];

fn packed(dtype: DType) -> Case {
    Case { starts: Some(STARTS.to_vec()), decay: Decay::Scalar, ..Case::new(dtype, 1, 40, 16, 8) }
}

#[test]
fn linear_attention_packed_with_empty_sequences_first_within_and_of_one_token() {
    for mode in [Mode::Causal, Mode::Reverse, Mode::Bidirectional, Mode::Split(1)] {
        for (read, flags_every) in [(Read::Inclusive, 0), (Read::Shifted, 6), (Read::ExclusiveBonus, 6)] {
            Case { mode, read, flags_every, ..packed(DType::F32) }.check();
        }
    }
    Case { decay: Decay::Vector, normalize: Some(0.1), ..packed(DType::Bf16) }.check();
}

#[test]
fn linear_attention_all_sequences_empty_copy_their_states() {
    let case = Case { starts: Some(vec![0, 0, 0]), normalize: Some(0.5), ..Case::new(DType::F32, 1, 0, 16, 8) };
    let data = Data::new::<f32>(&case);
    let got = run::<f32>(&case, &data);
    assert_eq!(got.state, data.own.state.expect("states"));
    assert_eq!(got.normalizer, data.normalizer.expect("states"));
}

/// Sequence n of packed data as a case of its own.
fn alone(case: &Case, data: &Data, n: usize) -> (Case, Data) {
    let (lo, hi) = (STARTS[n] as usize, STARTS[n + 1] as usize);
    let rows = |values: &[f64], width: usize| values[lo * width..hi * width].to_vec();
    let state = |values: &[f64]| {
        let width = values.len() / (STARTS.len() - 1);
        values[n * width..(n + 1) * width].to_vec()
    };
    let own = Direction {
        q: rows(&data.own.q, 2 * case.key_dim),
        k: rows(&data.own.k, 2 * case.key_dim),
        g: rows(&data.own.g, 2),
        state: data.own.state.as_deref().map(state),
    };
    let data = Data { own, v: rows(&data.v, 2 * case.value_dim), ..data.clone() };
    (Case { starts: None, seq_len: hi - lo, ..case.clone() }, data)
}

#[test]
fn linear_attention_packed_equals_one_sequence_after_the_other_to_the_bit() {
    for mode in [Mode::Causal, Mode::Reverse] {
        let case = Case { mode, ..packed(DType::F32) };
        let data = Data::new::<f32>(&case);
        let got = run::<f32>(&case, &data);
        let mut joined = Computed::default();
        for n in 0..STARTS.len() - 1 {
            let (case, data) = alone(&case, &data, n);
            let one = run::<f32>(&case, &data);
            joined.o.extend(one.o);
            joined.state.extend(one.state);
        }
        assert_eq!(got, joined, "{mode:?}");
    }
}

/// Starts that nobody should pass.
fn hostile<T: Element>(case: &Case) {
    let mut random = Random::new(5);
    let data = Data::new::<T>(case);
    let on = Uploaded::<T>::new(case, &data);
    for round in 0..5 {
        // Descending starts: after the clamp only the first sequence has tokens, so no two blocks write one row.
        let mut starts: Vec<i32> = (0..5).map(|_| random.uniform(-100.0, 200.0) as i32).collect();
        starts.sort_unstable_by_key(|s| std::cmp::Reverse(*s));
        match round {
            0 => starts = vec![i32::MIN, i32::MAX, i32::MAX, i32::MIN, i32::MIN],
            1 => starts = vec![-7, 50, 50, 60, 1000],
            _ => {}
        }
        let hostile = upload(&starts);
        let inputs = Inputs { cu_seqlens: Some(&hostile as &dyn DevicePtr<i32>), ..on.inputs() };
        // Reading checks the guards, and the emulator every access.
        let got = run_inputs(case, &case.plan(), &inputs);
        assert!(got.state.iter().all(|v| v.is_finite()), "{:?}: {starts:?}", case.path);
    }
}

#[test]
fn linear_attention_hostile_starts_touch_nothing_outside() {
    let case = Case { starts: Some(vec![0, 10, 20, 30, 40]), ..packed(DType::F32) };
    hostile::<f32>(&case);
    for path in [Path::Chain, Path::Parallel] {
        hostile::<f16>(&Case { dtype: DType::F16, path, ..case.clone() });
    }
}
