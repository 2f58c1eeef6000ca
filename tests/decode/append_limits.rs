//! What a caller can get wrong is an error that names it, nothing is written, and what a device finds wrong can be asked for.

use super::append_case::{paged, slots};
use half::bf16;
use lookback_decode::{
    Cache, CacheType, Lengths, Scales, Stride,
    append::{Inputs, Options, Outputs, Place, Plan, Raw, Rotary, Shape, Strides, Style, masked},
};
use lookback_device::{
    DType, Error,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
};

const CACHE: Cache = Cache::Paged { pages: 8, page_size: 4, table: 6 };

fn shape() -> Shape {
    Shape::new(2, 3, 2, 8, CACHE)
}

#[test]
fn append_wrong_sizes_are_named() {
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &device::info()).unwrap_err();
    let (good, options) = (shape(), Options::new::<bf16>());
    assert!(matches!(refused(Shape { tokens: 5, ..good }, options), Error::Shape { arg: "tokens", .. }));
    let slots = Shape { place: Place::Slots, ..good };
    assert!(matches!(refused(Shape { tokens: 1 << 40, ..slots }, options), Error::Range { arg: "tokens", .. }));
    assert!(matches!(refused(Shape { key_heads: 1 << 17, ..good }, options), Error::Range { arg: "key_heads", .. }));
    assert!(matches!(refused(Shape { head_dim: 0, ..good }, options), Error::Range { arg: "head_dim", .. }));
    assert!(matches!(refused(Shape { value_dim: 4097, ..good }, options), Error::Range { arg: "value_dim", .. }));
    let cache = Cache::Paged { pages: 8, page_size: 0, table: 6 };
    assert!(matches!(refused(Shape { cache, ..good }, options), Error::Range { arg: "page_size", .. }));
    let cache = Cache::Paged { pages: 1 << 20, page_size: 1 << 20, table: 6 };
    assert!(matches!(refused(Shape { cache, ..good }, options), Error::Range { arg: "slots of the cache", .. }));
    let cache = Cache::Paged { pages: 8, page_size: 4, table: 1 << 40 };
    assert!(matches!(refused(Shape { cache, ..good }, options), Error::Range { arg: "table", .. }));
    let single = Options { dtype: DType::F32, ..options };
    assert!(matches!(refused(good, single), Error::NoKernel { .. }));
    let rotary = |change: fn(&mut Rotary)| {
        let mut rotary = Rotary::new(Style::Half, 8);
        change(&mut rotary);
        refused(good, Options { rotary: Some(rotary), ..options })
    };
    assert!(matches!(rotary(|r| r.rotary_dim = 10), Error::Range { arg: "rotary_dim", .. }));
    assert!(matches!(rotary(|r| r.rotary_dim = 3), Error::Shape { arg: "rotary_dim", .. }));
    assert!(matches!(rotary(|r| r.theta_dim = 0), Error::Range { arg: "theta_dim", .. }));
    assert!(matches!(rotary(|r| r.base = f64::NAN), Error::Range { arg: "base", .. }));
    let strides = |strides: Strides, options: Options| refused(Shape { strides, ..good }, options);
    let near = Some(Stride { batch: 64, token: 16, head: 7 });
    assert!(matches!(strides(Strides { k: near, ..Strides::default() }, options), Error::Layout { arg: "k", .. }));
    assert!(matches!(strides(Strides { v: near, ..Strides::default() }, options), Error::Layout { arg: "v", .. }));
    let back = Some(Stride { batch: 0, token: -16, head: 8 });
    let strided = Strides { k_new: back, ..Strides::default() };
    assert!(matches!(strides(strided, options), Error::Layout { arg: "k_new", .. }));
    let same = Some(Stride { batch: 8, token: 2, head: 0 });
    let codes = Options { cache: CacheType::E4m3(Scales::Token), ..options };
    let strided = Strides { v_scale: same, ..Strides::default() };
    assert!(matches!(strides(strided, codes), Error::Layout { arg: "v_scale", .. }));
}

/// Everything that a call of the shape above may want.
struct Memory {
    new: CudaSlice<bf16>,
    slots: CudaSlice<i64>,
    words: CudaSlice<i32>,
    scales: CudaSlice<f32>,
    k: Guarded<bf16>,
    v: Guarded<bf16>,
    k_codes: Guarded<u8>,
    v_codes: Guarded<u8>,
}

impl Memory {
    fn new() -> Self {
        Self {
            new: upload_as::<bf16>(&[1.0; 96]),
            slots: upload(&[0, 1, 2, 3, 4, 5]),
            words: upload(&[0; 6]),
            scales: upload(&[1.0; 64]),
            k: Guarded::poisoned(512, 0),
            v: Guarded::poisoned(512, 0),
            k_codes: Guarded::filled(512, 0, 9),
            v_codes: Guarded::filled(512, 0, 9),
        }
    }

    fn inputs(&self) -> Inputs<'_, bf16> {
        Inputs::requests(&self.new, &self.new, Lengths::paged(&self.words, &self.words, &self.words))
    }
}

