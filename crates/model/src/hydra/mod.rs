//! Hydra: an encoder whose mixer reads both ways, each direction with its own B, C and dt and each token with the C of its
//! neighbour, so that no copy and no flip is needed.
//!
//! [`Hydra`] loads checkpoints in the published tensor names (`bert.encoder.layer.{i}.layer.mixer.in_proj.weight` ..) and gives the
//! last layer's rows; the masked language model's head is not part of it.

mod config;
mod mixer;

pub use config::Config;

use crate::checkpoint::Checkpoint;
use crate::decoder::check_rows;
use crate::flags::{self, Segment};
use crate::layer_norm::LayerNorm;
use cudarc::driver::{CudaSlice, CudaStream};
#[cfg(doc)]
use lookback_device::Error;
use lookback_device::{DeviceInfo, Element, Result, driver};
use lookback_nn::{embedding, residual_norm};
use mixer::{Mixer, Work};
use std::sync::Arc;

const OP: &str = "hydra";

/// An encoder on a device, with activations of type `T`.
pub struct Hydra<T> {
    stream: Arc<CudaStream>,
    device: DeviceInfo,
    config: Config,
    /// Word embeddings, then token types.
    table: CudaSlice<T>,
    norm: LayerNorm,
    /// Each mixer and the norm after it.
    layers: Vec<(Mixer<T>, LayerNorm)>,
}

impl<T: Element> Hydra<T> {
    /// Checks every tensor that the encoder needs and copies it to the stream's device, matrices as `T`, parameters of norms and
    /// decays as `f32`.
    ///
    /// # Errors
    /// [`Error::Weights`] names the file, the tensor, what was wanted and what was found; [`Error::Shape`] ← a configuration that
    /// contradicts itself; [`Error::OutOfMemory`] and other errors of the driver.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config) -> Result<Self> {
        config.check()?;
        let Config { vocabulary, token_types, width, layers, .. } = *config;
        let words = file.tensor("bert.embeddings.word_embeddings.weight", &[vocabulary, width])?;
        let types = file.tensor("bert.embeddings.token_type_embeddings.weight", &[token_types, width])?;
        let table: Vec<T> = words.into_iter().chain(types).map(|v| T::from_f64(f64::from(v))).collect();
        let layer = |layer: usize| {
            let name = format!("bert.encoder.layer.{layer}.layer");
            let mixer = Mixer::load(stream, file, config, &format!("{name}.mixer"))?;
            Ok((mixer, LayerNorm::load(stream, file, &format!("{name}.norm"), width)?))
        };
        Ok(Self {
            device: DeviceInfo::of(stream.context())?,
            stream: stream.clone(),
            config: *config,
            table: stream.clone_htod(&table).map_err(|e| driver(e, "copy weights"))?,
            norm: LayerNorm::load(stream, file, "bert.embeddings.LayerNorm", width)?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Reads samples of any lengths, packed one after another into one row without padding, all of token type 0. Gives the last
    /// layer's row of every token of every sample, `[tokens, width]` in the order of the samples. No sample sees another.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no sample, or an empty one; [`Error::Range`] ← an id that is not in the vocabulary; and those of the
    /// operations.
    pub fn encode(&self, samples: &[&[i32]]) -> Result<Vec<f32>> {
        check_rows(OP, "samples", samples, self.config.vocabulary)?;
        let Config { vocabulary, token_types, width, eps, .. } = self.config;
        let Self { stream, device, .. } = self;
        // A token is the sum of its word's row and that of type 0.
        let ids: Vec<i32> = samples.iter().copied().flatten().flat_map(|id| [*id, vocabulary as i32]).collect();
        let segments: Vec<Segment> =
            samples.iter().map(|sample| Segment { len: sample.len(), prefix_len: sample.len() }).collect();
        let flags = flags::build(&segments, false);
        let tokens = flags.len();
        let table = embedding::Shape::dense(tokens, 2, vocabulary + token_types, width);
        let embed = embedding::Plan::new(&table, &embedding::Options { dtype: T::DTYPE }, device)?;
        let options = residual_norm::Options { dtype: T::DTYPE, eps, center: true, post: true };
        let norm = residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &options, device)?;
        let mut work = Work::<T>::new(stream, device, &self.config, tokens)?;
        let copied = |e| driver(e, "copy tokens");
        let allocated = |e| driver(e, "allocate activations");
        let (ids, flags) = (stream.clone_htod(&ids).map_err(copied)?, stream.clone_htod(&flags).map_err(copied)?);
        let mut embedded = stream.alloc_zeros::<T>(tokens * width).map_err(allocated)?;
        let mut hidden = stream.alloc_zeros::<T>(tokens * width).map_err(allocated)?;
        let mut residual = stream.alloc_zeros::<f32>(tokens * width).map_err(allocated)?;
        // h = layer_norm(word + type)
        embed.run(stream, &self.table, &ids, &mut embedded, None)?;
        norm.run(stream, self.norm.inputs(Some(&embedded)), Some(&mut residual), Some(&mut hidden))?;
        // h = layer_norm(h + mixer(h))
        for (mixer, after) in &self.layers {
            mixer.run(stream, &mut work, &hidden, &flags, &mut residual)?;
            norm.run_in_place(stream, &mut residual, after.inputs(None), Some(&mut hidden))?;
        }
        stream.clone_dtoh(&residual).map_err(|e| driver(e, "copy rows"))
    }
}
