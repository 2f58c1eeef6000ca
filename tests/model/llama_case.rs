//! LLaMA-style models to test: files in public names, their reference, and sequences held against it.

use super::support::Draft;
use lookback_device::Element;
use lookback_model::llama::{Cache, Config, Llama, Prompt, Rope, Sequence};
use lookback_reference::llama::{Heads, Layer, Model, llama3_frequencies};
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of two mixers and two units rounds its output to 8 bits.
pub const BF16: Gate = Gate { rel: 1.2e-2, row: 2.4e-2, inf: 2.4e-2 };
/// The same to 11 bits.
pub const F16: Gate = Gate { rel: 1.5e-3, row: 3e-3, inf: 3e-3 };
pub const VOCABULARY: usize = 29;

/// What a file has besides what every file has.
#[derive(Clone, Copy, Default)]
pub struct Extras {
    pub biases: bool,
    pub head: bool,
}

/// Three heads of queries to a head of keys.
pub fn llama() -> (Config, Extras) {
    let config = Config { key_heads: 2, head_dim: 16, rope_base: 5e5, ..Config::new(VOCABULARY, 40, 2, 6, 36) };
    (config, Extras { biases: false, head: true })
}

/// Biases, one embedding for both ends, heads that no tile of a kernel fits.
pub fn qwen() -> (Config, Extras) {
    let config =
        Config { key_heads: 1, head_dim: 72, rope_base: 1e6, eps: 1e-6, ..Config::new(VOCABULARY, 32, 2, 2, 24) };
    (config, Extras { biases: true, head: false })
}

/// Angles of all three kinds: as the base says, slowed down, and between.
pub fn llama3() -> (Config, Extras) {
    let (config, extras) = llama();
    let rope = Rope::Llama3 { factor: 8.0, low: 0.01, high: 4.0, original: 40.0 };
    (Config { rope, rope_base: 1e4, ..config }, extras)
}

/// A token sees itself and six before it.
pub fn mistral() -> (Config, Extras) {
    let (config, extras) = llama();
    (Config { key_heads: 6, window: Some(6), ..config }, extras)
}

pub fn draft<T: Element>((config, extras): &(Config, Extras)) -> Draft {
    let Config { vocabulary, width, inner, .. } = *config;
    let (queries, keys) = (config.queries(), config.keys());
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![vocabulary, width]),
        ("model.norm.weight".to_string(), vec![width]),
    ];
    if extras.head {
        shapes.push(("lm_head.weight".to_string(), vec![vocabulary, width]));
    }
    for layer in 0..config.layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[width]);
        for (part, rows) in [("q", queries), ("k", keys), ("v", keys)] {
            add(&format!("self_attn.{part}_proj.weight"), &[rows, width]);
            if extras.biases {
                add(&format!("self_attn.{part}_proj.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[width, queries]);
        add("post_attention_layernorm.weight", &[width]);
        add("mlp.gate_proj.weight", &[inner, width]);
        add("mlp.up_proj.weight", &[inner, width]);
        add("mlp.down_proj.weight", &[width, inner]);
    }
    Draft::of::<T>(11, &shapes, |name, random| match name {
        _ if name.contains("norm") => random.uniform(0.5, 1.5),
        _ if name.contains("embed") || name.contains("lm_head") => random.normal(),
        _ => 0.2 * random.normal(),
    })
}

pub fn reference((config, extras): &(Config, Extras), draft: &Draft) -> Model {
    let layer = |layer: usize| {
        let take = |name: &str| draft.values(&format!("model.layers.{layer}.{name}"));
        let linear = |part: &str| {
            let name = |kind: &str| format!("self_attn.{part}_proj.{kind}");
            (take(&name("weight")), extras.biases.then(|| take(&name("bias"))))
        };
        Layer {
            norm: take("input_layernorm.weight"),
            qkv: ["q", "k", "v"].map(linear),
            out: take("self_attn.o_proj.weight"),
            unit_norm: take("post_attention_layernorm.weight"),
            unit: ["gate", "up", "down"].map(|part| take(&format!("mlp.{part}_proj.weight"))),
        }
    };
    let embedding = draft.values("model.embed_tokens.weight");
    let Config { heads, key_heads, head_dim, rope_base, window, .. } = *config;
    let frequencies = match config.rope {
        Rope::Plain => None,
        Rope::Linear { factor } => {
            Some((0..head_dim / 2).map(|i| rope_base.powf(-2.0 * i as f64 / head_dim as f64) / factor).collect())
        }
        Rope::Llama3 { factor, low, high, original } => {
            Some(llama3_frequencies(rope_base, head_dim, factor, [low, high], original))
        }
    };
    Model {
        heads: Heads {
            heads,
            key_heads,
            head_dim,
            base: rope_base,
            rotary_dim: head_dim,
            frequencies,
            window,
            coded_from: None,
        },
        width: config.width,
        eps: f64::from(config.eps),
        head: if extras.head { draft.values("lm_head.weight") } else { embedding.clone() },
        embedding,
        layers: (0..config.layers).map(layer).collect(),
        norm: draft.values("model.norm.weight"),
    }
}

/// A small model's file.
pub fn small<T: Element>() -> (Config, Draft) {
    let kind = llama();
    (kind.0, draft::<T>(&kind))
}

/// A model on the device and its reference.
pub struct Pair<T: Element> {
    pub model: Llama<T>,
    reference: Model,
}

impl<T: Element> Pair<T> {
    pub fn new(kind: &(Config, Extras)) -> Self {
        let draft = draft::<T>(kind);
        let model = Llama::load(&stream(), &draft.checkpoint(), &kind.0).unwrap();
        Self { model, reference: reference(kind, &draft) }
    }

    /// The reference's logits after every token.
    pub fn wanted(&self, tokens: &[i32], prefix: usize) -> Vec<f64> {
        self.reference.logits(&tokens.iter().map(|id| *id as usize).collect::<Vec<_>>(), prefix)
    }
}

/// Tokens of a row.
pub fn tokens(row: usize, count: usize) -> Vec<i32> {
    (0..count).map(|t| ((t * 7 + t * t % 5 + row * 11) % VOCABULARY) as i32).collect()
}

pub fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(*logit)).collect()
}

