//! Sizes and choices of a LLaMA-style model.

use super::Rope;
use crate::settings::Settings;
use lookback_device::{Error, Result};
use serde_json::json;
use std::path::Path;

const OP: &str = "llama";
/// Greatest head that decode attention has a tile for.
const MAX_HEAD_DIM: usize = 256;

/// Sizes and choices, those that `config.json` names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Rows of the embedding, `vocab_size`.
    pub vocabulary: usize,
    /// Width of the residual, `hidden_size`.
    pub width: usize,
    /// Layers, `num_hidden_layers`.
    pub layers: usize,
    /// Heads of queries, `num_attention_heads`.
    pub heads: usize,
    /// Heads of keys and values, `num_key_value_heads`; divides `heads`.
    pub key_heads: usize,
    /// Entries of a head, `head_dim`: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Entries of the gated unit, `intermediate_size`.
    pub inner: usize,
    /// Base of the rotary angles, `rope_theta`.
    pub rope_base: f64,
    /// What became of the angles, `rope_scaling`.
    pub rope: Rope,
    /// Added to mean squares, `rms_norm_eps`.
    pub eps: f32,
    /// Tokens before itself that a token sees: one less than `sliding_window`, which counts the token. All of them without.
    pub window: Option<usize>,
}

impl Config {
    /// The published choices for these sizes: every head has its own keys, `head_dim` is its share of the width, base 10000, eps 1e-5.
    pub fn new(vocabulary: usize, width: usize, layers: usize, heads: usize, inner: usize) -> Self {
        Self {
            vocabulary,
            width,
            layers,
            heads,
            key_heads: heads,
            head_dim: width / heads.max(1),
            inner,
            rope_base: 1e4,
            rope: Rope::Plain,
            eps: 1e-5,
            window: None,
        }
    }

