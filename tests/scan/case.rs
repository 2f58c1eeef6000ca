//! One scan on the device beside the same scan in f64.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_device::{DType, Element};
use lookback_reference::gated_scan::{self as reference, Scan};
use lookback_scan::{
    BackwardInputs, BackwardOutputs, BackwardPlan, GateGradients, Gates, Inputs, Options, Outputs, Plan, Shape, Source,
    Workspace,
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{assert_close, gate},
    random::{Random, round},
};

/// Every source, with one setting of its switches.
pub const SOURCES: [Source; 8] = [
    Source::Tensor,
    Source::Log,
    Source::Channel { log: false },
    Source::Channel { log: true },
    Source::Cumsum,
    Source::GatedSsm { normalize: false },
    Source::GatedSsm { normalize: true },
    Source::RgLru { unit_at_reset: true },
];

/// What to scan.
#[derive(Debug, Clone)]
pub struct Case {
    pub source: Source,
    pub dtype: DType,
    pub batch: usize,
    pub seq_len: usize,
    pub channels: usize,
    pub split: usize,
    /// Starts of packed sequences.
    pub starts: Option<Vec<i32>>,
    /// One token in this many has a flag; 0: none.
    pub flags_every: usize,
    /// With initial states, and the adjoint of final ones.
    pub states: bool,
    /// Elements by which every tensor is off its natural alignment.
    pub shift: usize,
    pub deterministic: bool,
    pub seed: u64,
}

impl Case {
    pub fn new(source: Source, dtype: DType, batch: usize, seq_len: usize, channels: usize) -> Self {
        Self {
            source,
            dtype,
            batch,
            seq_len,
            channels,
            split: channels,
            starts: None,
            flags_every: 0,
            states: true,
            shift: 0,
            deterministic: false,
            seed: 1,
        }
    }

    pub fn shape(&self) -> Shape {
        match &self.starts {
            None => Shape::dense(self.batch, self.seq_len, self.channels),
            Some(starts) => Shape::packed(starts.len() - 1, self.seq_len, self.channels),
        }
    }

    pub fn options(&self) -> Options {
        Options { dtype: self.dtype, source: self.source, split: self.split, deterministic: self.deterministic }
    }

    pub fn name(&self) -> String {
        format!("{self:?}")
    }

    /// Runs forward and backward and holds both against the oracle.
    pub fn check(&self) {
        match self.dtype {
            DType::F32 => self.check_as::<f32>(),
            DType::F16 => self.check_as::<f16>(),
            DType::Bf16 => self.check_as::<bf16>(),
        }
    }

    fn check_as<T: Element>(&self) {
        self.check_data::<T>(&Data::new::<T>(self));
    }

    /// The same with inputs of the caller's.
    pub fn check_data<T: Element>(&self, data: &Data) {
        let want = data.forward(self);
        let got = forward::<T>(self, data);
        let gate = gate(self.dtype);
        let close = |what: &str, got: &[f64], want: &[f64], gate| {
            assert_close(&format!("{what} of {}", self.name()), got, want, self.channels, gate);
        };
        close("h", &got.h, &want.h, gate);
        close("last", &got.last, &want.last, lookback_suite::measure::Gate::F32);

        let h: Vec<f64> = want.h.iter().map(|v| round::<T>(*v)).collect();
        let want = data.backward(self, &h);
        let got = backward::<T>(self, data, &h);
        for (name, got, want) in [("da", &got.a, &want.a), ("db", &got.b, &want.b), ("dx", &got.x, &want.x)] {
            close(name, got, want, gate);
        }
        close("d_channel", &got.channel, &want.channel, lookback_suite::measure::Gate::F32);
        close("d_initial", &got.d_initial, &want.d_initial, lookback_suite::measure::Gate::F32);
    }
}

/// Inputs, rounded to the element type.
#[derive(Debug, Clone)]
pub struct Data {
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub x: Vec<f64>,
    pub channel: Vec<f64>,
    pub flags: Option<Vec<u8>>,
    pub initial: Option<Vec<f64>>,
    pub dh: Vec<f64>,
    pub d_last: Option<Vec<f64>>,
}

