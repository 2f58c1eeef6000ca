//! `time_reduce`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_linear::{
    Shape, check,
    time_reduce::{self, Map, Options, Reduced},
};
use lookback_reference::time_reduce as reference;

/// Queries.
pub const Q: TensorSpec = optional("q", "T", "[B,T,Q,K]", "queries; H is a multiple of Q; without, nothing is read");
/// Keys.
pub const K: TensorSpec = required("k", "T", "[B,T,G,K]", "keys; H is a multiple of G");
/// Values.
pub const V: TensorSpec = required("v", "T", "[B,T,H,V]", "values");
/// Packed sequences.
pub const CU_SEQLENS: TensorSpec =
    optional("cu_seqlens", "i32", "[N+1]", "starts of packed sequences and their end; B must be 1");
/// Prefixes.
pub const PREFIX_LEN: TensorSpec = optional("prefix_len", "i32", "[M]", "tokens of each sequence that are summed");
/// Feature map.
pub const MAP: AttributeSpec = AttributeSpec {
    name: "map",
    values: "identity|elu|relu|exp|softmax|taylor",
    default: "identity",
    about: "features of q and k; elu is elu + 1, softmax is that of k over time, taylor of second order",
};
/// Factor of a read.
pub const SCALE: AttributeSpec =
    AttributeSpec { name: "scale", values: "a number", default: "1", about: "factor of what a query reads" };
/// Normaliser.
pub const NORMALIZE: AttributeSpec = AttributeSpec {
    name: "normalize",
    values: "a number",
    default: "none",
    about: "divide by scale phi(q) . ksum plus this number",
};

/// All tokens at once.
pub static TIME_REDUCE: Operation = Operation {
    name: "time_reduce",
    about: "KV = sum over t of phi(k[t]) v[t]^T, ksum = sum of phi(k[t]), o[t] = scale phi(q[t])^T KV",
    inputs: &[Q, K, V, CU_SEQLENS, PREFIX_LEN],
    attributes: &[MAP, SCALE, NORMALIZE],
    outputs: &[
        optional("o", "T", "[B,T,H,V]", "what the queries read"),
        optional("den", "f32", "[B,T,H]", "what o was divided by, with normalize"),
        required("kv", "f32", "[N,H,F,V]", "sums of features times values; F = 153 for taylor, else K"),
        required("ksum", "f32", "[N,H,F]", "sums of features; for softmax the logarithm of the sum of e^k"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Shape and options of the user's tensors.
pub fn settings(inputs: &Inputs) -> Result<(Shape, Options)> {
    let [batch, tokens, query_heads, key_heads, heads, key_dim, value_dim] =
        ['B', 'T', 'Q', 'G', 'H', 'K', 'V'].map(|letter| inputs.extent(letter));
    let dense = Shape::dense(batch, tokens, heads, key_dim, value_dim);
    let query_heads = if inputs.optional("q").is_some() { query_heads } else { heads };
    let shape = Shape { query_heads, key_heads, ..dense };
    let shape = match inputs.optional("cu_seqlens") {
        Some(starts) => {
            let starts = starts.as_indices();
            if batch != 1 || starts.len() < 2 {
                let why = format!("wants B = 1 and at least 2 entries, got B = {batch} and {}", starts.len());
                return Err(inputs.wrong("cu_seqlens", why));
            }
            check::cu_seqlens(&starts, tokens)?;
            Shape { packed: Some(starts.len() - 1), ..shape }
        }
        None => shape,
    };
    if let Some(prefix) = inputs.optional("prefix_len")
        && prefix.shape[0] != shape.sequences()
    {
        let why = format!("must have {} entries, one a sequence, got {}", shape.sequences(), prefix.shape[0]);
        return Err(inputs.wrong("prefix_len", why));
    }
    let map = inputs.choose(
        "map",
        &[
            ("identity", Map::Identity),
            ("elu", Map::EluPlusOne),
            ("relu", Map::Relu),
            ("exp", Map::Exp),
            ("softmax", Map::Softmax),
            ("taylor", Map::Taylor),
        ],
    )?;
    let normalize = inputs.is_set("normalize").then(|| inputs.number("normalize", f32::MIN)).transpose()?;
    let options = Options { scale: inputs.number("scale", f32::MIN)?, normalize, ..Options::new(inputs.dtype, map) };
    Ok((shape, options))
}

fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
    slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = settings(inputs)?;
    let elements = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<T>())).transpose();
    let indices = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
    let (q, starts, prefix) = (elements("q")?, indices("cu_seqlens")?, indices("prefix_len")?);
    let k = session.upload(&inputs.tensor("k")?.as_elements::<T>())?;
    let v = session.upload(&inputs.tensor("v")?.as_elements::<T>())?;
    let Shape { batch, seq_len, heads, value_dim, .. } = shape;
    let (sequences, features) = (shape.sequences(), options.map.features(shape.key_dim));
    let tensors =
        time_reduce::Inputs { q: some(&q), k: &k, v: &v, cu_seqlens: some(&starts), prefix_len: some(&prefix) };
    let Reduced { o, den, kv, ksum } = time_reduce::time_reduce(&session.stream, &shape, &options, &tensors)?;
    let mut out = Tensors::from([
        ("kv".into(), Tensor::elements(&[sequences, heads, features, value_dim], &session.download(&kv)?)),
        ("ksum".into(), Tensor::elements(&[sequences, heads, features], &session.download(&ksum)?)),
    ]);
    if let Some(o) = o {
        out.insert("o".into(), Tensor::elements(&[batch, seq_len, heads, value_dim], &session.download::<T>(&o)?));
    }
    if let Some(den) = den {
        out.insert("den".into(), Tensor::elements(&[batch, seq_len, heads], &session.download(&den)?));
    }
    Ok(out)
}

