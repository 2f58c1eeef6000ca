//! A model's `config.json`: its fields by name, each checked when it is asked for.

use lookback_device::{Error, Result, WeightsFault};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Greatest size that is believed.
const MAX_SIZE: usize = 1 << 30;

/// A file of settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Weights`] ← the file cannot be read, or is no object in JSON.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path);
        Self::read(path.into(), &text.map_err(|e| parse(path, e.to_string()))?)
    }

    /// As [`open`](Self::open), for a text that is in memory. `name` stands for the path in messages.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is no object in JSON.
    pub fn from_text(name: &str, text: &str) -> Result<Self> {
        Self::read(name.into(), text)
    }

    fn read(path: PathBuf, text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self { path, fields }),
            Ok(_) => Err(parse(&path, "must be an object".into())),
            Err(e) => Err(parse(&path, e.to_string())),
        }
    }

    /// A field that is there and not null.
    fn find(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// A size of at least 1, where the field is there and not null.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is something else.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let read = |value: &Value| {
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
            size.filter(|size| (1..=MAX_SIZE).contains(size)).ok_or_else(|| self.fault(key, "a size", value))
        };
        self.find(key).map(read).transpose()
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is missing, or no size.
    pub fn wanted_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(key, "is missing".into()))
    }

    /// A number, where the field is there and not null.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is something else, or out of range.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let read = |value: &Value| {
            let want = format!("a number in {range:?}");
            value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| self.fault(key, &want, value))
        };
        self.find(key).map(read).transpose()
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is missing, no number, or out of range.
    pub fn wanted_number(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64> {
        self.number(key, range)?.ok_or_else(|| self.error(key, "is missing".into()))
    }

    /// A word, where the field is there and not null.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is something else.
    pub fn word(&self, key: &str) -> Result<Option<&str>> {
        self.find(key).map(|value| value.as_str().ok_or_else(|| self.fault(key, "a word", value))).transpose()
    }

    /// The fields of a field, where it is there and not null.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it has none.
    pub fn inner(&self, key: &str) -> Result<Option<Self>> {
        let read = |value: &Value| {
            let fields = value.as_object().ok_or_else(|| self.fault(key, "an object", value))?;
            Ok(Self { path: self.path.clone(), fields: fields.clone() })
        };
        self.find(key).map(read).transpose()
    }

    /// Yes or no, where the field is there and not null.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.find(key).map(|value| value.as_bool().ok_or_else(|| self.fault(key, "true or false", value))).transpose()
    }

    /// That a field which would change the model is absent, null, or one of these values.
    ///
    /// # Errors
    /// [`Error::Weights`] ← it is another.
    pub fn only(&self, key: &str, known: &[Value]) -> Result<()> {
        match self.find(key) {
            Some(value) if !known.contains(value) => {
                let want = known.iter().map(|known| format!("{known} or ")).collect::<String>() + "absent";
                Err(self.fault(key, &want, value))
            }
            _ => Ok(()),
        }
    }

    fn fault(&self, key: &str, want: &str, got: &Value) -> Error {
        self.error(key, format!("must be {want}, got {got}"))
    }

    /// An error that names this file and one of its fields.
    pub fn error(&self, key: &str, problem: String) -> Error {
        let why = WeightsFault::Config { key: key.into(), problem };
        Error::Weights { file: self.path.clone(), tensor: None, why }
    }
}

fn parse(path: &Path, problem: String) -> Error {
    Error::Weights { file: path.into(), tensor: None, why: WeightsFault::Parse(problem) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str =
        r#"{"n": 3, "zero": 0, "less": -1, "half": 0.5, "yes": true, "word": "silu", "none": null, "list": [1]}"#;

    #[test]
    fn fields_are_what_they_should_be() {
        let settings = Settings::from_text("config.json", TEXT).unwrap();
        assert_eq!((settings.size("n").unwrap(), settings.size("none").unwrap()), (Some(3), None));
        assert_eq!(settings.wanted_size("n").unwrap(), 3);
        assert_eq!(
            (settings.number("half", 0.0..=1.0).unwrap(), settings.number("n", 3.0..=3.0).unwrap()),
            (Some(0.5), Some(3.0))
        );
        assert_eq!((settings.flag("yes").unwrap(), settings.flag("no").unwrap()), (Some(true), None));
        assert_eq!((settings.word("word").unwrap(), settings.word("words").unwrap()), (Some("silu"), None));
        assert!(settings.inner("none").unwrap().is_none() && settings.inner("n").is_err());
        for key in ["none", "nothing", "word"] {
            settings.only(key, &[json!("silu")]).unwrap();
        }
    }

    #[test]
    fn what_they_should_not_be_is_named() {
        let settings = Settings::from_text("config.json", TEXT).unwrap();
        let message = |result: Result<()>| result.unwrap_err().to_string();
        for key in ["zero", "less", "half", "yes", "word", "list"] {
            let said = message(settings.size(key).map(|_| ()));
            assert!(said.starts_with(&format!("config.json: configuration `{key}` must be a size")), "{said}");
        }
        assert!(message(settings.wanted_size("none").map(|_| ())).ends_with("`none` is missing"));
        assert!(
            message(settings.number("less", 0.0..=1.0).map(|_| ())).ends_with("must be a number in 0.0..=1.0, got -1")
        );
        assert!(settings.flag("n").is_err() && settings.number("yes", 0.0..=1.0).is_err());
        assert!(message(settings.only("n", &[json!(1), json!(2)])).ends_with("must be 1 or 2 or absent, got 3"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "{", "[1]", "3", "{\"a\": 1} {"] {
            let error = Settings::from_text("config.json", text).unwrap_err();
            assert!(matches!(error, Error::Weights { why: WeightsFault::Parse(_), .. }), "{text}");
        }
        assert!(Settings::open("no/such/config.json").unwrap_err().to_string().starts_with("no/such/config.json: "));
    }
}
