//! `linear_attention_backward`.

use super::{
    ATTRIBUTES, INPUTS, Reference,
    cases::{Sizes, tensors},
    setting::{Setting, Uploaded},
};
use crate::{
    Result,
    ops::{
        Case, Inputs, Operation, Values, for_dtype,
        inputs::{TensorSpec, optional, required},
        wave,
    },
    session::Session,
    tensor::{Tensor, Tensors},
};
use lookback_device::{DType, Element, cudarc::driver::DevicePtr};
use lookback_linear::{BackwardInputs, Decay, linear_attention, linear_attention_backward};
use lookback_reference::linear_attention::{self as reference, Adjoint};

const ADJOINTS: [TensorSpec; 3] = [
    required("do", "T", "[B,T,H,V]", "adjoint of o"),
    optional("ds_final", "f32", "[N,H,K,V]", "adjoint of s_final; zero without"),
    optional("dz_final", "f32", "[N,H,K]", "adjoint of z_final, with normalize; zero without"),
];

const fn with_adjoints() -> [TensorSpec; INPUTS.len() + ADJOINTS.len()] {
    let mut all = [ADJOINTS[0]; INPUTS.len() + ADJOINTS.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < INPUTS.len() { INPUTS[i] } else { ADJOINTS[i - INPUTS.len()] };
        i += 1;
    }
    all
}

static ALL_INPUTS: [TensorSpec; INPUTS.len() + ADJOINTS.len()] = with_adjoints();

/// Gradients of what `linear_attention` reads.
pub static LINEAR_ATTENTION_BACKWARD: Operation = Operation {
    name: "linear_attention_backward",
    about: "gradients of <o, do> + <s_final, ds_final> + <z_final, dz_final>; with normalize the forward pass runs, too",
    inputs: &ALL_INPUTS,
    attributes: &ATTRIBUTES,
    outputs: &[
        required("dq", "T", "[B,T,Q,K]", "summed over the heads that share a query"),
        required("dk", "T", "[B,T,G,K]", "likewise"),
        required("dv", "T", "[B,T,H,V]", ""),
        optional("dg", "f32", "[H]|[B,T,H]|[B,T,H,K]", "as g; 0 at a cut"),
        optional("du", "f32", "[H,K]", "with u"),
        required("ds0", "f32", "[N,H,K,V]", ""),
        optional("dz0", "f32", "[N,H,K]", "with normalize"),
        optional("dq_reverse", "T", "[B,T,Q,K]", "with q_reverse"),
        optional("dk_reverse", "T", "[B,T,G,K]", "with k_reverse"),
        optional("dg_reverse", "f32", "[H]|[B,T,H]|[B,T,H,K]", "with g_reverse"),
    ],
    run: |session, inputs| for_dtype!(inputs.dtype, run(session, inputs)),
    oracle,
    cases,
};

/// Dimensions of the decays.
fn decays(setting: &Setting) -> Vec<usize> {
    let [batch, tokens, heads, _] = setting.output();
    match setting.options.decay {
        Decay::None => Vec::new(),
        Decay::Head => vec![heads],
        Decay::Scalar => vec![batch, tokens, heads],
        Decay::Vector => vec![batch, tokens, heads, setting.shape.key_dim],
    }
}

fn run<T: Element>(session: &Session, inputs: &Inputs) -> Result<Tensors> {
    let setting = Setting::of::<T>(inputs)?;
    let Setting { shape, options } = &setting;
    let on = Uploaded::<T>::new(session, inputs)?;
    let d_o = session.upload(&inputs.tensor("do")?.as_elements::<T>())?;
    let singles = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
    let (d_state, d_normalizer) = (singles("ds_final")?, singles("dz_final")?);
    let forward = match options.normalize {
        Some(_) => Some(linear_attention(&session.stream, shape, options, &on.inputs())?),
        None => None,
    };
    let all = BackwardInputs {
        o: forward.as_ref().map(|f| &f.o as &dyn DevicePtr<T>),
        denominator: forward.as_ref().and_then(|f| f.denominator.as_ref()).map(|d| d as &dyn DevicePtr<f32>),
        d_state: d_state.as_ref().map(|d| d as &dyn DevicePtr<f32>),
        d_normalizer: d_normalizer.as_ref().map(|d| d as &dyn DevicePtr<f32>),
        ..BackwardInputs::of(on.inputs(), &d_o)
    };
    let out = linear_attention_backward(&session.stream, shape, options, &all)?;
    let queries = [shape.batch, shape.seq_len, shape.query_heads, shape.key_dim];
    let keys = [shape.batch, shape.seq_len, shape.key_heads, shape.key_dim];
    let (states, g) = (setting.states(), decays(&setting));
    let mut named = Tensors::new();
    for (name, slice, dims) in [
        ("dq", Some(&out.dq), &queries),
        ("dk", Some(&out.dk), &keys),
        ("dv", Some(&out.dv), &setting.output()),
        ("dq_reverse", out.reverse_dq.as_ref(), &queries),
        ("dk_reverse", out.reverse_dk.as_ref(), &keys),
    ] {
        if let Some(slice) = slice {
            named.insert(name.into(), Tensor::elements(dims, &session.download::<T>(slice)?));
        }
    }
    for (name, slice, dims) in [
        ("dg", out.dg.as_ref(), g.as_slice()),
        ("dg_reverse", out.reverse_dg.as_ref(), g.as_slice()),
        ("du", out.d_bonus.as_ref(), &[shape.heads, shape.key_dim][..]),
        ("ds0", Some(&out.d_state), &states[..]),
        ("dz0", out.d_normalizer.as_ref(), &states[..3]),
    ] {
        if let Some(slice) = slice {
            named.insert(name.into(), Tensor::elements(dims, &session.download::<f32>(slice)?));
        }
    }
    Ok(named)
}

