//! Sizes of a BERT encoder, as a `config.json` says them.

use lookback_device::{Error, WeightsFault};
use lookback_nn::Activation;
use serde_json::{Map, Value};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

/// Sizes and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the word embedding, `vocab_size`.
    pub vocabulary: usize,
    /// Rows of the position embedding, `max_position_embeddings`: the longest sequence.
    pub positions: usize,
    /// Rows of the token type embedding, `type_vocab_size`.
    pub token_types: usize,
    /// Width of the residual, `hidden_size`.
    pub width: usize,
    /// Layers, `num_hidden_layers`.
    pub layers: usize,
    /// Heads, `num_attention_heads`: a divisor of the width.
    pub heads: usize,
    /// Rows of the unit after the attention, `intermediate_size`.
    pub inner: usize,
    /// Between the unit's matrices, `hidden_act`.
    pub activation: Activation,
    /// Added to variances, `layer_norm_eps`.
    pub eps: f32,
}

/// Greatest size that a file may state; the tensors are held against it anyway.
const MOST: usize = 1 << 24;
/// Names of functions in public files. There, `gelu` is the one with the error function.
const ACTIVATIONS: [(&str, Activation); 7] = [
    ("gelu", Activation::GeluErf),
    ("gelu_new", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::Gelu),
    ("gelu_fast", Activation::Gelu),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

impl Config {
    /// Entries of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Weights`] ← the file cannot be read; and those of [`from_json`](Self::from_json).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let unreadable = |e: std::io::Error| WeightsFault::Parse(e.to_string());
        let text = fs::read_to_string(path).map_err(unreadable);
        let fault = |why| Error::Weights { file: path.into(), tensor: None, why };
        parse(&text.map_err(fault)?).map_err(fault)
    }

    /// Reads the text of a `config.json`; `name` stands for the path in messages.
    ///
    /// # Errors
    /// [`Error::Weights`] names the key that is absent, unreadable or out of range, or that asks for another model: a `model_type` that
    /// is not `bert`, positions that are not `absolute`, a decoder.
    pub fn from_json(name: &str, text: &str) -> Result<Self, Error> {
        parse(text).map_err(|why| Error::Weights { file: name.into(), tensor: None, why })
    }

    /// What a caller may have put together.
    ///
    /// # Errors
    /// [`WeightsFault::Config`] ← sizes that contradict each other, or are 0.
    pub(super) fn check(&self) -> Result<(), WeightsFault> {
        let sizes = [
            ("vocab_size", self.vocabulary),
            ("max_position_embeddings", self.positions),
            ("type_vocab_size", self.token_types),
            ("hidden_size", self.width),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.inner),
        ];
        for (key, size) in sizes {
            if !(1..=MOST).contains(&size) {
                return Err(fault(key, format!("must be in {:?}, got {size}", 1..=MOST)));
            }
        }
        if self.layers > MOST {
            return Err(fault("num_hidden_layers", format!("must be in {:?}, got {}", 0..=MOST, self.layers)));
        }
        if !self.width.is_multiple_of(self.heads) || !self.head_dim().is_multiple_of(8) {
            let problem = format!("must cut hidden_size = {} into multiples of 8, got {}", self.width, self.heads);
            return Err(fault("num_attention_heads", problem));
        }
        if !(self.eps >= 0.0 && self.eps <= 1.0) {
            return Err(fault("layer_norm_eps", format!("must be in 0..=1, got {:e}", self.eps)));
        }
        Ok(())
    }
}

fn fault(key: &str, problem: impl Into<String>) -> WeightsFault {
    WeightsFault::Config { key: key.into(), problem: problem.into() }
}

