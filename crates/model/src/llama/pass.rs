//! Plans and memory of one pass over tokens of some sequences, which lie one after the other.

use super::cache::{Places, Pool};
use super::{Config, Llama};
use crate::decoder::Extent;
use crate::ends::{self, Asked};
use crate::gated_unit;
use crate::lean::Lean;
use crate::recurrence::Stage;
use cudarc::driver::CudaSlice;
use lookback_attention::{self as attention, Mask};
use lookback_decode::pages::Table;
use lookback_decode::{self as decode, Lengths, append};
use lookback_device::{DType, Element, Error, Result, driver, strided::Stride};
use lookback_nn::{Param, gemm, residual_norm, rotary};
use std::ops::Range;

/// What a pass is made for. Passes of the same sizes are the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub sequences: usize,
    pub tokens: usize,
    /// Tokens of the longest sequence in the pass.
    pub longest: usize,
    /// Tokens that logits follow.
    pub asked: usize,
    /// Where the pass's keys are kept, if they are.
    pub pages: Option<Places>,
    pub seen: Seen,
}

/// The keys that queries meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Of the pass: its sequences begin. Some may have a prefix whose tokens all see one another.
    Own { prefixes: bool },
    /// Of the cache, the pass's among them.
    Cached,
}

/// What a pass reads, on the host.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub ids: Vec<i32>,
    pub positions: Vec<i32>,
    /// Numbers of the tokens that logits follow.
    pub asked: Vec<i32>,
    /// `[sequences + 1]`.
    pub starts: Vec<i32>,
    /// `[sequences]`.
    pub prefixes: Vec<i32>,
    /// Empty without a cache.
    pub table: Table,
}

/// A pass.
pub(super) struct Pass<T> {
    pub sizes: Sizes,
    ends: ends::Work<T>,
    /// All of [`Batch`].
    words: CudaSlice<i32>,
    norm: residual_norm::Plan,
    projection: gemm::Plan,
    rotary: rotary::Plan,
    append: Option<append::Plan>,
    mixer: Mixer,
    out: gemm::Plan,
    unit: gated_unit::Work<T>,
    normed: CudaSlice<T>,
    /// Queries, keys and values, `[tokens, H + 2 Hk, D]`.
    projected: CudaSlice<T>,
    /// Queries and keys turned, `[tokens, H + Hk, D]`.
    turned: CudaSlice<T>,
    o: CudaSlice<T>,
}

enum Mixer {
    Own(Box<attention::Plan>),
    Cached(Box<Lean>),
}

/// The plan that keeps a pass's keys and values.
fn keep<T: Element>(model: &Llama<T>, tokens: usize, sequences: usize, places: Places) -> Result<append::Plan> {
    let Config { key_heads, head_dim, .. } = model.config;
    let [turned, projected] = strides(&model.config);
    let (rows, scales) = (places.stride(&model.config, head_dim), places.stride(&model.config, 1));
    let shape = append::Shape {
        strides: append::Strides {
            k_new: Some(turned),
            v_new: Some(projected),
            k: rows,
            v: rows,
            k_scale: scales,
            v_scale: scales,
        },
        ..append::Shape::packed(tokens, sequences, key_heads, head_dim, places.cache())
    };
    let options = append::Options { cache: places.kind, ..append::Options::new::<T>() };
    append::Plan::new(&shape, &options, &model.device)
}