impl Data {
    pub fn new<T: Element>(case: &Case) -> Self {
        let mut random = Random::new(case.seed);
        let tokens = case.batch * case.seq_len;
        let (n, states) = (tokens * case.channels, case.shape().sequences() * case.channels);
        // A channel in three forgets at once; the others remember over several tiles, or what tiles tell each other would drown.
        let decay = |random: &mut Random, n: usize| match n % case.channels % 3 {
            0 => random.uniform(0.0, 1.0),
            1 => random.uniform(0.98, 1.0),
            _ => random.uniform(0.9985, 0.9995),
        };
        let logit = |random: &mut Random, n: usize| random.normal() + [0.0, 4.5, 7.0][n % case.channels % 3];
        let a = (0..n).map(|n| match case.source {
            Source::Tensor => decay(&mut random, n),
            Source::Log => decay(&mut random, n).ln(),
            Source::GatedSsm { .. } => logit(&mut random, n),
            _ => random.normal(),
        });
        let a: Vec<f64> = a.map(round::<T>).collect();
        let channel = (0..case.channels).map(|n| match case.source {
            Source::Channel { log: true } => decay(&mut random, n).ln(),
            // The decay is about e^(-4 softplus), with softplus about e^lambda where it is small.
            Source::RgLru { .. } => random.normal() * 0.3 - [0.0, 5.0, 8.0][n % 3],
            _ => decay(&mut random, n),
        });
        let channel: Vec<f64> = channel.map(round::<f32>).collect();
        let flag = |random: &mut Random| match random.below(case.flags_every) {
            0 => 1 + random.below(3) as u8,
            _ => 0,
        };
        let flags = (case.flags_every > 0).then(|| (0..tokens).map(|_| flag(&mut random)).collect());
        let mut state = |there: bool| there.then(|| random.normals::<f32>(states));
        let (initial, d_last) = (state(case.states), state(case.states));
        let [b, x, dh] = [(); 3].map(|()| random.normals::<T>(n));
        Self { a, b, x, channel, flags, initial, dh, d_last }
    }

    /// The same scan for the oracle.
    pub fn scan<'a>(&'a self, case: &'a Case) -> Scan<'a> {
        Scan {
            batch: case.batch,
            seq_len: case.seq_len,
            channels: case.channels,
            split: case.split,
            flags: self.flags.as_deref(),
            cu_seqlens: case.starts.as_deref(),
            initial: self.initial.as_deref(),
        }
    }

    fn gates(&self, case: &Case) -> (Vec<f64>, Vec<f64>) {
        let tokens = case.batch * case.seq_len;
        let exp = |v: &[f64]| v.iter().map(|g| g.exp()).collect::<Vec<_>>();
        match case.source {
            Source::Tensor => (self.a.clone(), self.b.clone()),
            Source::Log => (exp(&self.a), self.b.clone()),
            Source::Channel { log } => {
                let decay = if log { exp(&self.channel) } else { self.channel.clone() };
                (reference::per_channel(tokens, &decay), self.b.clone())
            }
            Source::Cumsum => (vec![1.0; self.b.len()], self.b.clone()),
            Source::GatedSsm { normalize } => reference::gated_ssm(&self.a, &self.b, &self.x, normalize),
            Source::RgLru { unit_at_reset } => {
                let tensors = (self.a.as_slice(), self.b.as_slice(), self.x.as_slice());
                reference::rg_lru(&self.scan(case), tensors, &self.channel, unit_at_reset)
            }
        }
    }

    pub fn forward(&self, case: &Case) -> reference::Forward {
        let (a, b) = self.gates(case);
        reference::forward(&self.scan(case), &a, &b)
    }

