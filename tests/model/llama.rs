//! LLaMA-style models on a device against the reference, from files in public names: prompts, prefixes, windows, steps over a paged cache.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::{bf16, f16};
use lookback_device::{Element, Error, WeightsFault};
use lookback_model::llama::{Cache, Config, Llama, Prompt, Rope, Sequence};
use lookback_reference::llama::{Heads, Layer, Model, llama3_frequencies};
use lookback_suite::{
    counters::Counters,
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of two mixers and two units rounds its output to 8 bits.
const BF16: Gate = Gate { rel: 1.2e-2, row: 2.4e-2, inf: 2.4e-2 };
/// The same to 11 bits.
const F16: Gate = Gate { rel: 1.5e-3, row: 3e-3, inf: 3e-3 };
const VOCABULARY: usize = 29;

/// What a file has besides what every file has.
#[derive(Clone, Copy, Default)]
struct Extras {
    biases: bool,
    head: bool,
}

/// Three heads of queries to a head of keys.
fn llama() -> (Config, Extras) {
    let config = Config { key_heads: 2, head_dim: 16, rope_base: 5e5, ..Config::new(VOCABULARY, 40, 2, 6, 36) };
    (config, Extras { biases: false, head: true })
}

/// Biases, one embedding for both ends, heads that no tile of a kernel fits.
fn qwen() -> (Config, Extras) {
    let config =
        Config { key_heads: 1, head_dim: 72, rope_base: 1e6, eps: 1e-6, ..Config::new(VOCABULARY, 32, 2, 2, 24) };
    (config, Extras { biases: true, head: false })
}

/// Angles of all three kinds: as the base says, slowed down, and between.
fn llama3() -> (Config, Extras) {
    let (config, extras) = llama();
    let rope = Rope::Llama3 { factor: 8.0, low: 0.01, high: 4.0, original: 40.0 };
    (Config { rope, rope_base: 1e4, ..config }, extras)
}

/// A token sees itself and six before it.
fn mistral() -> (Config, Extras) {
    let (config, extras) = llama();
    (Config { key_heads: 6, window: Some(6), ..config }, extras)
}

fn draft<T: Element>((config, extras): &(Config, Extras)) -> Draft {
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

fn reference((config, extras): &(Config, Extras), draft: &Draft) -> Model {
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
        heads: Heads { heads, key_heads, head_dim, base: rope_base, rotary_dim: head_dim, frequencies, window },
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
struct Pair<T: Element> {
    model: Llama<T>,
    reference: Model,
}

impl<T: Element> Pair<T> {
    fn new(kind: &(Config, Extras)) -> Self {
        let draft = draft::<T>(kind);
        let model = Llama::load(&stream(), &draft.checkpoint(), &kind.0).unwrap();
        Self { model, reference: reference(kind, &draft) }
    }

    /// The reference's logits after every token.
    fn wanted(&self, tokens: &[i32], prefix: usize) -> Vec<f64> {
        self.reference.logits(&tokens.iter().map(|id| *id as usize).collect::<Vec<_>>(), prefix)
    }
}

/// Tokens of a row.
fn tokens(row: usize, count: usize) -> Vec<i32> {
    (0..count).map(|t| ((t * 7 + t * t % 5 + row * 11) % VOCABULARY) as i32).collect()
}

fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(*logit)).collect()
}

/// Sequences with what they have read, held against the reference after every pass.
struct Rows<'a, T: Element> {
    pair: &'a Pair<T>,
    cache: Cache<T>,
    open: Vec<(Sequence, Vec<i32>, usize)>,
    got: Vec<f64>,
    wanted: Vec<f64>,
}

impl<'a, T: Element> Rows<'a, T> {
    fn new(pair: &'a Pair<T>, pages: usize, page_size: usize) -> Self {
        let cache = pair.model.cache(pages, page_size).unwrap();
        Self { pair, cache, open: Vec::new(), got: Vec::new(), wanted: Vec::new() }
    }

