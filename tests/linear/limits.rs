//! What a caller can get wrong is an error that names it, and nothing is written.

use super::case::{Case, Data, Uploaded};
use cudarc::driver::{DevicePtr, DevicePtrMut};
use lookback_device::{DType, Error};
use lookback_linear::{
    Decay, Inputs, Mode, Options, Outputs, Path, Plan, RawInputs, RawOutputs, RawWorkspace, Read, Shape,
};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
};

fn case() -> Case {
    Case { decay: Decay::Scalar, ..Case::new(DType::F32, 2, 10, 8, 4) }
}

/// The error of a run with altered inputs and an output of `len` elements, which must stay poison.
fn error(case: &Case, len: usize, alter: impl for<'a> Fn(&mut Inputs<'a, f32>)) -> Error {
    let data = Data::new::<f32>(case);
    let on = Uploaded::<f32>::new(case, &data);
    let mut o = Guarded::<f32>::poisoned(len, 0);
    let mut inputs = on.inputs();
    alter(&mut inputs);
    let error = {
        let mut view = o.view_mut();
        case.plan().run(&device::stream(), &inputs, Outputs::of(&mut view), None)
    };
    assert!(o.read().iter().all(|v| v.is_nan()), "nothing is written on an error");
    error.expect_err("an error")
}

