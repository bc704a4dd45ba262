//! Methods of strings.

use std::rc::Rc;

use crate::budget::Buffer;
use crate::chars;
use crate::fault::{Fault, Outcome};
use crate::functions::CallArgs;
use crate::render::Renderer;
use crate::value::{Items, Text, Value};

/// A byte range of a string, and the number of characters before it.
struct Window {
    start: usize,
    end: usize,
    before: usize,
}

/// Lines end at more than `\n`.
fn is_line_end(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of a string, with their ends if they are kept.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((at, end)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) else {
            lines.push(rest);
            break;
        };
        let after = at + if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        lines.push(if keep_ends { &rest[..after] } else { &rest[..at] });
        rest = &rest[after..];
    }
    lines
}

/// A string's characters, each with its lower case: that of a capital sigma depends on its position in the string.
fn lowered(text: &str) -> impl Iterator<Item = (char, Option<char>)> {
    let whole = if text.contains('Σ') { text.to_lowercase() } else { String::new() };
    let sigmas: Vec<char> = whole.chars().filter(|c| matches!(c, 'σ' | 'ς')).collect();
    let mut sigmas = sigmas.into_iter();
    text.chars().map(move |character| {
        let is_sigma = matches!(character, 'Σ' | 'σ' | 'ς');
        (character, if is_sigma { sigmas.next() } else { None })
    })
}

fn push_lower(out: &mut String, character: char, sigma: Option<char>) {
    match sigma {
        Some(sigma) => out.push(sigma),
        None => out.extend(character.to_lowercase()),
    }
}

/// `str.lower`.
pub(crate) fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = lowered(text);
    if let Some((first, _)) = characters.next() {
        chars::push_title(&mut out, first);
    }
    for (character, sigma) in characters {
        push_lower(&mut out, character, sigma);
    }
    out
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for (character, sigma) in lowered(text) {
        if inside {
            push_lower(&mut out, character, sigma);
        } else {
            chars::push_title(&mut out, character);
        }
        inside = chars::is_cased(character);
    }
    out
}

fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for character in text.chars() {
        if chars::UPPER.holds(character) || chars::is_title(character) {
            if inside {
                return false;
            }
            (inside, any) = (true, true);
        } else if chars::LOWER.holds(character) {
            if !inside {
                return false;
            }
            any = true;
        } else {
            inside = false;
        }
    }
    any
}

/// Whether a string has letters of one case, and none of the other.
pub(crate) fn has_case(text: &str, upper: bool) -> bool {
    let (wanted, other) = if upper { (&chars::UPPER, &chars::LOWER) } else { (&chars::LOWER, &chars::UPPER) };
    let mut any = false;
    for character in text.chars() {
        if other.holds(character) || chars::is_title(character) {
            return false;
        }
        any |= wanted.holds(character);
    }
    any
}

fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|first| chars::IDENTIFIER_START.holds(first))
        && characters.all(|character| chars::IDENTIFIER_PART.holds(character))
}

