//! Python's values, as far as templates can have them.
//!
//! Nothing that holds other values can be changed once it is made, except what lies in the [`Renderer`]'s own tables and is
//! named by an index (namespaces) or holds a scope (macros). So values can't form a ring, and how deep they nest is known
//! when they are made: to walk one, or to drop it, takes a bounded stack.
//!
//! [`Renderer`]: crate::render::Renderer

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::size_of;
use std::rc::Rc;

use crate::budget::{Budget, Buffer, Charge};
use crate::fault::{Fault, Outcome};
use crate::functions::Function;
use crate::iter::Iter;
use crate::loops::LoopState;
use crate::render::MacroValue;

/// How deep values may nest.
pub(crate) const MAX_DEPTH: u16 = 160;
/// What a string, a list and an entry of a dictionary are charged besides their contents.
pub(crate) const TEXT_BYTES: usize = 80;
const SEQUENCE_BYTES: usize = 80;
const ENTRY_BYTES: usize = 2 * size_of::<Value>() + 24;
/// Dictionaries with fewer entries are searched one by one.
const INDEXED: usize = 8;

#[derive(Clone)]
pub(crate) enum Value {
    /// With the error message of its use.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<Text>),
    List(Rc<Sequence>),
    Tuple(Rc<Sequence>),
    Dict(Rc<Dict>),
    Range(Rc<Range>),
    View(Rc<View>),
    Iter(Rc<Iter>),
    /// By its index in the renderer's table.
    Namespace(usize),
    Loop(Rc<LoopState>),
    Macro(Rc<MacroValue>),
    Function(Rc<Function>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// `self`.
    Template,
}

pub(crate) struct Text {
    pub(crate) text: String,
    /// A string that is HTML already (markupsafe's `Markup`).
    pub(crate) markup: bool,
    /// Length in characters.
    pub(crate) chars: usize,
    _charge: Charge,
}

impl Text {
    pub(crate) fn is_ascii(&self) -> bool {
        self.chars == self.text.len()
    }

    /// Where a character begins.
    pub(crate) fn byte_of(&self, index: usize) -> usize {
        if self.is_ascii() {
            return index.min(self.text.len());
        }
        self.text.char_indices().nth(index).map_or(self.text.len(), |(at, _)| at)
    }
}

pub(crate) struct Sequence {
    pub(crate) items: Vec<Value>,
    /// A pair of `groupby`, whose parts have names.
    pub(crate) group: bool,
    depth: u16,
    _charge: Charge,
}

pub(crate) struct Dict {
    pub(crate) entries: Vec<(Value, Value)>,
    /// Indices of entries by the hash of their key, in large dictionaries.
    index: HashMap<u64, Vec<u32>>,
    depth: u16,
    _charge: Charge,
}

impl Dict {
    /// The indices of entries whose keys may have this hash.
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = usize> {
        let indexed = !self.index.is_empty();
        let all = if indexed { 0..0 } else { 0..self.entries.len() };
        let places = self.index.get(&hash).into_iter().flatten().map(|place| *place as usize);
        all.chain(places)
    }
}

/// `range(start, stop, step)` of `length` integers.
pub(crate) struct Range {
    pub(crate) start: i128,
    pub(crate) stop: i128,
    pub(crate) step: i128,
    pub(crate) length: usize,
}

impl Range {
    pub(crate) fn get(&self, index: usize) -> i128 {
        let offset = i128::try_from(index).ok().and_then(|index| self.step.checked_mul(index));
        offset.and_then(|offset| self.start.checked_add(offset)).unwrap_or(self.stop)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Keys,
    Values,
    Items,
}

/// `dict.keys()`, `dict.values()` and `dict.items()`.
pub(crate) struct View {
    pub(crate) dict: Rc<Dict>,
    pub(crate) part: Part,
}

pub(crate) struct Cycler {
    pub(crate) items: Rc<Sequence>,
    pub(crate) at: Cell<usize>,
}

pub(crate) struct Joiner {
    pub(crate) separator: Value,
    pub(crate) used: Cell<bool>,
}

/// The variables of a namespace, in order.
pub(crate) struct Namespace {
    pub(crate) entries: RefCell<Vec<(Rc<Text>, Value)>>,
    pub(crate) charge: RefCell<Charge>,
}

impl Value {
    /// How many levels of values lie in this one, itself included.
    pub(crate) fn depth(&self) -> u16 {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Dict(dict) => dict.depth,
            Self::View(view) => view.dict.depth + 1,
            Self::Iter(iter) => iter.depth,
            Self::Loop(state) => state.depth,
            Self::Function(function) => function.depth(),
            Self::Cycler(cycler) => cycler.items.depth + 1,
            Self::Joiner(joiner) => joiner.separator.depth() + 1,
            _ => 1,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(&text.text),
            _ => None,
        }
    }

