use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    checkpoint::{CheckpointError, read_bounded, shorten},
    json,
};

/// Longest configuration that is read; published ones have a few kB.
const MAX_CONFIG: u64 = 16 << 20;

/// Bounds of the numbers in a configuration, some ten times what the largest published models have: what lies
/// beyond them is a mistake, and products of two of them cannot overflow.
pub(super) mod limits {
    pub const WIDTH: usize = 1 << 20;
    pub const HEADS: usize = 1 << 14;
    pub const HEAD_DIM: usize = 1 << 12;
    pub const LAYERS: usize = 1 << 12;
    pub const VOCABULARY: usize = 1 << 23;
    pub const POSITIONS: usize = 1 << 27;
}

/// A JSON object of a model directory, read with errors that name file, key and value.
///
/// Some keys have several spellings. The first that is there (and not null) is used, the others must have the same value, and
/// errors name the first.
pub(crate) struct ConfigFile {
    path: PathBuf,
    /// Path of this object within the file, as a prefix of keys in messages.
    prefix: String,
    map: Map<String, Value>,
}

impl ConfigFile {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let malformed = |source| CheckpointError::Json { path: path.to_owned(), source };
        let map = json::parse_object(&read_bounded(path, MAX_CONFIG)?).map_err(malformed)?;
        Ok(Self { path: path.to_owned(), prefix: String::new(), map })
    }

    /// Fields that were read elsewhere; messages show `prefix` before their keys.
    pub fn of(path: &Path, prefix: &str, map: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), prefix: prefix.to_owned(), map }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys that are not null, with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value))
    }

    /// This object and `other`, which must not contradict it; errors name keys of this one.
    pub fn merged(mut self, other: Self) -> Result<Self, CheckpointError> {
        for (key, value) in other.map {
            match self.map.get(&key).filter(|own| !own.is_null()) {
                Some(own) if !same(own, &value) && !value.is_null() => {
                    return Err(self.wrong(&[&key], format!("what {}{key} says, {}", other.prefix, shown(&value))));
                }
                Some(_) => {}
                None => drop(self.map.insert(key, value)),
            }
        }
        Ok(self)
    }

    /// Refuses a value under `key` that differs from that of `other`.
    pub fn same_as(&self, other: &Self, key: &str) -> Result<(), CheckpointError> {
        match (self.value(&[key]), other.value(&[key])) {
            (Some(own), Some(value)) if !same(own, value) => {
                Err(self.wrong(&[key], format!("what {}{key} beside it says, {}", other.prefix, shown(value))))
            }
            _ => Ok(()),
        }
    }

    /// The same object with the text `to` under those of `keys` that have the text `from`.
    pub fn renamed(mut self, keys: &[&str], from: &str, to: &str) -> Self {
        for key in keys {
            if let Some(value) = self.map.get_mut(*key).filter(|value| *value == from) {
                *value = Value::from(to);
            }
        }
        self
    }

    /// Refuses values under several of `keys` that differ.
    pub fn agree(&self, keys: &[&str]) -> Result<(), CheckpointError> {
        let Some(value) = self.value(keys) else { return Ok(()) };
        let other =
            keys.iter().filter_map(|key| Some((key, self.value(&[key])?))).find(|(_, other)| !same(value, other));
        match other {
            Some((key, other)) => Err(self.wrong(keys, format!("what {}{key} says, {}", self.prefix, shown(other)))),
            None => Ok(()),
        }
    }

    /// The value under the first of `keys` that is there and not null.
    pub fn value(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter().find_map(|&key| self.map.get(key).filter(|value| !value.is_null()))
    }

    /// Whether `key` is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The error for `keys`, whose value is not what was `expected`.
    pub fn wrong(&self, keys: &[&str], expected: impl Into<String>) -> CheckpointError {
        let found = self.value(keys).map_or_else(|| "missing".to_owned(), shown);
        CheckpointError::Config {
            path: self.path.clone(),
            key: format!("{}{}", self.prefix, keys.first().unwrap_or(&"")),
            found,
            expected: expected.into(),
        }
    }

    fn read<T>(
        &self,
        keys: &[&str],
        default: Option<T>,
        read: impl Fn(&Value) -> Option<T>,
        expected: impl Fn() -> String,
    ) -> Result<T, CheckpointError> {
        self.agree(keys)?;
        let value = match self.value(keys) {
            Some(value) => read(value),
            None => default,
        };
        value.ok_or_else(|| self.wrong(keys, expected()))
    }

    /// A whole number from 1 to `max`.
    pub fn count(&self, keys: &[&str], default: Option<usize>, max: usize) -> Result<usize, CheckpointError> {
        let read = |value: &Value| whole(value).filter(|n| (1..=max).contains(n));
        self.read(keys, default, read, || format!("a whole number from 1 to {max}"))
    }

    /// A number within `range`.
    pub fn number(
        &self,
        keys: &[&str],
        default: Option<f64>,
        range: RangeInclusive<f64>,
    ) -> Result<f64, CheckpointError> {
        let read = |value: &Value| value.as_f64().filter(|n| range.contains(n));
        self.read(keys, default, read, || format!("a number from {} to {}", range.start(), range.end()))
    }

    /// True or false; null is false, as in Python.
    pub fn flag(&self, keys: &[&str], default: bool) -> Result<bool, CheckpointError> {
        let default = default && !keys.iter().any(|key| self.has(key));
        self.read(keys, Some(default), Value::as_bool, || "true or false".into())
    }

    /// One of `choices`; the first where the key is missing.
    pub fn choice(&self, keys: &[&str], choices: &[&'static str]) -> Result<&'static str, CheckpointError> {
        let read = |value: &Value| choices.iter().find(|&&choice| value == choice).copied();
        self.read(keys, choices.first().copied(), read, || choices.join(" or "))
    }

    /// The object under `key`, if it is there.
    pub fn object(&self, key: &str) -> Result<Option<Self>, CheckpointError> {
        match self.value(&[key]) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Self { path: self.path.clone(), prefix, map: map.clone() }))
            }
            Some(_) => Err(self.wrong(&[key], "an object")),
        }
    }

    /// A list of `len` positive numbers.
    pub fn factors(&self, key: &str, len: usize) -> Result<Vec<f64>, CheckpointError> {
        let list = self.value(&[key]).and_then(Value::as_array);
        let list = list.ok_or_else(|| self.wrong(&[key], format!("a list of {len} positive numbers")))?;
        let numbers: Option<Vec<f64>> =
            list.iter().map(|value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0)).collect();
        match numbers {
            Some(numbers) if numbers.len() == len => Ok(numbers),
            Some(numbers) => Err(CheckpointError::Config {
                path: self.path.clone(),
                key: format!("{}{key}", self.prefix),
                found: format!("a list of {} numbers", numbers.len()),
                expected: format!("{len} numbers, one for each rotated pair of a head"),
            }),
            None => Err(self.wrong(&[key], format!("a list of {len} positive numbers"))),
        }
    }

    /// An epsilon of a normalisation.
    pub fn epsilon(&self, keys: &[&str], default: Option<f64>) -> Result<f32, CheckpointError> {
        Ok(self.number(keys, default, 0.0..=1.0)? as f32)
    }

    /// Base of the rotary wavelengths.
    pub fn rope_theta(&self) -> Result<f64, CheckpointError> {
        self.number(&["rope_theta"], Some(10_000.0), 1.0..=1e12)
    }

    /// Refuses a configuration where `key` is true.
    pub fn refuse_flag(&self, key: &str, reason: &str) -> Result<(), CheckpointError> {
        if self.flag(&[key], false)? { Err(self.wrong(&[key], format!("false: {reason}"))) } else { Ok(()) }
    }
}

