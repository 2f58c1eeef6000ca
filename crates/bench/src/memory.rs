//! Tensors of a case: allocated, filled, and described by name.

use half::{bf16, f16};
use lookback_device::{
    Element, Result,
    cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits},
    driver,
    memory::allocate,
};
use std::sync::{Arc, OnceLock};

/// Elements after which data repeats: a prime, so that rows never begin alike.
const PERIOD: usize = 65_521;

/// What an operation does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads it.
    Input,
    /// Writes all of it.
    Output,
    /// Reads it and writes it.
    Both,
    /// Workspace: zeroed before the first launch.
    Scratch,
}

/// A tensor of a case, without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// As `lookback run --list` names it, where it has it.
    pub name: &'static str,
    /// What the operation does with it.
    pub role: Role,
    /// Device address.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// `f32`, `f16`, `bf16`, `i32`, `i64` or `u8` (for 8-bit floats, too).
    pub dtype: &'static str,
    /// Extents.
    pub shape: Vec<usize>,
}

/// Allocates the tensors of a case and keeps their descriptions.
pub struct Memory {
    stream: Arc<CudaStream>,
    sets: usize,
    /// Which set is being made; those after the first are not described.
    set: usize,
    tensors: Vec<Tensor>,
    seed: usize,
}

/// What tensors are made of.
pub trait Word: DeviceRepr + ValidAsZeroBits + Clone + 'static {
    /// Its name.
    const NAME: &'static str;
}

macro_rules! words {
    ($($type:ty => $name:literal),*) => {
        $(impl Word for $type {
            const NAME: &'static str = $name;
        })*
    };
}
words!(f32 => "f32", f16 => "f16", bf16 => "bf16", i32 => "i32", i64 => "i64", u8 => "u8");

impl Memory {
    pub(crate) fn new(stream: &Arc<CudaStream>, sets: usize) -> Self {
        Self { stream: stream.clone(), sets: sets.max(1), set: 0, tensors: Vec::new(), seed: 0 }
    }

    pub(crate) fn into_tensors(self) -> Vec<Tensor> {
        self.tensors
    }

    /// The stream that the case is launched on.
    pub fn stream(&self) -> Arc<CudaStream> {
        self.stream.clone()
    }

    /// Makes every set of tensors.
    pub fn sets<S>(&mut self, mut make: impl FnMut(&mut Self) -> Result<S>) -> Result<Vec<S>> {
        let made = (0..self.sets)
            .map(|set| {
                self.set = set;
                make(self)
            })
            .collect();
        self.set = 0;
        made
    }

    /// The number of the set that is being made.
    pub fn set(&self) -> usize {
        self.set
    }

    /// An input of normal data.
    pub fn normal<T: Element + Word>(&mut self, name: &'static str, shape: &[usize]) -> Result<CudaSlice<T>> {
        self.filled(name, Role::Input, shape, |normal| T::from_f64(normal))
    }

    /// An input between `lo` and `hi`, evenly.
    pub fn between<T: Element + Word>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        [lo, hi]: [f64; 2],
    ) -> Result<CudaSlice<T>> {
        // Digits far behind the point are uniform, whatever the number.
        self.filled(name, Role::Input, shape, |normal| T::from_f64(lo + (hi - lo) * (normal.abs() * 1e4).fract()))
    }

    /// Normal data that the operation reads and writes.
    pub fn state<T: Element + Word>(&mut self, name: &'static str, shape: &[usize]) -> Result<CudaSlice<T>> {
        self.filled(name, Role::Both, shape, |normal| T::from_f64(normal))
    }

    /// An input, made anew from a normal number for each element of a period.
    pub fn made<T: Word>(
        &mut self,
        name: &'static str,
        shape: &[usize],
        from_normal: impl Fn(f64) -> T,
    ) -> Result<CudaSlice<T>> {
        self.filled(name, Role::Input, shape, from_normal)
    }

    /// An input of these values, one row.
    pub fn values<T: Word>(&mut self, name: &'static str, values: &[T]) -> Result<CudaSlice<T>> {
        let slice = self.stream.clone_htod(values).map_err(|e| driver(e, name))?;
        self.describe(name, Role::Input, &slice, &[values.len()]);
        Ok(slice)
    }

    /// An output.
    pub fn output<T: Word>(&mut self, name: &'static str, shape: &[usize]) -> Result<CudaSlice<T>> {
        self.zeros(name, Role::Output, shape)
    }

    /// An input that another operation fills, as a forward pass does for its backward pass.
    pub fn saved<T: Word>(&mut self, name: &'static str, shape: &[usize]) -> Result<CudaSlice<T>> {
        self.zeros(name, Role::Input, shape)
    }

    /// A workspace of so many bytes, in whole elements, at least one.
    pub fn scratch<T: Word>(&mut self, name: &'static str, bytes: u64) -> Result<CudaSlice<T>> {
        let elements = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(size_of::<T>());
        self.zeros(name, Role::Scratch, &[elements.max(1)])
    }

    /// Adds a tensor that was allocated elsewhere.
    pub fn describe<T: Word>(&mut self, name: &'static str, role: Role, slice: &CudaSlice<T>, shape: &[usize]) {
        if self.set == 0 {
            let (address, _held) = slice.device_ptr(&self.stream);
            let bytes = (slice.len() * size_of::<T>()) as u64;
            self.tensors.push(Tensor { name, role, address, bytes, dtype: T::NAME, shape: shape.to_vec() });
        }
    }

    fn zeros<T: Word>(&mut self, name: &'static str, role: Role, shape: &[usize]) -> Result<CudaSlice<T>> {
        let slice = allocate(&self.stream, elements(shape) as u64, name)?;
        self.describe(name, role, &slice, shape);
        Ok(slice)
    }

    /// A period of data from the host, and doubled on the device until the tensor is full.
    fn filled<T: Word>(
        &mut self,
        name: &'static str,
        role: Role,
        shape: &[usize],
        from_normal: impl Fn(f64) -> T,
    ) -> Result<CudaSlice<T>> {
        let mut slice = self.zeros::<T>(name, role, shape)?;
        let len = elements(shape).min(slice.len());
        let mut full = len.min(PERIOD);
        let (before, after) = normals().split_at(self.seed * 9973 % PERIOD);
        self.seed += 1;
        let period: Vec<T> = after.iter().chain(before).take(full).map(|normal| from_normal(*normal)).collect();
        if full == 0 {
            return Ok(slice);
        }
        let failed = |e| driver(e, name);
        self.stream.memcpy_htod(&period, &mut slice.slice_mut(..full)).map_err(failed)?;
        while full < len {
            let more = full.min(len - full);
            let (from, mut rest) = slice.split_at_mut(full);
            self.stream.memcpy_dtod(&from.slice(..more), &mut rest.slice_mut(..more)).map_err(failed)?;
            full += more;
        }
        Ok(slice)
    }
}

/// Elements of a tensor.
fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// A period of normal numbers, by the sum of twelve uniform ones: tails do not matter here.
fn normals() -> &'static [f64] {
    static NORMALS: OnceLock<Vec<f64>> = OnceLock::new();
    NORMALS.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut uniform = || {
            // Steele, Lea and Flood's SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as f64 / 2_f64.powi(64)
        };
        (0..PERIOD).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect()
    })
}
