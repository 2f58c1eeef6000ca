use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error};
use lookback_nn::{
    Param,
    rms_norm::{BackwardPlan, BackwardShape, Options, Plan, Shape},
};
use lookback_suite::{
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weight {
    None,
    Same,
    F32,
}

pub fn case<T: Element>(rows: usize, width: usize, gap: usize, shift: usize, weight: Weight) {
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
    device::finish();
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

/// Few multiprocessors make few slices of rows.
pub fn backward<T: Element>(rows: usize, width: usize, gap: usize, shift: usize, weight: Weight, sm_count: u32) {
    let mut random = Random::new((rows * 1000 + width) as u64);
    let (x, dout) = (random.normals::<T>(rows * width), random.normals::<T>(rows * width));
    let values = random.uniforms::<T>(width, 0.5, 1.5);
    let layout = Layout::dense(rows, width).gap(gap).shift(shift);
    let (x_in, dout_in) = (Input::<T>::new(&x, layout), Input::<T>::new(&dout, layout.gap(2 * gap)));
    let same = Input::<T>::new(&values, Layout::dense(1, width).shift(shift));
    let wide = Input::<f32>::new(&values, Layout::dense(1, width).shift(shift));
    let (same, wide) = (same.view(), wide.view());
    let param = match weight {
        Weight::None => Param::None,
        Weight::Same => Param::Same(&same),
        Weight::F32 => Param::F32(&wide),
    };
    let values = (weight != Weight::None).then_some(&values[..]);
    let rstd = lookback_reference::rms_norm::forward(&x, width, values, 1e-5).rstd;
    let rstd_in = Input::<f32>::dense(&if width == 0 { vec![1.0; rows] } else { rstd });
    let mut dx = Output::<T>::new(layout);
    let mut dweight = Output::<f32>::new(Layout::dense(1, width));
    let shape = BackwardShape {
        rows,
        width,
        x_stride: (width + gap) as i64,
        dout_stride: (width + 2 * gap) as i64,
        dx_stride: (width + gap) as i64,
    };
    let plan = BackwardPlan::new(&shape, T::DTYPE, &DeviceInfo { sm_count, ..device::info() }).unwrap();
    let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
    let (mut dx_view, mut dweight_view, mut workspace_view) = (dx.view_mut(), dweight.view_mut(), workspace.view_mut());
    plan.run(
        &device::stream(),
        &x_in.view(),
        &dout_in.view(),
        param,
        &rstd_in.view(),
        &mut dx_view,
        Some(&mut dweight_view),
        &mut workspace_view,
    )
    .unwrap();
    device::finish();
    let expected = lookback_reference::rms_norm::backward(&x, width, values, 1e-5, &dout);
    let what = format!("rms_norm backward {} [{rows},{width}] gap {gap} shift {shift} {weight:?}", T::DTYPE);
    assert_close(&what, &dx.read(), &expected.dx, width.max(1), gate(T::DTYPE));
    assert_close(&format!("{what} dweight"), &dweight.read(), &expected.dweight, width.max(1), Gate::F32);
    workspace.read();
}

fn backward_sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    // With one column nothing but eps is left of dx: rounding alone decides it.
    for (rows, width) in [(0, 8), (8, 0), (1, 6), (3, 7), (9, vec), (70, 65), (100, 256), (3, 1032)] {
        backward::<T>(rows, width, 0, 0, Weight::Same, 132);
        backward::<T>(rows, width, vec, 0, Weight::F32, 1);
        backward::<T>(rows, width, 1, 1, Weight::None, 132);
    }
    backward::<T>(2, 4 * 256 * vec + 8 * vec, 0, 0, Weight::Same, 132);
    backward::<T>(2, 4 * 256 + 3, 0, 0, Weight::F32, 132);
    backward::<T>(200, 40, 0, 0, Weight::Same, 132);
    backward::<T>(2, 137, 0, 1, Weight::Same, 132);
}

#[test]
fn rms_norm_backward__f32() {
    backward_sizes::<f32>();
}

#[test]
fn rms_norm_backward__f16() {
    backward_sizes::<f16>();
}

#[test]
fn rms_norm_backward__bf16() {
    backward_sizes::<bf16>();
}

#[test]
fn rms_norm_backward__in_place_without_dweight() {
    let (rows, width) = (9, 48);
    let mut random = Random::new(8);
    let (x, dout) = (random.normals::<f32>(rows * width), random.normals::<f32>(rows * width));
    let rstd = lookback_reference::rms_norm::forward(&x, width, None, 1e-5).rstd;
    let (x_in, dout_in, rstd_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&dout), Input::<f32>::dense(&rstd));
    let plan = BackwardPlan::new(&BackwardShape::dense(rows, width), DType::F32, &device::info()).unwrap();
    let (x_at, dout_at, rstd_at) = (address(&x_in.view()), address(&dout_in.view()), address(&rstd_in.view()));
    // SAFETY: all three live until the synchronisation below, and nothing else uses them.
    unsafe { plan.run_raw(&device::stream(), x_at, dout_at, (0, None), rstd_at, dout_at, 0, 0) }.unwrap();
    // SAFETY: refused before any launch.
    let error = unsafe { plan.run_raw(&device::stream(), x_at, dout_at, (0, None), rstd_at, x_at + 4, 0, 0) };
    assert!(matches!(error, Err(Error::Alias { a: "dx", b: "x", .. })), "{error:?}");
    device::finish();
    let dx = lookback_suite::buffer::download(&device::stream().clone_dtod(&dout_in.view()).unwrap());
    let dx: Vec<f64> = dx.into_iter().map(f64::from).collect();
    let expected = lookback_reference::rms_norm::backward(&x, width, None, 1e-5, &dout).dx;
    assert_close("in place", &dx, &expected, width, Gate::F32);
}

