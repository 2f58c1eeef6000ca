//! Hydra on a device against the reference, from a file in the published names.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::bf16;
use lookback_device::{Element, Error};
use lookback_model::hydra::{Config, Hydra};
use lookback_reference::hydra::{Encoder, Layer, Sizes};
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
    let Config { vocabulary, token_types, width, taps, heads, .. } = *config;
    let inner = heads * config.head_dim;
    let channels = inner + 4 * config.groups * config.state;
    let mut shapes = vec![
        ("bert.embeddings.word_embeddings.weight".to_string(), vec![vocabulary, width]),
        ("bert.embeddings.token_type_embeddings.weight".to_string(), vec![token_types, width]),
        ("bert.embeddings.LayerNorm.weight".to_string(), vec![width]),
        ("bert.embeddings.LayerNorm.bias".to_string(), vec![width]),
    ];
    for layer in 0..config.layers {
        for (name, shape) in [
            ("mixer.in_proj.weight", vec![inner + channels + 2 * heads, width]),
            ("mixer.conv1d.weight", vec![channels, 1, taps]),
            ("mixer.conv1d.bias", vec![channels]),
            ("mixer.dt_bias", vec![heads]),
            ("mixer.A_log", vec![heads]),
            ("mixer.D", vec![heads]),
            ("mixer.fc_D.weight", vec![heads, inner]),
            ("mixer.norm.weight", vec![inner]),
            ("mixer.out_proj.weight", vec![width, inner]),
            ("norm.weight", vec![width]),
            ("norm.bias", vec![width]),
        ] {
            shapes.push((format!("bert.encoder.layer.{layer}.layer.{name}"), shape));
        }
    }
    Draft::of::<T>(4, &shapes, |name, random| match name.rsplit_once('.').map(|(_, last)| last) {
        Some("A_log") => random.uniform(-1.0, 1.0),
        Some("dt_bias") => random.uniform(-3.0, 0.0),
        _ if name.to_lowercase().contains("norm.weight") => random.uniform(0.5, 1.5),
        _ if name.contains("embeddings") => random.normal(),
        _ if name.contains("_proj") => 0.2 * random.normal(),
        _ => 0.3 * random.normal(),
    })
}

fn reference(config: &Config, draft: &Draft) -> Encoder {
    let layer = |layer: usize| {
        let take = |name: &str| draft.values(&format!("bert.encoder.layer.{layer}.layer.{name}"));
        Layer {
            in_proj: take("mixer.in_proj.weight"),
            conv_weight: take("mixer.conv1d.weight"),
            conv_bias: take("mixer.conv1d.bias"),
            dt_bias: take("mixer.dt_bias"),
            a_log: take("mixer.A_log"),
            d: take("mixer.D"),
            fc_d: take("mixer.fc_D.weight"),
            norm: take("mixer.norm.weight"),
            out_proj: take("mixer.out_proj.weight"),
            post_norm: ["weight", "bias"].map(|part| take(&format!("norm.{part}"))),
        }
    };
    Encoder {
        sizes: Sizes {
            width: config.width,
            heads: config.heads,
            head_dim: config.head_dim,
            groups: config.groups,
            state: config.state,
            eps: f64::from(config.eps),
        },
        words: draft.values("bert.embeddings.word_embeddings.weight"),
        token_type: draft.values("bert.embeddings.token_type_embeddings.weight")[..config.width].to_vec(),
        norm: ["weight", "bias"].map(|part| draft.values(&format!("bert.embeddings.LayerNorm.{part}"))),
        layers: (0..config.layers).map(layer).collect(),
    }
}

fn tokens(count: usize) -> Vec<i32> {
    (0..count as i32).map(|t| (t * 7 + t * t % 5) % 29).collect()
}

fn packed_samples_equal_the_reference<T: Element>(gate: Gate) {
    for config in [small(), Config { groups: 1, ..small() }] {
        let draft = draft::<T>(&config);
        let model = Hydra::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
        let reference = reference(&config, &draft);
        let samples: Vec<Vec<i32>> = [17, 1, 2, 25].map(tokens).to_vec();
        let packed: Vec<&[i32]> = samples.iter().map(Vec::as_slice).collect();
        let got: Vec<f64> = model.encode(&packed).unwrap().into_iter().map(f64::from).collect();
        let ids = |sample: &Vec<i32>| sample.iter().map(|id| *id as usize).collect::<Vec<_>>();
        let wanted: Vec<f64> = samples.iter().flat_map(|sample| reference.forward(&ids(sample))).collect();
        assert_close("hydra", &got, &wanted, config.width, gate);
    }
}

#[test]
fn packed_samples_equal_the_reference_f32() {
    packed_samples_equal_the_reference::<f32>(Gate::F32);
}

#[test]
fn packed_samples_equal_the_reference_bf16() {
    packed_samples_equal_the_reference::<bf16>(BF16);
}

#[test]
fn a_changed_token_changes_both_sides_of_its_sample_and_nothing_else() {
    let config = small();
    let model = Hydra::<f32>::load(&stream(), &draft::<f32>(&config).checkpoint(), &config).unwrap();
    let (first, second) = (tokens(9), tokens(12));
    let mut changed = second.clone();
    changed[6] = 28;
    let before = model.encode(&[&first, &second]).unwrap();
    let after = model.encode(&[&first, &changed]).unwrap();
    for (token, (before, after)) in before.chunks_exact(24).zip(after.chunks_exact(24)).enumerate() {
        assert_eq!(before == after, token < first.len(), "token {token}");
    }
}

#[test]
fn every_tensor_is_wanted() {
    let config = small();
    assert_every_tensor_is_wanted(&draft::<f32>(&config), |file| {
        Hydra::<f32>::load(&stream(), file, &config).map(|_| ())
    });
}

#[test]
fn wrong_calls_are_errors() {
    let config = small();
    let draft = draft::<f32>(&config);
    let load = |config: &Config| Hydra::<f32>::load(&stream(), &draft.checkpoint(), config);
    assert!(matches!(load(&Config { groups: 3, ..config }), Err(Error::Shape { arg: "groups", .. })));
    assert!(matches!(load(&Config { state: 0, ..config }), Err(Error::Shape { arg: "state", .. })));
    let model = load(&config).unwrap();
    assert!(matches!(model.encode(&[]), Err(Error::Shape { arg: "samples", .. })));
    assert!(matches!(model.encode(&[&[1], &[]]), Err(Error::Shape { arg: "tokens", .. })));
    assert!(matches!(model.encode(&[&[1, 29]]), Err(Error::Range { at: Some(1), got: 29, .. })));
}
