use super::support::{Input, Layout, Output, address, address_mut, reference};
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_nn::{
    Activation,
    short_convolution::{Inputs, Options, Plan, RawInputs, Shape, Window},
};
use lookback_reference::short_convolution::{Conv, forward};
use lookback_suite::{
    buffer::{download, upload},
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    tokens: usize,
    channels: usize,
    taps: usize,
    gap: usize,
    shift: usize,
    with_bias: bool,
    with_flags: bool,
    with_state: bool,
    activation: Activation,
    centred: bool,
    /// Where packed sequences begin and end.
    starts: Option<&'static [i32]>,
}

impl Case {
    fn shape(self) -> Shape {
        let Case { batch, tokens, channels, taps, .. } = self;
        let dense = Shape::dense(batch, tokens, channels, taps);
        let window = if self.centred { Window::Centred } else { Window::Causal };
        Shape { window, packed: self.starts.map(|s| s.len() - 1), ..dense }
    }
}

fn check<T: Element>(case: Case) {
    let Case { batch, tokens, channels, taps, gap, shift, activation, centred, starts, .. } = case;
    let sequences = case.shape().sequences();
    let mut random = Random::new((batch * 100_000 + tokens * 1000 + channels) as u64);
    let x = random.normals::<T>(batch * tokens * channels);
    let weight = random.normals::<T>(channels * taps);
    let bias = case.with_bias.then(|| random.normals::<T>(channels));
    let state = case.with_state.then(|| random.normals::<T>(sequences * (taps - 1) * channels));
    // Bit 1 means nothing here.
    let flags: Option<Vec<u8>> =
        case.with_flags.then(|| (0..batch * tokens).map(|_| u8::from(random.below(4) == 0) | 2).collect());

    let layout = Layout::dense(batch * tokens, channels).gap(gap).shift(shift);
    let x_in = Input::<T>::new(&x, layout);
    let weight_in = Input::<T>::new(&weight, Layout::dense(1, channels * taps).shift(shift));
    let bias_in = bias.as_ref().map(|b| Input::<T>::new(b, Layout::dense(1, channels).shift(shift)));
    let rows = sequences * (taps - 1);
    let state_in = state.as_ref().map(|s| Input::<T>::new(s, Layout::dense(rows, channels).shift(shift)));
    let flags_in = flags.as_ref().map(|f| upload(&[&f[..], &[0]].concat()));
    let mut out = Output::<T>::new(layout.gap(2 * gap));
    let mut state_out = Output::<T>::new(Layout::dense(rows, channels).shift(shift));
    let token = |gap: usize| (channels + gap) as i64;
    let shape = Shape {
        x_stride_token: token(gap),
        x_stride_batch: tokens as i64 * token(gap),
        out_stride_token: token(2 * gap),
        out_stride_batch: tokens as i64 * token(2 * gap),
        ..case.shape()
    };
    let plan = Plan::new(&shape, &Options { dtype: T::DTYPE, activation }, &device::info()).unwrap();
    let (bias_view, state_view) = (bias_in.as_ref().map(Input::view), state_in.as_ref().map(Input::view));
    let starts_in = starts.map(upload);
    let mut inputs = Inputs::default();
    if let Some(starts) = &starts_in {
        inputs.cu_seqlens = Some(starts);
    }
    if let Some(view) = &bias_view {
        inputs.bias = Some(view);
    }
    if let Some(view) = &state_view {
        inputs.state = Some(view);
    }
    if let Some(flags) = &flags_in {
        inputs.flags = Some(flags);
    }
    let (mut out_view, mut state_out_view) = (out.view_mut(), state_out.view_mut());
    let state_out_view = if centred { None } else { Some(&mut state_out_view as _) };
    plan.run(&device::stream(), &x_in.view(), &weight_in.view(), inputs, &mut out_view, state_out_view).unwrap();
    device::finish();
    let conv = Conv {
        batch,
        tokens,
        channels,
        taps,
        centred,
        bias: bias.as_deref(),
        flags: flags.as_deref(),
        starts,
        state: state.as_deref(),
        activation: reference(activation),
    };
    let expected = forward(&conv, &x, &weight);
    let what = format!("short_convolution {} {case:?}", T::DTYPE);
    assert_close(&what, &out.read(), &expected.out, channels.max(1), gate(T::DTYPE));
    if !centred {
        assert_close(&format!("{what} state"), &state_out.read(), &expected.state, channels.max(1), Gate::EXACT);
    }
}

