//! Softmax attention to a window: `y[i] = Σ_j softmax_j(q[i]·k[j] / √D) v[j]` over `i - window <= j <= i`, queries and keys turned by their
//! positions.
//!
//! Between passes a ring keeps the keys and values of the window and the token itself. A softmax has no order, so that steps read the ring
//! as it lies, and nothing grows with what was read.

use super::Config;
use crate::checkpoint::Checkpoint;
use crate::decoder::{Extent, Tokens};
use crate::lean::Lean;
use crate::recurrence::Stage;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_attention::{self as attention, Mask};
use lookback_decode::{self as decode, Cache, Lengths, append};
use lookback_device::{DType, DeviceInfo, Element, Result, driver, strided::Stride};
use lookback_nn::{Param, gemm, rotary};
use std::sync::Arc;

/// Weights of a mixer on the device.
pub struct Window<T> {
    /// Rows of q, k, v.
    projection: CudaSlice<T>,
    bias: Option<CudaSlice<T>>,
    out: CudaSlice<T>,
    out_bias: Option<CudaSlice<T>>,
}

/// Plans and memory of a pass.
pub(super) struct Work<T> {
    extent: Extent,
    width: usize,
    /// Places of a row's ring.
    places: usize,
    projection: gemm::Plan,
    rotary: rotary::Plan,
    append: append::Plan,
    mixer: Mixer,
    out: gemm::Plan,
    projected: CudaSlice<T>,
    /// Queries and keys, `[tokens, 2 H, D]`.
    turned: CudaSlice<T>,
    o: CudaSlice<T>,
    /// `[tokens]`: where keys and values go.
    slots: CudaSlice<i64>,
}

/// What keys are those of.
enum Mixer {
    /// Of the pass.
    Start {
        plan: Box<attention::Plan>,
        /// `[2 rows + 1]`: the padding of a row, and what is behind it, are sequences.
        starts: CudaSlice<i32>,
    },
    /// Of the ring.
    Step {
        lean: Box<Lean>,
        /// `[rows]` places in use.
        lengths: CudaSlice<i32>,
    },
}

/// Keys and values of the last tokens: rings of `[rows, window + 1, H, D]`.
pub struct Carry<T> {
    k: CudaSlice<T>,
    v: CudaSlice<T>,
}

impl<T: Element> Carry<T> {
    pub(super) fn new(stream: &Arc<CudaStream>, config: &Config, rows: usize) -> Result<Self> {
        let ring = rows * (config.window + 1) * config.width;
        let memory = || stream.alloc_zeros::<T>(ring).map_err(|e| driver(e, "allocate carried state"));
        Ok(Self { k: memory()?, v: memory()? })
    }
}

impl<T: Element> Work<T> {
    pub fn new(stream: &Arc<CudaStream>, device: &DeviceInfo, config: &Config, extent: Extent) -> Result<Self> {
        let Config { width, heads, window, rotary_dim, .. } = *config;
        let Extent { rows, len, stage } = extent;
        let (tokens, dtype, head_dim, places) = (extent.tokens(), T::DTYPE, config.value_dim(), window + 1);
        let rows_of = |columns: usize| {
            let token = (columns * width) as i64;
            Some(Stride { batch: len as i64 * token, token, head: head_dim as i64 })
        };
        let (turned, projected) = (rows_of(2), rows_of(3));
        let ring = Cache::Dense { capacity: places };
        let kept = append::Shape {
            strides: append::Strides { k_new: turned, v_new: projected, ..Default::default() },
            ..append::Shape::slots(tokens, rows, heads, head_dim, ring)
        };
        let mixer = match stage {
            Stage::Start => {
                let strides = attention::Strides { q: turned, k: turned, v: projected, o: None };
                let shape =
                    attention::Shape { strides, ..attention::Shape::packed(2 * rows, tokens, tokens, heads, head_dim) };
                let mask = Mask::Window { left: Some(window as u32), right: Some(0), sink_tokens: 0 };
                let options = attention::Options { mask, ..attention::Options::new::<T>(&shape) };
                let starts = stream.alloc_zeros(2 * rows + 1).map_err(|e| driver(e, "allocate starts"))?;
                Mixer::Start { plan: Box::new(attention::Plan::new(&shape, &options, device)?), starts }
            }
            Stage::Step => {
                let shape = decode::Shape::new(rows, heads, heads, head_dim, ring);
                let shape = decode::Shape { strides: decode::Strides { q: turned, ..shape.strides }, ..shape };
                let options = decode::Options::new::<T>(&shape);
                Mixer::Step {
                    lean: Lean::new(stream, device, &shape, &options)?,
                    lengths: stream.alloc_zeros(rows).map_err(|e| driver(e, "allocate lengths"))?,
                }
            }
        };
        let row = rotary::Stride { batch: (len * 3 * width) as i64, token: 3 * width as i64, head: head_dim as i64 };
        let turn = rotary::Shape { x_stride: Some(row), ..rotary::Shape::dense(rows, len, 2 * heads, head_dim) };
        let angles = rotary::Options {
            base: config.rotary_base,
            rotary_dim,
            theta_dim: rotary_dim.max(1),
            ..rotary::Options::new(dtype, rotary::Style::Half, head_dim)
        };
        let plain = gemm::Options::new(dtype);
        let residual = gemm::Options { out: DType::F32, ..plain };
        let memory =
            |columns: usize| stream.alloc_zeros::<T>(tokens * columns).map_err(|e| driver(e, "allocate activations"));
        Ok(Self {
            extent,
            width,
            places,
            projection: gemm::Plan::new(&gemm::Shape::linear(tokens, 3 * width, width), &plain, device)?,
            rotary: rotary::Plan::new(&turn, &angles, device)?,
            append: append::Plan::new(&kept, &append::Options::new::<T>(), device)?,
            mixer,
            out: gemm::Plan::new(&gemm::Shape::linear(tokens, width, width), &residual, device)?.accumulating(),
            projected: memory(3 * width)?,
            turned: memory(2 * width)?,
            o: memory(width)?,
            slots: stream.alloc_zeros(tokens).map_err(|e| driver(e, "allocate slots"))?,
        })
    }

