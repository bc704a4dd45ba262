//! `tojson` as transformers has it: Python's `json.dumps`.

use crate::budget::Buffer;
use crate::fault::{Fault, Outcome};
use crate::functions::CallArgs;
use crate::render::Renderer;
use crate::value::Value;

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Renderer<'_> {
    pub(crate) fn json(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = args.bind("tojson", names, 0)?;
        let indent = match &indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.text.clone()),
            Some(width) => {
                let width = usize::try_from(self.int_arg(Some(width), 0)?).unwrap_or(0);
                self.budget.room(width)?;
                Some(" ".repeat(width))
            }
        };
        let (item, key) = match &separators {
            None | Some(Value::None) => {
                let item = if indent.is_some() { "," } else { ", " };
                (item.to_owned(), ": ".to_owned())
            }
            Some(separators) => {
                let separators = self.collect(separators)?;
                let [item, key] = separators.items.as_slice() else {
                    return Err(Fault::value_error("separators must be two texts"));
                };
                let text = |value| self.str_arg(Some(value), "a separator").map(str::to_owned);
                (text(item)?, text(key)?)
            }
        };
        let ascii = self.bool_arg(ascii.as_ref(), false)?;
        let sort_keys = self.bool_arg(sort_keys.as_ref(), false)?;
        let style = Style { ascii, indent, item, key, sort_keys };
        let mut buffer = Buffer::new(&self.budget)?;
        self.write_json(&mut buffer, value, &style, 0)?;
        Ok(self.budget.built(buffer, false))
    }

    fn write_json(&mut self, buffer: &mut Buffer, value: &Value, style: &Style, level: usize) -> Outcome<()> {
        self.step(1)?;
        match value {
            Value::None => buffer.push_str("null"),
            Value::Bool(true) => buffer.push_str("true"),
            Value::Bool(false) => buffer.push_str("false"),
            Value::Int(int) => buffer.push_str(&int.to_string()),
            Value::Float(float) => buffer.push_str(&json_float(*float)),
            Value::Str(text) => {
                self.bytes(text.text.len())?;
                push_string(buffer, &text.text, style.ascii)
            }
            Value::List(items) | Value::Tuple(items) => {
                if items.items.is_empty() {
                    return buffer.push_str("[]");
                }
                buffer.push('[')?;
                for (index, item) in items.items.iter().enumerate() {
                    self.separate(buffer, style, index, level + 1)?;
                    self.deeper(|renderer| renderer.write_json(buffer, item, style, level + 1))?;
                }
                self.line(buffer, style, level)?;
                buffer.push(']')
            }
            Value::Dict(dict) => {
                if dict.entries.is_empty() {
                    return buffer.push_str("{}");
                }
                let mut entries = dict.entries.clone();
                if style.sort_keys {
                    let mut keyed = Vec::new();
                    for (key, value) in entries {
                        let pair = self.budget.tuple(vec![key.clone(), value])?;
                        keyed.push((key, pair));
                    }
                    entries = Vec::new();
                    for (key, pair) in self.sorted(keyed, false)? {
                        if let Value::Tuple(pair) = pair {
                            entries.extend(pair.items.last().map(|value| (key, value.clone())));
                        }
                    }
                }
                buffer.push('{')?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    self.separate(buffer, style, index, level + 1)?;
                    match key {
                        Value::Str(key) => push_string(buffer, &key.text, style.ascii)?,
                        Value::None => buffer.push_str("\"null\"")?,
                        Value::Bool(value) => buffer.push_str(if *value { "\"true\"" } else { "\"false\"" })?,
                        Value::Int(int) => buffer.push_str(&format!("\"{int}\""))?,
                        Value::Float(float) => buffer.push_str(&format!("\"{}\"", json_float(*float)))?,
                        other => {
                            let name = other.type_name();
                            let message = format!("keys must be str, int, float, bool or None, not {name}");
                            return Err(Fault::type_error(message));
                        }
                    }
                    buffer.push_str(&style.key)?;
                    self.deeper(|renderer| renderer.write_json(buffer, value, style, level + 1))?;
                }
                self.line(buffer, style, level)?;
                buffer.push('}')
            }
            other => Err(Fault::type_error(format!("Object of type {} is not JSON serializable", other.type_name()))),
        }
    }

    fn separate(&mut self, buffer: &mut Buffer, style: &Style, index: usize, level: usize) -> Outcome<()> {
        if index > 0 {
            buffer.push_str(&style.item)?;
        }
        self.line(buffer, style, level)
    }

    fn line(&mut self, buffer: &mut Buffer, style: &Style, level: usize) -> Outcome<()> {
        let Some(indent) = &style.indent else { return Ok(()) };
        buffer.push('\n')?;
        for _ in 0..level {
            self.bytes(indent.len())?;
            buffer.push_str(indent)?;
        }
        Ok(())
    }
}

fn json_float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => crate::float::repr(value),
    }
}

fn push_string(buffer: &mut Buffer, text: &str, ascii: bool) -> Outcome<()> {
    buffer.push('"')?;
    for character in text.chars() {
        match character {
            '"' => buffer.push_str("\\\"")?,
            '\\' => buffer.push_str("\\\\")?,
            '\n' => buffer.push_str("\\n")?,
            '\r' => buffer.push_str("\\r")?,
            '\t' => buffer.push_str("\\t")?,
            '\x0c' => buffer.push_str("\\f")?,
            '\x08' => buffer.push_str("\\b")?,
            ..='\x1f' => buffer.push_str(&format!("\\u{:04x}", u32::from(character)))?,
            _ if ascii && !(' '..='~').contains(&character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    buffer.push_str(&format!("\\u{unit:04x}"))?;
                }
            }
            _ => buffer.push(character)?,
        }
    }
    buffer.push('"')
}