fn sizes<T: Element>() {
    let vec = 16 / T::DTYPE.size();
    let base = Case {
        batch: 2,
        tokens: 9,
        channels: 2 * vec,
        taps: 4,
        gap: 0,
        shift: 0,
        with_bias: true,
        with_flags: true,
        with_state: true,
        activation: Activation::Silu,
        centred: false,
        starts: None,
    };
    for taps in [2, 3, 4, 5, 7] {
        for tokens in [0, 1, 3, 8, 9, 38] {
            check::<T>(Case { tokens, taps, ..base });
            check::<T>(Case { tokens, taps, channels: 5, with_flags: false, ..base });
            check::<T>(Case { tokens, taps, gap: vec, with_state: false, with_bias: false, ..base });
        }
        let centred = Case { taps, centred: true, with_state: false, ..base };
        for tokens in [1, 3, 9, 38] {
            check::<T>(Case { tokens, ..centred });
            check::<T>(Case { tokens, channels: 5, with_flags: false, ..centred });
        }
        // Sequences: empty, of one token, of a run and a token, empty at the end; three tokens belong to none.
        let packed = Case { batch: 1, tokens: 40, starts: Some(&[0, 0, 5, 6, 23, 23, 32, 37, 37]), ..base };
        for case in [packed, Case { with_flags: false, channels: 5, ..packed }] {
            check::<T>(Case { taps, ..case });
            check::<T>(Case { taps, with_state: false, centred: true, ..case });
        }
    }
    for channels in [0, 1, 130, 129 * vec] {
        check::<T>(Case { channels, ..base });
        check::<T>(Case { channels, gap: 1, shift: 1, ..base });
    }
    check::<T>(Case { batch: 0, ..base });
    check::<T>(Case {
        batch: 3,
        tokens: 33,
        with_flags: false,
        with_state: false,
        activation: Activation::None,
        ..base
    });
    check::<T>(Case { shift: 1, activation: Activation::Gelu, ..base });
}

#[test]
fn short_convolution__f32() {
    sizes::<f32>();
}

#[test]
fn short_convolution__f16() {
    sizes::<f16>();
}

#[test]
fn short_convolution__bf16() {
    sizes::<bf16>();
}

#[test]
fn short_convolution__token_by_token_in_place_is_bitwise_the_whole() {
    let (batch, tokens, channels, taps) = (2, 11, 24, 4);
    let mut random = Random::new(4);
    let x = random.normals::<f32>(batch * tokens * channels);
    let weight = Input::<f32>::dense(&random.normals::<f32>(channels * taps));
    let options = Options { dtype: DType::F32, activation: Activation::Silu };
    let stream = device::stream();
    let whole = Plan::new(&Shape::dense(batch, tokens, channels, taps), &options, &device::info()).unwrap();
    let x_in = Input::<f32>::dense(&x);
    let mut out = Output::<f32>::new(Layout::dense(batch * tokens, channels));
    whole.run(&stream, &x_in.view(), &weight.view(), Inputs::default(), &mut out.view_mut(), None).unwrap();

    // One token a call: the strides step over the other tokens, the state is updated where it lies.
    let strides = (tokens * channels) as i64;
    let step = Shape { x_stride_batch: strides, out_stride_batch: strides, ..Shape::dense(batch, 1, channels, taps) };
    let step = Plan::new(&step, &options, &device::info()).unwrap();
    let state = Input::<f32>::dense(&vec![0.0; batch * (taps - 1) * channels]);
    let mut stepped = Output::<f32>::new(Layout::dense(batch * tokens, channels));
    let (x_at, out_at) = (address(&x_in.view()), address_mut(&mut stepped.view_mut()));
    let (weight_at, state_at) = (address(&weight.view()), address(&state.view()));
    for t in 0..tokens {
        let offset = (4 * t * channels) as u64;
        let inputs = RawInputs { state: state_at, ..RawInputs::default() };
        // SAFETY: every tensor lives until the synchronisation below; the offsets stay within them.
        unsafe { step.run_raw(&stream, x_at + offset, weight_at, inputs, out_at + offset, state_at) }.unwrap();
    }
    device::finish();
    assert_eq!(out.read(), stepped.read());
    let last: Vec<f64> = (0..batch)
        .flat_map(|b| x[(b * tokens + tokens - (taps - 1)) * channels..(b + 1) * tokens * channels].to_vec())
        .collect();
    let state = download(&stream.clone_dtod(&state.view()).unwrap());
    assert_eq!(state.into_iter().map(f64::from).collect::<Vec<_>>(), last);
}

