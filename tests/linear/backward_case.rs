//! One backward pass on the device beside the adjoint of the recurrence in f64.

use super::case::{Case, Data, Uploaded, some};
use cudarc::driver::{CudaSlice, DevicePtrMut};
use half::{bf16, f16};
use lookback_device::{DType, Element};
use lookback_linear::{BackwardInputs, BackwardOutputs, BackwardPlan, Decay, Mode, ReverseGradients};
use lookback_reference::linear_attention::{self as reference, Adjoint, Attention};
use lookback_suite::{
    buffer::{Guarded, upload_as},
    device,
    measure::{Errors, Gate, errors},
    random::{Random, round},
};

/// Gradients with f32 elements, of everything but decays.
pub const F32: Gate = Gate { rel: 1e-5, row: 4e-5, inf: 4e-5 };
/// Gradients of decays with f32 elements: differences of sums.
pub const F32_DECAY: Gate = Gate { rel: 1e-4, row: 4e-4, inf: 4e-4 };
/// Gradients with 16-bit elements.
pub const HALF: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

/// Adjoints of what the forward pass wrote, and what the backward pass reads of it.
#[derive(Debug, Clone)]
pub struct Adjoints {
    pub d_o: Vec<f64>,
    pub d_state: Option<Vec<f64>>,
    pub d_reverse_state: Option<Vec<f64>>,
    pub d_normalizer: Option<Vec<f64>>,
    /// Outputs of the forward pass, with a normaliser.
    pub o: Vec<f64>,
    pub denominator: Vec<f64>,
}

/// Gradients; those that the case does not have are empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    pub dg: Vec<f64>,
    pub du: Vec<f64>,
    pub d_state: Vec<f64>,
    pub d_normalizer: Vec<f64>,
    pub reverse_dq: Vec<f64>,
    pub reverse_dk: Vec<f64>,
    pub reverse_dg: Vec<f64>,
    pub reverse_d_state: Vec<f64>,
}

impl Adjoints {
    /// Adjoints of final states exist where the case has initial ones.
    pub fn new<T: Element>(case: &Case, data: &Data) -> Self {
        let mut random = Random::new(case.seed + 1000);
        let rows = case.batch * case.seq_len * case.heads;
        let states = case.shape().sequences() * case.heads * case.key_dim;
        let normalized = case.normalize.is_some();
        let d_o = random.normals::<T>(rows * case.value_dim);
        let mut floats = |there: bool, len: usize| there.then(|| random.normals::<f32>(len));
        let d_state = floats(case.states, states * case.value_dim);
        let d_reverse_state = floats(case.states && case.mode == Mode::Bidirectional, states * case.value_dim);
        let d_normalizer = floats(case.states && normalized, states);
        let forward = if normalized { data.oracle(case) } else { Default::default() };
        let o = forward.o.iter().map(|v| round::<T>(*v)).collect();
        let denominator = forward.denominator.iter().map(|v| round::<f32>(*v)).collect();
        Self { d_o, d_state, d_reverse_state, d_normalizer, o, denominator }
    }
}

/// The gradients by the adjoint of the recurrence.
pub fn oracle(case: &Case, data: &Data, adjoints: &Adjoints) -> Gradients {
    let (attention, inputs) = (data.attention(case), data.inputs(case));
    let adjoint =
        Adjoint { o: &adjoints.d_o, s_final: adjoints.d_state.as_deref(), z_final: adjoints.d_normalizer.as_deref() };
    let out = reference::backward(&attention, &inputs, &adjoint);
    let keep = |wanted: bool, values: Vec<f64>| if wanted { values } else { Vec::new() };
    let mut gradients = Gradients {
        dq: out.own.dq,
        dk: out.own.dk,
        dv: out.dv,
        dg: out.own.dg,
        du: keep(data.u.is_some(), out.du),
        d_state: out.ds0,
        d_normalizer: keep(case.normalize.is_some(), out.dz0),
        ..Gradients::default()
    };
    if let Some(reverse) = out.reverse {
        (gradients.reverse_dq, gradients.reverse_dk, gradients.reverse_dg) = (reverse.dq, reverse.dk, reverse.dg);
    }
    if case.mode == Mode::Bidirectional {
        add_reverse_states(case, data, adjoints, &mut gradients);
    }
    gradients
}

