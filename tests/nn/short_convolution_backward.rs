use super::support::{Input, Layout, Output, reference};
use half::{bf16, f16};
use lookback_device::{
    DType, DeviceInfo, Element, Error,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_nn::{
    Activation,
    short_convolution::{Adjoints, BackwardPlan, Gradients, Inputs, Options, Shape, Window},
};
use lookback_reference::short_convolution::{Backward, Conv, backward};
use lookback_suite::{
    buffer::upload,
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub size: [usize; 4],
    pub centred: bool,
    pub starts: Option<&'static [i32]>,
    pub with_flags: bool,
    pub with_bias: bool,
    /// The initial state, and the adjoint of the final one.
    pub with_states: bool,
    pub activation: Activation,
    pub gap: usize,
    pub shift: usize,
    /// Few multiprocessors make long runs.
    pub sm_count: u32,
}

/// With everything optional.
pub fn case(batch: usize, tokens: usize, channels: usize, taps: usize) -> Case {
    Case {
        size: [batch, tokens, channels, taps],
        centred: false,
        starts: None,
        with_flags: true,
        with_bias: true,
        with_states: true,
        activation: Activation::Silu,
        gap: 0,
        shift: 0,
        sm_count: 132,
    }
}

impl Case {
    fn shape(&self) -> Shape {
        let [batch, tokens, channels, taps] = self.size;
        let token = (channels + self.gap) as i64;
        let window = if self.centred { Window::Centred } else { Window::Causal };
        Shape {
            window,
            packed: self.starts.map(|s| s.len() - 1),
            x_stride_token: token,
            x_stride_batch: tokens as i64 * token,
            out_stride_token: token,
            out_stride_batch: tokens as i64 * token,
            ..Shape::dense(batch, tokens, channels, taps)
        }
    }
}

/// The operation's gradients, and the oracle's.
fn gradients<T: Element>(case: Case) -> (Backward, Backward) {
    let ([batch, tokens, channels, taps], shape) = (case.size, case.shape());
    let mut random = Random::new((batch * 100_000 + tokens * 1000 + channels) as u64);
    let rows = shape.sequences() * (taps - 1);
    let (x, dout) = (random.normals::<T>(batch * tokens * channels), random.normals::<T>(batch * tokens * channels));
    let weight = random.normals::<T>(channels * taps);
    let bias = case.with_bias.then(|| random.normals::<T>(channels));
    let state = case.with_states.then(|| random.normals::<T>(rows * channels));
    let dlast = case.with_states.then(|| random.normals::<T>(rows * channels));
    let flags: Option<Vec<u8>> =
        case.with_flags.then(|| (0..batch * tokens).map(|_| u8::from(random.below(5) == 0) | 2).collect());

    let layout = Layout::dense(batch * tokens, channels).gap(case.gap).shift(case.shift);
    let one = |width: usize| Layout::dense(1, width).shift(case.shift);
    let (x_in, dout_in) = (Input::<T>::new(&x, layout), Input::<T>::new(&dout, layout));
    let weight_in = Input::<T>::new(&weight, one(channels * taps));
    let bias_in = bias.as_ref().map(|b| Input::<T>::new(b, one(channels)));
    let states = Layout::dense(rows, channels).shift(case.shift);
    let state_in = state.as_ref().map(|s| Input::<T>::new(s, states));
    let dlast_in = dlast.as_ref().map(|s| Input::<T>::new(s, states));
    let flags_in = flags.as_ref().map(|f| upload(&[&f[..], &[0]].concat()));
    let starts_in = case.starts.map(upload);
    let views = [&bias_in, &state_in, &dlast_in].map(|i| i.as_ref().map(Input::view));
    let [bias_view, state_view, dlast_view] = views.each_ref().map(|v| v.as_ref().map(|v| v as &dyn DevicePtr<T>));
    let inputs = Inputs {
        bias: bias_view,
        flags: flags_in.as_ref().map(|f| f as _),
        cu_seqlens: starts_in.as_ref().map(|s| s as _),
        state: state_view,
    };

    let mut dx = Output::<T>::new(layout.gap(2 * case.gap));
    let mut dweight = Output::<f32>::new(Layout::dense(1, channels * taps));
    let mut dbias = Output::<f32>::new(Layout::dense(1, channels));
    let mut dstate = Output::<T>::new(states);
    let token = (channels + 2 * case.gap) as i64;
    let info = DeviceInfo { sm_count: case.sm_count, ..device::info() };
    let options = Options { dtype: T::DTYPE, activation: case.activation };
    let plan = BackwardPlan::new(&shape, (tokens as i64 * token, token), &options, &info).unwrap();
    let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
    let (mut dx_view, mut dstate_view) = (dx.view_mut(), dstate.view_mut());
    let (mut dweight_view, mut dbias_view) = (dweight.view_mut(), dbias.view_mut());
    let outputs = Gradients {
        dx: &mut dx_view,
        dweight: Some(&mut dweight_view),
        dbias: Some(&mut dbias_view),
        dstate: if case.centred { None } else { Some(&mut dstate_view) },
    };
    let (x_view, dout_view, weight_view) = (x_in.view(), dout_in.view(), weight_in.view());
    let adjoints = Adjoints { dout: &dout_view, dstate_out: dlast_view };
    plan.run(&device::stream(), &x_view, &weight_view, inputs, adjoints, outputs, &mut workspace.view_mut()).unwrap();
    device::finish();
    let conv = Conv {
        batch,
        tokens,
        channels,
        taps,
        centred: case.centred,
        bias: bias.as_deref(),
        flags: flags.as_deref(),
        starts: case.starts,
        state: state.as_deref(),
        activation: reference(case.activation),
    };
    let expected = backward(&conv, &x, &weight, &dout, dlast.as_deref());
    let (dx, dweight, dbias) = (dx.read(), dweight.read(), dbias.read());
    let dstate = if case.centred { expected.dstate.clone() } else { dstate.read() };
    workspace.read();
    (Backward { dx, dweight, dbias, dstate }, expected)
}

pub fn check<T: Element>(case: Case) {
    let (found, expected) = gradients::<T>(case);
    let what = format!("short_convolution backward {} {case:?}", T::DTYPE);
    let [_, _, channels, taps] = case.size;
    let row = channels.max(1);
    assert_close(&format!("{what} dx"), &found.dx, &expected.dx, row, gate(T::DTYPE));
    assert_close(&format!("{what} dstate"), &found.dstate, &expected.dstate, row, gate(T::DTYPE));
    assert_close(&format!("{what} dweight"), &found.dweight, &expected.dweight, row * taps, Gate::F32);
    assert_close(&format!("{what} dbias"), &found.dbias, &expected.dbias, row, Gate::F32);
}

fn sizes<T: Element>() {
    for taps in [2, 3, 4, 5, 7] {
        for tokens in [0, 1, 3, 9, 38] {
            check::<T>(case(2, tokens, 8, taps));
            check::<T>(Case { with_flags: false, ..case(2, tokens, 5, taps) });
        }
        let centred =
            |batch, tokens, channels| Case { centred: true, with_states: false, ..case(batch, tokens, channels, taps) };
        for tokens in [1, 3, 9, 38] {
            check::<T>(centred(2, tokens, 8));
            check::<T>(Case { with_flags: false, with_bias: false, ..centred(2, tokens, 5) });
        }
        // Sequences: empty, shorter than the window, of a run and a token, empty at the end; three tokens belong to none.
        let starts: Option<&[i32]> = Some(&[0, 0, 5, 6, 23, 23, 32, 37, 37]);
        check::<T>(Case { starts, ..case(1, 40, 8, taps) });
        check::<T>(Case { starts, with_flags: false, ..case(1, 40, 5, taps) });
        check::<T>(Case { starts, ..centred(1, 40, 8) });
    }
    check::<T>(Case { sm_count: 1, with_flags: false, ..case(1, 70, 2048, 3) });
    check::<T>(Case { sm_count: 1, ..case(1, 70, 2048, 7) });
    for activation in Activation::ALL {
        check::<T>(Case { activation, ..case(1, 19, 12, 4) });
    }
    check::<T>(Case { gap: 8, with_states: false, ..case(2, 9, 16, 4) });
    check::<T>(Case { gap: 1, shift: 1, ..case(2, 9, 16, 4) });
    check::<T>(case(0, 9, 8, 4));
    check::<T>(case(2, 9, 0, 4));
}

#[test]
fn short_convolution_backward__f32() {
    sizes::<f32>();
}

#[test]
fn short_convolution_backward__f16() {
    sizes::<f16>();
}

#[test]
fn short_convolution_backward__bf16() {
    sizes::<bf16>();
}

#[test]
fn short_convolution_backward__cuts_into_runs_do_not_change_dx() {
    // 70 tokens in runs of 8, and in one run.
    let short = gradients::<f32>(case(1, 70, 2048, 4)).0;
    let long = gradients::<f32>(Case { sm_count: 1, ..case(1, 70, 2048, 4) }).0;
    assert!(short.dx == long.dx && short.dstate == long.dstate);
}

#[test]
fn short_convolution_backward__nan_stays_in_its_windows() {
    let (tokens, channels, taps) = (20, 8, 4);
    let mut x = Random::new(6).normals::<f32>(tokens * channels);
    x[5 * channels + 3] = f64::NAN;
    let mut dout = vec![0.5; tokens * channels];
    dout[12 * channels + 1] = f64::NAN;
    let weight = vec![0.5; channels * taps];
    let mut flags = vec![0_u8; tokens];
    flags[7] = 1;
    flags[11] = 1;
    let options = Options { dtype: DType::F32, activation: Activation::Silu };
    let plan = BackwardPlan::dense(&Shape::dense(1, tokens, channels, taps), &options, &device::info()).unwrap();
    let (x_in, weight_in, flags_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&weight), upload(&flags));
    let dout_in = Input::<f32>::dense(&dout);
    let mut dx = Output::<f32>::new(Layout::dense(tokens, channels));
    let (mut dx_view, dout_view) = (dx.view_mut(), dout_in.view());
    let outputs = Gradients { dx: &mut dx_view, dweight: None, dbias: None, dstate: None };
    let inputs = Inputs { flags: Some(&flags_in), ..Inputs::default() };
    let adjoints = Adjoints { dout: &dout_view, dstate_out: None };
    let mut none: CudaSlice<f32> = upload(&[0.0]);
    plan.run(&device::stream(), &x_in.view(), &weight_in.view(), inputs, adjoints, outputs, &mut none).unwrap();
    device::finish();
    let conv = Conv {
        batch: 1,
        tokens,
        channels,
        taps,
        centred: false,
        bias: None,
        flags: Some(&flags),
        starts: None,
        state: None,
        activation: reference(Activation::Silu),
    };
    let dx = dx.read();
    assert_close("NaN", &dx, &backward(&conv, &x, &weight, &dout, None).dx, channels, Gate::F32);
    // The sums of tokens 5 and 6 are NaN, which reaches the inputs 2 to 6; that of token 12 reaches 11 and 12.
    assert_eq!(dx.iter().filter(|v| v.is_nan()).count(), 5 + 2);
}

