//! The operations of `lookback run` and `lookback check`: each names its tensors and attributes, runs on the device, and
//! has an oracle in f64.

mod inputs;

pub use inputs::{AttributeSpec, Inputs, Operation, TensorSpec, optional, required};
