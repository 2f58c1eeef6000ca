//! Sequence models made of lookback's kernels: configuration, weights, prefill and step

pub mod phonebook;
