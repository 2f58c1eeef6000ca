//! Sizes, strides and switches of an append.

use super::OP;
use crate::{Cache, CacheType, Scales, Stride, strided};
use lookback_device::{
    DType, Element, Error, Result,
    strided::{MAX_EXTENT, Strided},
};

/// Widest row of a head.
pub const MAX_DIM: usize = 4096;

/// How it is said where a new token belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// By [`Inputs::slot_map`](super::Inputs::slot_map), a slot for each token.
    Slots,
    /// By request: its new tokens are the last of `kv_len`, which counts them already, as decoding reads it. `query_len` new tokens of every request lie
    /// one request after the other; the first entry of the cache's formula is that of [`Cache`].
    Requests {
        /// New tokens of each request.
        query_len: usize,
    },
    /// The same with any number of new tokens for each request, which [`Inputs::cu_seqlens`](super::Inputs::cu_seqlens) counts.
    Packed,
}

/// Steps in elements; `None` is without gaps, in the order that the shapes name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strides {
    /// `[tokens, Hk, D]` new keys; the step of `batch` is not used.
    pub k_new: Option<Stride>,
    /// `[tokens, Hk, Dv]` new values, likewise.
    pub v_new: Option<Stride>,
    /// `[pages, places, Hk, D]`: the step of `batch` is that of pages.
    pub k: Option<Stride>,
    /// `[pages, places, Hk, Dv]`.
    pub v: Option<Stride>,
    /// `[pages, places, Hk]` scales of tokens.
    pub k_scale: Option<Stride>,
    /// `[pages, places, Hk]` scales of tokens.
    pub v_scale: Option<Stride>,
}

/// Sizes and strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// New tokens, of all requests together.
    pub tokens: usize,
    /// Requests `B`. With [`Place::Slots`] only the extent of a dense cache.
    pub batch: usize,
    /// Heads `Hk` of keys and values.
    pub key_heads: usize,
    /// `D`, elements of a key.
    pub head_dim: usize,
    /// `Dv`, elements of a value.
    pub value_dim: usize,
    /// Where the cache keeps its tokens.
    pub cache: Cache,
    /// How it is said where a new token belongs.
    pub place: Place,
    /// Strides.
    pub strides: Strides,
}

impl Shape {
    /// `query_len` new tokens of every request, values as wide as keys, no gaps, tokens before heads ("NHD").
    pub fn new(batch: usize, query_len: usize, key_heads: usize, head_dim: usize, cache: Cache) -> Self {
        let (tokens, place, strides) =
            (batch.saturating_mul(query_len), Place::Requests { query_len }, Strides::default());
        Self { tokens, batch, key_heads, head_dim, value_dim: head_dim, cache, place, strides }
    }

    /// `tokens` new tokens, each with a slot.
    pub fn slots(tokens: usize, batch: usize, key_heads: usize, head_dim: usize, cache: Cache) -> Self {
        Self { tokens, place: Place::Slots, ..Self::new(batch, 0, key_heads, head_dim, cache) }
    }

    /// `tokens` new tokens of requests with any number of them.
    pub fn packed(tokens: usize, batch: usize, key_heads: usize, head_dim: usize, cache: Cache) -> Self {
        Self { tokens, place: Place::Packed, ..Self::new(batch, 0, key_heads, head_dim, cache) }
    }

    /// The same with the heads of a page before its places ("HND"): `[pages, Hk, places, D]`, and scales of tokens likewise.
    pub fn heads_first(self) -> Self {
        let [_, places] = self.cache.extents(self.batch);
        let step = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of = |width: usize| {
            let head = places.saturating_mul(width);
            Some(Stride { batch: step(head.saturating_mul(self.key_heads)), token: step(width), head: step(head) })
        };
        let (k, v, scale) = (of(self.head_dim), of(self.value_dim), of(1));
        Self { strides: Strides { k, v, k_scale: scale, v_scale: scale, ..self.strides }, ..self }
    }

    pub(super) fn check(&self) -> Result<()> {
        strided::range(OP, "tokens", self.tokens, 0, MAX_EXTENT)?;
        strided::range(OP, "batch", self.batch, 0, MAX_EXTENT)?;
        strided::range(OP, "key_heads", self.key_heads, 0, 65_535)?;
        strided::range(OP, "head_dim", self.head_dim, 1, MAX_DIM)?;
        strided::range(OP, "value_dim", self.value_dim, 1, MAX_DIM)?;
        let [pages, places] = self.cache.extents(self.batch);
        strided::range(OP, "slots of the cache", pages.saturating_mul(places), 0, MAX_EXTENT)?;
        if let Cache::Paged { page_size, table, .. } = self.cache {
            strided::range(OP, "page_size", page_size, 1, MAX_EXTENT)?;
            strided::range(OP, "table", table, 0, MAX_EXTENT)?;
        }
        if let Place::Requests { query_len } = self.place
            && self.tokens != self.batch.saturating_mul(query_len)
        {
            let want = format!("batch query_len = {}", self.batch.saturating_mul(query_len));
            return Err(Error::Shape { op: OP, arg: "tokens", want, got: vec![self.tokens as u64] });
        }
        Ok(())
    }
}