    /// Where the tokens of the pass go, and which keys they see: the same in all layers.
    pub fn begin(&mut self, stream: &Arc<CudaStream>, lengths: &[usize]) -> Result<()> {
        let Self { extent, places, .. } = *self;
        let slots = slots(extent.len, places, lengths);
        stream.memcpy_htod(&slots, &mut self.slots).map_err(|e| driver(e, "copy slots"))?;
        match &mut self.mixer {
            Mixer::Start { starts, .. } => stream.memcpy_htod(&starts_behind_padding(extent.len, lengths), starts),
            Mixer::Step { lean, lengths: kept } => {
                let in_use: Vec<i32> = lengths.iter().map(|len| (*len).min(places) as i32).collect();
                stream.memcpy_htod(&in_use, kept).map_err(|e| driver(e, "copy lengths"))?;
                return lean.begin(stream, &Lengths::dense(kept));
            }
        }
        .map_err(|e| driver(e, "copy starts"))
    }
}

/// Places of the tokens of a pass, `[rows, len]`: every row's last `places` tokens in a ring, -1 for those before and for padding.
fn slots(len: usize, places: usize, lengths: &[usize]) -> Vec<i64> {
    let of_row = |(row, total): (usize, &usize)| {
        // The row ends with the last token of its sequence.
        let place = |c: usize| {
            let t = (total + c).checked_sub(len)?;
            (t + places >= *total).then_some((row * places + t % places) as i64)
        };
        (0..len).map(|c| place(c).unwrap_or(-1)).collect::<Vec<i64>>()
    };
    lengths.iter().enumerate().flat_map(of_row).collect()
}

/// Starts of the padding in front of each row, of what is behind it, and the end.
fn starts_behind_padding(len: usize, lengths: &[usize]) -> Vec<i32> {
    let of_row = |(row, tokens): (usize, &usize)| [row * len, (row + 1) * len - tokens];
    let starts = lengths.iter().enumerate().flat_map(of_row);
    starts.chain([lengths.len() * len]).map(|start| start as i32).collect()
}

impl<T: Element> Window<T> {
    pub(super) fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config, name: &str) -> Result<Self> {
        let width = config.width;
        let load = |tensor: &str, shape: &[usize]| file.upload::<T>(stream, &format!("{name}.{tensor}"), shape);
        let bias = |tensor: &str, len: usize| {
            file.contains(&format!("{name}.{tensor}")).then(|| load(tensor, &[len])).transpose()
        };
        Ok(Self {
            projection: load("Wqkv.weight", &[3 * width, width])?,
            bias: bias("Wqkv.bias", 3 * width)?,
            out: load("out_proj.weight", &[width, width])?,
            out_bias: bias("out_proj.bias", width)?,
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
        carry: &mut Carry<T>,
    ) -> Result<()> {
        let Work { width, projected, turned, o, slots, .. } = work;
        // q, k, v = W x, q and k turned
        work.projection.run(stream, normed, &self.projection, param(&self.bias), projected)?;
        let at = rotary::Inputs { positions: tokens.positions.map(|at| at as _), ..Default::default() };
        work.rotary.run(stream, projected, at, turned)?;
        let (q, k, v) = (turned.slice(..), turned.slice(*width..), projected.slice(2 * *width..));
        let kept = append::Outputs::Same { k: &mut carry.k, v: &mut carry.v };
        work.append.run(stream, &append::Inputs::slots(&k, &v, slots), kept, None)?;
        match &mut work.mixer {
            Mixer::Start { plan, starts } => {
                let inputs = attention::Inputs {
                    cu_seqlens_q: Some(starts),
                    cu_seqlens_k: Some(starts),
                    ..attention::Inputs::of(&q, &k, &v)
                };
                plan.run(stream, &inputs, attention::Outputs::<T>::of(o))?;
            }
            Mixer::Step { lean, lengths } => {
                let inputs = decode::Inputs::of(&q, &carry.k, &carry.v, Lengths::dense(lengths));
                lean.run(stream, &inputs, decode::Outputs::of(o))?;
            }
        }
        // residual += W_o o
        work.out.run(stream, o, &self.out, param(&self.out_bias), residual)
    }
}

/// A bias that may be absent.
fn param<T>(bias: &Option<CudaSlice<T>>) -> Param<'_, T> {
    bias.as_ref().map_or(Param::None, |bias| Param::Same(bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_go_round_the_ring() {
        // Rows of 5 with 5 and 2 tokens, rings of 3.
        assert_eq!(slots(5, 3, &[5, 2]), [-1, -1, 2, 0, 1, -1, -1, -1, 3, 4]);
        // One more token each: the sixth and the third.
        assert_eq!(slots(1, 3, &[6, 3]), [2, 5]);
        assert_eq!(slots(1, 1, &[9]), [0]);
    }

    #[test]
    fn padding_is_a_sequence_of_its_own() {
        assert_eq!(starts_behind_padding(5, &[5, 2]), [0, 0, 5, 8, 10]);
    }
}
