//! What every language model has around its layers: an embedding that opens the residual in `f32`, and the norm and head that make
//! logits of it.

use crate::checkpoint::Checkpoint;
use crate::decoder::{Frame, FrameNames};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use lookback_device::{DType, DeviceInfo, Element, Result, driver};
use lookback_nn::{Param, embedding, gemm, residual_norm};
use std::sync::Arc;

/// Weights around the layers.
pub(crate) struct Ends<T> {
    table: CudaSlice<T>,
    /// The table again if absent.
    head: Option<CudaSlice<T>>,
    norm: CudaSlice<f32>,
}

/// The tokens that logits follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The last of every so many.
    LastOf(usize),
    /// So many, which are named when the pass runs.
    Named(usize),
}

/// Plans and memory of a pass.
pub(crate) struct Work<T> {
    embed: embedding::Plan,
    /// From embedded tokens to the residual.
    widen: residual_norm::Plan,
    /// Named tokens, gathered.
    gather: Option<(embedding::Plan, CudaSlice<f32>)>,
    norm: residual_norm::Plan,
    head: gemm::Plan,
    embedded: CudaSlice<T>,
    /// `[tokens, width]`.
    pub residual: CudaSlice<f32>,
    /// First element of the first token that logits follow.
    first_asked: usize,
    normed: CudaSlice<T>,
    logits: CudaSlice<f32>,
}

impl<T: Element> Ends<T> {
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, frame: &Frame, names: &FrameNames) -> Result<Self> {
        let matrix = |name| file.upload::<T>(stream, name, &[frame.vocabulary, frame.width]);
        Ok(Self {
            table: matrix(names.embedding)?,
            head: file.contains(names.head).then(|| matrix(names.head)).transpose()?,
            norm: file.upload(stream, names.norm, &[frame.width])?,
        })
    }
}

impl<T: Element> Work<T> {
    pub fn new(
        stream: &Arc<CudaStream>,
        device: &DeviceInfo,
        frame: &Frame,
        tokens: usize,
        asked: Asked,
    ) -> Result<Self> {
        let Frame { vocabulary, width, eps, .. } = *frame;
        let allocated = |e| driver(e, "allocate activations");
        let norm = |shape| {
            let options = residual_norm::Options { dtype: T::DTYPE, eps, center: false, post: false };
            residual_norm::Plan::new(&shape, &options, device)
        };
        let rows = |count| embedding::Shape::dense(count, 1, tokens, width);
        let (asked, period, gather) = match asked {
            Asked::LastOf(period) => (tokens / period, period, None),
            Asked::Named(count) => {
                let plan = embedding::Plan::new(&rows(count), &embedding::Options { dtype: DType::F32 }, device)?;
                (count, 1, Some((plan, stream.alloc_zeros(count * width).map_err(allocated)?)))
            }
        };
        let strided = residual_norm::Shape {
            residual_stride: (period * width) as i64,
            ..residual_norm::Shape::dense(asked, width)
        };
        let table = embedding::Shape { vocabulary, ..rows(tokens) };
        let logits = gemm::Options { out: DType::F32, ..gemm::Options::new(T::DTYPE) };
        Ok(Self {
            embed: embedding::Plan::new(&table, &embedding::Options { dtype: T::DTYPE }, device)?,
            widen: norm(residual_norm::Shape::dense(tokens, width))?,
            gather,
            norm: norm(strided)?,
            head: gemm::Plan::new(&gemm::Shape::linear(asked, vocabulary, width), &logits, device)?,
            embedded: stream.alloc_zeros(tokens * width).map_err(allocated)?,
            residual: stream.alloc_zeros(tokens * width).map_err(allocated)?,
            first_asked: (period - 1) * width,
            normed: stream.alloc_zeros(asked * width).map_err(allocated)?,
            logits: stream.alloc_zeros(asked * vocabulary).map_err(allocated)?,
        })
    }

    /// Embeds the tokens.
    pub fn begin(&mut self, stream: &CudaStream, ends: &Ends<T>, ids: &impl DevicePtr<i32>) -> Result<()> {
        let Self { embed, widen, embedded, residual, .. } = self;
        embed.run(stream, &ends.table, ids, embedded, None)?;
        let inputs = residual_norm::Inputs { x: Some(embedded), ..Default::default() };
        widen.run::<T>(stream, inputs, Some(residual), None)
    }

    /// The logits that the pass was made for, `[asked, vocabulary]`. `named` are the numbers of [`Asked::Named`] tokens.
    pub fn finish(
        &mut self,
        stream: &Arc<CudaStream>,
        ends: &Ends<T>,
        named: &impl DevicePtr<i32>,
    ) -> Result<Vec<f32>> {
        let Self { gather, residual, normed, logits, .. } = self;
        let asked = match gather {
            Some((plan, rows)) => {
                plan.run(stream, residual, named, rows, None)?;
                rows.slice(..)
            }
            None => residual.slice(self.first_asked..),
        };
        let inputs = residual_norm::Inputs { residual: Some(&asked), weight: Some(&ends.norm), ..Default::default() };
        self.norm.run(stream, inputs, None, Some(normed))?;
        self.head.run(stream, normed, ends.head.as_ref().unwrap_or(&ends.table), Param::None, logits)?;
        stream.clone_dtoh(logits).map_err(|e| driver(e, "copy logits"))
    }
}