    pub(crate) fn is_markup(&self) -> bool {
        matches!(self, Self::Str(text) if text.markup)
    }

    /// Integers, and booleans, which are integers.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// The name of the type, as error messages of Python have it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.markup => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(view) => match view.part {
                Part::Keys => "dict_keys",
                Part::Values => "dict_values",
                Part::Items => "dict_items",
            },
            Self::Iter(_) => "iterator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Template => "TemplateReference",
        }
    }
}

/// One level more than the deepest of some values, if that is still allowed.
pub(crate) fn depth_over<'v>(values: impl IntoIterator<Item = &'v Value>) -> Outcome<u16> {
    let depth = values.into_iter().map(Value::depth).max().unwrap_or(0) + 1;
    if depth > MAX_DEPTH {
        return Err(Fault::limit(format!("the template nests values deeper than {MAX_DEPTH} levels")));
    }
    Ok(depth)
}

/// The values that a rendering makes are charged to its budget.
impl Budget {
    pub(crate) fn text(&self, text: impl Into<String>) -> Outcome<Rc<Text>> {
        let text = text.into();
        let charge = self.charge(text.len() + TEXT_BYTES)?;
        let chars = text.chars().count();
        Ok(Rc::new(Text { text, markup: false, chars, _charge: charge }))
    }

    pub(crate) fn str(&self, text: impl Into<String>) -> Outcome<Value> {
        Ok(Value::Str(self.text(text)?))
    }

    pub(crate) fn str_or_markup(&self, text: impl Into<String>, markup: bool) -> Outcome<Value> {
        let text = text.into();
        let charge = self.charge(text.len() + TEXT_BYTES)?;
        let chars = text.chars().count();
        Ok(Value::Str(Rc::new(Text { text, markup, chars, _charge: charge })))
    }

    pub(crate) fn list(&self, items: Vec<Value>) -> Outcome<Value> {
        Ok(Value::List(self.sequence(items, false)?))
    }

    pub(crate) fn tuple(&self, items: Vec<Value>) -> Outcome<Value> {
        Ok(Value::Tuple(self.sequence(items, false)?))
    }

    pub(crate) fn sequence(&self, items: Vec<Value>, group: bool) -> Outcome<Rc<Sequence>> {
        let depth = depth_over(&items)?;
        let charge = self.charge(items.len().saturating_mul(size_of::<Value>()) + SEQUENCE_BYTES)?;
        Ok(Rc::new(Sequence { items, group, depth, _charge: charge }))
    }

    /// A dictionary of entries with different keys. `hash` gives the hash of a key.
    pub(crate) fn dict(&self, entries: Vec<(Value, Value)>, hash: impl Fn(&Value) -> Outcome<u64>) -> Outcome<Value> {
        let depth = depth_over(entries.iter().flat_map(|(key, value)| [key, value]))?;
        let mut charge = self.charge(entries.len().saturating_mul(ENTRY_BYTES) + SEQUENCE_BYTES)?;
        let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
        if entries.len() > INDEXED {
            charge.grow(entries.len().saturating_mul(ENTRY_BYTES))?;
            for (place, (key, _)) in (0..).zip(&entries) {
                index.entry(hash(key)?).or_default().push(place);
            }
        }
        Ok(Value::Dict(Rc::new(Dict { entries, index, depth, _charge: charge })))
    }

    /// The string that was built, as a value.
    pub(crate) fn built(&self, buffer: Buffer, markup: bool) -> Value {
        let Buffer { text, charge } = buffer;
        let chars = text.chars().count();
        Value::Str(Rc::new(Text { text, markup, chars, _charge: charge }))
    }
}

/// A list that grows within the budget.
pub(crate) struct Items {
    pub(crate) items: Vec<Value>,
    charge: Charge,
}

impl Items {
    pub(crate) fn new(budget: &Budget) -> Outcome<Self> {
        Ok(Self { items: Vec::new(), charge: budget.charge(SEQUENCE_BYTES)? })
    }

    pub(crate) fn push(&mut self, value: Value) -> Outcome<()> {
        self.charge.grow(size_of::<Value>())?;
        self.items.push(value);
        Ok(())
    }

    /// The items alone, for something that is charged for them itself or soon dropped.
    pub(crate) fn into_vec(self) -> Vec<Value> {
        self.items
    }

    pub(crate) fn sequence(self) -> Outcome<Rc<Sequence>> {
        let depth = depth_over(&self.items)?;
        Ok(Rc::new(Sequence { items: self.items, group: false, depth, _charge: self.charge }))
    }
}
