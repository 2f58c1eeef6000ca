//! `linear_attention_step`.

use super::{
    Case, Inputs, Operation, Values, for_dtype,
    inputs::{AttributeSpec, optional, required},
    wave,
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{
    DType, Element,
    cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut},
};
use lookback_linear::{Decay, Options, Read, Shape, step};
use lookback_reference::linear_attention as reference;

const READ: AttributeSpec = AttributeSpec {
    name: "read",
    values: "inclusive|exclusive_bonus",
    default: "inclusive",
    about: "whether the token is added before it reads, or after, with the bonus u for itself",
};
const SCALE: AttributeSpec =
    AttributeSpec { name: "scale", values: "a number", default: "1/sqrt(K)", about: "factor of what a query reads" };

/// One token of decoding.
pub static LINEAR_ATTENTION_STEP: Operation = Operation {
    name: "linear_attention_step",
    about: "one token of every sequence: S = diag(e^g) S + k v^T, o = scale S^T q; with z, o is divided by scale q.z + eps",
    inputs: &[
        required("q", "T", "[B,Q,K]", "queries; H is a multiple of Q"),
        required("k", "T", "[B,G,K]", "keys; H is a multiple of G"),
        required("v", "T", "[B,H,V]", "values"),
        optional("g", "f32", "[H]|[B,H]|[B,H,K]", "log-decays, at most 0; without, none"),
        optional("u", "f32", "[H,K]", "bonus of the token itself, with read=exclusive_bonus"),
        required("s0", "f32", "[B,H,K,V]", "states"),
        optional("z0", "f32", "[B,H,K]", "sums of keys; with them the output is normalised"),
    ],
    attributes: &[
        READ,
        SCALE,
        AttributeSpec { name: "eps", values: "a number", default: "0", about: "added to the denominator, with z0" },
    ],
    outputs: &[
        required("o", "T", "[B,H,V]", "what the queries read"),
        required("s_final", "f32", "[B,H,K,V]", "states with the token"),
        optional("z_final", "f32", "[B,H,K]", "sums of keys with the token"),
        optional("den", "f32", "[B,H]", "what o was divided by"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Shape and options of the user's tensors.
fn settings(inputs: &Inputs) -> Result<(Shape, Options)> {
    let [batch, query_heads, key_heads, heads, key_dim, value_dim] =
        ['B', 'Q', 'G', 'H', 'K', 'V'].map(|letter| inputs.extent(letter));
    let shape = Shape { query_heads, key_heads, ..Shape::dense(batch, 1, heads, key_dim, value_dim) };
    let read = inputs.choose("read", &[("inclusive", Read::Inclusive), ("exclusive_bonus", Read::ExclusiveBonus)])?;
    let decay = match inputs.optional("g").map(|g| g.shape.len()) {
        None => Decay::None,
        Some(1) => Decay::Head,
        Some(2) => Decay::Scalar,
        Some(_) => Decay::Vector,
    };
    let scale = if inputs.is_set("scale") { inputs.number("scale", f32::MIN)? } else { default_scale(key_dim) };
    let normalize = inputs.optional("z0").map(|_| inputs.number("eps", 0.0)).transpose()?;
    let options = Options { dtype: inputs.dtype, decay, read, scale, normalize, ..Options::new::<f32>(&shape) };
    Ok((shape, options))
}

fn default_scale(key_dim: usize) -> f32 {
    1.0 / (key_dim.max(1) as f32).sqrt()
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let (shape, options) = settings(inputs)?;
    let elements = |name| session.upload(&inputs.tensor(name)?.as_elements::<T>());
    let singles = |name| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
    let (q, k, v) = (elements("q")?, elements("k")?, elements("v")?);
    let (g, u, mut z) = (singles("g")?, singles("u")?, singles("z0")?);
    let mut state = session.upload(&inputs.tensor("s0")?.as_elements::<f32>())?;
    let Shape { batch, heads, key_dim, value_dim, .. } = shape;
    let mut o = session.zeros::<T>(batch * heads * value_dim)?;
    let mut den = z.as_ref().map(|_| session.zeros::<f32>(batch * heads)).transpose()?;
    fn some(slice: &Option<CudaSlice<f32>>) -> Option<&dyn DevicePtr<f32>> {
        slice.as_ref().map(|s| s as &dyn DevicePtr<f32>)
    }
    let tensors = step::Inputs { q: &q, k: &k, v: &v, g: some(&g), bonus: some(&u) };
    let outputs = step::Outputs {
        state: &mut state,
        z: z.as_mut().map(|z| z as &mut dyn DevicePtrMut<f32>),
        o: &mut o,
        den: den.as_mut().map(|d| d as &mut dyn DevicePtrMut<f32>),
    };
    step::Plan::new(&shape, &options, &session.info)?.run(&session.stream, &tensors, outputs)?;
    let mut out = Tensors::from([
        ("o".into(), Tensor::elements(&[batch, heads, value_dim], &session.download::<T>(&o)?)),
        ("s_final".into(), Tensor::elements(&[batch, heads, key_dim, value_dim], &session.download(&state)?)),
    ]);
    if let (Some(z), Some(den)) = (z, den) {
        out.insert("z_final".into(), Tensor::elements(&[batch, heads, key_dim], &session.download(&z)?));
        out.insert("den".into(), Tensor::elements(&[batch, heads], &session.download(&den)?));
    }
    Ok(out)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let (shape, options) = settings(inputs)?;
    let [q, k, v] = ["q", "k", "v"].map(|name| inputs.tensor(name).map(Tensor::to_f64));
    let (q, k, v) = (q?, k?, v?);
    let [g, u, s0, z0] = ["g", "u", "s0", "z0"].map(|name| inputs.values(name));
    let attention = reference::Attention {
        batch: shape.batch,
        seq_len: 1,
        heads: shape.heads,
        q_heads: shape.query_heads,
        k_heads: shape.key_heads,
        key_dim: shape.key_dim,
        value_dim: shape.value_dim,
        mode: reference::Mode::Causal,
        read: match options.read {
            Read::ExclusiveBonus => reference::Read::ExclusiveBonus,
            _ => reference::Read::Inclusive,
        },
        scale: f64::from(options.scale),
        normalize: options.normalize.map(f64::from),
        flags: None,
        cu_seqlens: None,
        prefix_len: None,
    };
    let decay = match (options.decay, &g) {
        (Decay::Head, Some(g)) => reference::Decay::Head(g),
        (Decay::Scalar, Some(g)) => reference::Decay::Scalar(g),
        (Decay::Vector, Some(g)) => reference::Decay::Vector(g),
        _ => reference::Decay::None,
    };
    let tensors = reference::Inputs {
        q: &q,
        k: &k,
        v: &v,
        decay,
        u: u.as_deref(),
        s0: s0.as_deref(),
        z0: z0.as_deref(),
        reverse: None,
    };
    let out = reference::forward(&attention, &tensors);
    let mut values = Values::from([("o".into(), out.o), ("s_final".into(), out.s_final)]);
    if options.normalize.is_some() {
        values.insert("z_final".into(), out.z_final);
        values.insert("den".into(), out.den);
    }
    Ok(values)
}

fn cases(dtype: DType) -> Vec<Case> {
    [(2, 4, 64, 64, 1, ""), (1, 2, 33, 20, 2, "z0"), (2, 2, 128, 50, 3, "u")]
        .map(|(b, h, k, v, g_dims, extra)| {
            let floats = |dtype, phase: f64, shape: &[usize]| {
                let values = wave(phase, shape.iter().product());
                // Sums of positive keys, so that the denominator stays away from 0.
                let values: Vec<f64> = if extra == "z0" { values.iter().map(|x| 1.5 + x).collect() } else { values };
                Tensor::floats(dtype, shape, &values)
            };
            let shapes = [vec![h], vec![b, h], vec![b, h, k]];
            let g_shape: &[usize] = &shapes[g_dims - 1];
            let g: Vec<f64> = wave(4.0, g_shape.iter().product()).iter().map(|x| 0.5 * x - 0.5).collect();
            let mut tensors = Tensors::from([
                ("q".into(), floats(dtype, 1.0, &[b, h, k])),
                ("k".into(), floats(dtype, 2.0, &[b, h / 2, k])),
                ("v".into(), floats(dtype, 3.0, &[b, h, v])),
                ("g".into(), Tensor::floats(DType::F32, g_shape, &g)),
                ("s0".into(), floats(DType::F32, 5.0, &[b, h, k, v])),
            ]);
            let mut attributes = Vec::new();
            match extra {
                "z0" => {
                    tensors.insert("z0".into(), floats(DType::F32, 6.0, &[b, h, k]));
                    attributes.push("eps=0.001".into());
                }
                "u" => {
                    tensors.insert("u".into(), floats(DType::F32, 7.0, &[h, k]));
                    attributes.push("read=exclusive_bonus".into());
                }
                _ => {}
            }
            Case { name: format!("{b}x{h}x{k}x{v} {extra}").trim_end().into(), tensors, attributes }
        })
        .into()
}