    fn prefill(&mut self, prompts: &[(Vec<i32>, usize)]) {
        let asked: Vec<Prompt<'_>> =
            prompts.iter().map(|(tokens, prefix)| Prompt { tokens, prefix: *prefix }).collect();
        let (logits, sequences) = self.pair.model.prefill(&mut self.cache, &asked).unwrap();
        assert_eq!(sequences.len(), prompts.len());
        let from = self.open.len();
        self.open.extend(sequences.iter().zip(prompts).map(|(of, (tokens, prefix))| (*of, tokens.clone(), *prefix)));
        let rows: Vec<usize> = (from..self.open.len()).collect();
        self.compare(&rows, &logits);
    }

    /// `counts` more tokens of some rows.
    fn extend(&mut self, counts: &[(usize, usize)]) {
        let mut grown = Vec::new();
        for (row, count) in counts {
            let (sequence, tokens, _) = &mut self.open[*row];
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
            let (sequence, tokens, prefix) = &self.open[*row];
            assert_eq!(self.cache.len(*sequence).unwrap(), tokens.len());
            let wanted = self.pair.wanted(tokens, *prefix);
            self.wanted.extend(&wanted[wanted.len() - VOCABULARY..]);
        }
    }

    /// All logits so far, each row and all together.
    fn check(self, what: &str, gate: Gate) {
        let e = assert_close(what, &self.got, &self.wanted, VOCABULARY, gate);
        println!("{} {what}: {e:?}", T::DTYPE);
    }
}

fn every_token_equals_the_reference<T: Element>(gate: Gate) {
    for (name, kind) in [("llama", llama()), ("qwen", qwen()), ("mistral", mistral())] {
        let pair = Pair::<T>::new(&kind);
        let prefixes: &[usize] = if kind.0.window.is_some() { &[0] } else { &[0, 5] };
        for (count, prefix) in
            [1, 7, 66].into_iter().flat_map(|count| prefixes.iter().map(move |p| (count, *p.min(&count))))
        {
            let row = tokens(count, count);
            let got = widened(&pair.model.logits(Prompt { tokens: &row, prefix }).unwrap());
            let what = format!("{name}, {count} tokens, prefix {prefix}");
            let e = assert_close(&what, &got, &pair.wanted(&row, prefix), VOCABULARY, gate);
            println!("{} {what}: {e:?}", T::DTYPE);
        }
    }
}

#[test]
fn every_token_equals_the_reference_f16() {
    every_token_equals_the_reference::<f16>(F16);
}

#[test]
fn every_token_equals_the_reference_bf16() {
    every_token_equals_the_reference::<bf16>(BF16);
}

/// Where they differ from what the base says, in prompts and in steps.
#[test]
fn stretched_angles_equal_the_reference() {
    let linear = (Config { rope: Rope::Linear { factor: 4.0 }, ..llama().0 }, llama().1);
    for (name, kind) in [("llama 3", llama3()), ("linear", linear)] {
        let pair = Pair::<f16>::new(&kind);
        let mut rows = Rows::new(&pair, 16, 4);
        rows.prefill(&[(tokens(0, 21), 0), (tokens(1, 3), 0)]);
        rows.extend(&[(0, 1), (1, 1)]);
        rows.extend(&[(0, 1), (1, 7)]);
        rows.check(name, F16);
    }
}

/// Prompts of different lengths, on both sides of a page's end, then steps over more ends.
fn prompts_and_their_steps_equal_the_reference<T: Element>(gate: Gate) {
    for (name, kind) in [("llama", llama()), ("qwen", qwen()), ("mistral", mistral())] {
        let pair = Pair::<T>::new(&kind);
        let prefix = |prefix: usize| if kind.0.window.is_some() { 0 } else { prefix };
        let mut rows = Rows::new(&pair, 16, 4);
        rows.prefill(&[(tokens(0, 8), prefix(0)), (tokens(1, 3), prefix(3)), (tokens(2, 13), prefix(6))]);
        for _ in 0..5 {
            rows.extend(&[(0, 1), (1, 1), (2, 1)]);
        }
        rows.check(&format!("{name}, steps"), gate);
    }
}

