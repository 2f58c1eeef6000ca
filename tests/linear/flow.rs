//! Flow-Attention: values, gradients, schedules, and what callers get wrong.

use super::flow_case::{Case, Data, HALF_GRADIENTS, backward, forward};
use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_linear::{
    RawWorkspace, Stride,
    flow::{BackwardPlan, Inputs, Options, Plan, RawInputs, Shape, Strides, flow_attention},
};
use lookback_reference::flow_attention as reference;
use lookback_suite::{
    buffer::{Guarded, download, upload, upload_as},
    counters::{Counters, Switch},
    device,
    measure::{Gate, assert_close, gate},
    random::golden,
};

/// Lengths around runs and chunks, row widths around warps and tiles, every variant of the clamp.
fn sizes<T: Element>() {
    for (seq_len, keys, [key_dim, value_dim], clamp) in [
        (2, 70, [40, 24], Some(5.0)),
        (63, 60, [32, 32], Some(1.05)),
        (65, 3, [16, 48], None),
        (130, 65, [64, 16], Some(10.0)),
    ] {
        Case { clamp, ..Case::causal(2, seq_len, 2, key_dim, value_dim) }.check::<T>();
        Case { clamp, ..Case::normal(2, seq_len, keys, 2, key_dim, value_dim) }.check::<T>();
    }
}

#[test]
fn flow_attention_f32() {
    sizes::<f32>();
}

#[test]
fn flow_attention_f16() {
    sizes::<f16>();
}

#[test]
fn flow_attention_bf16() {
    sizes::<bf16>();
}

#[test]
fn flow_attention_wide_rows_gaps_and_variants() {
    for case in [Case::causal(1, 20, 1, 130, 100), Case::normal(1, 20, 35, 1, 256, 33)] {
        case.check::<f32>();
        Case { key_dim: 70, value_dim: 256, ..case }.check::<bf16>();
    }
    for case in [Case::causal(2, 19, 3, 5, 3), Case::normal(2, 19, 21, 3, 5, 3)] {
        Case { gap: 3, ..case.clone() }.check::<f32>();
        Case { gap: 8, key_dim: 16, value_dim: 16, ..case.clone() }.check::<f16>();
        Case { mapped: true, extra_eps: 1e-3, ..case }.check::<f32>();
    }
}

#[test]
fn flow_attention_packed_sequences() {
    let starts = (vec![0, 0, 5, 38, 38, 41], vec![0, 2, 2, 20, 37, 45]);
    for case in [Case::causal(1, 41, 2, 16, 8), Case::normal(1, 41, 45, 2, 16, 8)] {
        Case { starts: Some(starts.clone()), ..case }.check::<f32>();
    }
    let starts = (vec![0, 18, 18, 41], vec![0, 2, 20, 45]);
    for case in [Case::causal(1, 41, 2, 16, 8), Case::normal(1, 41, 45, 2, 16, 8)] {
        Case { starts: Some(starts.clone()), ..case }.check::<bf16>();
    }
}

/// A token alone receives and sends everything: its output is its value times a constant, and what reaches its query and key is
/// what `e` and roundings leave.
fn alone<T: Element>(bound: f64) {
    for case in [Case::causal(2, 1, 2, 8, 8), Case { clamp: None, ..Case::normal(2, 1, 1, 2, 8, 8) }] {
        let data = Data::new::<T>(&case);
        let want = reference::forward(&case.flow(), &data.q, &data.k, &data.v);
        assert_close(&format!("out of {case:?}"), &forward::<T>(&case, &data), &want, 8, gate(T::DTYPE));
        let want = reference::backward(&case.flow(), &data.q, &data.k, &data.v, &data.d_out);
        let got = backward::<T>(&case, &data);
        let dv_gate = if T::DTYPE == DType::F32 { Gate::F32 } else { HALF_GRADIENTS };
        assert_close(&format!("dv of {case:?}"), &got.dv, &want.dv, 8, dv_gate);
        for (got, want) in got.dq.iter().chain(&got.dk).zip(want.dq.iter().chain(&want.dk)) {
            assert!((got - want).abs() <= bound, "{} {case:?}: {got} is not {want}", T::DTYPE);
        }
    }
}

#[test]
fn flow_attention_of_one_token() {
    alone::<f32>(1e-6);
    alone::<f16>(1e-3);
    alone::<bf16>(8e-3);
}

#[test]
fn flow_attention_of_nothing() {
    for (queries, keys) in [(0, 0), (0, 5), (5, 0)] {
        Case::normal(1, queries, keys, 2, 8, 8).check::<f32>();
    }
    Case::causal(1, 0, 2, 8, 8).check::<f32>();
    Case::causal(0, 4, 2, 8, 8).check::<f32>();
    Case::causal(2, 4, 0, 8, 8).check::<f32>();
}

