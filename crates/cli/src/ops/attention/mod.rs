//! `attention`.

pub mod backward;
mod cases;
pub mod setting;

pub use cases::cases;
use setting::{Reference, Setting, Uploaded};

use super::{
    Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_attention::{Options, Output, attention};
use lookback_device::Element;
use lookback_reference::attention as reference;

/// Inputs of the forward pass.
pub const INPUTS: &[TensorSpec] = &[
    required("q", "T", "[B,T,H,D]", "queries, f16 or bf16; D and V are multiples of 8, at most 256"),
    required("k", "T", "[B,S,G,D]", "keys; G divides H, and H / G neighbouring heads share one"),
    required("v", "T", "[B,S,G,V]", "values"),
    optional("cu_seqlens_q", "i32", "[N+1]", "starts of packed sequences of queries and their end, T; B must be 1"),
    optional("cu_seqlens_k", "i32", "[N+1]", "the same of keys, with their end S; goes with cu_seqlens_q"),
    optional(
        "prefix_len",
        "i32",
        "[N]",
        "keys that all rows of a sequence see, with mask=prefix; N is B without packing",
    ),
    optional("intervals", "i32", "[B,T,4]", "a_lo a_hi b_lo b_hi: keys that a row sees, with mask=intervals"),
    optional("key_mask", "u8", "[B,S]", "a key where it is 0 is seen by no row"),
    optional("alibi_slopes", "f32", "[H]", "slope (j - p) is added to the logit of key j, p the query's position"),
    optional("sink", "f32", "[H]", "one more logit of every row, without a value; counts in lse"),
];

/// Which keys a query sees.
pub const MASK: AttributeSpec = AttributeSpec {
    name: "mask",
    values: "full|causal|anti_causal|prefix|window|intervals",
    default: "full",
    about: "which keys a query sees",
};
/// How far back a window reaches.
pub const LEFT: AttributeSpec =
    AttributeSpec { name: "left", values: "all|a number", default: "all", about: "keys back, with mask=window" };
/// How far ahead it reaches.
pub const RIGHT: AttributeSpec =
    AttributeSpec { name: "right", values: "all|a number", default: "0", about: "keys ahead, with mask=window" };
/// What is seen besides a window.
pub const SINK_TOKENS: AttributeSpec = AttributeSpec {
    name: "sink_tokens",
    values: "a number",
    default: "0",
    about: "first keys that all rows see besides, with mask=window",
};
/// Where queries stand.
pub const OFFSET: AttributeSpec = AttributeSpec {
    name: "offset",
    values: "a number",
    default: "keys less queries",
    about: "position of a sequence's first query among its keys",
};
/// Factor of the products.
pub const SCALE: AttributeSpec =
    AttributeSpec { name: "scale", values: "a number", default: "1/sqrt(D)", about: "factor of q . k" };
/// Bound of the logits.
pub const SOFTCAP: AttributeSpec = AttributeSpec {
    name: "softcap",
    values: "none|a number",
    default: "none",
    about: "logits become cap tanh(logit / cap)",
};
const OUT: AttributeSpec = AttributeSpec { name: "out", values: "same|f32", default: "same", about: "type of o" };

/// `o = softmax(scale q k^T) v` over the keys that a query sees.
pub static ATTENTION: Operation = Operation {
    name: "attention",
    about: "o[i] = sum_j exp(x[i,j] - lse[i]) v[j] over the keys that query i sees, x = scale q . k, lse[i] = ln sum_j exp x[i,j]",
    inputs: INPUTS,
    attributes: &[MASK, LEFT, RIGHT, SINK_TOKENS, OFFSET, SCALE, SOFTCAP, OUT],
    outputs: &[
        required("o", "T", "[B,T,H,V]", "f32 with out=f32; 0 where a row sees nothing"),
        required("lse", "f32", "[B,T,H]", "minus infinity where a row sees nothing"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    match inputs.choose("out", &[("same", Output::Same), ("f32", Output::F32)])? {
        Output::F32 => run_into::<T, f32>(session, inputs, Output::F32),
        output => run_into::<T, T>(session, inputs, output),
    }
}

fn run_into<T: Element, O: Element>(session: &Session, inputs: &Inputs, output: Output) -> Result<Tensors> {
    let setting = Setting::of::<T>(inputs)?;
    let options = Options { output, ..setting.options };
    let tensors = Uploaded::<T>::new(session, inputs, &setting)?;
    let out = attention::<T, O>(&session.stream, &setting.shape, &options, &tensors.inputs())?;
    let rows = setting.output();
    Ok(Tensors::from([
        ("o".into(), Tensor::elements(&rows, &session.download::<O>(&out.o)?)),
        ("lse".into(), Tensor::elements(&rows[..3], &session.download::<f32>(&out.lse)?)),
    ]))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let of = Reference::new(inputs)?;
    let out = reference::forward(&of.attention(), &of.inputs());
    Ok(Values::from([("o".into(), out.o), ("lse".into(), out.lse)]))
}
