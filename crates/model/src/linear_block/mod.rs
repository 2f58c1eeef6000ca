//! One block for models whose mixer is linear attention between projections: gated linear attention, RetNet, LightNet. What
//! differs is where the state's weights come from, positions, and what gate and norm look like; see [`Config`].
//!
//! [`LinearModel`] loads checkpoints in the tensor names of their public library (`model.layers.{i}.attn.q_proj.weight` ..).
//!
//! ```no_run
//! use lookback_model::{checkpoint::Checkpoint, linear_block::{Config, LinearModel}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = lookback_device::open(lookback_device::DevicePick::Auto)?.default_stream();
//! let file = Checkpoint::open("gla-340m.safetensors")?;
//! let model = LinearModel::<f32>::load(&stream, &file, &Config::gla(32000, 1024, 24, 4))?;
//! let (logits, mut generation) = model.prefill(&[&[1, 450, 4996]])?;
//! let next = model.step(&mut generation, &[17354])?;
//! # let _ = (logits, next);
//! # Ok(())
//! # }
//! ```

mod config;
mod weights;
mod work;

pub use config::{Config, NormOver, OutputGate, Positions, Source};
pub use weights::LinearAttentionBlock;
pub use work::{Carry, Work};

use crate::checkpoint::Checkpoint;
use crate::decoder::{Decoder, Extent, Frame, FrameNames, Layer, Tokens};
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{DeviceInfo, Element, Error, Result};
use lookback_linear::{self as linear, time_reduce};
use lookback_nn::{Param, decay_gate, residual_norm, rotary};
use lookback_scan::log_cumsum_exp;
use std::sync::Arc;
use work::Attention;

/// A language model of [`LinearAttentionBlock`]s with activations of type `T`.
pub type LinearModel<T> = Decoder<T, LinearAttentionBlock<T>>;

impl<T: Element> Layer<T> for LinearAttentionBlock<T> {
    type Config = Config;
    type Work = Work<T>;
    type Carry = Carry;

    fn frame(config: &Config) -> Frame {
        let Config { vocabulary, width, layers, eps, .. } = *config;
        Frame { vocabulary, width, layers, eps }
    }

    fn names() -> FrameNames {
        FrameNames { embedding: "model.embeddings.weight", norm: "model.norm.weight", head: "lm_head.weight" }
    }

    fn check(config: &Config) -> Result<()> {
        config.check()
    }

    fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, layer: usize) -> Result<Self> {
        Self::load_layer(stream, file, config, layer)
    }

    fn work(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Work<T>> {
        Work::new(stream, device, config, extent)
    }

    fn carry(&self, stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Carry> {
        Carry::new(stream, config, rows)
    }

    fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        carry: &mut Carry,
    ) -> Result<()> {
        let Work { config, normed, q, projected, low_rank, softmax, positions, attention, gate, o, gated, .. } = work;
        let [v_at, gate_at, low_at] = [0, config.values(), config.values() + config.gate_width()];
        let [v_at, gate_at, low_at] = [v_at, gate_at, low_at].map(|at| config.key_columns() + at);
        let flags = tokens.flags.map(|flags| flags as _);
        // q = W_q x, through silu in LightNet    k, v, gate, low = W x    x = rms_norm(residual)
        let inputs = residual_norm::Inputs { residual: Some(residual), weight: Some(&self.norm), ..Default::default() };
        work.norm.run(stream, inputs, None, Some(normed))?;
        work.q_plan.run(stream, normed, &self.q, Param::None, q)?;
        work.projection.run(stream, normed, &self.projection, Param::None, projected)?;
        let (mut queries, mut keys, v) = (q.slice(..), projected.slice(..), projected.slice(v_at..));
        let mut g = self.decays.as_ref();
        // g = log sigmoid(up low + bias) / normalizer
        if let (Some(made), Some((up, bias))) = (low_rank, &self.decay_up) {
            made.up.run(stream, &projected.slice(low_at..), up, Param::None, &mut made.logits)?;
            let params = decay_gate::Params { bias: Some(bias), rate: None };
            made.gate.run(stream, &made.logits, params, &mut made.g, None)?;
            g = Some(&made.g);
        }
        // z[t] = log(e^z[t-1] + e^k[t])    g = z[t-1] - z[t]    k = e^(k - z)
        if let Some(made) = softmax {
            let initial = tokens.positions.is_some().then_some(&carry.z as _);
            let inputs = log_cumsum_exp::Inputs { flags, initial, ..log_cumsum_exp::Inputs::of(&keys) };
            let (k, g_out, last) = (Some(&mut made.k as _), Some(&mut made.g as _), Some(&mut carry.next_z as _));
            made.plan.run(stream, &inputs, log_cumsum_exp::Outputs { z: None, k, g: g_out, last })?;
            std::mem::swap(&mut carry.z, &mut carry.next_z);
            keys = made.k.slice(..);
            g = Some(&made.g);
        }
        // q, k turned by their positions
        if let Some(turned) = positions {
            let at = rotary::Inputs { positions: tokens.positions.map(|at| at as _), ..Default::default() };
            turned.turn_q.run(stream, &queries, at, &mut turned.q)?;
            turned.turn_k.run(stream, &keys, at, &mut turned.k)?;
            (queries, keys) = (turned.q.slice(..), turned.k.slice(..));
        }
        // S[t] = diag(e^g[t]) S[t-1] + k[t] ⊗ v[t], or S = sum over t of softmax(k)[t] ⊗ v[t]    o[t] = S[t]ᵀ q[t] / √K
        match attention {
            Attention::Causal(attention) => {
                let inputs = linear::Inputs { g: g.map(|g| g as _), flags, ..linear::Inputs::of(&queries, &keys, &v) };
                attention.run(stream, &inputs, o, &mut carry.states)?;
            }
            Attention::Pooled(..) if flags.is_some() => {
                let request = "prompts of different lengths, read both ways: give each a pass".into();
                return Err(Error::NoKernel { op: "linear_block", request });
            }
            Attention::Pooled(plan, workspace) => {
                let inputs =
                    time_reduce::Inputs { q: Some(&queries), k: &keys, v: &v, cu_seqlens: None, prefix_len: None };
                let outputs = time_reduce::Outputs { o: Some(o), den: None, kv: None, ksum: None };
                plan.run(stream, &inputs, outputs, workspace)?;
            }
        }
        // residual += out_proj(rms_norm(o) silu(gate))
        let mut z = projected.slice(gate_at..);
        if let (Some((plan, up)), Some(weight)) = (gate, &self.gate_up) {
            plan.run(stream, &z, weight, Param::None, up)?;
            z = up.slice(..);
        }
        work.out_norm.run(stream, o, &z, Param::F32(&self.out_norm), gated, None)?;
        work.out.run(stream, gated, &self.out, Param::None, residual)?;
        self.unit.run(stream, &mut work.unit, residual)
    }
}