/// Features so small that what is added to the factors of products is as much as they are.
#[test]
fn flow_attention_of_tiny_features() {
    for case in [Case::causal(1, 20, 1, 8, 8), Case::normal(1, 20, 9, 1, 8, 8)] {
        let case = Case { mapped: true, clamp: None, ..case };
        let mut data = Data::new::<f32>(&case);
        data.q.iter_mut().chain(&mut data.k).for_each(|x| *x = f64::from((*x * 1e-6) as f32));
        let want = reference::forward(&case.flow(), &data.q, &data.k, &data.v);
        assert_close(&format!("{case:?}"), &forward::<f32>(&case, &data), &want, 8, Gate::F32);
    }
}

/// Long enough for walks in segments, whose states lie behind the rest of the workspace.
#[test]
fn flow_attention_long_sequences() {
    for case in [Case::causal(1, 700, 1, 16, 16), Case::normal(1, 600, 700, 1, 16, 16)] {
        case.check::<bf16>();
        case.check::<f32>();
    }
}

/// Without a bound the flow out of a key that nobody before it resembled is huge: its exponential must not overflow.
#[test]
fn flow_attention_unbounded_flows_stay_finite() {
    let case = Case { clamp: None, ..Case::causal(1, 40, 1, 8, 8) };
    let mut data = Data::new::<f32>(&case);
    for (t, row) in data.k.chunks_mut(8).enumerate() {
        row.fill(if t == 30 { 6.0 } else { -6.0 });
    }
    let want = reference::forward(&case.flow(), &data.q, &data.k, &data.v);
    assert_close("out", &forward::<f32>(&case, &data), &want, 8, Gate::F32);
}

/// The published inputs; the device's f32 is held to 1e-5 of sums over the tensor.
#[test]
fn flow_attention_golden() {
    let check = |case: Case, [sum, abs, last]: [f64; 3]| {
        let q = golden(1.0, 36)[..case.queries * 4].to_vec();
        let data = Data { q, k: golden(2.0, 36), v: golden(3.0, 27), d_out: Vec::new() };
        let out = forward::<f32>(&case, &data);
        let got = [out.iter().sum::<f64>(), out.iter().map(|v| v.abs()).sum(), out[out.len() - 1]];
        for (got, want) in got.into_iter().zip([sum, abs, last]) {
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{case:?}: {got} is not {want}");
        }
    };
    let causal = Case { clamp: Some(1.0), ..Case::causal(1, 9, 1, 4, 3) };
    check(causal.clone(), [-0.772745250, 3.209217837, -0.037487846]);
    check(Case { clamp: Some(10.0), ..causal }, [-0.996834504, 3.506928400, -0.078110609]);
    check(Case { clamp: Some(1.0), ..Case::normal(1, 6, 9, 1, 4, 3) }, [-0.246299359, 0.961506544, -0.049963929]);
}

#[test]
fn flow_attention_causal_outputs_do_not_see_later_tokens() {
    let case = Case::causal(1, 70, 1, 16, 8);
    let data = Data::new::<bf16>(&case);
    let before = forward::<bf16>(&case, &data);
    for t in [0, 33, 69] {
        let mut changed = data.clone();
        changed.q[t * 16 + 3] += 1.0;
        changed.k[t * 16 + 5] -= 1.0;
        changed.v[t * 8] = 3.0;
        let after = forward::<bf16>(&case, &changed);
        assert_eq!(before[..t * 8], after[..t * 8], "token {t}");
        assert_ne!(before[t * 8..], after[t * 8..], "token {t}");
    }
}

#[test]
fn flow_attention_same_bits_under_every_schedule() {
    for case in [Case::causal(2, 66, 2, 16, 16), Case::normal(2, 40, 66, 2, 16, 16)] {
        let data = Data::new::<bf16>(&case);
        let first = (forward::<bf16>(&case, &data), backward::<bf16>(&case, &data));
        for (key, value, default) in
            [("order", "reversed", "inorder"), ("order", "random:3", "inorder"), ("convergence", "random:1", "natural")]
        {
            let _switch = Switch::set(key, value, default);
            assert_eq!((forward::<bf16>(&case, &data), backward::<bf16>(&case, &data)), first, "{key} {value}");
        }
    }
}

#[test]
fn flow_attention_launches_what_the_contract_says() {
    for (case, launches) in [(Case::causal(1, 64, 2, 64, 64), [2, 5]), (Case::normal(1, 64, 64, 2, 64, 64), [3, 7])] {
        let data = Data::new::<bf16>(&case);
        let Some(counted) = Counters::of(|| drop(forward::<bf16>(&case, &data))) else { return };
        assert_eq!(counted.number("launches"), launches[0], "{case:?}");
        let counted = Counters::of(|| drop(backward::<bf16>(&case, &data))).expect("counted before");
        assert_eq!(counted.number("launches"), launches[1], "{case:?}");
    }
}

