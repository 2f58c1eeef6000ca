//! Rows copied, converted and added.

use super::mutants::{Mutant, Seen, every_one_is_caught, judge, poison};
use crate::linear::chain_mutants::Machine;
use bytemuck::bytes_of;
use half::{bf16, f16};
use lookback_device::{
    DType, Element, Error,
    strided::{Stride, Strided},
};
use lookback_kernels::{args::CopyRows, find};
use lookback_nn::copy_rows::{Options, Plan, Shape};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

/// Rows spread over the strides of a tensor, NaN between them.
fn spread(values: &[f64], tensor: &Strided) -> Vec<f64> {
    let mut out = vec![f64::NAN; (tensor.span() as usize).max(1)];
    for (row, values) in values.chunks_exact(tensor.width.max(1)).enumerate() {
        let [_, tokens, heads] = tensor.extents;
        let at = [row / heads / tokens, row / heads % tokens, row % heads];
        let start: i64 = at.iter().zip(tensor.strides).map(|(i, stride)| *i as i64 * stride).sum();
        out[start as usize..][..tensor.width].copy_from_slice(values);
    }
    out
}

fn case<T: Element, U: Element>([batch, tokens, heads, width]: [usize; 4], gap: usize, accumulate: bool) {
    let mut random = Random::new((tokens * 1000 + heads * width) as u64);
    let values = random.normals::<T>(batch * tokens * heads * width);
    let old = random.normals::<U>(values.len());
    let stride = |outer: usize| {
        let head = (width + gap) as i64;
        let token = heads as i64 * head + outer as i64;
        Stride { head, token, batch: tokens as i64 * token + outer as i64 }
    };
    let shape = Shape {
        x_stride: Some(stride(gap)),
        out_stride: Some(stride(2 * gap)),
        ..Shape::dense(batch, tokens, heads, width)
    };
    let tensor = |stride: Option<Stride>| {
        let Stride { batch: b, token, head } = stride.unwrap();
        Strided::new([batch, tokens, heads], [b, token, head], width, 1)
    };
    let (x_tensor, out_tensor) = (tensor(shape.x_stride), tensor(shape.out_stride));
    let x = upload_as::<T>(&spread(&values, &x_tensor));
    let mut out = Guarded::<U>::poisoned(out_tensor.span() as usize, 1);
    if accumulate {
        let start: Vec<U> = spread(&old, &out_tensor).into_iter().map(U::from_f64).collect();
        device::stream().memcpy_htod(&start, &mut out.view_mut()).unwrap();
    }
    let options = Options { dtype: T::DTYPE, out: U::DTYPE, accumulate };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    plan.run(&device::stream(), &x, &mut out.view_mut()).unwrap();
    let want = lookback_reference::copy_rows::forward(&values, accumulate.then_some(&old));
    let got = out.read();
    let mut found = Vec::new();
    for (at, place) in spread(&(0..want.len()).map(|i| i as f64).collect::<Vec<_>>(), &out_tensor).iter().enumerate() {
        if !place.is_nan() && at < got.len() {
            found.push(got[at]);
        } else if at < got.len() {
            assert!(got[at].is_nan(), "element {at} between rows was written");
        }
    }
    let what = format!("{} to {} [{batch},{tokens},{heads},{width}] gap {gap} {accumulate}", T::DTYPE, U::DTYPE);
    if accumulate {
        assert_close(&what, &found, &want, width.max(1), gate(U::DTYPE));
    } else {
        let rounded: Vec<f64> = want.iter().map(|v| round::<U>(*v)).collect();
        assert_eq!(found, rounded, "{what}: rounded once");
    }
}

fn sizes<T: Element, U: Element>() {
    for size in [[1, 1, 1, 1], [2, 3, 2, 7], [1, 5, 3, 64], [2, 2, 2, 1040], [1, 300, 1, 1], [1, 4, 2, 24]] {
        for gap in [0, 1, 8] {
            case::<T, U>(size, gap, false);
            case::<T, U>(size, gap, true);
        }
    }
}

#[test]
fn copy_rows__between_all_types() {
    sizes::<f32, f32>();
    sizes::<f32, f16>();
    sizes::<f32, bf16>();
    sizes::<f16, f32>();
    sizes::<bf16, f32>();
    sizes::<bf16, bf16>();
    sizes::<f16, f16>();
}

#[test]
fn copy_rows__counters_are_at_the_floor() {
    let shape = Shape::dense(1, 64, 4, 64);
    for accumulate in [false, true] {
        let options = Options { dtype: DType::Bf16, out: DType::Bf16, accumulate };
        let plan = Plan::new(&shape, &options, &device::info()).unwrap();
        let x = upload_as::<bf16>(&vec![1.0; 64 * 4 * 64]);
        let mut out = upload_as::<bf16>(&vec![2.0; 64 * 4 * 64]);
        let Some(counters) = Counters::of(|| plan.run(&device::stream(), &x, &mut out).unwrap()) else { return };
        counters.assert_streams("copy_rows", plan.bytes_moved());
        let stores = |name: &str| counters.number(&format!("global_stores/{name}"));
        assert_eq!(stores("sectors"), stores("ideal_sectors"), "accumulate {accumulate}");
    }
}

