//! The user's tensors and attributes, checked.

use super::super::Inputs;
use crate::{Result, session::Session};
use lookback_device::{
    Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_linear::{Decay, Features, Mode, Options, Path, Read, ReverseInputs, Shape, check};

/// What the user's tensors and attributes say, checked.
pub struct Setting {
    /// Sizes.
    pub shape: Shape,
    /// Switches.
    pub options: Options,
}

impl Setting {
    /// Sizes from the tensors, switches from the attributes.
    pub fn of<T: Element>(inputs: &Inputs) -> Result<Self> {
        let [batch, tokens, heads, query_heads, key_heads, key_dim, value_dim] =
            ['B', 'T', 'H', 'Q', 'G', 'K', 'V'].map(|letter| inputs.extent(letter));
        let packed = packed(inputs, batch, tokens)?;
        let shape = Shape { query_heads, key_heads, packed, ..Shape::dense(batch, tokens, heads, key_dim, value_dim) };
        for name in ["s0", "z0", "prefix_len", "ds_final", "dz_final"] {
            if let Some(rows) = inputs.optional(name)
                && rows.shape[0] != shape.sequences()
            {
                return Err(inputs.wrong(name, format!("must have {} rows, got {:?}", shape.sequences(), rows.shape)));
            }
        }
        let features = inputs.choose("features", &[("identity", Features::Identity), ("taylor", Features::Taylor)])?;
        for name in ["s0", "z0"] {
            let keys = features.width(key_dim);
            if let Some(rows) = inputs.optional(name)
                && rows.shape[2] != keys
            {
                return Err(inputs.wrong(name, format!("must have {keys} keys, got {:?}", rows.shape)));
            }
        }
        for name in ["g", "g_reverse"] {
            if let Some(g) = inputs.optional(name) {
                check::log_decays(name, &g.as_elements::<f32>())?;
            }
        }
        let mode = mode(inputs, &shape)?;
        if let Some(lengths) = inputs.optional("prefix_len") {
            let longest = i32::try_from(tokens).unwrap_or(i32::MAX);
            if let Some(bad) = lengths.as_indices().iter().find(|n| !(0..=longest).contains(*n)) {
                return Err(inputs.wrong("prefix_len", format!("must be 0 to T = {tokens}, got {bad}")));
            }
        }
        let default = Options::new::<T>(&shape);
        let options = Options {
            features,
            decay: decay(inputs)?,
            read: inputs.choose(
                "read",
                &[
                    ("inclusive", Read::Inclusive),
                    ("exclusive_bonus", Read::ExclusiveBonus),
                    ("shifted", Read::Shifted),
                ],
            )?,
            mode,
            scale: if inputs.is_set("scale") { inputs.number("scale", f32::MIN)? } else { default.scale },
            normalize: match inputs.attribute("normalize") {
                "none" => None,
                _ => Some(inputs.number("normalize", 0.0)?),
            },
            path: inputs.choose(
                "path",
                &[
                    ("auto", Path::Auto),
                    ("recurrent", Path::Recurrent),
                    ("chain", Path::Chain),
                    ("parallel", Path::Parallel),
                ],
            )?,
            ..default
        };
        Ok(Self { shape, options })
    }

    /// `[B,T,H,V]`.
    pub fn output(&self) -> [usize; 4] {
        [self.shape.batch, self.shape.seq_len, self.shape.heads, self.shape.value_dim]
    }

    /// `[N,H,F,V]`.
    pub fn states(&self) -> [usize; 4] {
        [
            self.shape.sequences(),
            self.shape.heads,
            self.options.features.width(self.shape.key_dim),
            self.shape.value_dim,
        ]
    }
}

/// Packed sequences of `cu_seqlens`, checked.
fn packed(inputs: &Inputs, batch: usize, tokens: usize) -> Result<Option<usize>> {
    let Some(starts) = inputs.optional("cu_seqlens") else { return Ok(None) };
    if batch != 1 {
        return Err(inputs.wrong("cu_seqlens", format!("wants one row of packed sequences, got B = {batch}")));
    }
    let starts = starts.as_indices();
    if starts.len() < 2 {
        return Err(inputs.wrong("cu_seqlens", format!("wants at least 2 entries, got {}", starts.len())));
    }
    check::cu_seqlens(&starts, tokens)?;
    Ok(Some(starts.len() - 1))
}

fn mode(inputs: &Inputs, shape: &Shape) -> Result<Mode> {
    let split = if inputs.is_set("split") { inputs.parse("split")? } else { shape.heads / 2 };
    let mode = inputs.choose(
        "mode",
        &[
            ("causal", Mode::Causal),
            ("reverse", Mode::Reverse),
            ("bidirectional", Mode::Bidirectional),
            ("prefix_state", Mode::PrefixState),
            ("prefix_read", Mode::PrefixRead),
            ("split", Mode::Split(split)),
        ],
    )?;
    if inputs.is_set("split") && mode != Mode::Split(split) {
        return Err(inputs.wrong("split", "wants mode=split".into()));
    }
    Ok(mode)
}

/// The decay that the dimensions of `g` make, and that the attribute names, if it is set.
fn decay(inputs: &Inputs) -> Result<Decay> {
    let of = |name| match inputs.optional(name).map(|g| g.shape.len()) {
        None => Decay::None,
        Some(1) => Decay::Head,
        Some(3) => Decay::Scalar,
        Some(_) => Decay::Vector,
    };
    let made = of("g");
    if inputs.optional("g_reverse").is_some() && of("g_reverse") != made {
        return Err(inputs.wrong("g_reverse", "must have the dimensions of `g`".into()));
    }
    if inputs.is_set("decay") {
        let choices =
            [("none", Decay::None), ("head", Decay::Head), ("scalar", Decay::Scalar), ("vector", Decay::Vector)];
        if inputs.choose("decay", &choices)? != made {
            return Err(inputs.wrong("g", format!("does not fit decay={}", inputs.attribute("decay"))));
        }
    }
    Ok(made)
}

/// The inputs on the device.
pub struct Uploaded<T> {
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    v: CudaSlice<T>,
    g: Option<CudaSlice<f32>>,
    u: Option<CudaSlice<f32>>,
    s0: Option<CudaSlice<f32>>,
    z0: Option<CudaSlice<f32>>,
    flags: Option<CudaSlice<u8>>,
    cu_seqlens: Option<CudaSlice<i32>>,
    prefix_len: Option<CudaSlice<i32>>,
    q_reverse: Option<CudaSlice<T>>,
    k_reverse: Option<CudaSlice<T>>,
    g_reverse: Option<CudaSlice<f32>>,
}

impl<T: Element> Uploaded<T> {
    /// Uploads what is there.
    pub fn new(session: &Session, inputs: &Inputs) -> Result<Self> {
        let elements = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<T>())).transpose();
        let singles = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
        let indices = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
        let wanted = |name| inputs.tensor(name).and_then(|t| session.upload(&t.as_elements::<T>()));
        Ok(Self {
            q: wanted("q")?,
            k: wanted("k")?,
            v: wanted("v")?,
            g: singles("g")?,
            u: singles("u")?,
            s0: singles("s0")?,
            z0: singles("z0")?,
            flags: inputs.optional("flags").map(|t| session.upload(t.as_flags())).transpose()?,
            cu_seqlens: indices("cu_seqlens")?,
            prefix_len: indices("prefix_len")?,
            q_reverse: elements("q_reverse")?,
            k_reverse: elements("k_reverse")?,
            g_reverse: singles("g_reverse")?,
        })
    }

    /// As the operation takes them.
    pub fn inputs(&self) -> lookback_linear::Inputs<'_, T> {
        fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
            slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
        }
        lookback_linear::Inputs {
            g: some(&self.g),
            bonus: some(&self.u),
            flags: some(&self.flags),
            cu_seqlens: some(&self.cu_seqlens),
            prefix_len: some(&self.prefix_len),
            state: some(&self.s0),
            normalizer: some(&self.z0),
            reverse: ReverseInputs {
                q: some(&self.q_reverse),
                k: some(&self.k_reverse),
                g: some(&self.g_reverse),
                state: None,
            },
            ..lookback_linear::Inputs::of(&self.q, &self.k, &self.v)
        }
    }
}
