//! The nn operations against the f64 oracle: sizes, strides, alignments, element types, NaN, and what the host rejects.

#![allow(non_snake_case)] // operation__condition

pub mod argmax;
mod copy_rows;
mod counters;
pub mod cross_entropy;
mod decay_gate;
mod embedding;
mod gate;
pub mod gated_rms_norm;
pub mod gated_rms_norm_backward;
pub mod gemm;
mod head_scale;
mod modes;
mod mutants;
mod norm_mutants;
pub mod pool;
pub mod residual_norm;
pub mod residual_norm_backward;
pub mod rms_norm;
mod rotary;
mod short_convolution;
pub mod short_convolution_backward;
mod support;
pub mod taylor_map;
