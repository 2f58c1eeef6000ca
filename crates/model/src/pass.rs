//! Plans and memory of one pass over some rows of equal length.

use crate::block::Carry;
use crate::config::{CONV_TAPS, Config};
use crate::phonebook::{IDS_PER_TOKEN, TABLE_ROWS, Token};
use crate::weights::CLASSES;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Result, driver};
use lookback_nn::{Activation, Param, embedding, gate, gemm, rms_norm, short_convolution};
use lookback_scan as scan;
use std::sync::Arc;

const F32: DType = DType::F32;

/// The tokens that a pass gives the logits after.
#[derive(Clone, Copy)]
pub(crate) enum LogitsAfter {
    /// The last token of every row.
    LastTokens,
    /// Every token of every row.
    EveryToken,
}

/// A pass: everything that depends on sizes alone, made once and run as often as wanted.
pub(crate) struct Pass {
    rows: usize,
    width: usize,
    pub state: usize,
    pub plans: Plans,
    ids: CudaSlice<i32>,
    pub flags: CudaSlice<u8>,
    pub residual: CudaSlice<f32>,
    pub normed: CudaSlice<f32>,
    pub mixed: CudaSlice<f32>,
    pub gates: CudaSlice<f32>,
    pub hidden: CudaSlice<f32>,
    pub gated: CudaSlice<f32>,
    pub workspace: scan::Workspace,
    final_normed: CudaSlice<f32>,
    logits: CudaSlice<f32>,
    /// First element of the first token that logits follow.
    first_asked: usize,
}

/// The operations of a pass.
pub(crate) struct Plans {
    embed: embedding::Plan,
    pub norm: rms_norm::Plan,
    pub conv: short_convolution::Plan,
    pub in_proj: gemm::Plan,
    pub forward_scan: scan::Plan,
    pub half_reversed_scan: scan::Plan,
    pub gate: gate::Plan,
    pub out_proj: gemm::Plan,
    final_norm: rms_norm::Plan,
    head: gemm::Plan,
}

impl Pass {
    /// Checks the sizes and allocates.
    pub fn new(
        stream: &Arc<CudaStream>,
        config: &Config,
        device: &DeviceInfo,
        rows: usize,
        len: usize,
        logits_after: LogitsAfter,
    ) -> Result<Self> {
        let (width, state, tokens) = (config.width, config.state, rows * len);
        // Logits follow the last of every so many tokens.
        let period = match logits_after {
            LogitsAfter::LastTokens => len,
            LogitsAfter::EveryToken => 1,
        };
        let asked = tokens / period;
        let memory = |elements| stream.alloc_zeros::<f32>(elements).map_err(|e| driver(e, "allocate activations"));
        let linear = |m, n, k| gemm::Plan::new(&gemm::Shape::linear(m, n, k), &gemm::Options::new(F32), device);
        let norm = |shape| rms_norm::Plan::new(&shape, &rms_norm::Options { dtype: F32, eps: config.eps }, device);
        let conv = short_convolution::Options { dtype: F32, activation: Activation::None };
        let gelu = gate::Options { dtype: F32, activation: Activation::Gelu };
        let open = gate::Shape { x_stride: 4 * state as i64, ..gate::Shape::dense(tokens, state) };
        let table = embedding::Shape::dense(tokens, IDS_PER_TOKEN, TABLE_ROWS, width);
        let strided = rms_norm::Shape { x_stride: (period * width) as i64, ..rms_norm::Shape::dense(asked, width) };
        let plans = Plans {
            embed: embedding::Plan::new(&table, &embedding::Options { dtype: F32 }, device)?,
            norm: norm(rms_norm::Shape::dense(tokens, width))?,
            conv: short_convolution::Plan::new(
                &short_convolution::Shape::dense(rows, len, width, CONV_TAPS),
                &conv,
                device,
            )?,
            in_proj: linear(tokens, 4 * state, width)?,
            forward_scan: gates_scan(config, device, rows, len, state)?,
            half_reversed_scan: gates_scan(config, device, rows, len, state / 2)?,
            gate: gate::Plan::new(&open, &gelu, device)?,
            out_proj: linear(tokens, width, state)?.accumulating(),
            final_norm: norm(strided)?,
            head: linear(asked, CLASSES, width)?,
        };
        let workspace = plans.forward_scan.workspace_bytes().max(plans.half_reversed_scan.workspace_bytes());
        Ok(Self {
            rows,
            width,
            state,
            plans,
            ids: stream.alloc_zeros(tokens * IDS_PER_TOKEN).map_err(|e| driver(e, "allocate ids"))?,
            flags: stream.alloc_zeros(tokens).map_err(|e| driver(e, "allocate flags"))?,
            residual: memory(tokens * width)?,
            normed: memory(tokens * width)?,
            mixed: memory(tokens * width)?,
            gates: memory(tokens * 4 * state)?,
            hidden: memory(tokens * state)?,
            gated: memory(tokens * state)?,
            workspace: scan::Workspace::new(stream, workspace)?,
            final_normed: memory(asked * width)?,
            logits: memory(asked * CLASSES)?,
            first_asked: (period - 1) * width,
        })
    }

    /// Memory for what a block carries out of this pass.
    pub fn carry(&self, stream: &Arc<CudaStream>) -> Result<Carry> {
        let memory = |elements| stream.alloc_zeros::<f32>(elements).map_err(|e| driver(e, "allocate carried state"));
        Ok(Carry { state: memory(self.rows * self.state)?, taps: memory(self.rows * (CONV_TAPS - 1) * self.width)? })
    }

    /// Copies tokens and flags to the device and embeds the tokens.
    pub fn read(
        &mut self,
        stream: &Arc<CudaStream>,
        table: &CudaSlice<f32>,
        tokens: &[Token],
        flags: &[u8],
    ) -> Result<()> {
        let copied = |e| driver(e, "copy tokens");
        stream.memcpy_htod(tokens.as_flattened(), &mut self.ids).map_err(copied)?;
        stream.memcpy_htod(flags, &mut self.flags).map_err(copied)?;
        self.plans.embed.run(stream, table, &self.ids, &mut self.residual, None)
    }

    /// The logits that the pass was made for, `[tokens, CLASSES]`.
    pub fn logits(
        &mut self,
        stream: &Arc<CudaStream>,
        norm: &CudaSlice<f32>,
        head: &CudaSlice<f32>,
    ) -> Result<Vec<f32>> {
        let residual = self.residual.slice(self.first_asked..);
        self.plans.final_norm.run(stream, &residual, Param::Same(norm), &mut self.final_normed, None)?;
        self.plans.head.run(stream, &self.final_normed, head, Param::None, &mut self.logits)?;
        stream.clone_dtoh(&self.logits).map_err(|e| driver(e, "copy logits"))
    }
}

/// The scan of a block's gates: f, i and z lie side by side in the input projection's rows of `4 state`.
fn gates_scan(config: &Config, device: &DeviceInfo, rows: usize, len: usize, split: usize) -> Result<scan::Plan> {
    let dense = scan::Shape::dense(rows, len, config.state);
    let token = 4 * config.state as i64;
    let gates = scan::Stride { batch: len as i64 * token, token };
    let strides = scan::Strides { h: dense.strides.h, ..scan::Strides::all(gates) };
    let source = scan::Source::GatedSsm { normalize: config.scaled_input };
    let options = scan::Options { split, ..scan::Options::new::<f32>(source, &dense) };
    scan::Plan::new(&scan::Shape { strides, ..dense }, &options, device)
}