#[test]
fn prompts_and_their_steps_equal_the_reference_f16() {
    prompts_and_their_steps_equal_the_reference::<f16>(F16);
}

#[test]
fn prompts_and_their_steps_equal_the_reference_bf16() {
    prompts_and_their_steps_equal_the_reference::<bf16>(BF16);
}

/// A prompt in parts is the prompt, whatever the parts, and beside rows that grow by other numbers.
#[test]
fn prompts_in_parts_equal_the_reference() {
    for (name, kind) in [("llama", llama()), ("mistral", mistral())] {
        let pair = Pair::<f16>::new(&kind);
        let mut rows = Rows::new(&pair, 40, 3);
        rows.prefill(&[(tokens(0, 5), 0), (tokens(1, 1), 0)]);
        rows.extend(&[(1, 9), (0, 1)]);
        rows.extend(&[(0, 40)]);
        rows.extend(&[(0, 2), (1, 17)]);
        rows.check(&format!("{name}, parts"), F16);
    }
}

/// Pages go from sequence to sequence, and lie in no order.
#[test]
fn pages_of_closed_sequences_serve_new_ones() {
    let pair = Pair::<f16>::new(&llama());
    let mut rows = Rows::new(&pair, 8, 4);
    rows.prefill(&[(tokens(0, 9), 0), (tokens(1, 4), 2), (tokens(2, 6), 0)]);
    assert_eq!(rows.cache.pages().free(), 2);
    rows.cache.close(rows.open[0].0).unwrap();
    rows.extend(&[(1, 1), (2, 7)]);
    rows.prefill(&[(tokens(3, 7), 4)]);
    assert_eq!(rows.cache.pages().free(), 0);
    rows.extend(&[(3, 1), (1, 2)]);
    // The same again in another way.
    let (sequence, read, _) = &mut rows.open[2];
    rows.cache.truncate(*sequence, 5).unwrap();
    read.truncate(5);
    rows.extend(&[(2, 3), (3, 1)]);
    rows.check("recycled pages", F16);
}

/// A step, taken back and taken again, is the same to the last bit: with the pass made anew and with the one that is kept.
#[test]
fn a_step_again_gives_the_same_bits() {
    let pair = Pair::<f16>::new(&llama());
    let mut cache = pair.model.cache(8, 8).unwrap();
    let prompts = [tokens(0, 30), tokens(1, 5)];
    let (_, rows) =
        pair.model.prefill(&mut cache, &[Prompt::causal(&prompts[0]), Prompt::causal(&prompts[1])]).unwrap();
    let mut results = Vec::new();
    for _ in 0..3 {
        results.push(pair.model.extend(&mut cache, &[(rows[0], &[7]), (rows[1], &[9])]).unwrap());
        cache.truncate(rows[0], 30).unwrap();
        cache.truncate(rows[1], 5).unwrap();
        pair.model.extend(&mut cache, &[(rows[1], &[3, 1, 4])]).unwrap();
        cache.truncate(rows[1], 5).unwrap();
        results.push(pair.model.extend(&mut cache, &[(rows[0], &[7]), (rows[1], &[9])]).unwrap());
        cache.truncate(rows[0], 30).unwrap();
        cache.truncate(rows[1], 5).unwrap();
    }
    assert!(results.iter().all(|logits| logits.iter().map(|x| x.to_bits()).eq(results[0].iter().map(|x| x.to_bits()))));
}

