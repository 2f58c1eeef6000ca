//! A safetensors file, mapped into memory and checked before anything is allocated for it.

use crate::config::{CONV_TAPS, Config};
use crate::phonebook::{KINDS, TABLE_ROWS};
use lookback_device::{Error, Result, WeightsFault};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Classes of the phone book's head: the ten digits.
pub const CLASSES: usize = 10;

/// A checked weights file.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    bytes: Bytes,
    config: Config,
    facts: HashMap<String, String>,
    places: HashMap<String, Range<usize>>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

impl Weights {
    /// Maps a file and checks its configuration, and the name, shape, type and values of every tensor that the model needs.
    ///
    /// # Errors
    /// [`Error::Weights`], which names the file, the tensor, what was wanted and what was found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let unreadable = |e: std::io::Error| weights_error(path, None, WeightsFault::Parse(e.to_string()));
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the mapping is private and read-only. As for every program that maps its weights, the file must not be
        // cut short by another process while the model loads.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Self::check(path.into(), Bytes::Mapped(map))
    }

    /// As [`Weights::open`], for a file that is in memory or part of the program. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::check(name.into(), Bytes::Held(bytes.into()))
    }

    fn check(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let error = |tensor: Option<&str>, why| weights_error(&path, tensor, why);
        let parse = |e: safetensors::SafeTensorError| error(None, WeightsFault::Parse(e.to_string()));
        let data = bytes.as_slice();
        let (_, header) = SafeTensors::read_metadata(data).map_err(parse)?;
        let facts = header.metadata().clone().unwrap_or_default();
        let config = Config::from_metadata(&facts).map_err(|why| error(None, why))?;
        let file = SafeTensors::deserialize(data).map_err(parse)?;
        let mut places = HashMap::new();
        for (name, shape) in wanted(&config) {
            let fault = |why| error(Some(&name), why);
            let tensor = file.tensor(&name).map_err(|_| fault(WeightsFault::Missing))?;
            if tensor.dtype() != Dtype::F32 {
                let got = format!("{:?}", tensor.dtype());
                return Err(fault(WeightsFault::Dtype { want: "F32".into(), got }));
            }
            if tensor.shape() != shape {
                let sizes = |shape: &[usize]| shape.iter().map(|&n| n as u64).collect();
                return Err(fault(WeightsFault::Shape { want: sizes(&shape), got: sizes(tensor.shape()) }));
            }
            if let Some(at) = floats(tensor.data()).position(|value| !value.is_finite()) {
                return Err(fault(WeightsFault::NonFinite { at: at as u64 }));
            }
            let start = tensor.data().as_ptr() as usize - data.as_ptr() as usize;
            places.insert(name, start..start + tensor.data().len());
        }
        Ok(Self { path, bytes, config, facts, places })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All metadata of the file: the configuration, and how the model was trained and measured.
    pub fn facts(&self) -> &HashMap<String, String> {
        &self.facts
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// [`Error::Weights`] for a name that the model does not have.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || weights_error(&self.path, Some(name), WeightsFault::Missing);
        let place = self.places.get(name).ok_or_else(missing)?;
        Ok(floats(&self.bytes.as_slice()[place.clone()]).collect())
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

/// Little-endian values, from bytes of any alignment.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk))
}

fn weights_error(path: &Path, tensor: Option<&str>, why: WeightsFault) -> Error {
    Error::Weights { file: path.into(), tensor: tensor.map(Into::into), why }
}
