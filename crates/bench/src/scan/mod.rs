//! Scans along time.

mod log_cumsum_exp;

use crate::{Case, Facts, Launch, Memory, Scale, memory::Word};
use half::{bf16, f16};
use lookback_device::{
    DeviceInfo, Element, Result,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_scan::{
    BackwardInputs, BackwardOutputs, BackwardPlan, GateGradients, Gates, Inputs, Options, Outputs, Plan, Shape, Source,
    Workspace,
};

const GATED_SSM: Source = Source::GatedSsm { normalize: true };
const RG_LRU: Source = Source::RgLru { unit_at_reset: true };

/// Rows, tokens, channels.
type Sizes = [usize; 3];

/// Scans with decays from tensors, from gates, and with none.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let (wide, few, long, model, plain) = match scale {
        Scale::Full => ([8, 4096, 1536], [1, 131_072, 512], [8, 65_536, 1536], [8, 4096, 2048], [1, 1 << 28, 1]),
        Scale::Small => ([2, 512, 64], [1, 2048, 32], [1, 1024, 64], [1, 512, 128], [1, 8192, 1]),
    };
    let mut cases = vec![
        forward::<f32>(info, wide, Source::Tensor),
        forward::<f32>(info, few, Source::Tensor),
        forward::<f32>(info, long, Source::Tensor),
        forward::<bf16>(info, model, Source::Tensor),
        forward::<bf16>(info, model, Source::Log),
        forward::<bf16>(info, model, Source::Channel { log: false }),
        forward::<f32>(info, model, Source::Cumsum),
        forward::<f32>(info, plain, Source::Cumsum),
        forward::<f16>(info, plain, Source::Cumsum),
        forward::<bf16>(info, model, GATED_SSM),
        forward::<bf16>(info, model, RG_LRU),
        backward::<f32>(info, wide, Source::Tensor),
        backward::<bf16>(info, model, Source::Tensor),
        backward::<bf16>(info, model, GATED_SSM),
        backward::<bf16>(info, model, RG_LRU),
    ];
    cases.extend(log_cumsum_exp::cases(info, model));
    cases
}

/// Name of the operation, and what is special about it.
fn names(source: Source, backward: bool) -> (&'static str, &'static str) {
    let scan = if backward { "gated_scan_backward" } else { "gated_scan" };
    match source {
        Source::Tensor => (scan, ""),
        Source::Log => (scan, "log"),
        Source::Channel { .. } => (scan, "channel"),
        Source::Cumsum => (scan, "cumsum"),
        Source::GatedSsm { .. } if backward => ("gated_ssm_scan_backward", ""),
        Source::GatedSsm { .. } => ("gated_ssm_scan", ""),
        Source::RgLru { .. } if backward => ("rg_lru_scan_backward", ""),
        Source::RgLru { .. } => ("rg_lru_scan", ""),
    }
}

fn facts<T: Element>((operation, what): (&'static str, &str), [batch, tokens, channels]: Sizes) -> Facts {
    let shape = [("batch", batch), ("tokens", tokens), ("channels", channels)];
    Facts::new("scan", operation, what, T::DTYPE.name(), &shape)
}

/// A tensor that a source may not have.
fn given<T>(slice: &Option<CudaSlice<T>>) -> Option<&dyn DevicePtr<T>> {
    slice.as_ref().map(|slice| slice as _)
}

/// What a source reads. Decays are between a half and one, their logarithms and the gates accordingly.
struct Tensors<T> {
    a: Option<CudaSlice<T>>,
    b: CudaSlice<T>,
    x: Option<CudaSlice<T>>,
    channel: Option<CudaSlice<f32>>,
}

impl<T: Element + Word> Tensors<T> {
    fn new(memory: &mut Memory, sizes: Sizes, source: Source) -> Result<Self> {
        let channels = &sizes[2..];
        let is_producer = matches!(source, Source::GatedSsm { .. } | Source::RgLru { .. });
        let b = memory.normal(if is_producer { "i" } else { "b" }, &sizes)?;
        let mut tensors = Self { a: None, b, x: None, channel: None };
        match source {
            Source::Tensor => tensors.a = Some(memory.between("a", &sizes, [0.5, 1.0])?),
            Source::Log => tensors.a = Some(memory.between("log_a", &sizes, [-0.7, 0.0])?),
            Source::Channel { .. } => tensors.channel = Some(memory.between("decay", channels, [0.5, 1.0])?),
            Source::Cumsum => (),
            Source::GatedSsm { .. } => {
                tensors.a = Some(memory.normal("f", &sizes)?);
                tensors.x = Some(memory.normal("z", &sizes)?);
            }
            Source::RgLru { .. } => {
                tensors.a = Some(memory.normal("r", &sizes)?);
                tensors.x = Some(memory.normal("x", &sizes)?);
                tensors.channel = Some(memory.between("lambda", channels, [-4.0, -1.0])?);
            }
        }
        Ok(tensors)
    }

    fn inputs(&self) -> Inputs<'_, T> {
        let Self { a, b, x, channel } = self;
        Inputs::of(Gates { a: given(a), b: Some(b), x: given(x), channel: given(channel) })
    }
}