fn parse(text: &str) -> Result<Config, WeightsFault> {
    let keys: Map<String, Value> = serde_json::from_str(text).map_err(|e| WeightsFault::Parse(e.to_string()))?;
    // Keys that ask for another model where they are there and not this.
    for (key, wanted) in [
        ("model_type", Value::from("bert")),
        ("position_embedding_type", Value::from("absolute")),
        ("is_decoder", Value::from(false)),
    ] {
        if let Some(got) = keys.get(key).filter(|got| **got != wanted) {
            return Err(fault(key, format!("must be {wanted}, got {got}")));
        }
    }
    let missing = |key: &str| fault(key, "is missing");
    let number = |key: &str, range: RangeInclusive<usize>| {
        let value = keys.get(key).ok_or_else(|| missing(key))?;
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let wrong = || fault(key, format!("must be a number in {range:?}, got {value}"));
        number.filter(|number| range.contains(number)).ok_or_else(wrong)
    };
    let size = |key: &str| number(key, 1..=MOST);
    let eps = keys.get("layer_norm_eps").ok_or_else(|| missing("layer_norm_eps"))?;
    let act = keys.get("hidden_act").ok_or_else(|| missing("hidden_act"))?;
    let activation = ACTIVATIONS.iter().find(|(name, _)| act.as_str() == Some(name)).map(|(_, found)| *found);
    let config = Config {
        vocabulary: size("vocab_size")?,
        positions: size("max_position_embeddings")?,
        token_types: size("type_vocab_size")?,
        width: size("hidden_size")?,
        layers: number("num_hidden_layers", 0..=MOST)?,
        heads: size("num_attention_heads")?,
        inner: size("intermediate_size")?,
        activation: activation.ok_or_else(|| {
            let names = ACTIVATIONS.map(|(name, _)| name).join(", ");
            fault("hidden_act", format!("must be one of {names}, got {act}"))
        })?,
        eps: eps.as_f64().ok_or_else(|| fault("layer_norm_eps", format!("must be a number, got {eps}")))? as f32,
    };
    config.check()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINI_LM: &str = r#"{"architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_size": 384, "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 30522}"#;

    #[test]
    fn a_public_file_is_read() {
        let config = Config::from_json("config.json", MINI_LM).expect("a good file");
        let wanted = Config {
            vocabulary: 30522,
            positions: 512,
            token_types: 2,
            width: 384,
            layers: 6,
            heads: 12,
            inner: 1536,
            activation: Activation::GeluErf,
            eps: 1e-12,
        };
        assert_eq!(config, wanted);
        assert_eq!(config.head_dim(), 32);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, wanted) in [
            ("\"hidden_size\": 384,", "", "hidden_size"),
            ("\"hidden_size\": 384", "\"hidden_size\": -384", "hidden_size"),
            ("\"hidden_size\": 384", "\"hidden_size\": 0", "hidden_size"),
            ("\"vocab_size\": 30522", "\"vocab_size\": 1e30", "vocab_size"),
            ("\"num_attention_heads\": 12", "\"num_attention_heads\": 7", "num_attention_heads"),
            ("\"num_attention_heads\": 12", "\"num_attention_heads\": 96", "num_attention_heads"),
            ("\"gelu\"", "\"mish\"", "hidden_act"),
            ("\"gelu\"", "3", "hidden_act"),
            ("1e-12", "\"tiny\"", "layer_norm_eps"),
            ("1e-12", "-1", "layer_norm_eps"),
            ("\"bert\"", "\"roberta\"", "model_type"),
            ("\"absolute\"", "\"relative_key\"", "position_embedding_type"),
            ("\"pad_token_id\": 0", "\"is_decoder\": true", "is_decoder"),
        ] {
            assert!(MINI_LM.contains(from), "{from}");
            let text = MINI_LM.replacen(from, to, 1);
            match Config::from_json("config.json", &text) {
                Err(Error::Weights { why: WeightsFault::Config { key, .. }, .. }) => assert_eq!(key, wanted, "{to}"),
                other => panic!("{to}: {other:?}"),
            }
        }
        for text in ["", "[]", "{", "null"] {
            let error = Config::from_json("config.json", text).expect_err("not an object");
            assert!(matches!(error, Error::Weights { why: WeightsFault::Parse(_), .. }), "{error}");
        }
        assert!(matches!(Config::open("no/such/config.json"), Err(Error::Weights { .. })));
    }
}
