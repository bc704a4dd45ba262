//! Values as strings: Python's `str` and `repr`, and HTML's escapes.

use crate::budget::Buffer;
use crate::chars::is_printable;
use crate::fault::{Fault, Outcome};
use crate::functions::Function;
use crate::render::Renderer;
use crate::value::{Part, Value};

impl Renderer<'_> {
    /// Python's `str` of a value, at the end of a buffer.
    pub(crate) fn write_str(&mut self, buffer: &mut Buffer, value: &Value) -> Outcome<()> {
        match value {
            Value::Undefined(_) => Ok(()),
            Value::Str(text) => {
                self.bytes(text.text.len())?;
                buffer.push_str(&text.text)
            }
            other => self.write_repr(buffer, other),
        }
    }

    /// Python's `str` of a value. A string is not copied.
    pub(crate) fn string_of(&mut self, value: &Value) -> Outcome<String> {
        let mut buffer = Buffer::new(&self.budget)?;
        self.write_str(&mut buffer, value)?;
        Ok(buffer.text)
    }

    /// Python's `str` of a value, as a string that is not HTML.
    pub(crate) fn str_value(&mut self, value: &Value) -> Outcome<Value> {
        if matches!(value, Value::Str(text) if !text.markup) {
            return Ok(value.clone());
        }
        let mut buffer = Buffer::new(&self.budget)?;
        self.write_str(&mut buffer, value)?;
        Ok(self.budget.built(buffer, false))
    }

    /// `str`, but strings and HTML stay what they are.
    pub(crate) fn soft_str(&mut self, value: &Value) -> Outcome<Value> {
        if matches!(value, Value::Str(_)) { Ok(value.clone()) } else { self.str_value(value) }
    }

    /// `str` of a value with HTML's special characters escaped, unless it is HTML.
    pub(crate) fn write_escaped(&mut self, buffer: &mut Buffer, value: &Value) -> Outcome<()> {
        if let Value::Str(text) = value
            && text.markup
        {
            self.bytes(text.text.len())?;
            return buffer.push_str(&text.text);
        }
        let text = self.string_of(value)?;
        push_escaped(buffer, &text)
    }

    /// `escape` of markupsafe.
    pub(crate) fn escape(&mut self, value: &Value) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        self.write_escaped(&mut buffer, value)?;
        Ok(self.budget.built(buffer, true))
    }

    /// Python's `repr` of a value, at the end of a buffer.
    pub(crate) fn write_repr(&mut self, buffer: &mut Buffer, value: &Value) -> Outcome<()> {
        self.step(1)?;
        match value {
            Value::Undefined(_) => buffer.push_str("Undefined"),
            Value::None => buffer.push_str("None"),
            Value::Bool(true) => buffer.push_str("True"),
            Value::Bool(false) => buffer.push_str("False"),
            Value::Int(int) => buffer.push_str(&int.to_string()),
            Value::Float(float) => buffer.push_str(&crate::float::repr(*float)),
            Value::Str(text) => {
                self.bytes(text.text.len())?;
                if text.markup {
                    buffer.push_str("Markup(")?;
                    push_repr(buffer, &text.text)?;
                    return buffer.push(')');
                }
                push_repr(buffer, &text.text)
            }
            Value::List(items) => self.write_items(buffer, "[", &items.items, "]"),
            Value::Tuple(items) => {
                let close = if items.items.len() == 1 { ",)" } else { ")" };
                self.write_items(buffer, "(", &items.items, close)
            }
            Value::Dict(dict) => self.write_entries(buffer, &dict.entries),
            Value::View(view) => {
                let name = value.type_name();
                buffer.push_str(name)?;
                buffer.push_str("([")?;
                for (index, (key, value)) in view.dict.entries.iter().enumerate() {
                    if index > 0 {
                        buffer.push_str(", ")?;
                    }
                    self.deeper(|renderer| match view.part {
                        Part::Keys => renderer.write_repr(buffer, key),
                        Part::Values => renderer.write_repr(buffer, value),
                        Part::Items => {
                            buffer.push('(')?;
                            renderer.write_repr(buffer, key)?;
                            buffer.push_str(", ")?;
                            renderer.write_repr(buffer, value)?;
                            buffer.push(')')
                        }
                    })?;
                }
                buffer.push_str("])")
            }
            Value::Range(range) if range.step == 1 => {
                buffer.push_str(&format!("range({}, {})", range.start, range.stop))
            }
            Value::Range(range) => buffer.push_str(&format!("range({}, {}, {})", range.start, range.stop, range.step)),
            Value::Namespace(index) => self.write_namespace(buffer, *index),
            Value::Loop(state) => {
                let length = self.loop_length(state)?;
                buffer.push_str(&format!("<LoopContext {}/{length}>", state.index.get()))
            }
            Value::Macro(value) => {
                let definition = self.tables.macros.get(value.index);
                buffer.push_str("<Macro ")?;
                match definition.and_then(|definition| definition.name) {
                    Some(name) => push_repr(buffer, self.text(name))?,
                    None => buffer.push_str("anonymous")?,
                }
                buffer.push('>')
            }
            Value::Template => buffer.push_str("<TemplateReference None>"),
            Value::Function(function) => match function.as_ref() {
                Function::Global(global) if global.class().is_some() => {
                    buffer.push_str(&format!("<class '{}'>", global.class().unwrap_or_default()))
                }
                _ => Err(no_text(value)),
            },
            Value::Iter(_) | Value::Cycler(_) | Value::Joiner(_) => Err(no_text(value)),
        }
    }

    fn write_items(&mut self, buffer: &mut Buffer, open: &str, items: &[Value], close: &str) -> Outcome<()> {
        buffer.push_str(open)?;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                buffer.push_str(", ")?;
            }
            self.deeper(|renderer| renderer.write_repr(buffer, item))?;
        }
        buffer.push_str(close)
    }

    fn write_entries(&mut self, buffer: &mut Buffer, entries: &[(Value, Value)]) -> Outcome<()> {
        buffer.push('{')?;
        for (index, (key, value)) in entries.iter().enumerate() {
            if index > 0 {
                buffer.push_str(", ")?;
            }
            self.deeper(|renderer| {
                renderer.write_repr(buffer, key)?;
                buffer.push_str(": ")?;
                renderer.write_repr(buffer, value)
            })?;
        }
        buffer.push('}')
    }

    fn write_namespace(&mut self, buffer: &mut Buffer, index: usize) -> Outcome<()> {
        buffer.push_str("<Namespace ")?;
        if self.writing.contains(&index) {
            return buffer.push_str("{...}>");
        }
        self.writing.push(index);
        let entries: Vec<(Value, Value)> = match self.namespaces.get(index) {
            None => Vec::new(),
            Some(namespace) => {
                let entries = namespace.entries.borrow();
                self.budget.room(entries.len().saturating_mul(2 * size_of::<Value>()))?;
                entries.iter().map(|(key, value)| (Value::Str(key.clone()), value.clone())).collect()
            }
        };
        self.deeper(|renderer| renderer.write_entries(buffer, &entries))?;
        self.writing.pop();
        buffer.push('>')
    }
}

