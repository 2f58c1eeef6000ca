//! What mixes neighbouring tokens or knows where they stand.

use crate::{Case, Facts, Launch, Memory, Scale};
use half::bf16;
use lookback_device::{DeviceInfo, Element, Result};
use lookback_nn::{Activation, rotary, short_convolution};

/// Convolutions of Mamba and of Hydra, positions of a Llama.
pub fn cases(info: &DeviceInfo, scale: Scale) -> Vec<Case> {
    // Rows, tokens, channels.
    let (many, long, centred, heads) = match scale {
        Scale::Full => ([8, 2048, 10_240], [1, 16_384, 8448], [1, 8192, 4096], [1, 8192, 32]),
        Scale::Small => ([2, 128, 256], [1, 300, 264], [1, 256, 512], [1, 256, 4]),
    };
    vec![
        convolution(info, many, 4, false),
        convolution(info, long, 4, false),
        convolution(info, centred, 7, true),
        convolution_backward(info, many, 4),
        turned(info, heads, false),
        turned(info, heads, true),
    ]
}

const SILU: short_convolution::Options =
    short_convolution::Options { dtype: bf16::DTYPE, activation: Activation::Silu };

fn convolution_facts(operation: &'static str, what: &str, [batch, tokens, channels]: [usize; 3], taps: usize) -> Facts {
    let extents = [("batch", batch), ("tokens", tokens), ("channels", channels), ("taps", taps)];
    Facts::new("nn", operation, what, "bf16", &extents)
}

fn convolution(info: &DeviceInfo, sizes: [usize; 3], taps: usize, centred: bool) -> Case {
    let [batch, tokens, channels] = sizes;
    let shape = short_convolution::Shape::dense(batch, tokens, channels, taps);
    let plan = short_convolution::Plan::new(&if centred { shape.centred() } else { shape }, &SILU, info);
    let maker = move |plan: short_convolution::Plan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[channels, taps])?;
        let mut sets =
            memory.sets(|memory| Ok((memory.normal::<bf16>("x", &sizes)?, memory.output::<bf16>("out", &sizes)?)))?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, &weight, short_convolution::Inputs::default(), out, None)
        }))
    };
    let facts = convolution_facts("short_convolution", if centred { "centred" } else { "" }, sizes, taps);
    Case::planned(facts, plan, move |_| [rows_and_weights(sizes, taps, 2), 0], maker)
}

/// Bytes of so many tensors and of the weights; states and flags, which plans count, are not given.
fn rows_and_weights(sizes: [usize; 3], taps: usize, tensors: usize) -> u64 {
    2 * (tensors * sizes.iter().product::<usize>() + sizes[2] * taps) as u64
}

fn convolution_backward(info: &DeviceInfo, sizes: [usize; 3], taps: usize) -> Case {
    let [batch, tokens, channels] = sizes;
    let shape = short_convolution::Shape::dense(batch, tokens, channels, taps);
    let plan = short_convolution::BackwardPlan::dense(&shape, &SILU, info);
    let maker = move |plan: short_convolution::BackwardPlan, memory: &mut Memory| -> Result<Launch> {
        let weight = memory.normal::<bf16>("weight", &[channels, taps])?;
        let mut dweight = memory.output::<f32>("dweight", &[channels, taps])?;
        let mut workspace = memory.scratch::<f32>("workspace", plan.workspace_bytes())?;
        let mut sets = memory.sets(|memory| {
            let [x, dout] = ["x", "dout"].map(|name| memory.normal::<bf16>(name, &sizes));
            Ok((x?, dout?, memory.output::<bf16>("dx", &sizes)?))
        })?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, dout, dx) = &mut sets[set];
            let adjoints = short_convolution::Adjoints { dout, dstate_out: None };
            let outputs = short_convolution::Gradients { dx, dweight: Some(&mut dweight), dbias: None, dstate: None };
            let inputs = short_convolution::Inputs::default();
            plan.run(&stream, x, &weight, inputs, adjoints, outputs, &mut workspace)
        }))
    };
    let facts = convolution_facts("short_convolution_backward", "", sizes, taps);
    Case::planned(facts, plan, move |_| [rows_and_weights(sizes, taps, 3), 0], maker)
}

fn turned(info: &DeviceInfo, [batch, tokens, heads]: [usize; 3], backward: bool) -> Case {
    const DIM: usize = 128;
    let options = rotary::Options::new(bf16::DTYPE, rotary::Style::Half, DIM);
    let shape = rotary::Shape::dense(batch, tokens, heads, DIM);
    let (operation, given, wanted, plan) = match backward {
        false => ("rotary", "x", "out", rotary::Plan::new(&shape, &options, info)),
        true => ("rotary_backward", "dout", "dx", rotary::Plan::backward(&shape, &options, info)),
    };
    let maker = move |plan: rotary::Plan, memory: &mut Memory| -> Result<Launch> {
        let rows = [batch, tokens, heads, DIM];
        let mut sets =
            memory.sets(|memory| Ok((memory.normal::<bf16>(given, &rows)?, memory.output::<bf16>(wanted, &rows)?)))?;
        let stream = memory.stream();
        Ok(Box::new(move |set| {
            let (x, out) = &mut sets[set];
            plan.run(&stream, x, rotary::Inputs::default(), out)
        }))
    };
    let extents = [("batch", batch), ("tokens", tokens), ("heads", heads), ("head_dim", DIM)];
    Case::planned(Facts::new("nn", operation, "", "bf16", &extents), plan, |plan| [plan.bytes_moved(), 0], maker)
}
