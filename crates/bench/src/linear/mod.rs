//! Linear attention: along time, over all tokens at once, token by token, and with flows that are conserved.

mod backward;
mod flow;
mod forward;
mod step;
mod time_reduce;

use crate::{Case, Facts, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Result, cudarc::driver::CudaSlice};
use lookback_linear::{Decay, Inputs, Mode, Options, Shape};

/// Every operation of the family, in bf16.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let mut cases = forward::cases(info, scale);
    cases.extend(backward::cases(info, scale));
    cases.extend(step::cases(info, scale));
    cases.extend(time_reduce::cases(info, scale));
    cases.extend(flow::cases(info, scale));
    cases
}

/// Extents by name. Heads that share queries and keys are told.
fn facts(operation: &'static str, what: &str, dtype: &'static str, shape: &Shape) -> Facts {
    let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, .. } = *shape;
    let mut extents = vec![("batch", batch), ("tokens", seq_len), ("heads", heads)];
    if query_heads != heads || key_heads != heads {
        extents.push(("key_heads", key_heads));
    }
    extents.extend([("key_dim", key_dim), ("value_dim", value_dim)]);
    Facts::new("linear", operation, what, dtype, &extents)
}

/// Bytes of initial and final states, which no case gives or wants, but which plans count.
fn unwanted_states(shape: &Shape, options: &Options) -> u64 {
    let keys = options.features.width(shape.key_dim);
    let states = [shape.sequences(), shape.heads, keys, shape.value_dim].iter().product::<usize>() as u64 * 4;
    if options.mode == Mode::Bidirectional { 4 * states } else { 2 * states }
}

/// Queries, keys and values with log-decays.
struct Tensors {
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    g: Option<CudaSlice<f32>>,
    prefix_len: Option<CudaSlice<i32>>,
}

impl Tensors {
    fn new(memory: &mut Memory, shape: &Shape, options: &Options) -> Result<Self> {
        let Shape { batch, seq_len, heads, query_heads, key_heads, key_dim, value_dim, .. } = *shape;
        let decays: &[usize] = match options.decay {
            Decay::None => &[],
            Decay::Head => &[heads],
            Decay::Scalar => &[batch, seq_len, heads],
            Decay::Vector => &[batch, seq_len, heads, key_dim],
        };
        // A quarter of every sequence is read both ways.
        let prefixes = vec![(seq_len / 4) as i32; batch];
        Ok(Self {
            q: memory.normal("q", &[batch, seq_len, query_heads, key_dim])?,
            k: memory.normal("k", &[batch, seq_len, key_heads, key_dim])?,
            v: memory.normal("v", &[batch, seq_len, heads, value_dim])?,
            // As a sigmoid's logarithm over 16 gives.
            g: match decays {
                [] => None,
                decays => Some(memory.between("g", decays, [-0.1, 0.0])?),
            },
            prefix_len: match options.mode {
                Mode::PrefixRead => Some(memory.values("prefix_len", &prefixes)?),
                _ => None,
            },
        })
    }

    fn inputs(&self) -> Inputs<'_, bf16> {
        let mut inputs = Inputs::of(&self.q, &self.k, &self.v);
        inputs.g = self.g.as_ref().map(|g| g as _);
        inputs.prefix_len = self.prefix_len.as_ref().map(|len| len as _);
        inputs
    }
}