/// The `repr` of values that Python writes with their address in memory.
fn no_text(value: &Value) -> Fault {
    Fault::unsupported(format!(
        "writing an object of type '{}', whose text is an address in memory,",
        value.type_name()
    ))
}

/// `repr` of a string.
pub(crate) fn push_repr(buffer: &mut Buffer, text: &str) -> Outcome<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    buffer.push(quote)?;
    for character in text.chars() {
        match character {
            '\\' => buffer.push_str("\\\\")?,
            '\n' => buffer.push_str("\\n")?,
            '\r' => buffer.push_str("\\r")?,
            '\t' => buffer.push_str("\\t")?,
            _ if character == quote => {
                buffer.push('\\')?;
                buffer.push(quote)?;
            }
            _ if is_printable(character) => buffer.push(character)?,
            _ => push_code(buffer, character)?,
        }
    }
    buffer.push(quote)
}

/// A character by its code point.
fn push_code(buffer: &mut Buffer, character: char) -> Outcome<()> {
    let code = u32::from(character);
    buffer.push_str(&match code {
        ..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    })
}

/// A string in which all that is not ASCII is escaped: Python's `ascii` of the `repr` of a string.
pub(crate) fn push_ascii(buffer: &mut Buffer, text: &str) -> Outcome<()> {
    for character in text.chars() {
        if character.is_ascii() {
            buffer.push(character)?;
        } else {
            push_code(buffer, character)?;
        }
    }
    Ok(())
}

pub(crate) fn push_escaped(buffer: &mut Buffer, text: &str) -> Outcome<()> {
    for character in text.chars() {
        match character {
            '&' => buffer.push_str("&amp;")?,
            '<' => buffer.push_str("&lt;")?,
            '>' => buffer.push_str("&gt;")?,
            '\'' => buffer.push_str("&#39;")?,
            '"' => buffer.push_str("&#34;")?,
            _ => buffer.push(character)?,
        }
    }
    Ok(())
}
