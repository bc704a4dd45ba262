//! Iterators over values, and lazy filters.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::fault::{Fault, Outcome};
use crate::functions::CallArgs;
use crate::render::{Renderer, Scope};
use crate::value::{Dict, Items, MAX_DEPTH, Part, Range, Sequence, Text, Value, depth_over};

/// How much deeper the values that a filter yields may nest than those that it is given.
const LAZY_LEVELS: u16 = 4;

pub(crate) struct Iter {
    state: RefCell<Source>,
    pub(crate) depth: u16,
}

enum Source {
    Empty,
    Sequence(Rc<Sequence>, usize),
    Reversed(Rc<Sequence>, usize),
    Chars(Rc<Text>, usize),
    Range(Rc<Range>, usize),
    View(Rc<Dict>, Part, usize),
    /// The values that pass the test of a loop, by the loop's index.
    Passing(Rc<Iter>, usize, Rc<Scope>),
    /// A lazy filter before its first item.
    Waiting(Box<Lazy>),
    /// A filter over an iterator.
    Running(Rc<Iter>, Box<Lazy>),
}

/// The filters that return generators.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LazyKind {
    Map,
    Select { attribute: bool, keep: bool },
    Unique,
    Slice,
    Batch,
    Items,
}

struct Lazy {
    kind: LazyKind,
    value: Value,
    args: CallArgs,
    /// Of `unique`: the items so far, by their hash.
    seen: HashMap<u64, Vec<Value>>,
}

impl Iter {
    fn new(state: Source, depth: u16) -> Rc<Self> {
        Rc::new(Self { state: RefCell::new(state), depth })
    }

    pub(crate) fn sequence(items: Rc<Sequence>) -> Outcome<Rc<Self>> {
        let depth = depth_over([&Value::List(items.clone())])?;
        Ok(Self::new(Source::Sequence(items, 0), depth))
    }

    /// A sequence from its end.
    pub(crate) fn reversed(items: Rc<Sequence>) -> Outcome<Rc<Self>> {
        let depth = depth_over([&Value::List(items.clone())])?;
        let length = items.items.len();
        Ok(Self::new(Source::Reversed(items, length), depth))
    }

    pub(crate) fn passing(iter: Rc<Self>, index: usize, scope: Rc<Scope>) -> Outcome<Rc<Self>> {
        let depth = iter.depth;
        Ok(Self::new(Source::Passing(iter, index, scope), depth))
    }

    /// A lazy filter of a value: it does nothing before its first item is asked for.
    pub(crate) fn lazy(kind: LazyKind, value: Value, args: CallArgs) -> Outcome<Value> {
        let keywords = args.keywords.iter().map(|(_, value)| value);
        let depth = depth_over(args.positional.iter().chain(keywords).chain([&value]))?.saturating_add(LAZY_LEVELS);
        if depth > MAX_DEPTH {
            return Err(Fault::limit(format!("the template nests values deeper than {MAX_DEPTH} levels")));
        }
        let lazy = Lazy { kind, value, args, seen: HashMap::new() };
        Ok(Value::Iter(Self::new(Source::Waiting(Box::new(lazy)), depth)))
    }
}