fn named(done: Result<(), Error>) -> &'static str {
    match done {
        Err(Error::Shape { arg, .. } | Error::Dtype { arg, .. }) => arg,
        other => panic!("{other:?}"),
    }
}

#[test]
fn append_wrong_tensors_are_named_and_nothing_is_written() {
    let mut memory = Memory::new();
    let (mut k, mut v) = (Guarded::<bf16>::poisoned(512, 0), Guarded::<bf16>::poisoned(512, 0));
    let good = Options::new::<bf16>();
    let turned = Options { rotary: Some(Rotary::new(Style::Half, 8)), ..good };
    let short = upload(&[0_i32; 1]);
    let few = upload_as::<bf16>(&[1.0; 95]);
    let mut call = |shape: Shape, options: Options, inputs: Inputs<'_, bf16>| {
        let plan = Plan::new(&shape, &options, &device::info()).unwrap();
        let (mut k, mut v) = (k.view_mut(), v.view_mut());
        named(plan.run(&device::stream(), &inputs, Outputs::Same { k: &mut k, v: &mut v }, None))
    };
    let (requests, by_slot) = (shape(), Shape { place: Place::Slots, ..shape() });
    let packed = Shape { place: Place::Packed, ..shape() };
    let of_slots = Inputs::slots(&memory.new, &memory.new, &memory.slots);
    assert_eq!(call(requests, good, Inputs { k_new: &few, ..memory.inputs() }), "k_new");
    assert_eq!(call(requests, good, Inputs { v_new: &few, ..memory.inputs() }), "v_new");
    assert_eq!(call(requests, good, Inputs { kv_len: None, ..memory.inputs() }), "kv_len");
    assert_eq!(call(requests, good, Inputs { kv_len: Some(&short), ..memory.inputs() }), "kv_len");
    assert_eq!(call(requests, good, Inputs { kv_indptr: None, ..memory.inputs() }), "kv_indptr");
    assert_eq!(call(requests, good, Inputs { kv_indices: Some(&short), ..memory.inputs() }), "kv_indices");
    assert_eq!(call(requests, good, Inputs { kv_indices: None, ..memory.inputs() }), "kv_indices");
    assert_eq!(call(requests, good, Inputs { slot_map: Some(&memory.slots), ..memory.inputs() }), "slot_map");
    assert_eq!(call(requests, good, Inputs { cu_seqlens: Some(&memory.words), ..memory.inputs() }), "cu_seqlens");
    assert_eq!(call(requests, good, Inputs { positions: Some(&memory.words), ..memory.inputs() }), "positions");
    assert_eq!(call(requests, turned, Inputs { positions: Some(&short), ..memory.inputs() }), "positions");
    assert_eq!(call(packed, good, memory.inputs()), "cu_seqlens");
    assert_eq!(call(packed, good, Inputs { cu_seqlens: Some(&short), ..memory.inputs() }), "cu_seqlens");
    assert_eq!(call(by_slot, good, memory.inputs()), "slot_map");
    assert_eq!(call(by_slot, good, Inputs { kv_len: Some(&memory.words), ..of_slots }), "kv_len");
    assert_eq!(call(by_slot, turned, of_slots), "positions");
    let dense = Shape { cache: Cache::Dense { capacity: 16 }, ..shape() };
    assert_eq!(call(dense, good, memory.inputs()), "kv_indptr");
    let codes = |scales| Options { cache: CacheType::E4m3(scales), ..good };
    assert_eq!(call(requests, codes(Scales::Token), memory.inputs()), "k");
    assert_eq!(call(requests, Options { dtype: DType::F16, ..good }, memory.inputs()), "k_new");

    // Codes and scales.
    let (words, slots) = (memory.words.clone(), memory.slots.clone());
    let inputs = Inputs::requests(&memory.new, &memory.new, Lengths::paged(&words, &words, &words));
    let plan = |options| Plan::new(&requests, &options, &device::info()).unwrap();
    let mut call = |options: Options, k_scale: &CudaSlice<f32>, v_scale: &CudaSlice<f32>| {
        let (mut k, mut v) = (memory.k_codes.view_mut(), memory.v_codes.view_mut());
        let outputs = Outputs::Given { k: &mut k, v: &mut v, k_scale, v_scale };
        named(plan(options).run(&device::stream(), &inputs, outputs, None))
    };
    let (all, one) = (&memory.scales, &upload_as::<f32>(&[]));
    assert_eq!(call(good, all, all), "k");
    assert_eq!(call(codes(Scales::Token), all, all), "k");
    assert_eq!(call(codes(Scales::Head), one, all), "k_scale");
    assert_eq!(call(codes(Scales::Tensor), all, one), "v_scale");
    let mut call = |options: Options, scales: usize| {
        let (mut k, mut v) = (memory.k_codes.view_mut(), memory.v_codes.view_mut());
        let (mut k_scale, mut v_scale) = (upload(&[1.0_f32; 64]), upload(&vec![1.0_f32; scales]));
        let outputs = Outputs::Computed { k: &mut k, v: &mut v, k_scale: &mut k_scale, v_scale: &mut v_scale };
        named(plan(options).run(&device::stream(), &inputs, outputs, None))
    };
    assert_eq!(call(codes(Scales::Tensor), 64), "k");
    assert_eq!(call(codes(Scales::Token), 63), "v_scale");

    let stream = device::stream();
    let plan = Plan::new(&shape(), &codes(Scales::Tensor), &device::info()).unwrap();
    let (mut k_view, mut v_view) = (memory.k_codes.view_mut(), memory.v_codes.view_mut());
    let new = memory.new.device_ptr(&stream).0;
    let lengths = words.device_ptr(&stream).0;
    let raw = Raw {
        k_new: new,
        v_new: new,
        kv_len: lengths,
        kv_indptr: lengths,
        kv_indices: lengths,
        k: k_view.device_ptr_mut(&stream).0,
        v: v_view.device_ptr_mut(&stream).0,
        k_scale: memory.scales.device_ptr(&stream).0,
        v_scale: memory.scales.device_ptr(&stream).0,
        ..Raw::default()
    };
    // SAFETY: the host refuses each call before any launch.
    let error = |raw: Raw| unsafe { plan.run_raw(&stream, &raw) }.unwrap_err();
    assert!(matches!(error(Raw { k: raw.v + 511, ..raw }), Error::Alias { a: "k", b: "v", .. }));
    assert!(matches!(error(Raw { k: new, ..raw }), Error::Alias { a: "k", b: "k_new", .. }));
    assert!(matches!(error(Raw { status: lengths, ..raw }), Error::Alias { a: "status", .. }));
    assert!(matches!(error(Raw { v_scale: raw.v, ..raw }), Error::Alias { a: "v", b: "v_scale", .. }));
    assert!(matches!(error(Raw { k_new: new + 1, ..raw }), Error::Align { arg: "k_new", .. }));
    assert!(matches!(error(Raw { v_scale: 0, ..raw }), Error::Align { arg: "v_scale", .. }));
    assert!(matches!(error(Raw { status: 2, ..raw }), Error::Align { arg: "status", .. }));
    device::finish();
    let untouched = |codes: &Guarded<u8>| stream.clone_dtoh(&codes.view()).is_ok_and(|c| c.iter().all(|c| *c == 9));
    assert!(untouched(&memory.k_codes) && untouched(&memory.v_codes), "nothing may be written on an error");
    assert!(k.read().iter().chain(&v.read()).chain(&memory.k.read()).all(|v| v.is_nan()), "nothing may be written");
    assert!(memory.v.read().iter().all(|v| v.is_nan()) && slots.len() == 6);
}

