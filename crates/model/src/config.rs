//! What a weights file says about the model it holds.

use lookback_device::WeightsFault;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Taps of the causal convolution: the one width that the kernel has.
pub const CONV_TAPS: usize = 4;
/// What the scan adds below the root of its input scale.
const INPUT_SCALE_EPS: f64 = 1e-6;

/// Sizes and choices of a Gated SSM.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub width: usize,
    /// State channels of a block.
    pub state: usize,
    /// For each block: does the second half of its state run in reverse over the prefix?
    pub half_reversed: Vec<bool>,
    /// Added to mean squares by every norm.
    pub eps: f32,
    /// Whether the scan's input is scaled by `sqrt(1 - f^2 + eps)`.
    pub scaled_input: bool,
    /// Whether the last prefix token, too, takes no reverse carry: then the prefix does not see `BEGIN`.
    pub hard_seam: bool,
}

impl Config {
    /// Reads the metadata of a weights file.
    ///
    /// # Errors
    /// [`WeightsFault::Config`] names the key that is absent, unreadable or out of range.
    pub fn from_metadata(metadata: &HashMap<String, String>) -> Result<Self, WeightsFault> {
        let facts = Metadata(metadata);
        facts.choice("arch", &[("gated_ssm", ())])?;
        facts.number("conv_width", CONV_TAPS..=CONV_TAPS)?;
        let width = facts.number("width", 1..=1 << 14)?;
        let state = facts.number("state", 2..=1 << 16)?;
        if state % 2 != 0 {
            return Err(fault("state", format!("must be even, got {state}")));
        }
        let blocks = facts.number("blocks", 1..=1 << 10)?;
        let eps = facts.number("eps", 0.0..=1.0)?;
        let scaled_input = facts.choice("input_scale", &[("sqrt(1-f^2+eps)", true), ("none", false)])?;
        if scaled_input && eps != INPUT_SCALE_EPS {
            return Err(fault("eps", format!("must be {INPUT_SCALE_EPS:e} with a scaled input, got {eps:e}")));
        }
        Ok(Self {
            width,
            state,
            half_reversed: facts.block_list("reversed_blocks", blocks)?,
            eps: eps as f32,
            scaled_input,
            hard_seam: facts.choice("seam", &[("soft", false), ("hard", true)])?,
        })
    }

    /// Whether any block reads the prefix in reverse.
    pub fn reads_both_ways(&self) -> bool {
        self.half_reversed.contains(&true)
    }

    /// Channels of a block that run forward.
    pub fn forward_channels(&self, block: usize) -> usize {
        if self.half_reversed[block] { self.state / 2 } else { self.state }
    }
}

fn fault(key: &str, problem: impl Into<String>) -> WeightsFault {
    WeightsFault::Config { key: key.into(), problem: problem.into() }
}

struct Metadata<'a>(&'a HashMap<String, String>);

impl Metadata<'_> {
    fn text(&self, key: &str) -> Result<&str, WeightsFault> {
        self.0.get(key).map(String::as_str).ok_or_else(|| fault(key, "is missing"))
    }

    fn number<T: FromStr + PartialOrd + std::fmt::Debug>(
        &self,
        key: &str,
        range: RangeInclusive<T>,
    ) -> Result<T, WeightsFault> {
        let text = self.text(key)?;
        let value = text.parse().ok().filter(|value| range.contains(value));
        value.ok_or_else(|| fault(key, format!("must be a number in {range:?}, got `{text}`")))
    }

    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, WeightsFault> {
        let text = self.text(key)?;
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        chosen.ok_or_else(|| fault(key, format!("must be {}, got `{text}`", names.join(" or "))))
    }

    /// A list of block numbers, such as `0,2`, as one flag per block.
    fn block_list(&self, key: &str, blocks: usize) -> Result<Vec<bool>, WeightsFault> {
        let text = self.text(key)?;
        let mut listed = vec![false; blocks];
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let block = word.parse::<usize>().ok().and_then(|block| listed.get_mut(block));
            *block.ok_or_else(|| fault(key, format!("must list blocks below {blocks}, got `{word}`")))? = true;
        }
        Ok(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> HashMap<String, String> {
        [
            ("arch", "gated_ssm"),
            ("width", "64"),
            ("state", "192"),
            ("blocks", "4"),
            ("conv_width", "4"),
            ("reversed_blocks", "0,2"),
            ("input_scale", "sqrt(1-f^2+eps)"),
            ("seam", "soft"),
            ("eps", "1e-6"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
    }

    #[test]
    fn reads_what_the_trainer_writes() {
        let config = Config::from_metadata(&metadata()).unwrap();
        assert_eq!(config.half_reversed, [true, false, true, false]);
        assert_eq!((config.forward_channels(0), config.forward_channels(1)), (96, 192));
        assert!(config.reads_both_ways() && config.scaled_input && !config.hard_seam);
        let mut causal = metadata();
        causal.insert("reversed_blocks".into(), String::new());
        assert!(!Config::from_metadata(&causal).unwrap().reads_both_ways());
    }

    #[test]
    fn every_key_is_wanted_and_checked() {
        for key in metadata().into_keys() {
            let faults_at = |metadata: &HashMap<String, String>| match Config::from_metadata(metadata) {
                Err(WeightsFault::Config { key, .. }) => key,
                other => panic!("{other:?}"),
            };
            let mut without = metadata();
            without.remove(&key);
            assert_eq!(faults_at(&without), key);
            for wrong in ["-1", "99999999", "x"] {
                let mut changed = metadata();
                changed.insert(key.clone(), wrong.into());
                assert_eq!(faults_at(&changed), key, "{wrong}");
            }
        }
        let mut odd = metadata();
        odd.insert("state".into(), "191".into());
        assert!(matches!(Config::from_metadata(&odd), Err(WeightsFault::Config { key, .. }) if key == "state"));
    }
}
