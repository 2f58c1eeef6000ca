//! What a caller can get wrong is an error that names it; nothing is launched and nothing written.

use super::case::{Case, Data, Uploaded};
use cudarc::driver::{DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_attention::{
    DeviceInfo, Inputs, Mask, Options, Output, Outputs, Plan, RawInputs, RawOutputs, Shape, Stride, Strides, Tiles,
    attention,
};
use lookback_device::{Class, DType, Error};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    counters::Counters,
    device,
};

fn case() -> Case {
    Case::new(DType::F16, 2, 10, 12, 16)
}

/// Elements of the case's output.
const N: usize = 2 * 10 * 2 * 16;

/// The error of a run into an output of `len` elements, which must stay poison.
fn refused(case: &Case, inputs: &Inputs<'_, f16>, len: usize) -> Error {
    let mut o = Guarded::<f16>::poisoned(len, 0);
    let mut lse = Guarded::<f32>::poisoned(case.rows(), 0);
    let mut found = None;
    let counters = Counters::of(|| {
        let (mut o, mut lse) = (o.view_mut(), lse.view_mut());
        let done = case.plan().run(&device::stream(), inputs, Outputs::with_lse(&mut o, &mut lse));
        found = done.err();
    });
    if let Some(counters) = counters {
        assert_eq!(counters.number("launches"), 0, "{found:?}");
    }
    assert!(o.read().iter().chain(&lse.read()).all(|v| v.is_nan()), "nothing is written on an error");
    let error = found.expect("an error");
    assert!(error.class() == Class::Caller && error.outputs_untouched(), "{error}");
    error
}