#[test]
fn copy_rows__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, out: DType::F32, accumulate: false };
    let dense = Shape::dense(1, 4, 2, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { batch: 1 << 17, ..dense }, options), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { tokens: 1 << 40, ..dense }, options), Error::Range { arg: "tokens heads", .. }));
    assert!(matches!(refused(Shape { width: 1 << 40, ..dense }, options), Error::Range { arg: "width", .. }));
    let narrow = Some(Stride { batch: 64, token: 15, head: 8 });
    assert!(matches!(refused(Shape { out_stride: narrow, ..dense }, options), Error::Layout { arg: "out", .. }));
    let back = Some(Stride { batch: 64, token: -16, head: 8 });
    assert!(matches!(refused(Shape { x_stride: back, ..dense }, options), Error::Layout { arg: "x", .. }));
    let mixed = Options { dtype: DType::F16, out: DType::Bf16, ..options };
    assert!(matches!(refused(dense, mixed), Error::NoKernel { .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let stream = device::stream();
    let x = upload_as::<f32>(&[1.0; 64]);
    let mut out = Guarded::<f32>::poisoned(64, 1);
    let short = plan.run(&stream, &x.slice(..63), &mut out.view_mut()).unwrap_err();
    assert!(matches!(short, Error::Shape { arg: "x", .. }));
    let dtype = plan.run(&stream, &upload_as::<f16>(&[1.0; 64]), &mut out.view_mut()).unwrap_err();
    assert!(matches!(dtype, Error::Dtype { arg: "x", .. }));
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing was written");
    // SAFETY: the call is refused before it touches memory.
    let alias = unsafe { plan.run_raw(&stream, 4096, 4096 + 252) }.unwrap_err();
    assert!(matches!(alias, Error::Alias { .. }));
    // SAFETY: likewise.
    let align = unsafe { plan.run_raw(&stream, 4098, 8192) }.unwrap_err();
    assert!(matches!(align, Error::Align { arg: "x", .. }));
    let nothing = Plan::new(&Shape { tokens: 0, ..dense }, &options, &info).unwrap();
    // SAFETY: there is nothing to copy.
    let done = unsafe { nothing.run_raw(&stream, 0, 0) };
    assert!(done.is_ok());
}

/// Two rows of a batch with gaps everywhere, two blocks of columns, sixteen threads a row.
fn seen(machine: &Machine, quantum: u32) -> Option<Seen> {
    let [batch, tokens, heads, width] = [2, 9, 3, 200];
    let mut random = Random::new(3);
    let dense = random.normals::<f32>(batch * tokens * heads * width);
    let tensor = |head: i64, token: i64, batch_step: i64| {
        Strided::new([batch, tokens, heads], [batch_step, token, head], width, 4)
    };
    let (x, out) = (tensor(204, 620, 5600), tensor(208, 640, 5800));
    let place = |values: &[f64], tensor: &Strided| {
        spread(values, tensor).iter().map(|v| if v.is_nan() { 7.0 } else { *v }).collect::<Vec<_>>()
    };
    let (from, to) = (place(&dense, &x), poison(machine, out.span() as usize));
    let args = CopyRows {
        p_x: machine.place::<f32>(&from),
        p_out: to,
        x_stride_batch: x.strides[0],
        x_stride_token: x.strides[1],
        x_stride_head: x.strides[2],
        out_stride_batch: out.strides[0],
        out_stride_token: out.strides[1],
        out_stride_head: out.strides[2],
        rows: (tokens * heads) as u32,
        heads: heads as u32,
        width: width as u32,
        accumulate: 0,
        lane_bits: 4,
        column_step: 2 * 16 * 4,
    };
    // Between rows nothing is written: the poison is wanted back.
    let old = machine.read::<f32>(to, out.span() as usize);
    let want: Vec<f64> =
        spread(&dense, &out).iter().zip(&old).map(|(v, old)| if v.is_nan() { *old } else { *v }).collect();
    judge(machine, [2, 2, batch as u32], bytes_of(&args), quantum, &vec![(to, want, width)])
}

#[test]
fn copy_rows__every_seeded_mistake_is_caught() {
    let kernel = find("copy_rows", &[("dtype", "f32"), ("out", "f32"), ("vec", "4")]).expect("every variant");
    let mutants: &[Mutant] = &[
        ("setp.ge.u32 %is_outside, %i_row, %n_rows;", "setp.gt.u32 %is_outside, %i_row, %n_rows;", 0, Seen::Something),
        ("mul.lo.u32 %t1, %i_token, %t0;", "mov.u32 %t1, 0;", 0, Seen::Something),
        ("mov.u32 %i_batch, %ctaid.z;", "mov.u32 %i_batch, 0;", 0, Seen::Something),
        ("mov.u32 %i_batch, %ctaid.z;", "mov.u32 %i_batch, 0;", 1, Seen::Something),
        ("cvt.u64.u32 %index, %i_head;", "mov.u64 %index, 0;", 0, Seen::Something),
        ("cvt.u64.u32 %index, %i_token;", "mov.u64 %index, 0;", 1, Seen::Something),
        (
            "setp.ge.u32 %is_outside, %i_column, %n_columns;",
            "setp.gt.u32 %is_outside, %i_column, %n_columns;",
            0,
            Seen::Something,
        ),
        ("add.u64 %p_x, %p_x, %x_bytes;", "", 0, Seen::WrongResult),
        ("add.u64 %p_out, %p_out, %out_bytes;", "", 0, Seen::Something),
        ("@!%is_sum bra SUMMED;", "", 0, Seen::Something),
    ];
    every_one_is_caught(kernel, seen, mutants);
}
