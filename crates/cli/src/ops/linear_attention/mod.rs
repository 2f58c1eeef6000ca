//! `linear_attention`.

pub mod backward;
pub mod cases;
mod on_ranks;
pub mod setting;

use setting::{Setting, Uploaded};

use super::{
    Inputs, Operation, Values,
    dealt::{self, Dealt},
    for_dtype,
    inputs::{AttributeSpec, TensorSpec, optional, required},
    ranks::{TIMEOUT, TRANSPORT},
};
use crate::{
    Result,
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::Element;
use lookback_linear::{Decay, Features, Mode, Read, linear_attention};
use lookback_reference::{
    linear_attention::{self as reference, Attention},
    time_reduce::Map,
};

/// Inputs of the forward pass.
pub const INPUTS: &[TensorSpec] = &[
    required("q", "T", "[B,T,Q,K]", "queries; Q divides H, and H / Q neighbouring heads share one"),
    required("k", "T", "[B,T,G,K]", "keys; G divides H likewise; K is at most 256"),
    required("v", "T", "[B,T,H,V]", "values"),
    optional("g", "f32", "[H]|[B,T,H]|[B,T,H,K]", "natural logarithms of the decays, at most 0"),
    optional("u", "f32", "[H,K]", "bonus of read=exclusive_bonus"),
    optional(
        "s0",
        "f32",
        "[N,H,F,V]",
        "initial states; N is B, or the number of packed sequences; F is K, or 153 features",
    ),
    optional("z0", "f32", "[N,H,F]", "initial sums of keys, with normalize"),
    optional(
        "flags",
        "u8",
        "[B,T]",
        "bit 0 cuts the state into this token from the one before, bit 1 from the one after",
    ),
    optional("cu_seqlens", "i32", "[N+1]", "starts of packed sequences and their end, T; B must be 1"),
    optional("prefix_len", "i32", "[N]", "tokens of each prefix, with mode=prefix_read"),
    optional("q_reverse", "T", "[B,T,Q,K]", "queries of the reverse direction of mode=bidirectional; without, q"),
    optional("k_reverse", "T", "[B,T,G,K]", "keys of it; without, k"),
    optional("g_reverse", "f32", "[H]|[B,T,H]|[B,T,H,K]", "log-decays of it; without, g"),
];

/// Attributes of either pass.
pub const ATTRIBUTES: [AttributeSpec; 8] = [
    AttributeSpec {
        name: "features",
        values: "identity|taylor",
        default: "identity",
        about: "what of q and k the state holds; taylor: 153 numbers, for K of 8 or 16 in f16 and bf16, forward only",
    },
    AttributeSpec {
        name: "decay",
        values: "none|head|scalar|vector",
        default: "as g",
        about: "what g is a number of: nothing, a head, a head's token, an entry of its key",
    },
    AttributeSpec {
        name: "read",
        values: "inclusive|exclusive_bonus|shifted",
        default: "inclusive",
        about: "a token reads its own key, reads it by u, or is read one token later",
    },
    AttributeSpec {
        name: "mode",
        values: "causal|reverse|bidirectional|prefix_state|prefix_read|split",
        default: "causal",
        about: "which tokens a token sees",
    },
    AttributeSpec {
        name: "split",
        values: "0 to H",
        default: "H/2",
        about: "with mode=split, heads below are causal, the others reverse",
    },
    AttributeSpec { name: "scale", values: "a number", default: "1/sqrt(K)", about: "factor of every read" },
    AttributeSpec {
        name: "normalize",
        values: "none|a number",
        default: "none",
        about: "divide by scale q.z + this, z the sum of keys that the state holds",
    },
    AttributeSpec { name: "path", values: "auto|recurrent|chain|parallel", default: "auto", about: "which kernels" },
];

/// `o = scale S^T q` on `S = e^g S + k v^T`.
pub static LINEAR_ATTENTION: Operation = Operation {
    name: "linear_attention",
    about: "o[t] = scale S[t]^T q[t] with S[t] = e^g[t] S[t-1] + k[t] v[t]^T, head by head",
    inputs: INPUTS,
    attributes: &{
        let [features, decay, read, mode, split, scale, normalize, path] = ATTRIBUTES;
        let [ranks, schedule, blocks] = [dealt::RANKS, dealt::SCHEDULE, dealt::BLOCKS];
        [features, decay, read, mode, split, scale, normalize, path, ranks, schedule, blocks, TIMEOUT, TRANSPORT]
    },
    outputs: &[
        required("o", "T", "[B,T,H,V]", ""),
        required(
            "s_final",
            "f32",
            "[N,H,F,V]",
            "states after the last visited token; of the forward direction, if both",
        ),
        optional("z_final", "f32", "[N,H,F]", "sums of keys after it, with normalize"),
        optional("den", "f32", "[B,T,H]", "what o was divided by, with normalize"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases: cases::cases,
};

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let setting = Setting::of::<T>(inputs)?;
    if let Some(dealt) = Dealt::of(inputs)? {
        return on_ranks::run::<T>(session, inputs, &setting, &dealt);
    }
    let tensors = Uploaded::<T>::new(session, inputs)?;
    let out = linear_attention(&session.stream, &setting.shape, &setting.options, &tensors.inputs())?;
    let mut named = Tensors::from([
        ("o".into(), Tensor::elements(&setting.output(), &session.download::<T>(&out.o)?)),
        ("s_final".into(), Tensor::elements(&setting.states(), &session.download::<f32>(&out.state)?)),
    ]);
    for (name, slice, dims) in
        [("z_final", &out.normalizer, &setting.states()[..3]), ("den", &out.denominator, &setting.output()[..3])]
    {
        if let Some(slice) = slice {
            named.insert(name.into(), Tensor::elements(dims, &session.download::<f32>(slice)?));
        }
    }
    Ok(named)
}

/// The inputs in f64, for the reference.
pub struct Reference {
    setting: Setting,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    u: Option<Vec<f64>>,
    s0: Option<Vec<f64>>,
    z0: Option<Vec<f64>>,
    flags: Option<Vec<u8>>,
    cu_seqlens: Option<Vec<i32>>,
    prefix_len: Option<Vec<i32>>,
    q_reverse: Vec<f64>,
    k_reverse: Vec<f64>,
    g_reverse: Vec<f64>,
    own_reverse: bool,
}

impl Reference {
    /// From the user's inputs.
    pub fn new(inputs: &Inputs) -> Result<Self> {
        let setting = for_dtype!(inputs.dtype, setting(inputs))?;
        let wanted = |name| inputs.tensor(name).map(Tensor::to_f64);
        let Setting { shape, options } = &setting;
        let features = |rows: Vec<f64>| match options.features {
            Features::Identity => rows,
            Features::Taylor => rows.chunks_exact(shape.key_dim.max(1)).flat_map(|x| Map::Taylor.of(x)).collect(),
        };
        let (q, k, g) = (features(wanted("q")?), features(wanted("k")?), inputs.values("g").unwrap_or_default());
        let own = |name: &str, shared: &[f64]| inputs.values(name).unwrap_or_else(|| shared.to_vec());
        let own_features = |name: &str, shared: &[f64]| inputs.values(name).map_or_else(|| shared.to_vec(), features);
        Ok(Self {
            q_reverse: own_features("q_reverse", &q),
            k_reverse: own_features("k_reverse", &k),
            g_reverse: own("g_reverse", &g),
            own_reverse: ["q_reverse", "k_reverse", "g_reverse"].iter().any(|name| inputs.optional(name).is_some()),
            setting,
            q,
            k,
            v: wanted("v")?,
            g,
            u: inputs.values("u"),
            s0: inputs.values("s0"),
            z0: inputs.values("z0"),
            flags: inputs.optional("flags").map(|f| f.as_flags().to_vec()),
            cu_seqlens: inputs.optional("cu_seqlens").map(Tensor::as_indices),
            prefix_len: inputs.optional("prefix_len").map(Tensor::as_indices),
        })
    }

    /// What is mixed.
    pub fn attention(&self) -> Attention<'_> {
        let Setting { shape, options } = &self.setting;
        Attention {
            batch: shape.batch,
            seq_len: shape.seq_len,
            heads: shape.heads,
            q_heads: shape.query_heads,
            k_heads: shape.key_heads,
            key_dim: options.features.width(shape.key_dim),
            value_dim: shape.value_dim,
            mode: match options.mode {
                Mode::Causal | Mode::PrefixState | Mode::PrefixRead => reference::Mode::Causal,
                Mode::Reverse => reference::Mode::Reverse,
                Mode::Bidirectional => reference::Mode::Bidirectional,
                Mode::Split(split) => reference::Mode::Split(split),
            },
            read: match options.read {
                Read::Inclusive => reference::Read::Inclusive,
                Read::ExclusiveBonus => reference::Read::ExclusiveBonus,
                Read::Shifted => reference::Read::Shifted,
            },
            scale: f64::from(options.scale),
            normalize: options.normalize.map(f64::from),
            flags: self.flags.as_deref(),
            cu_seqlens: self.cu_seqlens.as_deref(),
            prefix_len: self.prefix_len.as_deref(),
        }
    }

    fn decay<'a>(&self, g: &'a [f64]) -> reference::Decay<'a> {
        match self.setting.options.decay {
            Decay::None => reference::Decay::None,
            Decay::Head => reference::Decay::Head(g),
            Decay::Scalar => reference::Decay::Scalar(g),
            Decay::Vector => reference::Decay::Vector(g),
        }
    }

    /// The tensors.
    pub fn inputs(&self) -> reference::Inputs<'_> {
        reference::Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            decay: self.decay(&self.g),
            u: self.u.as_deref(),
            s0: self.s0.as_deref(),
            z0: self.z0.as_deref(),
            reverse: self.own_reverse.then(|| reference::Direction {
                q: &self.q_reverse,
                k: &self.k_reverse,
                decay: self.decay(&self.g_reverse),
            }),
        }
    }
}

fn setting<T: Element>(inputs: &Inputs) -> Result<Setting> {
    Setting::of::<T>(inputs)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let reference = Reference::new(inputs)?;
    let out = reference::forward(&reference.attention(), &reference.inputs());
    Ok(Values::from([
        ("o".into(), out.o),
        ("s_final".into(), out.s_final),
        ("z_final".into(), out.z_final),
        ("den".into(), out.den),
    ]))
}
