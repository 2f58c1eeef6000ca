//! BERT and its kin: encoders of softmax attention whose tokens all see each other, such as MiniLM and the models of sentence
//! embeddings made of it.
//!
//! [`Bert`] loads checkpoints in the published tensor names, with or without a `bert.` in front
//! (`embeddings.word_embeddings.weight`, `encoder.layer.{i}.attention.self.query.weight` ..), [`Config`] their `config.json`. Sequences
//! of any lengths are packed one after another without padding. [`Bert::encode`] gives the last layer's row of every token,
//! [`Bert::embed`] one row a sequence. Heads of prediction and the `pooler` are not part of it.
//!
//! ```no_run
//! use half::f16;
//! use lookback_model::bert::{Bert, Config, Pooling};
//! use lookback_model::checkpoint::Checkpoint;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = lookback_device::open(lookback_device::DevicePick::Auto)?.default_stream();
//! let config = Config::open("all-MiniLM-L6-v2/config.json")?;
//! let model = Bert::<f16>::load(&stream, &Checkpoint::open("all-MiniLM-L6-v2/model.safetensors")?, &config)?;
//! // [CLS] hello world [SEP], and [CLS] hello [SEP].
//! let rows = model.embed(&[(&[101, 7592, 2088, 102]).into(), (&[101, 7592, 102]).into()], Pooling::Mean, true)?;
//! let cosine: f32 = rows[..384].iter().zip(&rows[384..]).map(|(a, b)| a * b).sum();
//! # Ok(())
//! # }
//! ```

mod config;
mod layer;

pub use config::Config;
pub use lookback_nn::pool::Pooling;

use crate::checkpoint::Checkpoint;
use crate::decoder::check_rows;
use crate::layer_norm::LayerNorm;
use cudarc::driver::{CudaSlice, CudaStream};
use layer::{Layer, Work};
use lookback_device::{DType, DeviceInfo, Element, Error, Result, driver};
use lookback_nn::{embedding, pool};
use std::sync::Arc;

const OP: &str = "bert";

/// The tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence<'a> {
    /// Words, `[CLS]` and `[SEP]` included.
    pub ids: &'a [i32],
    /// Types, one a word; all 0 if absent.
    pub types: Option<&'a [i32]>,
}

impl<'a> From<&'a [i32]> for Sequence<'a> {
    fn from(ids: &'a [i32]) -> Self {
        Self { ids, types: None }
    }
}

impl<'a, const N: usize> From<&'a [i32; N]> for Sequence<'a> {
    fn from(ids: &'a [i32; N]) -> Self {
        Self { ids, types: None }
    }
}

/// An encoder on a device, with activations of type `T`: `f16` or `bf16`.
pub struct Bert<T> {
    stream: Arc<CudaStream>,
    device: DeviceInfo,
    config: Config,
    /// Words, then positions, then types.
    table: CudaSlice<T>,
    norm: LayerNorm,
    layers: Vec<Layer<T>>,
}

/// The rows of a pass on the device.
struct Rows {
    /// `[tokens, width]`.
    residual: CudaSlice<f32>,
    /// `[sequences + 1]`.
    starts: CudaSlice<i32>,
    tokens: usize,
}