#[test]
fn short_convolution_backward__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let dense = Shape::dense(2, 40, 8, 4);
    let error = BackwardPlan::new(&dense, (320, 7), &options, &info).unwrap_err();
    assert!(matches!(error, Error::Layout { arg: "dx", .. }), "{error}");
    let plan = BackwardPlan::dense(&dense, &options, &info).unwrap();
    // A block holds all five runs of a row.
    assert_eq!(plan.workspace_bytes(), 2 * (4 + 1) * 8 * 4);
    let (x, weight) = (Input::<f32>::dense(&[1.0; 640]), Input::<f32>::dense(&[1.0; 32]));
    let (x, mut dx) = (x.view(), Output::<f32>::new(Layout::dense(80, 8)));
    let mut dbias = Output::<f32>::new(Layout::dense(1, 8));
    let mut workspace = Output::<f32>::new(Layout::dense(1, 79));
    let (mut dx_view, mut dbias_view) = (dx.view_mut(), dbias.view_mut());
    let outputs = Gradients { dx: &mut dx_view, dweight: None, dbias: Some(&mut dbias_view), dstate: None };
    let adjoints = Adjoints { dout: &x, dstate_out: None };
    let inputs = Inputs::default();
    let stream = device::stream();
    let error =
        plan.run(&stream, &x, &weight.view(), inputs, adjoints, outputs, &mut workspace.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Workspace { need: 320, got: 316, .. }), "{error}");
    let centred = BackwardPlan::dense(&dense.centred(), &options, &info).unwrap();
    let outputs = Gradients { dx: &mut dx_view, dweight: None, dbias: None, dstate: None };
    let adjoints = Adjoints { dout: &x, dstate_out: Some(&x) };
    let inputs = Inputs::default();
    let error =
        centred.run(&stream, &x, &weight.view(), inputs, adjoints, outputs, &mut workspace.view_mut()).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "dstate_out", .. }), "{error}");
    device::finish();
    assert!(dx.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}

