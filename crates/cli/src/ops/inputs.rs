//! What an operation takes, and the user's tensors and attributes held against it.

use crate::{
    CliError, Result,
    session::Session,
    tensor::{Kind, Tensor, Tensors},
};
use lookback_device::DType;
use std::{collections::BTreeMap, str::FromStr};

/// A tensor that an operation takes or gives.
#[derive(Clone, Copy)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: &'static str,
    /// Element type: `T` for any of f32, f16, bf16 (the same for every `T`), `T/e4m3` for that or codes of a cache, or one type by name.
    pub dtype: &'static str,
    /// Shape in letters, e.g. `[B,T,D]`; equal letters have equal extents. Alternatives are parted by `|`, those of the
    /// type likewise; the number of dimensions decides.
    pub shape: &'static str,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it means.
    pub about: &'static str,
}

/// A tensor that must be there.
pub const fn required(name: &'static str, dtype: &'static str, shape: &'static str, about: &'static str) -> TensorSpec {
    TensorSpec { name, dtype, shape, optional: false, about }
}

/// A tensor that may be left out.
pub const fn optional(name: &'static str, dtype: &'static str, shape: &'static str, about: &'static str) -> TensorSpec {
    TensorSpec { name, dtype, shape, optional: true, about }
}

/// An attribute.
pub struct AttributeSpec {
    /// Key of `--set`.
    pub name: &'static str,
    /// Values it can take.
    pub values: &'static str,
    /// Value when it is not set.
    pub default: &'static str,
    /// What it means.
    pub about: &'static str,
}

/// Values of an oracle's outputs, by name.
pub type Values = BTreeMap<String, Vec<f64>>;

/// An operation of `run` and `check`.
pub struct Operation {
    /// Name.
    pub name: &'static str,
    /// What it computes.
    pub about: &'static str,
    /// Tensors in.
    pub inputs: &'static [TensorSpec],
    /// Attributes.
    pub attributes: &'static [AttributeSpec],
    /// Tensors out.
    pub outputs: &'static [TensorSpec],
    /// On the device.
    pub run: fn(&Session, &Inputs) -> Result<Tensors>,
    /// In f64, the same outputs by name.
    pub oracle: fn(&Inputs) -> Result<Values>,
    /// Inputs that `check` tries, for an element type.
    pub cases: fn(DType) -> Vec<Case>,
}

/// One set of inputs of `check`.
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// Tensors.
    pub tensors: Tensors,
    /// `key=value` attributes.
    pub attributes: Vec<String>,
}

/// Tensors and attributes that fit an operation's description.
pub struct Inputs {
    operation: &'static Operation,
    tensors: Tensors,
    attributes: BTreeMap<String, String>,
    extents: BTreeMap<char, usize>,
    /// The element type of every `T`.
    pub dtype: DType,
}

impl Inputs {
    /// Checks names, types and shapes.
    pub fn new(operation: &'static Operation, tensors: Tensors, attributes: &[String]) -> Result<Self> {
        let op = operation.name;
        let fail = |why: String| Err(CliError::Input(format!("{op}: {why}")));
        let known = |name: &str| operation.inputs.iter().any(|t| t.name == name);
        if let Some(name) = tensors.keys().find(|name| !known(name)) {
            let names: Vec<&str> = operation.inputs.iter().map(|t| t.name).collect();
            return fail(format!("no input is named `{name}`; the inputs are {}", names.join(", ")));
        }
        let mut set = BTreeMap::new();
        for attribute in attributes {
            let Some((key, value)) = attribute.split_once('=') else {
                return fail(format!("--set wants key=value, found `{attribute}`"));
            };
            if !operation.attributes.iter().any(|a| a.name == key) {
                let names: Vec<&str> = operation.attributes.iter().map(|a| a.name).collect();
                return fail(format!("no attribute is named `{key}`; the attributes are {}", names.join(", ")));
            }
            if set.insert(key.to_string(), value.to_string()).is_some() {
                return fail(format!("attribute `{key}` is set twice"));
            }
        }
        let mut inputs = Self { operation, tensors, attributes: set, extents: BTreeMap::new(), dtype: DType::F32 };
        inputs.check_types()?;
        inputs.check_shapes()?;
        Ok(inputs)
    }

    fn check_types(&mut self) -> Result<()> {
        let mut of_t: Option<(&str, DType)> = None;
        for spec in self.operation.inputs {
            let Some(tensor) = self.tensors.get(spec.name) else {
                if spec.optional {
                    continue;
                }
                return Err(self.wrong(spec.name, format!("is missing, want {} {}", spec.dtype, spec.shape)));
            };
            let alternative = spec.shape.split('|').position(|s| s.split(',').count() == tensor.shape.len());
            let dtype = spec.dtype.split('|').take(alternative.unwrap_or(0) + 1).last().unwrap_or(spec.dtype);
            match (dtype, tensor.kind) {
                ("T/e4m3", Kind::E4m3) => {}
                ("T" | "T/e4m3", Kind::Float(dtype)) => match of_t {
                    Some((other, want)) if want != dtype => {
                        return Err(self.wrong(spec.name, format!("must be {want} as `{other}` is, got {dtype}")));
                    }
                    _ => of_t = Some((spec.name, dtype)),
                },
                ("T", kind) => return Err(self.wrong(spec.name, format!("must be f32, f16 or bf16, got {kind}"))),
                ("T/e4m3", kind) => {
                    return Err(self.wrong(spec.name, format!("must be f16, bf16 or e4m3, got {kind}")));
                }
                (want, kind) if want != kind.to_string() => {
                    return Err(self.wrong(spec.name, format!("must be {want}, got {kind}")));
                }
                _ => {}
            }
        }
        if let Some((_, dtype)) = of_t {
            self.dtype = dtype;
        }
        Ok(())
    }

