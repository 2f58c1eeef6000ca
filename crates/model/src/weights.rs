//! A safetensors file, mapped into memory and checked before anything is allocated for it.

use crate::checkpoint::Checkpoint;
use crate::config::{CONV_TAPS, Config};
use crate::phonebook::{KINDS, TABLE_ROWS};
#[cfg(doc)]
use lookback_device::Error;
use lookback_device::{Result, WeightsFault};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Classes of the phone book's head: the ten digits.
pub const CLASSES: usize = 10;

/// A checked weights file.
#[derive(Debug)]
pub struct Weights {
    file: Checkpoint,
    config: Config,
}

impl Weights {
    /// Maps a file and checks its configuration, and the name, shape, type and values of every tensor that the model needs.
    ///
    /// # Errors
    /// [`Error::Weights`], which names the file, the tensor, what was wanted and what was found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::check(Checkpoint::open(path)?)
    }

    /// As [`Weights::open`], for a file that is in memory or part of the program. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::check(Checkpoint::from_bytes(name, bytes)?)
    }

    fn check(file: Checkpoint) -> Result<Self> {
        let config = Config::from_metadata(file.facts()).map_err(|why| file.error(None, why))?;
        for (name, shape) in wanted(&config) {
            let got = file.dtype(&name)?;
            if got != "F32" {
                return Err(file.error(Some(&name), WeightsFault::Dtype { want: "F32".into(), got }));
            }
            file.tensor(&name, &shape)?;
        }
        Ok(Self { file, config })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All metadata of the file: the configuration, and how the model was trained and measured.
    pub fn facts(&self) -> &HashMap<String, String> {
        self.file.facts()
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// [`Error::Weights`] for a name that the model does not have.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let shape = wanted(&self.config).find_map(|(wanted, shape)| (wanted == name).then_some(shape));
        self.file.tensor(name, &shape.ok_or_else(|| self.file.error(Some(name), WeightsFault::Missing))?)
    }
}

/// Every tensor that a model needs, with its shape.
fn wanted(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
    let (width, state) = (config.width, config.state);
    let block = move |block: usize| {
        [
            ("norm.weight", vec![width]),
            ("conv.weight", vec![width, CONV_TAPS]),
            ("in_proj.weight", vec![4 * state, width]),
            ("in_proj.bias", vec![4 * state]),
            ("out_proj.weight", vec![width, state]),
        ]
        .map(|(name, shape)| (format!("blocks.{block}.{name}"), shape))
    };
    let ends = [
        ("embed.weight", vec![KINDS, width]),
        ("embed.names.weight", vec![TABLE_ROWS - KINDS, width]),
        ("norm.weight", vec![width]),
        ("head.weight", vec![CLASSES, width]),
    ];
    let ends = ends.map(|(name, shape)| (name.to_string(), shape));
    ends.into_iter().chain((0..config.half_reversed.len()).flat_map(block))
}
