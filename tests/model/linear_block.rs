//! GLA, RetNet and LightNet on a device against the reference, from files in their public library's names.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::bf16;
use lookback_device::{Element, Error};
use lookback_model::linear_block::{Config, LinearModel, NormOver, OutputGate, Positions, Source};
use lookback_nn::rotary::{Grid, Style};
use lookback_reference::gla::{self, Heads, Layer, Model};
use lookback_reference::lightnet;
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of two mixers and two units rounds its output to 8 bits.
const BF16: Gate = Gate { rel: 2e-2, row: 6e-2, inf: 6e-2 };

fn shrunk(config: Config) -> Config {
    Config { heads: 3, key_dim: 16, value_dim: 32, inner: 40, ..config }
}

pub fn gla() -> Config {
    let config = shrunk(Config::gla(29, 24, 2, 3));
    Config { source: Source::LowRank { rank: 5, normalizer: 16.0 }, ..config }
}

fn retnet() -> Config {
    shrunk(Config::retnet(29, 24, 2, 3))
}

fn light_net() -> Config {
    Config { gate: OutputGate::LowRank(7), ..shrunk(Config::light_net(29, 24, 2)) }
}

/// Positions in two dimensions, the form that stays exact under decays of a key's entries.
fn light_net_with_positions() -> Config {
    let grid = Some(Grid::new(&[6, 7], 0));
    Config { positions: Some(Positions { style: Style::Cosine, base: 1e4, grid }), ..light_net() }
}

fn light_net_both_ways() -> Config {
    Config { bidirectional: true, ..light_net() }
}

/// Those that tokens can be added to.
fn causal() -> [Config; 4] {
    [gla(), retnet(), light_net(), light_net_with_positions()]
}

pub fn draft<T: Element>(config: &Config) -> Draft {
    let Config { vocabulary, width, layers, inner, .. } = *config;
    let (keys, values) = (config.keys(), config.values());
    let mut shapes = vec![
        ("model.embeddings.weight".to_string(), vec![vocabulary, width]),
        ("model.norm.weight".to_string(), vec![width]),
        ("lm_head.weight".to_string(), vec![vocabulary, width]),
    ];
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("attn_norm.weight", &[width]);
        add("attn.q_proj.weight", &[keys, width]);
        add("attn.k_proj.weight", &[keys, width]);
        add("attn.v_proj.weight", &[values, width]);
        match config.gate {
            OutputGate::Full => add("attn.g_proj.weight", &[values, width]),
            OutputGate::LowRank(rank) => {
                add("attn.g_proj.0.weight", &[rank, width]);
                add("attn.g_proj.1.weight", &[values, rank]);
            }
        }
        if let Source::LowRank { rank, .. } = config.source {
            add("attn.gk_proj.0.weight", &[rank, width]);
            add("attn.gk_proj.1.weight", &[keys, rank]);
            add("attn.gk_proj.1.bias", &[keys]);
        }
        match config.norm {
            NormOver::Heads => add("attn.g_norm_swish_gate.weight", &[config.value_dim]),
            NormOver::Row => add("attn.g_norm.weight", &[values]),
        }
        add("attn.o_proj.weight", &[width, values]);
        add("mlp_norm.weight", &[width]);
        add("mlp.gate_proj.weight", &[inner, width]);
        add("mlp.up_proj.weight", &[inner, width]);
        add("mlp.down_proj.weight", &[width, inner]);
    }
    // A head's norm scales a q.k that cancels back up, with its rounding: the seed has none that does at the first token.
    Draft::of::<T>(8, &shapes, |name, random| match name {
        _ if name.contains("norm") => random.uniform(0.5, 1.5),
        _ if name.contains("gk_proj.1.bias") => random.uniform(-2.0, 1.0),
        _ if name.contains("embeddings") || name.contains("lm_head") => random.normal(),
        _ => 0.3 * random.normal(),
    })
}

fn reference(config: &Config, draft: &Draft) -> Model {
    let layer = |layer: usize| {
        let take = |name: &str| draft.values(&format!("model.layers.{layer}.{name}"));
        let source = match config.source {
            Source::LowRank { normalizer, .. } => gla::Source::LowRank {
                down: take("attn.gk_proj.0.weight"),
                up: take("attn.gk_proj.1.weight"),
                bias: take("attn.gk_proj.1.bias"),
                normalizer: f64::from(normalizer),
            },
            Source::Retention => gla::Source::Retention,
            Source::Softmax => gla::Source::Additive { bidirectional: config.bidirectional },
        };
        let positions = config.positions.map(|Positions { style, base, grid }| lightnet::Positions {
            cosine: style == Style::Cosine,
            base,
            axes: grid.map_or(vec![1], |grid| grid.extents[..grid.axes].to_vec()),
        });
        Layer {
            heads: Heads { heads: config.heads, key: config.key_dim, value: config.value_dim },
            source,
            positions,
            mixer_norm: take("attn_norm.weight"),
            q: take("attn.q_proj.weight"),
            k: take("attn.k_proj.weight"),
            v: take("attn.v_proj.weight"),
            gate: match config.gate {
                OutputGate::Full => vec![take("attn.g_proj.weight")],
                OutputGate::LowRank(_) => vec![take("attn.g_proj.0.weight"), take("attn.g_proj.1.weight")],
            },
            norm: take(match config.norm {
                NormOver::Heads => "attn.g_norm_swish_gate.weight",
                NormOver::Row => "attn.g_norm.weight",
            }),
            out: take("attn.o_proj.weight"),
            unit_norm: take("mlp_norm.weight"),
            unit: ["gate", "up", "down"].map(|part| take(&format!("mlp.{part}_proj.weight"))),
        }
    };
    Model {
        width: config.width,
        eps: f64::from(config.eps),
        embedding: draft.values("model.embeddings.weight"),
        layers: (0..config.layers).map(layer).collect(),
        norm: draft.values("model.norm.weight"),
        head: draft.values("lm_head.weight"),
    }
}

