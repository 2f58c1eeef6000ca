//! Just Read Twice and Based on a device against the reference, from files in the published names.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::bf16;
use lookback_device::{Element, Error};
use lookback_model::jrt::{Config, Jrt, Mixing};
use lookback_reference::jrt::{Layer, Mixer, Model};
use lookback_reference::lightnet::Heads;
use lookback_reference::llama;
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of three mixers and three units rounds its output to 8 bits.
pub const BF16: Gate = Gate { rel: 2e-2, row: 6e-2, inf: 6e-2 };
const LAYERS: [Mixing; 3] = [Mixing::Convolution, Mixing::PrefixAttention, Mixing::Attention];

pub fn small() -> Config {
    Config { encoded: 7, channels: 40, window: 4, inner: 36, ..Config::new(29, 24, 3, LAYERS.to_vec()) }
}

fn based() -> Config {
    let layers = vec![Mixing::Attention, Mixing::Convolution];
    Config { feature_dim: 5, taps: 4, layers, ..small() }
}

pub fn draft<T: Element>(config: &Config, conv_bias: bool) -> Draft {
    let Config { vocabulary, width, heads, feature_dim, channels, taps, inner, .. } = *config;
    let keys = heads * feature_dim;
    let mut shapes = vec![
        ("transformer.embeddings.word_embeddings.weight".to_string(), vec![vocabulary, width]),
        ("transformer.ln_f.weight".to_string(), vec![width]),
    ];
    for (layer, mixing) in config.layers.iter().enumerate() {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("transformer.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("norm1.weight", &[width]);
        add("norm2.weight", &[width]);
        add("mlp.fc1.weight", &[2 * inner, width]);
        add("mlp.fc2.weight", &[width, inner]);
        if *mixing == Mixing::Convolution {
            add("mixer.in_proj.weight", &[2 * channels, width]);
            add("mixer.in_proj.bias", &[2 * channels]);
            add("mixer.conv1.conv.weight", &[channels, 1, taps]);
            if conv_bias {
                add("mixer.conv1.conv.bias", &[channels]);
            }
            add("mixer.out_proj.weight", &[width, channels]);
            add("mixer.out_proj.bias", &[width]);
            continue;
        }
        if *mixing == Mixing::SlidingWindow {
            add("mixer.Wqkv.weight", &[3 * width, width]);
            add("mixer.out_proj.weight", &[width, width]);
            continue;
        }
        add("mixer.proj_q.weight", &[keys, width]);
        add("mixer.proj_k.weight", &[keys, width]);
        add("mixer.proj_v.weight", &[width, width]);
        add("mixer.out_proj.weight", &[width, width]);
        if *mixing == Mixing::PrefixAttention {
            add("mixer.proj_k_enc.weight", &[keys, width]);
            add("mixer.proj_v_enc.weight", &[width, width]);
        }
    }
    Draft::of::<T>(9, &shapes, |name, random| match name {
        _ if name.contains("norm") || name.contains("ln_f") => random.uniform(0.5, 1.5),
        _ if name.contains("embeddings") => random.normal(),
        // Products of queries and keys near 1: a softmax that is all but a choice makes roundings of its inputs into other values.
        _ if name.contains("Wqkv") => 0.2 * random.normal(),
        _ => 0.3 * random.normal(),
    })
}

pub fn reference(config: &Config, draft: &Draft) -> Model {
    let layer = |(layer, mixing): (usize, &Mixing)| {
        let take = |name: &str| draft.values(&format!("transformer.layers.{layer}.{name}"));
        let encoder = || (take("mixer.proj_k_enc.weight"), take("mixer.proj_v_enc.weight"), config.encoded);
        let mixer = match mixing {
            Mixing::Convolution => Mixer::Convolution {
                in_weight: take("mixer.in_proj.weight"),
                in_bias: take("mixer.in_proj.bias"),
                conv: take("mixer.conv1.conv.weight"),
                conv_bias: draft
                    .tensors
                    .contains_key(&format!("transformer.layers.{layer}.mixer.conv1.conv.bias"))
                    .then(|| take("mixer.conv1.conv.bias")),
                out_weight: take("mixer.out_proj.weight"),
                out_bias: take("mixer.out_proj.bias"),
            },
            Mixing::SlidingWindow => {
                let linear = |name: &str| {
                    let bias = format!("transformer.layers.{layer}.mixer.{name}.bias");
                    let bias = draft.tensors.contains_key(&bias).then(|| draft.values(&bias));
                    (take(&format!("mixer.{name}.weight")), bias)
                };
                let heads = llama::Heads {
                    heads: config.heads,
                    key_heads: config.heads,
                    head_dim: config.value_dim(),
                    base: config.rotary_base,
                    rotary_dim: config.rotary_dim,
                    frequencies: None,
                    window: Some(config.window),
                    coded_from: None,
                };
                Mixer::Window { heads, qkv: linear("Wqkv"), out: linear("out_proj") }
            }
            _ => Mixer::Attention {
                heads: Heads { heads: config.heads, key: config.feature_dim, value: config.width / config.heads },
                q: take("mixer.proj_q.weight"),
                k: take("mixer.proj_k.weight"),
                v: take("mixer.proj_v.weight"),
                encoder: (*mixing == Mixing::PrefixAttention).then(encoder),
                out: take("mixer.out_proj.weight"),
                eps: 1e-12,
            },
        };
        Layer {
            mixer_norm: take("norm1.weight"),
            mixer,
            unit_norm: take("norm2.weight"),
            fc1: take("mlp.fc1.weight"),
            fc2: take("mlp.fc2.weight"),
        }
    };
    Model {
        width: config.width,
        eps: f64::from(config.eps),
        embedding: draft.values("transformer.embeddings.word_embeddings.weight"),
        layers: config.layers.iter().enumerate().map(layer).collect(),
        norm: draft.values("transformer.ln_f.weight"),
    }
}

pub fn tokens(count: usize) -> Vec<i32> {
    (0..count as i32).map(|t| (t * 7 + t * t % 5) % 29).collect()
}

pub fn wanted(model: &Model, tokens: &[i32]) -> Vec<f64> {
    model.logits(&tokens.iter().map(|id| *id as usize).collect::<Vec<_>>())
}

pub fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(*logit)).collect()
}

