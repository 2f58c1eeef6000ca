//! Linear attention over Taylor features:
//! `y[i] = φ(q[i])ᵀ (S + Σ_j≤i φ(k[j]) ⊗ v[j]) / (φ(q[i]) · (z + Σ_j≤i φ(k[j])) + ε)`, where `S` and `z` are the sums over the
//! encoder's keys and values of the first tokens, or 0.

use super::Config;
use crate::checkpoint::Checkpoint;
use crate::decoder::{Extent, Tokens};
use crate::recurrence::{Recurrence, Stage, States};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, driver};
use lookback_linear::time_reduce::{self, Map, Workspace};
use lookback_linear::{self as linear, Features, Stride, Strides};
use lookback_nn::taylor_map::{self, FEATURES};
use lookback_nn::{Param, gemm};
use std::sync::Arc;

/// Added to the denominator.
const EPS: f32 = 1e-12;
// The encoder's sums are the state of the attention over features.
const _: () = assert!(FEATURES == time_reduce::TAYLOR_FEATURES);

/// Weights of a mixer on the device.
pub struct Attention<T> {
    /// Rows of q, k, v.
    projection: CudaSlice<T>,
    /// Rows of the encoder's k and v.
    encoder: Option<CudaSlice<T>>,
    out_proj: CudaSlice<T>,
}

/// Plans and memory of a pass.
pub(super) struct Work<T> {
    extent: Extent,
    /// Rows of the projections' parts.
    keys: usize,
    projection: gemm::Plan,
    /// Where the attention does not make them itself.
    features: Option<Written<T>>,
    attention: Recurrence,
    out_proj: gemm::Plan,
    projected: CudaSlice<T>,
    y: CudaSlice<T>,
    /// Only where sequences start.
    encoder: Option<Encoder<T>>,
}

/// Features that are written out.
struct Written<T> {
    map: taylor_map::Plan,
    q: CudaSlice<T>,
    k: CudaSlice<T>,
}

/// The sums over the first tokens.
struct Encoder<T> {
    /// Tokens of a row that are encoded, and their elements of the residual and of the projection.
    seen: usize,
    row: usize,
    width: usize,
    /// One row of the pass.
    projection: gemm::Plan,
    reduce: time_reduce::Plan,
    projected: CudaSlice<T>,
    workspace: Workspace,
    states: States,
}

/// The state, with its normaliser.
pub struct Carry(States);

/// Of attention over features.
fn attention_shape(config: &Config, extent: Extent) -> linear::Shape {
    let Config { heads, feature_dim, width, .. } = *config;
    let row = (2 * heads * feature_dim + width) as i64;
    let v = Stride { batch: extent.len as i64 * row, token: row, head: config.value_dim() as i64 };
    linear::Shape {
        strides: Strides { v: Some(v), ..Strides::default() },
        ..linear::Shape::dense(extent.rows, extent.len, heads, FEATURES, config.value_dim())
    }
}

/// Of attention that makes features of the projection's rows.
fn fused_shape(config: &Config, extent: Extent) -> linear::Shape {
    let shape = attention_shape(config, extent);
    let rows = shape.strides.v.map(|v| Stride { head: config.feature_dim as i64, ..v });
    linear::Shape { key_dim: config.feature_dim, strides: Strides { q: rows, k: rows, ..shape.strides }, ..shape }
}

/// Whether linear attention has features of these entries for whole sequences: it has none for single tokens.
fn is_fused(config: &Config, dtype: DType, stage: Stage) -> bool {
    let fits = [8, 16].contains(&config.feature_dim) && config.value_dim().is_multiple_of(8);
    stage == Stage::Start && dtype != DType::F32 && fits
}

impl Carry {
    pub(super) fn new(stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Self> {
        States::new(stream, &attention_shape(config, Extent { rows, len: 1, stage: Stage::Step }), true).map(Self)
    }
}

impl<T: Element> Work<T> {
    pub fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Self> {
        let Config { width, heads, feature_dim, .. } = *config;
        let (tokens, dtype, keys) = (extent.tokens(), T::DTYPE, heads * feature_dim);
        let row = 2 * keys + width;
        let rows = taylor_map::Shape { x_stride: row as i64, ..taylor_map::Shape::dense(tokens, heads, feature_dim) };
        let fused = is_fused(config, dtype, extent.stage);
        let (shape, features) = match fused {
            true => (fused_shape(config, extent), Features::Taylor),
            false => (attention_shape(config, extent), Features::Identity),
        };
        let options =
            linear::Options { features, scale: 1.0, normalize: Some(EPS), ..linear::Options::new::<T>(&shape) };
        let residual = gemm::Options { out: DType::F32, ..gemm::Options::new(dtype) };
        let memory =
            |width: usize| stream.alloc_zeros::<T>(tokens * width).map_err(|e| driver(e, "allocate activations"));
        let written = || {
            let (q, k) = (memory(heads * FEATURES)?, memory(heads * FEATURES)?);
            Ok(Written { map: taylor_map::Plan::new(&rows, dtype, device)?, q, k })
        };
        let features = (!fused).then(written).transpose()?;
        let has_encoder = extent.stage == Stage::Start && config.layers.contains(&super::Mixing::PrefixAttention);
        let encoder = has_encoder.then(|| Encoder::new(stream, device, config, extent));
        Ok(Self {
            extent,
            keys,
            projection: gemm::Plan::new(&gemm::Shape::linear(tokens, row, width), &gemm::Options::new(dtype), device)?,
            features,
            attention: Recurrence::new(stream, device, &shape, &options, extent.stage)?,
            out_proj: gemm::Plan::new(&gemm::Shape::linear(tokens, width, width), &residual, device)?.accumulating(),
            projected: memory(row)?,
            y: memory(width)?,
            encoder: encoder.transpose()?,
        })
    }
}

impl<T: Element> Encoder<T> {
    fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Self> {
        let Config { width, heads, feature_dim, .. } = *config;
        let (seen, row, value_dim) = (config.encoded.min(extent.len), heads * feature_dim + width, config.value_dim());
        let columns = |head: usize| Some(Stride { batch: (seen * row) as i64, token: row as i64, head: head as i64 });
        let shape = linear::Shape {
            strides: Strides { k: columns(feature_dim), v: columns(value_dim), ..Strides::default() },
            ..linear::Shape::dense(extent.rows, seen, heads, feature_dim, value_dim)
        };
        let reduce = time_reduce::Plan::new(&shape, &time_reduce::Options::new(T::DTYPE, Map::Taylor), device)?;
        let projected = stream.alloc_zeros(extent.rows * seen * row);
        Ok(Self {
            seen,
            row,
            width,
            projection: gemm::Plan::new(&gemm::Shape::linear(seen, row, width), &gemm::Options::new(T::DTYPE), device)?,
            workspace: Workspace::new(stream, reduce.workspace_bytes())?,
            reduce,
            projected: projected.map_err(|e| driver(e, "allocate activations"))?,
            states: States::new(stream, &attention_shape(config, extent), true)?,
        })
    }

