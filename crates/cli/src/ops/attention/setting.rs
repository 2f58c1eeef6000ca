//! The user's tensors and attributes, checked.

use super::super::{Inputs, for_dtype};
use crate::{Result, session::Session, tensor::Tensor};
use lookback_attention::{Mask, Options, Shape, check};
use lookback_device::{
    Element,
    cudarc::driver::{CudaSlice, DevicePtr},
};
use lookback_reference::attention as reference;

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
        let [batch, queries, keys, heads, key_heads, head_dim, value_dim] =
            ['B', 'T', 'S', 'H', 'G', 'D', 'V'].map(|letter| inputs.extent(letter));
        let packed = packed(inputs, batch, queries, keys)?;
        let shape = Shape { key_heads, value_dim, packed, ..Shape::dense(batch, queries, keys, heads, head_dim) };
        if let Some(lengths) = inputs.optional("prefix_len") {
            if lengths.len() != shape.sequences() {
                let why = format!("must have {} entries, got {:?}", shape.sequences(), lengths.shape);
                return Err(inputs.wrong("prefix_len", why));
            }
            let longest = i32::try_from(keys).unwrap_or(i32::MAX);
            if let Some(bad) = lengths.as_indices().iter().find(|n| !(0..=longest).contains(*n)) {
                return Err(inputs.wrong("prefix_len", format!("must be 0 to S = {keys}, got {bad}")));
            }
        }
        if let Some(rows) = inputs.optional("intervals")
            && rows.shape[2] != 4
        {
            return Err(inputs.wrong("intervals", format!("must have 4 numbers a row, got {:?}", rows.shape)));
        }
        let default = Options::new::<T>(&shape);
        let options = Options {
            mask: mask(inputs)?,
            offset: if inputs.is_set("offset") { Some(inputs.parse("offset")?) } else { None },
            scale: if inputs.is_set("scale") { inputs.number("scale", 0.0)? } else { default.scale },
            softcap: match inputs.attribute("softcap") {
                "none" => None,
                _ => Some(inputs.number("softcap", 0.0)?),
            },
            ..default
        };
        Ok(Self { shape, options })
    }

    /// `[B,T,H,V]`.
    pub fn output(&self) -> [usize; 4] {
        [self.shape.batch, self.shape.query_len, self.shape.heads, self.shape.value_dim]
    }

    /// Words of the bitmap of a mask of keys.
    fn key_bits(&self, mask: &[u8]) -> Vec<u32> {
        let words = |row: &[u8]| row.chunks(32).map(word).collect::<Vec<u32>>();
        mask.chunks(self.shape.key_len.max(1)).flat_map(words).collect()
    }
}

/// A bit for each of up to 32 keys.
fn word(seen: &[u8]) -> u32 {
    seen.iter().enumerate().fold(0, |word, (j, seen)| word | u32::from(*seen != 0) << j)
}

/// Packed sequences of `cu_seqlens_q` and `cu_seqlens_k`, checked.
fn packed(inputs: &Inputs, batch: usize, queries: usize, keys: usize) -> Result<Option<usize>> {
    let mut packed = None;
    for (name, other, total) in [("cu_seqlens_q", "cu_seqlens_k", queries), ("cu_seqlens_k", "cu_seqlens_q", keys)] {
        let Some(starts) = inputs.optional(name) else { continue };
        if inputs.optional(other).is_none() {
            return Err(inputs.wrong(other, format!("is missing, `{name}` wants it")));
        }
        if batch != 1 {
            return Err(inputs.wrong(name, format!("wants one row of packed sequences, got B = {batch}")));
        }
        let starts = starts.as_indices();
        if starts.len() < 2 {
            return Err(inputs.wrong(name, format!("wants at least 2 entries, got {}", starts.len())));
        }
        // The check names its own argument: say which of the two it is.
        check::cu_seqlens(&starts, total).map_err(|error| inputs.wrong(name, error.to_string()))?;
        packed = Some(starts.len() - 1);
    }
    Ok(packed)
}

fn mask(inputs: &Inputs) -> Result<Mask> {
    let reach = |name| match inputs.attribute(name) {
        "all" => Ok(None),
        _ => inputs.parse(name).map(Some),
    };
    let window =
        Mask::Window { left: reach("left")?, right: reach("right")?, sink_tokens: inputs.parse("sink_tokens")? };
    let mask = inputs.choose(
        "mask",
        &[
            ("full", Mask::Full),
            ("causal", Mask::Causal),
            ("anti_causal", Mask::AntiCausal),
            ("prefix", Mask::Prefix),
            ("window", window),
            ("intervals", Mask::Intervals),
        ],
    )?;
    for name in ["left", "right", "sink_tokens"] {
        if inputs.is_set(name) && mask != window {
            return Err(inputs.wrong(name, "wants mask=window".into()));
        }
    }
    Ok(mask)
}

/// The inputs on the device.
pub struct Uploaded<T> {
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    v: CudaSlice<T>,
    cu_seqlens_q: Option<CudaSlice<i32>>,
    cu_seqlens_k: Option<CudaSlice<i32>>,
    prefix_len: Option<CudaSlice<i32>>,
    intervals: Option<CudaSlice<i32>>,
    key_bits: Option<CudaSlice<u32>>,
    alibi_slopes: Option<CudaSlice<f32>>,
    sink: Option<CudaSlice<f32>>,
}

