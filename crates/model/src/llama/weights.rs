//! A layer's weights, as public checkpoints name them.

use super::Config;
use crate::checkpoint::Checkpoint;
use crate::gated_unit::GatedUnit;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{Element, Result, WeightsFault};
use std::sync::Arc;

/// Tensors of a layer that this block has, and one that old files keep though it follows from the configuration.
const KNOWN: [&str; 13] = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "self_attn.rotary_emb.inv_freq",
];

/// A layer: norm, softmax attention, norm, gated unit.
pub(super) struct Layer<T> {
    pub norm: CudaSlice<f32>,
    /// Rows of q, k, v.
    pub projection: CudaSlice<T>,
    /// Added to them, as Qwen2 does.
    pub bias: Option<CudaSlice<f32>>,
    /// `[width, H D]`.
    pub out: CudaSlice<T>,
    pub unit: GatedUnit<T>,
}

impl<T: Element> Layer<T> {
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, layer: usize) -> Result<Self> {
        let Config { width, inner, .. } = *config;
        let (queries, keys) = (config.queries(), config.keys());
        let prefix = format!("model.layers.{layer}.");
        let name = |tensor: &str| format!("{prefix}{tensor}");
        // A tensor that is left out would leave another model behind.
        if let Some(stranger) =
            file.names().find(|name| name.strip_prefix(&prefix).is_some_and(|t| !KNOWN.contains(&t)))
        {
            let problem = format!("has {stranger}, which this block does not have");
            return Err(file.error(Some(stranger), WeightsFault::Config { key: "layer".into(), problem }));
        }
        let matrices = |parts: &[(&str, usize)]| {
            let matrix = |(tensor, rows): &(&str, usize)| (name(&format!("{tensor}_proj.weight")), vec![*rows, width]);
            file.upload_all(stream, &parts.iter().map(matrix).collect::<Vec<_>>())
        };
        let qkv = [("self_attn.q", queries), ("self_attn.k", keys), ("self_attn.v", keys)];
        let biases = qkv.map(|(tensor, len)| (name(&format!("{tensor}_proj.bias")), vec![len]));
        let has_bias = biases.iter().any(|(bias, _)| file.contains(bias));
        let vector = |tensor: &str| file.upload::<f32>(stream, &name(tensor), &[width]);
        Ok(Self {
            norm: vector("input_layernorm.weight")?,
            projection: matrices(&qkv)?,
            bias: has_bias.then(|| file.upload_all(stream, &biases)).transpose()?,
            out: file.upload(stream, &name("self_attn.o_proj.weight"), &[width, queries])?,
            unit: GatedUnit {
                norm: vector("post_attention_layernorm.weight")?,
                both: matrices(&[("mlp.gate", inner), ("mlp.up", inner)])?,
                gate_first: true,
                down: file.upload(stream, &name("mlp.down_proj.weight"), &[width, inner])?,
            },
        })
    }
}