#[test]
fn flow_attention_bad_calls_are_refused() {
    let info = device::info();
    let good = Shape::normal(2, [4, 5], 2, 8, 8);
    let refused = |shape: Shape, name: &str| match Plan::new(&shape, &Options::new::<f32>(), &info) {
        Err(Error::Range { arg, .. } | Error::Layout { arg, .. }) => assert_eq!(arg, name),
        other => panic!("{name}: {other:?}"),
    };
    refused(Shape { causal: true, ..good }, "keys");
    refused(Shape { key_dim: 257, ..good }, "key_dim");
    refused(Shape { value_dim: 0, ..good }, "value_dim");
    refused(Shape { heads: 1 << 16, ..good }, "heads");
    refused(Shape { packed: Some(2), ..good }, "batch");
    let close = Strides { out: Some(Stride { batch: 64, token: 16, head: 7 }), ..Strides::default() };
    refused(Shape { strides: close, ..good }, "out");
    let backwards = Strides { k: Some(Stride { batch: 80, token: -16, head: 8 }), ..Strides::default() };
    refused(Shape { strides: backwards, ..good }, "k");
    for options in [
        Options { clamp: Some(0.0), ..Options::new::<f32>() },
        Options { clamp: Some(f32::NAN), ..Options::new::<f32>() },
        Options { extra_eps: -1.0, ..Options::new::<f32>() },
    ] {
        assert!(matches!(Plan::new(&good, &options, &info), Err(Error::Range { .. })), "{options:?}");
    }
    let wide = BackwardPlan::new(&Shape { value_dim: 300, ..good }, &Options::new::<f32>(), &info);
    assert!(matches!(wide, Err(Error::Range { arg: "value_dim", .. })));

    let plan = Plan::new(&good, &Options::new::<f32>(), &info).unwrap();
    let (q, k) = (upload_as::<f32>(&[0.0; 128]), upload_as::<f32>(&[0.0; 160]));
    let mut out = Guarded::<f32>::poisoned(128, 0);
    let mut workspace = Guarded::<u8>::filled(plan.workspace_bytes() as usize, 0, 0);
    let stream = device::stream();
    let error = {
        let short = q.slice(..127);
        plan.run(&stream, &Inputs::of(&short, &k, &k), &mut out.view_mut(), &mut workspace.view_mut()).unwrap_err()
    };
    assert!(matches!(error, Error::Shape { arg: "q", .. }), "{error}");
    let starts = upload(&[0_i32, 4, 8]);
    let inputs = Inputs { cu_seqlens: Some(&starts), ..Inputs::of(&q, &k, &k) };
    let error = plan.run(&stream, &inputs, &mut out.view_mut(), &mut workspace.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "cu_seqlens", .. }), "{error}");
    let mut small = Guarded::<u8>::filled(plan.workspace_bytes() as usize - 1, 0, 0);
    let error = plan.run(&stream, &Inputs::of(&q, &k, &k), &mut out.view_mut(), &mut small.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Workspace { .. }), "{error}");
    let half = upload_as::<f16>(&[0.0; 160]);
    let error = plan
        .run(&stream, &Inputs::of(&half, &half, &half), &mut upload_as::<f16>(&[0.0; 128]), &mut workspace.view_mut())
        .unwrap_err();
    assert!(matches!(error, Error::Dtype { want: DType::F32, got: DType::F16, .. }), "{error}");
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
    let [q_at, k_at] = [&q, &k].map(|s| s.device_ptr(&stream).0);
    let raw = RawInputs { q: q_at, k: k_at, v: k_at, ..RawInputs::default() };
    let bytes = plan.workspace_bytes();
    let spare = upload(&vec![0_u8; bytes as usize]);
    let workspace = RawWorkspace { address: spare.device_ptr(&stream).0, bytes };
    // SAFETY: the host refuses the call before any launch.
    let error = unsafe { plan.run_raw(&stream, &raw, q_at, workspace) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "out", b: "q", .. }), "{error}");
}

#[test]
fn flow_attention_allocates_for_itself() {
    let case = Case::causal(1, 10, 2, 8, 8);
    let data = Data::new::<f32>(&case);
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|x| upload_as::<f32>(x));
    let out = flow_attention(&device::stream(), &case.shape(), &case.options::<f32>(), &q, &k, &v).expect("runs");
    let out: Vec<f64> = download(&out).into_iter().map(f64::from).collect();
    assert_eq!(out, forward::<f32>(&case, &data));
}

/// Every access touches as few sectors as its bytes fill.
#[test]
fn flow_attention_accesses_are_whole() {
    let case = Case::causal(1, 64, 2, 64, 64);
    let data = Data::new::<f32>(&case);
    let Some(counted) = Counters::of(|| drop(forward::<f32>(&case, &data))) else { return };
    counted.assert_coalesced("flow attention");
    let counted = Counters::of(|| drop(backward::<f32>(&case, &data))).expect("counted before");
    counted.assert_coalesced("its gradients");
}