impl<T: Element> Uploaded<T> {
    /// Uploads what is there.
    pub fn new(session: &Session, inputs: &Inputs, setting: &Setting) -> Result<Self> {
        let singles = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_elements::<f32>())).transpose();
        let indices = |name: &str| inputs.optional(name).map(|t| session.upload(&t.as_indices())).transpose();
        let wanted = |name| inputs.tensor(name).and_then(|t| session.upload(&t.as_elements::<T>()));
        let bits = |mask: &Tensor| setting.key_bits(mask.as_flags());
        Ok(Self {
            q: wanted("q")?,
            k: wanted("k")?,
            v: wanted("v")?,
            cu_seqlens_q: indices("cu_seqlens_q")?,
            cu_seqlens_k: indices("cu_seqlens_k")?,
            prefix_len: indices("prefix_len")?,
            intervals: indices("intervals")?,
            key_bits: inputs.optional("key_mask").map(|mask| session.upload(&bits(mask))).transpose()?,
            alibi_slopes: singles("alibi_slopes")?,
            sink: singles("sink")?,
        })
    }

    /// As the operation takes them.
    pub fn inputs(&self) -> lookback_attention::Inputs<'_, T> {
        fn some<E>(slice: &Option<CudaSlice<E>>) -> Option<&dyn DevicePtr<E>> {
            slice.as_ref().map(|s| s as &dyn DevicePtr<E>)
        }
        lookback_attention::Inputs {
            cu_seqlens_q: some(&self.cu_seqlens_q),
            cu_seqlens_k: some(&self.cu_seqlens_k),
            prefix_len: some(&self.prefix_len),
            intervals: some(&self.intervals),
            key_bits: some(&self.key_bits),
            alibi_slopes: some(&self.alibi_slopes),
            sink: some(&self.sink),
            ..lookback_attention::Inputs::of(&self.q, &self.k, &self.v)
        }
    }
}

/// The inputs in f64, for the reference.
pub struct Reference {
    setting: Setting,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    cu_seqlens_q: Option<Vec<i32>>,
    cu_seqlens_k: Option<Vec<i32>>,
    prefix_len: Option<Vec<i32>>,
    intervals: Option<Vec<i32>>,
    key_mask: Option<Vec<u8>>,
    alibi_slopes: Option<Vec<f64>>,
    sink: Option<Vec<f64>>,
}

impl Reference {
    /// From the user's inputs.
    pub fn new(inputs: &Inputs) -> Result<Self> {
        let wanted = |name| inputs.tensor(name).map(Tensor::to_f64);
        let indices = |name| inputs.optional(name).map(Tensor::as_indices);
        Ok(Self {
            setting: for_dtype!(inputs.dtype, setting(inputs))?,
            q: wanted("q")?,
            k: wanted("k")?,
            v: wanted("v")?,
            cu_seqlens_q: indices("cu_seqlens_q"),
            cu_seqlens_k: indices("cu_seqlens_k"),
            prefix_len: indices("prefix_len"),
            intervals: indices("intervals"),
            key_mask: inputs.optional("key_mask").map(|mask| mask.as_flags().to_vec()),
            alibi_slopes: inputs.values("alibi_slopes"),
            sink: inputs.values("sink"),
        })
    }

    /// What is computed.
    pub fn attention(&self) -> reference::Attention<'_> {
        let Setting { shape, options } = &self.setting;
        let far = |far: Option<u32>| far.map_or(reference::FAR, i64::from);
        let mask = match options.mask {
            Mask::Full | Mask::Intervals => reference::Mask::FULL,
            Mask::Causal | Mask::Prefix => reference::Mask::CAUSAL,
            Mask::AntiCausal => reference::Mask::ANTI_CAUSAL,
            Mask::Window { left, right, sink_tokens } => {
                reference::Mask::window(far(left), far(right), i64::from(sink_tokens))
            }
        };
        let mask = reference::Mask {
            offset: options.offset.map(i64::from),
            prefix_len: self.prefix_len.as_deref(),
            intervals: self.intervals.as_deref(),
            key_mask: self.key_mask.as_deref(),
            ..mask
        };
        reference::Attention {
            batch: shape.batch,
            query_len: shape.query_len,
            key_len: shape.key_len,
            heads: shape.heads,
            key_heads: shape.key_heads,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            scale: f64::from(options.scale),
            softcap: options.softcap.map(f64::from),
            alibi_slopes: self.alibi_slopes.as_deref(),
            sink: self.sink.as_deref(),
            mask,
            cu_seqlens_q: self.cu_seqlens_q.as_deref(),
            cu_seqlens_k: self.cu_seqlens_k.as_deref(),
        }
    }

    /// The tensors.
    pub fn inputs(&self) -> reference::Inputs<'_> {
        reference::Inputs { q: &self.q, k: &self.k, v: &self.v }
    }
}

fn setting<T: Element>(inputs: &Inputs) -> Result<Setting> {
    Setting::of::<T>(inputs)
}
