//! Jinja2's built-in filters: the table of all of them, and those that work on collections.

use std::rc::Rc;

use crate::ast::Binary;
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::CallArgs;
use crate::iter::{Iter, LazyKind};
use crate::render::Renderer;
use crate::value::{Items, Sequence, Value};

/// The names of all filters.
pub(crate) const FILTERS: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "items",
    "map",
    "min",
    "max",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "tojson",
];

/// A step on the way from an item to its attribute.
type Path = Vec<Value>;

impl Renderer<'_> {
    #[inline(never)]
    pub(crate) fn filter(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        self.step(1)?;
        match name {
            "map" => Iter::lazy(LazyKind::Map, value, args),
            "select" => Iter::lazy(LazyKind::Select { attribute: false, keep: true }, value, args),
            "reject" => Iter::lazy(LazyKind::Select { attribute: false, keep: false }, value, args),
            "selectattr" => Iter::lazy(LazyKind::Select { attribute: true, keep: true }, value, args),
            "rejectattr" => Iter::lazy(LazyKind::Select { attribute: true, keep: false }, value, args),
            "unique" => {
                let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
                Iter::lazy(LazyKind::Unique, value, positional([sensitive, attribute]))
            }
            "slice" => {
                let [slices, fill] = args.bind(name, ["slices", "fill_with"], 1)?;
                Iter::lazy(LazyKind::Slice, value, positional([slices, fill]))
            }
            "batch" => {
                let [count, fill] = args.bind(name, ["linecount", "fill_with"], 1)?;
                Iter::lazy(LazyKind::Batch, value, positional([count, fill]))
            }
            "items" => {
                let [] = args.bind(name, [], 0)?;
                Iter::lazy(LazyKind::Items, value, CallArgs::default())
            }
            "attr" => {
                let [attribute] = args.bind(name, ["name"], 1)?;
                let attribute = self.str_arg(attribute.as_ref(), "attribute name")?;
                self.attribute_only(&value, attribute)
            }
            "count" | "length" => {
                let [] = args.bind(name, [], 0)?;
                Ok(Value::Int(self.length(&value)? as i128))
            }
            "d" | "default" => {
                let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
                let replaced =
                    value.is_undefined() || (self.bool_arg(boolean.as_ref(), false)? && !self.truth(&value)?);
                match default {
                    _ if !replaced => Ok(value),
                    Some(default) => Ok(default),
                    None => self.budget.str(""),
                }
            }
            "first" => {
                let [] = args.bind(name, [], 0)?;
                let iter = self.iter(&value)?;
                let none = || Value::Undefined("No first item, sequence was empty.".into());
                Ok(self.next(&iter)?.unwrap_or_else(none))
            }
            "last" => {
                let [] = args.bind(name, [], 0)?;
                let none = || Value::Undefined("No last item, sequence was empty.".into());
                Ok(self.reversible(&value)?.items.last().cloned().unwrap_or_else(none))
            }
            "list" => {
                let [] = args.bind(name, [], 0)?;
                let items = self.collect(&value)?.items.clone();
                self.budget.list(items)
            }
            "random" => {
                let [] = args.bind(name, [], 0)?;
                match self.length(&value)? {
                    0 => Ok(Value::Undefined("No random item, sequence was empty.".into())),
                    1 if !matches!(value, Value::Dict(_)) => self.item(&value, &Value::Int(0)),
                    _ => Err(Fault::unsupported("the filter random")),
                }
            }
            "reverse" => {
                let [] = args.bind(name, [], 0)?;
                self.reverse(&value)
            }
            "join" => self.join(value, args),
            "min" | "max" => self.extreme(name, &value, args),
            "sort" => self.sort(&value, args),
            "dictsort" => self.dict_sort(&value, args),
            "groupby" => self.group_by(&value, args),
            "sum" => {
                let [attribute, start] = args.bind(name, ["attribute", "start"], 0)?;
                let path = self.path(attribute.as_ref())?;
                let mut sum = start.unwrap_or(Value::Int(0));
                if matches!(sum, Value::Str(_)) {
                    return Err(Fault::type_error("sum() can't sum strings [use ''.join(seq) instead]"));
                }
                let iter = self.iter(&value)?;
                while let Some(item) = self.next(&iter)? {
                    let item = self.follow(&item, &path, None)?;
                    sum = self.binary(Binary::Add, &sum, &item)?;
                }
                Ok(sum)
            }
            "tojson" => self.json(&value, args),
            "pprint" => {
                let [] = args.bind(name, [], 0)?;
                self.pretty(&value)
            }
            _ => self.text_filter(name, value, args),
        }
    }

    /// Python's `list(reversed(value))`, reversed back.
    fn reversible(&mut self, value: &Value) -> Outcome<Rc<Sequence>> {
        match value {
            Value::Undefined(_)
            | Value::Str(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::View(_)
            | Value::Range(_) => self.collect(value),
            other => Err(Fault::type_error(format!("'{}' object is not reversible", other.type_name()))),
        }
    }

    fn reverse(&mut self, value: &Value) -> Outcome<Value> {
        if let Value::Str(text) = value {
            self.bytes(text.text.len())?;
            self.budget.room(text.text.len())?;
            return self.budget.str_or_markup(text.text.chars().rev().collect::<String>(), text.markup);
        }
        match self.reversible(value) {
            Ok(items) => Ok(Value::Iter(Iter::reversed(items)?)),
            Err(fault) if fault.kind() == Kind::Type => {
                let mut items = match self.collect(value) {
                    Err(fault) if fault.kind() == Kind::Type => {
                        return Err(Fault::runtime("argument must be iterable"));
                    }
                    items => items?.items.clone(),
                };
                items.reverse();
                self.budget.list(items)
            }
            Err(fault) => Err(fault),
        }
    }

    /// The steps to an attribute: `a.b.0`.
    fn path(&mut self, attribute: Option<&Value>) -> Outcome<Path> {
        match attribute {
            None | Some(Value::None) => Ok(Vec::new()),
            Some(Value::Str(text)) => self.parts_of_path(&text.text),
            Some(other) => Ok(vec![other.clone()]),
        }
    }

    fn parts_of_path(&mut self, text: &str) -> Outcome<Path> {
        let mut path = Vec::new();
        for part in text.split('.') {
            self.step(1)?;
            let number = !part.is_empty() && part.chars().all(|c| crate::chars::DIGIT.holds(c));
            path.push(match number {
                true => Value::Int(crate::numbers::parse_int(part, 10)?),
                false => self.budget.str(part)?,
            });
        }
        Ok(path)
    }

    fn follow(&mut self, item: &Value, path: &[Value], default: Option<&Value>) -> Outcome<Value> {
        let mut item = item.clone();
        for part in path {
            item = self.item(&item, part)?;
            if let (true, Some(default)) = (item.is_undefined(), default) {
                item = default.clone();
            }
        }
        Ok(item)
    }

    /// A sort key: strings in lower case, unless case matters.
    fn folded(&mut self, key: Value, case_sensitive: bool) -> Outcome<Value> {
        match &key {
            Value::Str(text) if !case_sensitive => {
                self.bytes(text.text.len())?;
                self.budget.str(crate::str_methods::lower(&text.text))
            }
            _ => Ok(key),
        }
    }

    pub(crate) fn unique_key(&mut self, args: &CallArgs, item: &Value) -> Outcome<Value> {
        let case_sensitive = self.bool_arg(args.positional.first(), false)?;
        let path = self.path(args.positional.get(1))?;
        let key = self.follow(item, &path, None)?;
        self.folded(key, case_sensitive)
    }

    fn extreme(&mut self, name: &str, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
        let sensitive = self.bool_arg(sensitive.as_ref(), false)?;
        let iter = self.iter(value)?;
        let mut best: Option<(Value, Value)> = None;
        let mut path = None;
        while let Some(item) = self.next(&iter)? {
            if path.is_none() {
                path = Some(self.path(attribute.as_ref())?);
            }
            let key = self.follow(&item, path.as_deref().unwrap_or_default(), None)?;
            let key = self.folded(key, sensitive)?;
            let better = match &best {
                None => true,
                Some((best, _)) if name == "min" => self.less(&key, best, "<")?,
                Some((best, _)) => self.less(best, &key, ">")?,
            };
            if better {
                best = Some((key, item));
            }
        }
        let none = || Value::Undefined("No aggregated item, sequence was empty.".into());
        Ok(best.map_or_else(none, |(_, item)| item))
    }

    fn sort(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [reverse, sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
        let sensitive = self.bool_arg(sensitive.as_ref(), false)?;
        let mut paths = Vec::new();
        match &attribute {
            Some(Value::Str(text)) => {
                for part in text.text.split(',') {
                    paths.push(self.parts_of_path(part)?);
                }
            }
            other => paths.push(self.path(other.as_ref())?),
        }
        let mut keyed = Vec::new();
        let iter = self.iter(value)?;
        while let Some(item) = self.next(&iter)? {
            let mut keys = Vec::new();
            for path in &paths {
                let key = self.follow(&item, path, None)?;
                keys.push(self.folded(key, sensitive)?);
            }
            self.budget.room(keyed.len().saturating_mul(2 * size_of::<Value>()))?;
            keyed.push((self.budget.list(keys)?, item));
        }
        let reverse = self.bool_arg(reverse.as_ref(), false)?;
        let sorted = self.sorted(keyed, reverse)?;
        self.budget.list(sorted.into_iter().map(|(_, item)| item).collect())
    }

    fn dict_sort(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let place = match by.as_ref().map(|by| by.as_str().unwrap_or("")) {
            None | Some("key") => 0,
            Some("value") => 1,
            _ => return Err(Fault::runtime("You can only sort by either \"key\" or \"value\"")),
        };
        let Value::Dict(dict) = value else {
            let other = Fault::type_error(format!("'{}' object has no attribute 'items'", value.type_name()));
            return Err(self.undefined_or(value, other));
        };
        let sensitive = self.bool_arg(sensitive.as_ref(), false)?;
        let mut keyed = Vec::new();
        for (key, value) in &dict.entries {
            let by = if place == 0 { key.clone() } else { value.clone() };
            let by = self.folded(by, sensitive)?;
            keyed.push((by, self.budget.tuple(vec![key.clone(), value.clone()])?));
        }
        let reverse = self.bool_arg(reverse.as_ref(), false)?;
        let sorted = self.sorted(keyed, reverse)?;
        self.budget.list(sorted.into_iter().map(|(_, item)| item).collect())
    }

    fn group_by(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [attribute, default, sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let sensitive = self.bool_arg(sensitive.as_ref(), false)?;
        let path = self.path(attribute.as_ref())?;
        let default = default.filter(|default| !matches!(default, Value::None));
        let mut keyed = Vec::new();
        let iter = self.iter(value)?;
        while let Some(item) = self.next(&iter)? {
            let key = self.follow(&item, &path, default.as_ref())?;
            keyed.push((self.folded(key, sensitive)?, item));
        }
        let mut groups = Items::new(&self.budget)?;
        let mut sorted = self.sorted(keyed, false)?.into_iter().peekable();
        while let Some((key, first)) = sorted.next() {
            let name = if sensitive { key.clone() } else { self.follow(&first, &path, default.as_ref())? };
            let mut members = vec![first];
            while let Some((other, _)) = sorted.peek() {
                let other = other.clone();
                if !self.equal(&key, &other)? {
                    break;
                }
                members.extend(sorted.next().map(|(_, item)| item));
            }
            let members = self.budget.list(members)?;
            groups.push(Value::Tuple(self.budget.sequence(vec![name, members], true)?))?;
        }
        self.list(groups)
    }

    fn join(&mut self, value: Value, args: CallArgs) -> Outcome<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
        let path = match attribute {
            None | Some(Value::None) => None,
            attribute => Some(self.path(attribute.as_ref())?),
        };
        let separator = match separator {
            Some(separator) => separator,
            None => self.budget.str("")?,
        };
        let mut parts = Items::new(&self.budget)?;
        let iter = self.iter(&value)?;
        while let Some(item) = self.next(&iter)? {
            parts.push(match &path {
                None => item,
                Some(path) => self.follow(&item, path, None)?,
            })?;
        }
        let markup = self.autoescape && (separator.is_markup() || parts.items.iter().any(Value::is_markup));
        let escaped = markup && !separator.is_markup();
        let mut buffer = crate::budget::Buffer::new(&self.budget)?;
        for (index, part) in parts.items.iter().enumerate() {
            if index > 0 && escaped {
                self.write_escaped(&mut buffer, &separator)?;
            } else if index > 0 {
                self.write_str(&mut buffer, &separator)?;
            }
            if markup {
                self.write_escaped(&mut buffer, part)?;
            } else {
                self.write_str(&mut buffer, part)?;
            }
        }
        Ok(self.budget.built(buffer, markup))
    }

    /// Checks the arguments of `map` as it begins.
    pub(crate) fn check_map(&mut self, args: &CallArgs) -> Outcome<()> {
        if !args.positional.is_empty() {
            return Ok(());
        }
        if !args.keywords.iter().any(|(name, _)| name == "attribute") {
            return Err(Fault::runtime("map requires a filter argument"));
        }
        match args.keywords.iter().find(|(name, _)| name != "attribute" && name != "default") {
            Some((name, _)) => {
                Err(Fault::runtime(format!("Unexpected keyword argument {}", crate::fault::quoted(name))))
            }
            None => Ok(()),
        }
    }

    /// `map` applied to an item.
    pub(crate) fn mapped(&mut self, args: &CallArgs, item: Value) -> Outcome<Value> {
        let keyword = |name: &str| args.keywords.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let Some(filter) = args.positional.first() else {
            let path = self.path(keyword("attribute"))?;
            return self.follow(&item, &path, keyword("default").filter(|default| !matches!(default, Value::None)));
        };
        let filter = self.named(filter, "filter", crate::functions::is_filter)?;
        self.deeper(|renderer| renderer.filter(&filter, item, rest(args, 1)))
    }

    /// Whether an item passes the test of `select`, `reject`, `selectattr` or `rejectattr`.
    pub(crate) fn selected(&mut self, attribute: bool, args: &CallArgs, item: &Value) -> Outcome<bool> {
        let skip = usize::from(attribute);
        let path = if attribute { self.path(args.positional.first())? } else { Vec::new() };
        let value = self.follow(item, &path, None)?;
        let Some(test) = args.positional.get(skip) else { return self.truth(&value) };
        let test = self.named(test, "test", crate::functions::is_test)?;
        let passed = self.deeper(|renderer| renderer.test(&test, &value, rest(args, skip + 1)))?;
        self.truth(&passed)
    }

    fn named(&self, name: &Value, what: &str, known: fn(&str) -> bool) -> Outcome<String> {
        match name.as_str() {
            Some(name) if known(name) => Ok(name.to_owned()),
            Some(name) => Err(Fault::runtime(format!("No {what} named {}.", crate::fault::quoted(name)))),
            None => Err(Fault::runtime(format!("No {what} named by a value of type '{}'.", name.type_name()))),
        }
    }

    /// The filter `slice`: as many lists as asked for, of nearly the same length.
    pub(crate) fn slices(&mut self, value: &Value, args: &CallArgs) -> Outcome<Rc<Sequence>> {
        let items = self.collect(value)?;
        let count = self.int_arg(args.positional.first(), 0)?;
        if count == 0 {
            return Err(Fault::new(Kind::ZeroDivision, "integer division or modulo by zero"));
        }
        let count = usize::try_from(count).unwrap_or(0);
        let fill = args.positional.get(1).filter(|fill| !matches!(fill, Value::None));
        let (each, more) = (items.items.len().checked_div(count).unwrap_or(0), items.items.len() % count.max(1));
        let mut slices = Items::new(&self.budget)?;
        let mut at = 0;
        for index in 0..count {
            self.step(1)?;
            let length = each + usize::from(index < more);
            let mut slice = items.items.get(at..at + length).unwrap_or_default().to_vec();
            at += length;
            if index >= more {
                slice.extend(fill.cloned());
            }
            slices.push(self.budget.list(slice)?)?;
        }
        slices.sequence()
    }

    /// The filter `batch`: lists of a given length.
    pub(crate) fn batches(&mut self, value: &Value, args: &CallArgs) -> Outcome<Rc<Sequence>> {
        let count = self.int_arg(args.positional.first(), 0)?;
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        let fill = args.positional.get(1).filter(|fill| !matches!(fill, Value::None));
        let iter = self.iter(value)?;
        let mut batches = Items::new(&self.budget)?;
        let mut batch = Items::new(&self.budget)?;
        while let Some(item) = self.next(&iter)? {
            // With a length of 0 the first batch is empty, and the second holds everything.
            if batch.items.len() == length && (length > 0 || batches.items.is_empty()) {
                let full = std::mem::replace(&mut batch, Items::new(&self.budget)?);
                let full = self.list(full)?;
                batches.push(full)?;
            }
            batch.push(item)?;
        }
        if !batch.items.is_empty() {
            if let Some(fill) = fill
                && count > 0
            {
                while batch.items.len() < length {
                    self.step(1)?;
                    batch.push(fill.clone())?;
                }
            }
            let last = self.list(batch)?;
            batches.push(last)?;
        }
        batches.sequence()
    }
}

fn positional<const N: usize>(args: [Option<Value>; N]) -> CallArgs {
    let positional = args.into_iter().map(|arg| arg.unwrap_or(Value::None)).collect();
    CallArgs { positional, keywords: Vec::new() }
}

/// The arguments after the first ones.
fn rest(args: &CallArgs, skip: usize) -> CallArgs {
    CallArgs { positional: args.positional.iter().skip(skip).cloned().collect(), keywords: args.keywords.clone() }
}