    pub fn backward(&self, case: &Case, h: &[f64]) -> Gradients {
        let (a, _) = self.gates(case);
        let scan = self.scan(case);
        let out = reference::backward(&scan, &a, h, &self.dh, self.d_last.as_deref());
        let times_a = |v: &[f64]| v.iter().zip(&a).map(|(v, a)| v * a).collect::<Vec<_>>();
        let nothing = Gradients { d_initial: out.d_initial.clone(), ..Gradients::default() };
        let producer = (self.a.as_slice(), self.b.as_slice(), self.x.as_slice());
        match case.source {
            Source::Tensor => Gradients { a: out.da, b: out.db, ..nothing },
            Source::Log => Gradients { a: times_a(&out.da), b: out.db, ..nothing },
            Source::Channel { log } => {
                let da = if log { times_a(&out.da) } else { out.da };
                Gradients { channel: reference::sum_tokens(case.channels, &da), b: out.db, ..nothing }
            }
            Source::Cumsum => Gradients { b: out.db, ..nothing },
            Source::GatedSsm { normalize } => {
                let [a, b, x] = reference::gated_ssm_backward(producer, normalize, &out.da, &out.db);
                Gradients { a, b, x, ..nothing }
            }
            Source::RgLru { unit_at_reset } => {
                let ([a, b, x], channel) =
                    reference::rg_lru_backward(&scan, producer, &self.channel, unit_at_reset, &out.da, &out.db);
                Gradients { a, b, x, channel, ..nothing }
            }
        }
    }
}

/// Gradients that the source has; the others are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub x: Vec<f64>,
    pub channel: Vec<f64>,
    pub d_initial: Vec<f64>,
}

/// An input at its place in a larger buffer.
pub struct Placed<T> {
    slice: CudaSlice<T>,
    shift: usize,
}

impl<T: Element> Placed<T> {
    fn new(values: &[f64], shift: usize) -> Self {
        let padded: Vec<f64> = vec![f64::NAN; shift].into_iter().chain(values.iter().copied()).collect();
        Self { slice: upload_as::<T>(&padded), shift }
    }
}

/// The device's copies of the inputs.
pub struct Uploaded<T> {
    a: Placed<T>,
    b: Placed<T>,
    x: Placed<T>,
    channel: CudaSlice<f32>,
    flags: Option<CudaSlice<u8>>,
    starts: Option<CudaSlice<i32>>,
    initial: Option<CudaSlice<f32>>,
}

impl<T: Element> Uploaded<T> {
    pub fn new(case: &Case, data: &Data) -> Self {
        Self {
            a: Placed::new(&data.a, case.shift),
            b: Placed::new(&data.b, case.shift),
            x: Placed::new(&data.x, case.shift),
            channel: upload_as::<f32>(&data.channel),
            flags: data.flags.as_ref().map(|f| upload(f)),
            starts: case.starts.as_ref().map(|s| upload(s)),
            initial: data.initial.as_ref().map(|v| upload_as::<f32>(v)),
        }
    }
}

/// Calls `with` with the inputs as an operation takes them; views live as long as the call.
pub fn with_inputs<T: Element, R>(source: Source, on: &Uploaded<T>, with: impl FnOnce(Inputs<'_, T>) -> R) -> R {
    let (a, b, x) = (on.a.slice.slice(on.a.shift..), on.b.slice.slice(on.b.shift..), on.x.slice.slice(on.x.shift..));
    let gates = match source {
        Source::Tensor | Source::Log => Gates::tensor(&a, &b),
        Source::Channel { .. } => Gates::channel(&on.channel, &b),
        Source::Cumsum => Gates::cumsum(&b),
        Source::GatedSsm { .. } => Gates::gated_ssm(&a, &b, &x),
        Source::RgLru { .. } => Gates::rg_lru(&a, &b, &x, &on.channel),
    };
    with(Inputs {
        gates,
        flags: on.flags.as_ref().map(|s| s as &dyn DevicePtr<u8>),
        cu_seqlens: on.starts.as_ref().map(|s| s as &dyn DevicePtr<i32>),
        initial: on.initial.as_ref().map(|s| s as &dyn DevicePtr<f32>),
    })
}

/// The forward pass on the device, into poisoned and guarded memory.
pub fn forward<T: Element>(case: &Case, data: &Data) -> reference::Forward {
    let plan =
        Plan::new(&case.shape(), &case.options(), &device::info()).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).unwrap_or_else(|e| panic!("{e}"));
    forward_in::<T>(case, data, &plan, &mut workspace)
}

