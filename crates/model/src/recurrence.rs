//! Linear attention as a layer uses it: over a whole sequence, or over one more token of it.

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use lookback_device::{DeviceInfo, Element, Result, driver};
use lookback_linear::{Inputs, Options, Outputs, Plan, Shape, step};
use std::sync::Arc;

/// What the rows of a pass are to the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Sequences from their first token on. What is carried is written.
    Start,
    /// One more token of each sequence. What is carried is read and replaced.
    Step,
}

/// The states that go from one pass to the next.
pub(crate) struct States {
    /// `[rows, H, K, V]`.
    pub state: CudaSlice<f32>,
    /// `[rows, H, K]`: the sum of keys, with a normaliser.
    pub sums: Option<CudaSlice<f32>>,
}

impl States {
    /// Memory for the states of a shape.
    pub fn new(stream: &Arc<CudaStream>, shape: &Shape, normalizes: bool) -> Result<Self> {
        let rows = shape.sequences() * shape.heads;
        let zeros = |width| stream.alloc_zeros::<f32>(rows * width).map_err(|e| driver(e, "allocate states"));
        let sums = if normalizes { Some(zeros(shape.key_dim)?) } else { None };
        Ok(Self { state: zeros(shape.key_dim * shape.value_dim)?, sums })
    }
}

/// The operation of one stage.
pub(crate) enum Recurrence {
    Start { plan: Box<Plan>, workspace: CudaSlice<u8> },
    Step(Box<step::Plan>),
}

impl Recurrence {
    pub fn new(
        stream: &Arc<CudaStream>,
        device: &DeviceInfo,
        shape: &Shape,
        options: &Options,
        stage: Stage,
    ) -> Result<Self> {
        if stage == Stage::Step {
            return Ok(Self::Step(Box::new(step::Plan::new(shape, options, device)?)));
        }
        let plan = Box::new(Plan::new(shape, options, device)?);
        let bytes = plan.workspace_bytes().max(1) as usize;
        let workspace = stream.alloc_zeros(bytes).map_err(|e| driver(e, "allocate workspace"))?;
        Ok(Self::Start { plan, workspace })
    }

    /// Whether the pass goes on from what is carried.
    pub fn goes_on(&self) -> bool {
        matches!(self, Self::Step(_))
    }

    /// Reads `inputs`, writes `o`, and takes `states` one pass further. At the start `inputs.state` and `inputs.normalizer` may say
    /// what they begin with.
    pub fn run<T: Element>(
        &mut self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        o: &mut dyn DevicePtrMut<T>,
        states: &mut States,
    ) -> Result<()> {
        let States { state, sums } = states;
        let sums = sums.as_mut().map(|sums| sums as _);
        match self {
            Self::Start { plan, workspace } => {
                let outputs = Outputs { state: Some(state), normalizer: sums, ..Outputs::of(o) };
                plan.run(stream, inputs, outputs, Some(workspace))
            }
            Self::Step(plan) => {
                let inputs = step::Inputs { q: inputs.q, k: inputs.k, v: inputs.v, g: inputs.g, bonus: inputs.bonus };
                plan.run(stream, &inputs, step::Outputs { state, z: sums, o, den: None })
            }
        }
    }
}
