//! Rotary angles of models that were stretched to longer contexts after their training.

use crate::settings::Settings;
use lookback_device::{Error, Result};
use std::f64::consts::TAU;

/// Greatest factor and length that is believed.
const MAX: f64 = (1_u64 << 30) as f64;

/// What became of the frequencies `base^(-2 i / D)`, `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Rope {
    /// Nothing.
    #[default]
    Plain,
    /// All are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// LLaMA 3.1: those that turn less than `low` times in the original context are divided by a factor, those that turn more than `high`
    /// times stay, and between them both are mixed.
    Llama3 {
        /// The factor.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`, more than `low`.
        high: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
}

impl Rope {
    /// Reads `rope_scaling`.
    pub(super) fn read(settings: &Settings) -> Result<Self> {
        let kind = match settings.word("rope_type")? {
            Some(kind) => Some(kind),
            None => settings.word("type")?,
        };
        let number = |key| settings.wanted_number(key, f64::MIN_POSITIVE..=MAX);
        match kind {
            None | Some("default") => Ok(Self::Plain),
            Some("linear") => Ok(Self::Linear { factor: number("factor")? }),
            Some("llama3") => {
                let (factor, original) = (number("factor")?, number("original_max_position_embeddings")?);
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    return Err(settings.error("high_freq_factor", format!("must be above {low}, got {high}")));
                }
                Ok(Self::Llama3 { factor, low, high, original })
            }
            Some(other) => {
                let problem = format!("must be default, linear or llama3, got {other}");
                Err(settings.error("rope_type", problem))
            }
        }
    }

    /// # Errors
    /// [`Error::Range`] ← numbers that make no angles.
    pub(super) fn check(&self) -> Result<()> {
        let is_good = |number: f64| number > 0.0 && number <= MAX;
        let (arg, got) = match *self {
            Rope::Linear { factor } | Rope::Llama3 { factor, .. } if !is_good(factor) => ("factor", factor),
            Rope::Llama3 { original, .. } if !is_good(original) => ("original", original),
            Rope::Llama3 { low, .. } if !is_good(low) => ("low", low),
            Rope::Llama3 { low, high, .. } if !(is_good(high) && high > low) => ("high", high),
            _ => return Ok(()),
        };
        Err(Error::Range { op: "llama", arg, at: None, lo: 1, hi: MAX as i64, got: got as i64 })
    }

    /// Radians of a position, one for each pair of `head_dim` entries; `None` where they are the powers of the base.
    pub fn frequencies(&self, base: f64, head_dim: usize) -> Option<Vec<f64>> {
        let plain = (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64));
        match *self {
            Rope::Plain => None,
            Rope::Linear { factor } => Some(plain.map(|theta| theta / factor).collect()),
            Rope::Llama3 { factor, low, high, original } => {
                let scaled = |theta: f64| {
                    let kept = ((original * theta / TAU - low) / (high - low)).clamp(0.0, 1.0);
                    theta * (kept + (1.0 - kept) / factor)
                };
                Some(plain.map(scaled).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rope> {
        Rope::read(&Settings::from_text("config.json", text)?)
    }

    #[test]
    fn published_settings_are_read() {
        assert_eq!(read("{}").unwrap(), Rope::Plain);
        assert_eq!(read(r#"{"rope_type": "default"}"#).unwrap(), Rope::Plain);
        assert_eq!(read(r#"{"type": "linear", "factor": 2}"#).unwrap(), Rope::Linear { factor: 2.0 });
        let text = r#"{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}"#;
        let wanted = Rope::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
        assert_eq!(read(text).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (text, key) in [
            (r#"{"rope_type": "yarn", "factor": 4}"#, "rope_type"),
            (r#"{"rope_type": 3}"#, "rope_type"),
            (r#"{"type": "linear"}"#, "factor"),
            (r#"{"type": "linear", "factor": 0}"#, "factor"),
            (r#"{"rope_type": "llama3", "factor": 8}"#, "original_max_position_embeddings"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(&format!("configuration `{key}`")), "{error}");
        }
        let text = r#"{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
            "original_max_position_embeddings": 64}"#;
        assert!(read(text).unwrap_err().to_string().contains("`high_freq_factor` must be above 4"));
    }

    /// Of four frequencies the first turns 16 times in the original context, the last hardly at all.
    #[test]
    fn slow_angles_are_slowed_down_and_fast_ones_stay() {
        let rope = Rope::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16.0 * TAU };
        let scaled = rope.frequencies(6.4_f64.powi(4), 8).unwrap();
        let plain = [1.0, 1.0 / 6.4, 1.0 / 6.4_f64.powi(2), 1.0 / 6.4_f64.powi(3)];
        // 16 turns stay; 2.5 turns are half way between 1 and 4; less than one turn is divided.
        let wanted = [plain[0], plain[1] * (0.5 + 0.5 / 8.0), plain[2] / 8.0, plain[3] / 8.0];
        assert!(scaled.iter().zip(wanted).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{scaled:?} {wanted:?}");
        assert_eq!(Rope::Linear { factor: 4.0 }.frequencies(1e4, 2).unwrap(), [0.25]);
        assert_eq!(Rope::Plain.frequencies(1e4, 2), None);
    }
}
