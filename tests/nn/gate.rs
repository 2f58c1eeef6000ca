use super::support::{Input, Layout, Output, address, reference};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error};
use lookback_nn::{
    Activation,
    gate::{Options, Plan, Shape, gate},
};
use lookback_suite::{
    buffer::download,
    device,
    measure::{assert_close, gate as bound},
    random::Random,
};

/// A device of one multiprocessor gets few blocks, so that threads walk several columns.
fn small_device() -> DeviceInfo {
    DeviceInfo { sm_count: 1, ..device::info() }
}

fn case<T: Element>(rows: usize, width: usize, gap: usize, shift: usize, activation: Activation) {
    let mut random = Random::new((rows * 1000 + width) as u64);
    let (x, y) = (random.normals::<T>(rows * width), random.normals::<T>(rows * width));
    let x: Vec<f64> = x.iter().map(|v| lookback_suite::random::round::<T>(3.0 * v)).collect();
    let layout = Layout::dense(rows, width).gap(gap).shift(shift);
    let (x_in, y_in) = (Input::<T>::new(&x, layout), Input::<T>::new(&y, layout.gap(2 * gap)));
    let mut out = Output::<T>::new(layout);
    let shape = Shape {
        rows,
        width,
        x_stride: (width + gap) as i64,
        y_stride: (width + 2 * gap) as i64,
        out_stride: (width + gap) as i64,
    };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, activation }, &small_device()).unwrap();
    plan.run(&device::stream(), &x_in.view(), &y_in.view(), &mut out.view_mut()).unwrap();
    device::finish();
    let expected = lookback_reference::gate::forward(&x, &y, reference(activation));
    let what = format!("gate {} [{rows},{width}] gap {gap} shift {shift} {activation:?}", T::DTYPE);
    assert_close(&what, &out.read(), &expected, width.max(1), bound(T::DTYPE));
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, width) in
        [(0, 8), (8, 0), (1, 1), (3, 7), (5, vec), (2, 63), (33, 64), (7, 257), (1, 256 * vec + vec), (13, 600 * vec)]
    {
        case::<T>(rows, width, 0, 0, Activation::Silu);
        case::<T>(rows, width, vec, 0, Activation::Gelu);
        case::<T>(rows, width, 1, 1, Activation::Sigmoid);
    }
    for activation in Activation::ALL {
        case::<T>(17, 40, 0, 0, activation);
    }
}

#[test]
fn gate__f32() {
    sizes::<f32>();
}

#[test]
fn gate__f16() {
    sizes::<f16>();
}

#[test]
fn gate__bf16() {
    sizes::<bf16>();
}

#[test]
fn gate__special_values() {
    let x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e-40, -200.0, 200.0, -90.0];
    for activation in Activation::ALL {
        let (x_in, y_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&[1.0; 8]));
        let out = gate(&device::stream(), &x_in.view(), &y_in.view(), (1, 8), activation).unwrap();
        let out: Vec<f64> = download(&out).into_iter().map(f64::from).collect();
        let expected = lookback_reference::gate::forward(&x, &[1.0; 8], reference(activation));
        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(out.is_nan(), expected.is_nan(), "{activation:?} of {} is {out}, not {expected}", x[i]);
            let close = (out - expected).abs() <= 1e-6 * expected.abs().max(1e-30) || out == expected;
            assert!(out.is_nan() || close, "{activation:?} of {} is {out}, not {expected}", x[i]);
        }
    }
}

#[test]
fn gate__columns_of_one_matrix_in_place() {
    // Three slices of one projection; the result replaces the second.
    let (rows, width) = (9, 16);
    let mut random = Random::new(5);
    let wide = random.normals::<f32>(rows * 3 * width);
    let matrix = Input::<f32>::dense(&wide);
    let base = address(&matrix.view());
    let stride = 3 * width as i64;
    let shape = Shape { rows, width, x_stride: stride, y_stride: stride, out_stride: stride };
    let options = Options { dtype: DType::F32, activation: Activation::Silu };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    let column = |c: usize| base + (4 * c) as u64;
    // SAFETY: all three column ranges lie in `matrix`, which lives until the synchronisation below.
    unsafe { plan.run_raw(&device::stream(), column(0), column(width), column(width)) }.unwrap();
    // SAFETY: as above; nothing is launched, because the output overlaps an input by one element.
    let overlap = unsafe { plan.run_raw(&device::stream(), column(0), column(width), column(width + 1)) };
    assert!(matches!(overlap, Err(Error::Alias { a: "out", b: "y", .. })), "{overlap:?}");
    device::finish();
    let part =
        |c: usize| -> Vec<f64> { wide.chunks_exact(3 * width).flat_map(|row| row[c..c + width].to_vec()).collect() };
    let expected = lookback_reference::gate::forward(&part(0), &part(width), reference(Activation::Silu));
    let out: Vec<f64> = download(&device::stream().clone_dtod(&matrix.view()).unwrap())
        .chunks_exact(3 * width)
        .flat_map(|row| row[width..2 * width].iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
        .collect();
    assert_close("gate in place", &out, &expected, width, bound(DType::F32));
}

#[test]
fn gate__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { rows: 1 << 40, ..dense }), Error::Range { arg: "rows", .. }));
    assert!(matches!(refused(Shape { x_stride: -1, ..dense }), Error::Layout { arg: "x", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..dense }), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let (short, full) = (Input::<f32>::dense(&[1.0; 31]), Input::<f32>::dense(&[1.0; 32]));
    let halves = Input::<f16>::dense(&[1.0; 32]);
    let mut out = Output::<f32>::new(Layout::dense(4, 8));
    let mut halves_out = Output::<f16>::new(Layout::dense(4, 8));
    let stream = device::stream();
    let error = plan.run(&stream, &short.view(), &full.view(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    let error = plan.run(&stream, &halves.view(), &halves.view(), &mut halves_out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Dtype { arg: "x", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
