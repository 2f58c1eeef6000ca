//! Tensors on the host, as safetensors files hold them.

use crate::{CliError, Result};
use half::{bf16, f16};
use lookback_device::{DType, Element};
use lookback_reference::e4m3;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Element type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A floating-point type that kernels compute with.
    Float(DType),
    /// Lengths and indices.
    I32,
    /// Flags.
    U8,
    /// 8 bits of a cache: a sign, 4 of exponent, 3 of fraction.
    E4m3,
}

impl Kind {
    fn of(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::Float(DType::F32),
            Dtype::F16 => Self::Float(DType::F16),
            Dtype::BF16 => Self::Float(DType::Bf16),
            Dtype::I32 => Self::I32,
            Dtype::U8 => Self::U8,
            Dtype::F8_E4M3 => Self::E4m3,
            _ => return None,
        })
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Float(DType::F32) => Dtype::F32,
            Self::Float(DType::F16) => Dtype::F16,
            Self::Float(DType::Bf16) => Dtype::BF16,
            Self::I32 => Dtype::I32,
            Self::U8 => Dtype::U8,
            Self::E4m3 => Dtype::F8_E4M3,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(dtype) => write!(f, "{dtype}"),
            Self::I32 => f.write_str("i32"),
            Self::U8 => f.write_str("u8"),
            Self::E4m3 => f.write_str("e4m3"),
        }
    }
}

/// A tensor on the host, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub kind: Kind,
    /// Extents.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    bytes: Vec<u8>,
}

impl Tensor {
    /// Little-endian elements as they are.
    pub fn new(kind: Kind, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { kind, shape: shape.to_vec(), bytes }
    }

    /// Rounds f64 values to the element type.
    pub fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        let bytes = match dtype {
            DType::F32 => values.iter().flat_map(|v| f32::from_f64(*v).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|v| <f16 as Element>::from_f64(*v).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|v| <bf16 as Element>::from_f64(*v).to_le_bytes()).collect(),
        };
        Self { kind: Kind::Float(dtype), shape: shape.to_vec(), bytes }
    }

    /// Elements of a kernel's output, which may have room for more where the tensor is empty.
    pub fn elements<T: Element>(shape: &[usize], values: &[T]) -> Self {
        let values = &values[..values.len().min(shape.iter().product())];
        Self { kind: Kind::Float(T::DTYPE), shape: shape.to_vec(), bytes: bytemuck::cast_slice(values).to_vec() }
    }

    /// Lengths or indices.
    pub fn indices(shape: &[usize], values: &[i32]) -> Self {
        Self { kind: Kind::I32, shape: shape.to_vec(), bytes: bytemuck::cast_slice(values).to_vec() }
    }

    /// Flags.
    pub fn flags(shape: &[usize], values: &[u8]) -> Self {
        Self { kind: Kind::U8, shape: shape.to_vec(), bytes: values.to_vec() }
    }

    /// Rounds f64 values to codes of a cache.
    pub fn codes(shape: &[usize], values: &[f64]) -> Self {
        let bytes = values.iter().map(|v| e4m3::encode(*v)).collect();
        Self { kind: Kind::E4m3, shape: shape.to_vec(), bytes }
    }

    /// Codes of a cache as a kernel left them.
    pub fn written_codes(shape: &[usize], codes: &[u8]) -> Self {
        let codes = &codes[..codes.len().min(shape.iter().product())];
        Self { kind: Kind::E4m3, shape: shape.to_vec(), bytes: codes.to_vec() }
    }

    /// Little-endian elements as they are.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as the type they have. Empty for another type: callers have checked the kind.
    pub fn as_elements<T: Element>(&self) -> Vec<T> {
        if self.kind == Kind::Float(T::DTYPE) { self.cast() } else { Vec::new() }
    }

    /// Indices. Empty for another type: callers have checked the kind.
    pub fn as_indices(&self) -> Vec<i32> {
        if self.kind == Kind::I32 { self.cast() } else { Vec::new() }
    }

    /// Flags, or codes of a cache.
    pub fn as_flags(&self) -> &[u8] {
        &self.bytes
    }

    /// Every element as f64, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.kind {
            Kind::Float(DType::F32) => self.cast::<f32>().iter().map(|v| v.to_f64()).collect(),
            Kind::Float(DType::F16) => self.cast::<f16>().iter().map(|v| v.to_f64()).collect(),
            Kind::Float(DType::Bf16) => self.cast::<bf16>().iter().map(|v| v.to_f64()).collect(),
            Kind::I32 => self.cast::<i32>().iter().map(|v| f64::from(*v)).collect(),
            Kind::U8 => self.bytes.iter().map(|v| f64::from(*v)).collect(),
            Kind::E4m3 => self.bytes.iter().map(|v| e4m3::decode(*v)).collect(),
        }
    }

    fn cast<T: bytemuck::AnyBitPattern>(&self) -> Vec<T> {
        self.bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.kind.dtype()
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Named tensors.
pub type Tensors = BTreeMap<String, Tensor>;

/// Reads every tensor of a safetensors file.
pub fn read(path: &Path) -> Result<Tensors> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| CliError::input(&name, e))?;
    parse(&name, &bytes)
}

/// Every tensor of the bytes of a safetensors file; `name` stands for it in messages.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Tensors> {
    let file =
        SafeTensors::deserialize(bytes).map_err(|e| CliError::input(name, format!("not a safetensors file: {e}")))?;
    let mut tensors = Tensors::new();
    for (key, view) in file.iter() {
        let Some(kind) = Kind::of(view.dtype()) else {
            let why = format!("tensor `{key}` is {:?}, want f32, f16, bf16, e4m3, i32 or u8", view.dtype());
            return Err(CliError::input(name, why));
        };
        tensors.insert(key.into(), Tensor { kind, shape: view.shape().to_vec(), bytes: view.data().to_vec() });
    }
    Ok(tensors)
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    let name = path.display();
    let bytes = serialize(tensors).map_err(|e| CliError::Failed(format!("{name}: {e}")))?;
    std::fs::write(path, bytes).map_err(|e| CliError::input(name, e))
}

/// The bytes of a safetensors file.
pub fn serialize(tensors: &Tensors) -> std::result::Result<Vec<u8>, SafeTensorError> {
    safetensors::serialize(tensors, None)
}
