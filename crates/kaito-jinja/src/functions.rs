//! Calls: of macros, of Jinja2's global functions and of methods.

use std::rc::Rc;

use crate::fault::{Fault, Kind, Outcome};
use crate::filters::FILTERS;
use crate::predicates::TESTS;
use crate::render::{MacroValue, Renderer};
use crate::value::{Cycler, Items, Joiner, Namespace, Range, Value, depth_over};

/// Longest range that the sandbox makes.
const MAX_RANGE: usize = 100_000;

/// The arguments of a call.
#[derive(Default)]
pub(crate) struct CallArgs {
    pub(crate) positional: Vec<Value>,
    pub(crate) keywords: Vec<(String, Value)>,
}

impl CallArgs {
    /// The arguments by the names of the parameters, of which the first `required` must be given.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Outcome<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            let message = format!("{function}() takes at most {N} arguments ({given} given)");
            return Err(Fault::type_error(message));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keywords {
            let Some(at) = names.iter().position(|parameter| *parameter == name && !name.is_empty()) else {
                let name = crate::fault::quoted(&name);
                return Err(Fault::type_error(format!("{function}() got an unexpected keyword argument {name}")));
            };
            if bound[at].replace(value).is_some() {
                return Err(Fault::type_error(format!("{function}() got multiple values for argument '{name}'")));
            }
        }
        if let Some(at) = bound.iter().take(required).position(Option::is_none) {
            return Err(Fault::type_error(format!("{function}() misses its argument {} '{}'", at + 1, names[at])));
        }
        Ok(bound)
    }

    /// The arguments of a function whose parameters have no names.
    pub(crate) fn bind_positional<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Outcome<[Option<Value>; N]> {
        if !self.keywords.is_empty() {
            return Err(Fault::type_error(format!("{function}() takes no keyword arguments")));
        }
        self.bind(function, [""; N], required)
    }
}

pub(crate) enum Function {
    Global(Global),
    Method {
        of: Value,
        name: &'static str,
    },
    /// A block of the template, by its index.
    Block(usize),
}

impl Function {
    pub(crate) fn depth(&self) -> u16 {
        match self {
            Self::Method { of, .. } => of.depth() + 1,
            Self::Global(_) | Self::Block(_) => 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    Range,
    Dict,
    Lipsum,
    Cycler,
    Joiner,
    Namespace,
    RaiseException,
    StrftimeNow,
}

impl Global {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "range" => Self::Range,
            "dict" => Self::Dict,
            "lipsum" => Self::Lipsum,
            "cycler" => Self::Cycler,
            "joiner" => Self::Joiner,
            "namespace" => Self::Namespace,
            "raise_exception" => Self::RaiseException,
            "strftime_now" => Self::StrftimeNow,
            _ => return None,
        })
    }

    pub(crate) fn value(self) -> Value {
        Value::Function(Rc::new(Function::Global(self)))
    }

    /// How a class is written; functions are written with their address.
    pub(crate) fn class(self) -> Option<&'static str> {
        Some(match self {
            Self::Dict => "dict",
            Self::Cycler => "jinja2.utils.Cycler",
            Self::Joiner => "jinja2.utils.Joiner",
            Self::Namespace => "jinja2.utils.Namespace",
            _ => return None,
        })
    }
}

pub(crate) fn is_filter(name: &str) -> bool {
    FILTERS.contains(&name)
}

pub(crate) fn is_test(name: &str) -> bool {
    TESTS.contains(&name)
}

