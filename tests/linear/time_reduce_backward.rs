//! Gradients of linear attention over all tokens at once.

use super::time_reduce_case::{Case, Data, Out};
use half::{bf16, f16};
use lookback_device::{
    DType, Element, Error,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_linear::{
    Shape,
    time_reduce::{BackwardInputs, BackwardOutputs, BackwardPlan, Map, Options, Policy, Workspace},
};
use lookback_reference::time_reduce as reference;
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    counters::Switch,
    device,
    measure::{Gate, assert_close},
    random::{Random, round},
};

/// Gradients.
#[derive(Debug, Clone, PartialEq)]
struct Gradients([Vec<f64>; 3]);

/// Adjoints of the outputs.
struct Adjoint {
    o: Vec<f64>,
    kv: Option<Vec<f64>>,
    ksum: Option<Vec<f64>>,
}

impl Adjoint {
    fn new<T: Element>(case: &Case, states: bool) -> Self {
        let mut random = Random::new(77);
        let n = case.shape().sequences() * case.heads * case.map.features(case.key_dim);
        let o = random.normals::<T>(case.batch * case.seq_len * case.heads * case.value_dim);
        let kv = states.then(|| random.normals::<f32>(n * case.value_dim));
        let ksum = (states && case.map != Map::Softmax).then(|| random.normals::<f32>(n));
        Self { o, kv, ksum }
    }
}

fn gate(dtype: DType) -> Gate {
    match dtype {
        DType::F32 => Gate { rel: 1e-5, row: 2e-5, inf: 2e-5 },
        _ => Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 },
    }
}

/// What the forward pass left, in the types that it leaves it in.
fn saved<T: Element>(case: &Case, data: &Data) -> Out {
    let exact = reference::forward(&case.reference(), &data.q, &data.k, &data.v);
    let single = |v: &[f64]| v.iter().map(|v| round::<f32>(*v)).collect::<Vec<_>>();
    Out {
        o: exact.o.iter().map(|v| round::<T>(*v)).collect(),
        den: single(&exact.den),
        kv: single(&exact.kv),
        ksum: single(&exact.ksum),
    }
}

fn backward<T: Element>(case: &Case, data: &Data, saved: &Out, adjoint: &Adjoint) -> Gradients {
    let plan = BackwardPlan::new(&case.shape(), &case.options(T::DTYPE), &device::info()).unwrap();
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).expect("memory");
    backward_in::<T>(case, data, saved, adjoint, &plan, &mut workspace)
}

fn backward_in<T: Element>(
    case: &Case,
    data: &Data,
    saved: &Out,
    adjoint: &Adjoint,
    plan: &BackwardPlan,
    workspace: &mut Workspace,
) -> Gradients {
    let spread = |values: &[f64], heads: usize, width: usize| upload_as::<T>(&case.spread(values, heads, width));
    let q = spread(&data.q, case.query_heads, case.key_dim);
    let k = spread(&data.k, case.key_heads, case.key_dim);
    let v = spread(&data.v, case.heads, case.value_dim);
    let (o, d_o) = (spread(&saved.o, case.heads, case.value_dim), spread(&adjoint.o, case.heads, case.value_dim));
    let singles = |values: &[f64]| upload_as::<f32>(values);
    let (kv, ksum, den) = (singles(&saved.kv), singles(&saved.ksum), singles(&saved.den));
    let (d_kv, d_ksum) = (adjoint.kv.as_deref().map(singles), adjoint.ksum.as_deref().map(singles));
    let indices = |values: &Option<Vec<i32>>| values.as_ref().map(|v| upload(v));
    let (starts, prefix) = (indices(&case.starts), indices(&case.prefix));
    let mut dq = Guarded::<T>::poisoned(data.q.len(), 0);
    let mut dk = Guarded::<T>::poisoned(data.k.len(), 0);
    let mut dv = Guarded::<T>::poisoned(data.v.len(), 0);
    fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
        slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
    }
    {
        let inputs = BackwardInputs {
            q: &q,
            k: &k,
            v: &v,
            cu_seqlens: some(&starts),
            prefix_len: some(&prefix),
            kv: &kv,
            ksum: (case.normalize || case.map == Map::Softmax).then_some(&ksum as &dyn DevicePtr<f32>),
            o: case.normalize.then_some(&o as &dyn DevicePtr<T>),
            den: case.normalize.then_some(&den as &dyn DevicePtr<f32>),
            d_o: &d_o,
            d_kv: some(&d_kv),
            d_ksum: some(&d_ksum),
        };
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        plan.run(&device::stream(), &inputs, outputs, workspace).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    device::finish();
    Gradients([dq.read(), dk.read(), dv.read()])
}

