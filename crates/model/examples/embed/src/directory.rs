//! The files of a model as public directories have them.

use lookback_model::bert::{Config, Pooling};
use lookback_model::checkpoint::Checkpoint;
use serde_json::Value;
use std::error::Error;
use std::fs;
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};

/// An opened directory.
pub struct Directory {
    pub weights: Checkpoint,
    pub config: Config,
    pub pooling: Pooling,
    tokenizer: Tokenizer,
}

/// The tokens of a sentence.
pub struct Encoded {
    pub ids: Vec<i32>,
    pub types: Vec<i32>,
}

impl Directory {
    /// Opens `model.safetensors`, `config.json` and `tokenizer.json`, and where they are there `1_Pooling/config.json` and
    /// `sentence_bert_config.json`.
    pub fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let config = Config::open(path.join("config.json"))?;
        let file = path.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        // Sentences are packed; and the file's own limit is often shorter than the model's.
        tokenizer.with_padding(None);
        let longest = match json(&path.join("sentence_bert_config.json"))?.get("max_seq_length").and_then(Value::as_u64)
        {
            Some(longest) => config.positions.min(usize::try_from(longest)?),
            None => config.positions,
        };
        tokenizer
            .with_truncation(Some(TruncationParams { max_length: longest, ..TruncationParams::default() }))
            .map_err(|e| format!("{}: {e}", file.display()))?;
        let weights = Checkpoint::open(path.join("model.safetensors"))?;
        Ok(Self { weights, config, pooling: pooling(path)?, tokenizer })
    }

    /// Words and types of each sentence, with the tokens that begin and end it.
    pub fn encode(&self, sentences: &[&str]) -> Result<Vec<Encoded>, Box<dyn Error>> {
        let signed = |ids: &[u32]| ids.iter().map(|id| i32::try_from(*id)).collect::<Result<Vec<_>, _>>();
        let encode = |sentence: &&str| -> Result<Encoded, Box<dyn Error>> {
            let encoding = self.tokenizer.encode(*sentence, true).map_err(|e| e.to_string())?;
            Ok(Encoded { ids: signed(encoding.get_ids())?, types: signed(encoding.get_type_ids())? })
        };
        sentences.iter().map(encode).collect()
    }
}

/// A file that need not be there.
fn json(path: &Path) -> Result<Value, Box<dyn Error>> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// What the directory says of pooling; the mean if it says nothing.
fn pooling(path: &Path) -> Result<Pooling, Box<dyn Error>> {
    let path = path.join("1_Pooling/config.json");
    let Value::Object(keys) = json(&path)? else { return Ok(Pooling::Mean) };
    let asked = keys.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
    match asked.map(|(key, _)| key.as_str()).collect::<Vec<_>>().as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        other => {
            Err(format!("{}: pooling by {other:?}; there are the mean and the first token", path.display()).into())
        }
    }
}
