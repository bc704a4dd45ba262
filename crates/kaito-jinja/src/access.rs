//! Items, slices and attributes, with the sandbox's rules.

use std::rc::Rc;

use crate::fault::{Fault, Kind, Outcome};
use crate::functions::Function;
use crate::loops::LoopState;
use crate::methods::{METHODS, is_mutating};
use crate::render::Renderer;
use crate::value::{Dict, Items, Value};

/// Attributes that every object of Python has, and those of the protocols that its built-in types follow. The sandbox hides
/// all of them.
const INTERNAL: [&str; 30] = [
    "__class__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__eq__",
    "__format__",
    "__ge__",
    "__getattribute__",
    "__gt__",
    "__hash__",
    "__init__",
    "__init_subclass__",
    "__le__",
    "__lt__",
    "__ne__",
    "__new__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setattr__",
    "__sizeof__",
    "__str__",
    "__subclasshook__",
    "__len__",
    "__getitem__",
    "__iter__",
    "__contains__",
    "__add__",
    "__mul__",
    "__call__",
];

/// What an attribute is found to be.
enum Found {
    Value(Value),
    /// It exists, but the sandbox hides it.
    Unsafe,
    Missing,
}

impl Renderer<'_> {
    /// The value of a key.
    pub(crate) fn get(&mut self, dict: &Rc<Dict>, key: &Value) -> Outcome<Option<Value>> {
        let hash = self.hash(key)?;
        for place in dict.candidates(hash) {
            let Some((candidate, value)) = dict.entries.get(place) else { continue };
            let found = match (candidate, key) {
                (Value::Str(one), Value::Str(other)) => one.text == other.text,
                _ => self.equal(candidate, key)?,
            };
            self.step(usize::from(place % 8 == 7))?;
            if found {
                return Ok(Some(value.clone()));
            }
        }
        Ok(None)
    }

    fn get_text(&mut self, dict: &Rc<Dict>, key: &str) -> Outcome<Option<Value>> {
        let key = self.budget.str(key)?;
        self.get(dict, &key)
    }

    /// An index of a sequence of some length, from its end if it is negative.
    pub(crate) fn index(&self, index: i128, length: usize) -> Option<usize> {
        let length = i128::try_from(length).ok()?;
        let index = if index < 0 { index.checked_add(length)? } else { index };
        (0..length).contains(&index).then(|| usize::try_from(index).ok()).flatten()
    }

    /// `value[index]` as Python has it. `None` for errors that Jinja2 catches.
    fn subscript(&mut self, value: &Value, index: &Value) -> Outcome<Option<Value>> {
        let at = |length| index.as_int().and_then(|index| self.index(index, length));
        Ok(match value {
            Value::Undefined(what) => return Err(Fault::new(Kind::Undefined, &**what)),
            Value::List(items) | Value::Tuple(items) => {
                at(items.items.len()).and_then(|at| items.items.get(at).cloned())
            }
            Value::Str(text) => match at(text.chars) {
                None => None,
                Some(at) => {
                    let character = text.text[text.byte_of(at)..].chars().next();
                    self.bytes(if text.is_ascii() { 0 } else { at })?;
                    let character = character.map(String::from).unwrap_or_default();
                    Some(self.budget.str_or_markup(character, text.markup)?)
                }
            },
            Value::Range(range) => at(range.length).map(|at| Value::Int(range.get(at))),
            Value::Dict(dict) => match self.get(dict, index) {
                Err(fault) if fault.kind() == Kind::Type => None,
                found => found?,
            },
            Value::Template => {
                let block = index.as_str().and_then(|name| self.block_named(name));
                block.map(|block| Value::Function(Rc::new(Function::Block(block))))
            }
            _ => None,
        })
    }

    fn block_named(&self, name: &str) -> Option<usize> {
        self.tables.blocks.iter().position(|block| self.text(block.name) == name)
    }

    /// `value[index]`.
    pub(crate) fn item(&mut self, value: &Value, index: &Value) -> Outcome<Value> {
        if let Some(found) = self.subscript(value, index)? {
            return Ok(found);
        }
        if let Value::Str(name) = index {
            match self.find(value, &name.text)? {
                Found::Value(found) => return Ok(found),
                Found::Unsafe => return Ok(unsafe_attribute(value, &name.text)),
                Found::Missing => {}
            }
        }
        let element = match index {
            Value::Str(name) => return Ok(no_attribute(value, &name.text)),
            Value::Int(index) => index.to_string(),
            other => format!("of type {}", other.type_name()),
        };
        Ok(Value::Undefined(format!("{} object has no element {element}", value.type_name()).into()))
    }

    /// `value.name`.
    pub(crate) fn attribute(&mut self, value: &Value, name: &str) -> Outcome<Value> {
        match self.find(value, name)? {
            Found::Value(found) => Ok(found),
            Found::Unsafe => Ok(unsafe_attribute(value, name)),
            Found::Missing => {
                let found = match value {
                    Value::Undefined(what) => return Err(Fault::new(Kind::Undefined, &**what)),
                    Value::Dict(dict) => self.get_text(dict, name)?,
                    Value::Template => {
                        self.block_named(name).map(|block| Value::Function(Rc::new(Function::Block(block))))
                    }
                    _ => None,
                };
                Ok(found.unwrap_or_else(|| no_attribute(value, name)))
            }
        }
    }

    /// The filter `attr`: an attribute, and never an item.
    pub(crate) fn attribute_only(&mut self, value: &Value, name: &str) -> Outcome<Value> {
        Ok(match self.find(value, name)? {
            Found::Value(found) => found,
            Found::Unsafe => unsafe_attribute(value, name),
            Found::Missing => no_attribute(value, name),
        })
    }

    fn find(&mut self, value: &Value, name: &str) -> Outcome<Found> {
        if let Value::Undefined(what) = value {
            let internal = name.starts_with("__") && name.ends_with("__");
            return if internal { Ok(Found::Missing) } else { Err(Fault::new(Kind::Undefined, &**what)) };
        }
        if name.starts_with('_') {
            if let Value::Namespace(index) = value {
                return Ok(if self.namespace_value(*index, name).is_some() || name == "__class__" {
                    Found::Unsafe
                } else {
                    Found::Missing
                });
            }
            return Ok(if INTERNAL.contains(&name) { Found::Unsafe } else { Found::Missing });
        }
        let found = match value {
            Value::Namespace(index) => self.namespace_value(*index, name),
            Value::Loop(state) => return self.loop_attribute(value, state, name),
            Value::Macro(value) => self.macro_attribute(value.index, name)?,
            Value::Cycler(cycler) => match name {
                "current" => cycler.items.items.get(cycler.at.get()).cloned(),
                "items" => Some(Value::Tuple(cycler.items.clone())),
                "pos" => Some(Value::Int(cycler.at.get() as i128)),
                _ => None,
            },
            Value::Joiner(joiner) => match name {
                "sep" => Some(joiner.separator.clone()),
                "used" => Some(Value::Bool(joiner.used.get())),
                _ => None,
            },
            Value::Tuple(items) if items.group => match name {
                "grouper" => items.items.first().cloned(),
                "list" => items.items.last().cloned(),
                _ => None,
            },
            Value::Int(_) | Value::Bool(_) => match name {
                "real" | "numerator" => value.as_int().map(Value::Int),
                "imag" => Some(Value::Int(0)),
                "denominator" => Some(Value::Int(1)),
                _ => None,
            },
            Value::Float(float) => match name {
                "real" => Some(Value::Float(*float)),
                "imag" => Some(Value::Float(0.0)),
                _ => None,
            },
            Value::View(view) if name == "mapping" => Some(Value::Dict(view.dict.clone())),
            Value::Range(range) => match name {
                "start" => Some(Value::Int(range.start)),
                "stop" => Some(Value::Int(range.stop)),
                "step" => Some(Value::Int(range.step)),
                _ => None,
            },
            _ => None,
        };
        if let Some(found) = found {
            return Ok(Found::Value(found));
        }
        if is_mutating(value, name) {
            return Ok(Found::Unsafe);
        }
        if matches!(name, "escape" | "striptags" | "unescape") && !value.is_markup() {
            return Ok(Found::Missing);
        }
        let method = METHODS.iter().filter(|(kind, _)| *kind == method_kind(value)).flat_map(|(_, names)| *names);
        match method.copied().find(|method| *method == name) {
            None => Ok(Found::Missing),
            Some(name) => {
                let of = value.clone();
                crate::value::depth_over([&of])?;
                Ok(Found::Value(Value::Function(Rc::new(Function::Method { of, name }))))
            }
        }
    }

    pub(crate) fn namespace_value(&self, index: usize, name: &str) -> Option<Value> {
        let entries = self.namespaces.get(index)?.entries.borrow();
        entries.iter().find(|(key, _)| key.text == name).map(|(_, value)| value.clone())
    }

    fn macro_attribute(&mut self, index: usize, name: &str) -> Outcome<Option<Value>> {
        let tables = self.tables;
        let Some(definition) = tables.macros.get(index) else { return Ok(None) };
        let has_caller = definition.parameters.iter().any(|(parameter, _)| self.text(*parameter) == "caller");
        Ok(Some(match name {
            "name" => match definition.name {
                None => Value::None,
                Some(name) => self.string(name)?,
            },
            "arguments" => {
                let mut names = Vec::new();
                for (parameter, _) in &definition.parameters {
                    names.push(self.string(*parameter)?);
                }
                self.budget.tuple(names)?
            }
            "catch_kwargs" => Value::Bool(definition.kwargs),
            "catch_varargs" => Value::Bool(definition.varargs),
            "caller" => Value::Bool(definition.caller),
            "explicit_caller" => Value::Bool(has_caller),
            _ => return Ok(None),
        }))
    }

    pub(crate) fn loop_length(&mut self, state: &LoopState) -> Outcome<usize> {
        if let Some(length) = state.length.get() {
            return Ok(length);
        }
        let iter = state.iter.borrow().clone();
        let rest = self.collect(&Value::Iter(iter))?;
        let peeked = usize::from(state.after.borrow().is_some());
        let length = rest.items.len() + state.index.get() + peeked;
        state.iter.replace(crate::iter::Iter::sequence(rest)?);
        state.length.set(Some(length));
        Ok(length)
    }

    fn loop_attribute(&mut self, value: &Value, state: &LoopState, name: &str) -> Outcome<Found> {
        let index = state.index.get() as i128;
        let int = |value| Ok(Found::Value(Value::Int(value)));
        match name {
            "index" => int(index),
            "index0" => int(index - 1),
            "length" => int(self.loop_length(state)? as i128),
            "revindex" => int(self.loop_length(state)? as i128 - index + 1),
            "revindex0" => int(self.loop_length(state)? as i128 - index),
            "first" => Ok(Found::Value(Value::Bool(index == 1))),
            "last" => Ok(Found::Value(Value::Bool(self.peek(state)?.is_none()))),
            "depth" => int(state.depth0 as i128 + 1),
            "depth0" => int(state.depth0 as i128),
            "previtem" => {
                let before = state.before.borrow().clone().filter(|_| index != 1);
                let none = || Value::Undefined("there is no previous item".into());
                Ok(Found::Value(before.unwrap_or_else(none)))
            }
            "nextitem" => {
                let next = self.peek(state)?;
                let none = || Value::Undefined("there is no next item".into());
                Ok(Found::Value(next.unwrap_or_else(none)))
            }
            "cycle" | "changed" => {
                let name = if name == "cycle" { "cycle" } else { "changed" };
                Ok(Found::Value(Value::Function(Rc::new(Function::Method { of: value.clone(), name }))))
            }
            _ => Ok(Found::Missing),
        }
    }

    /// The part of a string or sequence between two indices.
    fn run(&mut self, value: &Value, start: i128, stop: i128) -> Outcome<Option<Value>> {
        let place = |index: i128| usize::try_from(index).unwrap_or(0);
        let (start, stop) = (place(start), place(stop));
        match value {
            Value::Str(text) => {
                let (first, last) = (text.byte_of(start), text.byte_of(stop));
                self.bytes(last)?;
                self.budget.str_or_markup(&text.text[first..last.max(first)], text.markup).map(Some)
            }
            Value::List(items) | Value::Tuple(items) => {
                let part = items.items.get(start..stop).unwrap_or_default();
                self.step(part.len() / 16)?;
                self.budget.room(size_of_val(part))?;
                let part = self.budget.sequence(part.to_vec(), false)?;
                Ok(Some(if matches!(value, Value::List(_)) { Value::List(part) } else { Value::Tuple(part) }))
            }
            _ => Ok(None),
        }
    }

    /// `value[start:stop:step]`.
    pub(crate) fn slice(&mut self, value: &Value, bounds: &[Option<Value>; 3]) -> Outcome<Value> {
        let length = match value {
            Value::Undefined(what) => return Err(Fault::new(Kind::Undefined, &**what)),
            Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => self.length(value)?,
            Value::Dict(_) => return Err(Fault::type_error("unhashable type: 'slice'")),
            other => return Err(Fault::type_error(format!("'{}' object is not subscriptable", other.type_name()))),
        };
        let bound = |bound: &Option<Value>| match bound {
            None | Some(Value::None) => Ok(None),
            Some(value) => value
                .as_int()
                .map(Some)
                .ok_or_else(|| Fault::type_error("slice indices must be integers or None or have an __index__ method")),
        };
        let (start, stop, step) = (bound(&bounds[0])?, bound(&bounds[1])?, bound(&bounds[2])?.unwrap_or(1));
        if step == 0 {
            return Err(Fault::value_error("slice step cannot be zero"));
        }
        let size = length as i128;
        let (least, most) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let clamp = |bound: Option<i128>, default: i128| match bound {
            None => default,
            Some(bound) if bound < 0 => bound.saturating_add(size).clamp(least, most),
            Some(bound) => bound.clamp(least, most),
        };
        let (start, stop) =
            if step > 0 { (clamp(start, 0), clamp(stop, size)) } else { (clamp(start, size - 1), clamp(stop, -1)) };
        if step == 1
            && let Some(part) = self.run(value, start, stop.max(start))?
        {
            return Ok(part);
        }
        let mut places = Vec::new();
        self.budget.room(length.saturating_mul(8))?;
        self.step(length / 16)?;
        let mut at = start;
        while if step > 0 { at < stop } else { at > stop } {
            places.extend(usize::try_from(at));
            at = at.saturating_add(step);
        }
        match value {
            Value::Str(text) => {
                self.budget.room(text.chars.saturating_mul(4))?;
                let characters: Vec<char> = text.text.chars().collect();
                let part: String = places.iter().filter_map(|place| characters.get(*place)).collect();
                self.budget.str_or_markup(part, text.markup)
            }
            Value::Range(range) => {
                let start = range.start.saturating_add(range.step.saturating_mul(start));
                let stop = range.start.saturating_add(range.step.saturating_mul(stop));
                let step = range.step.saturating_mul(step);
                let range = crate::value::Range { start, stop, step, length: places.len() };
                Ok(Value::Range(Rc::new(range)))
            }
            Value::List(items) | Value::Tuple(items) => {
                let mut part = Items::new(&self.budget)?;
                for place in places {
                    if let Some(item) = items.items.get(place) {
                        part.push(item.clone())?;
                    }
                }
                let part = part.sequence()?;
                Ok(if matches!(value, Value::List(_)) { Value::List(part) } else { Value::Tuple(part) })
            }
            _ => Ok(Value::None),
        }
    }
}

/// Which methods a value has.
pub(crate) fn method_kind(value: &Value) -> &'static str {
    match value {
        Value::Str(_) => "str",
        Value::List(_) => "list",
        Value::Tuple(_) => "tuple",
        Value::Dict(_) => "dict",
        Value::Range(_) => "range",
        Value::View(_) => "view",
        Value::Int(_) | Value::Bool(_) => "int",
        Value::Float(_) => "float",
        Value::Cycler(_) => "cycler",
        Value::Function(_) => "function",
        _ => "",
    }
}

fn no_attribute(value: &Value, name: &str) -> Value {
    let name = crate::fault::quoted(name);
    Value::Undefined(format!("'{} object' has no attribute {name}", value.type_name()).into())
}

fn unsafe_attribute(value: &Value, name: &str) -> Value {
    let name = crate::fault::quoted(name);
    Value::Undefined(format!("access to attribute {name} of '{}' object is unsafe.", value.type_name()).into())
}
