//! What a caller of the backward pass can get wrong is an error that names it, and nothing is written.

use super::{
    backward_case::{Adjoints, UploadedAdjoints, plan},
    case::{Case, Data, Uploaded},
};
use cudarc::driver::{CudaViewMut, DevicePtr, DevicePtrMut};
use lookback_device::{DType, Error};
use lookback_linear::{
    BackwardInputs, BackwardOutputs, BackwardPlan, Decay, Mode, Options, Path, RawBackwardInputs, RawBackwardOutputs,
    RawInputs, RawWorkspace, Read, Shape,
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};

fn case() -> Case {
    Case { decay: Decay::Scalar, ..Case::new(DType::F32, 2, 10, 8, 4) }
}

/// Outputs that a test may leave out.
#[derive(Clone, Copy)]
struct Wanted {
    dg: bool,
    d_bonus: bool,
    d_normalizer: bool,
    reverse_dq: bool,
    workspace: u64,
}

/// The error of a run with altered inputs and outputs, which must stay poison.
fn error(case: &Case, wanted: Wanted, alter: impl for<'a> Fn(&mut BackwardInputs<'a, f32>)) -> Error {
    let data = Data::new::<f32>(case);
    let adjoints = Adjoints::new::<f32>(case, &data);
    let (on, adjoints) = (Uploaded::<f32>::new(case, &data), UploadedAdjoints::<f32>::new(case, &adjoints));
    let mut inputs = adjoints.inputs(&on);
    alter(&mut inputs);
    let mut outputs: [Guarded<f32>; 7] = std::array::from_fn(|_| Guarded::poisoned(1000, 0));
    let mut workspace = Guarded::<u8>::filled(wanted.workspace as usize, 0, 0xff);
    let error = {
        let [mut dq, mut dk, mut dv, mut dg, mut d_bonus, mut d_normalizer, mut reverse_dq] =
            outputs.each_mut().map(Guarded::view_mut);
        fn some<'a>(there: bool, view: &'a mut CudaViewMut<'_, f32>) -> Option<&'a mut dyn DevicePtrMut<f32>> {
            there.then_some(view as &mut dyn DevicePtrMut<f32>)
        }
        let mut out = BackwardOutputs::of(&mut dq, &mut dk, &mut dv);
        out.dg = some(wanted.dg, &mut dg);
        out.d_bonus = some(wanted.d_bonus, &mut d_bonus);
        out.d_normalizer = some(wanted.d_normalizer, &mut d_normalizer);
        out.reverse.dq = some(wanted.reverse_dq, &mut reverse_dq);
        let mut workspace = workspace.view_mut();
        plan(case).run(&device::stream(), &inputs, out, Some(&mut workspace))
    };
    for output in &outputs {
        assert!(output.read().iter().all(|v| v.is_nan()), "nothing is written on an error");
    }
    error.expect_err("an error")
}