impl<T: Element> Bert<T> {
    /// Checks every tensor that the encoder needs and copies it to the stream's device, matrices as `T`, biases and parameters of norms
    /// as `f32`.
    ///
    /// # Errors
    /// [`Error::Weights`] names the file, the tensor or key, what was wanted and what was found; [`Error::NoKernel`] ← `T` is `f32`;
    /// [`Error::OutOfMemory`] and other errors of the driver.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config) -> Result<Self> {
        if T::DTYPE == DType::F32 {
            return Err(Error::NoKernel { op: OP, request: "f32 activations: there are f16 and bf16".into() });
        }
        config.check().map_err(|why| file.error(None, why))?;
        let Config { vocabulary, positions, token_types, width, layers, .. } = *config;
        // Files of a whole model, with its head, have the encoder's tensors under its name.
        let prefix = if file.names().any(|name| name.starts_with("bert.")) { "bert." } else { "" };
        let tables = [("word", vocabulary), ("position", positions), ("token_type", token_types)]
            .map(|(what, rows)| (format!("{prefix}embeddings.{what}_embeddings.weight"), vec![rows, width]));
        let layer = |layer| Layer::load(stream, file, config, &format!("{prefix}encoder.layer.{layer}"));
        Ok(Self {
            device: DeviceInfo::of(stream.context())?,
            stream: stream.clone(),
            config: *config,
            table: file.upload_all(stream, &tables)?,
            norm: LayerNorm::load(stream, file, &format!("{prefix}embeddings.LayerNorm"), width)?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads sequences of any lengths together. Gives the last layer's row of every token, `[tokens, width]` in the order of the
    /// sequences. No sequence sees another.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no sequence, an empty one, or not one type a word; [`Error::Range`] ← a word or type that the model does not
    /// have, or a sequence longer than its positions; and those of the operations.
    pub fn encode(&self, sequences: &[Sequence<'_>]) -> Result<Vec<f32>> {
        let rows = self.run(sequences)?;
        self.stream.clone_dtoh(&rows.residual).map_err(|e| driver(e, "copy rows"))
    }

    /// As [`encode`](Self::encode), with the rows of each sequence pooled: `[sequences, width]`, of length 1 if `normalize`.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn embed(&self, sequences: &[Sequence<'_>], pooling: Pooling, normalize: bool) -> Result<Vec<f32>> {
        let Rows { residual, starts, tokens } = self.run(sequences)?;
        let pooled = pool::pool(&self.stream, &residual, &starts, (tokens, self.config.width), pooling, normalize)?;
        self.stream.clone_dtoh(&pooled).map_err(|e| driver(e, "copy rows"))
    }

    /// The last layer's rows.
    fn run(&self, sequences: &[Sequence<'_>]) -> Result<Rows> {
        let Self { stream, device, config, .. } = self;
        let Config { vocabulary, positions, token_types, width, .. } = *config;
        let (ids, starts) = self.rows_of_the_table(sequences)?;
        let tokens = ids.len() / 3;
        let table = embedding::Shape::dense(tokens, 3, vocabulary + positions + token_types, width);
        let embed = embedding::Plan::new(&table, &embedding::Options { dtype: T::DTYPE }, device)?;
        let mut work = Work::<T>::new(stream, device, config, sequences.len(), tokens)?;
        let copied = |e| driver(e, "copy tokens");
        let allocated = |e| driver(e, "allocate activations");
        let (ids, starts) = (stream.clone_htod(&ids).map_err(copied)?, stream.clone_htod(&starts).map_err(copied)?);
        let mut embedded = stream.alloc_zeros::<T>(tokens * width).map_err(allocated)?;
        let mut hidden = stream.alloc_zeros::<T>(tokens * width).map_err(allocated)?;
        let mut residual = stream.alloc_zeros::<f32>(tokens * width).map_err(allocated)?;
        // h = layer_norm(word + position + type)
        embed.run(stream, &self.table, &ids, &mut embedded, None)?;
        work.norm().run(stream, self.norm.inputs(Some(&embedded)), Some(&mut residual), Some(&mut hidden))?;
        for layer in &self.layers {
            layer.run(stream, &mut work, &starts, &mut residual, &mut hidden)?;
        }
        Ok(Rows { residual, starts, tokens })
    }

    /// Three rows of the table for every token, and where sequences begin.
    fn rows_of_the_table(&self, sequences: &[Sequence<'_>]) -> Result<(Vec<i32>, Vec<i32>)> {
        let Config { vocabulary, positions, token_types, .. } = self.config;
        let words: Vec<&[i32]> = sequences.iter().map(|sequence| sequence.ids).collect();
        check_rows(OP, "sequences", &words, vocabulary)?;
        let (mut ids, mut starts) = (Vec::new(), vec![0]);
        for Sequence { ids: words, types } in sequences {
            if words.len() > positions {
                let (hi, got) = (positions as i64, words.len() as i64);
                return Err(Error::Range { op: OP, arg: "length of a sequence", at: None, lo: 1, hi, got });
            }
            let types = types.map_or(Ok(None), |types| {
                if types.len() == words.len() {
                    return check_rows(OP, "types", &[types], token_types).map(|()| Some(types));
                }
                let (want, got) = (format!("{} long, one a word", words.len()), vec![types.len() as u64]);
                Err(Error::Shape { op: OP, arg: "types", want, got })
            })?;
            for (position, word) in words.iter().enumerate() {
                let kind = types.map_or(0, |types| types[position] as usize);
                ids.extend([*word, (vocabulary + position) as i32, (vocabulary + positions + kind) as i32]);
            }
            starts.push((ids.len() / 3) as i32);
        }
        Ok((ids, starts))
    }
}
