//! Sequence models made of lookback's kernels: configuration, weights, prefill and step

pub mod config;
pub mod flags;
pub mod phonebook;
pub mod weights;
