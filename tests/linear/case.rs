//! One linear attention on the device beside the same one in f64.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::{bf16, f16};
use lookback_device::{DType, Element};
use lookback_linear::{Decay, Features, Inputs, Mode, Options, Outputs, Path, Plan, Read, ReverseInputs, Shape};
use lookback_reference::{
    linear_attention::{self as reference, Attention},
    time_reduce::Map,
};
use lookback_suite::{
    buffer::{Guarded, upload, upload_as},
    device,
    measure::{Gate, assert_close, gate},
    random::{Random, round},
};

/// What to compute.
#[derive(Debug, Clone)]
pub struct Case {
    pub dtype: DType,
    /// With them, `key_dim` is that of queries and keys alone.
    pub features: Features,
    pub batch: usize,
    pub seq_len: usize,
    pub heads: usize,
    pub query_heads: usize,
    pub key_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub decay: Decay,
    pub read: Read,
    /// With a bonus, where the read has one.
    pub bonus: bool,
    pub mode: Mode,
    pub scale: f32,
    pub normalize: Option<f32>,
    pub path: Path,
    /// Starts of packed sequences and their end.
    pub starts: Option<Vec<i32>>,
    /// One token in this many has a flag; 0: none.
    pub flags_every: usize,
    /// With initial states.
    pub states: bool,
    /// Tokens of each prefix, with [`Mode::PrefixRead`].
    pub prefix: Vec<i32>,
    /// The reverse direction has its own tensors.
    pub own_reverse: bool,
    /// Elements by which the output is off its natural alignment.
    pub shift: usize,
    pub seed: u64,
}

impl Case {
    /// Causal, inclusive, without decay, two heads.
    pub fn new(dtype: DType, batch: usize, seq_len: usize, key_dim: usize, value_dim: usize) -> Self {
        Self {
            dtype,
            features: Features::Identity,
            batch,
            seq_len,
            heads: 2,
            query_heads: 2,
            key_heads: 2,
            key_dim,
            value_dim,
            decay: Decay::None,
            read: Read::Inclusive,
            bonus: true,
            mode: Mode::Causal,
            scale: 0.25,
            normalize: None,
            path: Path::Recurrent,
            starts: None,
            flags_every: 0,
            states: true,
            prefix: Vec::new(),
            own_reverse: false,
            shift: 0,
            seed: 1,
        }
    }

    pub fn shape(&self) -> Shape {
        let Self { batch, seq_len, heads, key_dim, value_dim, .. } = *self;
        let shape = match &self.starts {
            None => Shape::dense(batch, seq_len, heads, key_dim, value_dim),
            Some(starts) => Shape::packed(starts.len() - 1, seq_len, heads, key_dim, value_dim),
        };
        Shape { query_heads: self.query_heads, key_heads: self.key_heads, ..shape }
    }

    pub fn options(&self) -> Options {
        Options {
            dtype: self.dtype,
            features: self.features,
            decay: self.decay,
            read: self.read,
            mode: self.mode,
            scale: self.scale,
            normalize: self.normalize,
            path: self.path,
        }
    }

    /// Keys of a state.
    pub fn keys(&self) -> usize {
        self.features.width(self.key_dim)
    }

    pub fn plan(&self) -> Plan {
        Plan::new(&self.shape(), &self.options(), &device::info()).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// Runs on the device and holds everything against the oracle.
    pub fn check(&self) {
        match self.dtype {
            DType::F32 => self.check_data::<f32>(&Data::new::<f32>(self)),
            DType::F16 => self.check_data::<f16>(&Data::new::<f16>(self)),
            DType::Bf16 => self.check_data::<bf16>(&Data::new::<bf16>(self)),
        }
    }

    /// The same with inputs of the caller's.
    pub fn check_data<T: Element>(&self, data: &Data) {
        self.compare(&run::<T>(self, data), &data.oracle(self));
    }

    /// Every output against the oracle's. States that are made of f32 products have the gate of f32.
    pub fn compare(&self, got: &Computed, want: &Computed) {
        let exact = self.dtype == DType::F32 || self.path == Path::Recurrent;
        let states = if exact { Gate::F32 } else { gate(self.dtype) };
        let close = |what: &str, got: &[f64], want: &[f64], row: usize, gate| {
            assert_close(&format!("{what} of {self:?}"), got, want, row.max(1), gate);
        };
        let matrix = self.keys() * self.value_dim;
        close("o", &got.o, &want.o, self.value_dim, gate(self.dtype));
        close("state", &got.state, &want.state, matrix, states);
        close("reverse state", &got.reverse_state, &want.reverse_state, matrix, states);
        close("normalizer", &got.normalizer, &want.normalizer, self.keys(), states);
        close("denominator", &got.denominator, &want.denominator, self.heads, states);
    }
}

/// Outputs; those that the case does not have are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Computed {
    pub o: Vec<f64>,
    pub state: Vec<f64>,
    pub reverse_state: Vec<f64>,
    pub normalizer: Vec<f64>,
    pub denominator: Vec<f64>,
}

