use super::support::{Input, Layout, Output, address};
use half::{bf16, f16};
use lookback_device::{DType, DeviceInfo, Element, Error, cudarc::driver::DevicePtr};
use lookback_nn::residual_norm::{
    BackwardAddresses, BackwardInputs, BackwardOutputs, BackwardPlan, BackwardShape, Options,
};
use lookback_reference::residual_norm::{Norm, backward};
use lookback_suite::{
    buffer::{download, upload},
    counters::Counters,
    device,
    measure::{assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub rows: usize,
    pub width: usize,
    pub gap: usize,
    pub shift: usize,
    pub center: bool,
    pub post: bool,
    pub dout: bool,
    pub dsum: bool,
    pub weight: bool,
    /// Few of them give a team several rows.
    pub sm_count: u32,
    /// Of `s`, whose deviation is 1.
    pub mean: f32,
}

pub const CASE: Case = Case {
    rows: 5,
    width: 48,
    gap: 0,
    shift: 0,
    center: true,
    post: false,
    dout: true,
    dsum: true,
    weight: true,
    sm_count: 132,
    mean: 6.0,
};

/// ds, dx, dweight and dbias.
pub fn check<T: Element>(case: Case) -> [Vec<f64>; 4] {
    let Case { rows, width, gap, shift, center, post, .. } = case;
    let what = format!("residual_norm_backward {} {case:?}", T::DTYPE);
    let mut random = Random::new((rows * 1000 + width) as u64);
    let s: Vec<f64> = random.normals::<f32>(rows * width).iter().map(|v| f64::from(*v as f32 + case.mean)).collect();
    let (dout, dsum) = (random.normals::<T>(rows * width), random.normals::<f32>(rows * width));
    let weight = random.uniforms::<f32>(width, 0.5, 1.5);
    let lies = Layout::dense(rows, width).gap(gap).shift(shift);
    let (s_in, dsum_in) = (Input::<f32>::new(&s, lies), Input::<f32>::new(&dsum, lies));
    let (dout_in, weight_in) = (Input::<T>::new(&dout, lies), Input::<f32>::dense(&weight));
    let stride = (width + gap) as i64;
    let shape = BackwardShape {
        rows,
        width,
        s_stride: stride,
        dout_stride: stride,
        dsum_stride: stride,
        ds_stride: stride,
        dx_stride: stride,
    };
    let options = Options { dtype: T::DTYPE, eps: 1e-5, center, post };
    let info = DeviceInfo { sm_count: case.sm_count, ..device::info() };
    let plan = BackwardPlan::new(&shape, &options, &info).unwrap();
    let (mut ds, mut dx) = (Output::<f32>::new(lies), Output::<T>::new(lies));
    let [mut dweight, mut dbias] = [0; 2].map(|_| Output::<f32>::new(Layout::dense(1, width)));
    let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
    let (dout_view, dsum_view, weight_view) = (dout_in.view(), dsum_in.view(), weight_in.view());
    let inputs = BackwardInputs {
        dout: case.dout.then_some(&dout_view as &dyn DevicePtr<T>),
        dsum: case.dsum.then_some(&dsum_view as &dyn DevicePtr<f32>),
        weight: case.weight.then_some(&weight_view as &dyn DevicePtr<f32>),
    };
    let (mut ds_view, mut dx_view) = (ds.view_mut(), dx.view_mut());
    let (mut dweight_view, mut dbias_view) = (dweight.view_mut(), dbias.view_mut());
    let outputs = BackwardOutputs {
        ds: Some(&mut ds_view),
        dx: Some(&mut dx_view),
        dweight: Some(&mut dweight_view),
        dbias: Some(&mut dbias_view),
    };
    plan.run(&device::stream(), &s_in.view(), inputs, outputs, &mut workspace.view_mut()).unwrap();
    device::finish();
    // What goes through the norm, and what goes past it.
    let part = |values: &[f64], is_there: bool| {
        if is_there { values.to_vec() } else { vec![0.0; rows * width] }
    };
    let (mut through, mut past) = (part(&dout, case.dout), part(&dsum, case.dsum));
    if post {
        lookback_reference::layers::add(&mut through, &past);
        past.fill(0.0);
    }
    let norm = Norm { width, weight: case.weight.then_some(&weight), bias: None, eps: f64::from(1e-5_f32), center };
    let mut want = backward(&norm, &s, &through);
    lookback_reference::layers::add(&mut want.ds, &past);
    let got = [ds.read(), dx.read(), dweight.read(), dbias.read()];
    let row = width.max(1);
    assert_close(&format!("{what}: ds"), &got[0], &want.ds, row, gate(DType::F32));
    assert_close(&format!("{what}: dx"), &got[1], &want.ds, row, gate(T::DTYPE));
    assert_close(&format!("{what}: dweight"), &got[2], &want.dweight, row, gate(DType::F32));
    assert_close(&format!("{what}: dbias"), &got[3], &want.dbias, row, gate(DType::F32));
    got
}

fn sizes<T: Element>() {
    // Teams of some lanes of a warp, of a warp, of several, of a block; the last widths do not fit in registers.
    for (rows, width) in [(0, 8), (3, 0), (70, 16), (9, 7), (33, 48), (5, 129), (3, 512), (7, 2048)] {
        check::<T>(Case { rows, width, ..CASE });
        check::<T>(Case { rows, width, gap: 4, post: true, sm_count: 1, ..CASE });
        check::<T>(Case { rows, width, gap: 1, shift: 1, center: false, ..CASE });
    }
    for width in [1030, 4096 + 4, 9000] {
        check::<T>(Case { rows: 5, width, sm_count: 1, ..CASE });
        check::<T>(Case { rows: 2, width, post: true, center: false, ..CASE });
        check::<T>(Case { rows: 3, width, shift: 1, sm_count: 1, ..CASE });
    }
    for post in [false, true] {
        check::<T>(Case { post, dout: false, ..CASE });
        check::<T>(Case { post, dsum: false, ..CASE });
        check::<T>(Case { post, weight: false, ..CASE });
        check::<T>(Case { post, dsum: false, width: 4100, rows: 2, weight: false, ..CASE });
        check::<T>(Case { post, dout: false, width: 4100, rows: 2, ..CASE });
    }
}

#[test]
fn residual_norm_backward__f32() {
    sizes::<f32>();
}

#[test]
fn residual_norm_backward__f16() {
    sizes::<f16>();
}

#[test]
fn residual_norm_backward__bf16() {
    sizes::<bf16>();
}

#[test]
fn residual_norm_backward__a_large_mean_costs_nothing() {
    for width in [48, 560, 5000] {
        for mean in [1e3, 1e5] {
            check::<f32>(Case { width, mean, ..CASE });
        }
    }
}

#[test]
fn residual_norm_backward__is_bitwise_the_same_again() {
    let case = Case { rows: 50, width: 300, sm_count: 2, ..CASE };
    assert!(check::<bf16>(case) == check::<bf16>(case));
}

#[test]
fn residual_norm_backward__in_place_and_single_outputs() {
    let (rows, width) = (6, 64);
    let mut random = Random::new(8);
    let [s, dout, dsum] = [0; 3].map(|_| random.normals::<f32>(rows * width));
    let options = Options { dtype: DType::F32, eps: 1e-5, center: true, post: false };
    let plan = BackwardPlan::new(&BackwardShape::dense(rows, width), &options, &device::info()).unwrap();
    let [s_in, dout_in] = [&s, &dout].map(|values| Input::<f32>::dense(values));
    let norm = Norm { width, weight: None, bias: None, eps: f64::from(1e-5_f32), center: true };
    let mut want = backward(&norm, &s, &dout).ds;
    lookback_reference::layers::add(&mut want, &dsum);
    // The gradient of the residual stream goes on in the same memory, and dx in that of dout.
    let stream_in = Input::<f32>::dense(&dsum);
    let both = BackwardAddresses {
        s: address(&s_in.view()),
        dout: address(&dout_in.view()),
        dsum: address(&stream_in.view()),
        ds: address(&stream_in.view()),
        dx: address(&dout_in.view()),
        ..BackwardAddresses::default()
    };
    // SAFETY: all four live until the synchronisation below, and nothing else uses them.
    unsafe { plan.run_raw(&device::stream(), &both) }.unwrap();
    // SAFETY: nothing is launched, because an output overlaps an input by one element.
    let overlap = unsafe { plan.run_raw(&device::stream(), &BackwardAddresses { ds: both.s + 4, ..both }) };
    assert!(matches!(overlap, Err(Error::Alias { a: "ds", b: "s", .. })), "{overlap:?}");
    device::finish();
    for (name, input) in [("ds", &stream_in), ("dx", &dout_in)] {
        let got: Vec<f64> =
            download(&device::stream().clone_dtod(&input.view()).unwrap()).into_iter().map(f64::from).collect();
        assert_close(name, &got, &want, width, gate(DType::F32));
    }
    // One gradient of a parameter without the other, and without those of the rows.
    let mut workspace = upload(&vec![f32::NAN; plan.workspace_bytes() as usize / 4]);
    let want = backward(&norm, &s, &dout);
    let dout_again = Input::<f32>::dense(&dout);
    for bias in [false, true] {
        let mut out = Output::<f32>::new(Layout::dense(1, width));
        let mut view = out.view_mut();
        let outputs = match bias {
            true => BackwardOutputs { dbias: Some(&mut view), ..Default::default() },
            false => BackwardOutputs { dweight: Some(&mut view), ..Default::default() },
        };
        let dout_view = dout_again.view();
        let inputs = BackwardInputs { dout: Some(&dout_view), ..Default::default() };
        plan.run(&device::stream(), &s_in.view(), inputs, outputs, &mut workspace).unwrap();
        device::finish();
        let want = if bias { &want.dbias } else { &want.dweight };
        assert_close("a parameter alone", &out.read(), want, width, gate(DType::F32));
    }
}

#[test]
fn residual_norm_backward__counters_are_at_the_floor() {
    let (rows, width) = (64, 512);
    let values = Random::new(1).normals::<bf16>(rows * width);
    let (s, dsum) = (Input::<f32>::dense(&values), Input::<f32>::dense(&values));
    let dout = Input::<bf16>::dense(&values);
    let weight = Input::<f32>::dense(&values[..width]);
    let options = Options { dtype: DType::Bf16, eps: 1e-5, center: true, post: false };
    let plan = BackwardPlan::new(&BackwardShape::dense(rows, width), &options, &device::info()).unwrap();
    let (mut ds, mut dx) =
        (Output::<f32>::new(Layout::dense(rows, width)), Output::<bf16>::new(Layout::dense(rows, width)));
    let mut nothing = Output::<f32>::new(Layout::dense(1, 0));
    let (dout, dsum, weight) = (dout.view(), dsum.view(), weight.view());
    let run = || {
        let (mut ds, mut dx) = (ds.view_mut(), dx.view_mut());
        let inputs = BackwardInputs { dout: Some(&dout), dsum: Some(&dsum), weight: Some(&weight) };
        let outputs = BackwardOutputs { ds: Some(&mut ds), dx: Some(&mut dx), ..Default::default() };
        plan.run(&device::stream(), &s.view(), inputs, outputs, &mut nothing.view_mut()).unwrap();
    };
    let Some(counters) = Counters::of(run) else { return };
    counters.assert_coalesced("residual_norm_backward");
    counters.assert_streams("residual_norm_backward", plan.bytes_moved() + 4 * width as u64);
    // Teams of 128 threads: two rows to a block, whose weights each team reads once.
    let read = counters.number("global_loads/bytes");
    let teams = rows.div_ceil(2) * 2;
    assert_eq!(read, (rows * width * 10 + teams * width * 4) as u64, "everything is read once");
}

#[test]
fn residual_norm_backward__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, eps: 1e-5, center: true, post: false };
    let dense = BackwardShape::dense(4, 8);
    let refused = |shape: BackwardShape, options: Options| BackwardPlan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(BackwardShape { rows: 1 << 40, ..dense }, options), Error::Range { arg: "rows", .. }));
    assert!(matches!(refused(BackwardShape { width: 1 << 30, ..dense }, options), Error::Range { arg: "width", .. }));
    assert!(matches!(refused(BackwardShape { s_stride: -1, ..dense }, options), Error::Layout { arg: "s", .. }));
    assert!(matches!(refused(BackwardShape { ds_stride: 7, ..dense }, options), Error::Layout { arg: "ds", .. }));
    assert!(matches!(refused(dense, Options { eps: -1.0, ..options }), Error::Range { arg: "eps", .. }));
    let plan = BackwardPlan::new(&dense, &options, &info).unwrap();
    let (s, short) = (upload(&[1_f32; 32]), upload(&[1_f32; 31]));
    let mut none = upload(&[0_f32; 1]);
    let mut out = Output::<f32>::new(Layout::dense(4, 8));
    let mut dweight = Output::<f32>::new(Layout::dense(1, 8));
    let stream = device::stream();
    let inputs = || BackwardInputs { dout: Some(&short as &dyn DevicePtr<f32>), ..Default::default() };
    let (mut view, mut dweight_view) = (out.view_mut(), dweight.view_mut());
    let error =
        plan.run(&stream, &s, inputs(), BackwardOutputs { ds: Some(&mut view), ..Default::default() }, &mut none);
    assert!(matches!(error, Err(Error::Shape { arg: "dout", .. })), "{error:?}");
    let outputs = BackwardOutputs { ds: Some(&mut view), dweight: Some(&mut dweight_view), ..Default::default() };
    let error = plan.run::<f32>(&stream, &s, BackwardInputs::default(), outputs, &mut none);
    assert!(matches!(error, Err(Error::Workspace { got: 4, .. })), "{error:?}");
    let outputs = BackwardOutputs::<f16> { ds: Some(&mut view), ..Default::default() };
    let error = plan.run(&stream, &s, BackwardInputs::<f16>::default(), outputs, &mut none);
    assert!(matches!(error, Err(Error::Dtype { arg: "dout", .. })), "{error:?}");
    device::finish();
    assert!(out.read().iter().chain(&dweight.read()).all(|v| v.is_nan()), "nothing may be written on an error");
}
