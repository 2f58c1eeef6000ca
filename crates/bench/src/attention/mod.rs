//! Softmax attention in blocks: forward, backward, and the merging of states.

mod backward;
mod merge;

use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_attention::{Inputs, Mask, Options, Output, Outputs, Plan, Shape};
use lookback_device::{DeviceInfo, Result};

/// `[batch, tokens, heads, key heads, head dimension]`.
type Sizes = [usize; 5];

/// A thousand keys back, and the first four.
const WINDOW: Mask = Mask::Window { left: Some(1023), right: Some(0), sink_tokens: 4 };

/// What models and rings ask for, in bf16.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    let full = scale == Scale::Full;
    let forward_cases = match scale {
        Scale::Full => vec![
            ([1, 2048, 64, 8, 128], Mask::Causal),
            ([1, 4096, 64, 8, 128], Mask::Causal),
            ([1, 8192, 64, 8, 128], Mask::Causal),
            ([1, 16_384, 64, 8, 128], Mask::Causal),
            ([1, 8192, 32, 32, 128], Mask::Causal),
            ([4, 4096, 16, 16, 128], Mask::Causal),
            ([1, 4096, 64, 8, 128], Mask::Full),
            ([1, 8192, 32, 8, 128], Mask::Full),
            ([1, 16_384, 64, 8, 128], Mask::Full),
            ([2, 8192, 64, 8, 64], Mask::Causal),
            ([1, 4096, 32, 8, 64], Mask::Full),
            ([1, 8192, 32, 8, 64], Mask::Full),
            ([1, 16_384, 64, 8, 128], WINDOW),
        ],
        Scale::Small => vec![
            ([1, 256, 2, 1, 64], Mask::Causal),
            ([1, 256, 2, 1, 64], Mask::Full),
            ([1, 256, 2, 1, 128], Mask::Causal),
            ([1, 256, 2, 1, 128], Mask::Full),
        ],
    };
    let step = if full { [1, 8192, 32, 8, 128] } else { [1, 256, 2, 1, 128] };
    let plain = forward_cases.into_iter().map(|(sizes, mask)| forward(info, sizes, mask, Output::Same));
    let stepped = forward(info, step, Mask::Full, Output::Merge);
    plain.chain([stepped]).chain(backward::cases(info, scale)).chain(merge::cases(info, scale)).collect()
}

fn shape([batch, tokens, heads, key_heads, dim]: Sizes) -> Shape {
    Shape { key_heads, ..Shape::dense(batch, tokens, tokens, heads, dim) }
}

fn facts(operation: &'static str, what: &str, [batch, tokens, heads, key_heads, dim]: Sizes, mask: Mask) -> Facts {
    let mask = match mask {
        Mask::Full => "full",
        Mask::Causal => "causal",
        _ => "window",
    };
    let what = if what.is_empty() { mask.to_string() } else { format!("{mask}, {what}") };
    let extents = [("batch", batch), ("tokens", tokens), ("heads", heads), ("key_heads", key_heads), ("head_dim", dim)];
    Facts::new("attention", operation, &what, "bf16", &extents)
}

/// Extents of queries and of keys.
fn extents([batch, tokens, heads, key_heads, dim]: Sizes) -> [[usize; 4]; 2] {
    [heads, key_heads].map(|heads| [batch, tokens, heads, dim])
}

fn forward(info: &DeviceInfo, sizes: Sizes, mask: Mask, output: Output) -> Case {
    let shape = shape(sizes);
    let options = Options { mask, output, ..Options::new::<bf16>(&shape) };
    let plan = Plan::new(&shape, &options, info);
    let merges = output == Output::Merge;
    let maker = move |plan: Plan, memory: &mut Memory| -> Result<Launch> {
        let [rows, keys] = extents(sizes);
        let mut sets = memory.sets(|memory| {
            let q = memory.normal::<bf16>("q", &rows)?;
            let [k, v] = ["k", "v"].map(|name| memory.normal::<bf16>(name, &keys));
            // The state before has the weight of one more key or so.
            let (same, merged, lse) = match merges {
                true => (None, Some(memory.state::<f32>("o", &rows)?), memory.state::<f32>("lse", &rows[..3])?),
                false => (Some(memory.output::<bf16>("o", &rows)?), None, memory.output::<f32>("lse", &rows[..3])?),
            };
            Ok(([q, k?, v?], same, merged, lse))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let ([q, k, v], same, merged, lse) = &mut sets[set];
            let inputs = Inputs::of(q, k, v);
            match (same, merged) {
                (Some(o), _) => plan.run(&stream, &inputs, Outputs::with_lse(o, lse)),
                (None, Some(o)) => plan.run(&stream, &inputs, Outputs::with_lse(o, lse)),
                (None, None) => Ok(()),
            }
        }))
    };
    let what = if merges { "merged" } else { "" };
    let work = |plan: &Plan| [plan.bytes_moved(), plan.flops()];
    Case::planned(facts("attention", what, sizes, mask), plan, work, maker)
}
