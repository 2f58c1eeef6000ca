//! A safetensors file, or several with an index: tensors by name, each checked when it is asked for.

use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{Element, Error, Result, WeightsFault, driver};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a directory has its weights in, when they are in one file.
const FILE: &str = "model.safetensors";
/// Where the index is, when they are in several.
const INDEX: &str = "model.safetensors.index.json";

/// Files in memory, or mapped into it.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The file, or those that an index names.
    parts: Vec<Part>,
    facts: HashMap<String, String>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    bytes: Bytes,
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

#[derive(Debug)]
struct Entry {
    part: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    place: Range<usize>,
}

impl Checkpoint {
    /// Maps a file and reads its header. Of a path that ends in `.json`, an index as large public models have it, maps all files that
    /// it names; of a directory, its `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::Weights`] ← a file cannot be read or is not safetensors; an index that is not one, or names a file outside of its
    /// directory, or a tensor that its file does not have.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            let file = path.join(FILE);
            return if file.is_file() { Self::open_file(&file) } else { Self::open_index(&path.join(INDEX)) };
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path);
        }
        Self::open_file(path)
    }

    fn open_file(path: &Path) -> Result<Self> {
        let unreadable = |e: std::io::Error| parse(path, e.to_string());
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the mapping is private and read-only. As for every program that maps its weights, the file must not be
        // cut short by another process while the model loads.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Self::read(path.into(), Bytes::Mapped(map))
    }

    fn open_index(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| parse(path, e.to_string()))?;
        let index: Value = serde_json::from_str(&text).map_err(|e| parse(path, e.to_string()))?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let mut files: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        for (tensor, file) in map.ok_or_else(|| parse(path, "has no `weight_map`".into()))? {
            // A name and nothing else: an index does not lead out of its directory.
            let name = file.as_str().filter(|file| Path::new(file).file_name().is_some_and(|name| name == *file));
            let name = name.ok_or_else(|| parse(path, format!("has {file} for the file of {tensor}")))?;
            files.entry(name).or_default().push(tensor);
        }
        let mut all = Self { path: path.into(), parts: Vec::new(), facts: HashMap::new(), entries: HashMap::new() };
        for (file, tensors) in files {
            let mut shard = Self::open_file(&path.with_file_name(file))?;
            for tensor in tensors {
                let missing = shard.error(Some(tensor), WeightsFault::Missing);
                let entry = shard.entries.remove(tensor).ok_or(missing)?;
                all.entries.insert(tensor.clone(), Entry { part: all.parts.len(), ..entry });
            }
            all.parts.append(&mut shard.parts);
            all.facts.extend(shard.facts);
        }
        Ok(all)
    }

    /// As [`open`](Self::open), for a file that is in memory or part of the program. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::read(name.into(), Bytes::Held(bytes.into()))
    }

    fn read(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let fault = |e: safetensors::SafeTensorError| parse(&path, e.to_string());
        let data = bytes.as_slice();
        let (_, header) = SafeTensors::read_metadata(data).map_err(fault)?;
        let facts = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(data).map_err(fault)?;
        let entry = |tensor: safetensors::tensor::TensorView<'_>| {
            let start = tensor.data().as_ptr() as usize - data.as_ptr() as usize;
            let place = start..start + tensor.data().len();
            Entry { part: 0, dtype: tensor.dtype(), shape: tensor.shape().to_vec(), place }
        };
        let entries = file.iter().map(|(name, tensor)| (name.to_string(), entry(tensor))).collect();
        let parts = vec![Part { path: path.clone(), bytes }];
        Ok(Self { path, parts, facts, entries })
    }

    /// The metadata of the file, or of all of several.
    pub fn facts(&self) -> &HashMap<String, String> {
        &self.facts
    }

    /// Whether the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The extents of a tensor that must have `N` of them.
    ///
    /// # Errors
    /// [`Error::Weights`] ← the tensor is missing, or has another number of extents.
    pub fn extents<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let entry = self.entry(name)?;
        entry.shape.as_slice().try_into().map_err(|_| {
            let problem = format!("must have {N} extents, got {:?}", entry.shape);
            self.error(Some(name), WeightsFault::Config { key: "shape".into(), problem })
        })
    }

    /// The values of a tensor of `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// [`Error::Weights`] ← the tensor is missing, has another shape or type, or a value that is not finite.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let fault = |why| Err(self.error(Some(name), why));
        if entry.shape != shape {
            let sizes = |shape: &[usize]| shape.iter().map(|&n| n as u64).collect();
            return fault(WeightsFault::Shape { want: sizes(shape), got: sizes(&entry.shape) });
        }
        let bytes = &self.parts[entry.part].bytes.as_slice()[entry.place.clone()];
        let values: Vec<f32> = match entry.dtype {
            Dtype::F32 => elements(bytes).map(f32::from_le_bytes).collect(),
            Dtype::F16 => elements(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => elements(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            other => {
                return fault(WeightsFault::Dtype { want: "F32, F16 or BF16".into(), got: format!("{other:?}") });
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => fault(WeightsFault::NonFinite { at: at as u64 }),
            None => Ok(values),
        }
    }

    /// As [`tensor`](Self::tensor), rounded to `T` and copied to the stream's device.
    ///
    /// # Errors
    /// Those of [`tensor`](Self::tensor), where a value that `T` cannot hold is not finite; [`Error::OutOfMemory`].
    pub fn upload<T: Element>(&self, stream: &Arc<CudaStream>, name: &str, shape: &[usize]) -> Result<CudaSlice<T>> {
        self.upload_all(stream, &[(name.to_string(), shape.to_vec())])
    }

    /// As [`upload`](Self::upload), several tensors one after another.
    ///
    /// # Errors
    /// Those of [`upload`](Self::upload).
    pub fn upload_all<T: Element>(
        &self,
        stream: &Arc<CudaStream>,
        tensors: &[(String, Vec<usize>)],
    ) -> Result<CudaSlice<T>> {
        let mut all: Vec<T> = Vec::new();
        for (name, shape) in tensors {
            let start = all.len();
            all.extend(self.tensor(name, shape)?.into_iter().map(|v| T::from_f64(f64::from(v))));
            if let Some(at) = all[start..].iter().position(|value| !value.to_f64().is_finite()) {
                return Err(self.error(Some(name), WeightsFault::NonFinite { at: at as u64 }));
            }
        }
        stream.clone_htod(&all).map_err(|e| driver(e, "copy weights"))
    }

    /// The type of a tensor, as the file names it.
    pub(crate) fn dtype(&self, name: &str) -> Result<String> {
        Ok(format!("{:?}", self.entry(name)?.dtype))
    }

    /// An error that names this file, or that of several which the tensor is in.
    pub(crate) fn error(&self, tensor: Option<&str>, why: WeightsFault) -> Error {
        let part = tensor.and_then(|tensor| self.entries.get(tensor)).map(|entry| &self.parts[entry.part].path);
        Error::Weights { file: part.unwrap_or(&self.path).clone(), tensor: tensor.map(Into::into), why }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| self.error(Some(name), WeightsFault::Missing))
    }
}

fn parse(path: &Path, problem: String) -> Error {
    Error::Weights { file: path.into(), tensor: None, why: WeightsFault::Parse(problem) }
}

/// The bytes of each element, from bytes of any alignment.
fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks().0.iter().copied()
}
