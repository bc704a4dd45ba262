//! What Python's operators do with values.

use std::cmp::Ordering;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::rc::Rc;

use crate::budget::Buffer;
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::Function;
use crate::render::Renderer;
use crate::value::{Items, Part, Sequence, Value};

/// How many values a key may hold: nested tuples may share values, so that walking them may take more steps than there are values.
const MAX_HASHED: usize = 10_000;

/// The integer that a float is, if it is one.
pub(crate) fn integral(value: f64) -> Option<i128> {
    let in_range = value.fract() == 0.0 && value.abs() < 1.7e38;
    in_range.then_some(value as i128)
}

/// How a float compares with an integer, exactly.
fn compare_mixed(float: f64, int: i128) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float.abs() >= 1.7e38 {
        return Some(if float > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let whole = float.floor();
    Some((whole as i128).cmp(&int).then(if float > whole { Ordering::Greater } else { Ordering::Equal }))
}

/// How two numbers compare. `None` if one is NaN; the outer `None` if one is no number.
fn compare_numbers(left: &Value, right: &Value) -> Option<Option<Ordering>> {
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => Some(left.partial_cmp(right)),
        (Value::Float(left), _) => Some(compare_mixed(*left, right.as_int()?)),
        (_, Value::Float(right)) => Some(compare_mixed(*right, left.as_int()?).map(Ordering::reverse)),
        _ => Some(Some(left.as_int()?.cmp(&right.as_int()?))),
    }
}

/// The hash of a key: equal keys have equal hashes.
pub(crate) fn hash_value(hasher: &RandomState, value: &Value) -> Outcome<u64> {
    let mut left = MAX_HASHED;
    hash_within(hasher, value, &mut left)
}

fn hash_within(hasher: &RandomState, value: &Value, left: &mut usize) -> Outcome<u64> {
    let mut state = hasher.build_hasher();
    feed(&mut state, value, left)?;
    Ok(state.finish())
}

fn feed(state: &mut impl Hasher, value: &Value, left: &mut usize) -> Outcome<()> {
    let Some(rest) = left.checked_sub(1) else {
        return Err(Fault::limit(format!("a key of a dictionary holds more than {MAX_HASHED} values")));
    };
    *left = rest;
    match value {
        Value::None => 0u8.hash(state),
        Value::Bool(_) | Value::Int(_) => (1u8, value.as_int()).hash(state),
        Value::Float(float) => match integral(*float) {
            Some(int) => (1u8, Some(int)).hash(state),
            None => (2u8, float.to_bits()).hash(state),
        },
        Value::Str(text) => (3u8, text.text.as_str()).hash(state),
        Value::Tuple(items) => {
            (4u8, items.items.len()).hash(state);
            for item in &items.items {
                feed(state, item, left)?;
            }
        }
        Value::Range(range) => (5u8, range.length, range.get(0)).hash(state),
        Value::List(_) | Value::Dict(_) | Value::View(_) => {
            return Err(Fault::type_error(format!("unhashable type: '{}'", value.type_name())));
        }
        _ => 6u8.hash(state),
    }
    Ok(())
}

