//! The figures of one kernel by name, as they are kept in docs/resources.json.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Figures by name. A figure that is 0 is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row(BTreeMap<String, u64>);

impl Row {
    /// The figure of that name.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Sets a figure.
    pub fn set(&mut self, name: &str, value: u64) {
        if value > 0 {
            self.0.insert(name.to_string(), value);
        } else {
            self.0.remove(name);
        }
    }

    /// Adds to a figure.
    pub fn add(&mut self, name: &str, more: u64) {
        self.set(name, self.get(name) + more);
    }

    /// Names and values in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// As one line of JSON.
    pub fn line(&self) -> String {
        Value::Object(self.0.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect::<Map<_, _>>())
            .to_string()
    }

    /// From JSON.
    pub fn from_json(value: &Value) -> Option<Self> {
        let fields = value.as_object()?.iter();
        fields.map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect::<Option<_>>().map(Self)
    }
}

/// What changed by more than 3 % between two rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Figures that got worse: name, before and now.
    pub worse: Vec<String>,
    /// Figures that got better.
    pub better: Vec<String>,
}

/// Compares figures; of all but these, less is better.
pub fn compare(before: &Row, now: &Row) -> Changes {
    const MORE_IS_BETTER: [&str; 2] = ["blocks", "asked"];
    let mut changes = Changes::default();
    let names: std::collections::BTreeSet<&str> = before.iter().chain(now.iter()).map(|(name, _)| name).collect();
    for name in names {
        let (old, new) = (before.get(name), now.get(name));
        if 100 * old.abs_diff(new) <= 3 * old {
            continue;
        }
        let percent =
            if old == 0 { "new".to_string() } else { format!("{:+.1} %", 100. * (new as f64 / old as f64 - 1.)) };
        let line = format!("{name} {old} -> {new} ({percent})");
        let is_better = (new < old) != MORE_IS_BETTER.contains(&name);
        if is_better { changes.better.push(line) } else { changes.worse.push(line) }
    }
    changes
}
