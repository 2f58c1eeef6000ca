//! Plans and memory of a pass, and what goes from one to the next.

use super::{Config, NormOver, OutputGate, Positions, Source};
use crate::decoder::Extent;
use crate::gated_unit;
use crate::recurrence::{Recurrence, Stage, States};
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, driver};
use lookback_linear::time_reduce::{self, Map, Workspace};
use lookback_linear::{self as linear, Decay, Stride, Strides};
use lookback_nn::gated_rms_norm::{self, Gate};
use lookback_nn::{Activation, decay_gate, gemm, residual_norm, rotary};
use lookback_scan::log_cumsum_exp;
use std::sync::Arc;

/// Plans and memory of a pass.
pub struct Work<T> {
    pub(super) config: Config,
    pub(super) norm: residual_norm::Plan,
    pub(super) q_plan: gemm::Plan,
    pub(super) projection: gemm::Plan,
    pub(super) low_rank: Option<LowRank>,
    pub(super) softmax: Option<Softmax<T>>,
    pub(super) positions: Option<Turned<T>>,
    pub(super) attention: Attention,
    /// Of a gate of low rank.
    pub(super) gate: Option<(gemm::Plan, CudaSlice<T>)>,
    pub(super) out_norm: gated_rms_norm::Plan,
    pub(super) out: gemm::Plan,
    pub(super) unit: gated_unit::Work<T>,
    pub(super) normed: CudaSlice<T>,
    pub(super) q: CudaSlice<T>,
    pub(super) projected: CudaSlice<T>,
    pub(super) o: CudaSlice<T>,
    pub(super) gated: CudaSlice<T>,
}

/// What mixes tokens.
pub(super) enum Attention {
    /// Each with those before it.
    Causal(Recurrence),
    /// Each with all: the softmax over time, summed once and read by every token.
    Pooled(Box<time_reduce::Plan>, Workspace),
}

/// Log-decays of low rank.
pub(super) struct LowRank {
    pub up: gemm::Plan,
    pub gate: decay_gate::Plan,
    pub logits: CudaSlice<f32>,
    pub g: CudaSlice<f32>,
}

/// Keys that are a softmax over the tokens so far, and the log-decays that go with it.
pub(super) struct Softmax<T> {
    pub plan: log_cumsum_exp::Plan,
    pub k: CudaSlice<T>,
    pub g: CudaSlice<f32>,
}

/// Queries and keys that know their positions.
pub(super) struct Turned<T> {
    pub turn_q: rotary::Plan,
    pub turn_k: rotary::Plan,
    pub q: CudaSlice<T>,
    pub k: CudaSlice<T>,
}

/// What goes from one pass to the next.
pub struct Carry {
    pub(super) states: States,
    /// `[rows, H K]`: LightNet's logarithms of sums; else empty.
    pub(super) z: CudaSlice<f32>,
    /// Where the next ones are written.
    pub(super) next_z: CudaSlice<f32>,
}

/// The attention's shape: values are columns of the projection; keys too, where nothing else writes them.
fn attention_shape(config: &Config, extent: Extent) -> linear::Shape {
    let Config { heads, key_dim, value_dim, .. } = *config;
    let columns = |head: usize| {
        let token = config.projected() as i64;
        Some(Stride { batch: extent.len as i64 * token, token, head: head as i64 })
    };
    let made = config.positions.is_some() || (config.source == Source::Softmax && !config.bidirectional);
    let k = if made { None } else { columns(key_dim) };
    linear::Shape {
        strides: Strides { k, v: columns(value_dim), ..Strides::default() },
        ..linear::Shape::dense(extent.rows, extent.len, heads, config.copies() * key_dim, value_dim)
    }
}