impl Renderer<'_> {
    /// Python's `iter`.
    pub(crate) fn iter(&mut self, value: &Value) -> Outcome<Rc<Iter>> {
        let state = match value {
            Value::Undefined(_) => Source::Empty,
            Value::Str(text) => Source::Chars(text.clone(), 0),
            Value::List(items) | Value::Tuple(items) => Source::Sequence(items.clone(), 0),
            Value::Dict(dict) => Source::View(dict.clone(), Part::Keys, 0),
            Value::View(view) => Source::View(view.dict.clone(), view.part, 0),
            Value::Range(range) => Source::Range(range.clone(), 0),
            Value::Iter(iter) => return Ok(iter.clone()),
            Value::Loop(_) => return Err(Fault::unsupported("iterating over the variable loop")),
            other => return Err(Fault::type_error(format!("'{}' object is not iterable", other.type_name()))),
        };
        Ok(Iter::new(state, depth_over([value])?))
    }

    /// Python's `next`.
    pub(crate) fn next(&mut self, iter: &Rc<Iter>) -> Outcome<Option<Value>> {
        self.step(1)?;
        let mut source = iter.state.replace(Source::Empty);
        let next = match &mut source {
            Source::Empty => None,
            Source::Sequence(items, at) => {
                *at += 1;
                items.items.get(*at - 1).cloned()
            }
            Source::Reversed(items, at) => match at.checked_sub(1) {
                None => None,
                Some(before) => {
                    *at = before;
                    items.items.get(before).cloned()
                }
            },
            Source::Chars(text, at) => match text.text.get(*at..).and_then(|rest| rest.chars().next()) {
                None => None,
                Some(character) => {
                    *at += character.len_utf8();
                    Some(self.budget.str(character)?)
                }
            },
            Source::Range(range, at) => {
                *at += 1;
                (*at <= range.length).then(|| Value::Int(range.get(*at - 1)))
            }
            Source::View(dict, part, at) => {
                *at += 1;
                match dict.entries.get(*at - 1) {
                    None => None,
                    Some((key, value)) => Some(match part {
                        Part::Keys => key.clone(),
                        Part::Values => value.clone(),
                        Part::Items => self.budget.tuple(vec![key.clone(), value.clone()])?,
                    }),
                }
            }
            Source::Passing(inner, index, scope) => self.next_passing(inner, *index, scope)?,
            Source::Waiting(_) | Source::Running(..) => {
                let (next, after) = self.deeper(|renderer| renderer.next_lazy(source))?;
                iter.state.replace(after);
                return Ok(next);
            }
        };
        iter.state.replace(if next.is_some() { source } else { Source::Empty });
        Ok(next)
    }

    fn next_lazy(&mut self, source: Source) -> Outcome<(Option<Value>, Source)> {
        let (inner, mut lazy) = match source {
            Source::Running(inner, lazy) => (inner, lazy),
            Source::Waiting(lazy) => match self.start(&lazy)? {
                None => return Ok((None, Source::Empty)),
                Some(inner) => (inner, lazy),
            },
            other => return Ok((None, other)),
        };
        while let Some(item) = self.next(&inner)? {
            if let Some(value) = self.pass(&mut lazy, item)? {
                return Ok((Some(value), Source::Running(inner, lazy)));
            }
        }
        Ok((None, Source::Empty))
    }

    /// The iterator that a lazy filter takes its items from, made at its first item.
    fn start(&mut self, lazy: &Lazy) -> Outcome<Option<Rc<Iter>>> {
        let value = &lazy.value;
        match lazy.kind {
            LazyKind::Map | LazyKind::Select { .. } if !self.truth(value)? => Ok(None),
            LazyKind::Map => {
                self.check_map(&lazy.args)?;
                self.iter(value).map(Some)
            }
            LazyKind::Select { attribute: true, .. } if lazy.args.positional.is_empty() => {
                Err(Fault::runtime("Missing parameter for attribute name"))
            }
            LazyKind::Select { .. } | LazyKind::Unique => self.iter(value).map(Some),
            LazyKind::Slice => {
                let slices = self.slices(value, &lazy.args)?;
                Iter::sequence(slices).map(Some)
            }
            LazyKind::Batch => {
                let batches = self.batches(value, &lazy.args)?;
                Iter::sequence(batches).map(Some)
            }
            LazyKind::Items => match value {
                Value::Undefined(_) => Ok(None),
                Value::Dict(dict) => {
                    let view = Source::View(dict.clone(), Part::Items, 0);
                    Ok(Some(Iter::new(view, depth_over([value])?)))
                }
                _ => Err(Fault::type_error("Can only get item pairs from a mapping.")),
            },
        }
    }

    /// A filter applied to an item.
    fn pass(&mut self, lazy: &mut Lazy, item: Value) -> Outcome<Option<Value>> {
        match lazy.kind {
            LazyKind::Map => self.mapped(&lazy.args, item).map(Some),
            LazyKind::Select { attribute, keep } => {
                let selected = self.selected(attribute, &lazy.args, &item)?;
                Ok((selected == keep).then_some(item))
            }
            LazyKind::Unique => {
                let key = self.unique_key(&lazy.args, &item)?;
                let hash = self.hash(&key)?;
                for seen in lazy.seen.get(&hash).into_iter().flatten() {
                    if self.equal(seen, &key)? {
                        return Ok(None);
                    }
                }
                self.budget.room(lazy.seen.len().saturating_mul(128))?;
                lazy.seen.entry(hash).or_default().push(key);
                Ok(Some(item))
            }
            LazyKind::Slice | LazyKind::Batch | LazyKind::Items => Ok(Some(item)),
        }
    }

    /// Python's `list`.
    pub(crate) fn collect(&mut self, value: &Value) -> Outcome<Rc<Sequence>> {
        match value {
            // Lists and tuples are immutable: their values may be shared.
            Value::List(items) | Value::Tuple(items) if !items.group => Ok(items.clone()),
            _ => {
                let iter = self.iter(value)?;
                let mut items = Items::new(&self.budget)?;
                while let Some(item) = self.next(&iter)? {
                    items.push(item)?;
                }
                items.sequence()
            }
        }
    }
}