impl Renderer<'_> {
    pub(crate) fn call(&mut self, callee: &Value, args: CallArgs) -> Outcome<Value> {
        self.step(1)?;
        match callee {
            Value::Undefined(what) => Err(Fault::new(Kind::Undefined, &**what)),
            Value::Macro(value) => self.call_macro(value, args),
            Value::Function(function) => match function.as_ref() {
                Function::Global(global) => self.call_global(*global, args),
                Function::Method { of, name } => self.call_method(of, name, args),
                Function::Block(index) => {
                    let [] = args.bind_positional("block", 0)?;
                    let text = self.captured(|renderer| renderer.run_block(*index, None))?;
                    Ok(self.budget.built(text, self.autoescape))
                }
            },
            Value::Joiner(joiner) => {
                let [] = args.bind_positional("joiner", 0)?;
                if joiner.used.replace(true) { Ok(joiner.separator.clone()) } else { self.budget.str("") }
            }
            Value::Loop(state) => {
                let [values] = args.bind("loop", ["iterable"], 1)?;
                let values = values.unwrap_or(Value::None);
                let recursive = self.tables.loops.get(state.statement).is_some_and(|statement| statement.recursive);
                if !recursive {
                    let message = "The loop must have the 'recursive' marker to be called recursively.";
                    return Err(Fault::type_error(message));
                }
                self.recurse(state.statement, &values, &state.scope, state.depth0 + 1)
            }
            other => Err(Fault::type_error(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn call_macro(&mut self, value: &MacroValue, args: CallArgs) -> Outcome<Value> {
        let tables = self.tables;
        let Some(definition) = tables.macros.get(value.index) else { return Err(Fault::runtime("no such macro")) };
        let name = definition.name.map_or("caller", |name| self.text(name));
        let CallArgs { positional, mut keywords } = args;
        let mut rest = positional.into_iter();
        let mut bound = Vec::new();
        let mut has_caller = false;
        for (parameter, _) in &definition.parameters {
            let parameter_name = self.text(*parameter);
            let argument = rest.next().or_else(|| {
                let at = keywords.iter().position(|(keyword, _)| keyword == parameter_name)?;
                Some(keywords.remove(at).1)
            });
            has_caller |= parameter_name == "caller";
            bound.push((*parameter, argument));
        }
        let symbol = |name: &str| (0..).map(crate::ast::Symbol).zip(&tables.texts).find(|(_, text)| *text == name);
        if definition.caller && !has_caller {
            let at = keywords.iter().position(|(keyword, _)| keyword == "caller");
            let caller = match at.map(|at| keywords.remove(at).1) {
                None | Some(Value::None) => Value::Undefined("No caller defined".into()),
                Some(caller) => caller,
            };
            bound.extend(symbol("caller").map(|(symbol, _)| (symbol, Some(caller))));
        }
        if definition.kwargs {
            let mut entries = Vec::new();
            for (keyword, value) in keywords {
                entries.push((self.budget.str(keyword)?, value));
            }
            let kwargs = self.dict(entries)?;
            bound.extend(symbol("kwargs").map(|(symbol, _)| (symbol, Some(kwargs))));
        } else if let Some((keyword, _)) = keywords.first() {
            let keyword = crate::fault::quoted(keyword);
            return Err(Fault::type_error(format!("macro '{name}' takes no keyword argument {keyword}")));
        }
        if definition.varargs {
            let varargs = self.budget.tuple(rest.collect())?;
            bound.extend(symbol("varargs").map(|(symbol, _)| (symbol, Some(varargs))));
        } else if rest.next().is_some() {
            let most = definition.parameters.len();
            return Err(Fault::type_error(format!("macro '{name}' takes not more than {most} argument(s)")));
        }
        self.run_macro(value, bound)
    }

    fn call_global(&mut self, global: Global, args: CallArgs) -> Outcome<Value> {
        match global {
            Global::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                let message = self.string_of(&message.unwrap_or(Value::None))?;
                Err(Fault::new(Kind::Raised, message))
            }
            Global::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                match &format {
                    Some(Value::Str(format)) => {
                        let text = crate::strftime::strftime(self.now, &format.text);
                        self.budget.str(text)
                    }
                    _ => Err(Fault::type_error("strftime() argument 1 must be str")),
                }
            }
            Global::Range => self.range(args),
            Global::Dict => {
                let CallArgs { positional, keywords } = args;
                self.dict_of(positional, keywords)
            }
            Global::Lipsum => {
                let [n, html, ..] = args.bind("lipsum", ["n", "html", "min", "max"], 0)?;
                match n.as_ref().map(Value::as_int) {
                    Some(Some(..=0)) => {
                        let html = html.map_or(Ok(true), |html| self.truth(&html))?;
                        self.budget.str_or_markup("", html)
                    }
                    _ => Err(Fault::unsupported("lipsum, whose text is random,")),
                }
            }
            Global::Cycler => {
                if !args.keywords.is_empty() {
                    return Err(Fault::type_error("cycler() takes no keyword arguments"));
                }
                if args.positional.is_empty() {
                    return Err(Fault::runtime("at least one item has to be provided"));
                }
                let items = self.budget.sequence(args.positional, false)?;
                depth_over([&Value::Tuple(items.clone())])?;
                Ok(Value::Cycler(Rc::new(Cycler { items, at: 0.into() })))
            }
            Global::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                let separator = match separator {
                    Some(separator) => separator,
                    None => self.budget.str(", ")?,
                };
                depth_over([&separator])?;
                Ok(Value::Joiner(Rc::new(Joiner { separator, used: false.into() })))
            }
            Global::Namespace => {
                let CallArgs { positional, keywords } = args;
                let charge = self.budget.charge(128)?;
                let entries = match self.dict_of(positional, keywords)? {
                    Value::Dict(dict) => dict.entries.clone(),
                    _ => Vec::new(),
                };
                let index = self.namespaces.len();
                self.namespaces.push(Namespace { entries: Vec::new().into(), charge: charge.into() });
                for (key, value) in entries {
                    if let Value::Str(key) = key {
                        self.set_attribute(index, &key.text, value)?;
                    }
                }
                Ok(Value::Namespace(index))
            }
        }
    }

    /// Gives a namespace an attribute.
    pub(crate) fn set_attribute(&mut self, index: usize, name: &str, value: Value) -> Outcome<()> {
        let size = self.namespaces.get(index).map_or(0, |namespace| namespace.entries.borrow().len());
        self.step(size / 8)?;
        let Some(namespace) = self.namespaces.get(index) else { return Ok(()) };
        let mut entries = namespace.entries.borrow_mut();
        let before = match entries.iter_mut().find(|(key, _)| key.text == name) {
            Some((_, slot)) => Some(std::mem::replace(slot, value)),
            None => {
                namespace.charge.borrow_mut().grow(64)?;
                entries.push((self.budget.text(name)?, value));
                None
            }
        };
        drop(entries);
        drop(before);
        Ok(())
    }

    fn range(&mut self, args: CallArgs) -> Outcome<Value> {
        let given = args.positional.len();
        let bounds: [Option<Value>; 3] = args.bind_positional("range", 1)?;
        let mut numbers = Vec::new();
        for bound in bounds.iter().flatten() {
            let Some(number) = bound.as_int() else {
                let message = format!("'{}' object cannot be interpreted as an integer", bound.type_name());
                return Err(self.undefined_or(bound, Fault::type_error(message)));
            };
            numbers.push(number);
        }
        let (start, stop, step) = match (given, numbers.as_slice()) {
            (1, [stop]) => (0, *stop, 1),
            (_, [start, stop]) => (*start, *stop, 1),
            (_, [start, stop, step]) => (*start, *stop, *step),
            _ => return Err(Fault::type_error("range expected at least 1 argument, got 0")),
        };
        let too_big = || Fault::new(Kind::Overflow, format!("a range may have at most {MAX_RANGE} items"));
        let length = match step {
            0 => return Err(Fault::value_error("range() arg 3 must not be zero")),
            1.. if start < stop => stop.checked_sub(start).ok_or_else(too_big)?.checked_sub(1).map(|d| d / step + 1),
            ..0 if start > stop => {
                let distance = start.checked_sub(stop).ok_or_else(too_big)?;
                step.checked_neg().and_then(|step| distance.checked_sub(1).map(|distance| distance / step + 1))
            }
            _ => Some(0),
        };
        let length = length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= MAX_RANGE);
        let length = length.ok_or_else(too_big)?;
        Ok(Value::Range(Rc::new(Range { start, stop, step, length })))
    }

    /// Python's `dict(*positional, **keywords)`.
    pub(crate) fn dict_of(&mut self, positional: Vec<Value>, keywords: Vec<(String, Value)>) -> Outcome<Value> {
        let mut entries = Vec::new();
        if positional.len() > 1 {
            return Err(Fault::type_error(format!("dict expected at most 1 argument, got {}", positional.len())));
        }
        match positional.into_iter().next() {
            None => {}
            Some(Value::Dict(dict)) => entries.extend(dict.entries.iter().cloned()),
            Some(pairs) => {
                let iter = self.iter(&pairs)?;
                while let Some(pair) = self.next(&iter)? {
                    let pair = self.collect(&pair)?;
                    let [key, value] = pair.items.as_slice() else {
                        let message = format!("a pair of a dictionary has length {}; 2 is required", pair.items.len());
                        return Err(Fault::value_error(message));
                    };
                    self.budget.room(entries.len().saturating_mul(64))?;
                    entries.push((key.clone(), value.clone()));
                }
            }
        }
        for (name, value) in keywords {
            entries.push((self.budget.str(name)?, value));
        }
        self.dict(entries)
    }

    /// A dictionary of entries whose keys may repeat: the last value, at the position of the first.
    pub(crate) fn dict(&mut self, entries: Vec<(Value, Value)>) -> Outcome<Value> {
        let mut places = std::collections::HashMap::<u64, Vec<usize>>::new();
        let mut unique: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
        self.budget.room(entries.len().saturating_mul(128))?;
        'entries: for (key, value) in entries {
            self.step(1)?;
            let hash = self.hash(&key)?;
            let candidates = places.entry(hash).or_default();
            for place in candidates.iter() {
                if let Some(slot) = unique.get_mut(*place) {
                    let known = slot.0.clone();
                    if self.equal(&known, &key)? {
                        slot.1 = value;
                        continue 'entries;
                    }
                }
            }
            candidates.push(unique.len());
            unique.push((key, value));
        }
        let hasher = self.hasher.clone();
        self.budget.clone().dict(unique, |key| crate::ops::hash_value(&hasher, key))
    }

    /// The error of an undefined value, or another.
    pub(crate) fn undefined_or(&self, value: &Value, other: Fault) -> Fault {
        match value {
            Value::Undefined(what) => Fault::new(Kind::Undefined, &**what),
            _ => other,
        }
    }
}

/// Arguments of a built-in function, converted.
impl Renderer<'_> {
    pub(crate) fn int_arg(&self, value: Option<&Value>, default: i128) -> Outcome<i128> {
        match value {
            None => Ok(default),
            Some(value) => value.as_int().ok_or_else(|| {
                let message = format!("'{}' object cannot be interpreted as an integer", value.type_name());
                self.undefined_or(value, Fault::type_error(message))
            }),
        }
    }

    pub(crate) fn bool_arg(&mut self, value: Option<&Value>, default: bool) -> Outcome<bool> {
        value.map_or(Ok(default), |value| self.truth(value))
    }

    pub(crate) fn str_arg<'v>(&self, value: Option<&'v Value>, what: &str) -> Outcome<&'v str> {
        match value {
            Some(Value::Str(text)) => Ok(&text.text),
            Some(other) => Err(Fault::type_error(format!("{what} must be str, not {}", other.type_name()))),
            None => Err(Fault::type_error(format!("{what} is missing"))),
        }
    }

    pub(crate) fn list(&mut self, items: Items) -> Outcome<Value> {
        Ok(Value::List(items.sequence()?))
    }
}