/// One block cuts up the work of a step for all layers, and no launch reads the whole pool.
#[test]
fn a_step_is_scheduled_once() {
    let kind = llama();
    let pair = Pair::<f16>::new(&kind);
    let mut cache = pair.model.cache(1000, 16).unwrap();
    let prompt = tokens(0, 20);
    let (_, rows) = pair.model.prefill(&mut cache, &[Prompt::causal(&prompt)]).unwrap();
    let counters = Counters::of(|| {
        pair.model.extend(&mut cache, &[(rows[0], &[1])]).unwrap();
    });
    if counters.is_none() {
        return;
    }
    let text = lookback_device::emulator::counters().unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |kernel: &str, path: &str| {
        let kernels = all["kernels"].as_object().unwrap().iter().filter(|(name, _)| name.starts_with(kernel));
        kernels.map(|(_, counters)| counters.pointer(path).and_then(serde_json::Value::as_u64).unwrap()).sum::<u64>()
    };
    assert_eq!(number("lean_plan", "/ctas"), 1);
    assert!(number("lean_decode", "/ctas") > 0 && number("kv_append", "/ctas") > 0);
    assert_eq!(number("attention_fwd", "/ctas"), 0);
    // Keys and values of 21 tokens, of 2 heads of 16, in 2 layers; queries, schedule and tables are a rest of hundreds of bytes.
    let keys = 21 * 2 * 16 * 2 * 2 * kind.0.layers as u64;
    let read = number("lean_decode", "/global_loads/unique_bytes");
    assert!((keys..2 * keys).contains(&read), "{read} bytes of {keys}");
}

