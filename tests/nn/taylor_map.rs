use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::taylor_map::{FEATURES, Plan, Shape};
use lookback_suite::{
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::Random,
};

pub fn case<T: Element>(rows: usize, heads: usize, dim: usize, gap: usize) {
    let x = Random::new((rows * 100 + dim) as u64).normals::<T>(rows * heads * dim);
    let layout = Layout::dense(rows, heads * dim).gap(gap).shift(gap % 2);
    let out_layout = Layout::dense(rows, heads * FEATURES).gap(2 * gap).shift(gap % 2);
    let (x_in, mut out) = (Input::<T>::new(&x, layout), Output::<T>::new(out_layout));
    let shape = Shape {
        x_stride: (heads * dim + gap) as i64,
        out_stride: (heads * FEATURES + 2 * gap) as i64,
        ..Shape::dense(rows, heads, dim)
    };
    let plan = Plan::new(&shape, T::DTYPE, &device::info()).unwrap();
    plan.run(&device::stream(), &x_in.view(), &mut out.view_mut()).unwrap();
    device::finish();
    let expected = lookback_reference::jrt::features(&x, dim);
    let what = format!("taylor_map {} [{rows},{heads},{dim}] gap {gap}", T::DTYPE);
    assert_close(&what, &out.read(), &expected, FEATURES, gate(T::DTYPE));
}

fn sizes<T: Element>() {
    for (rows, heads, dim) in [(0, 2, 16), (3, 0, 16), (1, 1, 1), (5, 3, 7), (16, 1, 16), (17, 2, 16), (33, 1, 8)] {
        case::<T>(rows, heads, dim, 0);
    }
    case::<T>(18, 2, 16, 3);
}

#[test]
fn taylor_map__f32() {
    sizes::<f32>();
}

#[test]
fn taylor_map__f16() {
    sizes::<f16>();
}

#[test]
fn taylor_map__bf16() {
    sizes::<bf16>();
}

#[test]
fn taylor_map__counters_are_at_the_floor() {
    let (rows, heads, dim) = (64, 4, 16);
    let x = Input::<bf16>::dense(&Random::new(4).normals::<bf16>(rows * heads * dim));
    let mut out = Output::<bf16>::new(Layout::dense(rows, heads * FEATURES));
    let plan = Plan::new(&Shape::dense(rows, heads, dim), DType::Bf16, &device::info()).unwrap();
    let run = || plan.run(&device::stream(), &x.view(), &mut out.view_mut()).unwrap();
    let Some(counters) = Counters::of(run) else { return };
    counters.assert_streams("taylor_map", plan.bytes_moved());
    assert_eq!(counters.number("global_stores/bytes"), (2 * rows * heads * FEATURES) as u64, "each feature once");
}

#[test]
fn taylor_map__bad_calls_are_refused() {
    let info = device::info();
    let dense = Shape::dense(4, 2, 8);
    let refused = |shape: Shape| Plan::new(&shape, DType::F32, &info).unwrap_err();
    assert!(matches!(refused(Shape { rows: 1 << 40, ..dense }), Error::Range { arg: "rows", .. }));
    for dim in [0, 17] {
        assert!(matches!(refused(Shape { dim, ..dense }), Error::Range { arg: "dim", .. }));
    }
    assert!(matches!(refused(Shape { heads: 1 << 16, ..dense }), Error::Range { arg: "heads", .. }));
    assert!(matches!(refused(Shape { out_stride: 305, ..dense }), Error::Layout { arg: "out", .. }));
    let plan = Plan::new(&dense, DType::F32, &info).unwrap();
    let x = Input::<f32>::dense(&[1.0; 64]);
    let mut out = Output::<f32>::new(Layout::dense(4, 2 * FEATURES));
    let error = plan.run(&device::stream(), &x.view().slice(..63), &mut out.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    let at = address(&x.view());
    // SAFETY: nothing is launched, because the output overlaps the input.
    let error = unsafe { plan.run_raw(&device::stream(), at, at) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "out", b: "x", .. }), "{error}");
}
