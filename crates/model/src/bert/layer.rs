//! One layer: attention that sees the whole sequence, and a unit of two matrices, each with a norm after its sum.

use super::Config;
use crate::checkpoint::Checkpoint;
use crate::layer_norm::LayerNorm;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_attention::{self as attention, Stride, Strides};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_nn::{Param, gemm, residual_norm};
use std::sync::Arc;

/// Weight `[outputs, inputs]` and bias of a projection on the device.
struct Affine<T> {
    weight: CudaSlice<T>,
    bias: CudaSlice<f32>,
}

impl<T: Element> Affine<T> {
    /// Rows of several projections, one below the other: `{name}.weight` and `{name}.bias` of each.
    fn load(
        stream: &Arc<CudaStream>,
        file: &Checkpoint,
        names: &[String],
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let all = |part: &str, shape: &[usize]| {
            names.iter().map(|name| (format!("{name}.{part}"), shape.to_vec())).collect::<Vec<_>>()
        };
        let (weight, bias) = (all("weight", &[rows, columns]), all("bias", &[rows]));
        Ok(Self { weight: file.upload_all(stream, &weight)?, bias: file.upload_all(stream, &bias)? })
    }
}

/// Weights of a layer.
pub(super) struct Layer<T> {
    /// Rows of queries, keys, values.
    qkv: Affine<T>,
    out: Affine<T>,
    attention_norm: LayerNorm,
    up: Affine<T>,
    down: Affine<T>,
    unit_norm: LayerNorm,
}

/// Plans and memory of a pass, shared by all layers.
pub(super) struct Work<T> {
    width: usize,
    qkv_plan: gemm::Plan,
    attention: attention::Plan,
    out: gemm::Plan,
    norm: residual_norm::Plan,
    up: gemm::Plan,
    down: gemm::Plan,
    qkv: CudaSlice<T>,
    mixed: CudaSlice<T>,
    made: CudaSlice<T>,
}

impl<T: Element> Layer<T> {
    /// `name` is that of the layer, e.g. `encoder.layer.0`.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, name: &str) -> Result<Self> {
        let Config { width, inner, .. } = *config;
        let affine = |part: &str, rows, columns| Affine::load(stream, file, &[format!("{name}.{part}")], rows, columns);
        let norm = |part: &str| LayerNorm::load(stream, file, &format!("{name}.{part}.LayerNorm"), width);
        let qkv = ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"));
        Ok(Self {
            qkv: Affine::load(stream, file, &qkv, width, width)?,
            out: affine("attention.output.dense", width, width)?,
            attention_norm: norm("attention.output")?,
            up: affine("intermediate.dense", inner, width)?,
            down: affine("output.dense", width, inner)?,
            unit_norm: norm("output")?,
        })
    }

    /// The layer's rows replace those of `residual` and `hidden`, which are the same in `f32` and `T`, `[tokens, width]`.
    pub fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        starts: &CudaSlice<i32>,
        residual: &mut CudaSlice<f32>,
        hidden: &mut CudaSlice<T>,
    ) -> Result<()> {
        let Work { width, qkv, mixed, made, .. } = work;
        // q, k, v = W h + b
        work.qkv_plan.run(stream, hidden, &self.qkv.weight, Param::F32(&self.qkv.bias), qkv)?;
        // o = softmax(q kᵀ / √D) v
        let [q, k, v] = [0, 1, 2].map(|part| qkv.slice(part * *width..));
        let packed = attention::Inputs {
            cu_seqlens_q: Some(starts),
            cu_seqlens_k: Some(starts),
            ..attention::Inputs::of(&q, &k, &v)
        };
        work.attention.run(stream, &packed, attention::Outputs::of(mixed))?;
        // h = layer_norm(h + W_o o + b_o)
        work.out.run(stream, mixed, &self.out.weight, Param::F32(&self.out.bias), residual)?;
        work.norm.run_in_place(stream, residual, self.attention_norm.inputs(None), Some(hidden))?;
        // h = layer_norm(h + W_down act(W_up h + b_up) + b_down)
        work.up.run(stream, hidden, &self.up.weight, Param::F32(&self.up.bias), made)?;
        work.down.run(stream, made, &self.down.weight, Param::F32(&self.down.bias), residual)?;
        work.norm.run_in_place(stream, residual, self.unit_norm.inputs(None), Some(hidden))
    }
}

impl<T: Element> Work<T> {
    pub fn new(
        stream: &Arc<CudaStream>,
        device: &DeviceInfo,
        config: &Config,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self> {
        let Config { width, heads, inner, activation, eps, .. } = *config;
        let (dtype, head_dim) = (T::DTYPE, config.head_dim());
        let plain = gemm::Options::new(dtype);
        let to_residual = gemm::Options { out: DType::F32, ..plain };
        let linear =
            |n, k, options: &gemm::Options| gemm::Plan::new(&gemm::Shape::linear(tokens, n, k), options, device);
        let norm = residual_norm::Options { dtype, eps, center: true, post: true };
        // Heads are columns of the projection.
        let columns = Some(Stride { batch: 0, token: 3 * width as i64, head: head_dim as i64 });
        let shape = attention::Shape {
            strides: Strides { q: columns, k: columns, v: columns, o: None },
            ..attention::Shape::packed(sequences, tokens, tokens, heads, head_dim)
        };
        let memory =
            |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(|e| driver(e, "allocate activations"));
        Ok(Self {
            width,
            qkv_plan: linear(3 * width, width, &plain)?,
            attention: attention::Plan::new(&shape, &attention::Options::new::<T>(&shape), device)?,
            out: linear(width, width, &to_residual)?.accumulating(),
            norm: residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &norm, device)?,
            up: linear(inner, width, &gemm::Options { activation, ..plain })?,
            down: linear(width, inner, &to_residual)?.accumulating(),
            qkv: memory(3 * width)?,
            mixed: memory(width)?,
            made: memory(inner)?,
        })
    }

    /// The norm, as the embeddings have it too.
    pub fn norm(&self) -> &residual_norm::Plan {
        &self.norm
    }
}