/// The same with a plan and workspace of the caller's.
pub fn forward_in<T: Element>(case: &Case, data: &Data, plan: &Plan, workspace: &mut Workspace) -> reference::Forward {
    let on = Uploaded::<T>::new(case, data);
    let mut h = Guarded::<T>::poisoned(data.b.len(), case.shift);
    let mut last = Guarded::<f32>::poisoned(case.shape().sequences() * case.channels, 0);
    with_inputs(case.source, &on, |inputs| {
        let (mut h, mut last) = (h.view_mut(), last.view_mut());
        let outputs = Outputs { h: &mut h, last: Some(&mut last) };
        let done = plan.run(&device::stream(), &inputs, outputs, workspace);
        done.unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    });
    reference::Forward { h: h.read(), last: last.read() }
}

/// The backward pass on the device, into poisoned and guarded memory.
pub fn backward<T: Element>(case: &Case, data: &Data, h: &[f64]) -> Gradients {
    let plan = BackwardPlan::new(&case.shape(), &case.options(), &device::info());
    let plan = plan.unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    let mut workspace = Workspace::new(&device::stream(), plan.workspace_bytes()).unwrap_or_else(|e| panic!("{e}"));
    backward_in::<T>(case, data, h, &plan, &mut workspace)
}

/// The same with a plan and workspace of the caller's.
pub fn backward_in<T: Element>(
    case: &Case,
    data: &Data,
    h: &[f64],
    plan: &BackwardPlan,
    workspace: &mut Workspace,
) -> Gradients {
    let on = Uploaded::<T>::new(case, data);
    let (h, dh) = (Placed::<T>::new(h, case.shift), Placed::<T>::new(&data.dh, case.shift));
    let d_last = data.d_last.as_ref().map(|v| upload_as::<f32>(v));
    let n = data.b.len();
    let is_producer = matches!(case.source, Source::GatedSsm { .. } | Source::RgLru { .. });
    let has_a = is_producer || matches!(case.source, Source::Tensor | Source::Log);
    let has_channel = matches!(case.source, Source::Channel { .. } | Source::RgLru { .. });
    let tensor = |there: bool| there.then(|| Guarded::<T>::poisoned(n, case.shift));
    let (mut da, mut db, mut dx) = (tensor(has_a), tensor(true), tensor(is_producer));
    let mut channel = has_channel.then(|| Guarded::<f32>::poisoned(case.channels, 0));
    let mut d_initial = Guarded::<f32>::poisoned(case.shape().sequences() * case.channels, 0);
    with_inputs(case.source, &on, |forward| {
        let (h, dh) = (h.slice.slice(h.shift..), dh.slice.slice(dh.shift..));
        let [mut a, mut b, mut x] = [&mut da, &mut db, &mut dx].map(|g| g.as_mut().map(Guarded::view_mut));
        let mut channel = channel.as_mut().map(Guarded::view_mut);
        let mut d_initial = d_initial.view_mut();
        let inputs =
            BackwardInputs { forward, h: &h, dh: &dh, d_last: d_last.as_ref().map(|s| s as &dyn DevicePtr<f32>) };
        let gates = GateGradients {
            a: a.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
            b: b.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
            x: x.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>),
            channel: channel.as_mut().map(|s| s as &mut dyn DevicePtrMut<f32>),
        };
        let outputs = BackwardOutputs { gates, d_initial: Some(&mut d_initial) };
        let done = plan.run(&device::stream(), &inputs, outputs, workspace);
        done.unwrap_or_else(|e| panic!("{}: {e}", case.name()));
    });
    let read = |g: &Option<Guarded<T>>| g.as_ref().map_or(Vec::new(), Guarded::read);
    Gradients {
        a: read(&da),
        b: read(&db),
        x: read(&dx),
        channel: channel.as_ref().map_or(Vec::new(), Guarded::read),
        d_initial: d_initial.read(),
    }
}
