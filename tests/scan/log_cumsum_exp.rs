//! Running sums of exponentials and LightNet's gates, beside the same in f64.

use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use lookback_device::{DType, Element, Error};
use lookback_reference::{
    gated_scan::Scan,
    log_cumsum_exp::{self as reference, Adjoint},
};
use lookback_scan::{
    Stride,
    log_cumsum_exp::{
        BackwardInputs, BackwardOutputs, BackwardPlan, GateAdjoint, Inputs, Options, Outputs, Plan, RawInputs,
        RawOutputs, Shape,
    },
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    counters::Counters,
    device,
    measure::{Gate, assert_close, gate},
    random::Random,
};

#[derive(Debug, Clone)]
pub struct Case {
    pub batch: usize,
    pub seq_len: usize,
    pub channels: usize,
    pub starts: Option<Vec<i32>>,
    pub flags: bool,
    pub states: bool,
    pub reverse: bool,
    /// Elements between tokens of `x` and `dx`.
    pub gap: usize,
    /// How far apart logits are.
    pub spread: f64,
    pub by_reads: bool,
}

impl Case {
    pub fn new(batch: usize, seq_len: usize, channels: usize) -> Self {
        Self {
            batch,
            seq_len,
            channels,
            starts: None,
            flags: false,
            states: false,
            reverse: false,
            gap: 0,
            spread: 3.0,
            by_reads: false,
        }
    }

    fn shape(&self) -> Shape {
        let Self { batch, seq_len, channels, .. } = *self;
        let token = channels + self.gap;
        let wide = Stride { batch: (seq_len * token) as i64, token: token as i64 };
        let packed = self.starts.as_ref().map(|s| s.len() - 1);
        Shape { packed, x: wide, dx: wide, ..Shape::dense(batch, seq_len, channels) }
    }

    /// A dense tensor with NaN in the gaps.
    fn spread_out(&self, dense: &[f64]) -> Vec<f64> {
        let gap = vec![f64::NAN; self.gap];
        dense.chunks(self.channels.max(1)).flat_map(|row| row.iter().chain(&gap)).copied().collect()
    }

    pub fn check<T: Element>(&self) {
        self.check_data::<T>(&Data::new::<T>(self));
    }

    fn check_data<T: Element>(&self, data: &Data) {
        let what = |name: &str| format!("{name}, {} of {self:?}", T::DTYPE);
        let scan = data.scan(self);
        let want = reference::forward(&scan, &data.x);
        let got = forward::<T>(self, data);
        let row = self.channels.max(1);
        assert_close(&what("z"), &got.z, &want.z, row, Gate::F32);
        assert_close(&what("k"), &got.k, &want.k, row, gate(T::DTYPE));
        assert_close(&what("g"), &got.g, &want.g, row, Gate::F32);
        assert_close(&what("last"), &got.last, &want.last, row, Gate::F32);

        let z: Vec<f64> = want.z.iter().map(|z| f64::from(*z as f32)).collect();
        let want = reference::backward(&scan, &data.x, &z, &data.adjoint(self));
        let got = backward::<T>(self, data, &z);
        assert_close(&what("dx"), &got.dx, &want.dx, row, gate(T::DTYPE));
        assert_close(&what("d_initial"), &got.d_initial, &want.d_initial, row, Gate::F32);
    }
}

struct Data {
    x: Vec<f64>,
    flags: Option<Vec<u8>>,
    starts: Option<Vec<i32>>,
    initial: Option<Vec<f64>>,
    dz: Vec<f64>,
    dk: Vec<f64>,
    dg: Vec<f64>,
    q: Vec<f64>,
    dq: Vec<f64>,
    d_last: Option<Vec<f64>>,
}

impl Data {
    fn new<T: Element>(case: &Case) -> Self {
        let mut random = Random::new(7 + case.seq_len as u64);
        let n = case.batch * case.seq_len * case.channels;
        let states = case.shape().sequences() * case.channels;
        let x = (0..n).map(|_| lookback_suite::random::round::<T>(case.spread * random.normal())).collect();
        let flags = case
            .flags
            .then(|| (0..case.batch * case.seq_len).map(|_| random.below(16).saturating_sub(12) as u8).collect());
        let [dz, dg] = [(); 2].map(|()| random.normals::<f32>(n));
        let [dk, q, dq] = [(); 3].map(|()| random.normals::<T>(n));
        let [initial, d_last] = [(); 2].map(|()| case.states.then(|| random.normals::<f32>(states)));
        Self { x, flags, starts: case.starts.clone(), initial, dz, dk, dg, q, dq, d_last }
    }

