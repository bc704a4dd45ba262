//! `str.format`, in the sandbox.

use crate::budget::Buffer;
use crate::fault::{Fault, Outcome};
use crate::render::Renderer;
use crate::value::{Text, Value};

/// Where the fields of a format get their values.
struct Arguments<'v> {
    positional: &'v [Value],
    keywords: &'v [(String, Value)],
    map: Option<&'v Value>,
    /// The number of the next field without a name; `None` once a field has given a number.
    automatic: Option<usize>,
    markup: bool,
}

/// A piece of a format: some text, and a field after it.
struct Piece<'f> {
    literal: String,
    field: Option<Field<'f>>,
}

struct Field<'f> {
    name: &'f str,
    conversion: Option<char>,
    spec: &'f str,
}

impl Renderer<'_> {
    pub(crate) fn str_format(
        &mut self,
        format: &Text,
        positional: &[Value],
        keywords: &[(String, Value)],
    ) -> Outcome<Value> {
        let markup = format.markup;
        let mut arguments = Arguments { positional, keywords, map: None, automatic: Some(0), markup };
        let text = self.fields(&format.text, &mut arguments, 2)?;
        Ok(self.budget.built(text, format.markup))
    }

    pub(crate) fn str_format_map(&mut self, format: &Text, map: &Value) -> Outcome<Value> {
        let markup = format.markup;
        let mut arguments = Arguments { positional: &[], keywords: &[], map: Some(map), automatic: Some(0), markup };
        let text = self.fields(&format.text, &mut arguments, 2)?;
        Ok(self.budget.built(text, format.markup))
    }

    /// A format with its fields filled in; those inside a field's own format, too.
    fn fields(&mut self, format: &str, arguments: &mut Arguments, levels: u32) -> Outcome<Buffer> {
        self.bytes(format.len())?;
        let mut buffer = Buffer::new(&self.budget)?;
        let mut rest = format;
        while !rest.is_empty() {
            self.step(1)?;
            let (piece, after) = piece(rest)?;
            rest = after;
            buffer.push_str(&piece.literal)?;
            let Some(field) = piece.field else { continue };
            let value = self.field_value(field.name, arguments)?;
            let value = match field.conversion {
                None => value,
                Some('s') => self.str_value(&value)?,
                Some(letter @ ('r' | 'a')) => {
                    let mut text = Buffer::new(&self.budget)?;
                    self.write_repr(&mut text, &value)?;
                    if letter == 'a' {
                        let written = std::mem::take(&mut text.text);
                        crate::text::push_ascii(&mut text, &written)?;
                    }
                    self.budget.built(text, false)
                }
                Some(other) => return Err(Fault::value_error(format!("Unknown conversion specifier {other}"))),
            };
            let Some(levels) = levels.checked_sub(1) else {
                return Err(Fault::value_error("Max string recursion exceeded"));
            };
            let spec = self.fields(field.spec, arguments, levels)?;
            if arguments.markup {
                if value.is_markup() && !spec.text.is_empty() {
                    return Err(Fault::value_error("Unsupported format specification for Markup."));
                }
                if value.is_markup() {
                    self.write_str(&mut buffer, &value)?;
                } else {
                    let mut text = Buffer::new(&self.budget)?;
                    self.format_value(&mut text, &value, &spec.text)?;
                    crate::text::push_escaped(&mut buffer, &text.text)?;
                }
            } else {
                self.format_value(&mut buffer, &value, &spec.text)?;
            }
        }
        Ok(buffer)
    }

    /// The value of a field: `name.attribute[item]`.
    fn field_value(&mut self, name: &str, arguments: &mut Arguments) -> Outcome<Value> {
        let numbered;
        let switch = || Fault::value_error("cannot switch between automatic and manual field numbering");
        let name = if name.is_empty() {
            let number = arguments.automatic.ok_or_else(switch)?;
            arguments.automatic = Some(number + 1);
            numbered = number.to_string();
            numbered.as_str()
        } else {
            if name.chars().all(|c| crate::chars::DIGIT.holds(c)) {
                if arguments.automatic.is_some_and(|number| number > 0) {
                    return Err(switch());
                }
                arguments.automatic = None;
            }
            name
        };
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let found = match first.parse::<usize>() {
            Ok(number) => arguments.positional.get(number).cloned(),
            Err(_) => match arguments.map {
                Some(map) => {
                    let key = self.budget.str(first)?;
                    match map {
                        Value::Dict(dict) => self.get(dict, &key)?,
                        other => return Err(self.undefined_or(other, Fault::type_error("a mapping is required"))),
                    }
                }
                None => arguments.keywords.iter().find(|(key, _)| key == first).map(|(_, value)| value.clone()),
            },
        };
        let missing = || Fault::lookup(format!("the format's field {} is missing", crate::fault::quoted(first)));
        let mut value = found.ok_or_else(missing)?;
        while let Some(kind) = rest.chars().next() {
            self.step(1)?;
            rest = &rest[kind.len_utf8()..];
            if kind == '.' {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                if end == 0 {
                    return Err(Fault::value_error("Empty attribute in format string"));
                }
                value = self.attribute(&value, &rest[..end])?;
                rest = &rest[end..];
            } else if kind == '[' {
                let end = rest.find(']').ok_or_else(|| Fault::value_error("Missing ']' in format string"))?;
                if end == 0 {
                    return Err(Fault::value_error("Empty attribute in format string"));
                }
                let index = match rest[..end].parse::<usize>() {
                    Ok(index) => Value::Int(index as i128),
                    Err(_) => self.budget.str(&rest[..end])?,
                };
                value = self.item(&value, &index)?;
                rest = &rest[end + 1..];
            } else {
                return Err(Fault::value_error("Only '.' or '[' may follow ']' in format field specifier"));
            }
        }
        Ok(value)
    }
}

