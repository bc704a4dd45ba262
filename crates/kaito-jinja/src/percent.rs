//! The operator `%` of strings.

use crate::budget::Buffer;
use crate::fault::{Fault, Outcome};
use crate::render::Renderer;
use crate::value::{Text, Value};

/// Largest width or precision that Python accepts.
const MAX_WIDTH: usize = i32::MAX as usize;

#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Where the values come from.
struct Arguments<'v> {
    value: &'v Value,
    at: usize,
}

impl Arguments<'_> {
    fn next(&mut self) -> Outcome<Value> {
        let at = self.at;
        self.at += 1;
        let next = match self.value {
            Value::Tuple(items) => items.items.get(at).cloned(),
            other => (at == 0).then(|| other.clone()),
        };
        next.ok_or_else(|| Fault::type_error("not enough arguments for format string"))
    }

    fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(_))
    }
}

impl Renderer<'_> {
    pub(crate) fn percent(&mut self, format: &Text, value: &Value) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        let mut arguments = Arguments { value, at: 0 };
        let mut named = false;
        let mut rest = format.text.as_str();
        self.bytes(rest.len())?;
        while let Some(at) = rest.find('%') {
            buffer.push_str(&rest[..at])?;
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                buffer.push('%')?;
                rest = after;
                continue;
            }
            let mut key = None;
            if rest.starts_with('(') {
                let end = closing(rest).ok_or_else(|| Fault::value_error("incomplete format key"))?;
                key = Some(&rest[1..end]);
                rest = &rest[end + 1..];
            }
            let given = match key {
                None => None,
                Some(key) => {
                    named = true;
                    Some(self.named_value(value, key)?)
                }
            };
            let (conversion, length) = self.conversion(rest, &mut arguments)?;
            rest = &rest[length..];
            let Some(letter) = rest.chars().next() else { return Err(Fault::value_error("incomplete format")) };
            rest = &rest[letter.len_utf8()..];
            let value = match given {
                Some(given) => given,
                None if named => return Err(Fault::type_error("not enough arguments for format string")),
                None => arguments.next()?,
            };
            self.step(1)?;
            self.convert(&mut buffer, &conversion, letter, &value, format.markup)?;
        }
        buffer.push_str(rest)?;
        let left_over = match value {
            Value::Tuple(items) => arguments.at < items.items.len(),
            _ => arguments.at == 0 && !named && !arguments.is_mapping(),
        };
        if left_over && !named {
            return Err(Fault::type_error("not all arguments converted during string formatting"));
        }
        Ok(self.budget.built(buffer, format.markup))
    }

    fn named_value(&mut self, value: &Value, key: &str) -> Outcome<Value> {
        let Value::Dict(dict) = value else {
            return Err(self.undefined_or(value, Fault::type_error("format requires a mapping")));
        };
        let name = self.budget.str(key)?;
        let found = self.get(dict, &name)?;
        found.ok_or_else(|| Fault::lookup(format!("the format's key {} is missing", crate::fault::quoted(key))))
    }

    /// Flags, width and precision, and how long they are.
    fn conversion(&self, text: &str, arguments: &mut Arguments) -> Outcome<(Conversion, usize)> {
        let bytes = text.as_bytes();
        let mut conversion = Conversion::default();
        let mut at = 0;
        while let Some(flag) = bytes.get(at) {
            match flag {
                b'-' => conversion.left = true,
                b'+' => conversion.plus = true,
                b' ' => conversion.space = true,
                b'#' => conversion.alternate = true,
                b'0' => conversion.zero = true,
                _ => break,
            }
            at += 1;
        }
        let mut number = |at: &mut usize| -> Outcome<Option<i128>> {
            if bytes.get(*at) == Some(&b'*') {
                *at += 1;
                let value = arguments.next()?;
                let (Value::Int(_) | Value::Bool(_)) = value else { return Err(Fault::type_error("* wants int")) };
                return Ok(value.as_int());
            }
            let start = *at;
            while bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            if start == *at {
                return Ok(None);
            }
            text[start..*at].parse().map(Some).map_err(|_| Fault::value_error("width too big"))
        };
        let checked = |value: i128| {
            let value = usize::try_from(value).ok().filter(|value| *value <= MAX_WIDTH);
            value.ok_or_else(|| Fault::value_error("width too big"))
        };
        if let Some(width) = number(&mut at)? {
            conversion.left |= width < 0;
            conversion.width = checked(width.saturating_abs())?;
        }
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            conversion.precision = Some(checked(number(&mut at)?.unwrap_or(0).max(0))?);
        }
        if matches!(bytes.get(at), Some(b'h' | b'l' | b'L')) {
            at += 1;
        }
        Ok((conversion, at))
    }

    fn convert(
        &mut self,
        buffer: &mut Buffer,
        conversion: &Conversion,
        letter: char,
        value: &Value,
        markup: bool,
    ) -> Outcome<()> {
        let mut sign = "";
        let mut prefix = "";
        let mut part = Buffer::new(&self.budget)?;
        let mut numeric = true;
        match letter {
            's' | 'r' | 'a' => {
                numeric = false;
                match letter {
                    's' if markup => self.write_escaped(&mut part, value)?,
                    's' => self.write_str(&mut part, value)?,
                    _ => {
                        self.write_repr(&mut part, value)?;
                        if letter == 'a' {
                            let text = std::mem::take(&mut part.text);
                            crate::text::push_ascii(&mut part, &text)?;
                        }
                        if markup {
                            let text = std::mem::take(&mut part.text);
                            crate::text::push_escaped(&mut part, &text)?;
                        }
                    }
                }
                if let Some(precision) = conversion.precision
                    && let Some((end, _)) = part.text.char_indices().nth(precision)
                {
                    part.text.truncate(end);
                }
            }
            'c' => {
                numeric = false;
                let code = value.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32);
                match (value, code) {
                    (Value::Str(text), _) if text.chars == 1 => part.push_str(&text.text)?,
                    (Value::Int(_) | Value::Bool(_), Some(character)) => part.push(character)?,
                    _ => return Err(Fault::type_error("%c requires int or char")),
                }
            }
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
                let int = match (value, letter) {
                    (Value::Float(_), 'd' | 'i' | 'u') => self.int(value, None)?,
                    _ => value.as_int().ok_or_else(|| {
                        let message = format!("%{letter} format: an integer is required, not {}", value.type_name());
                        Fault::type_error(message)
                    })?,
                };
                sign = if int < 0 { "-" } else { "" };
                let size = int.unsigned_abs();
                let digits = match letter {
                    'o' => format!("{size:o}"),
                    'x' => format!("{size:x}"),
                    'X' => format!("{size:X}"),
                    _ => size.to_string(),
                };
                if conversion.alternate {
                    prefix = match letter {
                        'o' => "0o",
                        'x' => "0x",
                        'X' => "0X",
                        _ => "",
                    };
                }
                part.fill('0', conversion.precision.unwrap_or(0).saturating_sub(digits.len()))?;
                part.push_str(&digits)?;
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let (Value::Float(_) | Value::Int(_) | Value::Bool(_)) = value else {
                    let message = format!("must be real number, not {}", value.type_name());
                    return Err(self.undefined_or(value, Fault::type_error(message)));
                };
                let float = self.float(value)?;
                sign = if float.is_sign_negative() && !float.is_nan() { "-" } else { "" };
                let precision = conversion.precision.unwrap_or(6);
                self.budget.room(precision.saturating_add(400))?;
                let precision = precision.min(usize::from(u16::MAX));
                part.push_str(&crate::float::format(float.abs(), letter, precision, conversion.alternate))?;
            }
            other => {
                return Err(Fault::value_error(format!("unsupported format character '{other}'")));
            }
        }
        if numeric && sign.is_empty() {
            sign = match (conversion.plus, conversion.space) {
                (true, _) => "+",
                (_, true) => " ",
                _ => "",
            };
        }
        let length = part.text.chars().count() + sign.len() + prefix.len();
        let spaces = conversion.width.saturating_sub(length);
        self.bytes(spaces)?;
        let zeros = numeric && conversion.zero && !conversion.left;
        if !conversion.left && !zeros {
            buffer.fill(' ', spaces)?;
        }
        buffer.push_str(sign)?;
        buffer.push_str(prefix)?;
        if zeros {
            buffer.fill('0', spaces)?;
        }
        buffer.push_str(&part.text)?;
        if conversion.left {
            buffer.fill(' ', spaces)?;
        }
        Ok(())
    }
}

/// Position of the parenthesis that closes the one at the beginning.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}