impl Renderer<'_> {
    pub(crate) fn hash(&mut self, value: &Value) -> Outcome<u64> {
        if let Value::Str(text) = value {
            self.bytes(text.text.len())?;
        }
        let mut left = MAX_HASHED;
        let hash = hash_within(&self.hasher, value, &mut left)?;
        self.step(MAX_HASHED - left)?;
        Ok(hash)
    }

    /// Python's `bool`.
    pub(crate) fn truth(&mut self, value: &Value) -> Outcome<bool> {
        Ok(match value {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Loop(_) => self.length(value)? > 0,
            _ => self.length(value).map_or(true, |length| length > 0),
        })
    }

    /// Python's `len`.
    pub(crate) fn length(&mut self, value: &Value) -> Outcome<usize> {
        Ok(match value {
            Value::Undefined(_) => 0,
            Value::Str(text) => text.chars,
            Value::List(items) | Value::Tuple(items) => items.items.len(),
            Value::Dict(dict) => dict.entries.len(),
            Value::View(view) => view.dict.entries.len(),
            Value::Range(range) => range.length,
            Value::Loop(state) => self.loop_length(state)?,
            other => return Err(Fault::type_error(format!("object of type '{}' has no len()", other.type_name()))),
        })
    }

    /// Python's `==`.
    pub(crate) fn equal(&mut self, left: &Value, right: &Value) -> Outcome<bool> {
        self.step(1)?;
        if let Some(ordering) = compare_numbers(left, right) {
            return Ok(ordering == Some(Ordering::Equal));
        }
        Ok(match (left, right) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(left), Value::Str(right)) => {
                self.bytes(left.text.len().min(right.text.len()))?;
                left.text == right.text
            }
            (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
                if Rc::ptr_eq(left, right) {
                    return Ok(true);
                }
                if left.items.len() != right.items.len() {
                    return Ok(false);
                }
                for (left, right) in left.items.iter().zip(&right.items) {
                    if !self.deeper(|renderer| renderer.equal(left, right))? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Dict(left), Value::Dict(right)) => {
                if left.entries.len() != right.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &left.entries {
                    let Some(other) = self.get(right, key)? else { return Ok(false) };
                    if !self.deeper(|renderer| renderer.equal(value, &other))? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Range(left), Value::Range(right)) => {
                let same = left.length == right.length;
                let first = left.length == 0 || left.get(0) == right.get(0);
                same && first && (left.length < 2 || left.get(1) == right.get(1))
            }
            (Value::View(one), Value::View(other)) if one.part != Part::Values && other.part != Part::Values => {
                if one.dict.entries.len() != other.dict.entries.len() {
                    return Ok(false);
                }
                let iter = self.iter(left)?;
                while let Some(item) = self.next(&iter)? {
                    if !self.contains(right, &item)? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => self.same(left, right),
        })
    }

    /// Python's `is`, where it does not depend on what Python happens to keep only once.
    pub(crate) fn same(&self, left: &Value, right: &Value) -> bool {
        match (left, right) {
            (Value::None, Value::None) => true,
            (Value::Bool(left), Value::Bool(right)) => left == right,
            (Value::Int(left), Value::Int(right)) => left == right,
            (Value::Float(left), Value::Float(right)) => left.to_bits() == right.to_bits(),
            (Value::Str(left), Value::Str(right)) => left.text == right.text && left.markup == right.markup,
            (Value::Undefined(left), Value::Undefined(right)) => Rc::ptr_eq(left, right),
            (Value::List(left), Value::List(right)) => Rc::ptr_eq(left, right),
            (Value::Tuple(left), Value::Tuple(right)) => Rc::ptr_eq(left, right),
            (Value::Dict(left), Value::Dict(right)) => Rc::ptr_eq(left, right),
            (Value::Range(left), Value::Range(right)) => Rc::ptr_eq(left, right),
            (Value::View(left), Value::View(right)) => Rc::ptr_eq(left, right),
            (Value::Iter(left), Value::Iter(right)) => Rc::ptr_eq(left, right),
            (Value::Namespace(left), Value::Namespace(right)) => left == right,
            (Value::Loop(left), Value::Loop(right)) => Rc::ptr_eq(left, right),
            (Value::Macro(left), Value::Macro(right)) => Rc::ptr_eq(left, right),
            (Value::Cycler(left), Value::Cycler(right)) => Rc::ptr_eq(left, right),
            (Value::Joiner(left), Value::Joiner(right)) => Rc::ptr_eq(left, right),
            (Value::Function(left), Value::Function(right)) => match (left.as_ref(), right.as_ref()) {
                (Function::Global(left), Function::Global(right)) => left == right,
                _ => Rc::ptr_eq(left, right),
            },
            _ => false,
        }
    }

    /// The ordering of two values; `None` if they have none, as NaN.
    fn order(&mut self, left: &Value, right: &Value, symbol: &str) -> Outcome<Option<Ordering>> {
        self.step(1)?;
        if let Some(ordering) = compare_numbers(left, right) {
            return Ok(ordering);
        }
        match (left, right) {
            (Value::Str(left), Value::Str(right)) => {
                self.bytes(left.text.len().min(right.text.len()))?;
                Ok(Some(left.text.cmp(&right.text)))
            }
            (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
                for (left, right) in left.items.iter().zip(&right.items) {
                    if !self.deeper(|renderer| renderer.equal(left, right))? {
                        return self.deeper(|renderer| renderer.order(left, right, symbol));
                    }
                }
                Ok(Some(left.items.len().cmp(&right.items.len())))
            }
            (Value::View(_), Value::View(_)) => Err(Fault::unsupported("comparing the keys of dictionaries as sets")),
            _ => {
                let (one, other) = (left.type_name(), right.type_name());
                let message = format!("'{symbol}' not supported between instances of '{one}' and '{other}'");
                let undefined = if left.is_undefined() { left } else { right };
                Err(self.undefined_or(undefined, Fault::type_error(message)))
            }
        }
    }

    pub(crate) fn less(&mut self, left: &Value, right: &Value, symbol: &str) -> Outcome<bool> {
        Ok(self.order(left, right, symbol)? == Some(Ordering::Less))
    }

    pub(crate) fn less_or_equal(&mut self, left: &Value, right: &Value, symbol: &str) -> Outcome<bool> {
        Ok(matches!(self.order(left, right, symbol)?, Some(Ordering::Less | Ordering::Equal)))
    }

    /// Sorts items by their keys. Items with equal keys keep their order, also in reverse.
    pub(crate) fn sorted(&mut self, mut items: Vec<(Value, Value)>, reverse: bool) -> Outcome<Vec<(Value, Value)>> {
        self.budget.room(items.len().saturating_mul(2 * size_of::<(Value, Value)>()))?;
        if reverse {
            items.reverse();
        }
        let mut width = 1;
        while width < items.len() {
            let mut merged = Vec::with_capacity(items.len());
            let mut rest = items.into_iter().peekable();
            while rest.peek().is_some() {
                let left: Vec<_> = rest.by_ref().take(width).collect();
                let right: Vec<_> = rest.by_ref().take(width).collect();
                let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
                while let (Some((one, _)), Some((other, _))) = (left.peek(), right.peek()) {
                    let (one, other) = (one.clone(), other.clone());
                    merged.extend(if self.less(&other, &one, "<")? { right.next() } else { left.next() });
                }
                merged.extend(left);
                merged.extend(right);
            }
            items = merged;
            width *= 2;
        }
        if reverse {
            items.reverse();
        }
        Ok(items)
    }

    /// Python's `in`.
    pub(crate) fn contains(&mut self, container: &Value, item: &Value) -> Outcome<bool> {
        match container {
            Value::Str(text) => match item {
                Value::Str(part) => {
                    self.bytes(text.text.len() + part.text.len())?;
                    Ok(text.text.contains(part.text.as_str()))
                }
                other => {
                    let name = other.type_name();
                    let message = format!("'in <string>' requires string as left operand, not {name}");
                    Err(Fault::type_error(message))
                }
            },
            Value::Dict(dict) => Ok(self.get(dict, item)?.is_some()),
            Value::View(view) if view.part == Part::Keys => Ok(self.get(&view.dict.clone(), item)?.is_some()),
            Value::Range(range) => match item {
                Value::Float(float) if integral(*float).is_none() => Ok(false),
                Value::Float(_) | Value::Int(_) | Value::Bool(_) => {
                    let float = if let Value::Float(float) = item { integral(*float) } else { None };
                    let wanted = item.as_int().or(float).unwrap_or_default();
                    let offset = wanted.checked_sub(range.start).unwrap_or(i128::MAX);
                    let place = offset.checked_div(range.step).and_then(|place| usize::try_from(place).ok());
                    Ok(place.is_some_and(|place| place < range.length && range.get(place) == wanted))
                }
                _ => Ok(false),
            },
            _ => {
                let iter = self.iter(container)?;
                while let Some(value) = self.next(&iter)? {
                    if self.same(&value, item) || self.equal(&value, item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Two strings joined, as HTML if one of them is.
    pub(crate) fn add_text(&mut self, left: &Value, right: &Value) -> Outcome<Value> {
        self.joined_text([left, right].into_iter(), left.is_markup() || right.is_markup())
    }

    /// The strings of `parts`, one after the other; with `markup`, as HTML.
    pub(crate) fn joined_text<'v>(&mut self, parts: impl Iterator<Item = &'v Value>, markup: bool) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        for part in parts {
            if markup {
                self.write_escaped(&mut buffer, part)?;
            } else {
                self.write_str(&mut buffer, part)?;
            }
        }
        self.bytes(buffer.text.len())?;
        Ok(self.budget.built(buffer, markup))
    }

    pub(crate) fn add_sequences(&mut self, left: &Sequence, right: &Sequence) -> Outcome<Rc<Sequence>> {
        self.repeated(left.items.iter().chain(&right.items), left.items.len().saturating_add(right.items.len()))
    }

    fn repeated<'v>(&mut self, values: impl Iterator<Item = &'v Value>, length: usize) -> Outcome<Rc<Sequence>> {
        self.budget.room(length.saturating_mul(size_of::<Value>()))?;
        self.step(length / 8)?;
        let mut items = Items::new(&self.budget)?;
        for value in values {
            items.push(value.clone())?;
        }
        items.sequence()
    }

    /// A string or sequence `count` times.
    pub(crate) fn multiply(&mut self, value: &Value, count: i128) -> Outcome<Value> {
        let count = if count <= 0 { 0 } else { usize::try_from(count).unwrap_or(usize::MAX) };
        let total = |length: usize| length.saturating_mul(count);
        match value {
            Value::Str(text) => {
                let length = total(text.text.len());
                self.budget.room(length)?;
                self.bytes(length)?;
                self.budget.str_or_markup(text.text.repeat(if text.text.is_empty() { 0 } else { count }), text.markup)
            }
            Value::List(items) | Value::Tuple(items) => {
                let length = total(items.items.len());
                self.budget.room(length.saturating_mul(size_of::<Value>()))?;
                let all = items.items.iter().cycle().take(length);
                let repeated = self.repeated(all, length)?;
                Ok(if matches!(value, Value::List(_)) { Value::List(repeated) } else { Value::Tuple(repeated) })
            }
            other => Err(Fault::new(Kind::Type, format!("can't multiply '{}'", other.type_name()))),
        }
    }
}