/// What the states of the reverse direction add, which the reference's bidirectional mixer has not: the reverse walk alone with
/// them, less without.
fn add_reverse_states(case: &Case, data: &Data, adjoints: &Adjoints, gradients: &mut Gradients) {
    use lookback_linear::Read;
    let own = data.reverse.as_ref().unwrap_or(&data.own);
    let read = if case.read == Read::Shifted { reference::Read::Shifted } else { reference::Read::ExclusiveBonus };
    let attention = Attention { mode: reference::Mode::Reverse, read, ..data.attention(case) };
    let inputs = data.inputs(case);
    let decay = Data::decay(case, &own.g);
    let s0 = data.reverse.as_ref().and_then(|r| r.state.as_deref());
    let alone = reference::Inputs { q: &own.q, k: &own.k, decay, u: None, s0: None, reverse: None, ..inputs };
    let d_o = Adjoint { o: &adjoints.d_o, s_final: None, z_final: None };
    let with = reference::Inputs { s0, ..alone };
    let s_final = adjoints.d_reverse_state.as_deref();
    let with = reference::backward(&attention, &with, &Adjoint { s_final, ..d_o });
    let without = reference::backward(&attention, &alone, &d_o);
    let add = |to: &mut [f64], with: &[f64], without: &[f64]| {
        to.iter_mut().zip(with.iter().zip(without)).for_each(|(to, (with, without))| *to += with - without);
    };
    let (dq, dk, dg) = match data.reverse.is_some() {
        true => (&mut gradients.reverse_dq, &mut gradients.reverse_dk, &mut gradients.reverse_dg),
        false => (&mut gradients.dq, &mut gradients.dk, &mut gradients.dg),
    };
    add(dq, &with.own.dq, &without.own.dq);
    add(dk, &with.own.dk, &without.own.dk);
    add(dg, &with.own.dg, &without.own.dg);
    add(&mut gradients.dv, &with.dv, &without.dv);
    gradients.reverse_d_state = with.ds0;
}

/// Runs on the device and holds every gradient against the oracle.
pub fn check(case: &Case) -> Vec<(&'static str, Errors)> {
    match case.dtype {
        DType::F32 => check_as::<f32>(case),
        DType::F16 => check_as::<f16>(case),
        DType::Bf16 => check_as::<bf16>(case),
    }
}

fn check_as<T: Element>(case: &Case) -> Vec<(&'static str, Errors)> {
    let data = Data::new::<T>(case);
    let adjoints = Adjoints::new::<T>(case, &data);
    compare(case, &run::<T>(case, &data, &adjoints), &oracle(case, &data, &adjoints))
}

/// Every gradient against the oracle's; returns the errors.
pub fn compare(case: &Case, got: &Gradients, want: &Gradients) -> Vec<(&'static str, Errors)> {
    let half = case.dtype != DType::F32;
    let (gate, decay) = if half { (HALF, HALF) } else { (F32, F32_DECAY) };
    let matrix = case.key_dim * case.value_dim;
    let width = if case.decay == Decay::Vector { case.key_dim } else { case.heads };
    let mut all = Vec::new();
    let mut wrong = Vec::new();
    let mut close = |what, got: &[f64], want: &[f64], row: usize, gate: Gate| match errors(got, want, row.max(1)) {
        Ok(error) if error.within(gate) => all.push((what, error)),
        Ok(error) => {
            let at = error.worst;
            wrong.push(format!("{what}: {error:?} exceeds {gate:?}: {:?}, oracle {:?}", got.get(at), want.get(at)));
        }
        Err(at) => wrong.push(format!("{what}[{at}] of {}: {:?}, oracle {:?}", want.len(), got.get(at), want.get(at))),
    };
    close("dq", &got.dq, &want.dq, case.key_dim, gate);
    close("dk", &got.dk, &want.dk, case.key_dim, gate);
    close("dv", &got.dv, &want.dv, case.value_dim, gate);
    close("dg", &got.dg, &want.dg, width, decay);
    close("du", &got.du, &want.du, case.key_dim, gate);
    close("d_state", &got.d_state, &want.d_state, matrix, gate);
    close("d_normalizer", &got.d_normalizer, &want.d_normalizer, case.key_dim, gate);
    close("reverse dq", &got.reverse_dq, &want.reverse_dq, case.key_dim, gate);
    close("reverse dk", &got.reverse_dk, &want.reverse_dk, case.key_dim, gate);
    close("reverse dg", &got.reverse_dg, &want.reverse_dg, width, decay);
    close("reverse d_state", &got.reverse_d_state, &want.reverse_d_state, matrix, gate);
    assert!(wrong.is_empty(), "{case:?}:\n{}", wrong.join("\n"));
    all
}

pub fn plan(case: &Case) -> BackwardPlan {
    let plan = BackwardPlan::new(&case.shape(), &case.options(), &device::info());
    plan.unwrap_or_else(|e| panic!("{case:?}: {e}"))
}

/// The device's copies of the adjoints.
pub struct UploadedAdjoints<T> {
    d_o: CudaSlice<T>,
    d_state: Option<CudaSlice<f32>>,
    d_reverse_state: Option<CudaSlice<f32>>,
    d_normalizer: Option<CudaSlice<f32>>,
    o: Option<CudaSlice<T>>,
    denominator: Option<CudaSlice<f32>>,
}

impl<T: Element> UploadedAdjoints<T> {
    pub fn new(case: &Case, adjoints: &Adjoints) -> Self {
        let floats = |values: &Option<Vec<f64>>| values.as_ref().map(|v| upload_as::<f32>(v));
        let normalized = case.normalize.is_some();
        Self {
            d_o: upload_as::<T>(&adjoints.d_o),
            d_state: floats(&adjoints.d_state),
            d_reverse_state: floats(&adjoints.d_reverse_state),
            d_normalizer: floats(&adjoints.d_normalizer),
            o: normalized.then(|| upload_as::<T>(&adjoints.o)),
            denominator: normalized.then(|| upload_as::<f32>(&adjoints.denominator)),
        }
    }