/// A sequence, what it has read, and how much of that was its prompt and its prefix.
pub struct Row {
    pub sequence: Sequence,
    pub tokens: Vec<i32>,
    prompt: usize,
    prefix: usize,
}

/// Sequences with what they have read, held against the reference after every pass.
pub struct Rows<'a, T: Element> {
    pair: &'a Pair<T>,
    pub cache: Cache<T>,
    pub open: Vec<Row>,
    /// The reference, where the cache has 8 bits: of the tokens behind a prompt.
    coded: Option<Model>,
    got: Vec<f64>,
    wanted: Vec<f64>,
}

impl<'a, T: Element> Rows<'a, T> {
    pub fn new(pair: &'a Pair<T>, pages: usize, page_size: usize) -> Self {
        let cache = pair.model.cache(pages, page_size).unwrap();
        Self { pair, cache, open: Vec::new(), coded: None, got: Vec::new(), wanted: Vec::new() }
    }

    /// Over a cache of 8 bits.
    pub fn coded(pair: &'a Pair<T>, pages: usize, page_size: usize) -> Self {
        let cache = pair.model.cache_e4m3(pages, page_size).unwrap();
        Self { cache, coded: Some(pair.reference.clone()), ..Self::new(pair, 1, 1) }
    }

    pub fn prefill(&mut self, prompts: &[(Vec<i32>, usize)]) {
        let asked: Vec<Prompt<'_>> =
            prompts.iter().map(|(tokens, prefix)| Prompt { tokens, prefix: *prefix }).collect();
        let (logits, sequences) = self.pair.model.prefill(&mut self.cache, &asked).unwrap();
        assert_eq!(sequences.len(), prompts.len());
        let from = self.open.len();
        self.open.extend(sequences.into_iter().zip(prompts).map(|(sequence, (tokens, prefix))| Row {
            sequence,
            tokens: tokens.clone(),
            prompt: tokens.len(),
            prefix: *prefix,
        }));
        let rows: Vec<usize> = (from..self.open.len()).collect();
        self.compare(&rows, &logits);
    }

    /// `counts` more tokens of some rows.
    pub fn extend(&mut self, counts: &[(usize, usize)]) {
        let mut grown = Vec::new();
        for (row, count) in counts {
            let Row { sequence, tokens, .. } = &mut self.open[*row];
            let next: Vec<i32> = (0..*count).map(|t| ((tokens.len() * 3 + t * 5 + row) % VOCABULARY) as i32).collect();
            tokens.extend(&next);
            grown.push((*sequence, next));
        }
        let grown: Vec<(Sequence, &[i32])> = grown.iter().map(|(of, tokens)| (*of, tokens.as_slice())).collect();
        let logits = self.pair.model.extend(&mut self.cache, &grown).unwrap();
        let rows: Vec<usize> = counts.iter().map(|(row, _)| *row).collect();
        self.compare(&rows, &logits);
    }

    fn compare(&mut self, rows: &[usize], logits: &[f32]) {
        assert_eq!(logits.len(), rows.len() * VOCABULARY);
        self.got.extend(widened(logits));
        for row in rows {
            let Row { sequence, tokens, prompt, prefix } = &self.open[*row];
            assert_eq!(self.cache.len(*sequence).unwrap(), tokens.len());
            let reference = self.coded.as_mut().map_or(&self.pair.reference, |reference| {
                reference.heads.coded_from = Some(*prompt);
                reference
            });
            let wanted = reference.logits(&tokens.iter().map(|id| *id as usize).collect::<Vec<_>>(), *prefix);
            self.wanted.extend(&wanted[wanted.len() - VOCABULARY..]);
        }
    }

    /// All logits so far, each row and all together.
    pub fn check(self, what: &str, gate: Gate) {
        let e = assert_close(what, &self.got, &self.wanted, VOCABULARY, gate);
        println!("{} {what}: {e:?}", T::DTYPE);
    }
}