/// Tensors of one direction.
#[derive(Debug, Clone)]
pub struct Direction {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    /// Empty without a decay.
    pub g: Vec<f64>,
    pub state: Option<Vec<f64>>,
}

/// Inputs, rounded to the element type.
#[derive(Debug, Clone)]
pub struct Data {
    pub own: Direction,
    pub reverse: Option<Direction>,
    pub v: Vec<f64>,
    pub u: Option<Vec<f64>>,
    pub flags: Option<Vec<u8>>,
    pub normalizer: Option<Vec<f64>>,
}

impl Data {
    pub fn new<T: Element>(case: &Case) -> Self {
        let mut random = Random::new(case.seed);
        let (tokens, n) = (case.batch * case.seq_len, case.shape().sequences());
        let states = n * case.heads * case.keys();
        // A denominator near zero says nothing: with a normaliser, queries and keys are positive. Taylor features have products above
        // zero whatever they are of.
        let normalized = case.normalize.is_some();
        let rows = |random: &mut Random, heads: usize| match normalized && case.features == Features::Identity {
            true => random.uniforms::<T>(tokens * heads * case.key_dim, 0.1, 1.0),
            false => random.normals::<T>(tokens * heads * case.key_dim),
        };
        // One decay in four forgets much, one nothing, the others remember for long.
        let decay = |random: &mut Random| match random.below(4) {
            0 => -random.uniform(0.1, 6.0),
            1 => 0.0,
            2 => -random.uniform(1e-4, 1e-3),
            _ => -random.uniform(1e-3, 0.2),
        };
        let decays = match case.decay {
            Decay::None => 0,
            Decay::Head => case.heads,
            Decay::Scalar => tokens * case.heads,
            Decay::Vector => tokens * case.heads * case.key_dim,
        };
        let mut direction = |state: bool| Direction {
            q: rows(&mut random, case.query_heads),
            k: rows(&mut random, case.key_heads),
            g: (0..decays).map(|_| round::<f32>(decay(&mut random))).collect(),
            state: state.then(|| random.normals::<f32>(states * case.value_dim)),
        };
        let own = direction(case.states || case.mode == Mode::PrefixState);
        let reverse = case.own_reverse.then(|| direction(case.states));
        let v = random.normals::<T>(tokens * case.heads * case.value_dim);
        let has_bonus = case.bonus && case.read == Read::ExclusiveBonus;
        let u = has_bonus.then(|| random.uniforms::<f32>(case.heads * case.key_dim, 0.1, 1.0));
        let flag = |random: &mut Random| match random.below(case.flags_every) {
            0 => 1 + random.below(3) as u8,
            _ => 0,
        };
        let flags = (case.flags_every > 0).then(|| (0..tokens).map(|_| flag(&mut random)).collect());
        let normalizer = (normalized && case.states).then(|| random.uniforms::<f32>(states, 0.1, 1.0));
        Self { own, reverse, v, u, flags, normalizer }
    }