/// The next piece of a format, and what follows it.
fn piece(format: &str) -> Outcome<(Piece<'_>, &str)> {
    let Some(at) = format.find(['{', '}']) else {
        return Ok((Piece { literal: format.to_owned(), field: None }, ""));
    };
    let (before, brace) = (&format[..at], &format[at..=at]);
    let rest = &format[at + 1..];
    if let Some(rest) = rest.strip_prefix(brace) {
        return Ok((Piece { literal: format!("{before}{brace}"), field: None }, rest));
    }
    if brace == "}" {
        return Err(Fault::value_error("Single '}' encountered in format string"));
    }
    if rest.is_empty() {
        return Err(Fault::value_error("Single '{' encountered in format string"));
    }
    let mut depth = 1usize;
    let mut bracket = false;
    let mut end = None;
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'[' => bracket = true,
            b']' => bracket = false,
            _ if bracket => {}
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            end = Some(at);
            break;
        }
    }
    let end = end.ok_or_else(|| Fault::value_error("expected '}' before end of string"))?;
    let field = field(&rest[..end])?;
    Ok((Piece { literal: before.to_owned(), field: Some(field) }, &rest[end + 1..]))
}

fn field(text: &str) -> Outcome<Field<'_>> {
    let mut bracket = false;
    let mut name_end = text.len();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => return Err(Fault::value_error("unexpected '{' in field name")),
            b'[' => bracket = true,
            b']' => bracket = false,
            b':' | b'!' if !bracket => {
                name_end = at;
                break;
            }
            _ => {}
        }
    }
    let name = &text[..name_end];
    let after = &text[name_end..];
    let Some(conversion) = after.strip_prefix('!') else {
        return Ok(Field { name, conversion: None, spec: after.strip_prefix(':').unwrap_or("") });
    };
    let Some(letter) = conversion.chars().next() else {
        return Err(Fault::value_error("end of string while looking for conversion specifier"));
    };
    let rest = &conversion[letter.len_utf8()..];
    match (rest.strip_prefix(':'), rest.is_empty()) {
        (Some(spec), _) => Ok(Field { name, conversion: Some(letter), spec }),
        (None, true) => Ok(Field { name, conversion: Some(letter), spec: "" }),
        (None, false) => Err(Fault::value_error("expected ':' after conversion specifier")),
    }
}
