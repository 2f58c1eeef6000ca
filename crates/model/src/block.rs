//! One Gated SSM block: the paper's equations, one operation a line.

use crate::pass::Pass;
use crate::weights::Weights;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{Result, driver};
use lookback_nn::{Param, short_convolution};
use lookback_scan as scan;
use std::sync::Arc;

/// Weights of a block on the device.
pub(crate) struct Block {
    norm: CudaSlice<f32>,
    conv: CudaSlice<f32>,
    /// `[4 state, width]`: rows of i, then z, o, f.
    in_weight: CudaSlice<f32>,
    in_bias: CudaSlice<f32>,
    out_weight: CudaSlice<f32>,
    half_reversed: bool,
}

/// What a block carries from one pass to the next: nothing of it grows with the tokens read.
pub(crate) struct Carry {
    /// `[rows, state]` after the last token. Only channels that run forward are ever read again.
    pub state: CudaSlice<f32>,
    /// `[rows, taps - 1, width]`: the convolution's last inputs.
    pub taps: CudaSlice<f32>,
}

impl Block {
    /// Copies a block's weights to the device.
    pub fn load(stream: &Arc<CudaStream>, weights: &Weights, block: usize) -> Result<Self> {
        let load = |name: &str| upload(stream, weights, &format!("blocks.{block}.{name}"));
        Ok(Self {
            norm: load("norm.weight")?,
            conv: load("conv.weight")?,
            in_weight: load("in_proj.weight")?,
            in_bias: load("in_proj.bias")?,
            out_weight: load("out_proj.weight")?,
            half_reversed: weights.config().half_reversed[block],
        })
    }

    /// Adds the block's output to the residual of a pass that goes on from `before` and ends in `after`.
    pub fn run(&self, stream: &CudaStream, pass: &mut Pass, before: Option<&Carry>, after: &mut Carry) -> Result<()> {
        let state = pass.state;
        let Pass { plans, flags, residual, normed, mixed, gates, hidden, gated, workspace, .. } = pass;
        // x = conv(rms_norm(residual))
        plans.norm.run(stream, residual, Param::Same(&self.norm), normed, None)?;
        let inputs = short_convolution::Inputs {
            flags: Some(flags),
            state: before.map(|carry| &carry.taps as _),
            ..Default::default()
        };
        plans.conv.run(stream, normed, &self.conv, inputs, mixed, Some(&mut after.taps))?;
        // i, z, o, f = in_proj(x)
        plans.in_proj.run(stream, mixed, &self.in_weight, Param::Same(&self.in_bias), gates)?;
        let [i, z, o, f] = [0, 1, 2, 3].map(|part| gates.slice(part * state..));
        // h[t] = σ(f) h[t-1] + σ(i) z √(1 - σ(f)² + ε)
        let plan = if self.half_reversed { &plans.half_reversed_scan } else { &plans.forward_scan };
        let inputs = scan::Inputs {
            flags: Some(flags),
            initial: before.map(|carry| &carry.state as _),
            ..scan::Inputs::of(scan::Gates::gated_ssm(&f, &i, &z))
        };
        plan.run(stream, &inputs, scan::Outputs { h: hidden, last: Some(&mut after.state) }, workspace)?;
        // residual += out_proj(gelu(o) h)
        plans.gate.run(stream, &o, hidden, gated)?;
        plans.out_proj.run(stream, gated, &self.out_weight, Param::None, residual)
    }
}

/// Copies a tensor of a weights file to the device.
pub(crate) fn upload(stream: &Arc<CudaStream>, weights: &Weights, name: &str) -> Result<CudaSlice<f32>> {
    stream.clone_htod(&weights.tensor(name)?).map_err(|e| driver(e, "copy weights"))
}