pub fn check<T: Element>(case: &Case, states: bool) {
    let data = Data::new::<T>(case);
    let adjoint = Adjoint::new::<T>(case, states);
    let saved = saved::<T>(case, &data);
    let Out { o, den, kv, ksum } = saved.clone();
    let forward = reference::Forward { o, den, kv, ksum };
    let given = reference::Adjoint { o: &adjoint.o, kv: adjoint.kv.as_deref(), ksum: adjoint.ksum.as_deref() };
    let want = reference::backward(&case.reference(), &data.q, &data.k, &data.v, &forward, &given);
    let got = backward::<T>(case, &data, &saved, &adjoint);
    let row = |width: usize| width * 16_usize.div_ceil(width);
    for (name, got, want, width) in [
        ("dv", &got.0[2], &want.v, case.value_dim),
        ("dq", &got.0[0], &want.q, case.key_dim),
        ("dk", &got.0[1], &want.k, case.key_dim),
    ] {
        assert_close(&format!("{name} of {} {case:?}", T::DTYPE), got, want, row(width), gate(T::DTYPE));
    }
}

const POINTWISE: [Map; 5] = [Map::Identity, Map::EluPlusOne, Map::Relu, Map::Exp, Map::Softmax];

#[test]
fn time_reduce_backward_matches_the_oracle_for_every_map() {
    for map in POINTWISE {
        for states in [false, true] {
            let case = Case { batch: 2, ..Case::new(map, 100, 64, 64) };
            check::<f32>(&case, states);
            check::<f16>(&case, states);
            check::<bf16>(&case, states);
        }
    }
}

#[test]
fn time_reduce_backward_of_taylor_features() {
    for (key_dim, value_dim) in [(16, 64), (16, 130), (5, 20)] {
        let case = Case { batch: 2, ..Case::new(Map::Taylor, 70, key_dim, value_dim) };
        check::<f32>(&case, true);
        check::<f16>(&case, true);
        check::<bf16>(&Case { normalize: false, ..case }, false);
    }
    let packed = Case { starts: Some(vec![0, 20, 20, 150]), ..Case::new(Map::Taylor, 150, 16, 40) };
    let grouped = Case { heads: 4, query_heads: 2, key_heads: 1, prefix: Some(vec![15, 3, 100]), gap: 1, ..packed };
    check::<f32>(&grouped, true);
    check::<bf16>(&grouped, true);
}

#[test]
fn time_reduce_backward_matches_the_oracle_for_every_size() {
    for (key_dim, value_dim) in [(16, 64), (17, 3), (100, 128), (64, 200), (256, 256)] {
        for map in [Map::EluPlusOne, Map::Softmax] {
            let case = Case { heads: 1, query_heads: 1, key_heads: 1, ..Case::new(map, 70, key_dim, value_dim) };
            check::<f32>(&case, true);
            check::<bf16>(&case, true);
        }
    }
    // Keys of a single token have no gradient through a softmax: nothing to compare a rounding error with.
    for (map, seq_len) in
        [(Map::Exp, 0), (Map::Exp, 1), (Map::Exp, 15), (Map::Softmax, 0), (Map::Softmax, 2), (Map::Softmax, 65)]
    {
        check::<f32>(&Case::new(map, seq_len, 24, 40), true);
        check::<f16>(&Case::new(map, seq_len, 24, 40), true);
    }
}

#[test]
fn time_reduce_backward_groups_prefixes_and_packed_sequences() {
    let (short, starts) = (Some(vec![0, 0, 1, 70, 70, 140]), Some(vec![0, 0, 20, 70, 70, 140]));
    for map in [Map::EluPlusOne, Map::Softmax] {
        for (query_heads, key_heads) in [(4, 1), (2, 4)] {
            let case = Case { heads: 4, query_heads, key_heads, gap: 4, ..Case::new(map, 140, 32, 24) };
            let packed = Case { starts: starts.clone(), ..case.clone() };
            for case in [
                Case { prefix: Some(vec![0]), ..case.clone() },
                Case { prefix: Some(vec![90]), gap: 1, ..case },
                Case { prefix: Some(vec![3, 18, 30, 0, 1000]), ..packed.clone() },
                packed.clone(),
            ] {
                check::<f32>(&case, true);
                check::<bf16>(&case, false);
            }
            // Where a sequence sums one token, numerator and denominator cancel in a query's gradient: for f32 alone.
            let one = Case { starts: short.clone(), prefix: Some(vec![3, 1, 2, 0, 1000]), ..packed };
            check::<f32>(&one, true);
        }
    }
}

