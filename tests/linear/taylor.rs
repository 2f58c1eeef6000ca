//! Linear attention that makes Taylor features of its queries and keys, against the reference over features in f64.

use super::case::{Case, Data, Uploaded};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_linear::{BackwardPlan, Decay, Features, Mode, Outputs, Path, Plan, Read, step};
use lookback_reference::time_reduce::Map;
use lookback_suite::{buffer::Guarded, device, random::Random};

fn taylor(dtype: DType, seq_len: usize, key_dim: usize, value_dim: usize) -> Case {
    Case {
        features: Features::Taylor,
        scale: 1.0,
        normalize: Some(1e-6),
        path: Path::Auto,
        seed: 11 + seq_len as u64,
        ..Case::new(dtype, 1, seq_len, key_dim, value_dim)
    }
}

/// States and sums of keys as an encoder of six tokens leaves them: `S` is the sum of `f(k) v^T`, `z` that of `f(k)`.
fn encode<T: Element>(case: &Case, data: &mut Data) {
    let mut random = Random::new(case.seed + 1);
    let (mut states, mut sums) = (Vec::new(), Vec::new());
    for _ in 0..case.shape().sequences() * case.heads {
        let mut state = vec![0.0; case.keys() * case.value_dim];
        let mut sum = vec![0.0; case.keys()];
        for _ in 0..6 {
            let (k, v) = (random.normals::<T>(case.key_dim), random.normals::<T>(case.value_dim));
            for (i, feature) in Map::Taylor.of(&k).into_iter().enumerate() {
                sum[i] += feature;
                state[i * case.value_dim..].iter_mut().zip(&v).for_each(|(s, v)| *s += feature * v);
            }
        }
        states.extend(state.into_iter().map(|s| f64::from(s as f32)));
        sums.extend(sum.into_iter().map(|s| f64::from(s as f32)));
    }
    data.own.state = Some(states);
    data.normalizer = case.normalize.map(|_| sums);
}

fn check(case: &Case) {
    fn of<T: Element>(case: &Case) {
        let mut data = Data::new::<T>(case);
        if case.states {
            encode::<T>(case, &mut data);
        }
        case.check_data::<T>(&data);
    }
    let plan = case.plan();
    assert_eq!((plan.path(), plan.workspace_bytes()), (Path::Chain, 0), "{case:?}");
    match case.dtype {
        DType::F16 => of::<f16>(case),
        _ => of::<bf16>(case),
    }
}

#[test]
fn linear_attention_over_taylor_features() {
    for dtype in [DType::Bf16, DType::F16] {
        for seq_len in [1, 17, 70] {
            let case = taylor(dtype, seq_len, 16, 72);
            check(&Case { states: false, ..case.clone() });
            check(&Case { mode: Mode::PrefixState, path: Path::Chain, ..case.clone() });
            check(&Case { normalize: None, key_dim: 8, value_dim: 24, ..case });
        }
    }
}

#[test]
fn linear_attention_over_taylor_features_packed_shared_cut_and_in_every_direction() {
    for dtype in [DType::Bf16, DType::F16] {
        let packed = Case { starts: Some(vec![0, 0, 1, 18, 70]), ..taylor(dtype, 70, 16, 64) };
        check(&packed);
        check(&Case { key_heads: 1, query_heads: 1, batch: 2, ..taylor(dtype, 19, 16, 16) });
        let decayed = Case { decay: Decay::Scalar, flags_every: 7, normalize: None, ..taylor(dtype, 40, 16, 16) };
        for mode in [Mode::Causal, Mode::Reverse, Mode::Split(1), Mode::Bidirectional] {
            check(&Case { mode, ..decayed.clone() });
        }
        check(&Case { decay: Decay::Head, read: Read::Shifted, ..decayed });
    }
}

/// No tokens: states and sums of 153 keys are copied.
#[test]
fn linear_attention_over_taylor_features_of_no_tokens() {
    check(&Case { starts: Some(vec![0, 0, 0]), ..taylor(DType::Bf16, 0, 16, 8) });
}

/// There is no other path to go to.
#[test]
fn linear_attention_refuses_taylor_features_at_addresses_off_the_grid() {
    let case = taylor(DType::Bf16, 20, 16, 24);
    let data = Data::new::<bf16>(&case);
    let on = Uploaded::<bf16>::new(&case, &data);
    let mut o = Guarded::<bf16>::poisoned(20 * 2 * 24, 1);
    let done = case.plan().run(&device::stream(), &on.inputs(), Outputs::of(&mut o.view_mut()), None);
    assert!(matches!(done, Err(Error::Align { arg: "o", need: 8, .. })), "{done:?}");
}

#[test]
fn linear_attention_refuses_taylor_features_that_no_kernel_makes() {
    let good = taylor(DType::Bf16, 20, 16, 24);
    let refuse = |case: &Case, word: &str| match Plan::new(&case.shape(), &case.options(), &device::info()) {
        Err(Error::NoKernel { request, .. }) => {
            assert!(request.contains("Taylor features") && request.contains(word), "{request}")
        }
        other => panic!("{word}: {other:?}"),
    };
    refuse(&Case { dtype: DType::F32, ..good.clone() }, "f32");
    for key_dim in [1, 12, 24, 153] {
        refuse(&Case { key_dim, ..good.clone() }, &format!("of {key_dim} entries"));
    }
    refuse(&Case { decay: Decay::Vector, ..good.clone() }, "every entry");
    refuse(&Case { read: Read::ExclusiveBonus, ..good.clone() }, "bonus");
    refuse(&Case { mode: Mode::PrefixRead, prefix: vec![3], ..good.clone() }, "prefixes");
    refuse(&Case { path: Path::Recurrent, ..good.clone() }, "token by token");
    refuse(&Case { path: Path::Parallel, ..good.clone() }, "segments");
    refuse(&Case { value_dim: 20, ..good.clone() }, "tensor cores");
    let gradients = BackwardPlan::new(&good.shape(), &good.options(), &device::info()).map(|_| ());
    assert!(matches!(gradients, Err(Error::NoKernel { request, .. }) if request == "gradients of Taylor features"));
    let one = Case { seq_len: 1, ..good.clone() };
    let token = step::Plan::new(&one.shape(), &one.options(), &device::info()).map(|_| ());
    assert!(matches!(token, Err(Error::NoKernel { request, .. }) if request.contains("Taylor features")));
    // Long sequences of one head too, which otherwise are cut into segments.
    let long = Case { heads: 1, query_heads: 1, key_heads: 1, ..taylor(DType::F16, 100_000, 16, 64) };
    assert_eq!((long.plan().path(), long.plan().workspace_bytes()), (Path::Chain, 0));
}