fn tokens(count: usize) -> Vec<i32> {
    (0..count as i32).map(|t| (t * 7 + t * t % 5) % 29).collect()
}

fn wanted(model: &Model, tokens: &[i32]) -> Vec<f64> {
    model.logits(&tokens.iter().map(|id| *id as usize).collect::<Vec<_>>())
}

fn widened(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|logit| f64::from(*logit)).collect()
}

fn every_token_equals_the_reference<T: Element>(gate: Gate) {
    for config in causal().into_iter().chain([light_net_both_ways()]) {
        let draft = draft::<T>(&config);
        let model = LinearModel::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        for count in [1, 41] {
            let got = widened(&model.logits(&tokens(count)).unwrap());
            let what = format!("{:?} {:?}, {count} tokens", config.source, config.positions);
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

#[test]
fn prompts_and_their_steps_equal_the_reference() {
    for config in causal() {
        let draft = draft::<f32>(&config);
        let model = LinearModel::<f32>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        // On a grid only rows of one length have their first token at its corner.
        let on_grid = config.positions.is_some_and(|positions| positions.grid.is_some());
        let mut rows: Vec<Vec<i32>> = if on_grid { [9, 9] } else { [9, 4] }.map(tokens).to_vec();
        let prompts: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
        let (mut logits, mut generation) = model.prefill(&prompts).unwrap();
        for step in 0..4 {
            for (row, got) in rows.iter().zip(logits.chunks_exact(config.vocabulary)) {
                let wanted = wanted(&reference, row);
                let last = &wanted[wanted.len() - config.vocabulary..];
                let what = format!("{:?}, step {step} of {}", config.source, row.len());
                assert_close(&what, &widened(got), last, config.vocabulary, Gate::F32);
            }
            let next = [step, 28 - step];
            rows.iter_mut().zip(next).for_each(|(row, token)| row.push(token));
            logits = model.step(&mut generation, &next).unwrap();
        }
    }
}

#[test]
fn what_reads_both_ways_takes_whole_rows_alone() {
    let config = light_net_both_ways();
    let draft = draft::<f32>(&config);
    let model = LinearModel::<f32>::load(&stream(), &draft.checkpoint(), &config).unwrap();
    let refused = |prompts: &[&[i32]]| match model.prefill(prompts).map(|_| ()) {
        Err(Error::NoKernel { request, .. }) => request,
        other => panic!("{other:?}"),
    };
    assert!(refused(&[&[1, 2]]).contains("a step"));
    assert!(refused(&[&[1, 2], &[3]]).contains("different lengths"));
    let load = |config| LinearModel::<f32>::load(&stream(), &draft.checkpoint(), &config).map(|_| ());
    for config in [gla(), retnet(), light_net_with_positions()] {
        assert!(matches!(load(Config { bidirectional: true, ..config }), Err(Error::NoKernel { .. })));
    }
}

#[test]
fn every_tensor_is_wanted() {
    for config in [gla(), light_net()] {
        let mut draft = draft::<f32>(&config);
        // Without it the embedding is the head.
        draft.tensors.remove("lm_head.weight");
        assert_every_tensor_is_wanted(&draft, |file| LinearModel::<f32>::load(&stream(), file, &config).map(|_| ()));
    }
}

#[test]
fn wrong_configurations_are_errors() {
    let draft = draft::<f32>(&gla());
    let load = |config: &Config| LinearModel::<f32>::load(&stream(), &draft.checkpoint(), config).map(|_| ());
    for (config, name) in [
        (Config { heads: 0, ..gla() }, "heads"),
        (Config { gate: OutputGate::LowRank(0), ..gla() }, "gate rank"),
        (Config { source: Source::LowRank { rank: 0, normalizer: 16.0 }, ..gla() }, "decay rank"),
    ] {
        assert!(matches!(load(&config), Err(Error::Shape { arg, .. }) if arg == name), "{name}");
    }
    for normalizer in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let config = Config { source: Source::LowRank { rank: 5, normalizer }, ..gla() };
        assert!(matches!(load(&config), Err(Error::Range { arg: "normalizer", .. })), "{normalizer}");
    }
    assert!(matches!(load(&retnet()), Ok(())), "a file may have more than is needed");
    assert!(matches!(load(&light_net()), Err(Error::Weights { tensor: Some(_), .. })));
}
