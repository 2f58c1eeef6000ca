//! What a caller can get wrong is an error that names it, and nothing is written.

use super::case::{Case, Data, Uploaded, with_inputs};
use cudarc::driver::DevicePtr;
use lookback_device::{DType, Error};
use lookback_scan::{Gates, Inputs, Outputs, Plan, RawInputs, RawOutputs, RawWorkspace, Source, Workspace};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    random::Random,
};

fn case() -> Case {
    Case::new(Source::Tensor, DType::F32, 2, 200, 8)
}

fn plan(case: &Case) -> Plan {
    Plan::new(&case.shape(), &case.options(), &device::info()).unwrap_or_else(|e| panic!("{e}"))
}

/// The error of a run with altered inputs, `h` of `len` elements and a workspace of `bytes`; `h` must stay poison.
fn error(case: &Case, len: usize, bytes: u64, alter: impl for<'a> Fn(&mut Inputs<'a, f32>)) -> Error {
    let data = Data::new::<f32>(case);
    let on = Uploaded::<f32>::new(case, &data);
    let mut workspace = Workspace::new(&device::stream(), bytes).expect("memory");
    let mut h = Guarded::<f32>::poisoned(len, 0);
    let error = with_inputs(case.source, &on, |mut inputs| {
        alter(&mut inputs);
        let mut h = h.view_mut();
        plan(case).run(&device::stream(), &inputs, Outputs { h: &mut h, last: None }, &mut workspace)
    });
    assert!(h.read().iter().all(|v| v.is_nan()), "nothing is written on an error");
    error.expect_err("an error")
}

#[test]
fn gated_scan_wrong_tensors_are_named() {
    let (case, n) = (case(), 2 * 200 * 8);
    let bytes = plan(&case).workspace_bytes();
    let named = |error: Error| match error {
        Error::Shape { arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(named(error(&case, n - 1, bytes, |_| {})), "h");
    assert_eq!(named(error(&case, n, bytes, |i| i.gates.a = None)), "a");
    assert_eq!(named(error(&case, n, bytes, |i| i.gates.b = None)), "b");
    assert_eq!(named(error(&case, n, bytes, |i| i.gates.x = i.gates.a)), "x");
}

#[test]
fn gated_scan_workspace_too_small_is_an_error() {
    let case = case();
    let need = plan(&case).workspace_bytes();
    assert!(need > 0);
    for bytes in [0, need - 1] {
        let got = error(&case, 2 * 200 * 8, bytes, |_| {});
        assert!(matches!(got, Error::Workspace { need: n, got: g, .. } if n == need && g == bytes), "{got}");
    }
}

#[test]
fn gated_scan_element_type_must_be_the_plans() {
    let plan = plan(&Case { dtype: DType::Bf16, ..case() });
    let (a, mut h) = (upload_as::<f32>(&vec![0.0; 3200]), upload_as::<f32>(&vec![0.0; 3200]));
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).expect("memory");
    let outputs = Outputs { h: &mut h, last: None };
    let got = plan.run(&device::stream(), &Inputs::of(Gates::tensor(&a, &a)), outputs, &mut workspace);
    assert!(matches!(got, Err(Error::Dtype { want: DType::Bf16, got: DType::F32, .. })));
}

#[test]
fn gated_scan_overlap_and_misalignment_are_errors() {
    let case = Case { batch: 1, seq_len: 100, ..case() };
    let plan = plan(&case);
    let memory = upload_as::<f32>(&vec![0.0; 4000]);
    let stream = device::stream();
    let (base, _guard) = memory.device_ptr(&stream);
    let run = |inputs: RawInputs, outputs: RawOutputs| {
        // SAFETY: every call is refused before anything is launched.
        unsafe { plan.run_raw(&stream, &inputs, &outputs, RawWorkspace { address: 0, bytes: 0 }) }
    };
    let inputs = RawInputs { a: base, b: base + 3200, ..RawInputs::default() };
    for (h, other) in [(base, "a"), (base + 3196, "b"), (base + 3204, "b")] {
        let got = run(inputs, RawOutputs { h, last: 0 });
        assert!(matches!(got, Err(Error::Alias { a: "h", b, .. }) if b == other), "{got:?}");
    }
    let got = run(inputs, RawOutputs { h: base + 6400, last: base + 6404 });
    assert!(matches!(got, Err(Error::Alias { a: "last", b: "h", .. })), "{got:?}");
    let got = run(RawInputs { a: base + 2, ..inputs }, RawOutputs { h: base + 6400, last: 0 });
    assert!(matches!(got, Err(Error::Align { arg: "a", need: 4, .. })), "{got:?}");
    let got = run(RawInputs { b: 0, ..inputs }, RawOutputs { h: base + 6400, last: 0 });
    assert!(matches!(got, Err(Error::Align { arg: "b", .. })), "{got:?}");
    let got = run(RawInputs { cu_seqlens: base, ..inputs }, RawOutputs { h: base + 6400, last: 0 });
    assert!(matches!(got, Err(Error::Shape { arg: "cu_seqlens", .. })), "{got:?}");
}

#[test]
fn gated_scan_hostile_starts_touch_nothing_outside() {
    let mut random = Random::new(5);
    for round in 0..6 {
        let mut starts: Vec<i32> = (0..9).map(|_| random.uniform(-200.0, 400.0) as i32).collect();
        if round == 0 {
            starts = vec![i32::MAX, i32::MIN, -1, 0, i32::MAX, 5, i32::MIN, 199, 200];
        }
        let good = Case { starts: Some(vec![0, 10, 20, 30, 40, 50, 60, 70, 80]), batch: 1, split: 4, ..case() };
        let data = Data::new::<f32>(&good);
        let on = Uploaded::<f32>::new(&good, &data);
        let hostile = upload(&starts);
        let plan = plan(&good);
        let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).expect("memory");
        let (mut h, mut last) = (Guarded::<f32>::poisoned(200 * 8, 0), Guarded::<f32>::poisoned(8 * 8, 0));
        with_inputs(good.source, &on, |inputs| {
            let inputs = Inputs { cu_seqlens: Some(&hostile as &dyn DevicePtr<i32>), ..inputs };
            let (mut h, mut last) = (h.view_mut(), last.view_mut());
            let outputs = Outputs { h: &mut h, last: Some(&mut last) };
            plan.run(&device::stream(), &inputs, outputs, &mut workspace).unwrap_or_else(|e| panic!("{starts:?}: {e}"));
        });
        assert!(h.read().iter().all(|v| v.is_finite()), "{starts:?}");
        // Reading checks the guards.
        last.read();
    }
}
