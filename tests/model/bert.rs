//! BERT on a device against the reference, from a file in the published names.

use super::support::{Draft, assert_every_tensor_is_wanted};
use half::{bf16, f16};
use lookback_device::{Element, Error, WeightsFault};
use lookback_model::bert::{Bert, Config, Pooling, Sequence};
use lookback_nn::Activation;
use lookback_reference::activation::Activation as Function;
use lookback_reference::bert::{Affine, Encoder, Layer, Sizes};
use lookback_reference::pool::{self, Pool};
use lookback_suite::{
    counters::Switch,
    device::stream,
    measure::{Gate, assert_close},
};

/// Every operation of a layer rounds its output to 11 bits: an eighth of what 8 bits cost.
pub const F16: Gate = Gate { rel: 2.5e-3, row: 5e-3, inf: 5e-3 };
/// Every operation of a layer rounds its output to 8 bits.
pub const BF16: Gate = Gate { rel: 2e-2, row: 4e-2, inf: 4e-2 };

/// Two layers of a size that fits no tile.
pub fn small() -> Config {
    Config {
        vocabulary: 29,
        positions: 150,
        token_types: 2,
        width: 48,
        layers: 2,
        heads: 3,
        inner: 88,
        activation: Activation::GeluErf,
        eps: 1e-12,
    }
}

/// How a file names its tensors.
#[derive(Clone, Copy)]
pub struct Names {
    prefix: &'static str,
    norm: [&'static str; 2],
}

pub const NEW: Names = Names { prefix: "", norm: ["weight", "bias"] };
const OLD: Names = Names { prefix: "bert.", norm: ["gamma", "beta"] };

pub fn draft<T: Element>(config: &Config, names: Names) -> Draft {
    let Config { vocabulary, positions, token_types, width, inner, .. } = *config;
    let Names { prefix, norm } = names;
    let mut shapes = vec![
        (format!("{prefix}embeddings.word_embeddings.weight"), vec![vocabulary, width]),
        (format!("{prefix}embeddings.position_embeddings.weight"), vec![positions, width]),
        (format!("{prefix}embeddings.token_type_embeddings.weight"), vec![token_types, width]),
    ];
    let norms = |name: &str| norm.map(|part| (format!("{prefix}{name}.LayerNorm.{part}"), vec![width]));
    let affine = |name: &str, rows: usize, columns: usize| {
        [(format!("{prefix}{name}.weight"), vec![rows, columns]), (format!("{prefix}{name}.bias"), vec![rows])]
    };
    shapes.extend(norms("embeddings"));
    for layer in 0..config.layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            shapes.extend(affine(&name(&format!("attention.self.{part}")), width, width));
        }
        shapes.extend(affine(&name("attention.output.dense"), width, width));
        shapes.extend(norms(&name("attention.output")));
        shapes.extend(affine(&name("intermediate.dense"), inner, width));
        shapes.extend(affine(&name("output.dense"), width, inner));
        shapes.extend(norms(&name("output")));
    }
    Draft::of::<T>(4, &shapes, |name, random| match name {
        _ if name.ends_with("LayerNorm.weight") || name.ends_with("gamma") => random.uniform(0.5, 1.5),
        _ if name.contains("embeddings.w") || name.contains("embeddings.p") => random.normal(),
        _ => 0.2 * random.normal(),
    })
}

/// The reference with the weights of a draft.
fn reference(config: &Config, draft: &Draft, names: Names) -> Encoder {
    reference_of(config, names, |name| draft.values(name))
}

/// The reference with weights by name.
pub fn reference_of(config: &Config, names: Names, values: impl Fn(&str) -> Vec<f64>) -> Encoder {
    let Names { prefix, norm } = names;
    let take = |name: String| values(&format!("{prefix}{name}"));
    let affine = |name: String| -> Affine { ["weight", "bias"].map(|part| take(format!("{name}.{part}"))) };
    let norm = |name: String| -> Affine { norm.map(|part| take(format!("{name}.LayerNorm.{part}"))) };
    let layer = |layer: usize| {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        Layer {
            qkv: ["query", "key", "value"].map(|part| affine(name(&format!("attention.self.{part}")))),
            out: affine(name("attention.output.dense")),
            attention_norm: norm(name("attention.output")),
            up: affine(name("intermediate.dense")),
            down: affine(name("output.dense")),
            unit_norm: norm(name("output")),
        }
    };
    Encoder {
        sizes: Sizes {
            width: config.width,
            heads: config.heads,
            eps: f64::from(config.eps),
            activation: match config.activation {
                Activation::GeluErf => Function::GeluErf,
                Activation::Gelu => Function::Gelu,
                _ => Function::Relu,
            },
        },
        words: take("embeddings.word_embeddings.weight".into()),
        positions: take("embeddings.position_embeddings.weight".into()),
        types: take("embeddings.token_type_embeddings.weight".into()),
        norm: norm("embeddings".into()),
        layers: (0..config.layers).map(layer).collect(),
    }
}