fn forward<T: Element + Word>(info: &DeviceInfo, sizes: Sizes, source: Source) -> Case {
    let [batch, tokens, channels] = sizes;
    let shape = Shape::dense(batch, tokens, channels);
    let plan = Plan::new(&shape, &Options::new::<T>(source, &shape), info);
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let mut sets =
            memory.sets(|memory| Ok((Tensors::<T>::new(memory, sizes, source)?, memory.output::<T>("h", &sizes)?)))?;
        let stream = memory.stream();
        let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
        Ok(Box::new(move |set| {
            let (tensors, h) = &mut sets[set];
            plan.run(&stream, &tensors.inputs(), Outputs { h, last: None }, &mut workspace)
        }))
    };
    Case::planned(facts::<T>(names(source, false), sizes), plan, |plan| [plan.bytes_moved(), 0], maker)
}

fn backward<T: Element + Word>(info: &DeviceInfo, sizes: Sizes, source: Source) -> Case {
    let [batch, tokens, channels] = sizes;
    let shape = Shape::dense(batch, tokens, channels);
    let plan = BackwardPlan::new(&shape, &Options::new::<T>(source, &shape), info);
    let is_producer = matches!(source, Source::GatedSsm { .. } | Source::RgLru { .. });
    let maker = move |plan: BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let mut sets = memory.sets(|memory| {
            let inputs = (
                Tensors::<T>::new(memory, sizes, source)?,
                memory.normal::<T>("h", &sizes)?,
                memory.normal::<T>("dh", &sizes)?,
            );
            let mut output = |name| memory.output::<T>(name, &sizes);
            let [a, b, x] = source_names(source);
            let outputs = (output(a)?, output(b)?, if is_producer { Some(output(x)?) } else { None });
            let channel =
                if inputs.0.channel.is_some() { Some(memory.output::<f32>("d_lambda", &sizes[2..])?) } else { None };
            Ok((inputs, outputs, channel))
        })?;
        let stream = memory.stream();
        let mut workspace = Workspace::new(&stream, plan.workspace_bytes())?;
        Ok(Box::new(move |set| {
            let ((tensors, h, dh), (a, b, x), channel) = &mut sets[set];
            let x = x.as_mut().map(|s| s as &mut dyn DevicePtrMut<T>);
            let channel = channel.as_mut().map(|s| s as &mut dyn DevicePtrMut<f32>);
            let inputs = BackwardInputs { forward: tensors.inputs(), h, dh, d_last: None };
            let outputs =
                BackwardOutputs { gates: GateGradients { a: Some(a), b: Some(b), x, channel }, d_initial: None };
            plan.run(&stream, &inputs, outputs, &mut workspace)
        }))
    };
    Case::planned(facts::<T>(names(source, true), sizes), plan, |plan| [plan.bytes_moved(), 0], maker)
}

/// Names of the gradients.
fn source_names(source: Source) -> [&'static str; 3] {
    match source {
        Source::GatedSsm { .. } => ["df", "di", "dz"],
        Source::RgLru { .. } => ["dr", "di", "dx"],
        Source::Log => ["d_log_a", "db", "dx"],
        _ => ["da", "db", "dx"],
    }
}