#[test]
fn append_says_what_it_left_out() {
    let mut status = upload(&[0_u32]);
    let run = |case: super::append_case::Case, status: &mut CudaSlice<u32>| {
        let rows = case.new_rows::<bf16>(1);
        let plan = Plan::new(&case.shape(), &case.options::<bf16>(), &device::info()).unwrap();
        let [k_new, v_new] = rows.map(|r| upload_as::<bf16>(&r));
        let (mut k, mut v) = (upload_as::<bf16>(&[0.0; 6144]), upload_as::<bf16>(&[0.0; 6144]));
        let (kv_len, indptr, indices) = (upload(&case.kv_len), upload(&case.kv_indptr), upload(&case.kv_indices));
        let starts = case.cu_seqlens.as_ref().map(|s| upload(s));
        let slot_map = case.slot_map.as_ref().map(|s| upload(s));
        let inputs = match &slot_map {
            Some(slots) => Inputs::slots(&k_new, &v_new, slots),
            None => {
                let lengths = Lengths::paged(&kv_len, &indptr, &indices);
                let starts = starts.as_ref().map(|s| s as &dyn DevicePtr<i32>);
                Inputs { cu_seqlens: starts, ..Inputs::requests(&k_new, &v_new, lengths) }
            }
        };
        plan.run(&device::stream(), &inputs, Outputs::Same { k: &mut k, v: &mut v }, Some(status)).unwrap();
        masked(&device::stream(), status)
    };
    assert!(run(paged(), &mut status).is_ok());
    let bad = [
        ("kv_len", super::append_case::Case { kv_len: vec![99, 0, 6], ..paged() }),
        ("kv_indptr", super::append_case::Case { kv_indptr: vec![0, 3, 3, 99], ..paged() }),
        ("cu_seqlens", super::append_case::Case { cu_seqlens: Some(vec![0, 2, 2, 99]), ..paged() }),
        ("kv_indices", super::append_case::Case { kv_indices: vec![99; 6], ..paged() }),
        ("slot_map", super::append_case::Case { slot_map: Some(vec![0, 1, 99, 2, 3]), ..slots() }),
    ];
    for (want, case) in bad {
        let error = run(case, &mut status).unwrap_err();
        assert!(matches!(error, Error::Masked { arg, .. } if arg == want), "{want}: {error}");
        // It has been said.
        assert!(masked(&device::stream(), &mut status).is_ok());
    }
}