/// Words and types of a sample.
fn tokens(count: usize) -> (Vec<i32>, Vec<i32>) {
    ((0..count as i32).map(|t| (t * 7 + t * t % 5) % 29).collect(), (0..count as i32).map(|t| t / 5 % 2).collect())
}

fn samples(lengths: &[usize]) -> Vec<(Vec<i32>, Vec<i32>)> {
    lengths.iter().map(|count| tokens(*count)).collect()
}

fn sequences(samples: &[(Vec<i32>, Vec<i32>)]) -> Vec<Sequence<'_>> {
    samples.iter().map(|(ids, types)| Sequence { ids, types: Some(types) }).collect()
}

fn expected(reference: &Encoder, samples: &[(Vec<i32>, Vec<i32>)]) -> Vec<f64> {
    let pairs = |(ids, types): &(Vec<i32>, Vec<i32>)| {
        ids.iter().zip(types).map(|(id, kind)| (*id as usize, *kind as usize)).collect::<Vec<_>>()
    };
    samples.iter().flat_map(|sample| reference.forward(&pairs(sample))).collect()
}

fn packed_samples_equal_the_reference<T: Element>(config: Config, names: Names, lengths: &[usize], gate: Gate) {
    let draft = draft::<T>(&config, names);
    let model = Bert::<T>::load(&stream(), &draft.checkpoint(), &config).unwrap();
    let samples = samples(lengths);
    let got = model.encode(&sequences(&samples)).unwrap();
    let wanted = expected(&reference(&config, &draft, names), &samples);
    assert_close("bert", &got.into_iter().map(f64::from).collect::<Vec<_>>(), &wanted, config.width, gate);
}

#[test]
fn packed_samples_equal_the_reference_f16() {
    // Shorter and longer than tiles of queries and of keys.
    packed_samples_equal_the_reference::<f16>(small(), NEW, &[17, 1, 2, 140, 64, 1], F16);
}

#[test]
fn packed_samples_equal_the_reference_bf16() {
    packed_samples_equal_the_reference::<bf16>(small(), OLD, &[17, 1, 2, 140, 64, 1], BF16);
}

#[test]
fn sizes_and_functions_of_public_models() {
    // Heads of 32 as MiniLM has, of 64 as BERT has, of 96.
    for (heads, activation) in [(6, Activation::GeluErf), (3, Activation::Gelu), (2, Activation::Relu)] {
        let config = Config { width: 192, heads, activation, layers: 1, ..small() };
        packed_samples_equal_the_reference::<f16>(config, NEW, &[5, 9], F16);
    }
}

#[test]
fn every_length_alone() {
    let config = Config { layers: 1, ..small() };
    let draft = draft::<f16>(&config, NEW);
    let (model, reference) =
        (Bert::<f16>::load(&stream(), &draft.checkpoint(), &config).unwrap(), reference(&config, &draft, NEW));
    for length in [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 150] {
        let samples = samples(&[length]);
        let got: Vec<f64> = model.encode(&sequences(&samples)).unwrap().into_iter().map(f64::from).collect();
        assert_close(&format!("{length} tokens"), &got, &expected(&reference, &samples), config.width, F16);
    }
}

#[test]
fn pooled_rows_equal_the_reference() {
    let config = Config { layers: 1, ..small() };
    let draft = draft::<f16>(&config, NEW);
    let model = Bert::<f16>::load(&stream(), &draft.checkpoint(), &config).unwrap();
    let samples = samples(&[3, 1, 20]);
    let rows = expected(&reference(&config, &draft, NEW), &samples);
    for (pooling, limit) in [(Pooling::Mean, usize::MAX), (Pooling::First, 1)] {
        for normalize in [false, true] {
            let pool = Pool { width: config.width, starts: &[0, 3, 4, 24], mask: None, limit, normalize };
            let got = model.embed(&sequences(&samples), pooling, normalize).unwrap();
            let got: Vec<f64> = got.into_iter().map(f64::from).collect();
            let what = format!("{pooling:?} normalize {normalize}");
            assert_close(&what, &got, &pool::forward(&pool, &rows), config.width, F16);
        }
    }
}

#[test]
fn a_changed_token_changes_all_of_its_sample_and_nothing_else() {
    let config = small();
    let model = Bert::<f16>::load(&stream(), &draft::<f16>(&config, NEW).checkpoint(), &config).unwrap();
    let mut samples = samples(&[9, 12, 4]);
    let before = model.encode(&sequences(&samples)).unwrap();
    samples[1].0[6] = 28;
    let after = model.encode(&sequences(&samples)).unwrap();
    for (token, (before, after)) in before.chunks_exact(48).zip(after.chunks_exact(48)).enumerate() {
        assert_eq!(before != after, (9..21).contains(&token), "token {token}");
    }
}

