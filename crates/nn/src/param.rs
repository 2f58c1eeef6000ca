//! Parameters of an operation, which a model may keep in `f32` beside activations in a smaller type.

use cudarc::driver::DevicePtr;
use lookback_device::{DType, Element};

/// A parameter tensor (bias, norm weight) that is absent, or of the activations' type `T`, or `f32`.
#[derive(Clone, Copy)]
pub enum Param<'a, T> {
    /// No such parameter.
    None,
    /// Of the activations' type.
    Same(&'a dyn DevicePtr<T>),
    /// In `f32`.
    F32(&'a dyn DevicePtr<f32>),
}

impl<T: Element> Param<'_, T> {
    /// Element type, if present.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Param::None => None,
            Param::Same(_) => Some(T::DTYPE),
            Param::F32(_) => Some(DType::F32),
        }
    }

    /// Elements; 0 when absent.
    pub fn len(&self) -> usize {
        match self {
            Param::None => 0,
            Param::Same(slice) => slice.len(),
            Param::F32(slice) => slice.len(),
        }
    }

    /// Whether it is absent or has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
