//! Linear attention over all tokens at once: the oracle, edges, schedules, memory and what a launch costs.

use super::time_reduce_case::{Case, Data, MAPS, check, forward, forward_in};
use half::{bf16, f16};
use lookback_device::{
    DType, Element, Error,
    cudarc::driver::{DevicePtr, DevicePtrMut},
};
use lookback_linear::{
    Shape, Stride, Strides,
    time_reduce::{Inputs, Map, Options, Outputs, Plan, Policy, RawInputs, RawOutputs, RawWorkspace, Workspace},
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    counters::{Counters, Switch},
    device,
    measure::{assert_close, gate},
};

#[test]
fn time_reduce_matches_the_oracle_for_every_map() {
    for map in MAPS {
        let key_dim = if map == Map::Taylor { 16 } else { 64 };
        for seq_len in [65, 300] {
            let case = Case::new(map, seq_len, key_dim, 64);
            check::<f32>(&case);
            check::<f16>(&case);
            check::<bf16>(&case);
        }
    }
}

#[test]
fn time_reduce_matches_the_oracle_for_every_size() {
    for (key_dim, value_dim) in [(16, 64), (17, 3), (128, 64), (100, 100), (256, 16), (64, 256), (200, 65)] {
        for map in [Map::Identity, Map::EluPlusOne, Map::Softmax] {
            let case = Case { heads: 1, query_heads: 1, key_heads: 1, ..Case::new(map, 130, key_dim, value_dim) };
            check::<f32>(&case);
            check::<bf16>(&case);
        }
    }
    for (key_dim, value_dim) in [(1, 64), (4, 3), (15, 70)] {
        let case = Case::new(Map::Taylor, 70, key_dim, value_dim);
        check::<f32>(&case);
        check::<f16>(&case);
    }
}

#[test]
fn time_reduce_matches_the_oracle_for_every_length() {
    for seq_len in [0, 1, 15, 32, 64, 129] {
        for map in [Map::EluPlusOne, Map::Softmax, Map::Taylor] {
            let key_dim = if map == Map::Taylor { 8 } else { 24 };
            let case = Case { batch: 2, ..Case::new(map, seq_len, key_dim, 40) };
            check::<f32>(&case);
            check::<bf16>(&case);
        }
    }
}

#[test]
fn time_reduce_packed_sequences_and_prefixes() {
    let starts = vec![0, 0, 1, 70, 70, 200, 233];
    for map in [Map::Identity, Map::Relu, Map::Softmax, Map::Taylor] {
        let key_dim = if map == Map::Taylor { 16 } else { 48 };
        let dense = Case { batch: 2, ..Case::new(map, 150, key_dim, 64) };
        let packed = Case { starts: Some(starts.clone()), ..Case::new(map, 233, key_dim, 64) };
        for case in [
            packed.clone(),
            Case { prefix: Some(vec![0, 5, 69, 0, 65, 1000]), ..packed },
            Case { prefix: Some(vec![0, 140]), ..dense.clone() },
            Case { prefix: Some(vec![-3, 64]), ..dense },
        ] {
            check::<f32>(&case);
            check::<f16>(&case);
        }
    }
}

#[test]
fn time_reduce_groups_and_strides() {
    for (query_heads, key_heads) in [(4, 1), (1, 2), (2, 4)] {
        let case = Case { heads: 4, query_heads, key_heads, ..Case::new(Map::EluPlusOne, 70, 32, 32) };
        for gap in [0, 1, 4, 8] {
            check::<f32>(&Case { gap, ..case.clone() });
            check::<bf16>(&Case { gap, ..case.clone() });
        }
    }
}

#[test]
fn time_reduce_nan_stays_in_its_head_and_its_row() {
    let case = Case { heads: 2, ..Case::new(Map::EluPlusOne, 80, 32, 32) };
    let mut data = Data::new::<bf16>(&case);
    data.q[(7 * 2 + 1) * 32 + 3] = f64::NAN;
    data.k[(40 * 2) * 32] = f64::NAN;
    let out = forward::<bf16>(&case, &data).o;
    for (i, row) in out.chunks_exact(32).enumerate() {
        let poisoned = i % 2 == 0 || i == 7 * 2 + 1;
        assert!(row.iter().all(|o| o.is_nan() == poisoned), "token {} head {}", i / 2, i % 2);
    }
}