    fn check_shapes(&mut self) -> Result<()> {
        for spec in self.operation.inputs {
            let Some(tensor) = self.tensors.get(spec.name) else { continue };
            let shapes = spec.shape.split('|').map(|s| s.trim_matches(['[', ']']).split(',').collect::<Vec<&str>>());
            let Some(letters) = shapes.into_iter().find(|letters| letters.len() == tensor.shape.len()) else {
                return Err(self.wrong(spec.name, format!("must have shape {}, got {:?}", spec.shape, tensor.shape)));
            };
            for (letter, &extent) in letters.iter().zip(&tensor.shape) {
                let mut chars = letter.chars();
                let (Some(name), plus) = (chars.next(), chars.as_str()) else { continue };
                // `N+1`: one more than N.
                let more = plus.trim_start_matches('+').parse::<usize>().unwrap_or(0);
                let got = extent.checked_sub(more);
                let want = self.extents.get(&name).copied().or(got);
                if got.is_none() || got != want {
                    let known = want.map_or(String::new(), |w| format!(" with {name} = {w}"));
                    let why = format!("must have shape {}{known}, got {:?}", spec.shape, tensor.shape);
                    return Err(self.wrong(spec.name, why));
                }
                self.extents.extend(got.map(|g| (name, g)));
            }
        }
        Ok(())
    }

    /// The same with tensors changed, or left out; each comes with the letters of its shape.
    pub fn map(&self, change: impl Fn(&[&str], &Tensor) -> Option<Tensor>) -> Self {
        let mut tensors = Tensors::new();
        for spec in self.operation.inputs {
            let Some(tensor) = self.tensors.get(spec.name) else { continue };
            let shapes = spec.shape.split('|').map(|s| s.trim_matches(['[', ']']).split(',').collect::<Vec<&str>>());
            let letters = shapes.into_iter().find(|letters| letters.len() == tensor.shape.len()).unwrap_or_default();
            tensors.extend(change(&letters, tensor).map(|changed| (spec.name.to_string(), changed)));
        }
        let (attributes, extents) = (self.attributes.clone(), self.extents.clone());
        Self { operation: self.operation, tensors, attributes, extents, dtype: self.dtype }
    }

    /// An error about one tensor or attribute.
    pub fn wrong(&self, name: &str, why: String) -> CliError {
        CliError::Input(format!("{}: `{name}` {why}", self.operation.name))
    }

    /// A tensor that the operation requires.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.wrong(name, "is missing".into()))
    }

    /// A tensor that may be absent.
    pub fn optional(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor as f64, when it is there.
    pub fn values(&self, name: &str) -> Option<Vec<f64>> {
        self.tensors.get(name).map(Tensor::to_f64)
    }

    /// Extent of a letter of the shapes; 0 when no tensor that is there names it.
    pub fn extent(&self, letter: char) -> usize {
        self.extents.get(&letter).copied().unwrap_or(0)
    }

    /// An attribute as written, or its default.
    pub fn attribute(&self, name: &'static str) -> &str {
        let default = self.operation.attributes.iter().find(|a| a.name == name).map_or("", |a| a.default);
        self.attributes.get(name).map_or(default, String::as_str)
    }

    /// Whether the attribute was set.
    pub fn is_set(&self, name: &str) -> bool {
        self.attributes.contains_key(name)
    }

    /// An attribute as a number or truth value.
    pub fn parse<V: FromStr>(&self, name: &'static str) -> Result<V> {
        let text = self.attribute(name);
        let values = self.operation.attributes.iter().find(|a| a.name == name).map_or("", |a| a.values);
        text.parse().map_err(|_| self.wrong(name, format!("must be {values}, got `{text}`")))
    }

    /// An attribute as a finite number, no less than a bound.
    pub fn number(&self, name: &'static str, least: f32) -> Result<f32> {
        let number: f32 = self.parse(name)?;
        if number.is_finite() && number >= least {
            return Ok(number);
        }
        let bound = if least > f32::MIN { format!(" from {least}") } else { String::new() };
        Err(self.wrong(name, format!("must be a finite number{bound}, got `{}`", self.attribute(name))))
    }

    /// An attribute that is one of a few words.
    pub fn choose<V: Copy>(&self, name: &'static str, choices: &[(&str, V)]) -> Result<V> {
        let text = self.attribute(name);
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.wrong(name, format!("must be one of {}, got `{text}`", words.join(", ")))
        })
    }
}
