//! LLaMA, Mistral, Qwen2 and their like: softmax attention with rotary positions and a gated unit, over a cache of keys and values in
//! pages.
//!
//! [`Llama`] loads checkpoints in the public tensor names (`model.layers.{i}.self_attn.q_proj.weight` ..); [`Config::open`] reads their
//! `config.json`. Activations are f16 or bf16, the types that softmax attention has.
//!
//! A prompt's tokens see what is before them, and those of its prefix see one another ([`Prompt::prefix`]): whole prompts go through
//! block attention, packed one after the other. Sequences go on from the cache by any number of tokens each, one for a step of generation
//! or more for the next part of a long prompt, through lean decoding: one schedule for all layers, equal work for every block whatever
//! the lengths.
//!
//! ```no_run
//! use half::bf16;
//! use lookback_model::{checkpoint::Checkpoint, llama::{Config, Llama, Prompt}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = lookback_device::open(lookback_device::DevicePick::Auto)?.default_stream();
//! let config = Config::open("config.json")?;
//! let model = Llama::<bf16>::load(&stream, &Checkpoint::open("model.safetensors")?, &config)?;
//!
//! // 512 pages of 64 tokens, for all sequences together.
//! let mut cache = model.cache(512, 64)?;
//! let prompts = [Prompt::causal(&[1, 450, 7483, 310, 3444, 338]), Prompt { tokens: &[1, 910, 338], prefix: 3 }];
//! let (logits, sequences) = model.prefill(&mut cache, &prompts)?;
//!
//! // The likeliest token of each, then one more step of both.
//! let best = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as i32;
//! let next: Vec<i32> = logits.chunks_exact(config.vocabulary).map(best).collect();
//! let logits = model.extend(&mut cache, &[(sequences[0], &next[..1]), (sequences[1], &next[1..])])?;
//! # let _ = logits;
//!
//! cache.close(sequences[1])?;
//! # Ok(())
//! # }
//! ```

mod cache;
mod config;
mod pass;
mod rope;
mod weights;

pub use cache::Cache;
pub use config::Config;
pub use lookback_decode::pages::Sequence;
pub use rope::Rope;

use crate::checkpoint::Checkpoint;
use crate::decoder::{Frame, FrameNames, check_rows};
use crate::ends::Ends;
use cudarc::driver::{CudaSlice, CudaStream};
use lookback_decode::CacheType;
use lookback_device::{DeviceInfo, Element, Error, Result, driver};
use lookback_nn::rotary;
use pass::{Batch, Pass, Seen, Sizes};
use std::sync::Arc;
use weights::Layer;

const OP: &str = "llama";
const NAMES: FrameNames =
    FrameNames { embedding: "model.embed_tokens.weight", norm: "model.norm.weight", head: "lm_head.weight" };

/// A model on a device.
pub struct Llama<T> {
    stream: Arc<CudaStream>,
    device: DeviceInfo,
    config: Config,
    ends: Ends<T>,
    layers: Vec<Layer<T>>,
    /// Of the rotary angles, where they are not the powers of their base.
    frequencies: Option<CudaSlice<u64>>,
}

/// A sequence's first tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// Ids, at least one.
    pub tokens: &'a [i32],
    /// So many tokens at the start see one another whatever their order; 0 for a causal prompt. At most all of them.
    pub prefix: usize,
}

impl<'a> Prompt<'a> {
    /// Tokens that see what is before them.
    pub fn causal(tokens: &'a [i32]) -> Self {
        Self { tokens, prefix: 0 }
    }
}

impl Config {
    fn frame(&self) -> Frame {
        let Config { vocabulary, width, layers, eps, .. } = *self;
        Frame { vocabulary, width, layers, eps }
    }
}