/// In front, at the end of a segment, and a column of nothing else: a key of minus infinity has no weight.
fn masked_keys<T: Element>() {
    let case = Case { heads: 1, query_heads: 1, key_heads: 1, ..Case::new(Map::Softmax, 130, 20, 16) };
    let mut data = Data::new::<T>(&case);
    for (i, k) in data.k.iter_mut().enumerate() {
        let (token, column) = (i / 20, i % 20);
        if token < 40 || (96..128).contains(&token) || column == 3 {
            *k = f64::NEG_INFINITY;
        }
    }
    let got = forward::<T>(&case, &data);
    data.k.iter_mut().for_each(|k| *k = k.max(-1e4));
    let mut want = lookback_reference::time_reduce::forward(&case.reference(), &data.q, &data.k, &data.v);
    // Its column 3 weighs all tokens alike; here it is empty.
    want.kv[3 * 16..4 * 16].fill(0.0);
    for (token, row) in want.o.chunks_exact_mut(16).enumerate() {
        for (v, o) in row.iter_mut().enumerate() {
            *o = 0.5 * (0..20).map(|c| data.q[token * 20 + c] * want.kv[c * 16 + v]).sum::<f64>();
        }
    }
    assert_eq!(got.ksum[3], f64::NEG_INFINITY, "{}", T::DTYPE);
    assert_close(&format!("kv of {}", T::DTYPE), &got.kv, &want.kv, 16, gate(T::DTYPE));
    assert_close(&format!("o of {}", T::DTYPE), &got.o, &want.o, 16, gate(T::DTYPE));
}

#[test]
fn time_reduce_softmax_masked_keys_have_no_weight() {
    masked_keys::<f32>();
    masked_keys::<f16>();
    masked_keys::<bf16>();
}

#[test]
fn time_reduce_large_sums_do_not_overflow_f16() {
    let case = Case { heads: 1, query_heads: 1, key_heads: 1, ..Case::new(Map::Identity, 256, 16, 16) };
    let mut data = Data::new::<f16>(&case);
    data.k.iter_mut().for_each(|k| *k = 32.0 + *k / 8.0);
    data.v.iter_mut().for_each(|v| *v = 64.0);
    data.q.iter_mut().for_each(|q| *q = 2.0_f64.powi(-12));
    let data = Data {
        q: data.q.iter().map(|x| lookback_suite::random::round::<f16>(*x)).collect(),
        k: data.k.iter().map(|x| lookback_suite::random::round::<f16>(*x)).collect(),
        v: data.v,
    };
    let got = forward::<f16>(&case, &data);
    let want = lookback_reference::time_reduce::forward(&case.reference(), &data.q, &data.k, &data.v);
    assert!(want.kv.iter().any(|kv| *kv > 1e5), "larger than any f16");
    lookback_suite::measure::assert_close("o", &got.o, &want.o, 16, lookback_suite::measure::Gate::F16);
}

/// Calls `run` under several schedules of the emulator; once on a GPU.
fn under_schedules(mut run: impl FnMut(&str)) {
    run("as it comes");
    if !device::info().emulated {
        return;
    }
    let schedules = [("inorder", "1"), ("reversed", "3"), ("reversed", "64"), ("random:1", "5"), ("random:2", "64")];
    for (order, residency) in schedules {
        let _order = Switch::set("order", order, "inorder");
        let _residency = Switch::set("residency", residency, "auto");
        run(&format!("{order}, {residency} resident"));
    }
}

#[test]
fn time_reduce_same_bits_under_every_schedule() {
    for (map, lag) in [(Map::EluPlusOne, 1), (Map::Softmax, 2), (Map::Identity, 100)] {
        let policy = Policy { part_tokens: 32, apply_tokens: 64, lag };
        let dense = Case { batch: 2, policy, ..Case::new(map, 130, 32, 80) };
        let packed = Case { starts: Some(vec![0, 60, 60, 130]), batch: 1, ..dense.clone() };
        for case in [dense, packed] {
            let data = Data::new::<bf16>(&case);
            let first = forward::<bf16>(&case, &data);
            let single = (lag == 1).then(|| forward::<f32>(&case, &data));
            under_schedules(|schedule| {
                assert_eq!(forward::<bf16>(&case, &data), first, "{schedule}");
                let again = single.as_ref().map(|_| forward::<f32>(&case, &data));
                assert_eq!(again, single, "{schedule}");
            });
            // How readers are cut and when they come does not matter either.
            let policy = Policy { apply_tokens: 256, lag: 3, ..policy };
            assert_eq!(forward::<bf16>(&Case { policy, ..case }, &data), first);
        }
    }
}