    /// Reads the `config.json` of a LLaMA, Mistral, Qwen2 or another model that says the same with the same words.
    ///
    /// # Errors
    /// [`Error::Weights`] ← the file cannot be read; or names the field that is missing, unreadable, or that would make another model of
    /// it: angles that were stretched in another way than [`Rope`] has, another activation, biases of the gated unit, windows in some layers only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(&Settings::open(path)?)
    }

    /// As [`open`](Self::open), the text of a `config.json`; `name` stands for the path in messages.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_json(name: &str, text: &str) -> Result<Self> {
        Self::read(&Settings::from_text(name, text)?)
    }

    fn read(settings: &Settings) -> Result<Self> {
        let size = |key| settings.wanted_size(key);
        settings.only("hidden_act", &[json!("silu"), json!("swish")])?;
        settings.only("mlp_bias", &[json!(false)])?;
        settings.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
        let layers = size("num_hidden_layers")?;
        let plain = Self::new(
            size("vocab_size")?,
            size("hidden_size")?,
            layers,
            size("num_attention_heads")?,
            size("intermediate_size")?,
        );
        // Newer files have all of the rotary angles in one place.
        let rope = settings.inner("rope_parameters")?;
        let rope = if rope.is_some() { rope } else { settings.inner("rope_scaling")? };
        let base = settings.number("rope_theta", 1.0..=1e12)?;
        let inner_base = rope.as_ref().map(|rope| rope.number("rope_theta", 1.0..=1e12)).transpose()?.flatten();
        let eps = settings.number("rms_norm_eps", 0.0..=1.0)?;
        // Qwen2 names a window and says beside it whether it is used.
        let window = match settings.flag("use_sliding_window")? {
            Some(false) => None,
            _ => settings.size("sliding_window")?,
        };
        if window.is_some() && settings.size("max_window_layers")?.is_some_and(|layer| layer > 0) {
            return Err(settings.error("max_window_layers", "gives some layers a window and others not".into()));
        }
        Ok(Self {
            key_heads: settings.size("num_key_value_heads")?.unwrap_or(plain.heads),
            head_dim: settings.size("head_dim")?.unwrap_or(plain.head_dim),
            rope_base: base.or(inner_base).unwrap_or(plain.rope_base),
            rope: rope.as_ref().map(Rope::read).transpose()?.unwrap_or_default(),
            eps: eps.map_or(plain.eps, |eps| eps as f32),
            window: window.map(|window| window - 1),
            ..plain
        })
    }

    /// Entries of all heads' queries.
    pub fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Entries of all heads' keys, or values.
    pub fn keys(&self) -> usize {
        self.key_heads * self.head_dim
    }

    /// Entries of a token's queries, keys and values.
    pub(super) fn projected(&self) -> usize {
        self.queries() + 2 * self.keys()
    }

    /// # Errors
    /// [`Error::Shape`] or [`Error::Range`] names what does not fit.
    pub(super) fn check(&self) -> Result<()> {
        let shape =
            |arg, want: &str, got: usize| Err(Error::Shape { op: OP, arg, want: want.into(), got: vec![got as u64] });
        for (arg, size) in [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("heads", self.heads),
            ("key_heads", self.key_heads),
            ("inner", self.inner),
        ] {
            if size == 0 {
                return shape(arg, "at least 1", size);
            }
        }
        if !self.heads.is_multiple_of(self.key_heads) {
            return shape("key_heads", &format!("a divisor of {} heads", self.heads), self.key_heads);
        }
        if !self.head_dim.is_multiple_of(8) {
            return shape("head_dim", "a multiple of 8", self.head_dim);
        }
        if !(8..=MAX_HEAD_DIM).contains(&self.head_dim) {
            let (hi, got) = (MAX_HEAD_DIM as i64, self.head_dim as i64);
            return Err(Error::Range { op: OP, arg: "head_dim", at: None, lo: 8, hi, got });
        }
        self.rope.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Config> {
        let text = format!(
            r#"{{"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-6{more}}}"#
        );
        Config::from_json("config.json", &text)
    }

    #[test]
    fn public_fields_are_read() {
        let plain = Config { eps: 1e-6, ..Config::new(100, 64, 3, 4, 96) };
        assert_eq!(read("").unwrap(), plain);
        assert_eq!((plain.key_heads, plain.head_dim, plain.window), (4, 16, None));
        let more = r#", "num_key_value_heads": 2, "head_dim": 24, "rope_theta": 500000.0, "sliding_window": 32"#;
        let wanted = Config { key_heads: 2, head_dim: 24, rope_base: 5e5, window: Some(31), ..plain };
        assert_eq!(read(more).unwrap(), wanted);
        assert_eq!((wanted.queries(), wanted.keys(), wanted.projected()), (96, 48, 192));
        let newer =
            r#", "rope_scaling": null, "rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2}"#;
        assert_eq!(read(newer).unwrap(), Config { rope_base: 500.0, rope: Rope::Linear { factor: 2.0 }, ..plain });
        let unused = r#", "sliding_window": 32, "use_sliding_window": false, "max_window_layers": 2"#;
        assert_eq!(read(unused).unwrap(), plain);
    }

    #[test]
    fn fields_that_make_another_model_are_refused_by_name() {
        for (more, key) in [
            (r#", "rope_scaling": {"rope_type": "yarn"}"#, "rope_type"),
            (r#", "rope_scaling": "twice""#, "rope_scaling"),
            (r#", "mlp_bias": true"#, "mlp_bias"),
            (r#", "partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
            (r#", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2"#, "max_window_layers"),
            (r#", "num_key_value_heads": 0"#, "num_key_value_heads"),
            (r#", "rope_theta": 0.5"#, "rope_theta"),
        ] {
            let error = read(more).unwrap_err().to_string();
            assert!(error.contains(&format!("configuration `{key}`")), "{error}");
        }
        let said = |text| Config::from_json("config.json", text).unwrap_err().to_string();
        assert!(said(r#"{"hidden_size": 64}"#).contains("is missing"));
        assert!(said(r#"{"hidden_act": "gelu"}"#).contains("`hidden_act`"));
        assert!(Config::open("no/such/config.json").is_err());
    }
}