#[test]
fn packing_changes_no_bit_and_neither_does_the_schedule() {
    let config = small();
    let model = Bert::<bf16>::load(&stream(), &draft::<bf16>(&config, NEW).checkpoint(), &config).unwrap();
    let samples = samples(&[20, 3, 70]);
    let together = model.encode(&sequences(&samples)).unwrap();
    let again = model.encode(&sequences(&samples)).unwrap();
    assert!(together == again);
    for (key, value, default) in [
        ("order", "reversed", "inorder"),
        ("order", "random:5", "inorder"),
        ("convergence", "random:5", "natural"),
        ("async", "eager", "late"),
        ("residency", "1", "auto"),
        ("quantum", "7", "20000"),
        ("checks", "off", "on"),
    ] {
        let _switch = Switch::set(key, value, default);
        assert!(model.encode(&sequences(&samples)).unwrap() == together, "{key} = {value} changes a result");
    }
}

#[test]
fn types_are_zero_where_none_are_given() {
    let config = Config { layers: 1, ..small() };
    let model = Bert::<f16>::load(&stream(), &draft::<f16>(&config, NEW).checkpoint(), &config).unwrap();
    let ids = tokens(11).0;
    let zeros = [0; 11];
    let without = model.encode(&[ids.as_slice().into()]).unwrap();
    assert!(without == model.encode(&[Sequence { ids: &ids, types: Some(&zeros) }]).unwrap());
    assert!(without != model.encode(&[Sequence { ids: &ids, types: Some(&[1; 11]) }]).unwrap());
}

#[test]
fn every_tensor_is_wanted_in_either_naming() {
    let config = Config { layers: 1, ..small() };
    for names in [NEW, Names { norm: NEW.norm, ..OLD }] {
        assert_every_tensor_is_wanted(&draft::<f32>(&config, names), |file| {
            Bert::<f16>::load(&stream(), file, &config).map(|_| ())
        });
    }
    // Without its older name a norm is missed by the newer one.
    let mut old = draft::<f32>(&config, OLD);
    old.tensors.remove("bert.embeddings.LayerNorm.beta");
    match Bert::<f16>::load(&stream(), &old.checkpoint(), &config).err() {
        Some(Error::Weights { tensor, why: WeightsFault::Missing, .. }) => {
            assert_eq!(tensor.as_deref(), Some("bert.embeddings.LayerNorm.bias"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_weight_that_the_type_cannot_hold_is_named() {
    let config = Config { layers: 1, ..small() };
    let mut draft = draft::<f32>(&config, NEW);
    let name = "encoder.layer.0.attention.self.key.weight";
    draft.tensors.get_mut(name).unwrap().bytes[8..12].copy_from_slice(&1e6_f32.to_le_bytes());
    match Bert::<f16>::load(&stream(), &draft.checkpoint(), &config).err() {
        Some(Error::Weights { tensor, why, .. }) => {
            assert_eq!((tensor.as_deref(), why), (Some(name), WeightsFault::NonFinite { at: 2 }));
        }
        other => panic!("{other:?}"),
    }
    assert!(Bert::<bf16>::load(&stream(), &draft.checkpoint(), &config).is_ok());
}

#[test]
fn wrong_calls_are_errors() {
    let config = Config { layers: 1, ..small() };
    let draft = draft::<f16>(&config, NEW);
    let load = |config: &Config| Bert::<f16>::load(&stream(), &draft.checkpoint(), config);
    for (wrong, wanted) in [
        (Config { heads: 5, ..config }, "num_attention_heads"),
        (Config { heads: 0, ..config }, "num_attention_heads"),
        (Config { inner: 0, ..config }, "intermediate_size"),
        (Config { eps: f32::NAN, ..config }, "layer_norm_eps"),
    ] {
        match load(&wrong).err() {
            Some(Error::Weights { why: WeightsFault::Config { key, .. }, .. }) => assert_eq!(key, wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    }
    let floats = Bert::<f32>::load(&stream(), &draft.checkpoint(), &config);
    assert!(matches!(floats.err(), Some(Error::NoKernel { op: "bert", .. })));
    let model = load(&config).unwrap();
    let long = tokens(151).0;
    assert!(matches!(model.encode(&[]), Err(Error::Shape { arg: "sequences", .. })));
    assert!(matches!(model.encode(&[(&[1]).into(), (&[]).into()]), Err(Error::Shape { arg: "tokens", .. })));
    assert!(matches!(model.encode(&[(&[1, 29]).into()]), Err(Error::Range { at: Some(1), got: 29, .. })));
    assert!(matches!(model.encode(&[long.as_slice().into()]), Err(Error::Range { hi: 150, got: 151, .. })));
    let typed = |types: &[i32]| model.encode(&[Sequence { ids: &[1, 2], types: Some(types) }]);
    assert!(matches!(typed(&[0]), Err(Error::Shape { arg: "types", .. })));
    assert!(matches!(typed(&[0, 2]), Err(Error::Range { at: Some(1), got: 2, hi: 1, .. })));
    assert!(typed(&[0, 1]).is_ok());
}