fn oracle(inputs: &Inputs) -> Result<Values> {
    let reference = Reference::new(inputs)?;
    let (d_o, s_final, z_final) = (inputs.tensor("do")?.to_f64(), inputs.values("ds_final"), inputs.values("dz_final"));
    let adjoint = Adjoint { o: &d_o, s_final: s_final.as_deref(), z_final: z_final.as_deref() };
    let out = reference::backward(&reference.attention(), &reference.inputs(), &adjoint);
    let mut named =
        Values::from([("dv".into(), out.dv), ("du".into(), out.du), ("ds0".into(), out.ds0), ("dz0".into(), out.dz0)]);
    let reverse = out.reverse.map(|r| [r.dq, r.dk, r.dg]);
    let own = [out.own.dq, out.own.dk, out.own.dg];
    for (i, (name, mut own)) in ["q", "k", "g"].into_iter().zip(own).enumerate() {
        if let Some(reverse) = reverse.as_ref().map(|r| &r[i]) {
            if inputs.optional(&format!("{name}_reverse")).is_some() {
                named.insert(format!("d{name}_reverse"), reverse.clone());
            } else {
                own.iter_mut().zip(reverse).for_each(|(own, reverse)| *own += reverse);
            }
        }
        named.insert(format!("d{name}"), own);
    }
    Ok(named)
}

/// Every kind of gradient.
fn cases(dtype: DType) -> Vec<Case> {
    let small = Sizes { extents: [2, 21, 2, 24, 12], shared: [2, 1] };
    let [b, t, h, k, v] = small.extents;
    let single = |phase: f64, shape: &[usize]| Tensor::floats(DType::F32, shape, &wave(phase, shape.iter().product()));
    let flags = || Tensor::flags(&[b, t], &(0..b * t).map(|i| [0, 0, 1, 0, 2, 0, 0][i % 7]).collect::<Vec<_>>());
    let with = |name: &str, decay: &str, extra: Vec<(&str, Tensor)>, set: &[&str]| {
        let mut tensors = tensors(dtype, &small, decay);
        tensors.insert("do".into(), Tensor::floats(dtype, &[b, t, h, v], &wave(5.0, b * t * h * v)));
        tensors.extend(extra.into_iter().map(|(name, tensor)| (name.into(), tensor)));
        let set = set.iter().chain(&["path=recurrent"]);
        Case { name: name.into(), tensors, attributes: set.map(|s| s.to_string()).collect() }
    };
    let states = || vec![("s0", single(4.0, &[b, h, k, v])), ("ds_final", single(6.0, &[b, h, k, v]))];
    let own = || {
        let rows = |heads: usize, phase: f64| Tensor::floats(dtype, &[b, t, heads, k], &wave(phase, b * t * heads * k));
        vec![("q_reverse", rows(small.shared[0], 11.0)), ("k_reverse", rows(small.shared[1], 12.0))]
    };
    let mut cases = vec![
        with("scalar decay, flags, states", "scalar", [states(), vec![("flags", flags())]].concat(), &[]),
        with(
            "vector decay, reverse, bonus",
            "vector",
            vec![("u", single(8.0, &[h, k])), ("flags", flags())],
            &["mode=reverse", "read=exclusive_bonus"],
        ),
        with("both ways, own tensors, shifted", "scalar", own(), &["mode=bidirectional", "read=shifted"]),
        with("split", "head", states(), &["mode=split", "split=1"]),
        with("prefix read", "none", vec![("prefix_len", Tensor::indices(&[b], &[9, 0]))], &["mode=prefix_read"]),
    ];
    // The adjoint of the sums knows an output of 16 bits to 16 bits, and is held to the gate of f32 all the same.
    if dtype == DType::F32 {
        cases.push(with("normalized", "none", states(), &["mode=prefix_state", "normalize=400", "scale=0.5"]));
    }
    cases
}
