//! What is left of earlier states.

use super::lanes::Part;
use crate::{
    DeviceInfo, Result,
    state::{
        dealt::Dealt,
        room::Arena,
        waves::{Lane, Step, Task},
    },
};
use cudarc::driver::sys::CUdeviceptr;
use lookback_linear::{Decay, Options, RawInputs, Shape};
use lookback_scan as scan;

/// What is left of a state after the rank's tokens: a scan of ones with the decays, from which nothing is kept but where it ends. A cut
/// leaves 0.
#[derive(Debug, Clone)]
struct Total {
    plan: scan::Plan,
    /// Channels of a token, and of all tokens.
    channels: usize,
    elements: usize,
    by_head: bool,
}

/// Where a total finds what it needs.
#[derive(Debug, Clone, Copy)]
struct TotalMemory {
    zeros: CUdeviceptr,
    ones: CUdeviceptr,
    scratch: CUdeviceptr,
    workspace: scan::RawWorkspace,
    totals: CUdeviceptr,
}

impl Total {
    fn new(part: &Part, options: &Options, reverse: bool, device: &DeviceInfo) -> Result<Option<Self>> {
        let Shape { batch, seq_len, heads, key_dim, packed, strides, .. } = part.shape;
        let (channels, source) = match options.decay {
            Decay::None => return Ok(None),
            Decay::Head => (heads, scan::Source::Channel { log: true }),
            Decay::Scalar => (heads, scan::Source::Log),
            Decay::Vector => (heads * key_dim, scan::Source::Log),
        };
        let still = scan::Stride { batch: 0, token: 0 };
        let dense = scan::Shape { packed, ..scan::Shape::dense(batch, seq_len, channels) };
        let a = strides.g.map_or(still, |g| scan::Stride { batch: g.batch, token: g.token });
        let shape = scan::Shape { strides: scan::Strides { a, b: still, ..dense.strides }, ..dense };
        let split = if reverse { 0 } else { channels };
        let options = scan::Options { split, ..scan::Options::new::<f32>(source, &shape) };
        let plan = scan::Plan::new(&shape, &options, device)?;
        let elements = batch * seq_len * channels;
        Ok(Some(Self { plan, channels, elements, by_head: matches!(source, scan::Source::Channel { .. }) }))
    }

    /// # Safety
    /// As for [`scan::Plan::run_raw`].
    unsafe fn run(&self, stream: &cudarc::driver::CudaStream, inputs: &RawInputs, memory: &TotalMemory) -> Result<()> {
        let (a, channel) = if self.by_head { (0, inputs.g) } else { (inputs.g, 0) };
        let raw = scan::RawInputs {
            a,
            b: memory.zeros,
            x: 0,
            channel,
            flags: inputs.flags,
            cu_seqlens: inputs.cu_seqlens,
            initial: memory.ones,
        };
        let out = scan::RawOutputs { h: memory.scratch, last: memory.totals };
        // SAFETY: the caller's promise.
        unsafe { self.plan.run_raw(stream, &raw, &out, memory.workspace) }
    }
}

/// Those of all lanes that need one, and their memory.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    each: Vec<Option<Total>>,
    /// Zeros, ones, a tensor that nobody reads, and what scans tell each other.
    memory: [u64; 4],
    bytes: u64,
    /// Where ones begin, and how many f32 they are.
    pub ones: (u64, usize),
}

impl Totals {
    /// For lanes with their parts and whether they walk in reverse.
    pub fn new(
        arena: &mut Arena,
        (dealt, options): (&Dealt, &Options),
        lanes: &[Lane],
        parts: &[Part],
        steps: &[Step],
        device: &DeviceInfo,
    ) -> Result<Self> {
        let mut each = Vec::new();
        for (index, (lane, part)) in lanes.iter().zip(parts).enumerate() {
            let needed = steps.iter().any(|step| step.tasks.contains(&Task::Total(index)));
            each.push(if needed { Total::new(part, options, lane.reverse, device)? } else { None });
        }
        let most = |of: &dyn Fn(&Total) -> u64| each.iter().flatten().map(of).max().unwrap_or(0);
        let channels = most(&|total| total.channels as u64);
        let (elements, bytes) = (most(&|total| total.elements as u64), most(&|total| total.plan.workspace_bytes()));
        let ones = channels * dealt.sequences() as u64;
        let memory = [4 * channels, 4 * ones, 4 * elements, bytes].map(|bytes| arena.take(bytes));
        Ok(Self { each, memory, bytes, ones: (memory[1], ones as usize) })
    }

    /// A lane's, from its own inputs, into `totals`.
    ///
    /// # Safety
    /// `workspace` was made with the ones, the inputs are readable, and `totals` has room, until what is queued has ended.
    pub unsafe fn run(
        &self,
        stream: &cudarc::driver::CudaStream,
        lane: usize,
        inputs: &RawInputs,
        workspace: CUdeviceptr,
        totals: CUdeviceptr,
    ) -> Result<()> {
        let Some(total) = &self.each[lane] else { return Ok(()) };
        let [zeros, ones, scratch, flags] = self.memory.map(|offset| workspace + offset);
        let address = if self.bytes == 0 { 0 } else { flags };
        let workspace = scan::RawWorkspace { address, bytes: self.bytes };
        let memory = TotalMemory { zeros, ones, scratch, workspace, totals };
        // SAFETY: the caller's promise; zeros are what the workspace was made with.
        unsafe { total.run(stream, inputs, &memory) }
    }
}