/// The same for the reference, with its starts and prefixes.
pub fn with_reference<R>(inputs: &Inputs, call: impl FnOnce(&reference::Reduce<'_>) -> R) -> Result<R> {
    let (shape, options) = settings(inputs)?;
    let [starts, prefix] = ["cu_seqlens", "prefix_len"].map(|name| inputs.optional(name).map(Tensor::as_indices));
    Ok(call(&reference::Reduce {
        batch: shape.batch,
        seq_len: shape.seq_len,
        heads: shape.heads,
        q_heads: shape.query_heads,
        k_heads: shape.key_heads,
        key_dim: shape.key_dim,
        value_dim: shape.value_dim,
        map: match options.map {
            Map::Identity => reference::Map::Identity,
            Map::EluPlusOne => reference::Map::EluPlusOne,
            Map::Relu => reference::Map::Relu,
            Map::Exp => reference::Map::Exp,
            Map::Softmax => reference::Map::Softmax,
            Map::Taylor => reference::Map::Taylor,
        },
        scale: f64::from(options.scale),
        normalize: options.normalize.map(f64::from),
        cu_seqlens: starts.as_deref(),
        prefix_len: prefix.as_deref(),
    }))
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (shape, _) = settings(inputs)?;
    let (k, v) = (inputs.tensor("k")?.to_f64(), inputs.tensor("v")?.to_f64());
    let q = inputs.values("q");
    let none = vec![0.0; shape.batch * shape.seq_len * shape.query_heads * shape.key_dim];
    let out = with_reference(inputs, |p| reference::forward(p, q.as_ref().unwrap_or(&none), &k, &v))?;
    let mut values = Values::from([("kv".into(), out.kv), ("ksum".into(), out.ksum)]);
    if q.is_some() {
        values.insert("o".into(), out.o);
        if !out.den.is_empty() {
            values.insert("den".into(), out.den);
        }
    }
    Ok(values)
}

/// Sizes of the cases of `check`: rows, tokens, heads, their queries and keys, K, V, map, normaliser, packed.
type Size = (usize, usize, [usize; 3], usize, usize, &'static str, bool, bool);

/// The cases.
pub const SIZES: [Size; 5] = [
    (2, 70, [2, 2, 2], 64, 64, "identity", false, false),
    (1, 300, [2, 1, 2], 48, 40, "elu", true, false),
    (1, 90, [2, 2, 1], 32, 64, "softmax", false, true),
    (1, 90, [2, 2, 2], 16, 64, "taylor", true, true),
    (2, 33, [1, 1, 1], 24, 32, "exp", true, false),
];

/// Tensors and attributes of one size.
pub fn case(dtype: DType, size: &Size) -> Case {
    let &(b, t, [h, q, g], k, v, map, normalize, packed) = size;
    let floats = |phase, shape: &[usize]| Tensor::floats(dtype, shape, &wave(phase, shape.iter().product()));
    let mut tensors = Tensors::from([
        ("q".into(), floats(1.0, &[b, t, q, k])),
        ("k".into(), floats(2.0, &[b, t, g, k])),
        ("v".into(), floats(3.0, &[b, t, h, v])),
    ]);
    if packed {
        tensors.insert("cu_seqlens".into(), Tensor::indices(&[4], &[0, 20, 20, t as i32]));
        tensors.insert("prefix_len".into(), Tensor::indices(&[3], &[12, 3, 1000]));
    }
    let mut attributes = vec![format!("map={map}"), "scale=0.5".into()];
    if normalize {
        attributes.push("normalize=0.25".into());
    }
    Case { name: format!("{map} {b}x{t}x{h} {k}x{v}"), tensors, attributes }
}

fn cases(dtype: DType) -> Vec<Case> {
    SIZES.iter().map(|size| case(dtype, size)).collect()
}