    pub fn decay<'a>(case: &Case, g: &'a [f64]) -> reference::Decay<'a> {
        match case.decay {
            Decay::None => reference::Decay::None,
            Decay::Head => reference::Decay::Head(g),
            Decay::Scalar => reference::Decay::Scalar(g),
            Decay::Vector => reference::Decay::Vector(g),
        }
    }

    /// The same for the reference.
    pub fn attention<'a>(&'a self, case: &'a Case) -> Attention<'a> {
        Attention {
            batch: case.batch,
            seq_len: case.seq_len,
            heads: case.heads,
            q_heads: case.query_heads,
            k_heads: case.key_heads,
            key_dim: case.keys(),
            value_dim: case.value_dim,
            mode: match case.mode {
                Mode::Causal | Mode::PrefixState | Mode::PrefixRead => reference::Mode::Causal,
                Mode::Reverse => reference::Mode::Reverse,
                Mode::Bidirectional => reference::Mode::Bidirectional,
                Mode::Split(split) => reference::Mode::Split(split),
            },
            read: match case.read {
                Read::Inclusive => reference::Read::Inclusive,
                Read::ExclusiveBonus => reference::Read::ExclusiveBonus,
                Read::Shifted => reference::Read::Shifted,
            },
            scale: f64::from(case.scale),
            normalize: case.normalize.map(f64::from),
            flags: self.flags.as_deref(),
            cu_seqlens: case.starts.as_deref(),
            prefix_len: (case.mode == Mode::PrefixRead).then_some(case.prefix.as_slice()),
        }
    }

    /// Inputs of the reference.
    pub fn inputs<'a>(&'a self, case: &Case) -> reference::Inputs<'a> {
        reference::Inputs {
            q: &self.own.q,
            k: &self.own.k,
            v: &self.v,
            decay: Self::decay(case, &self.own.g),
            u: self.u.as_deref(),
            s0: self.own.state.as_deref(),
            z0: self.normalizer.as_deref(),
            reverse: self.reverse.as_ref().map(|r| reference::Direction {
                q: &r.q,
                k: &r.k,
                decay: Self::decay(case, &r.g),
            }),
        }
    }

    /// With the features of queries and keys in their place.
    fn expanded(&self, case: &Case) -> Self {
        let mut data = self.clone();
        for direction in std::iter::once(&mut data.own).chain(&mut data.reverse) {
            for rows in [&mut direction.q, &mut direction.k] {
                *rows = rows.chunks_exact(case.key_dim).flat_map(|x| Map::Taylor.of(x)).collect();
            }
        }
        data
    }

    pub fn oracle(&self, case: &Case) -> Computed {
        match case.features {
            Features::Identity => self.attend(case),
            Features::Taylor => self.expanded(case).attend(case),
        }
    }

    fn attend(&self, case: &Case) -> Computed {
        let (attention, inputs) = (self.attention(case), self.inputs(case));
        let out = reference::forward(&attention, &inputs);
        let normalized = case.normalize.is_some();
        let mut computed = Computed {
            o: out.o,
            state: out.s_final,
            reverse_state: Vec::new(),
            normalizer: if normalized { out.z_final } else { Vec::new() },
            denominator: out.den,
        };
        if case.mode == Mode::Bidirectional {
            // The reverse direction alone, for its states; what its initial state adds is the output with it less that without.
            let read =
                if case.read == Read::Shifted { reference::Read::Shifted } else { reference::Read::ExclusiveBonus };
            let attention = Attention { mode: reference::Mode::Reverse, read, ..attention };
            let own = self.reverse.as_ref().unwrap_or(&self.own);
            let alone = reference::Inputs {
                q: &own.q,
                k: &own.k,
                decay: Self::decay(case, &own.g),
                u: None,
                s0: None,
                reverse: None,
                ..inputs
            };
            let s0 = self.reverse.as_ref().and_then(|r| r.state.as_deref());
            let (with, without) = (
                reference::forward(&attention, &reference::Inputs { s0, ..alone }),
                reference::forward(&attention, &alone),
            );
            computed
                .o
                .iter_mut()
                .zip(with.o.iter().zip(without.o))
                .for_each(|(o, (with, without))| *o += with - without);
            computed.reverse_state = with.s_final;
        }
        computed
    }
}

/// The device's copies of the inputs.
pub struct Uploaded<T> {
    own: UploadedDirection<T>,
    reverse: Option<UploadedDirection<T>>,
    v: CudaSlice<T>,
    u: Option<CudaSlice<f32>>,
    flags: Option<CudaSlice<u8>>,
    starts: Option<CudaSlice<i32>>,
    prefix: Option<CudaSlice<i32>>,
    normalizer: Option<CudaSlice<f32>>,
}