#[test]
fn time_reduce_one_workspace_serves_many_launches_and_shapes() {
    let cases = [(300, 64, 64), (40, 16, 200), (129, 130, 8), (0, 64, 64), (300, 64, 64)]
        .map(|(t, k, v)| Case { batch: 3, ..Case::new(Map::Identity, t, k, v) });
    let bytes = cases.iter().map(|c| c.plan(DType::F16).workspace_bytes()).max().expect("one");
    let mut workspace = Workspace::new(&device::stream(), bytes).expect("memory");
    for case in cases.iter().chain(&cases) {
        let data = Data::new::<f16>(case);
        let shared = forward_in::<f16>(case, &data, &case.plan(DType::F16), &mut workspace);
        assert_eq!(shared, forward::<f16>(case, &data), "{case:?}");
    }
}

#[test]
fn time_reduce_counters_are_at_the_floor() {
    const TOKENS: usize = 1024;
    for (map, key_dim, value_dim) in
        [(Map::EluPlusOne, 64, 64), (Map::Identity, 128, 64), (Map::Softmax, 128, 128), (Map::Taylor, 16, 64)]
    {
        let shape = Shape::dense(1, TOKENS, 1, key_dim, value_dim);
        // One segment: what is counted then is the tensors and one cell.
        let policy = Policy { part_tokens: TOKENS, apply_tokens: TOKENS / 4, lag: 1 };
        let options = Options { policy: Some(policy), ..Options::new(DType::Bf16, map) };
        let plan = Plan::new(&shape, &options, &device::info()).unwrap();
        let keys = upload_as::<bf16>(&vec![0.5; TOKENS * key_dim]);
        let values = upload_as::<bf16>(&vec![0.25; TOKENS * value_dim]);
        let q = upload_as::<bf16>(&vec![0.5; TOKENS * key_dim]);
        let mut o = upload_as::<bf16>(&vec![0.0; TOKENS * value_dim]);
        let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).unwrap();
        let run = || {
            let inputs = Inputs { q: Some(&q), k: &keys, v: &values, cu_seqlens: None, prefix_len: None };
            let outputs = Outputs { o: Some(&mut o), den: None, kv: None, ksum: None };
            plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        let what = format!("{map:?} {key_dim} {value_dim}");
        let features: usize = if map == Map::Taylor { 192 } else { key_dim };
        let cells = 2 * (value_dim / 64 * 264 * features) as u64;
        counters.assert_streams(&what, plan.bytes_moved() + cells);
        counters.assert_coalesced(&what);
        let read = |tiles: usize| (2 * TOKENS * (2 * key_dim * tiles + value_dim)) as u64;
        let loaded = counters.number("global_loads/bytes");
        // Keys and queries once for each 64 values; four readers and one cell each.
        let most = read(value_dim / 64) + 4 * cells;
        assert!(loaded <= most + most / 20, "{what}: {loaded} of {most}");
        // What a map makes is summed in two parts; a product more for each 64 values is the sum of features.
        let parts = if map == Map::Identity { 1 } else { 2 };
        let sums = (parts * 2 * TOKENS * features * 72 * value_dim / 64) as u64;
        let reads = (2 * TOKENS * features * value_dim) as u64;
        assert_eq!(counters.number("tensor_flops"), sums + reads, "{what}");
    }
}