impl Mixer {
    fn new<T: Element>(model: &Llama<T>, sizes: &Sizes) -> Result<Self> {
        let Llama { stream, device, config, .. } = model;
        let Config { heads, key_heads, head_dim, window, .. } = *config;
        let [turned, projected] = strides(config);
        let Sizes { sequences, tokens, longest, pages, seen, .. } = *sizes;
        match (seen, pages) {
            (Seen::Own { prefixes }, _) => {
                let shape = attention::Shape {
                    key_heads,
                    strides: attention::Strides { q: Some(turned), k: Some(turned), v: Some(projected), o: None },
                    ..attention::Shape::packed(sequences, tokens, tokens, heads, head_dim)
                };
                let mask = match window {
                    Some(window) => Mask::Window { left: Some(window as u32), right: Some(0), sink_tokens: 0 },
                    None if prefixes => Mask::Prefix,
                    None => Mask::Causal,
                };
                let options = attention::Options { mask, ..attention::Options::new::<T>(&shape) };
                Ok(Self::Own(Box::new(attention::Plan::new(&shape, &options, device)?)))
            }
            (Seen::Cached, Some(places)) => {
                let (rows, scales) = (places.stride(config, head_dim), places.stride(config, 1));
                let shape = decode::Shape {
                    query_len: longest,
                    packed: Some(tokens),
                    strides: decode::Strides {
                        q: Some(turned),
                        k: rows,
                        v: rows,
                        o: None,
                        k_scale: scales,
                        v_scale: scales,
                    },
                    ..decode::Shape::new(sequences, heads, key_heads, head_dim, places.cache())
                };
                let left = window.map(|window| window as u32);
                let options = decode::Options { cache: places.kind, left, ..decode::Options::new::<T>(&shape) };
                Lean::new(stream, device, &shape, &options).map(Self::Cached)
            }
            (Seen::Cached, None) => {
                Err(Error::NoKernel { op: "llama", request: "sequences that go on without a cache".into() })
            }
        }
    }
}

/// Steps of what is turned and of the projection.
fn strides(config: &Config) -> [Stride; 2] {
    let of = |token: usize| Stride { batch: 0, token: token as i64, head: config.head_dim as i64 };
    [of(config.queries() + config.keys()), of(config.projected())]
}

/// Parts of [`Pass::words`].
struct Words {
    positions: Range<usize>,
    asked: Range<usize>,
    starts: Range<usize>,
    prefixes: Range<usize>,
    indptr: Range<usize>,
    lengths: Range<usize>,
    indices: Range<usize>,
}

impl Words {
    fn of(sizes: &Sizes) -> Self {
        let Sizes { sequences, tokens, asked, pages, .. } = *sizes;
        let mut end = tokens;
        let mut part = |len: usize| {
            end += len;
            end - len..end
        };
        Self {
            positions: part(tokens),
            asked: part(asked),
            starts: part(sequences + 1),
            prefixes: part(sequences),
            indptr: part(sequences + 1),
            lengths: part(sequences),
            indices: part(pages.map_or(0, |places| places.pages)),
        }
    }

    /// The words of a batch. Tables end where they end: the rest stays as it is and is not read.
    fn fill(&self, batch: &Batch) -> Vec<i32> {
        let mut words = batch.ids.clone();
        let Table { indptr, indices, lengths } = &batch.table;
        for (part, values) in [
            (&self.positions, &batch.positions),
            (&self.asked, &batch.asked),
            (&self.starts, &batch.starts),
            (&self.prefixes, &batch.prefixes),
            (&self.indptr, indptr),
            (&self.lengths, lengths),
            (&self.indices, indices),
        ] {
            words.resize(part.start, 0);
            words.extend(values);
        }
        words
    }
}

impl<T: Element> Pass<T> {
    pub fn new(model: &Llama<T>, sizes: Sizes) -> Result<Self> {
        let Llama { stream, device, config, .. } = model;
        let Config { width, heads, key_heads, head_dim, inner, rope_base, eps, .. } = *config;
        let (tokens, dtype) = (sizes.tokens, T::DTYPE);
        let mixer = Mixer::new(model, &sizes)?;
        let [_, projected] = strides(config);
        let x_stride = rotary::Stride { batch: 0, token: projected.token, head: projected.head };
        let turn =
            rotary::Shape { x_stride: Some(x_stride), ..rotary::Shape::dense(1, tokens, heads + key_heads, head_dim) };
        let angles = rotary::Options { base: rope_base, ..rotary::Options::new(dtype, rotary::Style::Half, head_dim) };
        let norm = residual_norm::Options { dtype, eps, center: false, post: false };
        let linear = |n, k, out| {
            let options = gemm::Options { out, ..gemm::Options::new(dtype) };
            gemm::Plan::new(&gemm::Shape::linear(tokens, n, k), &options, device)
        };
        let memory =
            |columns: usize| stream.alloc_zeros::<T>(tokens * columns).map_err(|e| driver(e, "allocate activations"));
        let extent = Extent { rows: 1, len: tokens, stage: Stage::Start };
        Ok(Self {
            ends: ends::Work::new(stream, device, &config.frame(), tokens, Asked::Named(sizes.asked))?,
            words: stream.alloc_zeros(Words::of(&sizes).indices.end).map_err(|e| driver(e, "allocate tables"))?,
            norm: residual_norm::Plan::new(&residual_norm::Shape::dense(tokens, width), &norm, device)?,
            projection: linear(config.projected(), width, dtype)?,
            rotary: rotary::Plan::new(&turn, &angles, device)?,
            append: sizes.pages.map(|places| keep(model, tokens, sizes.sequences, places)).transpose()?,
            mixer,
            out: linear(width, config.queries(), DType::F32)?.accumulating(),
            unit: gated_unit::Work::new(stream, device, (width, inner, eps), extent)?,
            normed: memory(width)?,
            projected: memory(config.projected())?,
            turned: memory(config.queries() + config.keys())?,
            o: memory(config.queries())?,
            sizes,
        })
    }