struct UploadedDirection<T> {
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    g: Option<CudaSlice<f32>>,
    state: Option<CudaSlice<f32>>,
}

pub fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
}

impl<T: Element> Uploaded<T> {
    pub fn new(case: &Case, data: &Data) -> Self {
        let floats = |values: &Option<Vec<f64>>| values.as_ref().map(|v| upload_as::<f32>(v));
        let direction = |from: &Direction| UploadedDirection {
            q: upload_as::<T>(&from.q),
            k: upload_as::<T>(&from.k),
            g: (case.decay != Decay::None).then(|| upload_as::<f32>(&from.g)),
            state: floats(&from.state),
        };
        Self {
            own: direction(&data.own),
            reverse: data.reverse.as_ref().map(direction),
            v: upload_as::<T>(&data.v),
            u: floats(&data.u),
            flags: data.flags.as_ref().map(|f| upload(f)),
            starts: case.starts.as_ref().map(|s| upload(s)),
            prefix: (case.mode == Mode::PrefixRead).then(|| upload(&case.prefix)),
            normalizer: floats(&data.normalizer),
        }
    }

    /// The inputs as an operation takes them.
    pub fn inputs(&self) -> Inputs<'_, T> {
        let reverse = self.reverse.as_ref().map(|r| ReverseInputs {
            q: Some(&r.q),
            k: Some(&r.k),
            g: some(&r.g),
            state: some(&r.state),
        });
        Inputs {
            g: some(&self.own.g),
            bonus: some(&self.u),
            flags: some(&self.flags),
            cu_seqlens: some(&self.starts),
            prefix_len: some(&self.prefix),
            state: some(&self.own.state),
            normalizer: some(&self.normalizer),
            reverse: reverse.unwrap_or_default(),
            ..Inputs::of(&self.own.q, &self.own.k, &self.v)
        }
    }
}

/// Runs on the device, into poisoned and guarded memory.
pub fn run<T: Element>(case: &Case, data: &Data) -> Computed {
    let on = Uploaded::<T>::new(case, data);
    run_inputs(case, &case.plan(), &on.inputs())
}

/// The same with a plan and inputs of the caller's; the output is without gaps.
pub fn run_inputs<T: Element>(case: &Case, plan: &Plan, inputs: &Inputs<'_, T>) -> Computed {
    let (tokens, n) = (case.batch * case.seq_len, case.shape().sequences());
    let states = n * case.heads * case.keys();
    let floats = |wanted: bool, len: usize| Guarded::<f32>::poisoned(if wanted { len } else { 0 }, 0);
    let normalized = case.normalize.is_some();
    let both = case.mode == Mode::Bidirectional;
    let mut o = Guarded::<T>::poisoned(tokens * case.heads * case.value_dim, case.shift);
    let mut state = floats(true, states * case.value_dim);
    let mut reverse_state = floats(both, states * case.value_dim);
    let mut normalizer = floats(normalized, states);
    let mut denominator = floats(normalized, tokens * case.heads);
    let mut workspace = Guarded::<u8>::filled(plan.workspace_bytes() as usize, 0, 0xff);
    {
        let (mut o, mut state, mut workspace) = (o.view_mut(), state.view_mut(), workspace.view_mut());
        let (mut reverse_state, mut normalizer) = (reverse_state.view_mut(), normalizer.view_mut());
        let mut denominator = denominator.view_mut();
        let outputs = Outputs {
            o: &mut o,
            state: Some(&mut state),
            reverse_state: both.then_some(&mut reverse_state as &mut dyn DevicePtrMut<f32>),
            normalizer: normalized.then_some(&mut normalizer as &mut dyn DevicePtrMut<f32>),
            denominator: normalized.then_some(&mut denominator as &mut dyn DevicePtrMut<f32>),
        };
        let done = plan.run(&device::stream(), inputs, outputs, Some(&mut workspace));
        done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
    Computed {
        o: o.read(),
        state: state.read(),
        reverse_state: reverse_state.read(),
        normalizer: normalizer.read(),
        denominator: denominator.read(),
    }
}