#[test]
fn a_full_cache_says_so_and_goes_on() {
    let pair = Pair::<f16>::new(&llama());
    let mut rows = Rows::new(&pair, 4, 4);
    rows.prefill(&[(tokens(0, 7), 0), (tokens(1, 5), 0)]);
    let full = |result: Result<(), Error>, need: u64| match result {
        Err(Error::OutOfPages { need: got, free: 0, .. }) => assert_eq!(got, need),
        other => panic!("{other:?}"),
    };
    let five = tokens(2, 5);
    full(pair.model.prefill(&mut rows.cache, &[Prompt::causal(&five)]).map(|_| ()), 2);
    let grown = [(rows.open[0].0, &five[..1]), (rows.open[1].0, &five[..4])];
    full(pair.model.extend(&mut rows.cache, &grown).map(|_| ()), 1);
    assert_eq!((rows.cache.pages().sequences(), rows.cache.pages().free()), (2, 0));
    rows.extend(&[(0, 1), (1, 3)]);
    rows.cache.close(rows.open[0].0).unwrap();
    rows.extend(&[(1, 1)]);
    rows.check("a full cache", F16);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let pair = Pair::<f16>::new(&llama());
    let model = &pair.model;
    let mut cache = model.cache(8, 4).unwrap();
    let (_, open) = model.prefill(&mut cache, &[Prompt::causal(&[1, 2])]).unwrap();
    let before = (format!("{:?}", cache.pages().table(&open)), cache.pages().sequences());
    let mut prefill = |prompts: &[Prompt<'_>]| model.prefill(&mut cache, prompts).map(|_| ()).unwrap_err();
    assert!(matches!(prefill(&[]), Error::Shape { arg: "prompts", .. }));
    assert!(matches!(prefill(&[Prompt::causal(&[1]), Prompt::causal(&[])]), Error::Shape { arg: "tokens", .. }));
    assert!(matches!(prefill(&[Prompt::causal(&[1, 29])]), Error::Range { arg: "ids", at: Some(1), .. }));
    assert!(matches!(prefill(&[Prompt { tokens: &[1], prefix: 2 }]), Error::Range { arg: "prefix", got: 2, .. }));
    let mut extend = |rows: &[(Sequence, &[i32])]| model.extend(&mut cache, rows).map(|_| ()).unwrap_err();
    assert!(matches!(extend(&[]), Error::Shape { arg: "rows", .. }));
    assert!(matches!(extend(&[(open[0], &[])]), Error::Shape { arg: "tokens", .. }));
    assert!(matches!(extend(&[(open[0], &[-1])]), Error::Range { arg: "ids", .. }));
    assert!(matches!(extend(&[(open[0], &[1]), (open[0], &[1])]), Error::Shape { arg: "sequence", .. }));
    // Pages are where they were; who was refused has left nothing behind.
    assert_eq!((format!("{:?}", cache.pages().table(&open)), cache.pages().sequences()), before);
    cache.close(open[0]).unwrap();
    assert!(matches!(model.extend(&mut cache, &[(open[0], &[1])]), Err(Error::Shape { arg: "sequence", .. })));
    assert_eq!(cache.pages().free(), 8);
    // Another model's cache, and what windows and f32 cannot do.
    let other = Pair::<f16>::new(&mistral());
    let foreign = other.model.prefill(&mut cache, &[Prompt::causal(&[1])]).map(|_| ());
    assert!(matches!(foreign, Err(Error::Shape { arg: "cache", .. })));
    let prefix = other.model.logits(Prompt { tokens: &[1, 2], prefix: 1 });
    assert!(matches!(prefix, Err(Error::NoKernel { request, .. }) if request.contains("prefix")));
    let wide = Pair::<f32>::new(&llama());
    assert!(
        matches!(wide.model.logits(Prompt::causal(&[1])), Err(Error::NoKernel { request, .. }) if request.contains("f32"))
    );
    assert!(matches!(model.cache(0, 4).map(|_| ()), Err(Error::Range { arg: "pages", .. })));
}

#[test]
fn every_tensor_is_wanted() {
    for kind in [llama(), qwen()] {
        let mut draft = draft::<f16>(&kind);
        // Without it the embedding is the head.
        draft.tensors.remove("lm_head.weight");
        assert_every_tensor_is_wanted(&draft, |file| Llama::<f16>::load(&stream(), file, &kind.0).map(|_| ()));
    }
}

/// A layer with more than this block has is another model's.
#[test]
fn tensors_of_another_block_are_refused_by_name() {
    let kind = llama();
    let good = draft::<f16>(&kind);
    let load = |draft: &Draft| Llama::<f16>::load(&stream(), &draft.checkpoint(), &kind.0).map(|_| ());
    let norm = good.tensors["model.norm.weight"].clone();
    let with = |name: &str| {
        let mut draft = good.clone();
        draft.tensors.insert(name.into(), norm.clone());
        draft
    };
    for name in ["model.layers.1.self_attn.q_norm.weight", "model.layers.0.mlp.experts.0.up_proj.weight"] {
        match load(&with(name)) {
            Err(Error::Weights { tensor, why: WeightsFault::Config { .. }, .. }) => {
                assert_eq!(tensor.as_deref(), Some(name))
            }
            other => panic!("{other:?}"),
        }
    }
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.mlp.gate.weight", "vision.weight"] {
        load(&with(name)).unwrap();
    }
}

#[test]
fn wrong_configurations_are_errors() {
    let kind = llama();
    let draft = draft::<f16>(&kind);
    let load = |config: &Config| Llama::<f16>::load(&stream(), &draft.checkpoint(), config).map(|_| ());
    let good = kind.0;
    for (config, name) in [
        (Config { heads: 0, ..good }, "heads"),
        (Config { key_heads: 4, ..good }, "key_heads"),
        (Config { key_heads: 0, ..good }, "key_heads"),
        (Config { head_dim: 12, ..good }, "head_dim"),
        (Config { inner: 0, ..good }, "inner"),
    ] {
        assert!(matches!(load(&config), Err(Error::Shape { arg, .. }) if arg == name), "{name}");
    }
    for head_dim in [0, 264] {
        assert!(matches!(load(&Config { head_dim, ..good }), Err(Error::Range { arg: "head_dim", .. })), "{head_dim}");
    }
    for config in [Config { width: 48, ..good }, Config { layers: 3, ..good }, Config { head_dim: 24, ..good }] {
        assert!(matches!(load(&config), Err(Error::Weights { tensor: Some(_), .. })));
    }
    load(&Config { layers: 1, ..good }).unwrap();
}
