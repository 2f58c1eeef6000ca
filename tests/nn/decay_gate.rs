use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error, cudarc::driver::DevicePtr};
use lookback_nn::decay_gate::{Options, Params, Plan, Shape};
use lookback_reference::decay_gate::Gate;
use lookback_suite::{
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

/// A device of one multiprocessor gets few blocks, so that threads walk several columns.
fn small_device() -> DeviceInfo {
    DeviceInfo { sm_count: 1, ..device::info() }
}

fn case<T: Element>(rows: usize, width: usize, shift: usize, negated: bool, with_params: bool) {
    let mut random = Random::new((rows * 1000 + width) as u64);
    let x: Vec<f64> = (0..rows * width).map(|_| round::<T>(4.0 * random.normal())).collect();
    let (bias, rate) = (random.normals::<f32>(width), random.uniforms::<f32>(width, -16.0, -0.1));
    let layout = Layout::dense(rows, width).gap(4 * shift).shift(shift);
    let (x_in, bias_in, rate_in) =
        (Input::<T>::new(&x, layout), Input::<f32>::dense(&bias), Input::<f32>::dense(&rate));
    let (mut g, mut step) = (Output::<f32>::new(layout), Output::<f32>::new(layout));
    let stride = (width + 4 * shift) as i64;
    let shape = Shape { rows, width, x_stride: stride, out_stride: stride };
    let bounds = if with_params { (1e-3, 4.0) } else { (0.0, f32::INFINITY) };
    let options = Options { dtype: T::DTYPE, negated, bounds, rate: -0.0625 };
    let plan = Plan::new(&shape, &options, &small_device()).unwrap();
    let (bias_view, rate_view) = (bias_in.view(), rate_in.view());
    let params = Params {
        bias: with_params.then_some(&bias_view as &dyn DevicePtr<f32>),
        rate: with_params.then_some(&rate_view as &dyn DevicePtr<f32>),
    };
    let (mut g_view, mut step_view) = (g.view_mut(), step.view_mut());
    let wanted = with_params.then_some(&mut step_view as _);
    plan.run(&device::stream(), &x_in.view(), params, &mut g_view, wanted).unwrap();
    device::finish();
    let rates = if with_params { rate } else { vec![-0.0625; width] };
    let oracle = Gate {
        bias: with_params.then_some(&bias),
        rate: &rates,
        sign: if negated { -1.0 } else { 1.0 },
        bounds: (f64::from(bounds.0), f64::from(bounds.1)),
    };
    let expected = lookback_reference::decay_gate::forward(&oracle, &x);
    let what = format!("decay_gate {} [{rows},{width}] shift {shift} negated {negated} {with_params}", T::DTYPE);
    assert_close(&format!("{what}: g"), &g.read(), &expected.g, width.max(1), gate(DType::F32));
    if with_params {
        assert_close(&format!("{what}: step"), &step.read(), &expected.step, width.max(1), gate(DType::F32));
    }
}

fn sizes<T: Element>() {
    for (rows, width) in [(0, 8), (8, 0), (1, 1), (3, 7), (33, 24), (5, 64), (2, 1000), (1, 2056)] {
        case::<T>(rows, width, 0, false, true);
        case::<T>(rows, width, 1, true, false);
    }
}

#[test]
fn decay_gate__f32() {
    sizes::<f32>();
}

#[test]
fn decay_gate__f16() {
    sizes::<f16>();
}

#[test]
fn decay_gate__bf16() {
    sizes::<bf16>();
}

#[test]
fn decay_gate__every_element_is_right_far_from_zero() {
    // Each alone: a softplus of -80 is 2e-35, which no norm over a row would see.
    for x in [-80.0, -20.0, -12.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 12.0, 80.0, 1e30] {
        let x = f64::from(x as f32);
        let (x_in, mut g) = (Input::<f32>::dense(&[x]), Output::<f32>::new(Layout::dense(1, 1)));
        let options = Options { dtype: DType::F32, negated: false, bounds: (0.0, f32::INFINITY), rate: 1.0 };
        let plan = Plan::new(&Shape::dense(1, 1), &options, &device::info()).unwrap();
        plan.run(&device::stream(), &x_in.view(), Params::default(), &mut g.view_mut(), None).unwrap();
        device::finish();
        let (got, want) = (g.read()[0], lookback_reference::layers::softplus(x));
        assert!((got / want - 1.0).abs() < 5e-6, "softplus({x}) is {got}, not {want}");
    }
    let (x_in, mut g) = (Input::<f32>::dense(&[f64::NAN]), Output::<f32>::new(Layout::dense(1, 1)));
    let options = Options { dtype: DType::F32, negated: false, bounds: (0.5, 1.0), rate: 1.0 };
    let plan = Plan::new(&Shape::dense(1, 1), &options, &device::info()).unwrap();
    plan.run(&device::stream(), &x_in.view(), Params::default(), &mut g.view_mut(), None).unwrap();
    device::finish();
    assert!(g.read()[0].is_nan());
}

#[test]
fn decay_gate__counters_are_at_the_floor() {
    let (rows, width) = (64, 128);
    let x = Input::<bf16>::dense(&Random::new(4).normals::<bf16>(rows * width));
    let layout = Layout::dense(rows, width);
    let (mut g, mut step) = (Output::<f32>::new(layout), Output::<f32>::new(layout));
    let options = Options::log_sigmoid(DType::Bf16, 16.0);
    let plan = Plan::new(&Shape::dense(rows, width), &options, &device::info()).unwrap();
    let run = || {
        let mut step = step.view_mut();
        plan.run(&device::stream(), &x.view(), Params::default(), &mut g.view_mut(), Some(&mut step)).unwrap();
    };
    let Some(counters) = Counters::of(run) else { return };
    counters.assert_coalesced("decay_gate");
    counters.assert_streams("decay_gate", plan.bytes_moved());
}

#[test]
fn decay_gate__bad_calls_are_refused() {
    let info = device::info();
    let options = Options::log_sigmoid(DType::F32, 16.0);
    let dense = Shape::dense(4, 8);
    let refused = |shape: Shape, options: Options| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { rows: 1 << 40, ..dense }, options), Error::Range { arg: "rows", .. }));
    assert!(matches!(refused(Shape { out_stride: 7, ..dense }, options), Error::Layout { arg: "g", .. }));
    for bounds in [(1.0, 0.5), (-1.0, 1.0), (f32::NAN, 1.0), (0.0, f32::NAN)] {
        assert!(matches!(refused(dense, Options { bounds, ..options }), Error::Range { arg: "bounds", .. }));
    }
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let x = Input::<f32>::dense(&[1.0; 32]);
    let mut g = Output::<f32>::new(Layout::dense(4, 8));
    let stream = device::stream();
    let error = plan.run(&stream, &x.view().slice(..31), Params::default(), &mut g.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    let short = x.view().slice(..7);
    let params = Params { bias: Some(&short as _), rate: None };
    let error = plan.run(&stream, &x.view(), params, &mut g.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "bias", .. }), "{error}");
    let at = address(&x.view());
    // SAFETY: nothing is launched, because the output is the input.
    let error = unsafe { plan.run_raw(&stream, at, 0, 0, at, 0) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "g", b: "x", .. }), "{error}");
}
