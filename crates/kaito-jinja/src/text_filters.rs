//! Jinja2's built-in filters of strings and numbers.

use std::rc::Rc;

use crate::ast::Binary;
use crate::budget::Buffer;
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::CallArgs;
use crate::render::Renderer;
use crate::str_methods::{capitalize, lines, lower};
use crate::value::{Text, Value};

impl Renderer<'_> {
    /// A value as a string, which is HTML if the value is.
    fn soft_text(&mut self, value: &Value) -> Outcome<Rc<Text>> {
        match self.soft_str(value)? {
            Value::Str(text) => {
                self.bytes(text.text.len())?;
                self.budget.room(text.text.len().saturating_mul(3))?;
                Ok(text)
            }
            other => Err(Fault::type_error(format!("'{}' is no text", other.type_name()))),
        }
    }

    #[inline(never)]
    pub(crate) fn text_filter(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        match name {
            "upper" | "lower" | "capitalize" | "title" | "wordcount" => {
                let [] = args.bind(name, [], 0)?;
                let text = self.soft_text(&value)?;
                let changed = match name {
                    "upper" => text.text.to_uppercase(),
                    "lower" => lower(&text.text),
                    "capitalize" => capitalize(&text.text),
                    "title" => title(&text.text),
                    _ => return Ok(Value::Int(count_words(&text.text))),
                };
                self.budget.str_or_markup(changed, text.markup && name != "title")
            }
            "string" => {
                let [] = args.bind(name, [], 0)?;
                self.soft_str(&value)
            }
            "safe" => {
                let [] = args.bind(name, [], 0)?;
                let text = self.string_of(&value)?;
                self.budget.str_or_markup(text, true)
            }
            "e" | "escape" => {
                let [] = args.bind(name, [], 0)?;
                self.escape(&value)
            }
            "forceescape" => {
                let [] = args.bind(name, [], 0)?;
                let text = self.string_of(&value)?;
                let mut buffer = Buffer::new(&self.budget)?;
                crate::text::push_escaped(&mut buffer, &text)?;
                Ok(self.budget.built(buffer, true))
            }
            "striptags" => {
                let [] = args.bind(name, [], 0)?;
                let text = self.string_of(&value)?;
                self.budget.room(text.len().saturating_mul(3))?;
                self.bytes(text.len())?;
                self.budget.str(crate::html::strip_tags(&text))
            }
            "trim" => {
                let [chars] = args.bind(name, ["chars"], 0)?;
                let text = self.soft_text(&value)?;
                self.strip(&text, "strip", chars.as_ref())
            }
            "center" => {
                let [width] = args.bind(name, ["width"], 0)?;
                let text = self.soft_text(&value)?;
                let width = width.unwrap_or(Value::Int(80));
                self.str_method(&text, "center", CallArgs { positional: vec![width], keywords: Vec::new() })
            }
            "replace" => self.replace_filter(&value, args),
            "format" => {
                let text = self.soft_text(&value)?;
                if !args.positional.is_empty() && !args.keywords.is_empty() {
                    let message = "can't handle positional and keyword arguments at the same time";
                    return Err(Fault::runtime(message));
                }
                let values = if args.keywords.is_empty() {
                    self.budget.tuple(args.positional)?
                } else {
                    self.dict_of(Vec::new(), args.keywords)?
                };
                self.percent(&text, &values)
            }
            "indent" => self.indent(value, args),
            "truncate" => self.truncate(value, args),
            "wordwrap" => self.word_wrap(&value, args),
            "urlize" => self.urlize(&value, args),
            "urlencode" => {
                let [] = args.bind(name, [], 0)?;
                self.url_encode(&value)
            }
            "xmlattr" => self.xml_attributes(&value, args),
            _ => self.number_filter(name, value, args),
        }
    }

    fn number_filter(&mut self, name: &str, value: Value, args: CallArgs) -> Outcome<Value> {
        match name {
            "abs" => {
                let [] = args.bind(name, [], 0)?;
                match &value {
                    Value::Float(float) => Ok(Value::Float(float.abs())),
                    other => match other.as_int() {
                        Some(int) => int.checked_abs().map(Value::Int).ok_or_else(crate::numbers::too_large),
                        None => Err(Fault::type_error(format!("bad operand type for abs(): '{}'", other.type_name()))),
                    },
                }
            }
            "int" => {
                let [default, base] = args.bind(name, ["default", "base"], 0)?;
                let base = match &base {
                    None => Ok(10),
                    Some(base) => base.as_int().ok_or_else(|| Fault::type_error("a base must be an integer")),
                };
                let int = match base {
                    Ok(base) => self.int(&value, Some(base)),
                    Err(fault) if matches!(value, Value::Str(_)) => Err(fault),
                    Err(_) => self.int(&value, None),
                };
                match int {
                    Err(fault) if matches!(fault.kind(), Kind::Type | Kind::Value) => {}
                    int => return int.map(Value::Int),
                }
                let float = match self.float(&value) {
                    Ok(float) => self.int(&Value::Float(float), None),
                    Err(fault) => Err(fault),
                };
                match float {
                    Err(fault) if matches!(fault.kind(), Kind::Type | Kind::Value | Kind::Overflow) => {
                        Ok(default.unwrap_or(Value::Int(0)))
                    }
                    int => int.map(Value::Int),
                }
            }
            "float" => {
                let [default] = args.bind(name, ["default"], 0)?;
                match self.float(&value) {
                    Err(fault) if matches!(fault.kind(), Kind::Type | Kind::Value) => {
                        Ok(default.unwrap_or(Value::Float(0.0)))
                    }
                    float => float.map(Value::Float),
                }
            }
            "round" => self.round(&value, args),
            "filesizeformat" => {
                let [binary] = args.bind(name, ["binary"], 0)?;
                let bytes = self.float(&value)?;
                let binary = self.bool_arg(binary.as_ref(), false)?;
                self.file_size(bytes, binary)
            }
            _ => Err(Fault::runtime(format!("No filter named {}.", crate::fault::quoted(name)))),
        }
    }

    fn round(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
        let precision = precision.unwrap_or(Value::Int(0));
        let method = match method.as_ref().map(|method| method.as_str().unwrap_or("")) {
            None | Some("common") => None,
            Some("ceil") => Some(f64::ceil as fn(f64) -> f64),
            Some("floor") => Some(f64::floor as fn(f64) -> f64),
            Some(_) => return Err(Fault::runtime("method must be common, ceil or floor")),
        };
        if let Some(method) = method {
            let power = self.binary(Binary::Pow, &Value::Int(10), &precision)?;
            let scaled = self.binary(Binary::Mul, value, &power)?;
            let whole = match &scaled {
                Value::Float(float) => Value::Int(self.int(&Value::Float(method(*float)), None)?),
                other => other
                    .as_int()
                    .map(Value::Int)
                    .ok_or_else(|| Fault::type_error(format!("must be real number, not {}", other.type_name())))?,
            };
            return self.binary(Binary::Div, &whole, &power);
        }
        match value {
            Value::Float(float) if matches!(precision, Value::None) => {
                let rounded = if float.is_finite() { float.round_ties_even() } else { *float };
                self.int(&Value::Float(rounded), None).map(Value::Int)
            }
            Value::Float(float) => {
                let digits = self.int_arg(Some(&precision), 0)?;
                let rounded = crate::float::round(*float, digits);
                rounded.map(Value::Float).ok_or_else(crate::numbers::too_large)
            }
            other => {
                let no_round = || Fault::type_error(format!("type {} has no __round__ method", other.type_name()));
                let int = other.as_int().ok_or_else(no_round)?;
                if matches!(precision, Value::None) {
                    return Ok(Value::Int(int));
                }
                let digits = self.int_arg(Some(&precision), 0)?;
                let scale = u32::try_from(digits.saturating_neg()).unwrap_or(0);
                let Some(scale) = 10i128.checked_pow(scale) else { return Ok(Value::Int(0)) };
                let (down, rest) = (int.div_euclid(scale), int.rem_euclid(scale));
                let half = rest.saturating_mul(2).cmp(&scale);
                let up = half.is_gt() || (half.is_eq() && down % 2 != 0);
                let rounded = (down + i128::from(up)).checked_mul(scale);
                rounded.map(Value::Int).ok_or_else(crate::numbers::too_large)
            }
        }
    }

    fn file_size(&mut self, bytes: f64, binary: bool) -> Outcome<Value> {
        let base: f64 = if binary { 1024.0 } else { 1000.0 };
        if bytes == 1.0 {
            return self.budget.str("1 Byte");
        }
        if bytes < base {
            let whole = self.int(&Value::Float(bytes), None)?;
            return self.budget.str(format!("{whole} Bytes"));
        }
        let units = ['k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'];
        let mut unit = base;
        for (index, letter) in units.iter().enumerate() {
            unit *= base;
            if bytes < unit || index + 1 == units.len() {
                let letter = if binary { letter.to_ascii_uppercase() } else { *letter };
                let size = crate::float::format(base * bytes / unit, 'f', 1, false);
                return self.budget.str(format!("{size} {letter}{}", if binary { "iB" } else { "B" }));
            }
        }
        self.budget.str("")
    }

    fn replace_filter(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [old, new, count] = args.bind("replace", ["old", "new", "count"], 2)?;
        let count = match &count {
            None | Some(Value::None) => -1,
            Some(count) => self.int_arg(Some(count), -1)?,
        };
        let (mut old, mut new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
        let mut text = value.clone();
        if self.autoescape {
            text = if old.is_markup() || (new.is_markup() && !value.is_markup()) {
                self.escape(value)?
            } else {
                self.soft_str(value)?
            };
            if text.is_markup() {
                new = self.escape(&new)?;
            }
        } else {
            text = self.str_value(&text)?;
        }
        (old, new) = (self.soft_str(&old)?, self.soft_str(&new)?);
        let text = self.soft_text(&text)?;
        self.replace(&text, self.str_arg(Some(&old), "old")?, self.str_arg(Some(&new), "new")?, count)
    }

    fn indent(&mut self, value: Value, args: CallArgs) -> Outcome<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
        let width = match width {
            Some(Value::Str(width)) => Value::Str(width),
            width => {
                let width = usize::try_from(self.int_arg(width.as_ref(), 4)?).unwrap_or(0);
                self.budget.room(width)?;
                self.budget.str(" ".repeat(width))?
            }
        };
        let Value::Str(text) = &value else {
            let other = Fault::type_error(format!("can't indent a value of type '{}'", value.type_name()));
            return Err(self.undefined_or(&value, other));
        };
        let mut indention = Buffer::new(&self.budget)?;
        if text.markup {
            // In HTML the spaces are HTML, whatever they are.
            let width = self.budget.str_or_markup(self.str_arg(Some(&width), "width")?, true)?;
            self.write_str(&mut indention, &width)?;
        } else {
            self.write_str(&mut indention, &width)?;
        }
        let first = self.bool_arg(first.as_ref(), false)?;
        let blank = self.bool_arg(blank.as_ref(), false)?;
        let ended = format!("{}\n", text.text);
        self.budget.room(ended.len().saturating_mul(8))?;
        let mut buffer = Buffer::new(&self.budget)?;
        if first {
            buffer.push_str(&indention.text)?;
        }
        for (index, line) in lines(&ended, false).into_iter().enumerate() {
            if index > 0 {
                buffer.push('\n')?;
                if blank || !line.is_empty() {
                    self.bytes(indention.text.len())?;
                    buffer.push_str(&indention.text)?;
                }
            }
            self.bytes(line.len() + 64)?;
            buffer.push_str(line)?;
        }
        Ok(self.budget.built(buffer, text.markup))
    }

    fn truncate(&mut self, value: Value, args: CallArgs) -> Outcome<Value> {
        let names = ["length", "killwords", "end", "leeway"];
        let [length, kill, end, leeway] = args.bind("truncate", names, 0)?;
        let length = self.int_arg(length.as_ref(), 255)?;
        let kill = self.bool_arg(kill.as_ref(), false)?;
        let end = match end {
            Some(end) => end,
            None => self.budget.str("...")?,
        };
        let leeway = match &leeway {
            None | Some(Value::None) => 5,
            leeway => self.int_arg(leeway.as_ref(), 5)?,
        };
        let end_length = self.length(&end)? as i128;
        if length < end_length {
            return Err(Fault::runtime(format!("expected length >= {end_length}, got {length}")));
        }
        if leeway < 0 {
            return Err(Fault::runtime(format!("expected leeway >= 0, got {leeway}")));
        }
        if self.length(&value)? as i128 <= length.saturating_add(leeway) {
            return Ok(value);
        }
        let kept = length - end_length;
        let cut = self.slice(&value, &[None, Some(Value::Int(kept)), None])?;
        let Value::Str(cut) = &cut else {
            return Err(Fault::type_error(format!("can't truncate a value of type '{}'", value.type_name())));
        };
        let text = match cut.text.rfind(' ') {
            Some(at) if !kill => &cut.text[..at],
            _ => cut.text.as_str(),
        };
        let text = self.budget.str_or_markup(text, cut.markup)?;
        self.binary(Binary::Add, &text, &end)
    }

    fn url_encode(&mut self, value: &Value) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        let pairs = match value {
            Value::Dict(dict) => {
                let dict =
                    Value::View(Rc::new(crate::value::View { dict: dict.clone(), part: crate::value::Part::Items }));
                self.iter(&dict)?
            }
            Value::Str(_) => {
                let text = self.string_of(value)?;
                quote(&mut buffer, &text, false)?;
                return Ok(self.budget.built(buffer, false));
            }
            _ => match self.iter(value) {
                Ok(iter) => iter,
                Err(fault) if fault.kind() == Kind::Type => {
                    let text = self.string_of(value)?;
                    quote(&mut buffer, &text, false)?;
                    return Ok(self.budget.built(buffer, false));
                }
                Err(fault) => return Err(fault),
            },
        };
        let mut first = true;
        while let Some(pair) = self.next(&pairs)? {
            let pair = self.collect(&pair)?;
            let [key, value] = pair.items.as_slice() else {
                return Err(Fault::value_error(format!("{} values to unpack, expected 2", pair.items.len())));
            };
            if !first {
                buffer.push('&')?;
            }
            first = false;
            let key = self.string_of(key)?;
            quote(&mut buffer, &key, true)?;
            buffer.push('=')?;
            let value = self.string_of(value)?;
            quote(&mut buffer, &value, true)?;
        }
        Ok(self.budget.built(buffer, false))
    }

    fn xml_attributes(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let [space] = args.bind("xmlattr", ["autospace"], 0)?;
        let space = self.bool_arg(space.as_ref(), true)?;
        let Value::Dict(dict) = value else {
            let other = Fault::type_error(format!("'{}' object has no attribute 'items'", value.type_name()));
            return Err(self.undefined_or(value, other));
        };
        let mut buffer = Buffer::new(&self.budget)?;
        for (key, value) in &dict.entries {
            if matches!(value, Value::None | Value::Undefined(_)) {
                continue;
            }
            let name = self.str_arg(Some(key), "an attribute's name")?;
            let forbidden = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' | '/' | '>' | '=');
            if name.contains(forbidden) {
                let name = crate::fault::quoted(name);
                return Err(Fault::value_error(format!("Invalid character in attribute name: {name}")));
            }
            if space || !buffer.text.is_empty() {
                buffer.push(' ')?;
            }
            self.write_escaped(&mut buffer, key)?;
            buffer.push_str("=\"")?;
            self.write_escaped(&mut buffer, value)?;
            buffer.push('"')?;
        }
        Ok(self.budget.built(buffer, self.autoescape))
    }
}

/// `urllib.parse.quote`; for a query, spaces are `+` and `/` is quoted.
fn quote(buffer: &mut Buffer, text: &str, query: bool) -> Outcome<()> {
    for byte in text.bytes() {
        match byte {
            b'/' if !query => buffer.push('/')?,
            b' ' if query => buffer.push('+')?,
            _ if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'~') => {
                buffer.push(char::from(byte))?;
            }
            _ => buffer.push_str(&format!("%{byte:02X}"))?,
        }
    }
    Ok(())
}

/// The filter `title`: words begin after a hyphen, white space or an opening bracket.
fn title(text: &str) -> String {
    let is_break = |c: char| crate::chars::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let inside = is_break(first);
        let end = rest.find(|c| is_break(c) != inside).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.extend(first.to_uppercase());
        out.push_str(&lower(&word[first.len_utf8()..]));
        rest = after;
    }
    out
}

/// Runs of letters, digits and underscores.
fn count_words(text: &str) -> i128 {
    let mut count = 0;
    let mut inside = false;
    for character in text.chars() {
        let word = crate::chars::is_word(character);
        count += i128::from(word && !inside);
        inside = word;
    }
    count
}