    /// A batch to the logits that it asks for, `[asked, vocabulary]`. `pools` are the cache's, where there is one.
    pub fn run(&mut self, model: &Llama<T>, batch: &Batch, pools: &mut [Pool<T>]) -> Result<Vec<f32>> {
        let stream = &model.stream;
        let at = Words::of(&self.sizes);
        stream.memcpy_htod(&at.fill(batch), &mut self.words).map_err(|e| driver(e, "copy tokens"))?;
        let [positions, asked, starts, prefixes, indptr, lengths, indices] =
            [at.positions, at.asked, at.starts, at.prefixes, at.indptr, at.lengths, at.indices]
                .map(|part| self.words.slice(part));
        let lengths = Lengths { cu_seqlens_q: Some(&starts), ..Lengths::paged(&lengths, &indptr, &indices) };
        self.ends.begin(stream, &model.ends, &self.words)?;
        if let Mixer::Cached(lean) = &mut self.mixer {
            lean.begin(stream, &lengths)?;
        }
        let mut pools = pools.iter_mut();
        let Self { ends, norm, normed, projected, turned, o, .. } = self;
        for layer in &model.layers {
            let residual = &mut ends.residual;
            // q, k, v = W x + b    x = rms_norm(residual)
            let inputs =
                residual_norm::Inputs { residual: Some(residual), weight: Some(&layer.norm), ..Default::default() };
            norm.run(stream, inputs, None, Some(normed))?;
            let bias = layer.bias.as_ref().map_or(Param::None, |bias| Param::F32(bias));
            self.projection.run(stream, normed, &layer.projection, bias, projected)?;
            // q, k turned by their positions; k, v kept
            let inputs = rotary::Inputs {
                positions: Some(&positions),
                cu_seqlens: None,
                frequencies: model.frequencies.as_ref().map(|f| f as _),
            };
            self.rotary.run(stream, projected, inputs, turned)?;
            let (q, k) = (turned.slice(..), turned.slice(model.config.queries()..));
            let v = projected.slice(model.config.queries() + model.config.keys()..);
            let mut pool = pools.next();
            if let (Some(plan), Some(pool)) = (&self.append, &mut pool) {
                plan.run(stream, &append::Inputs::requests(&k, &v, lengths), pool.kept(), None)?;
            }
            // o = softmax(q kᵀ / √D) v
            match (&mut self.mixer, pool) {
                (Mixer::Own(plan), _) => {
                    let inputs = attention::Inputs {
                        cu_seqlens_q: Some(&starts),
                        cu_seqlens_k: Some(&starts),
                        prefix_len: (self.sizes.seen == Seen::Own { prefixes: true }).then_some(&prefixes),
                        ..attention::Inputs::of(&q, &k, &v)
                    };
                    plan.run(stream, &inputs, attention::Outputs::<T>::of(o))?;
                }
                (Mixer::Cached(lean), Some(pool)) => {
                    let inputs = decode::Inputs { q: &q, cache: pool.seen(), lengths, alibi_slopes: None, sink: None };
                    lean.run(stream, &inputs, decode::Outputs::of(o))?;
                }
                (Mixer::Cached(_), None) => {}
            }
            // residual += W_o o
            self.out.run(stream, o, &layer.out, Param::None, residual)?;
            layer.unit.run(stream, &mut self.unit, residual)?;
        }
        ends.finish(stream, &model.ends, &asked)
    }
}
