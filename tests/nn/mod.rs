//! The nn operations against the f64 oracle: sizes, strides, alignments, element types, NaN, and what the host rejects.

#![allow(non_snake_case)] // operation__condition

mod argmax;
mod copy_rows;
mod counters;
mod cross_entropy;
mod decay_gate;
mod embedding;
mod gate;
mod gated_rms_norm;
mod gated_rms_norm_backward;
mod gemm;
mod head_scale;
mod modes;
mod mutants;
mod norm_mutants;
mod pool;
mod residual_norm;
mod residual_norm_backward;
mod rms_norm;
mod rotary;
mod short_convolution;
mod short_convolution_backward;
mod support;
mod taylor_map;
