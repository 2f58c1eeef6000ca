//! Parameters of a layer norm.

use crate::checkpoint::Checkpoint;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_device::{Element, Result};
use lookback_nn::residual_norm;
use std::sync::Arc;

/// Weight and bias on the device.
pub(crate) struct LayerNorm {
    weight: CudaSlice<f32>,
    bias: CudaSlice<f32>,
}

impl LayerNorm {
    /// The tensors `{name}.weight` and `{name}.bias`, or `{name}.gamma` and `{name}.beta` as older files have them.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, name: &str, width: usize) -> Result<Self> {
        let load = |new: &str, old: &str| {
            let (new, old) = (format!("{name}.{new}"), format!("{name}.{old}"));
            file.upload(stream, if file.contains(&old) { &old } else { &new }, &[width])
        };
        Ok(Self { weight: load("weight", "gamma")?, bias: load("bias", "beta")? })
    }

    /// The norm of a residual, or of `x`.
    pub fn inputs<'a, T: Element>(&'a self, x: Option<&'a CudaSlice<T>>) -> residual_norm::Inputs<'a, T> {
        let x = x.map(|x| x as _);
        residual_norm::Inputs { residual: None, x, weight: Some(&self.weight), bias: Some(&self.bias) }
    }
}