    fn scan(&self, case: &Case) -> Scan<'_> {
        Scan {
            batch: case.batch,
            seq_len: case.seq_len,
            channels: case.channels,
            split: if case.reverse { 0 } else { case.channels },
            flags: self.flags.as_deref(),
            cu_seqlens: self.starts.as_deref(),
            initial: self.initial.as_deref(),
        }
    }

    fn adjoint(&self, case: &Case) -> Adjoint<'_> {
        let common =
            Adjoint { dz: Some(&self.dz), dk: Some(&self.dk), d_last: self.d_last.as_deref(), ..Adjoint::default() };
        match case.by_reads {
            true => Adjoint { reads: Some((&self.q, &self.dq)), ..common },
            false => Adjoint { dg: Some(&self.dg), ..common },
        }
    }
}

/// Without the gaps.
fn closed(case: &Case, spread: Vec<f64>) -> Vec<f64> {
    let rows = spread.chunks((case.channels + case.gap).max(1));
    rows.flat_map(|row| {
        assert!(row[case.channels..].iter().all(|v| v.is_nan()), "a gap was written");
        row[..case.channels].to_vec()
    })
    .collect()
}

fn with_inputs<T: Element, R>(case: &Case, data: &Data, with: impl FnOnce(Inputs<'_, T>) -> R) -> R {
    let x = upload_as::<T>(&case.spread_out(&data.x));
    let flags = data.flags.as_ref().map(|f| upload(f));
    let starts = data.starts.as_ref().map(|s| upload(s));
    let initial = data.initial.as_ref().map(|v| upload_as::<f32>(v));
    with(Inputs {
        x: &x,
        flags: flags.as_ref().map(|s| s as &dyn DevicePtr<u8>),
        cu_seqlens: starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        initial: initial.as_ref().map(|s| s as &dyn DevicePtr<f32>),
    })
}

fn options<T: Element>(case: &Case) -> Options {
    Options { reverse: case.reverse, ..Options::new::<T>() }
}

fn forward<T: Element>(case: &Case, data: &Data) -> reference::Forward {
    let plan =
        Plan::new(&case.shape(), &options::<T>(case), &device::info()).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let n = data.x.len();
    let (mut z, mut g) = (Guarded::<f32>::poisoned(n, 1), Guarded::<f32>::poisoned(n, 1));
    let (mut k, mut last) = (Guarded::<T>::poisoned(n, 1), Guarded::<f32>::poisoned(plan_states(case), 0));
    with_inputs::<T, _>(case, data, |inputs| {
        let (mut z, mut k, mut g, mut last) = (z.view_mut(), k.view_mut(), g.view_mut(), last.view_mut());
        let outputs = Outputs { z: Some(&mut z), k: Some(&mut k), g: Some(&mut g), last: Some(&mut last) };
        plan.run(&device::stream(), &inputs, outputs).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    });
    reference::Forward { z: z.read(), k: k.read(), g: g.read(), last: last.read() }
}

fn plan_states(case: &Case) -> usize {
    case.shape().sequences() * case.channels
}

fn backward<T: Element>(case: &Case, data: &Data, z: &[f64]) -> reference::Backward {
    let plan = BackwardPlan::new(&case.shape(), &options::<T>(case), &device::info());
    let plan = plan.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    let gaps = case.batch * case.seq_len * case.gap;
    let mut dx = Guarded::<T>::poisoned(data.x.len() + gaps, 1);
    let mut d_initial = Guarded::<f32>::poisoned(plan_states(case), 0);
    let [z, dz, dg] = [z, &data.dz, &data.dg].map(upload_as::<f32>);
    let [dk, q, dq] = [&data.dk, &data.q, &data.dq].map(|v| upload_as::<T>(v));
    let d_last = data.d_last.as_ref().map(|v| upload_as::<f32>(v));
    with_inputs::<T, _>(case, data, |forward| {
        let gates = match case.by_reads {
            true => GateAdjoint::LinearAttention { q: &q, dq: &dq, dk: &dk },
            false => GateAdjoint::Plain { dk: Some(&dk), dg: Some(&dg) },
        };
        let d_last = d_last.as_ref().map(|d| d as &dyn DevicePtr<f32>);
        let inputs = BackwardInputs { forward, z: &z, dz: Some(&dz), gates, d_last };
        let (mut dx, mut d_initial) = (dx.view_mut(), d_initial.view_mut());
        let outputs = BackwardOutputs { dx: &mut dx, d_initial: Some(&mut d_initial) };
        plan.run(&device::stream(), &inputs, outputs).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    });
    reference::Backward { dx: closed(case, dx.read()), d_initial: d_initial.read() }
}

fn sizes<T: Element>() {
    for seq_len in [0, 1, 2, 7, 8, 9, 63] {
        let case = Case { states: seq_len % 2 == 0, flags: seq_len > 8, ..Case::new(2, seq_len, 65) };
        case.check::<T>();
        Case { reverse: true, gap: 3, by_reads: true, ..case }.check::<T>();
    }
    // From 128 tokens on sequences are cut into runs: of equal length, and with a last one that is short, or empty.
    for (seq_len, channels) in [(128, 33), (131, 5), (227, 64)] {
        let case = Case { states: seq_len % 2 == 1, flags: true, ..Case::new(2, seq_len, channels) };
        case.check::<T>();
        Case { reverse: true, gap: 3, by_reads: true, flags: false, ..case }.check::<T>();
    }
    Case::new(1, 5, 0).check::<T>();
    Case::new(0, 5, 3).check::<T>();
    for (states, reverse) in [(true, false), (false, true)] {
        let starts = Some(vec![0, 0, 3, 20, 20, 33]);
        Case { starts, states, reverse, flags: true, ..Case::new(1, 40, 5) }.check::<T>();
        // The whole is long, and so cut into runs; its sequences are shorter than that.
        let starts = Some(vec![0, 0, 3, 20, 20, 133]);
        Case { starts, states, reverse, flags: true, ..Case::new(1, 140, 5) }.check::<T>();
    }
}

#[test]
fn log_cumsum_exp_f32() {
    sizes::<f32>();
}

#[test]
fn log_cumsum_exp_f16() {
    sizes::<f16>();
}

#[test]
fn log_cumsum_exp_bf16() {
    sizes::<bf16>();
}

/// The sum of 4000 weights, and a rounding that points the same way at every token; logits far apart and near the end of f32.
#[test]
fn log_cumsum_exp_long_and_wide() {
    let case = Case { by_reads: true, ..Case::new(1, 4000, 3) };
    case.check::<f32>();
    let mut data = Data::new::<f32>(&case);
    data.x.fill(f64::from(0.3_f32));
    case.check_data::<f32>(&data);
    Case { spread: 60.0, states: true, ..Case::new(1, 50, 40) }.check::<f32>();
    let mut data = Data::new::<f32>(&Case::new(1, 6, 1));
    data.x = vec![f64::from(f32::MIN), -3e38, 1.0, 3e38, f64::from(f32::MAX), 0.0];
    let got = forward::<f32>(&Case::new(1, 6, 1), &data);
    assert_close("extreme z", &got.z, &reference::forward(&data.scan(&Case::new(1, 6, 1)), &data.x).z, 1, Gate::F32);
}

#[test]
fn log_cumsum_exp_masked_tokens_add_nothing_and_nan_stays() {
    let case = Case { states: false, flags: false, ..Case::new(1, 12, 4) };
    let mut data = Data::new::<f32>(&case);
    for (t, d) in [(0, 0), (1, 0), (5, 0), (6, 1), (0, 2)] {
        data.x[t * 4 + d] = f64::NEG_INFINITY;
    }
    case.check_data::<f32>(&data);
    Case { reverse: true, ..case.clone() }.check_data::<f32>(&data);
    let mut flags = vec![0; 12];
    flags[9] = 1;
    data.flags = Some(flags);
    data.x[5 * 4 + 3] = f64::NAN;
    let got = forward::<f32>(&case, &data);
    let nan: Vec<usize> = (0..48).filter(|i| got.z[*i].is_nan()).collect();
    assert_eq!(nan, [23, 27, 31, 35], "from the token to the cut, in its channel");
}

#[test]
fn log_cumsum_exp_two_calls_are_one() {
    let case = Case::new(1, 40, 8);
    let data = Data::new::<f32>(&case);
    let whole = forward::<f32>(&case, &data);
    let (first, second) = (Case { seq_len: 15, ..case.clone() }, Case { seq_len: 25, states: true, ..case });
    let mut head = Data::new::<f32>(&first);
    head.x = data.x[..15 * 8].to_vec();
    let head = forward::<f32>(&first, &head);
    let mut tail = Data::new::<f32>(&second);
    (tail.x, tail.initial) = (data.x[15 * 8..].to_vec(), Some(head.last));
    let tail = forward::<f32>(&second, &tail);
    for (name, a, b, all) in
        [("z", head.z, tail.z, whole.z), ("k", head.k, tail.k, whole.k), ("g", head.g, tail.g, whole.g)]
    {
        assert_close(name, &[a, b].concat(), &all, 8, Gate::F32);
    }
}

#[test]
fn log_cumsum_exp_moves_every_byte_once() {
    let case = Case { states: true, ..Case::new(2, 64, 64) };
    let data = Data::new::<bf16>(&case);
    let plan = Plan::new(&case.shape(), &options::<bf16>(&case), &device::info()).expect("good");
    let Some(counted) = Counters::of(|| drop(forward::<bf16>(&case, &data))) else { return };
    assert_eq!(counted.number("launches"), 1);
    counted.assert_streams("log_cumsum_exp", plan.bytes_moved());
}

#[test]
fn log_cumsum_exp_bad_calls_are_refused() {
    let info = device::info();
    let refused = |shape: Shape| Plan::new(&shape, &Options::new::<f32>(), &info).unwrap_err();
    let dense = Shape::dense(2, 4, 8);
    assert!(matches!(refused(Shape { batch: 65_536, ..dense }), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { packed: Some(1), ..dense }), Error::Range { arg: "batch", .. }));
    assert!(matches!(refused(Shape { x: Stride { batch: 32, token: -8 }, ..dense }), Error::Layout { arg: "x", .. }));
    let close = Shape { dx: Stride { batch: 32, token: 7 }, ..dense };
    let backward = BackwardPlan::new(&close, &Options::new::<f32>(), &info);
    assert!(matches!(backward, Err(Error::Layout { arg: "dx", .. })));
    let plan = Plan::new(&dense, &Options::new::<f32>(), &info).unwrap();
    let (x, half) = (upload_as::<f32>(&[0.0; 64]), upload_as::<f16>(&[0.0; 64]));
    let none = || Outputs { z: None, k: None, g: None, last: None };
    let got = plan.run(&device::stream(), &Inputs::of(&half), Outputs { z: None, k: None, g: None, last: None });
    assert!(matches!(got, Err(Error::Dtype { want: DType::F32, got: DType::F16, .. })));
    let starts = upload(&[0_i32, 4]);
    let got = plan.run(&device::stream(), &Inputs { cu_seqlens: Some(&starts), ..Inputs::of(&x) }, none());
    assert!(matches!(got, Err(Error::Shape { arg: "cu_seqlens", .. })));
    let mut short = Guarded::<f32>::poisoned(63, 0);
    let mut view = short.view_mut();
    let got = plan.run(&device::stream(), &Inputs::of(&x), Outputs { z: Some(&mut view), ..none() });
    assert!(matches!(got, Err(Error::Shape { arg: "z", .. })));
    assert!(short.read().iter().all(|v| v.is_nan()), "nothing may be written on an error");
    let address = x.device_ptr(&device::stream()).0;
    let inputs = RawInputs { x: address, ..RawInputs::default() };
    // SAFETY: the host refuses the calls before any launch.
    let got = unsafe { plan.run_raw(&device::stream(), &inputs, &RawOutputs { z: address, ..RawOutputs::default() }) };
    assert!(matches!(got, Err(Error::Alias { a: "z", b: "x", .. })));
    let odd = RawInputs { x: address + 2, ..RawInputs::default() };
    // SAFETY: as above.
    let got = unsafe { plan.run_raw(&device::stream(), &odd, &RawOutputs::default()) };
    assert!(matches!(got, Err(Error::Align { arg: "x", .. })));
}
