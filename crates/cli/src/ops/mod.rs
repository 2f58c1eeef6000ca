//! The operations of `lookback run` and `lookback check`: each names its tensors and attributes, runs on the device, and
//! has an oracle in f64.

mod argmax;
mod attention;
mod copy_rows;
mod cross_entropy;
mod dealt;
mod decay_gate;
mod embedding;
mod flow_attention;
mod gate;
mod gated_rms_norm;
mod gated_scan;
mod gemm;
mod head_scale;
mod inputs;
mod kv_append;
mod lean_decode;
mod linear_attention;
mod linear_attention_step;
mod log_cumsum_exp;
mod merge_states;
mod pool;
mod producer_scan;
mod ranks;
mod residual_norm;
mod residual_norm_backward;
mod ring_attention;
mod rms_norm;
mod rotary;
mod short_convolution;
mod short_convolution_backward;
mod taylor_map;
mod time_reduce;
mod time_reduce_backward;

pub use inputs::{AttributeSpec, Case, Inputs, Operation, TensorSpec, Values};

use crate::{CliError, Result};

/// Every operation, in the order of the list.
pub static ALL: &[&Operation] = &[
    &gated_scan::FORWARD,
    &gated_scan::BACKWARD,
    &producer_scan::GATED_SSM,
    &producer_scan::GATED_SSM_BACKWARD,
    &producer_scan::RG_LRU,
    &producer_scan::RG_LRU_BACKWARD,
    &ring_attention::RING_ATTENTION,
    &ring_attention::backward::RING_ATTENTION_BACKWARD,
    &linear_attention::LINEAR_ATTENTION,
    &linear_attention::backward::LINEAR_ATTENTION_BACKWARD,
    &linear_attention_step::LINEAR_ATTENTION_STEP,
    &time_reduce::TIME_REDUCE,
    &time_reduce_backward::TIME_REDUCE_BACKWARD,
    &flow_attention::FLOW_ATTENTION,
    &flow_attention::FLOW_ATTENTION_BACKWARD,
    &attention::ATTENTION,
    &attention::backward::ATTENTION_BACKWARD,
    &log_cumsum_exp::FORWARD,
    &log_cumsum_exp::BACKWARD,
    &log_cumsum_exp::LIGHT_NET_GATES,
    &log_cumsum_exp::LIGHT_NET_GATES_BACKWARD,
    &merge_states::MERGE_STATES,
    &lean_decode::LEAN_DECODE,
    &kv_append::KV_APPEND,
    &gemm::GEMM,
    &rms_norm::RMS_NORM,
    &residual_norm::RESIDUAL_NORM,
    &residual_norm_backward::RESIDUAL_NORM_BACKWARD,
    &embedding::EMBEDDING,
    &pool::POOL,
    &gate::GATE,
    &gated_rms_norm::GATED_RMS_NORM,
    &gated_rms_norm::GATED_RMS_NORM_BACKWARD,
    &short_convolution::SHORT_CONVOLUTION,
    &short_convolution_backward::SHORT_CONVOLUTION_BACKWARD,
    &rotary::ROTARY,
    &rotary::ROTARY_BACKWARD,
    &decay_gate::DECAY_GATE,
    &head_scale::HEAD_SCALE,
    &copy_rows::COPY_ROWS,
    &taylor_map::TAYLOR_MAP,
    &argmax::ARGMAX,
    &cross_entropy::CROSS_ENTROPY,
];

/// The operation of that name.
pub fn find(name: &str) -> Result<&'static Operation> {
    ALL.iter().find(|o| o.name == name).copied().ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|o| o.name).collect();
        CliError::Input(format!("no operation is named `{name}`; the operations are {}", names.join(", ")))
    })
}

/// Calls a function that is generic over the element type.
macro_rules! for_dtype {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            lookback_device::DType::F32 => $function::<f32>($($argument),*),
            lookback_device::DType::F16 => $function::<half::f16>($($argument),*),
            lookback_device::DType::Bf16 => $function::<half::bf16>($($argument),*),
        }
    };
}
use for_dtype;

/// Values of a check: smooth, of both signs, never the same twice in a row, the same on every machine.
fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64 + 0.3 * ((i * i) % 7) as f64).sin()).collect()
}