#[test]
fn short_convolution__time_major_output() {
    // out as [tokens, batch, channels].
    let (batch, tokens, channels, taps) = (3, 6, 8, 3);
    let mut random = Random::new(8);
    let (x, weight) = (random.normals::<f32>(batch * tokens * channels), random.normals::<f32>(channels * taps));
    let shape = Shape {
        out_stride_batch: channels as i64,
        out_stride_token: (batch * channels) as i64,
        ..Shape::dense(batch, tokens, channels, taps)
    };
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    let (x_in, weight_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&weight));
    let mut out = Output::<f32>::new(Layout::dense(tokens, batch * channels));
    plan.run(&device::stream(), &x_in.view(), &weight_in.view(), Inputs::default(), &mut out.view_mut(), None).unwrap();
    device::finish();
    let conv = Conv {
        batch,
        tokens,
        channels,
        taps,
        centred: false,
        bias: None,
        flags: None,
        starts: None,
        state: None,
        activation: reference(Activation::None),
    };
    let expected = forward(&conv, &x, &weight).out;
    let turned: Vec<f64> = (0..tokens)
        .flat_map(|t| (0..batch).flat_map(move |b| (0..channels).map(move |c| (t, b, c))))
        .map(|(t, b, c)| expected[(b * tokens + t) * channels + c])
        .collect();
    assert_close("time-major", &out.read(), &turned, batch * channels, Gate::F32);
}

#[test]
fn short_convolution__starts_out_of_bounds_end_at_the_row() {
    let (tokens, channels, taps) = (20, 8, 4);
    let mut random = Random::new(11);
    let (x, weight) = (random.normals::<f32>(tokens * channels), random.normals::<f32>(channels * taps));
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let plan = Plan::new(&Shape::packed(3, tokens, channels, taps), &options, &device::info()).unwrap();
    let (x_in, weight_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&weight));
    let outs = [[0, 3, 11, 20], [-7, 3, 11, i32::MAX]].map(|starts| {
        let (starts, mut out) = (upload(&starts), Output::<f32>::new(Layout::dense(tokens, channels)));
        let inputs = Inputs { cu_seqlens: Some(&starts), ..Inputs::default() };
        plan.run(&device::stream(), &x_in.view(), &weight_in.view(), inputs, &mut out.view_mut(), None).unwrap();
        device::finish();
        out.read()
    });
    assert_eq!(outs[0], outs[1]);
}

#[test]
fn short_convolution__from_columns_of_a_matrix_into_others() {
    let (tokens, channels, taps) = (12, 8, 3);
    let mut random = Random::new(10);
    let (both, weight) = (random.normals::<f32>(tokens * 2 * channels), random.normals::<f32>(channels * taps));
    let stride = 2 * channels as i64;
    let shape = Shape { x_stride_token: stride, out_stride_token: stride, ..Shape::dense(1, tokens, channels, taps) };
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let plan = Plan::new(&shape, &options, &device::info()).unwrap();
    let (matrix, weight_in) = (Input::<f32>::dense(&both), Input::<f32>::dense(&weight));
    let (x_at, weight_at) = (address(&matrix.view()), address(&weight_in.view()));
    let out_at = x_at + 4 * channels as u64;
    // SAFETY: both tensors live until the synchronisation below; the second call is refused before any launch.
    let refused = unsafe {
        plan.run_raw(&device::stream(), x_at, weight_at, RawInputs::default(), out_at, 0).unwrap();
        plan.run_raw(&device::stream(), x_at, weight_at, RawInputs::default(), out_at - 4, 0)
    };
    assert!(matches!(refused, Err(Error::Alias { a: "out", b: "x", .. })), "{refused:?}");
    device::finish();
    let halves = |values: &[f64], half: usize| -> Vec<f64> {
        values.chunks_exact(2 * channels).flat_map(|row| row[half * channels..][..channels].to_vec()).collect()
    };
    let after: Vec<f64> =
        download(&device::stream().clone_dtod(&matrix.view()).unwrap()).into_iter().map(f64::from).collect();
    let conv = Conv {
        batch: 1,
        tokens,
        channels,
        taps,
        centred: false,
        bias: None,
        flags: None,
        starts: None,
        state: None,
        activation: reference(Activation::None),
    };
    assert_eq!(halves(&after, 0), halves(&both, 0));
    let expected = forward(&conv, &halves(&both, 0), &weight).out;
    assert_close("other columns", &halves(&after, 1), &expected, channels, Gate::F32);
}