/// Which elements of a key an angle turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Style {
    /// Elements `i` and `i + r/2` of the first `r`.
    #[default]
    Half,
    /// Elements `2i` and `2i + 1`.
    Interleaved,
}

/// Rotary positions of the keys: angles and pairs as those of the `rotary` operation, so that queries turned by that meet keys turned by this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Which elements an angle turns.
    pub style: Style,
    /// Angle `i` is `position base^(-2 i / theta_dim)`; at least 1.
    pub base: f64,
    /// The first `rotary_dim` elements turn, the others stay as they are; even.
    pub rotary_dim: usize,
    /// See [`Rotary::base`].
    pub theta_dim: usize,
}

impl Rotary {
    /// All of `head_dim` elements turn, with base 10000.
    pub fn new(style: Style, head_dim: usize) -> Self {
        Self { style, base: 1e4, rotary_dim: head_dim, theta_dim: head_dim }
    }

    fn check(&self, head_dim: usize) -> Result<()> {
        strided::range(OP, "rotary_dim", self.rotary_dim, 0, head_dim)?;
        if !self.rotary_dim.is_multiple_of(2) {
            let got = vec![self.rotary_dim as u64];
            return Err(Error::Shape { op: OP, arg: "rotary_dim", want: "even".into(), got });
        }
        strided::range(OP, "theta_dim", self.theta_dim, 1, MAX_EXTENT)?;
        if !(self.base >= 1.0 && self.base.is_finite()) {
            return Err(Error::Range { op: OP, arg: "base", at: None, lo: 1, hi: i64::MAX, got: self.base as i64 });
        }
        Ok(())
    }

    /// The ratio of neighbouring frequencies, as a 64-bit fraction; 1 becomes the greatest.
    pub(super) fn ratio(&self) -> i64 {
        (self.base.powf(-2.0 / self.theta_dim as f64) * 2_f64.powi(64)) as u64 as i64
    }
}

/// Element types and rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Of the new keys and values: f16 or bf16, or f32 for a cache of e4m3.
    pub dtype: DType,
    /// Of the cache. Scales of [`Scales::Tensor`] and [`Scales::Head`] are given; those of [`Scales::Token`] are computed, the greatest magnitude of
    /// a row over 448, and written beside its codes.
    pub cache: CacheType,
    /// Rotation of keys on their way.
    pub rotary: Option<Rotary>,
}

impl Options {
    /// Elements `T`, a cache of the same, keys as they are.
    pub fn new<T: Element>() -> Self {
        Self { dtype: T::DTYPE, cache: CacheType::Same, rotary: None }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if self.dtype == DType::F32 && self.cache == CacheType::Same {
            return Err(Error::NoKernel { op: OP, request: "a cache of f32: f16, bf16 or e4m3".into() });
        }
        self.rotary.map_or(Ok(()), |r| r.check(head_dim))
    }

    /// Whether the launch writes scales.
    pub(super) fn computes_scales(&self) -> bool {
        self.cache == CacheType::E4m3(Scales::Token)
    }
}

/// Every tensor of an append but the small ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensors {
    pub k_new: Strided,
    pub v_new: Strided,
    pub k: Strided,
    pub v: Strided,
    pub k_scale: Strided,
    pub v_scale: Strided,
}

impl Tensors {
    /// Checks all strides.
    pub fn new(shape: &Shape, options: &Options) -> Result<Self> {
        let Shape { tokens, key_heads: heads, head_dim, value_dim, strides, .. } = *shape;
        let [pages, places] = shape.cache.extents(shape.batch);
        let size = options.dtype.size();
        let new = |stride: Option<Stride>, width: usize| {
            let Stride { token, head, .. } = stride.unwrap_or(Stride::dense(tokens, heads, width));
            Strided::new([1, tokens, heads], [0, token, head], width, size)
        };
        let kept = |stride: Option<Stride>, width: usize, size: usize| {
            let Stride { batch, token, head } = stride.unwrap_or(Stride::dense(places, heads, width));
            Strided::new([pages, places, heads], [batch, token, head], width, size)
        };
        let cache_size = if options.cache == CacheType::Same { size } else { 1 };
        let scale = |stride| match options.cache {
            CacheType::Same => Strided::NONE,
            CacheType::E4m3(Scales::Tensor) => Strided::new([1, 1, heads], [0; 3], 1, 4),
            CacheType::E4m3(Scales::Head) => Strided::dense([1, 1, heads], 1, 4),
            CacheType::E4m3(Scales::Token) => kept(stride, 1, 4),
        };
        let tensors = Self {
            k_new: new(strides.k_new, head_dim),
            v_new: new(strides.v_new, value_dim),
            k: kept(strides.k, head_dim, cache_size),
            v: kept(strides.v, value_dim, cache_size),
            k_scale: scale(strides.k_scale),
            v_scale: scale(strides.v_scale),
        };
        tensors.k_new.readable(OP, "k_new")?;
        tensors.v_new.readable(OP, "v_new")?;
        tensors.k.writable(OP, "k")?;
        tensors.v.writable(OP, "v")?;
        if options.computes_scales() {
            tensors.k_scale.writable(OP, "k_scale")?;
            tensors.v_scale.writable(OP, "v_scale")?;
        }
        Ok(tensors)
    }
}
