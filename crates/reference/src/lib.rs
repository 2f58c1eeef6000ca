//! Naive CPU maths in f64: one readable loop per operation, the oracle of every test

pub mod gated_scan;
pub mod measure;
