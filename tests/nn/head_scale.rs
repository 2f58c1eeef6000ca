use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error, cudarc::driver::DevicePtr};
use lookback_nn::head_scale::{Factors, Options, Plan, Shape};
use lookback_suite::{
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::Random,
};

/// A device of one multiprocessor gets few blocks, so that threads walk several columns.
fn small_device() -> DeviceInfo {
    DeviceInfo { sm_count: 1, ..device::info() }
}

/// `x_heads` heads of x, each shared by `group`.
fn case<T: Element>(rows: usize, (x_heads, group): (usize, usize), dim: usize, shift: usize, factors: (bool, bool)) {
    let heads = x_heads * group;
    let mut random = Random::new((rows * 1000 + heads * dim) as u64);
    let x = random.normals::<T>(rows * x_heads * dim);
    let (scale, bias) = (random.normals::<f32>(rows * heads), random.normals::<f32>(heads));
    let x_layout = Layout::dense(rows, x_heads * dim).gap(4 * shift).shift(shift);
    let scale_layout = Layout::dense(rows, heads).gap(3);
    let out_layout = Layout::dense(rows, heads * dim).gap(8 * shift).shift(shift);
    let (x_in, scale_in, bias_in) =
        (Input::<T>::new(&x, x_layout), Input::<f32>::new(&scale, scale_layout), Input::<f32>::dense(&bias));
    let shape = Shape {
        x_heads,
        x_stride: (x_heads * dim + 4 * shift) as i64,
        scale_stride: (heads + 3) as i64,
        out_stride: (heads * dim + 8 * shift) as i64,
        ..Shape::dense(rows, heads, dim)
    };
    let (scale_view, bias_view) = (scale_in.view(), bias_in.view());
    let given = Factors {
        scale: factors.0.then_some(&scale_view as &dyn DevicePtr<f32>),
        bias: factors.1.then_some(&bias_view as &dyn DevicePtr<f32>),
    };
    let spread: Vec<f64> = x.chunks_exact(dim.max(1)).flat_map(|part| part.repeat(group)).collect();
    let (scale, bias) = (factors.0.then_some(&scale[..]), factors.1.then_some(&bias[..]));
    let what = format!("head_scale {} [{rows},{x_heads}x{group},{dim}] shift {shift} {factors:?}", T::DTYPE);
    let once = lookback_reference::head_scale::forward(&spread, heads, dim, scale, bias, None);
    let rounded: Vec<f64> = once.iter().map(|v| lookback_suite::random::round::<T>(*v)).collect();
    let twice = lookback_reference::head_scale::forward(&spread, heads, dim, scale, bias, Some(&rounded));
    let mut out = Output::<T>::new(out_layout);
    for (accumulate, expected) in [(false, &once), (true, &twice)] {
        let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, accumulate }, &small_device()).unwrap();
        plan.run(&device::stream(), &x_in.view(), given, &mut out.view_mut()).unwrap();
        device::finish();
        assert_close(&format!("{what} {accumulate}"), &out.read(), expected, (heads * dim).max(1), gate(T::DTYPE));
    }
}

fn sizes<T: Element>() {
    for (rows, heads, dim) in
        [(0, (2, 1), 8), (3, (1, 1), 1), (5, (3, 1), 7), (9, (1, 4), 16), (4, (2, 3), 64), (2, (2, 1), 520)]
    {
        case::<T>(rows, heads, dim, 0, (true, true));
        case::<T>(rows, heads, dim, 1, (true, false));
    }
    case::<T>(4, (4, 1), 32, 0, (false, true));
}

#[test]
fn head_scale__f32() {
    sizes::<f32>();
}

#[test]
fn head_scale__f16() {
    sizes::<f16>();
}

#[test]
fn head_scale__bf16() {
    sizes::<bf16>();
}

#[test]
fn head_scale__counters_are_at_the_floor() {
    let (rows, heads, dim) = (64, 4, 64);
    let mut random = Random::new(4);
    let x = Input::<bf16>::dense(&random.normals::<bf16>(rows * heads * dim));
    let scale = Input::<f32>::dense(&random.normals::<f32>(rows * heads));
    let mut out = Output::<bf16>::new(Layout::dense(rows, heads * dim));
    let options = Options { dtype: DType::Bf16, accumulate: true };
    let plan = Plan::new(&Shape::dense(rows, heads, dim), &options, &device::info()).unwrap();
    let run = || {
        let scale = scale.view();
        let factors = Factors { scale: Some(&scale), bias: None };
        plan.run(&device::stream(), &x.view(), factors, &mut out.view_mut()).unwrap();
    };
    let Some(counters) = Counters::of(run) else { return };
    counters.assert_streams("head_scale", plan.bytes_moved() + 4 * (rows * heads) as u64);
    let stores = |name: &str| counters.number(&format!("global_stores/{name}"));
    assert_eq!(stores("sectors"), stores("ideal_sectors"), "head_scale");
}

#[test]
fn head_scale__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, accumulate: false };
    let dense = Shape::dense(4, 2, 8);
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { rows: 1 << 40, ..dense }), Error::Range { arg: "rows", .. }));
    assert!(matches!(refused(Shape { heads: 1 << 17, ..dense }), Error::Range { arg: "heads", .. }));
    for x_heads in [0, 3, 4] {
        assert!(matches!(refused(Shape { x_heads, ..dense }), Error::Shape { arg: "x_heads", .. }));
    }
    assert!(matches!(refused(Shape { heads: 0, x_heads: 1 << 60, ..dense }), Error::Shape { arg: "x_heads", .. }));
    assert!(matches!(refused(Shape { out_stride: 15, ..dense }), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let x = Input::<f32>::dense(&[1.0; 64]);
    let mut out = Output::<f32>::new(Layout::dense(4, 16));
    let stream = device::stream();
    let error = plan.run(&stream, &x.view().slice(..63), Factors::default(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    let short = x.view().slice(..7);
    let factors = Factors { scale: Some(&short as _), bias: None };
    let error = plan.run(&stream, &x.view(), factors, &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "scale", .. }), "{error}");
    let at = address(&x.view());
    // SAFETY: nothing is launched, because the output overlaps its factor.
    let error = unsafe { plan.run_raw(&stream, at, at, 0, at) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "out", b: "scale", .. }), "{error}");
}