    /// `S = Σ φ(kᵉ) ⊗ vᵉ`, `z = Σ φ(kᵉ)` over the first tokens of every row of `normed`.
    fn run(
        &mut self,
        stream: &CudaStream,
        weight: &CudaSlice<T>,
        keys: usize,
        extent: Extent,
        normed: &CudaSlice<T>,
    ) -> Result<()> {
        for row in 0..extent.rows {
            let from = normed.slice(row * extent.len * self.width..);
            let mut to = self.projected.slice_mut(row * self.seen * self.row..);
            self.projection.run(stream, &from, weight, Param::None, &mut to)?;
        }
        let (k, v) = (self.projected.slice(..), self.projected.slice(keys..));
        let inputs = time_reduce::Inputs { q: None, k: &k, v: &v, cu_seqlens: None, prefix_len: None };
        let States { state, sums } = &mut self.states;
        let ksum = sums.as_mut().map(|sums| sums as _);
        let outputs = time_reduce::Outputs { o: None, den: None, kv: Some(state), ksum };
        self.reduce.run(stream, &inputs, outputs, &mut self.workspace)
    }
}

impl<T: Element> Attention<T> {
    pub(super) fn load(
        stream: &Arc<CudaStream>,
        file: &Checkpoint,
        config: &Config,
        name: &str,
        has_encoder: bool,
    ) -> Result<Self> {
        let Config { width, heads, feature_dim, .. } = *config;
        let keys = heads * feature_dim;
        let rows = |parts: &[(&str, usize)]| {
            let matrix = |(tensor, rows): &(&str, usize)| (format!("{name}.{tensor}.weight"), vec![*rows, width]);
            file.upload_all(stream, &parts.iter().map(matrix).collect::<Vec<_>>())
        };
        let encoder = has_encoder.then(|| rows(&[("proj_k_enc", keys), ("proj_v_enc", width)]));
        Ok(Self {
            projection: rows(&[("proj_q", keys), ("proj_k", keys), ("proj_v", width)])?,
            encoder: encoder.transpose()?,
            out_proj: file.upload(stream, &format!("{name}.out_proj.weight"), &[width, width])?,
        })
    }

    /// Adds the mixer's output for `normed` to `residual`.
    pub(super) fn run(
        &self,
        stream: &CudaStream,
        work: &mut Work<T>,
        normed: &CudaSlice<T>,
        residual: &mut CudaSlice<f32>,
        tokens: Tokens<'_>,
        Carry(states): &mut Carry,
    ) -> Result<()> {
        let Work { extent, keys, features, projected, y, encoder, .. } = work;
        // q, k, v = W x
        work.projection.run(stream, normed, &self.projection, Param::None, projected)?;
        let (q, k, v) = (projected.slice(..), projected.slice(*keys..), projected.slice(2 * *keys..));
        // φ(q), φ(k)
        let (q, k): (&dyn DevicePtr<T>, &dyn DevicePtr<T>) = match features {
            Some(written) => {
                written.map.run(stream, &q, &mut written.q)?;
                written.map.run(stream, &k, &mut written.k)?;
                (&written.q, &written.k)
            }
            None => (&q, &k),
        };
        let mut inputs = linear::Inputs { flags: tokens.flags.map(|flags| flags as _), ..linear::Inputs::of(q, k, &v) };
        // S, z of the encoder
        if let (Some(encoder), Some(weight)) = (encoder, &self.encoder) {
            if tokens.flags.is_some() {
                let request = "prompts of different lengths with prefix attention: give each a pass".into();
                return Err(Error::NoKernel { op: "jrt", request });
            }
            encoder.run(stream, weight, *keys, *extent, normed)?;
            inputs.state = Some(&encoder.states.state);
            inputs.normalizer = encoder.states.sums.as_ref().map(|sums| sums as _);
        }
        // residual += out_proj(y)
        work.attention.run(stream, &inputs, y, states)?;
        work.out_proj.run(stream, y, &self.out_proj, Param::None, residual)
    }
}