#[test]
fn time_reduce_bad_calls_are_refused() {
    let info = device::info();
    let dense = Shape::dense(2, 70, 4, 16, 16);
    let options = Options::new(DType::F32, Map::Identity);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { key_dim: 257, ..dense }, options), Error::Range { arg: "key_dim", .. }));
    assert!(matches!(refused(Shape { key_dim: 0, ..dense }, options), Error::Range { arg: "key_dim", .. }));
    let taylor = Options { map: Map::Taylor, ..options };
    assert!(matches!(refused(Shape { key_dim: 17, ..dense }, taylor), Error::Range { arg: "key_dim", hi: 16, .. }));
    assert!(matches!(refused(Shape { key_heads: 3, ..dense }, options), Error::Shape { arg: "key_heads", .. }));
    assert!(matches!(refused(Shape { packed: Some(2), ..dense }, options), Error::Range { arg: "batch", .. }));
    let softmax = Options { map: Map::Softmax, normalize: Some(0.0), ..options };
    assert!(matches!(refused(dense, softmax), Error::NoKernel { .. }));
    let policy =
        |part_tokens, apply_tokens, lag| Options { policy: Some(Policy { part_tokens, apply_tokens, lag }), ..options };
    assert!(matches!(refused(dense, policy(16, 64, 1)), Error::Range { arg: "part_tokens", .. }));
    assert!(matches!(refused(dense, policy(64, 96, 1)), Error::Shape { arg: "apply_tokens", .. }));
    assert!(matches!(refused(dense, policy(64, 64, 0)), Error::Range { arg: "lag", .. }));
    let strides = Strides { o: Some(Stride { batch: 70 * 64, token: 63, head: 16 }), ..Strides::default() };
    assert!(matches!(refused(Shape { strides, ..dense }, options), Error::Layout { arg: "o", .. }));

    let plan = Plan::new(&dense, &options, &info).unwrap();
    let stream = device::stream();
    let (x, short) = (upload_as::<f32>(&[0.0; 2 * 70 * 64]), upload_as::<f32>(&[0.0; 2 * 70 * 64 - 1]));
    let starts = upload(&[0, 70]);
    let mut o = Guarded::<f32>::poisoned(2 * 70 * 64, 0);
    let mut workspace = Workspace::new(&stream, plan.workspace_bytes()).unwrap();
    let inputs = || Inputs { q: Some(&x), k: &x, v: &x, cu_seqlens: None, prefix_len: None };
    let run = |inputs: Inputs<'_, f32>, o: Option<&mut dyn DevicePtrMut<f32>>, workspace: &mut Workspace| {
        let outputs = Outputs { o, den: None, kv: None, ksum: None };
        plan.run(&device::stream(), &inputs, outputs, workspace).unwrap_err()
    };
    let error = run(Inputs { k: &short, ..inputs() }, Some(&mut o.view_mut()), &mut workspace);
    assert!(matches!(error, Error::Shape { arg: "k", .. }), "{error}");
    let error = run(Inputs { cu_seqlens: Some(&starts), ..inputs() }, Some(&mut o.view_mut()), &mut workspace);
    assert!(matches!(error, Error::Shape { arg: "cu_seqlens", .. }), "{error}");
    let error = run(inputs(), None, &mut workspace);
    assert!(matches!(error, Error::Shape { arg: "o", .. }), "{error}");
    let error = run(Inputs { q: None, ..inputs() }, Some(&mut o.view_mut()), &mut workspace);
    assert!(matches!(error, Error::Shape { arg: "q", .. }), "{error}");
    let mut small = Workspace::new(&stream, plan.workspace_bytes() - 1).unwrap();
    let error = run(inputs(), Some(&mut o.view_mut()), &mut small);
    assert!(matches!(error, Error::Workspace { .. }), "{error}");
    let halves = upload_as::<f16>(&[0.0; 2 * 70 * 64]);
    let mut half_o = upload_as::<f16>(&[0.0; 2 * 70 * 64]);
    let inputs = Inputs { q: Some(&halves), k: &halves, v: &halves, cu_seqlens: None, prefix_len: None };
    let outputs = Outputs { o: Some(&mut half_o), den: None, kv: None, ksum: None };
    let error = plan.run(&stream, &inputs, outputs, &mut workspace).unwrap_err();
    assert!(matches!(error, Error::Dtype { .. }), "{error}");
    let address = x.device_ptr(&stream).0;
    let raw = RawInputs { q: address, k: address, v: address, ..RawInputs::default() };
    let memory = RawWorkspace { address: 4096, bytes: plan.workspace_bytes() };
    // SAFETY: the host refuses the call before any launch.
    let error = unsafe { plan.run_raw(&stream, &raw, &RawOutputs { o: address, ..RawOutputs::default() }, memory) };
    assert!(matches!(error.unwrap_err(), Error::Alias { a: "o", .. }));
    device::finish();
    assert!(o.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}

#[test]
fn time_reduce_without_queries_is_an_encoder() {
    let case = Case { key_heads: 1, ..Case::new(Map::Taylor, 150, 16, 64) };
    let data = Data::new::<bf16>(&case);
    let want = forward::<bf16>(&case, &data);
    let plan = case.plan(DType::Bf16);
    let (k, v) = (upload_as::<bf16>(&data.k), upload_as::<bf16>(&data.v));
    let mut kv = Guarded::<f32>::poisoned(2 * 153 * 64, 0);
    let mut ksum = Guarded::<f32>::poisoned(2 * 153, 0);
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).unwrap();
    let inputs = Inputs { q: None, k: &k, v: &v, cu_seqlens: None, prefix_len: None };
    let (mut kv_view, mut ksum_view) = (kv.view_mut(), ksum.view_mut());
    let outputs = Outputs { o: None, den: None, kv: Some(&mut kv_view), ksum: Some(&mut ksum_view) };
    plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap();
    device::finish();
    assert_eq!((kv.read(), ksum.read()), (want.kv, want.ksum));
}
