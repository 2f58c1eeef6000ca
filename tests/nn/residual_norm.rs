use super::support::{Input, Layout, Output};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error, cudarc::driver::DevicePtr};
use lookback_nn::residual_norm::{Inputs, Options, Plan, Shape};
use lookback_suite::{
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::Random,
};

/// Which tensors are there.
#[derive(Debug, Clone, Copy)]
pub struct There {
    pub residual: bool,
    pub x: bool,
    pub params: bool,
    pub sum: bool,
}

pub const ALL: There = There { residual: true, x: true, params: true, sum: true };

pub fn case<T: Element>(rows: usize, width: usize, shift: usize, center: bool, post: bool, there: There) {
    let what = format!("{} [{rows},{width}] shift {shift} center {center} post {post} {there:?}", T::DTYPE);
    let mut random = Random::new((rows * 1000 + width) as u64);
    // A mean much larger than the deviation: squares must be taken after it is gone.
    let residual: Vec<f64> = random.normals::<f32>(rows * width).iter().map(|v| f64::from((v + 30.0) as f32)).collect();
    let x = random.normals::<T>(rows * width);
    let (weight, bias) = (random.normals::<f32>(width), random.normals::<f32>(width));
    let layout = Layout::dense(rows, width).gap(4 * shift).shift(shift);
    let (residual_in, x_in) = (Input::<f32>::new(&residual, layout), Input::<T>::new(&x, layout));
    let (weight_in, bias_in) = (Input::<f32>::dense(&weight), Input::<f32>::dense(&bias));
    let (mut sum, mut out) = (Output::<f32>::new(layout), Output::<T>::new(layout));
    let stride = (width + 4 * shift) as i64;
    let shape = Shape {
        residual_stride: stride,
        x_stride: stride,
        sum_stride: stride,
        out_stride: stride,
        ..Shape::dense(rows, width)
    };
    let options = Options { dtype: T::DTYPE, eps: 1e-5, center, post };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    let (residual_view, x_view) = (residual_in.view(), x_in.view());
    let (weight_view, bias_view) = (weight_in.view(), bias_in.view());
    let inputs = Inputs {
        residual: there.residual.then_some(&residual_view as &dyn DevicePtr<f32>),
        x: there.x.then_some(&x_view as &dyn DevicePtr<T>),
        weight: there.params.then_some(&weight_view as &dyn DevicePtr<f32>),
        bias: there.params.then_some(&bias_view as &dyn DevicePtr<f32>),
    };
    let (mut sum_view, mut out_view) = (sum.view_mut(), out.view_mut());
    plan.run(&device::stream(), inputs, there.sum.then_some(&mut sum_view as _), Some(&mut out_view)).unwrap();
    device::finish();
    let part = |values: &[f64], is_there: bool, at: usize| if is_there { values[at] } else { 0.0 };
    let s: Vec<f64> = (0..rows * width).map(|at| part(&residual, there.residual, at) + part(&x, there.x, at)).collect();
    let norm = lookback_reference::residual_norm::Norm {
        width,
        weight: there.params.then_some(&weight),
        bias: there.params.then_some(&bias),
        eps: f64::from(1e-5_f32),
        center,
    };
    let expected = lookback_reference::residual_norm::forward(&norm, &s);
    // A sum of 30 and 1 in f32 keeps its deviation to 2e-6.
    assert_close(&format!("{what}: out"), &out.read(), &expected, width.max(1), gate(T::DTYPE));
    if there.sum {
        let expected = if post { &expected } else { &s };
        assert_close(&format!("{what}: sum"), &sum.read(), expected, width.max(1), gate(DType::F32));
    }
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    for (rows, width) in [(0, 8), (3, 1), (9, 7), (2, 32 * vec), (3, 256), (2, 1024)] {
        case::<T>(rows, width, 0, true, false, ALL);
        case::<T>(rows, width, 1, false, false, ALL);
    }
    // A block to a row; the last widths do not fit in registers.
    for width in [1025, 1032, 2056, 8192 + 8] {
        case::<T>(2, width, 0, true, false, ALL);
        case::<T>(1, width, 0, true, true, ALL);
    }
    case::<T>(2, 8192 + 8, 0, false, true, ALL);
    case::<T>(5, 40, 0, true, true, ALL);
    case::<T>(5, 40, 0, false, false, There { residual: false, ..ALL });
    case::<T>(5, 40, 0, false, false, There { x: false, sum: false, ..ALL });
    case::<T>(5, 40, 0, true, false, There { params: false, ..ALL });
}

#[test]
fn residual_norm__f32() {
    sizes::<f32>();
}

#[test]
fn residual_norm__f16() {
    sizes::<f16>();
}

#[test]
fn residual_norm__bf16() {
    sizes::<bf16>();
}

#[test]
fn residual_norm__a_large_mean_costs_nothing() {
    for (rows, width) in [(3, 384), (2, 1100), (1, 9000)] {
        for mean in [1e3, 1e5, 1e7] {
            let mut random = Random::new(width as u64);
            // Exact in f32; the last mean leaves whole numbers.
            let x: Vec<f64> =
                random.normals::<f32>(rows * width).iter().map(|v| f64::from((3.0 * v + mean) as f32)).collect();
            let (x_in, mut out) = (Input::<f32>::dense(&x), Output::<f32>::new(Layout::dense(rows, width)));
            let options = Options { dtype: DType::F32, eps: 1e-5, center: true, post: false };
            let plan = Plan::new(&Shape::dense(rows, width), &options, &device::info()).unwrap();
            let x_view = x_in.view();
            let inputs = Inputs { x: Some(&x_view as _), ..Inputs::default() };
            plan.run::<f32>(&device::stream(), inputs, None, Some(&mut out.view_mut())).unwrap();
            device::finish();
            let eps = f64::from(1e-5_f32);
            let norm = lookback_reference::residual_norm::Norm { width, weight: None, bias: None, eps, center: true };
            let expected = lookback_reference::residual_norm::forward(&norm, &x);
            assert_close(&format!("{rows}x{width} around {mean}"), &out.read(), &expected, width, gate(DType::F32));
        }
    }
}