#[test]
fn short_convolution__nan_stays_in_its_window() {
    let (tokens, channels, taps) = (20, 8, 4);
    let mut x = Random::new(6).normals::<f32>(tokens * channels);
    x[5 * channels + 3] = f64::NAN;
    x[12 * channels + 1] = f64::NAN;
    let weight = vec![0.5; channels * taps];
    let mut flags = vec![0_u8; tokens];
    flags[14] = 1;
    let options = Options { dtype: DType::F32, activation: Activation::Silu };
    let plan = Plan::new(&Shape::dense(1, tokens, channels, taps), &options, &device::info()).unwrap();
    let (x_in, weight_in, flags_in) = (Input::<f32>::dense(&x), Input::<f32>::dense(&weight), upload(&flags));
    let mut out = Output::<f32>::new(Layout::dense(tokens, channels));
    let inputs = Inputs { flags: Some(&flags_in), ..Inputs::default() };
    plan.run(&device::stream(), &x_in.view(), &weight_in.view(), inputs, &mut out.view_mut(), None).unwrap();
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
    let out = out.read();
    assert_close("NaN", &out, &forward(&conv, &x, &weight).out, channels, Gate::F32);
    assert_eq!(out.iter().filter(|v| v.is_nan()).count(), 4 + 2);
}

#[test]
fn short_convolution__bad_calls_are_refused() {
    let info = device::info();
    let options = Options { dtype: DType::F32, activation: Activation::None };
    let dense = Shape::dense(2, 4, 8, 4);
    let refused = |shape: Shape| Plan::new(&shape, &options, &info).unwrap_err();
    assert!(matches!(refused(Shape { taps: 1, ..dense }), Error::Range { arg: "taps", .. }));
    assert!(matches!(refused(Shape { taps: 8, ..dense }), Error::Range { arg: "taps", .. }));
    assert!(matches!(refused(Shape { taps: 6, ..dense }), Error::NoKernel { .. }));
    assert!(matches!(refused(Shape { packed: Some(2), ..dense }), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { packed: Some(0), ..dense }), Error::Range { arg: "packed", .. }));
    assert!(matches!(refused(Shape { batch: 65_536, ..dense }), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { out_stride_token: 7, ..dense }), Error::Layout { arg: "out", .. }));
    assert!(matches!(refused(Shape { out_stride_batch: 31, ..dense }), Error::Layout { arg: "out", .. }));
    assert!(matches!(refused(Shape { x_stride_token: -8, ..dense }), Error::Layout { arg: "x", .. }));
    let plan = Plan::new(&dense, &options, &info).unwrap();
    let (x, weight) = (Input::<f32>::dense(&[1.0; 64]), Input::<f32>::dense(&[1.0; 32]));
    let mut out = Output::<f32>::new(Layout::dense(8, 8));
    let flags = upload(&[0_u8; 7]);
    let inputs = Inputs { flags: Some(&flags), ..Inputs::default() };
    let error = plan.run(&device::stream(), &x.view(), &weight.view(), inputs, &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "flags", .. }), "{error}");
    let (x_at, weight_at) = (address(&x.view()), address(&weight.view()));
    // SAFETY: the host refuses the call before any launch.
    let error = unsafe { plan.run_raw(&device::stream(), x_at, weight_at, RawInputs::default(), x_at, 0) }.unwrap_err();
    assert!(matches!(error, Error::Alias { a: "out", b: "x", .. }), "{error}");
    let centred = Plan::new(&dense.centred(), &options, &info).unwrap();
    let state = x.view();
    let inputs = Inputs { state: Some(&state), ..Inputs::default() };
    let error =
        centred.run(&device::stream(), &x.view(), &weight.view(), inputs, &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "state", .. }), "{error}");
    let packed = Plan::new(&Shape::packed(2, 8, 8, 4), &options, &info).unwrap();
    let inputs = Inputs::default();
    let error =
        packed.run(&device::stream(), &x.view(), &weight.view(), inputs, &mut out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "cu_seqlens", .. }), "{error}");
    device::finish();
    assert!(out.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
}