fn named(error: Error) -> &'static str {
    match error {
        Error::Shape { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

#[test]
fn linear_attention_wrong_tensors_are_named() {
    let (case, n) = (case(), 2 * 10 * 2 * 4);
    assert_eq!(named(error(&case, n - 1, |_| {})), "o");
    assert_eq!(named(error(&case, n, |i| i.g = None)), "g");
    assert_eq!(named(error(&case, n, |i| i.bonus = i.g)), "bonus");
    assert_eq!(named(error(&case, n, |i| i.normalizer = i.state)), "normalizer");
    assert_eq!(named(error(&case, n, |i| i.reverse.q = Some(i.q))), "reverse.q");
    assert_eq!(named(error(&case, n, |i| i.reverse.g = i.g)), "reverse.g");
    let no_decay = Case { decay: Decay::None, ..case.clone() };
    assert_eq!(named(error(&no_decay, n, |i| i.g = i.state)), "g");
    let prefix = Case { mode: Mode::PrefixState, ..case.clone() };
    assert_eq!(named(error(&prefix, n, |i| i.state = None)), "state");
    let prefix = Case { mode: Mode::PrefixRead, decay: Decay::None, prefix: vec![1, 2], ..case.clone() };
    assert_eq!(named(error(&prefix, n, |i| i.prefix_len = None)), "prefix_len");
    let packed = Case { starts: Some(vec![0, 3, 20]), batch: 1, seq_len: 20, ..case.clone() };
    assert_eq!(named(error(&packed, n, |i| i.cu_seqlens = None)), "cu_seqlens");
}

#[test]
fn linear_attention_short_inputs_are_named() {
    let case = case();
    let data = Data::new::<f32>(&case);
    let on = Uploaded::<f32>::new(&case, &data);
    let (short, flags) = (upload_as::<f32>(&[0.0; 31]), lookback_suite::buffer::upload(&[0_u8; 19]));
    let check = |name: &str, inputs: Inputs<'_, f32>| {
        let mut o = upload_as::<f32>(&[0.0; 160]);
        let done = case.plan().run(&device::stream(), &inputs, Outputs::of(&mut o), None);
        assert_eq!(named(done.expect_err(name)), name);
    };
    check("q", Inputs { q: &short, ..on.inputs() });
    check("k", Inputs { k: &short, ..on.inputs() });
    check("v", Inputs { v: &short, ..on.inputs() });
    check("g", Inputs { g: Some(&short), ..on.inputs() });
    check("state", Inputs { state: Some(&short), ..on.inputs() });
    check("flags", Inputs { flags: Some(&flags), ..on.inputs() });
    let mut o = upload_as::<f32>(&[0.0; 160]);
    let mut state = upload_as::<f32>(&[0.0; 127]);
    let outputs = Outputs { state: Some(&mut state as &mut dyn DevicePtrMut<f32>), ..Outputs::of(&mut o) };
    let done = case.plan().run(&device::stream(), &on.inputs(), outputs, None);
    assert_eq!(named(done.expect_err("short")), "final state");
}

#[test]
fn linear_attention_element_type_must_be_the_plans() {
    let plan = Case { dtype: DType::Bf16, decay: Decay::None, ..case() }.plan();
    let (a, mut o) = (upload_as::<f32>(&[0.0; 400]), upload_as::<f32>(&[0.0; 400]));
    let got = plan.run(&device::stream(), &Inputs::of(&a, &a, &a), Outputs::of(&mut o), None);
    assert!(matches!(got, Err(Error::Dtype { want: DType::Bf16, got: DType::F32, .. })), "{got:?}");
}

#[test]
fn linear_attention_workspace_too_small_is_an_error() {
    let case = Case { mode: Mode::PrefixRead, decay: Decay::None, prefix: vec![1, 2], ..case() };
    let need = case.plan().workspace_bytes();
    assert_eq!(need, (2 * 2 * (8 * 4 + 8) * 4_u64).next_multiple_of(256), "states and sums of the prefixes");
    let got = error(&case, 160, |_| {});
    assert!(matches!(got, Error::Workspace { got: 0, need: n, .. } if n == need), "{got}");
}

#[test]
fn linear_attention_overlap_and_misalignment_are_errors() {
    let shape = Shape::dense(1, 10, 2, 8, 4);
    let plan = Plan::new(&shape, &Options::new::<f32>(&shape), &device::info()).expect("good");
    let memory = upload_as::<f32>(&[0.0; 4000]);
    let stream = device::stream();
    let (base, _guard) = memory.device_ptr(&stream);
    let run = |inputs: RawInputs, outputs: RawOutputs| {
        // SAFETY: every call is refused before anything is launched.
        unsafe { plan.run_raw(&stream, &inputs, &outputs, RawWorkspace::default()) }
    };
    // q and k have 640 bytes, v and o 320, states 256.
    let inputs = RawInputs { q: base, k: base + 1000, v: base + 2000, ..RawInputs::default() };
    let out = RawOutputs { o: base + 4000, ..RawOutputs::default() };
    for (o, other) in [(base + 636, "q"), (base + 996, "k"), (base + 2316, "v")] {
        let got = run(inputs, RawOutputs { o, ..out });
        assert!(matches!(got, Err(Error::Alias { a: "o", b, .. }) if b == other), "{got:?}");
    }
    let got = run(inputs, RawOutputs { state: base + 4316, ..out });
    assert!(matches!(got, Err(Error::Alias { a: "o", b: "final state", .. })), "{got:?}");
    let got = run(RawInputs { state: base + 6000, ..inputs }, RawOutputs { state: base + 6000, ..out });
    assert!(matches!(got, Err(Error::Alias { a: "final state", b: "state", .. })), "{got:?}");
    let got = run(RawInputs { q: base + 2, ..inputs }, out);
    assert!(matches!(got, Err(Error::Align { arg: "q", need: 4, .. })), "{got:?}");
    let got = run(RawInputs { k: 0, ..inputs }, out);
    assert!(matches!(got, Err(Error::Align { arg: "k", .. })), "{got:?}");
    let got = run(inputs, RawOutputs { state: base + 6002, ..out });
    assert!(matches!(got, Err(Error::Align { arg: "final state", .. })), "{got:?}");
    let got = run(inputs, RawOutputs { denominator: base + 6000, ..out });
    assert!(matches!(got, Err(Error::Shape { arg: "denominator", .. })), "{got:?}");
}

#[test]
fn linear_attention_groups_and_sizes_are_errors_of_the_plan() {
    let plan = |shape: Shape, read: Read| {
        let options = Options { read, path: Path::Recurrent, ..Options::new::<f32>(&shape) };
        Plan::new(&shape, &options, &device::info())
    };
    let good = Shape::dense(1, 10, 6, 8, 4);
    assert!(plan(good, Read::Inclusive).is_ok());
    let got = plan(Shape { key_heads: 4, ..good }, Read::Inclusive);
    assert!(matches!(got, Err(Error::Shape { arg: "key_heads", .. })), "{got:?}");
    let got = plan(Shape { key_dim: 300, ..good }, Read::Inclusive);
    assert!(matches!(got, Err(Error::Range { arg: "key_dim", hi: 256, got: 300, .. })), "{got:?}");
}