fn named(error: Error) -> &'static str {
    match error {
        Error::Shape { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

#[test]
fn attention_missing_and_meaningless_tensors_are_named() {
    let list = upload(&[0_i32; 200]);
    let list = Some(&list as &dyn DevicePtr<i32>);
    let of = |case: &Case| Uploaded::<f16>::new(case, &Data::new::<f16>(case));
    let plain = case();
    let on = of(&plain);
    let check = |name: &str, case: &Case, inputs: Inputs<'_, f16>| assert_eq!(named(refused(case, &inputs, N)), name);
    check("prefix_len", &plain, Inputs { prefix_len: list, ..on.inputs() });
    check("intervals", &plain, Inputs { intervals: list, ..on.inputs() });
    check("cu_seqlens_q", &plain, Inputs { cu_seqlens_q: list, ..on.inputs() });
    check("cu_seqlens_k", &plain, Inputs { cu_seqlens_k: list, ..on.inputs() });
    let prefix = Case { mask: Mask::Prefix, prefix: vec![1, 2], ..case() };
    check("prefix_len", &prefix, Inputs { prefix_len: None, ..of(&prefix).inputs() });
    check("intervals", &prefix, Inputs { intervals: list, ..of(&prefix).inputs() });
    let intervals = Case { mask: Mask::Intervals, intervals: vec![0; 80], ..case() };
    check("intervals", &intervals, Inputs { intervals: None, ..of(&intervals).inputs() });
    let packed = Case::packed(DType::F16, &[[15, 20], [5, 4]], 16);
    check("cu_seqlens_q", &packed, Inputs { cu_seqlens_q: None, ..of(&packed).inputs() });
    check("cu_seqlens_k", &packed, Inputs { cu_seqlens_k: None, ..of(&packed).inputs() });
}

#[test]
fn attention_short_tensors_are_named() {
    let case = case();
    let on = Uploaded::<f16>::new(&case, &Data::new::<f16>(&case));
    let check = |name: &str, case: &Case, inputs: Inputs<'_, f16>| assert_eq!(named(refused(case, &inputs, N)), name);
    assert_eq!(named(refused(&case, &on.inputs(), N - 1)), "o");
    let short = upload_as::<f16>(&[0.0; N - 1]);
    check("q", &case, Inputs { q: &short, ..on.inputs() });
    check("k", &case, Inputs { k: &short, ..on.inputs() });
    check("v", &case, Inputs { v: &short, ..on.inputs() });
    let (words, one, floats) = (upload(&[0_u32; 1]), upload(&[0_i32; 1]), upload_as::<f32>(&[0.0]));
    check("key_bits", &case, Inputs { key_bits: Some(&words), ..on.inputs() });
    check("alibi_slopes", &case, Inputs { alibi_slopes: Some(&floats), ..on.inputs() });
    check("sink", &case, Inputs { sink: Some(&floats), ..on.inputs() });
    let tiles = Some(Tiles { starts: &one, keys: &one });
    check("tiles.starts", &case, Inputs { tiles, ..on.inputs() });
    let prefix = Case { mask: Mask::Prefix, ..case.clone() };
    check("prefix_len", &prefix, Inputs { prefix_len: Some(&one), ..on.inputs() });
    let intervals = Case { mask: Mask::Intervals, ..case.clone() };
    check("intervals", &intervals, Inputs { intervals: Some(&one), ..on.inputs() });
    let packed =
        Case { starts: Some([vec![0, 20], vec![0, 24]]), batch: 1, query_len: 20, key_len: 24, ..case.clone() };
    let starts = upload(&[0, 20]);
    check("cu_seqlens_q", &packed, Inputs { cu_seqlens_q: Some(&one), cu_seqlens_k: Some(&starts), ..on.inputs() });
    check("cu_seqlens_k", &packed, Inputs { cu_seqlens_q: Some(&starts), cu_seqlens_k: Some(&one), ..on.inputs() });
    let (mut o, mut lse) = (upload_as::<f16>(&[0.0; N]), upload_as::<f32>(&[0.0; 39]));
    let done = case.plan().run(&device::stream(), &on.inputs(), Outputs::with_lse(&mut o, &mut lse));
    assert_eq!(named(done.expect_err("short")), "lse");
}

#[test]
fn attention_merging_needs_lse() {
    let case = Case { output: Output::Merge, ..case() };
    let on = Uploaded::<f16>::new(&case, &Data::new::<f16>(&case));
    let mut o = Guarded::<f32>::poisoned(N, 0);
    let done = {
        let mut view = o.view_mut();
        case.plan().run(&device::stream(), &on.inputs(), Outputs::of(&mut view))
    };
    assert_eq!(named(done.expect_err("no lse")), "lse");
    assert!(o.read().iter().all(|o| o.is_nan()));
    let shape = case.shape();
    let done = attention::<f16, f32>(&device::stream(), &shape, &case.options(), &on.inputs());
    assert!(matches!(done, Err(Error::NoKernel { .. })), "there is nothing to merge with");
}

#[test]
fn attention_element_types_must_be_the_plans() {
    let stream = device::stream();
    let (a, b) = (upload_as::<f16>(&[0.0; 1000]), upload_as::<bf16>(&[0.0; 1000]));
    let (mut half, mut single) = (upload_as::<f16>(&[0.0; 1000]), upload_as::<f32>(&[0.0; 1000]));
    let plan = case().plan();
    let got = plan.run(&stream, &Inputs::of(&b, &b, &b), Outputs::of(&mut half));
    assert!(matches!(got, Err(Error::Dtype { arg: "inputs", want: DType::F16, got: DType::Bf16, .. })), "{got:?}");
    let got = plan.run(&stream, &Inputs::of(&a, &a, &a), Outputs::of(&mut single));
    assert!(matches!(got, Err(Error::Dtype { arg: "o", want: DType::F16, got: DType::F32, .. })), "{got:?}");
    let plan = Case { output: Output::F32, ..case() }.plan();
    let got = plan.run(&stream, &Inputs::of(&a, &a, &a), Outputs::of(&mut half));
    assert!(matches!(got, Err(Error::Dtype { arg: "o", want: DType::F32, got: DType::F16, .. })), "{got:?}");
}

#[test]
fn attention_overlap_and_misalignment_are_errors() {
    let case = Case::new(DType::F16, 1, 10, 10, 16);
    let plan = case.plan();
    let memory = upload_as::<f32>(&[0.0; 8000]);
    let stream = device::stream();
    let (base, _guard) = memory.device_ptr(&stream);
    let run = |inputs: RawInputs, outputs: RawOutputs| {
        // SAFETY: every call is refused before anything is launched.
        unsafe { plan.run_raw(&stream, &inputs, &outputs) }
    };
    // Tensors have 640 bytes, lse 80.
    let inputs = RawInputs { q: base, k: base + 1024, v: base + 2048, ..RawInputs::default() };
    let out = RawOutputs { o: base + 4096, lse: base + 5120 };
    for (o, other) in [(base + 624, "q"), (base + 1008, "k"), (base + 2672, "v")] {
        let got = run(inputs, RawOutputs { o, ..out });
        assert!(matches!(got, Err(Error::Alias { a: "o", b, .. }) if b == other), "{got:?}");
    }
    let got = run(inputs, RawOutputs { lse: base + 4700, ..out });
    assert!(matches!(got, Err(Error::Alias { a: "o", b: "lse", .. })), "{got:?}");
    let all = RawInputs {
        key_bits: base + 6000,
        tile_starts: base + 6100,
        tile_keys: base + 6200,
        tile_count: 10,
        alibi_slopes: base + 6300,
        sink: base + 6400,
        ..inputs
    };
    let inside =
        [("key_bits", 6000), ("tiles.starts", 6100), ("tiles.keys", 6236), ("alibi_slopes", 6300), ("sink", 6404)];
    for (name, at) in inside {
        let got = run(all, RawOutputs { lse: base + at, ..out });
        assert!(matches!(got, Err(Error::Alias { a: "lse", b, .. }) if b == name), "{got:?}");
    }
    for (name, need, inputs) in [
        ("q", 16, RawInputs { q: base + 8, ..inputs }),
        ("k", 16, RawInputs { k: base + 1026, ..inputs }),
        ("v", 16, RawInputs { v: 0, ..inputs }),
        ("key_bits", 4, RawInputs { key_bits: base + 6002, ..inputs }),
        ("tiles.starts", 4, RawInputs { tile_starts: base + 6101, ..inputs }),
        ("tiles.keys", 4, RawInputs { tile_keys: base + 6101, ..inputs }),
        ("alibi_slopes", 4, RawInputs { alibi_slopes: base + 6301, ..inputs }),
        ("sink", 4, RawInputs { sink: base + 6302, ..inputs }),
    ] {
        let got = run(inputs, out);
        assert!(matches!(got, Err(Error::Align { arg, need: n, .. }) if arg == name && n == need), "{name}: {got:?}");
    }
    for (name, out) in [("o", RawOutputs { o: base + 4104, ..out }), ("lse", RawOutputs { lse: base + 5122, ..out })] {
        let got = run(inputs, out);
        assert!(matches!(got, Err(Error::Align { arg, .. }) if arg == name), "{name}: {got:?}");
    }
    let got = run(RawInputs { tile_starts: base + 6100, tile_count: 3, ..inputs }, out);
    assert!(matches!(got, Err(Error::Shape { arg: "tiles.keys", .. })), "{got:?}");
    let got = run(RawInputs { tile_keys: base + 6200, tile_count: 3, ..inputs }, out);
    assert!(matches!(got, Err(Error::Shape { arg: "tiles.starts", .. })), "{got:?}");
    let intervals = Case { mask: Mask::Intervals, ..case }.plan();
    // SAFETY: the call is refused before anything is launched.
    let got = unsafe { intervals.run_raw(&stream, &RawInputs { intervals: base + 6008, ..inputs }, &out) };
    assert!(matches!(got, Err(Error::Align { arg: "intervals", need: 16, .. })), "{got:?}");
}

#[test]
fn attention_output_on_its_input_is_an_error() {
    // In place is not possible: other blocks still read the queries.
    let case = Case::new(DType::F16, 1, 10, 10, 16);
    let mut memory = upload_as::<f16>(&[1.0; 320]);
    let stream = device::stream();
    let (at, _guard) = memory.device_ptr_mut(&stream);
    let inputs = RawInputs { q: at, k: at, v: at, ..RawInputs::default() };
    // SAFETY: the call is refused before anything is launched.
    let got = unsafe { case.plan().run_raw(&stream, &inputs, &RawOutputs { o: at, lse: 0 }) };
    assert!(matches!(got, Err(Error::Alias { a: "o", b: "q", .. })), "{got:?}");
}

#[test]
fn attention_plans_refuse_what_no_kernel_takes() {
    let good = Shape::dense(2, 10, 12, 4, 64);
    let device = device::info();
    let plan = |shape: Shape, with: &dyn Fn(&mut Options)| {
        let mut options = Options::new::<f16>(&shape);
        with(&mut options);
        Plan::new(&shape, &options, &device)
    };
    let sized = |shape: Shape, name: &str| match plan(shape, &|_| {}).expect_err(name) {
        Error::Range { arg, .. } | Error::Layout { arg, .. } | Error::Shape { arg, .. } => assert_eq!(arg, name),
        other => panic!("{name}: {other}"),
    };
    assert!(plan(good, &|_| {}).is_ok());
    sized(Shape { key_heads: 3, ..good }, "key_heads");
    sized(Shape { key_heads: 0, ..good }, "key_heads");
    sized(Shape { key_heads: 8, ..good }, "key_heads");
    sized(Shape { head_dim: 264, ..good }, "head_dim");
    sized(Shape { head_dim: 0, ..good }, "head_dim");
    sized(Shape { head_dim: 60, ..good }, "head_dim");
    sized(Shape { value_dim: 4, ..good }, "value_dim");
    sized(Shape { value_dim: 100, ..good }, "value_dim");
    sized(Shape { query_len: 1 << 29, ..good }, "query_len");
    sized(Shape { key_len: 1 << 29, ..good }, "key_len");
    sized(Shape { heads: 1 << 16, key_heads: 1, ..good }, "heads");
    sized(Shape { batch: 1 << 31, ..good }, "batch");
    sized(Shape { batch: 1 << 24, query_len: 1 << 20, ..good }, "blocks");
    sized(Shape { packed: Some(2), ..good }, "batch");
    sized(Shape { packed: Some(0), batch: 1, ..good }, "packed");
    let strides = |strides: Strides| Shape { strides, ..good };
    let of = |batch, token, head| Some(Stride { batch, token, head });
    sized(strides(Strides { q: of(2560, 256, 60), ..Strides::default() }), "q");
    sized(strides(Strides { k: of(3072, -256, 64), ..Strides::default() }), "k");
    sized(strides(Strides { v: of(3076, 256, 64), ..Strides::default() }), "v");
    sized(strides(Strides { o: of(2560, 256, 56), ..Strides::default() }), "o");
    sized(strides(Strides { o: of(2564, 256, 64), ..Strides::default() }), "o");
    sized(strides(Strides { q: of(i64::MAX - 7, 256, 64), ..Strides::default() }), "q");

    let wrong = |with: &dyn Fn(&mut Options), word: &str| match plan(good, with) {
        Err(Error::NoKernel { request, .. }) => assert!(request.contains(word), "{request}"),
        other => panic!("{word}: {other:?}"),
    };
    wrong(&|o| o.dtype = DType::F32, "f32");
    wrong(&|o| o.scale = f32::NAN, "scale");
    wrong(&|o| o.scale = f32::INFINITY, "scale");
    wrong(&|o| o.softcap = Some(0.0), "softcap");
    wrong(&|o| o.softcap = Some(-3.0), "softcap");
    wrong(&|o| o.softcap = Some(f32::NAN), "softcap");
    wrong(&|o| o.softcap = Some(1e-40), "softcap");
    wrong(&|o| o.softcap = Some(1025.0), "softcap");
    for offset in [i32::MIN, i32::MAX, (1 << 29) + 1] {
        let got = plan(good, &|o| o.offset = Some(offset));
        assert!(matches!(got, Err(Error::Range { arg: "offset", .. })), "{got:?}");
    }
    let old = DeviceInfo { compute_capability: (7, 5), ..device.clone() };
    let got = Plan::new(&good, &Options::new::<f16>(&good), &old);
    assert!(matches!(got, Err(Error::Arch { got: (7, 5), .. })), "{got:?}");
}
