//! What a caller can get wrong is an error that names it, and nothing is written.

use super::case::{Case, Data, Kind, On, Tables};
use cudarc::driver::{DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_decode::{
    Cache, CacheType, Inputs, KeyValues, Lengths, MAX_KEYS, Options, Outputs, Plan, RawInputs, RawLengths, RawMemory,
    RawOutputs, Scales, Schedule, Shape, Stride, Strides, Tuning, Workspace,
};
use lookback_device::{DType, Error, Result};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
};

fn shape() -> Shape {
    Shape::new(2, 4, 2, 64, Cache::Dense { capacity: 100 })
}

fn refused(shape: Shape, options: Options) -> Error {
    Plan::new(&shape, &options, &device::info()).expect_err("an error")
}

#[test]
fn lean_decode_plans_refuse_what_no_kernel_does() {
    let (shape, options) = (shape(), Options::new::<bf16>(&shape()));
    assert!(matches!(refused(shape, Options { dtype: DType::F32, ..options }), Error::NoKernel { .. }));
    assert!(matches!(refused(Shape { head_dim: 264, ..shape }, options), Error::NoKernel { .. }));
    assert!(matches!(refused(Shape { value_dim: 512, ..shape }, options), Error::NoKernel { .. }));
    for (head_dim, value_dim, arg) in [(60, 64, "head_dim"), (64, 4, "value_dim")] {
        let error = refused(Shape { head_dim, value_dim, ..shape }, options);
        assert!(matches!(error, Error::Shape { arg: a, .. } if a == arg), "{error}");
    }
    let eight = Options { cache: CacheType::E4m3(Scales::Head), ..options };
    assert!(matches!(refused(Shape { head_dim: 72, ..shape }, eight), Error::Shape { arg: "head_dim", .. }));
    for key_heads in [0, 3, 8] {
        assert!(matches!(refused(Shape { key_heads, ..shape }, options), Error::Shape { arg: "key_heads", .. }));
    }
    for (tuning, arg) in [
        (Tuning { slots: Some(0), ..Tuning::default() }, "slots"),
        (Tuning { slots: Some(u32::MAX), ..Tuning::default() }, "slots"),
        (Tuning { min_tiles: Some(0), ..Tuning::default() }, "min_tiles"),
    ] {
        let error = refused(shape, Options { tuning, ..options });
        assert!(matches!(error, Error::Range { arg: a, .. } if a == arg), "{error}");
    }
    let rows = Options { tuning: Tuning { rows: Some(17), ..Tuning::default() }, ..options };
    assert!(matches!(refused(shape, rows), Error::NoKernel { .. }));
    for (cache, arg) in [
        (Cache::Dense { capacity: MAX_KEYS + 1 }, "capacity"),
        (Cache::Ragged { tokens: 1 << 31 }, "tokens"),
        (Cache::Paged { pages: 1, page_size: 0, table: 1 }, "page_size"),
        (Cache::Paged { pages: 1 << 40, page_size: 16, table: 1 }, "pages"),
        (Cache::Paged { pages: 1, page_size: 16, table: usize::MAX }, "table"),
    ] {
        let error = refused(Shape { cache, ..shape }, options);
        assert!(matches!(error, Error::Range { arg: a, .. } if a == arg), "{error}");
    }
    for scale in [f32::NAN, f32::INFINITY] {
        assert!(matches!(refused(shape, Options { scale, ..options }), Error::Range { arg: "scale", .. }));
    }
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, 1025.0] {
        let error = refused(shape, Options { softcap: Some(cap), ..options });
        assert!(matches!(error, Error::Range { arg: "softcap", .. }), "{error}");
    }
    let listed = Options { list: Some(20), logits: Some(19), ..options };
    assert!(matches!(refused(shape, listed), Error::Range { arg: "logits", .. }));
    assert!(matches!(refused(Shape { batch: 1 << 30, query_len: 100, ..shape }, options), Error::Range { .. }));
}