    /// The inputs as a backward pass takes them.
    pub fn inputs<'a>(&'a self, on: &'a Uploaded<T>) -> BackwardInputs<'a, T> {
        BackwardInputs {
            o: some(&self.o),
            denominator: some(&self.denominator),
            d_state: some(&self.d_state),
            d_reverse_state: some(&self.d_reverse_state),
            d_normalizer: some(&self.d_normalizer),
            ..BackwardInputs::of(on.inputs(), &self.d_o)
        }
    }
}

/// Runs on the device, into poisoned and guarded memory.
pub fn run<T: Element>(case: &Case, data: &Data, adjoints: &Adjoints) -> Gradients {
    let (on, adjoints) = (Uploaded::<T>::new(case, data), UploadedAdjoints::<T>::new(case, adjoints));
    run_inputs(case, &plan(case), &adjoints.inputs(&on))
}

/// The same with a plan and inputs of the caller's.
pub fn run_inputs<T: Element>(case: &Case, plan: &BackwardPlan, inputs: &BackwardInputs<'_, T>) -> Gradients {
    let tokens = case.batch * case.seq_len;
    let states = case.shape().sequences() * case.heads * case.key_dim;
    let decays = match case.decay {
        Decay::None => 0,
        Decay::Head => case.heads,
        Decay::Scalar => tokens * case.heads,
        Decay::Vector => tokens * case.heads * case.key_dim,
    };
    let (both, own) = (case.mode == Mode::Bidirectional, inputs.forward.reverse.q.is_some());
    let (normalized, has_bonus) = (case.normalize.is_some(), inputs.forward.bonus.is_some());
    let elements = |wanted: bool, len: usize| Guarded::<T>::poisoned(if wanted { len } else { 0 }, 0);
    let floats = |wanted: bool, len: usize| Guarded::<f32>::poisoned(if wanted { len } else { 0 }, 0);
    let (q_len, k_len) = (tokens * case.query_heads * case.key_dim, tokens * case.key_heads * case.key_dim);
    let has_decay = case.decay != Decay::None;
    let mut dq = Guarded::<T>::poisoned(q_len, case.shift);
    let (mut dk, mut dv) = (elements(true, k_len), elements(true, tokens * case.heads * case.value_dim));
    let (mut dg, mut du) = (floats(has_decay, decays), floats(has_bonus, case.heads * case.key_dim));
    let (mut d_state, mut d_normalizer) = (floats(true, states * case.value_dim), floats(normalized, states));
    let (mut reverse_dq, mut reverse_dk) = (elements(own, q_len), elements(own, k_len));
    let mut reverse_dg = floats(own && has_decay, decays);
    let mut reverse_d_state = floats(both, states * case.value_dim);
    let mut workspace = Guarded::<u8>::filled(plan.workspace_bytes() as usize, 0, 0xff);
    {
        let (mut dq, mut dk, mut dv) = (dq.view_mut(), dk.view_mut(), dv.view_mut());
        let (mut dg, mut du) = (dg.view_mut(), du.view_mut());
        let (mut d_state, mut d_normalizer) = (d_state.view_mut(), d_normalizer.view_mut());
        let (mut reverse_dq, mut reverse_dk) = (reverse_dq.view_mut(), reverse_dk.view_mut());
        let (mut reverse_dg, mut reverse_d_state) = (reverse_dg.view_mut(), reverse_d_state.view_mut());
        let mut workspace = workspace.view_mut();
        let outputs = BackwardOutputs {
            dg: has_decay.then_some(&mut dg as &mut dyn DevicePtrMut<f32>),
            d_bonus: has_bonus.then_some(&mut du as &mut dyn DevicePtrMut<f32>),
            d_state: Some(&mut d_state),
            d_normalizer: normalized.then_some(&mut d_normalizer as &mut dyn DevicePtrMut<f32>),
            reverse: ReverseGradients {
                dq: own.then_some(&mut reverse_dq as &mut dyn DevicePtrMut<T>),
                dk: own.then_some(&mut reverse_dk as &mut dyn DevicePtrMut<T>),
                dg: (own && has_decay).then_some(&mut reverse_dg as &mut dyn DevicePtrMut<f32>),
                d_state: both.then_some(&mut reverse_d_state as &mut dyn DevicePtrMut<f32>),
            },
            ..BackwardOutputs::of(&mut dq, &mut dk, &mut dv)
        };
        let done = plan.run(&device::stream(), inputs, outputs, Some(&mut workspace));
        done.unwrap_or_else(|e| panic!("{case:?}: {e}"));
        device::finish();
    }
    Gradients {
        dq: dq.read(),
        dk: dk.read(),
        dv: dv.read(),
        dg: dg.read(),
        du: du.read(),
        d_state: d_state.read(),
        d_normalizer: d_normalizer.read(),
        reverse_dq: reverse_dq.read(),
        reverse_dk: reverse_dk.read(),
        reverse_dg: reverse_dg.read(),
        reverse_d_state: reverse_d_state.read(),
    }
}