fn named(error: Error) -> &'static str {
    match error {
        Error::Shape { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

fn wanted(case: &Case) -> Wanted {
    let workspace = plan(case).workspace_bytes();
    Wanted { dg: true, d_bonus: false, d_normalizer: false, reverse_dq: false, workspace }
}

#[test]
fn backward_wrong_tensors_are_named() {
    let case = case();
    let all = wanted(&case);
    assert_eq!(named(error(&case, all, |i| i.forward.g = None)), "g");
    assert_eq!(named(error(&case, Wanted { dg: false, ..all }, |_| {})), "dg");
    assert_eq!(named(error(&case, Wanted { d_bonus: true, ..all }, |_| {})), "d_bonus");
    assert_eq!(named(error(&case, Wanted { d_normalizer: true, ..all }, |_| {})), "d_normalizer out");
    assert_eq!(named(error(&case, Wanted { reverse_dq: true, ..all }, |_| {})), "reverse.dq");
    assert_eq!(named(error(&case, all, |i| i.denominator = i.d_state)), "denominator");
    assert_eq!(named(error(&case, all, |i| i.d_normalizer = i.d_state)), "d_normalizer");
    assert_eq!(named(error(&case, all, |i| i.d_reverse_state = i.d_state)), "d_reverse_state");
    let normalized = Case { normalize: Some(0.5), ..case.clone() };
    let all = wanted(&normalized);
    assert_eq!(named(error(&normalized, all, |i| i.o = None)), "o");
    assert_eq!(named(error(&normalized, all, |i| i.denominator = None)), "denominator");
    let both = Case { mode: Mode::Bidirectional, own_reverse: true, decay: Decay::None, ..case.clone() };
    assert_eq!(named(error(&both, Wanted { dg: false, ..wanted(&both) }, |_| {})), "reverse.dq");
}

#[test]
fn backward_short_tensors_are_named() {
    let case = case();
    let data = Data::new::<f32>(&case);
    let adjoints = Adjoints::new::<f32>(&case, &data);
    let (on, adjoints) = (Uploaded::<f32>::new(&case, &data), UploadedAdjoints::<f32>::new(&case, &adjoints));
    let short = upload_as::<f32>(&[0.0; 31]);
    let check = |name: &str, inputs: BackwardInputs<'_, f32>| {
        let [mut dq, mut dk, mut dv] = [320, 320, 160].map(|n| upload_as::<f32>(&vec![0.0; n]));
        let outputs = BackwardOutputs::of(&mut dq, &mut dk, &mut dv);
        assert_eq!(named(plan(&case).run(&device::stream(), &inputs, outputs, None).expect_err(name)), name);
    };
    check("d_o", BackwardInputs { d_o: &short, ..adjoints.inputs(&on) });
    check("d_state", BackwardInputs { d_state: Some(&short), ..adjoints.inputs(&on) });
    check("o", BackwardInputs { o: Some(&short), ..adjoints.inputs(&on) });
    let mut inputs = adjoints.inputs(&on);
    inputs.forward.k = &short;
    check("k", inputs);
    let [mut dq, mut dk, mut dv] = [320, 319, 160].map(|n| upload_as::<f32>(&vec![0.0; n]));
    let outputs = BackwardOutputs::of(&mut dq, &mut dk, &mut dv);
    let done = plan(&case).run(&device::stream(), &adjoints.inputs(&on), outputs, None);
    assert_eq!(named(done.expect_err("short")), "dk");
}

#[test]
fn backward_workspace_too_small_is_an_error() {
    let case = case();
    let need = wanted(&case).workspace;
    assert!(need > 0);
    let got = error(&case, Wanted { workspace: need - 1, ..wanted(&case) }, |_| {});
    assert!(matches!(got, Error::Workspace { need: n, got, .. } if n == need && got == need - 1), "{got}");
}

#[test]
fn backward_overlap_and_misalignment_are_errors() {
    let shape = Shape::dense(1, 10, 2, 8, 4);
    let options = Options { scale: 1.0, ..Options::new::<f32>(&shape) };
    let plan = BackwardPlan::new(&shape, &options, &device::info()).expect("good");
    assert_eq!(plan.workspace_bytes(), 0, "f32 without decay writes what the walks write");
    let memory = upload_as::<f32>(&[0.0; 4000]);
    let stream = device::stream();
    let (base, _guard) = memory.device_ptr(&stream);
    let run = |inputs: RawBackwardInputs, outputs: RawBackwardOutputs| {
        // SAFETY: every call is refused before anything is launched.
        unsafe { plan.run_raw(&stream, &inputs, &outputs, RawWorkspace::default()) }
    };
    // q, k and their gradients have 640 bytes, v, d_o and dv 320, states 256.
    let forward = RawInputs { q: base, k: base + 1000, v: base + 2000, ..RawInputs::default() };
    let inputs = RawBackwardInputs { forward, d_o: base + 3000, ..RawBackwardInputs::default() };
    let out = RawBackwardOutputs { dq: base + 4000, dk: base + 5000, dv: base + 6000, ..RawBackwardOutputs::default() };
    for (dq, other) in
        [(base + 636, "q"), (base + 996, "k"), (base + 2316, "v"), (base + 3316, "d_o"), (base + 5000, "dk")]
    {
        let got = run(inputs, RawBackwardOutputs { dq, ..out });
        assert!(matches!(got, Err(Error::Alias { a: "dq", b, .. }) if b == other), "{got:?}");
    }
    let got =
        run(RawBackwardInputs { d_state: base + 7000, ..inputs }, RawBackwardOutputs { d_state: base + 7000, ..out });
    assert!(matches!(got, Err(Error::Alias { a: "d_state out", b: "d_state", .. })), "{got:?}");
    let got = run(RawBackwardInputs { d_o: base + 3002, ..inputs }, out);
    assert!(matches!(got, Err(Error::Align { arg: "d_o", need: 4, .. })), "{got:?}");
    let got = run(inputs, RawBackwardOutputs { dv: 0, ..out });
    assert!(matches!(got, Err(Error::Align { arg: "dv", .. })), "{got:?}");
}

#[test]
fn backward_element_type_must_be_the_plans() {
    let plan = plan(&Case { dtype: DType::Bf16, decay: Decay::None, ..case() });
    let a = upload_as::<f32>(&[0.0; 400]);
    let [mut dq, mut dk, mut dv] = [400; 3].map(|n| upload_as::<f32>(&vec![0.0; n]));
    let inputs = BackwardInputs::of(lookback_linear::Inputs::of(&a, &a, &a), &a);
    let got = plan.run(&device::stream(), &inputs, BackwardOutputs::of(&mut dq, &mut dk, &mut dv), None);
    assert!(matches!(got, Err(Error::Dtype { want: DType::Bf16, got: DType::F32, .. })), "{got:?}");
}

#[test]
fn backward_sizes_are_errors_of_the_plan() {
    let plan = |shape: Shape, alter: &dyn Fn(&mut Options)| {
        let mut options = Options::new::<f32>(&shape);
        alter(&mut options);
        BackwardPlan::new(&shape, &options, &device::info())
    };
    let good = Shape::dense(1, 10, 6, 8, 4);
    assert!(plan(good, &|_| {}).is_ok());
    let got = plan(Shape { value_dim: 257, ..good }, &|_| {});
    assert!(matches!(got, Err(Error::Range { arg: "value_dim", hi: 256, got: 257, .. })), "{got:?}");
    let got = plan(Shape { value_dim: 249, ..good }, &|o| o.normalize = Some(1.0));
    assert!(matches!(got, Err(Error::Range { arg: "value_dim", hi: 248, got: 249, .. })), "{got:?}");
    let got = plan(Shape { key_heads: 4, ..good }, &|_| {});
    assert!(matches!(got, Err(Error::Shape { arg: "key_heads", .. })), "{got:?}");
    for alter in [
        &(|o: &mut Options| o.scale = 0.0) as &dyn Fn(&mut Options),
        &|o| o.scale = f32::NAN,
        &|o| o.path = Path::Chain,
        &|o| (o.mode, o.normalize) = (Mode::Bidirectional, Some(1.0)),
        &|o| (o.mode, o.read) = (Mode::PrefixRead, Read::Shifted),
    ] {
        let got = plan(good, alter);
        assert!(matches!(got, Err(Error::NoKernel { .. })), "{got:?}");
    }
}
