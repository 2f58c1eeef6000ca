//! Mamba-2 on a device against the reference, from a file in the published names.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::bf16;
use lookback_device::{Element, Error, WeightsFault};
use lookback_model::mamba2::{Config, Mamba2};
use lookback_reference::mamba2::{Mixer, Model, Sizes};
use lookback_suite::{
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of a layer rounds its output to 8 bits.
const BF16: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

/// Two layers of a size that fits no tile.
pub fn small() -> Config {
    Config { state: 16, heads: 4, head_dim: 16, groups: 2, ..Config::new(29, 24, 2) }
}

pub fn draft<T: Element>(config: &Config) -> Draft {
    let Config { vocabulary, width, state, taps, heads, .. } = *config;
    let inner = heads * config.head_dim;
    let channels = inner + 2 * config.groups * state;
    let mut shapes = vec![
        ("backbone.embedding.weight".to_string(), vec![vocabulary, width]),
        ("backbone.norm_f.weight".to_string(), vec![width]),
    ];
    for layer in 0..config.layers {
        for (name, shape) in [
            ("norm.weight", vec![width]),
            ("mixer.in_proj.weight", vec![inner + channels + heads, width]),
            ("mixer.conv1d.weight", vec![channels, 1, taps]),
            ("mixer.conv1d.bias", vec![channels]),
            ("mixer.dt_bias", vec![heads]),
            ("mixer.A_log", vec![heads]),
            ("mixer.D", vec![heads]),
            ("mixer.norm.weight", vec![inner]),
            ("mixer.out_proj.weight", vec![width, inner]),
        ] {
            shapes.push((format!("backbone.layers.{layer}.{name}"), shape));
        }
    }
    Draft::of::<T>(3, &shapes, |name, random| match name.rsplit_once('.').map(|(_, last)| last) {
        Some("A_log") => random.uniform(0.0, 2.7),
        Some("dt_bias") => random.uniform(-4.0, 0.0),
        _ if name.contains("norm") => random.uniform(0.5, 1.5),
        _ if name.contains("embedding") => random.normal(),
        _ if name.contains("_proj") => 0.2 * random.normal(),
        _ => 0.5 * random.normal(),
    })
}

fn reference(config: &Config, draft: &Draft) -> Model {
    let layer = |layer: usize| {
        let take = |name: &str| draft.values(&format!("backbone.layers.{layer}.{name}"));
        let mixer = Mixer {
            in_proj: take("mixer.in_proj.weight"),
            conv_weight: take("mixer.conv1d.weight"),
            conv_bias: take("mixer.conv1d.bias"),
            dt_bias: take("mixer.dt_bias"),
            a_log: take("mixer.A_log"),
            d: take("mixer.D"),
            norm: take("mixer.norm.weight"),
            out_proj: take("mixer.out_proj.weight"),
        };
        (take("norm.weight"), mixer)
    };
    Model {
        sizes: Sizes {
            width: config.width,
            heads: config.heads,
            head_dim: config.head_dim,
            groups: config.groups,
            state: config.state,
            dt_limit: (f64::from(config.dt_limit.0), f64::from(config.dt_limit.1)),
            eps: f64::from(config.eps),
        },
        embedding: draft.values("backbone.embedding.weight"),
        layers: (0..config.layers).map(layer).collect(),
        norm: draft.values("backbone.norm_f.weight"),
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
    for config in [small(), Config { groups: 1, taps: 3, dt_limit: (0.05, 0.4), ..small() }] {
        let draft = draft::<T>(&config);
        let model = Mamba2::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        for count in [1, 41] {
            let got = widened(&model.logits(&tokens(count)).unwrap());
            assert_close("mamba2", &got, &wanted(&reference, &tokens(count)), config.vocabulary, gate);
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
fn prompts_of_many_lengths_and_their_steps_equal_the_reference() {
    let config = small();
    let draft = draft::<f32>(&config);
    let model = Mamba2::<f32>::load(&stream(), &draft.checkpoint(), &config).unwrap();
    let reference = reference(&config, &draft);
    let mut rows: Vec<Vec<i32>> = [9, 1, 20, 2].map(tokens).to_vec();
    let prompts: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
    let (mut logits, mut generation) = model.prefill(&prompts).unwrap();
    assert_eq!(generation.rows(), 4);
    for step in 0..5 {
        for (row, got) in rows.iter().zip(logits.chunks_exact(config.vocabulary)) {
            let wanted = wanted(&reference, row);
            let last = &wanted[wanted.len() - config.vocabulary..];
            assert_close(&format!("step {step}"), &widened(got), last, config.vocabulary, Gate::F32);
        }
        let next = [step, 28 - step, 3, 4];
        rows.iter_mut().zip(next).for_each(|(row, token)| row.push(token));
        logits = model.step(&mut generation, &next).unwrap();
    }
}

#[test]
fn sizes_are_read_from_the_file() {
    let config = small();
    let draft = draft::<f32>(&config);
    assert_eq!(Config::of(&draft.checkpoint(), 2).unwrap(), config);
    let refused = |draft: &Draft, groups| match Config::of(&draft.checkpoint(), groups) {
        Err(Error::Weights { tensor: Some(tensor), why, .. }) => (tensor, why),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&draft, 0).0, "backbone.layers.0.mixer.conv1d.weight");
    assert_eq!(refused(&draft, 3).0, "backbone.layers.0.mixer.conv1d.weight");
    let mut without = draft.clone();
    without.tensors.remove("backbone.layers.0.mixer.A_log");
    assert_eq!(refused(&without, 2), ("backbone.layers.0.mixer.A_log".into(), WeightsFault::Missing));
    let mut flat = draft.clone();
    flat.tensors.get_mut("backbone.embedding.weight").unwrap().shape = vec![29 * 24];
    assert_eq!(refused(&flat, 2).0, "backbone.embedding.weight");
}

#[test]
fn every_tensor_is_wanted() {
    let config = small();
    assert_every_tensor_is_wanted(&draft::<f32>(&config), |file| {
        Mamba2::<f32>::load(&stream(), file, &config).map(|_| ())
    });
}

#[test]
fn a_head_of_its_own_is_used() {
    let config = small();
    let mut draft = draft::<f32>(&config);
    let tied = Mamba2::<f32>::load(&stream(), &draft.checkpoint(), &config).unwrap().logits(&[3]).unwrap();
    let mut head = draft.tensors["backbone.embedding.weight"].clone();
    head.bytes.rotate_left(4 * config.width);
    draft.tensors.insert("lm_head.weight".into(), head);
    let own = Mamba2::<f32>::load(&stream(), &draft.checkpoint(), &config).unwrap().logits(&[3]).unwrap();
    assert_eq!(own[..28], tied[1..]);
}

#[test]
fn wrong_calls_are_errors() {
    let config = small();
    let draft = draft::<f32>(&config);
    let load = |config: &Config| Mamba2::<f32>::load(&stream(), &draft.checkpoint(), config);
    for (config, name) in [
        (Config { groups: 3, ..config }, "groups"),
        (Config { groups: 0, ..config }, "groups"),
        (Config { head_dim: 0, ..config }, "head_dim"),
    ] {
        assert!(matches!(load(&config), Err(Error::Shape { arg, .. }) if arg == name), "{name}");
    }
    let wider = Config { width: 32, ..config };
    assert!(matches!(load(&wider), Err(Error::Weights { why: WeightsFault::Shape { .. }, .. })));
    let model = load(&config).unwrap();
    assert!(matches!(model.prefill(&[]), Err(Error::Shape { arg: "prompts", .. })));
    assert!(matches!(model.prefill(&[&[1], &[]]), Err(Error::Shape { arg: "tokens", .. })));
    assert!(matches!(model.logits(&[1, 29]), Err(Error::Range { at: Some(1), got: 29, .. })));
    assert!(matches!(model.logits(&[-1]), Err(Error::Range { at: Some(0), .. })));
    let (_, mut generation) = model.prefill(&[&[1, 2], &[3]]).unwrap();
    assert!(matches!(model.step(&mut generation, &[1]), Err(Error::Shape { arg: "tokens", .. })));
    assert!(matches!(model.step(&mut generation, &[1, 99]), Err(Error::Range { at: Some(1), .. })));
    let (_, mut fresh) = model.prefill(&[&[1, 2], &[3]]).unwrap();
    assert_eq!(model.step(&mut generation, &[1, 2]).unwrap(), model.step(&mut fresh, &[1, 2]).unwrap());
}