/// A value as an error shows it.
fn shown(value: &Value) -> String {
    shorten(&json::describe(value))
}

/// Whether two values mean the same: 1 and 1.0 do.
fn same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|number| other.as_f64() == Some(number))
}

/// A whole number; exporters write some as `4096.0`.
fn whole(value: &Value) -> Option<usize> {
    let integer = value.as_u64().and_then(|n| usize::try_from(n).ok());
    integer.or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n)).map(|n| n as usize))
}

/// Query heads, key-value heads and the width of each.
pub(crate) struct Heads {
    pub queries: usize,
    pub key_values: usize,
    pub dim: usize,
}

impl ConfigFile {
    /// Checks how heads divide the hidden state. `head_dim` is None where the family's files do not give it.
    pub fn heads(
        &self,
        hidden_size: usize,
        queries: (&[&str], usize),
        key_values: (&[&str], usize),
        head_dim: Option<usize>,
    ) -> Result<Heads, CheckpointError> {
        let ((query_keys, queries), (key_value_keys, key_values)) = (queries, key_values);
        if !queries.is_multiple_of(key_values) {
            return Err(self.wrong(key_value_keys, format!("a divisor of the {queries} heads")));
        }
        let dim = match head_dim {
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(queries) => hidden_size / queries,
            None => return Err(self.wrong(query_keys, format!("a divisor of hidden_size {hidden_size}"))),
        };
        if !dim.is_multiple_of(2) {
            let expected = format!("a count that makes the width of a head even (it is {dim})");
            return Err(self.wrong(query_keys, expected));
        }
        Ok(Heads { queries, key_values, dim })
    }
}