#[test]
fn rms_norm_backward__a_short_workspace_is_refused() {
    let plan = BackwardPlan::new(&BackwardShape::dense(70, 16), DType::F32, &device::info()).unwrap();
    // Four lanes to a row: 64 rows to a block.
    assert_eq!(plan.workspace_bytes(), 2 * 16 * 4);
    let x = Input::<f32>::dense(&vec![1.0; 70 * 16]);
    let mut dx = Output::<f32>::new(Layout::dense(70, 16));
    let mut dweight = Output::<f32>::new(Layout::dense(1, 16));
    let mut workspace = Output::<f32>::new(Layout::dense(1, 31));
    let (mut dweight_view, mut workspace_view) = (dweight.view_mut(), workspace.view_mut());
    let x = x.view();
    let error = plan
        .run(
            &device::stream(),
            &x,
            &x,
            Param::None,
            &x,
            &mut dx.view_mut(),
            Some(&mut dweight_view),
            &mut workspace_view,
        )
        .unwrap_err();
    assert!(matches!(error, Error::Workspace { need: 128, got: 124, .. }), "{error}");
    device::finish();
    assert!(dx.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}

fn backward_streams<T: Element>() {
    let mut random = Random::new(2);
    // A part of a warp to a row, a warp, a block.
    for (rows, width) in [(256, 64), (64, 512), (16, 4096)] {
        let [x, dout] = [0; 2].map(|_| Input::<T>::dense(&random.normals::<T>(rows * width)));
        let (weight, rstd) = (Input::<T>::dense(&vec![1.0; width]), Input::<f32>::dense(&vec![1.0; rows]));
        let (mut dx, mut dweight) =
            (Output::<T>::new(Layout::dense(rows, width)), Output::<f32>::new(Layout::dense(1, width)));
        let info = DeviceInfo { sm_count: 1, ..device::info() };
        let plan = BackwardPlan::new(&BackwardShape::dense(rows, width), T::DTYPE, &info).unwrap();
        let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
        let (x, dout, weight, rstd) = (x.view(), dout.view(), weight.view(), rstd.view());
        let run = || {
            let (mut dx, mut dweight, weight) = (dx.view_mut(), dweight.view_mut(), Param::Same(&weight));
            let (dweight, mut workspace) = (Some(&mut dweight as _), workspace.view_mut());
            plan.run(&device::stream(), &x, &dout, weight, &rstd, &mut dx, dweight, &mut workspace).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        let what = format!("rms_norm backward {} [{rows},{width}]", T::DTYPE);
        // The parts go out and come back; the weight and its gradient.
        let small = 2 * plan.workspace_bytes() + (width * (T::DTYPE.size() + 4)) as u64;
        counters.assert_streams(&what, plan.bytes_moved() + small);
    }
}

#[test]
fn rms_norm_backward__counters_are_at_the_floor() {
    backward_streams::<f32>();
    backward_streams::<bf16>();
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
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