fn streams<T: Element>() {
    let (tokens, channels, taps) = (256, 512, 4);
    let mut random = Random::new(2);
    let [x, dout] = [0, 1].map(|_| Input::<T>::dense(&random.normals::<T>(tokens * channels)));
    let weight = Input::<T>::dense(&random.normals::<T>(channels * taps));
    let options = Options { dtype: T::DTYPE, activation: Activation::Silu };
    for centred in [false, true] {
        let shape = Shape::dense(1, tokens, channels, taps);
        let shape = if centred { shape.centred() } else { shape };
        // Few multiprocessors: long runs, as of large problems.
        let plan = BackwardPlan::dense(&shape, &options, &DeviceInfo { sm_count: 1, ..device::info() }).unwrap();
        let mut dx = Output::<T>::new(Layout::dense(tokens, channels));
        let mut dweight = Output::<f32>::new(Layout::dense(1, channels * taps));
        let mut workspace = Output::<f32>::new(Layout::dense(1, plan.workspace_bytes() as usize / 4));
        let (x_view, dout_view, flags) = (x.view(), dout.view(), upload(&vec![0_u8; tokens]));
        let run = || {
            let (mut dx_view, mut dweight_view) = (dx.view_mut(), dweight.view_mut());
            let outputs = Gradients { dx: &mut dx_view, dweight: Some(&mut dweight_view), dbias: None, dstate: None };
            let inputs = Inputs { flags: Some(&flags), ..Inputs::default() };
            let adjoints = Adjoints { dout: &dout_view, dstate_out: None };
            let stream = device::stream();
            plan.run(&stream, &x_view, &weight.view(), inputs, adjoints, outputs, &mut workspace.view_mut()).unwrap();
        };
        let Some(counters) = Counters::of(run) else { return };
        let what = format!("short_convolution backward {} centred {centred}", T::DTYPE);
        // The weights' part of the workspace comes back once, and their gradient goes out.
        let parts = plan.workspace_bytes();
        let read = parts / (taps as u64 + 1) * taps as u64;
        counters.assert_streams(&what, plan.bytes_moved() + parts + read + (channels * taps * 4) as u64);
    }
}

#[test]
fn short_convolution_backward__counters_are_at_the_floor() {
    streams::<f32>();
    streams::<bf16>();
}
