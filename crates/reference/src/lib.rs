//! Naive CPU maths in f64: one readable loop per operation, the oracle of every test.
//!
//! Tensors are dense slices; strides, element types and memory are the business of what is tested. Inputs come already rounded
//! to the element type of the operation, so that only its own errors are left.

pub mod activation;
pub mod argmax;
pub mod attention;
pub mod bert;
pub mod copy_rows;
pub mod cross_entropy;
pub mod decay_gate;
pub mod e4m3;
pub mod embedding;
pub mod flow_attention;
pub mod gate;
pub mod gated_rms_norm;
pub mod gated_scan;
pub mod gated_ssm;
pub mod gemm;
pub mod gla;
pub mod head_scale;
pub mod hydra;
pub mod jrt;
pub mod kv_append;
pub mod layers;
pub mod lean_decode;
pub mod lightnet;
pub mod linear_attention;
pub mod llama;
pub mod log_cumsum_exp;
pub mod mamba2;
pub mod measure;
pub mod pool;
pub mod residual_norm;
pub mod rms_norm;
pub mod rotary;
pub mod short_convolution;
pub mod time_reduce;
