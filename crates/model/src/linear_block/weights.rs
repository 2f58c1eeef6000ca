//! A block's weights, as its public checkpoints name them.

use super::{Config, NormOver, OutputGate, Source};
use crate::checkpoint::Checkpoint;
use crate::gated_unit::GatedUnit;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{Element, Result, driver};
use std::sync::Arc;

/// A layer: norm, linear attention mixer, norm, gated unit.
pub struct LinearAttentionBlock<T> {
    pub(super) norm: CudaSlice<f32>,
    /// `[H K, width]`.
    pub(super) q: CudaSlice<T>,
    /// Rows of k, v, the gate (or what it is made of), and what decays are made of.
    pub(super) projection: CudaSlice<T>,
    /// Of decays of low rank: `[H K, rank]` and their bias `[H K]`.
    pub(super) decay_up: Option<(CudaSlice<T>, CudaSlice<f32>)>,
    /// `[H]`: fixed log-decays.
    pub(super) decays: Option<CudaSlice<f32>>,
    /// `[H V, rank]` of a gate of low rank.
    pub(super) gate_up: Option<CudaSlice<T>>,
    /// `[H V]`.
    pub(super) out_norm: CudaSlice<f32>,
    pub(super) out: CudaSlice<T>,
    pub(super) unit: GatedUnit<T>,
}

impl<T: Element> LinearAttentionBlock<T> {
    pub(super) fn load_layer(
        stream: &Arc<CudaStream>,
        file: &Checkpoint,
        config: &Config,
        layer: usize,
    ) -> Result<Self> {
        let Config { width, heads, value_dim, inner, .. } = *config;
        let (keys, values) = (config.keys(), config.values());
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        let read = |tensor: &str, shape: &[usize]| file.tensor(&name(tensor), shape);
        let matrix = |tensor: &str, shape: &[usize]| file.upload::<T>(stream, &name(tensor), shape);
        let vector = |tensor: &str, len: usize| file.upload::<f32>(stream, &name(tensor), &[len]);
        let copied = |values: Vec<f32>| upload::<T>(stream, &values);
        // Rows of every head, as often as its state has them.
        let doubled = |rows: Vec<f32>| {
            let head = rows.len() / heads;
            rows.chunks_exact(head.max(1)).flat_map(|rows| rows.repeat(config.copies())).collect::<Vec<f32>>()
        };
        let mut projection = read("attn.k_proj", &[keys, width])?;
        if config.source == Source::Softmax {
            projection = doubled(projection);
        }
        projection.extend(read("attn.v_proj", &[values, width])?);
        let gate_up = match config.gate {
            OutputGate::Full => {
                projection.extend(read("attn.g_proj", &[values, width])?);
                None
            }
            OutputGate::LowRank(rank) => {
                projection.extend(read("attn.g_proj.0", &[rank, width])?);
                Some(matrix("attn.g_proj.1", &[values, rank])?)
            }
        };
        let (mut decay_up, mut decays) = (None, None);
        match config.source {
            Source::LowRank { rank, .. } => {
                projection.extend(read("attn.gk_proj.0", &[rank, width])?);
                let up = doubled(read("attn.gk_proj.1", &[keys, rank])?);
                let bias = file.tensor(&format!("model.layers.{layer}.attn.gk_proj.1.bias"), &[keys])?;
                decay_up = Some((copied(up)?, upload::<f32>(stream, &doubled(bias))?));
            }
            Source::Retention => {
                let decay = |head: usize| (-(-5.0 - head as f64).exp2()).ln_1p() as f32;
                decays = Some(upload::<f32>(stream, &(0..heads).map(decay).collect::<Vec<f32>>())?);
            }
            Source::Softmax => {}
        }
        let out_norm = match config.norm {
            NormOver::Heads => read("attn.g_norm_swish_gate", &[value_dim])?.repeat(heads),
            NormOver::Row => read("attn.g_norm", &[values])?,
        };
        let mut both = read("mlp.gate_proj", &[inner, width])?;
        both.extend(read("mlp.up_proj", &[inner, width])?);
        let unit = GatedUnit {
            norm: vector("mlp_norm", width)?,
            both: copied(both)?,
            gate_first: true,
            down: matrix("mlp.down_proj", &[width, inner])?,
        };
        Ok(Self {
            norm: vector("attn_norm", width)?,
            q: matrix("attn.q_proj", &[keys, width])?,
            projection: copied(projection)?,
            decay_up,
            decays,
            gate_up,
            out_norm: upload::<f32>(stream, &out_norm)?,
            out: matrix("attn.o_proj", &[width, values])?,
            unit,
        })
    }
}

/// Rounds to `T` and copies to the device.
fn upload<T: Element>(stream: &Arc<CudaStream>, values: &[f32]) -> Result<CudaSlice<T>> {
    let values: Vec<T> = values.iter().map(|v| T::from_f64(f64::from(*v))).collect();
    stream.clone_htod(&values).map_err(|e| driver(e, "copy weights"))
}