#[test]
fn lean_decode_strides_that_cannot_be_read_or_written_are_refused() {
    let options = Options::new::<bf16>(&shape());
    let step = |batch, token, head| Some(Stride { batch, token, head });
    let with = |strides| refused(Shape { strides, query_len: 3, ..shape() }, options);
    for (strides, arg) in [
        (Strides { k: step(100 * 128, 128, 60), ..Strides::default() }, "k"),
        (Strides { v: step(100 * 128, 132, 64), ..Strides::default() }, "v"),
        (Strides { k: step(-8, 128, 64), ..Strides::default() }, "k"),
        (Strides { k: step(i64::MAX, 128, 64), ..Strides::default() }, "k"),
        (Strides { q: step(768, 258, 64), ..Strides::default() }, "q"),
        (Strides { o: step(768, 256, 66), ..Strides::default() }, "o"),
        (Strides { o: step(768, 256, 60), ..Strides::default() }, "o"),
        (Strides { o: step(0, 256, 64), ..Strides::default() }, "o"),
    ] {
        let error = with(strides);
        assert!(matches!(error, Error::Layout { arg: a, .. } if a == arg), "{error}");
    }
}

fn named(result: Result<()>) -> &'static str {
    match result.expect_err("an error") {
        Error::Shape { arg, .. } | Error::Dtype { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

/// The argument that a run with these inputs blames; `o` stays poison.
fn blamed(on: &On<bf16>, inputs: &Inputs<'_, bf16>) -> &'static str {
    let mut o = Guarded::<bf16>::poisoned(on.case.tokens() * on.case.heads * on.case.value_dim, 0);
    let mut workspace = Workspace::new(&device::stream(), on.plan.workspace_bytes()).expect("memory");
    let done = {
        let mut o = o.view_mut();
        on.plan.run(&device::stream(), inputs, Outputs::of(&mut o), &on.schedule, &mut workspace)
    };
    device::finish();
    assert!(o.read().iter().all(|v| v.is_nan()), "nothing is written on an error");
    named(done)
}

fn on(case: &Case) -> On<bf16> {
    let tables = Tables::new(case);
    let mut on = On::<bf16>::new(case, &tables, &Data::new::<bf16>(case, &tables));
    on.schedule();
    on
}

#[test]
fn lean_decode_wrong_tensors_are_named() {
    let paged = on(&Case { kind: Kind::Paged(16), ..Case::new(&[40, 9]) });
    let good = paged.inputs();
    let (few, one) = (upload(&[0_i32]), upload_as::<bf16>(&[0.0; 8]));
    let lengths = good.lengths;
    let with = |lengths| blamed(&paged, &Inputs { lengths, ..good });
    assert_eq!(with(Lengths { kv_len: &few, ..lengths }), "kv_len");
    assert_eq!(with(Lengths { kv_indptr: None, ..lengths }), "kv_indptr");
    assert_eq!(with(Lengths { kv_indptr: Some(&few), ..lengths }), "kv_indptr");
    assert_eq!(with(Lengths { kv_indices: None, ..lengths }), "kv_indices");
    assert_eq!(with(Lengths { kv_indices: Some(&few), ..lengths }), "kv_indices");
    assert_eq!(with(Lengths { cu_seqlens_q: Some(&few), ..lengths }), "cu_seqlens_q");
    assert_eq!(with(Lengths { list: Some(&few), ..lengths }), "list");
    assert_eq!(with(Lengths { list_len: Some(&few), ..lengths }), "list_len");
    let mut schedule = Schedule::new(&device::stream(), paged.plan.schedule_bytes()).expect("memory");
    let absent = Lengths { kv_indices: None, ..lengths };
    assert_eq!(named(paged.plan.schedule(&device::stream(), &absent, &mut schedule)), "kv_indices");

    let KeyValues::Same { k, v } = good.cache else { panic!("the same type") };
    assert_eq!(blamed(&paged, &Inputs { q: &one, ..good }), "q");
    assert_eq!(blamed(&paged, &Inputs { cache: KeyValues::Same { k: &one, v }, ..good }), "k");
    assert_eq!(blamed(&paged, &Inputs { cache: KeyValues::Same { k, v: &one }, ..good }), "v");
    let (codes, scale) = (upload(&[0_u8; 1 << 14]), upload_as::<f32>(&[1.0; 2]));
    let eight = KeyValues::E4m3 { k: &codes, v: &codes, k_scale: &scale, v_scale: &scale };
    assert_eq!(blamed(&paged, &Inputs { cache: eight, ..good }), "k_scale");
    let slopes = upload_as::<f32>(&[0.0; 3]);
    assert_eq!(blamed(&paged, &Inputs { alibi_slopes: Some(&slopes), ..good }), "alibi_slopes");
    assert_eq!(blamed(&paged, &Inputs { sink: Some(&slopes), ..good }), "sink");

    let eight = on(&Case { cache: CacheType::E4m3(Scales::Token), ..Case::new(&[40, 9]) });
    let inputs = eight.inputs();
    let KeyValues::E4m3 { k, v, k_scale, .. } = inputs.cache else { panic!("8 bits") };
    let short = KeyValues::E4m3 { k, v, k_scale, v_scale: &scale };
    assert_eq!(blamed(&eight, &Inputs { cache: short, ..inputs }), "v_scale");
    assert_eq!(blamed(&eight, &Inputs { cache: KeyValues::Same { k: &one, v: &one }, ..inputs }), "k_scale");
}

#[test]
fn lean_decode_schedules_and_outputs_must_be_the_plans() {
    let (stream, case) = (device::stream(), Case::new(&[40, 9]));
    let mut good = on(&case);
    // Of another window, of nobody.
    for mut other in [on(&Case { left: Some(5), ..case.clone() }), on(&case.clone().slots(5))] {
        std::mem::swap(&mut good.schedule, &mut other.schedule);
        assert_eq!(blamed(&good, &good.inputs()), "schedule");
        std::mem::swap(&mut good.schedule, &mut other.schedule);
    }
    let mut fresh = Schedule::new(&stream, good.plan.schedule_bytes()).expect("memory");
    std::mem::swap(&mut good.schedule, &mut fresh);
    assert_eq!(blamed(&good, &good.inputs()), "schedule");
    std::mem::swap(&mut good.schedule, &mut fresh);

    let mut small = Schedule::new(&stream, good.plan.schedule_bytes() - 1).expect("memory");
    let error = good.plan.schedule(&stream, &good.lengths(), &mut small).expect_err("small");
    assert!(matches!(error, Error::Workspace { .. }), "{error}");
    let mut small = Workspace::new(&stream, good.plan.workspace_bytes() - 1).expect("memory");
    let mut o = upload_as::<bf16>(&[0.0; 512]);
    let run = |outputs: Outputs<'_, bf16>, workspace: &mut Workspace| {
        good.plan.run(&stream, &good.inputs(), outputs, &good.schedule, workspace)
    };
    assert!(matches!(run(Outputs::of(&mut o), &mut small), Err(Error::Workspace { .. })));
    let mut workspace = Workspace::new(&stream, good.plan.workspace_bytes()).expect("memory");
    let mut short = upload_as::<bf16>(&[0.0; 511]);
    assert_eq!(named(run(Outputs::of(&mut short), &mut workspace)), "o");
    let mut lse = upload_as::<f32>(&[0.0; 7]);
    let outputs = Outputs { lse: Some(&mut lse as &mut dyn DevicePtrMut<f32>), ..Outputs::of(&mut o) };
    assert_eq!(named(run(outputs, &mut workspace)), "lse");
    let mut logits = upload_as::<f32>(&[0.0; 4000]);
    let outputs = Outputs { logits: Some(&mut logits as &mut dyn DevicePtrMut<f32>), ..Outputs::of(&mut o) };
    assert_eq!(named(run(outputs, &mut workspace)), "logits");

    let half = upload_as::<f16>(&[0.0; 1 << 14]);
    let mut out = upload_as::<f16>(&[0.0; 512]);
    let inputs = Inputs::of(&half, &half, &half, good.lengths());
    let done = good.plan.run(&stream, &inputs, Outputs::of(&mut out), &good.schedule, &mut workspace);
    assert!(matches!(done, Err(Error::Dtype { want: DType::Bf16, got: DType::F16, .. })), "{done:?}");
}

#[test]
fn lean_decode_overlap_and_misalignment_are_errors() {
    let shape = Shape { heads: 2, key_heads: 1, ..Shape::new(1, 2, 1, 64, Cache::Dense { capacity: 10 }) };
    let plan = Plan::new(&shape, &Options::new::<bf16>(&shape), &device::info()).expect("good");
    let memory = upload(&vec![0_u8; 1 << 23]);
    let stream = device::stream();
    let base = memory.device_ptr(&stream).0;
    // q and o have 256 bytes, k and v 1280, lse 8.
    let lengths = RawLengths { kv_len: base + 8192, ..RawLengths::default() };
    let inputs = RawInputs { q: base, k: base + 1024, v: base + 4096, lengths, ..RawInputs::default() };
    let outputs = RawOutputs { o: base + 6144, lse: base + 7168, logits: 0 };
    let schedule = RawMemory { address: base + 16_384, bytes: plan.schedule_bytes() };
    let workspace = RawMemory { address: base + (1 << 20), bytes: plan.workspace_bytes() };
    let run = |inputs: RawInputs, outputs: RawOutputs, schedule: RawMemory, workspace: RawMemory| {
        // SAFETY: every call is refused before anything is launched.
        unsafe { plan.run_raw(&stream, &inputs, &outputs, schedule, workspace) }.expect_err("refused")
    };
    let with_o = |o: u64| run(inputs, RawOutputs { o, ..outputs }, schedule, workspace);
    for (o, other) in
        [(base + 240, "q"), (base + 1024 - 240, "k"), (base + 4096 + 1264, "v"), (base + 16_384, "schedule")]
    {
        let error = with_o(o);
        assert!(matches!(error, Error::Alias { a: "o", b, .. } if b == other), "{error}");
    }
    let error = with_o(base + (1 << 20) + 64);
    assert!(matches!(error, Error::Alias { a: "o", b: "workspace", .. }), "{error}");
    let error = run(inputs, RawOutputs { lse: base + 6144 + 252, ..outputs }, schedule, workspace);
    assert!(matches!(error, Error::Alias { a: "o", b: "lse", .. }), "{error}");
    let error = run(inputs, outputs, schedule, RawMemory { address: base + 4096, ..workspace });
    assert!(matches!(error, Error::Alias { .. }), "{error}");
    for (inputs, outputs, arg, need) in [
        (RawInputs { q: base + 4, ..inputs }, outputs, "q", 8),
        (RawInputs { k: base + 1032, ..inputs }, outputs, "k", 16),
        (RawInputs { v: base + 4104, ..inputs }, outputs, "v", 16),
        (RawInputs { k: 0, ..inputs }, outputs, "k", 2),
        (inputs, RawOutputs { o: base + 6152, ..outputs }, "o", 16),
        (inputs, RawOutputs { o: 0, ..outputs }, "o", 2),
        (inputs, RawOutputs { lse: base + 7170, ..outputs }, "lse", 4),
    ] {
        let error = run(inputs, outputs, schedule, workspace);
        assert!(matches!(error, Error::Align { arg: a, need: n, .. } if a == arg && n == need), "{error}");
    }
    let error = run(inputs, outputs, RawMemory { address: base + 8, ..schedule }, workspace);
    assert!(matches!(error, Error::Align { arg: "schedule", .. }), "{error}");
    // SAFETY: refused before anything is launched.
    let error = unsafe { plan.schedule_raw(&stream, &lengths, RawMemory { address: base + 8192, ..schedule }) };
    assert!(matches!(error, Err(Error::Alias { a: "schedule", b: "kv_len", .. })), "{error:?}");
}

#[test]
fn lean_decode_nothing_to_do_is_no_error() {
    for (batch, heads, query_len) in [(0, 4, 1), (2, 0, 1), (2, 4, 0)] {
        let key_heads = if heads == 0 { 0 } else { 2 };
        let case = Case { heads, key_heads, query_len, ..Case::new(&vec![9; batch]) };
        let got = on(&case).attend();
        assert!(got.o.is_empty() && got.lse.is_empty() && got.status.is_ok());
    }
}