/// Splits at white space, at most `most` times.
fn split_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest =
        if from_right { text.trim_end_matches(chars::is_space) } else { text.trim_start_matches(chars::is_space) };
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let cut = if from_right { rest.rfind(chars::is_space) } else { rest.find(chars::is_space) };
        match cut {
            None => {
                parts.push(rest);
                break;
            }
            Some(at) if from_right => {
                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(&rest[at + width..]);
                rest = rest[..at].trim_end_matches(chars::is_space);
            }
            Some(at) => {
                parts.push(&rest[..at]);
                rest = rest[at..].trim_start_matches(chars::is_space);
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

impl Renderer<'_> {
    pub(crate) fn str_method(&mut self, of: &Rc<Text>, name: &'static str, args: CallArgs) -> Outcome<Value> {
        let text = of.text.as_str();
        self.bytes(text.len())?;
        self.budget.room(text.len().saturating_mul(3))?;
        let markup = of.markup;
        let mapped = |renderer: &Self, mapped: String| renderer.budget.str_or_markup(mapped, markup);
        let truth = |value: bool| Ok(Value::Bool(value));
        let all = |holds: fn(char) -> bool| truth(!text.is_empty() && text.chars().all(holds));
        match name {
            "format" => return self.str_format(of, &args.positional, &args.keywords),
            "format_map" => {
                let [map]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                return self.str_format_map(of, &map.unwrap_or(Value::None));
            }
            "split" | "rsplit" => return self.split(of, name == "rsplit", args),
            "splitlines" => {
                let [keep] = args.bind(name, ["keepends"], 0)?;
                let keep = self.bool_arg(keep.as_ref(), false)?;
                let lines = lines(text, keep);
                return self.parts(lines.into_iter(), markup);
            }
            "expandtabs" => {
                let [size] = args.bind(name, ["tabsize"], 0)?;
                let size = self.int_arg(size.as_ref(), 8)?;
                return self.expand_tabs(of, usize::try_from(size).unwrap_or(0));
            }
            "center" | "ljust" | "rjust" | "zfill" => return self.justify(of, name, args),
            "count" | "find" | "index" | "rfind" | "rindex" | "startswith" | "endswith" => {
                return self.search(of, name, args);
            }
            "strip" | "lstrip" | "rstrip" => {
                let [set]: [Option<Value>; 1] = args.bind_positional(name, 0)?;
                return self.strip(of, name, set.as_ref());
            }
            "replace" => {
                let [old, new, count]: [Option<Value>; 3] = args.bind_positional(name, 2)?;
                let count = self.int_arg(count.as_ref(), -1)?;
                let mut new = new.unwrap_or(Value::None);
                self.str_arg(Some(&new), "replace() argument 2")?;
                if markup {
                    new = self.escape(&new)?;
                }
                let old = self.str_arg(old.as_ref(), "replace() argument 1")?;
                return self.replace(of, old, self.str_arg(Some(&new), "replace() argument 2")?, count);
            }
            "join" => {
                let [values]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                return self.join_method(of, &values.unwrap_or(Value::None));
            }
            "partition" | "rpartition" => {
                let [separator]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                let separator = self.str_arg(separator.as_ref(), "the separator")?;
                if separator.is_empty() {
                    return Err(Fault::value_error("empty separator"));
                }
                let found = if name == "partition" { text.find(separator) } else { text.rfind(separator) };
                let parts = match found {
                    Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
                    None if name == "partition" => [text, "", ""],
                    None => ["", "", text],
                };
                let mut items = Vec::new();
                for part in parts {
                    items.push(self.budget.str_or_markup(part, markup)?);
                }
                return self.budget.tuple(items);
            }
            "removeprefix" | "removesuffix" => {
                let [affix]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                let affix = self.str_arg(affix.as_ref(), "the argument")?;
                let cut = if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
                return mapped(self, cut.unwrap_or(text).to_owned());
            }
            "encode" => return Err(Fault::unsupported("a value of type bytes")),
            "translate" => {
                let [table]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                return self.translate(of, &table.unwrap_or(Value::None));
            }
            "maketrans" => return self.make_trans(args),
            "escape" if markup => {
                let [value]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
                return self.escape(&value.unwrap_or(Value::None));
            }
            _ => {}
        }
        let [] = args.bind_positional(name, 0)?;
        match name {
            "capitalize" => mapped(self, capitalize(text)),
            "casefold" => mapped(self, chars::fold(text)),
            "lower" => mapped(self, lower(text)),
            "upper" => mapped(self, text.to_uppercase()),
            "title" => mapped(self, title(text)),
            "swapcase" => {
                let mut out = String::with_capacity(text.len());
                for (character, sigma) in lowered(text) {
                    if chars::UPPER.holds(character) {
                        push_lower(&mut out, character, sigma);
                    } else if chars::LOWER.holds(character) {
                        out.extend(character.to_uppercase());
                    } else {
                        out.push(character);
                    }
                }
                mapped(self, out)
            }
            "isalnum" => all(chars::is_alphanumeric),
            "isalpha" => all(|c| chars::ALPHA.holds(c)),
            "isascii" => truth(text.is_ascii()),
            "isdecimal" => all(|c| chars::DECIMAL.holds(c)),
            "isdigit" => all(|c| chars::DIGIT.holds(c)),
            "isidentifier" => truth(is_identifier(text)),
            "islower" => truth(has_case(text, false)),
            "isnumeric" => all(|c| chars::NUMERIC.holds(c)),
            "isprintable" => truth(text.chars().all(chars::is_printable)),
            "isspace" => all(chars::is_space),
            "istitle" => truth(is_title(text)),
            "isupper" => truth(has_case(text, true)),
            "striptags" if markup => self.budget.str(crate::html::strip_tags(text)),
            "unescape" if markup => self.budget.str(crate::html::unescape(text)),
            _ => Err(Fault::type_error(format!("'str' object has no attribute '{name}'"))),
        }
    }

    /// A list of strings.
    fn parts<'p>(&mut self, parts: impl Iterator<Item = &'p str>, markup: bool) -> Outcome<Value> {
        let mut items = Items::new(&self.budget)?;
        for part in parts {
            self.step(1)?;
            items.push(self.budget.str_or_markup(part, markup)?)?;
        }
        self.list(items)
    }

    fn split(&mut self, of: &Rc<Text>, from_right: bool, args: CallArgs) -> Outcome<Value> {
        let [separator, most] = args.bind("split", ["sep", "maxsplit"], 0)?;
        let most = usize::try_from(self.int_arg(most.as_ref(), -1)?).unwrap_or(usize::MAX);
        let parts = match &separator {
            Some(Value::Str(separator)) if !separator.text.is_empty() => of.text.matches(&*separator.text).count(),
            _ => of.text.split(chars::is_space).count(),
        };
        // Each part takes some bytes while it is cut out.
        self.budget.room(parts.saturating_mul(size_of::<&str>()))?;
        match separator {
            None | Some(Value::None) => self.parts(split_spaces(&of.text, most, from_right).into_iter(), of.markup),
            separator => {
                let separator = self.str_arg(separator.as_ref(), "the separator")?;
                if separator.is_empty() {
                    return Err(Fault::value_error("empty separator"));
                }
                let limit = most.saturating_add(1);
                if from_right {
                    let mut parts: Vec<&str> = of.text.rsplitn(limit, separator).collect();
                    parts.reverse();
                    return self.parts(parts.into_iter(), of.markup);
                }
                self.parts(of.text.splitn(limit, separator), of.markup)
            }
        }
    }

    fn expand_tabs(&mut self, of: &Rc<Text>, size: usize) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        let mut column = 0;
        for character in of.text.chars() {
            match character {
                '\t' => {
                    let spaces = if size == 0 { 0 } else { size - column % size };
                    buffer.fill(' ', spaces)?;
                    self.bytes(spaces)?;
                    column += spaces;
                }
                '\n' | '\r' => {
                    buffer.push(character)?;
                    column = 0;
                }
                _ => {
                    buffer.push(character)?;
                    column += 1;
                }
            }
        }
        Ok(self.budget.built(buffer, of.markup))
    }

    fn justify(&mut self, of: &Rc<Text>, name: &str, args: CallArgs) -> Outcome<Value> {
        let [width, fill]: [Option<Value>; 2] = args.bind_positional(name, 1)?;
        let width = usize::try_from(self.int_arg(width.as_ref(), 0)?).unwrap_or(0);
        let fill = match &fill {
            None => ' ',
            Some(_) if name == "zfill" => return Err(Fault::type_error("zfill() takes exactly one argument")),
            Some(_) => {
                let fill = self.str_arg(fill.as_ref(), "The fill character")?;
                let mut characters = fill.chars();
                let first = characters.next().filter(|_| characters.next().is_none());
                let first = first.filter(|c| !of.markup || !matches!(c, '&' | '<' | '>' | '"' | '\''));
                first.ok_or_else(|| Fault::type_error("The fill character must be exactly one character long"))?
            }
        };
        let spaces = width.saturating_sub(of.chars);
        let mut buffer = Buffer::new(&self.budget)?;
        self.budget.room(spaces)?;
        self.bytes(spaces)?;
        let left = match name {
            "ljust" => 0,
            "rjust" | "zfill" => spaces,
            // Python puts the odd space to the left where the width is odd.
            _ => spaces / 2 + (spaces & width & 1),
        };
        if name == "zfill" {
            let (sign, rest) = match of.text.strip_prefix(['+', '-']) {
                Some(rest) => (&of.text[..1], rest),
                None => ("", of.text.as_str()),
            };
            buffer.push_str(sign)?;
            buffer.fill('0', left)?;
            buffer.push_str(rest)?;
        } else {
            buffer.fill(fill, left)?;
            buffer.push_str(&of.text)?;
            buffer.fill(fill, spaces - left)?;
        }
        Ok(self.budget.built(buffer, of.markup))
    }

    /// The part of a string between two indices. `None` if the first is past the end or past the second.
    fn window(&self, of: &Text, start: Option<&Value>, end: Option<&Value>) -> Outcome<Option<Window>> {
        let length = of.chars as i128;
        let bound = |value: Option<&Value>, default: i128| match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => self.int_arg(Some(value), default),
        };
        let place = |value: i128| if value < 0 { value.saturating_add(length).max(0) } else { value };
        let start = place(bound(start, 0)?);
        let end = place(bound(end, length)?).min(length);
        if start > end {
            return Ok(None);
        }
        let before = usize::try_from(start).unwrap_or(usize::MAX);
        let end = of.byte_of(usize::try_from(end).unwrap_or(usize::MAX));
        Ok(Some(Window { start: of.byte_of(before), end, before }))
    }

    fn search(&mut self, of: &Rc<Text>, name: &str, args: CallArgs) -> Outcome<Value> {
        let [wanted, start, end]: [Option<Value>; 3] = args.bind_positional(name, 1)?;
        let window = self.window(of, start.as_ref(), end.as_ref())?;
        if let "startswith" | "endswith" = name {
            let affixes = match &wanted {
                Some(Value::Tuple(affixes)) => affixes.items.clone(),
                Some(other) => vec![other.clone()],
                None => Vec::new(),
            };
            for affix in &affixes {
                let affix = self.str_arg(Some(affix), "the argument")?;
                let Some(window) = &window else { continue };
                let part = &of.text[window.start..window.end];
                if if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) } {
                    return Ok(Value::Bool(true));
                }
            }
            return Ok(Value::Bool(false));
        }
        let wanted = self.str_arg(wanted.as_ref(), "the argument")?;
        let part = window.as_ref().map(|window| &of.text[window.start..window.end]);
        if name == "count" {
            let count = part.map_or(0, |part| part.matches(wanted).count());
            return Ok(Value::Int(count as i128));
        }
        let found = part.and_then(|part| {
            let at = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
            at.map(|at| part[..at].chars().count())
        });
        match (found, window) {
            (Some(found), Some(window)) => Ok(Value::Int((window.before + found) as i128)),
            _ if name.ends_with("find") => Ok(Value::Int(-1)),
            _ => Err(Fault::value_error("substring not found")),
        }
    }

    pub(crate) fn strip(&mut self, of: &Rc<Text>, name: &str, set: Option<&Value>) -> Outcome<Value> {
        let set: Option<Vec<char>> = match set {
            None | Some(Value::None) => None,
            Some(set) => Some(self.str_arg(Some(set), "strip arg")?.chars().collect()),
        };
        self.step(set.as_ref().map_or(0, Vec::len))?;
        let cut = |character: char| match &set {
            None => chars::is_space(character),
            Some(set) => set.contains(&character),
        };
        let mut text = of.text.as_str();
        if name != "rstrip" {
            text = text.trim_start_matches(cut);
        }
        if name != "lstrip" {
            text = text.trim_end_matches(cut);
        }
        self.budget.str_or_markup(text, of.markup)
    }

    /// `str.replace`, at most `count` times unless that is negative.
    pub(crate) fn replace(&mut self, of: &Text, old: &str, new: &str, count: i128) -> Outcome<Value> {
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        let found = of.text.matches(old).take(most).count();
        let added = new.len().saturating_sub(old.len()).saturating_mul(found);
        self.budget.room(of.text.len().saturating_add(added))?;
        self.bytes(of.text.len().saturating_add(added))?;
        self.budget.str_or_markup(of.text.replacen(old, new, most), of.markup)
    }

    fn join_method(&mut self, of: &Rc<Text>, values: &Value) -> Outcome<Value> {
        let iter = self.iter(values)?;
        let mut buffer = Buffer::new(&self.budget)?;
        let mut first = true;
        while let Some(value) = self.next(&iter)? {
            if !first {
                buffer.push_str(&of.text)?;
            }
            if of.markup {
                self.write_escaped(&mut buffer, &value)?;
            } else {
                let text = self.str_arg(Some(&value), "sequence item")?;
                buffer.push_str(text)?;
                self.bytes(text.len())?;
            }
            first = false;
        }
        Ok(self.budget.built(buffer, of.markup))
    }

    fn translate(&mut self, of: &Rc<Text>, table: &Value) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        for character in of.text.chars() {
            self.step(1)?;
            let code = Value::Int(i128::from(u32::from(character)));
            let found = match table {
                Value::Dict(dict) => self.get(dict, &code)?,
                Value::Undefined(_) => return Err(self.undefined_or(table, Fault::type_error("undefined"))),
                other => return Err(Fault::type_error(format!("'{}' object is no table", other.type_name()))),
            };
            match found {
                None => buffer.push(character)?,
                Some(Value::None) => {}
                Some(Value::Str(text)) => buffer.push_str(&text.text)?,
                Some(other) => {
                    let code = other.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32);
                    let wrong = || Fault::type_error("character mapping must return integer, None or str");
                    buffer.push(code.ok_or_else(wrong)?)?;
                }
            }
        }
        Ok(self.budget.built(buffer, of.markup))
    }

    fn make_trans(&mut self, args: CallArgs) -> Outcome<Value> {
        let [from, to, delete]: [Option<Value>; 3] = args.bind_positional("maketrans", 1)?;
        let code = |character: char| Value::Int(i128::from(u32::from(character)));
        let mut entries = Vec::new();
        let Some(to) = to else {
            let Some(Value::Dict(dict)) = &from else {
                return Err(Fault::type_error("if you give only one argument to maketrans it must be a dict"));
            };
            for (key, value) in &dict.entries {
                let key = match key {
                    Value::Str(text) if text.chars == 1 => text.text.chars().next().map_or(Value::None, code),
                    Value::Str(_) => {
                        return Err(Fault::value_error("string keys in translate table must be of length 1"));
                    }
                    other if other.as_int().is_some() => other.clone(),
                    _ => return Err(Fault::type_error("keys in translate table must be strings or integers")),
                };
                entries.push((key, value.clone()));
            }
            return self.dict(entries);
        };
        let from = self.str_arg(from.as_ref(), "maketrans() argument 1")?;
        let to = self.str_arg(Some(&to), "maketrans() argument 2")?;
        if from.chars().count() != to.chars().count() {
            return Err(Fault::value_error("the first two maketrans arguments must have equal length"));
        }
        self.budget.room(from.len().saturating_mul(128))?;
        entries.extend(from.chars().zip(to.chars()).map(|(from, to)| (code(from), code(to))));
        if let Some(delete) = &delete {
            let delete = self.str_arg(Some(delete), "maketrans() argument 3")?;
            self.budget.room(delete.len().saturating_mul(128))?;
            entries.extend(delete.chars().map(|character| (code(character), Value::None)));
        }
        self.dict(entries)
    }
}