#[test]
fn time_reduce_backward_same_bits_under_every_schedule() {
    for map in [Map::EluPlusOne, Map::Softmax] {
        let policy = Policy { part_tokens: 32, apply_tokens: 64, lag: 1 };
        let case = Case { heads: 2, key_heads: 1, policy, ..Case::new(map, 130, 32, 40) };
        let (data, adjoint) = (Data::new::<bf16>(&case), Adjoint::new::<bf16>(&case, true));
        let saved = saved::<bf16>(&case, &data);
        let first = backward::<bf16>(&case, &data, &saved, &adjoint);
        if !device::info().emulated {
            return;
        }
        for (order, residency) in [("inorder", "1"), ("reversed", "3"), ("random:1", "5"), ("random:2", "64")] {
            let _order = Switch::set("order", order, "inorder");
            let _residency = Switch::set("residency", residency, "auto");
            assert_eq!(backward::<bf16>(&case, &data, &saved, &adjoint), first, "{order}, {residency} resident");
        }
    }
}

#[test]
fn time_reduce_backward_shares_a_workspace() {
    let cases = [(130, 64, 64), (40, 16, 200), (130, 64, 64)].map(|(t, k, v)| Case::new(Map::EluPlusOne, t, k, v));
    let plan = |case: &Case| BackwardPlan::new(&case.shape(), &case.options(DType::F32), &device::info()).unwrap();
    let bytes = cases.iter().map(|case| plan(case).workspace_bytes()).max().expect("one");
    let mut workspace = Workspace::new(&device::stream(), bytes).expect("memory");
    for case in cases.iter().chain(&cases) {
        let (data, adjoint) = (Data::new::<f32>(case), Adjoint::new::<f32>(case, true));
        let saved = saved::<f32>(case, &data);
        let shared = backward_in::<f32>(case, &data, &saved, &adjoint, &plan(case), &mut workspace);
        assert_eq!(shared, backward::<f32>(case, &data, &saved, &adjoint), "{case:?}");
    }
}

#[test]
fn time_reduce_backward_bad_calls_are_refused() {
    let info = device::info();
    let dense = Shape::dense(1, 4, 2, 16, 16);
    let options = Options { normalize: Some(0.5), ..Options::new(DType::F32, Map::EluPlusOne) };
    let refused = |shape: Shape| BackwardPlan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { value_dim: 257, ..dense }), Error::Range { arg: "value_dim", .. }));
    assert!(matches!(refused(Shape { heads: 70_000, ..dense }), Error::Shape { .. } | Error::Range { .. }));
    let plan = BackwardPlan::new(&dense, &options, &info).unwrap();
    let (x, state) = (upload_as::<f32>(&[0.0; 128]), upload_as::<f32>(&[0.0; 512]));
    let mut grads = [(); 3].map(|()| Guarded::<f32>::poisoned(128, 0));
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).unwrap();
    {
        let inputs = BackwardInputs {
            q: &x,
            k: &x,
            v: &x,
            cu_seqlens: None,
            prefix_len: None,
            kv: &state,
            ksum: Some(&x),
            o: Some(&x),
            den: None,
            d_o: &x,
            d_kv: None,
            d_ksum: None,
        };
        let [dq, dk, dv] = &mut grads;
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let error = plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap_err();
        assert!(matches!(error, Error::Shape { arg: "den", .. }), "{error}");
        let den = upload_as::<f32>(&[1.0; 8]);
        let inputs = BackwardInputs { kv: &x, den: Some(&den), ..inputs };
        let outputs = BackwardOutputs { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let error = plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap_err();
        assert!(matches!(error, Error::Shape { arg: "kv", .. }), "{error}");
    }
    device::finish();
    assert!(grads.iter().all(|g| g.read().iter().all(|v| v.is_nan())), "nothing may be written on an error");
}
