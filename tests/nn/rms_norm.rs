use super::support::{Input, Layout, Output, finish};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::{
    Param,
    rms_norm::{Options, Plan, Shape},
};
use lookback_suite::{
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Weight {
    None,
    Same,
    F32,
}

fn case<T: Element>(rows: usize, width: usize, gap: usize, shift: usize, weight: Weight) {
    let mut random = Random::new((rows * 1000 + width) as u64);
    let x = random.normals::<T>(rows * width);
    let layout = Layout::dense(rows, width).gap(gap).shift(shift);
    let x_in = Input::<T>::new(&x, layout);
    let values = random.uniforms::<T>(width, 0.5, 1.5);
    let same = Input::<T>::new(&values, Layout::dense(1, width).shift(shift));
    let wide = Input::<f32>::new(&values, Layout::dense(1, width).shift(shift));
    let (same, wide) = (same.view(), wide.view());
    let param = match weight {
        Weight::None => Param::None,
        Weight::Same => Param::Same(&same),
        Weight::F32 => Param::F32(&wide),
    };
    let mut out = Output::<T>::new(layout.gap(2 * gap));
    let mut rstd = Output::<f32>::new(Layout::dense(1, rows));
    let shape = Shape { rows, width, x_stride: (width + gap) as i64, out_stride: (width + 2 * gap) as i64 };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, eps: 1e-5 }, &device::info()).unwrap();
    plan.run(&device::stream(), &x_in.view(), param, &mut out.view_mut(), Some(&mut rstd.view_mut())).unwrap();
    finish();
    let values = (weight != Weight::None).then_some(&values[..]);
    let expected = lookback_reference::rms_norm::forward(&x, width, values, 1e-5);
    let what = format!("rms_norm {} [{rows},{width}] gap {gap} shift {shift} {weight:?}", T::DTYPE);
    assert_close(&what, &out.read(), &expected.out, width.max(1), gate(T::DTYPE));
    if width > 0 {
        assert_close(&format!("{what} rstd"), &rstd.read(), &expected.rstd, 1, Gate::F32);
    }
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    // Up to 1024 a warp has a row, above a block; 256 * 8 * vec is as much as a block keeps in registers.
    for (rows, width) in [(0, 8), (8, 0), (1, 1), (3, 7), (9, vec), (2, 65), (11, 256), (8, 1024), (3, 1032)] {
        case::<T>(rows, width, 0, 0, Weight::Same);
        case::<T>(rows, width, vec, 0, Weight::F32);
        case::<T>(rows, width, 1, 1, Weight::None);
        case::<T>(rows, width, 0, 1, Weight::F32);
    }
    case::<T>(2, 8 * 256 * 4 + 8 * vec, 0, 0, Weight::Same);
    case::<T>(2, 8 * 256 * 4 + 8 * vec, vec, 0, Weight::F32);
    case::<T>(2, 8 * 256 + 3, 0, 0, Weight::Same);
}

#[test]
fn rms_norm__f32() {
    sizes::<f32>();
}

#[test]
fn rms_norm__f16() {
    sizes::<f16>();
}

#[test]
fn rms_norm__bf16() {
    sizes::<bf16>();
}

#[test]
fn rms_norm__nan_and_infinity_stay_in_their_row() {
    let (rows, width) = (10, 40);
    let mut x = Random::new(3).normals::<f32>(rows * width);
    x[2 * width + 39] = f64::NAN;
    x[5 * width] = f64::INFINITY;
    x[7 * width..8 * width].fill(0.0);
    let x_in = Input::<f32>::dense(&x);
    let out =
        lookback_nn::rms_norm::rms_norm(&device::stream(), &x_in.view(), Param::None, (rows, width), 1e-6).unwrap();
    let out: Vec<f64> = lookback_suite::buffer::download(&out).into_iter().map(f64::from).collect();
    let expected = lookback_reference::rms_norm::forward(&x, width, None, 1e-6).out;
    assert_close("rms_norm special", &out, &expected, width, Gate::F32);
}

#[test]
fn rms_norm__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::Bf16, eps: 1e-5 };
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { width: 1 << 40, ..dense }, options), Error::Range { arg: "width", .. }));
    assert!(matches!(refused(dense, Options { eps: -1.0, ..options }), Error::Range { arg: "eps", .. }));
    assert!(matches!(refused(dense, Options { eps: f32::NAN, ..options }), Error::Range { arg: "eps", .. }));
    assert!(matches!(refused(Shape { out_stride: 0, ..dense }, options), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let (x, weight) = (Input::<bf16>::dense(&[1.0; 32]), Input::<bf16>::dense(&[1.0; 7]));
    let mut out = Output::<bf16>::new(Layout::dense(4, 8));
    let weight = weight.view();
    let error = plan.run(&device::stream(), &x.view(), Param::Same(&weight), &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "weight", .. }), "{error}");
    finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