#[test]
fn residual_norm__counters_are_at_the_floor() {
    // A warp to a row, then a block.
    for (rows, width) in [(64, 512), (8, 4096)] {
        let mut random = Random::new(4);
        let x = Input::<bf16>::dense(&random.normals::<bf16>(rows * width));
        let residual = Input::<f32>::dense(&random.normals::<f32>(rows * width));
        let weight = Input::<f32>::dense(&random.normals::<f32>(width));
        let layout = Layout::dense(rows, width);
        let (mut sum, mut out) = (Output::<f32>::new(layout), Output::<bf16>::new(layout));
        let options = Options { dtype: DType::Bf16, eps: 1e-5, center: true, post: false };
        let plan = Plan::new(&Shape::dense(rows, width), &options, &device::info()).unwrap();
        let run = || {
            let (residual, x, weight) = (residual.view(), x.view(), weight.view());
            let inputs = Inputs { residual: Some(&residual), x: Some(&x), weight: Some(&weight), bias: None };
            plan.run(&device::stream(), inputs, Some(&mut sum.view_mut()), Some(&mut out.view_mut())).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        counters.assert_coalesced("residual_norm");
        counters.assert_streams("residual_norm", plan.bytes_moved() + 4 * width as u64);
        let read = counters.number("global_loads/bytes");
        assert_eq!(read, (rows * width * (2 + 4 + 4)) as u64, "x and residual are read once, the weight by every row");
    }
}

#[test]
fn residual_norm__in_place() {
    for post in [false, true] {
        let (rows, width) = (3, 40);
        let mut random = Random::new(8);
        let (residual, x) = (random.normals::<f32>(rows * width), random.normals::<bf16>(rows * width));
        let mut stream_sum = lookback_suite::buffer::upload_as::<f32>(&residual);
        let x_in = Input::<bf16>::dense(&x);
        let options = Options { dtype: DType::Bf16, eps: 1e-5, center: true, post };
        let plan = Plan::new(&Shape::dense(rows, width), &options, &device::info()).unwrap();
        let x_view = x_in.view();
        let inputs = Inputs { x: Some(&x_view as _), ..Inputs::default() };
        plan.run_in_place(&device::stream(), &mut stream_sum, inputs, None).unwrap();
        device::finish();
        let s: Vec<f64> = residual.iter().zip(&x).map(|(residual, x)| residual + x).collect();
        let norm = lookback_reference::residual_norm::Norm { width, weight: None, bias: None, eps: 1e-5, center: true };
        let expected = if post { lookback_reference::residual_norm::forward(&norm, &s) } else { s };
        let got: Vec<f64> = lookback_suite::buffer::download(&stream_sum).into_iter().map(f64::from).collect();
        assert_close("in place", &got, &expected, width, gate(DType::F32));
    }
}

#[test]
fn residual_norm__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, eps: 1e-5, center: false, post: false };
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { rows: 1 << 40, ..dense }, options), Error::Range { arg: "rows", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..dense }, options), Error::Layout { arg: "out", .. }));
    assert!(matches!(refused(Shape { sum_stride: 7, ..dense }, options), Error::Layout { arg: "sum", .. }));
    for eps in [f32::NAN, -1.0, f32::INFINITY] {
        assert!(matches!(refused(dense, Options { eps, ..options }), Error::Range { arg: "eps", .. }));
    }
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let x = Input::<f32>::dense(&[1.0; 32]);
    let (short, view) = (x.view().slice(..31), x.view());
    let mut out = Output::<f32>::new(Layout::dense(4, 8));
    let stream = device::stream();
    let inputs = Inputs { x: Some(&short as _), ..Inputs::default() };
    let error = plan.run::<f32>(&stream, inputs, None, Some(&mut out.view_mut())).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    let inputs = Inputs { x: Some(&view as _), weight: Some(&short.slice(..7) as _), ..Inputs::default() };
    let error = plan.run::<f32>(&stream, inputs, None, Some(&mut out.view_mut())).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "weight", .. }), "{error}");
    let halves = Input::<f16>::dense(&[1.0; 32]);
    let halves_view = halves.view();
    let mut out_f16 = Output::<f16>::new(Layout::dense(4, 8));
    let inputs = Inputs { x: Some(&halves_view as _), ..Inputs::default() };
    let error = plan.run::<f16>(&stream, inputs, None, Some(&mut out_f16.view_mut())).unwrap_err();
    assert!(matches!(error, Error::Dtype { .. }), "{error}");
    let mut other = Shape::dense(4, 8);
    other.sum_stride = 9;
    let plan = Plan::new(&other, &options, &info).unwrap();
    let error = plan.run_in_place::<f32>(&stream, &mut out.view_mut(), Inputs::default(), None).unwrap_err();
    assert!(matches!(error, Error::Layout { arg: "sum", .. }), "{error}");
}