fn every_token_equals_the_reference<T: Element>(gate: Gate) {
    for (config, conv_bias) in [(small(), false), (based(), true)] {
        let draft = draft::<T>(&config, conv_bias);
        let model = Jrt::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        // Shorter than what is encoded, as long, and longer.
        for count in [1, 7, 41] {
            let got = widened(&model.logits(&tokens(count)).unwrap());
            let what = format!("{:?}, {count} tokens", config.layers);
            let e = assert_close(&what, &got, &wanted(&reference, &tokens(count)), config.vocabulary, gate);
            println!("{} {what}: {e:?}", T::DTYPE);
        }
    }
}

#[test]
fn every_token_equals_the_reference_f32() {
    every_token_equals_the_reference::<f32>(Gate::F32);
}

#[test]
fn every_token_equals_the_reference_bf16() {
    every_token_equals_the_reference::<bf16>(BF16);
}

/// The encoder's sums are frozen into the state: later tokens are read once. So the reference of a step encodes no more than the prompt.
/// A row of logits is held against `each`, all of them together against `all`.
fn prompts_and_their_steps_equal_the_reference<T: Element>(each: Gate, all: Gate) {
    for (config, lengths) in [(small(), [9, 9]), (small(), [4, 4]), (based(), [9, 3])] {
        let draft = draft::<T>(&config, false);
        let model = Jrt::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let frozen = Config { encoded: config.encoded.min(lengths[0]), ..config.clone() };
        let reference = reference(&frozen, &draft);
        let mut rows: Vec<Vec<i32>> = lengths.map(tokens).to_vec();
        rows[1][0] = 17;
        let prompts: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
        let (mut logits, mut generation) = model.prefill(&prompts).unwrap();
        let (mut got_all, mut wanted_all) = (Vec::new(), Vec::new());
        for step in 0..4 {
            for (row, got) in rows.iter().zip(logits.chunks_exact(config.vocabulary)) {
                let wanted = wanted(&reference, row);
                let last = &wanted[wanted.len() - config.vocabulary..];
                assert_close(&format!("step {step}"), &widened(got), last, config.vocabulary, each);
                got_all.extend(widened(got));
                wanted_all.extend_from_slice(last);
            }
            let next = [step, 28 - step];
            rows.iter_mut().zip(next).for_each(|(row, token)| row.push(token));
            logits = model.step(&mut generation, &next).unwrap();
        }
        let e = assert_close("all steps", &got_all, &wanted_all, config.vocabulary, all);
        println!("{} {:?}: {e:?}", T::DTYPE, config.layers);
    }
}

#[test]
fn prompts_and_their_steps_equal_the_reference_f32() {
    prompts_and_their_steps_equal_the_reference::<f32>(Gate::F32, Gate::F32);
}

/// Prompts make their features on the chip, steps have them written out; they share states.
#[test]
fn prompts_and_their_steps_equal_the_reference_bf16() {
    prompts_and_their_steps_equal_the_reference::<bf16>(Gate { rel: BF16.row, ..BF16 }, BF16);
}

#[test]
fn a_changed_prefix_token_changes_what_stands_before_it() {
    let config = small();
    let model = Jrt::<f32>::load(&stream(), &draft::<f32>(&config, false).checkpoint(), &config).unwrap();
    let before = model.logits(&tokens(12)).unwrap();
    for (changed, from) in [(6, 0), (7, 7), (11, 11)] {
        let mut other = tokens(12);
        other[changed] = 28;
        let after = model.logits(&other).unwrap();
        for (token, (before, after)) in before.chunks_exact(29).zip(after.chunks_exact(29)).enumerate() {
            assert_eq!(before == after, token < from, "token {token} after a change of token {changed}");
        }
    }
}

#[test]
fn every_tensor_is_wanted() {
    let config = small();
    assert_every_tensor_is_wanted(&draft::<f32>(&config, false), |file| {
        Jrt::<f32>::load(&stream(), file, &config).map(|_| ())
    });
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let draft = draft::<f32>(&small(), false);
    let load = |config: &Config| Jrt::<f32>::load(&stream(), &draft.checkpoint(), config);
    let published = Config::published_layers(26);
    let count = |mixing| published.iter().filter(|other| **other == mixing).count();
    assert_eq!((count(Mixing::PrefixAttention), count(Mixing::SlidingWindow)), (5, 5));
    for (config, name) in [(Config { heads: 5, ..small() }, "heads"), (Config { encoded: 0, ..small() }, "encoded")] {
        assert!(matches!(load(&config).map(|_| ()), Err(Error::Shape { arg, .. }) if arg == name), "{name}");
    }
    for (config, name) in [
        (Config { feature_dim: 17, ..small() }, "feature_dim"),
        (Config { rotary_dim: 9, ..small() }, "rotary_dim"),
        (Config { window: usize::MAX / 2, ..small() }, "window"),
    ] {
        assert!(matches!(load(&config).map(|_| ()), Err(Error::Range { arg, .. }) if arg == name), "{name}");
    }
    let model = load(&small()).unwrap();
    let uneven = model.prefill(&[&[1, 2], &[3]]).map(|_| ());
    assert!(matches!(uneven, Err(Error::NoKernel { request, .. }) if request.contains("different lengths")));
}