impl<T: Element> Llama<T> {
    /// Checks every tensor that the model needs and copies it to the stream's device, matrices as `T`, norms and biases as `f32`. Without
    /// `lm_head.weight` the embedding is the head.
    ///
    /// # Errors
    /// [`Error::Weights`] names the file, the tensor, what was wanted and what was found, also where a layer has a tensor that this block
    /// does not have; [`Error::Shape`] and [`Error::Range`] ← a configuration that contradicts itself; [`Error::OutOfMemory`] and other
    /// errors of the driver.
    pub fn load(stream: &Arc<CudaStream>, file: &Checkpoint, config: &Config) -> Result<Self> {
        config.check()?;
        let frequencies = config.rope.frequencies(config.rope_base, config.head_dim);
        let turns = frequencies.map(|radians| radians.into_iter().map(rotary::turns).collect::<Vec<u64>>());
        let turns = turns.map(|turns| stream.clone_htod(&turns)).transpose();
        Ok(Self {
            device: DeviceInfo::of(stream.context())?,
            stream: stream.clone(),
            config: *config,
            ends: Ends::load(stream, file, &config.frame(), &NAMES)?,
            layers: (0..config.layers).map(|layer| Layer::load(stream, file, config, layer)).collect::<Result<_>>()?,
            frequencies: turns.map_err(|e| driver(e, "copy frequencies"))?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Room for keys and values: `pages` of `page_size` tokens in every layer.
    ///
    /// # Errors
    /// [`Error::Range`] ← no page, no token in a page, or too many; [`Error::OutOfMemory`].
    pub fn cache(&self, pages: usize, page_size: usize) -> Result<Cache<T>> {
        Cache::new(&self.stream, &self.config, CacheType::Same, pages, page_size)
    }

    /// The same in 8 bits (e4m3), with a scale for each token and head: `1 + 4 / D` bytes an element instead of 2. Prompts see their
    /// own keys and values as they were made, later tokens see them rounded to 4 significant bits. Heads are multiples of 16.
    ///
    /// # Errors
    /// Those of [`cache`](Self::cache); [`Error::Shape`] ← heads of another size.
    pub fn cache_e4m3(&self, pages: usize, page_size: usize) -> Result<Cache<T>> {
        let head_dim = self.config.head_dim;
        if !head_dim.is_multiple_of(16) {
            let want = "a multiple of 16 for a cache of 8 bits".into();
            return Err(Error::Shape { op: OP, arg: "head_dim", want, got: vec![head_dim as u64] });
        }
        Cache::new(&self.stream, &self.config, cache::E4M3, pages, page_size)
    }

    /// The logits that follow every token of one sequence, `[tokens, vocabulary]`. Keeps nothing.
    ///
    /// # Errors
    /// Those of [`prefill`](Self::prefill).
    pub fn logits(&self, prompt: Prompt<'_>) -> Result<Vec<f32>> {
        let prompts = [prompt];
        self.check_prompts(&prompts)?;
        let (mut sizes, mut batch) = begin::<T>(&prompts, None);
        batch.asked = (0..prompt.tokens.len() as i32).collect();
        sizes.asked = prompt.tokens.len();
        Pass::new(self, sizes)?.run(self, &batch, &mut [])
    }

    /// Reads prompts of any lengths together in one pass and keeps their keys and values. Gives the logits that follow each prompt's last
    /// token, `[prompts, vocabulary]`, and the sequences that they have become.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no prompt, an empty one, or another model's cache; [`Error::Range`] ← an id that is not in the vocabulary, a
    /// prefix longer than its prompt; [`Error::NoKernel`] ← a prefix in a model with windows, activations in f32; [`Error::OutOfPages`]
    /// ← the cache is too full; and those of the operations. The cache keeps its sequences on any of these.
    pub fn prefill(&self, cache: &mut Cache<T>, prompts: &[Prompt<'_>]) -> Result<(Vec<f32>, Vec<Sequence>)> {
        self.check_cache(cache)?;
        self.check_prompts(prompts)?;
        let sequences: Vec<Sequence> = prompts.iter().map(|_| cache.pages.open()).collect();
        let growth: Vec<_> = sequences.iter().zip(prompts).map(|(of, prompt)| (*of, prompt.tokens.len())).collect();
        let run = |cache: &mut Cache<T>| {
            cache.pages.append(&growth)?;
            let (sizes, mut batch) = begin(prompts, Some(cache));
            batch.table = cache.pages.table(&sequences)?;
            Pass::new(self, sizes)?.run(self, &batch, &mut cache.pools)
        };
        match run(cache) {
            Ok(logits) => Ok((logits, sequences)),
            Err(error) => {
                sequences.into_iter().try_for_each(|sequence| cache.pages.close(sequence))?;
                Err(error)
            }
        }
    }

    /// Reads more tokens of sequences, of each as many as wanted. They see all that is before them. Gives the logits that follow the last
    /// token of each, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Shape`] ← no sequence, no token, a sequence that is not open or stands there twice, or another model's cache;
    /// [`Error::Range`] ← an id that is not in the vocabulary; [`Error::OutOfPages`] ← the cache is too full; and those of the operations.
    /// The sequences are as long as before on any of these.
    pub fn extend(&self, cache: &mut Cache<T>, rows: &[(Sequence, &[i32])]) -> Result<Vec<f32>> {
        self.check_cache(cache)?;
        let tokens: Vec<&[i32]> = rows.iter().map(|(_, tokens)| *tokens).collect();
        check_rows(OP, "rows", &tokens, self.config.vocabulary)?;
        let sequences: Vec<Sequence> = rows.iter().map(|(sequence, _)| *sequence).collect();
        let before = sequences.iter().map(|sequence| cache.pages.len(*sequence)).collect::<Result<Vec<usize>>>()?;
        let growth: Vec<_> = rows.iter().map(|(sequence, tokens)| (*sequence, tokens.len())).collect();
        cache.pages.append(&growth)?;
        let run = |cache: &mut Cache<T>| {
            let (sizes, mut batch) = pack(&tokens, &before, Seen::Cached, Some(cache));
            batch.table = cache.pages.table(&sequences)?;
            // A pass of other sizes gives its memory back before the next one takes some.
            let kept = cache.last.take().filter(|pass| pass.sizes == sizes);
            let mut pass = kept.map_or_else(|| Pass::new(self, sizes), Ok)?;
            let logits = pass.run(self, &batch, &mut cache.pools)?;
            cache.last = Some(pass);
            Ok(logits)
        };
        run(cache).or_else(|error| {
            let mut cut = sequences.iter().zip(&before);
            cut.try_for_each(|(sequence, len)| cache.pages.truncate(*sequence, *len))?;
            Err(error)
        })
    }

    fn check_cache(&self, cache: &Cache<T>) -> Result<()> {
        if cache.config == self.config {
            return Ok(());
        }
        let got = [cache.config.layers, cache.config.key_heads, cache.config.head_dim].map(|n| n as u64).to_vec();
        Err(Error::Shape { op: OP, arg: "cache", want: "made by this model".into(), got })
    }

    fn check_prompts(&self, prompts: &[Prompt<'_>]) -> Result<()> {
        let tokens: Vec<&[i32]> = prompts.iter().map(|prompt| prompt.tokens).collect();
        check_rows(OP, "prompts", &tokens, self.config.vocabulary)?;
        for (at, prompt) in prompts.iter().enumerate() {
            let (hi, got) = (prompt.tokens.len() as i64, i64::try_from(prompt.prefix).unwrap_or(i64::MAX));
            if got > hi {
                return Err(Error::Range { op: OP, arg: "prefix", at: Some(at as u64), lo: 0, hi, got });
            }
            if prompt.prefix > 0 && self.config.window.is_some() {
                return Err(Error::NoKernel { op: OP, request: "a prefix in a model with windows".into() });
            }
        }
        Ok(())
    }
}

/// Prompts as a pass reads them.
fn begin<T: Element>(prompts: &[Prompt<'_>], cache: Option<&Cache<T>>) -> (Sizes, Batch) {
    let tokens: Vec<&[i32]> = prompts.iter().map(|prompt| prompt.tokens).collect();
    let prefixes = prompts.iter().any(|prompt| prompt.prefix > 0);
    let (sizes, mut batch) = pack(&tokens, &vec![0; prompts.len()], Seen::Own { prefixes }, cache);
    batch.prefixes = prompts.iter().map(|prompt| prompt.prefix as i32).collect();
    (sizes, batch)
}

/// Tokens of sequences, one after the other, where each sequence has so many tokens before them.
fn pack<T: Element>(tokens: &[&[i32]], before: &[usize], seen: Seen, cache: Option<&Cache<T>>) -> (Sizes, Batch) {
    let mut batch = Batch { starts: vec![0], ..Batch::default() };
    for (tokens, before) in tokens.iter().zip(before) {
        batch.ids.extend_from_slice(tokens);
        batch.positions.extend((*before..before + tokens.len()).map(|at| at as i32));
        batch.starts.push(batch.ids.len() as i32);
        batch.asked.push(batch.ids.len() as i32 - 1);
    }
    let sizes = Sizes {
        sequences: tokens.len(),
        tokens: batch.ids.len(),
        longest: tokens.iter().map(|tokens| tokens.len()).max().unwrap_or(0),
        asked: tokens.len(),
        pages: cache.map(Cache::places),
        seen,
    };
    (sizes, batch)
}
