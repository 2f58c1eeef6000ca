//! Decode attention as layers use it: scheduled once a pass, run once a layer.

use cudarc::driver::CudaStream;
use lookback_decode::{Inputs, Lengths, Options, Outputs, Plan, Schedule, Shape, Workspace};
use lookback_device::{DeviceInfo, Element, Result};
use std::sync::Arc;

/// A plan with its memory.
pub(crate) struct Lean {
    plan: Plan,
    schedule: Schedule,
    workspace: Workspace,
}

impl Lean {
    pub fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, shape: &Shape, options: &Options) -> Result<Box<Self>> {
        let plan = Plan::new(shape, options, device)?;
        let schedule = Schedule::new(stream, plan.schedule_bytes())?;
        let workspace = Workspace::new(stream, plan.workspace_bytes())?;
        Ok(Box::new(Self { plan, schedule, workspace }))
    }

    /// What all layers share of a pass.
    pub fn begin(&mut self, stream: &CudaStream, lengths: &Lengths<'_>) -> Result<()> {
        self.plan.schedule(stream, lengths, &mut self.schedule)
    }

    /// A layer.
    pub fn run<T: Element>(
        &mut self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        outputs: Outputs<'_, T>,
    ) -> Result<()> {
        self.plan.run(stream, inputs, outputs, &self.schedule, &mut self.workspace)
    }
}