impl<T: Element> Work<T> {
    pub(super) fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Self> {
        let Config { width, key_dim, inner, eps, source, .. } = *config;
        let (keys, values, projected) = (config.keys(), config.values(), config.projected());
        let (tokens, row, dtype) = (extent.tokens(), projected as i64, T::DTYPE);
        let plain = gemm::Options::new(dtype);
        let linear_plan =
            |n, k, options: &gemm::Options| gemm::Plan::new(&gemm::Shape::linear(tokens, n, k), options, device);
        let columns = |n, k, options: &gemm::Options| {
            gemm::Plan::new(&gemm::Shape { lda: row, ..gemm::Shape::linear(tokens, n, k) }, options, device)
        };
        let to_f32 = gemm::Options { out: DType::F32, ..plain };
        let activation = if source == Source::Softmax { Activation::Silu } else { Activation::None };
        let allocated = |e| driver(e, "allocate activations");
        let memory = |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(allocated);
        let wide_memory = |width: usize| stream.alloc_zeros::<f32>(tokens * width).map_err(allocated);
        let pre_norm = residual_norm::Options { dtype, eps, center: false, post: false };
        let entries = config.copies() * keys;
        let (mut low_rank, mut softmax) = (None, None);
        match source {
            Source::LowRank { rank, normalizer } => {
                let options = decay_gate::Options::log_sigmoid(DType::F32, normalizer);
                low_rank = Some(LowRank {
                    up: columns(entries, rank, &to_f32)?,
                    gate: decay_gate::Plan::new(&decay_gate::Shape::dense(tokens, entries), &options, device)?,
                    logits: wide_memory(entries)?,
                    g: wide_memory(entries)?,
                });
            }
            Source::Softmax if !config.bidirectional => {
                let x = lookback_scan::Stride { batch: extent.len as i64 * row, token: row };
                let shape =
                    log_cumsum_exp::Shape { x, ..log_cumsum_exp::Shape::dense(extent.rows, extent.len, entries) };
                softmax = Some(Softmax {
                    plan: log_cumsum_exp::Plan::new(&shape, &log_cumsum_exp::Options::new::<T>(), device)?,
                    k: memory(entries)?,
                    g: wide_memory(entries)?,
                });
            }
            _ => {}
        }
        let positions = config.positions.map(|positions| Turned::new(stream, device, config, positions, extent));
        let shape = attention_shape(config, extent);
        let decay = if source == Source::Retention { Decay::Head } else { Decay::Vector };
        let scale = (key_dim as f32).sqrt().recip();
        let attention = if config.bidirectional {
            if extent.stage == Stage::Step {
                let request = "a step of a model that reads both ways".into();
                return Err(Error::NoKernel { op: "linear_block", request });
            }
            let options = time_reduce::Options { scale, ..time_reduce::Options::new(dtype, Map::Softmax) };
            let plan = time_reduce::Plan::new(&shape, &options, device)?;
            let workspace = Workspace::new(stream, plan.workspace_bytes())?;
            Attention::Pooled(Box::new(plan), workspace)
        } else {
            let options = linear::Options { decay, scale, ..linear::Options::new::<T>(&shape) };
            Attention::Causal(Recurrence::new(stream, device, &shape, &options, extent.stage)?)
        };
        let gate = match config.gate {
            OutputGate::Full => None,
            OutputGate::LowRank(rank) => Some((columns(values, rank, &plain)?, memory(values)?)),
        };
        let z_stride = if gate.is_some() { values as i64 } else { row };
        let group = if config.norm == NormOver::Heads { config.value_dim } else { values };
        let out_norm =
            gated_rms_norm::Shape { z_stride, ..gated_rms_norm::Shape::dense(tokens, values).groups_of(group) };
        let gated = gated_rms_norm::Options { dtype, gate: Gate::Silu, norm_before_gate: true, eps };
        Ok(Self {
            config: *config,
            norm: residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &pre_norm, device)?,
            q_plan: linear_plan(keys, width, &gemm::Options { activation, ..plain })?,
            projection: linear_plan(projected, width, &plain)?,
            low_rank,
            softmax,
            positions: positions.transpose()?,
            attention,
            gate,
            out_norm: gated_rms_norm::Plan::new(&out_norm, &gated, device)?,
            out: linear_plan(width, values, &to_f32)?.accumulating(),
            unit: gated_unit::Work::new(stream, device, (width, inner, eps), extent)?,
            normed: memory(width)?,
            q: memory(keys)?,
            projected: memory(projected)?,
            o: memory(values)?,
            gated: memory(values)?,
        })
    }
}

impl<T: Element> Turned<T> {
    fn new(
        stream: &Arc<CudaStream>,
        device: &DeviceInfo,
        config: &Config,
        positions: Positions,
        extent: Extent,
    ) -> Result<Self> {
        let Config { heads, key_dim, source, .. } = *config;
        let Positions { style, base, grid } = positions;
        let options = rotary::Options { base, grid, ..rotary::Options::new(T::DTYPE, style, key_dim) };
        let dense = rotary::Shape::dense(extent.rows, extent.len, heads, key_dim);
        // Of keys that have two copies, the first is read.
        let (token, head) = match source {
            Source::Softmax => (config.key_columns(), config.copies() * key_dim),
            _ => (config.projected(), key_dim),
        };
        let stride = rotary::Stride { batch: (extent.len * token) as i64, token: token as i64, head: head as i64 };
        let keys = rotary::Shape { x_stride: Some(stride), ..dense };
        let entries = extent.tokens() * config.copies() * config.keys();
        let memory = || stream.alloc_zeros::<T>(entries).map_err(|e| driver(e, "allocate activations"));
        Ok(Self {
            turn_q: rotary::Plan::new(&dense, &options, device)?,
            turn_k: rotary::Plan::new(&keys, &options, device)?,
            q: memory()?,
            k: memory()?,
        })
    }
}

impl Carry {
    pub(super) fn new(stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Self> {
        let shape = attention_shape(config, Extent { rows, len: 1, stage: Stage::Step });
        let sums = if config.source == Source::Softmax { rows * config.key_columns() } else { 1 };
        let memory = || stream.alloc_zeros::<f32>(sums).map_err(|e| driver(e, "allocate states"));
        Ok(Self { states: States::new(stream, &shape, false)?, z: memory()?, next_z: memory()? })
    }
}
