//! Python's `format(value, spec)`.

use crate::budget::Buffer;
use crate::fault::{Fault, Outcome, quoted};
use crate::render::Renderer;
use crate::value::Value;

/// `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    no_negative_zero: bool,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn parse(text: &str) -> Outcome<Spec> {
    let characters: Vec<char> = text.chars().collect();
    let is_align = |at: usize| characters.get(at).copied().filter(|c| matches!(c, '<' | '>' | '=' | '^'));
    let mut at = 0;
    let (mut fill, mut align) = (None, None);
    if let Some(found) = is_align(1) {
        (fill, align, at) = (characters.first().copied(), Some(found), 2);
    } else if let Some(found) = is_align(0) {
        (align, at) = (Some(found), 1);
    }
    let accept = |set: &[char], at: &mut usize| {
        let found = characters.get(*at).copied().filter(|c| set.contains(c));
        *at += usize::from(found.is_some());
        found
    };
    let sign = accept(&['+', '-', ' '], &mut at);
    let no_negative_zero = accept(&['z'], &mut at).is_some();
    let alternate = accept(&['#'], &mut at).is_some();
    if accept(&['0'], &mut at).is_some() && fill.is_none() {
        fill = Some('0');
        align = align.or(Some('0'));
    }
    let number = |at: &mut usize| -> Outcome<Option<usize>> {
        let start = *at;
        while characters.get(*at).is_some_and(char::is_ascii_digit) {
            *at += 1;
        }
        if start == *at {
            return Ok(None);
        }
        let digits: String = characters[start..*at].iter().collect();
        let number = digits.parse().ok().filter(|number| *number <= i32::MAX as usize);
        number.map(Some).ok_or_else(|| Fault::value_error("Too many decimal digits in format string"))
    };
    let width = number(&mut at)?.unwrap_or(0);
    let grouping = accept(&[',', '_'], &mut at);
    if accept(&[',', '_'], &mut at).is_some() {
        return Err(Fault::value_error("Cannot specify ',' and '_' together, or one of them twice."));
    }
    let mut precision = None;
    if accept(&['.'], &mut at).is_some() {
        precision = number(&mut at)?;
        if precision.is_none() {
            return Err(Fault::value_error("Format specifier missing precision"));
        }
    }
    let kind = characters.get(at).copied();
    if characters.len() > at + usize::from(kind.is_some()) {
        return Err(Fault::value_error(format!("Invalid format specifier {}", quoted(text))));
    }
    let fill = fill.unwrap_or(' ');
    Ok(Spec { fill, align, sign, no_negative_zero, alternate, width, grouping, precision, kind })
}

impl Renderer<'_> {
    pub(crate) fn format_value(&mut self, buffer: &mut Buffer, value: &Value, spec: &str) -> Outcome<()> {
        if spec.is_empty() {
            return self.write_str(buffer, value);
        }
        match value {
            Value::Str(text) if !text.markup => {
                let spec = parse(spec)?;
                self.format_text(buffer, &text.text, &spec)
            }
            Value::Int(_) | Value::Bool(_) | Value::Float(_) => {
                let spec = parse(spec)?;
                self.format_number(buffer, value, &spec)
            }
            Value::Str(_) => Err(Fault::value_error("Unsupported format specification for Markup.")),
            other => {
                let name = other.type_name();
                Err(Fault::type_error(format!("unsupported format string passed to {name}.__format__")))
            }
        }
    }

    fn format_text(&mut self, buffer: &mut Buffer, text: &str, spec: &Spec) -> Outcome<()> {
        let wrong = |what: &str| Err(Fault::value_error(format!("{what} not allowed in string format specifier")));
        match spec {
            Spec { kind: Some(kind), .. } if *kind != 's' => return Err(unknown(*kind, "str")),
            Spec { sign: Some(_), .. } => return wrong("Sign"),
            Spec { no_negative_zero: true, .. } => return wrong("Negative zero coercion (z)"),
            Spec { alternate: true, .. } => return wrong("Alternate form (#)"),
            Spec { align: Some('='), .. } => return wrong("'=' alignment"),
            Spec { grouping: Some(_), .. } => return wrong("Grouping"),
            _ => {}
        }
        let end = spec.precision.and_then(|precision| text.char_indices().nth(precision)).map(|(at, _)| at);
        let text = &text[..end.unwrap_or(text.len())];
        self.aligned(buffer, "", text, spec, '<')
    }

    fn format_number(&mut self, buffer: &mut Buffer, value: &Value, spec: &Spec) -> Outcome<()> {
        let kind = spec.kind;
        let float_kind = matches!(kind, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%'));
        let int = value.as_int().filter(|_| !float_kind);
        let (negative, prefix, digits, tail) = match int {
            Some(int) => {
                if spec.precision.is_some() {
                    return Err(Fault::value_error("Precision not allowed in integer format specifier"));
                }
                if spec.no_negative_zero {
                    let message = "Negative zero coercion (z) not allowed in format specifier with integer";
                    return Err(Fault::value_error(message));
                }
                if kind == Some('c') {
                    if spec.sign.is_some() || spec.grouping.is_some() || spec.alternate {
                        return Err(Fault::value_error("Sign not allowed with integer format specifier 'c'"));
                    }
                    let character = u32::try_from(int).ok().and_then(char::from_u32);
                    let character = character
                        .ok_or_else(|| Fault::new(crate::fault::Kind::Overflow, "%c arg not in range(0x110000)"))?;
                    return self.aligned(buffer, "", character.encode_utf8(&mut [0; 4]), spec, '>');
                }
                let size = int.unsigned_abs();
                let (prefix, digits) = match kind {
                    Some('b') => ("0b", format!("{size:b}")),
                    Some('o') => ("0o", format!("{size:o}")),
                    Some('x') => ("0x", format!("{size:x}")),
                    Some('X') => ("0X", format!("{size:X}")),
                    None | Some('d' | 'n') => ("", size.to_string()),
                    Some(other) => return Err(unknown(other, value.type_name())),
                };
                if spec.grouping.is_some() && kind == Some('n') || spec.grouping == Some(',') && !prefix.is_empty() {
                    return Err(Fault::value_error("Cannot specify ',' with this type."));
                }
                (int < 0, if spec.alternate { prefix } else { "" }, digits, String::new())
            }
            None => {
                let float = self.float(value)?;
                let (digits, tail) = self.float_digits(float, spec)?;
                let zero = digits.bytes().chain(tail.bytes()).all(|byte| matches!(byte, b'0' | b'.'));
                let negative = float.is_sign_negative() && !float.is_nan() && !(zero && spec.no_negative_zero);
                (negative, "", digits, tail)
            }
        };
        let sign = match (negative, spec.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let head = format!("{sign}{prefix}");
        let every = if matches!(kind, Some('b' | 'o' | 'x' | 'X')) { 4 } else { 3 };
        let zeros = spec.fill == '0' && matches!(spec.align, Some('=' | '0'));
        let digits = match spec.grouping {
            Some(separator) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => {
                let room = spec.width.saturating_sub(head.len() + tail.len());
                self.budget.room(room.saturating_mul(2))?;
                self.bytes(room)?;
                grouped(&digits, separator, every, if zeros { room } else { 0 })
            }
            // Neither infinity nor NaN has digits.
            _ => digits,
        };
        let mut spec_align = spec.align;
        if spec_align == Some('0') {
            spec_align = Some('=');
        }
        let spec = Spec { align: spec_align, ..*spec };
        self.aligned(buffer, &head, &format!("{digits}{tail}"), &spec, '>')
    }

    /// The digits of a float before the point, and the rest of it.
    fn float_digits(&self, float: f64, spec: &Spec) -> Outcome<(String, String)> {
        let size = float.abs();
        self.budget.room(spec.precision.unwrap_or(0).saturating_add(400))?;
        let precision = spec.precision.map(|precision| precision.min(usize::from(u16::MAX)));
        let text = match (spec.kind, precision) {
            (None, None) => crate::float::repr(size),
            (None, Some(precision)) => {
                let text = crate::float::format(size, 'g', precision, spec.alternate);
                let whole = size.is_finite() && !text.contains(['.', 'e']);
                // A whole number whose digits all fit keeps a zero after its point.
                if whole && text.len() < precision.max(1) {
                    text + ".0"
                } else if whole {
                    let (digits, exponent) = (text.len(), text.len().saturating_sub(1));
                    let scientific = crate::float::format(size, 'e', precision.max(1) - 1, false);
                    if digits == precision.max(1) { shortened(&scientific, exponent) } else { text }
                } else {
                    text
                }
            }
            (Some('%'), precision) => {
                crate::float::format(size * 100.0, 'f', precision.unwrap_or(6), spec.alternate) + "%"
            }
            (Some('n'), precision) => crate::float::format(size, 'g', precision.unwrap_or(6), spec.alternate),
            (Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')), precision) => {
                crate::float::format(size, kind, precision.unwrap_or(6), spec.alternate)
            }
            (Some(other), _) => return Err(unknown(other, "float")),
        };
        let whole = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        Ok((text[..whole].to_owned(), text[whole..].to_owned()))
    }

    fn aligned(&mut self, buffer: &mut Buffer, head: &str, text: &str, spec: &Spec, usual: char) -> Outcome<()> {
        let length = head.len() + text.chars().count();
        let spaces = spec.width.saturating_sub(length);
        self.bytes(spaces + text.len())?;
        let align = spec.align.filter(|align| *align != '0').unwrap_or(usual);
        let (left, middle) = match align {
            '>' => (spaces, 0),
            '^' => (spaces / 2, 0),
            '=' => (0, spaces),
            _ => (0, 0),
        };
        buffer.fill(spec.fill, left)?;
        buffer.push_str(head)?;
        buffer.fill(spec.fill, middle)?;
        buffer.push_str(text)?;
        buffer.fill(spec.fill, spaces - left - middle)
    }
}

/// A number of exactly as many digits as its precision, which Python writes with an exponent.
fn shortened(scientific: &str, exponent: usize) -> String {
    let (mantissa, _) = scientific.split_once('e').unwrap_or((scientific, ""));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    format!("{mantissa}e+{exponent:02}")
}

/// Digits with a separator between groups; zeros before them fill up to a width.
fn grouped(digits: &str, separator: char, every: usize, width: usize) -> String {
    let mut reversed = String::new();
    let mut count = 0;
    let mut rest = digits.chars().rev();
    loop {
        let next = rest.next();
        let filled = reversed.len() >= width;
        let Some(digit) = next.or((!filled).then_some('0')) else { break };
        if count > 0 && count % every == 0 {
            reversed.push(separator);
        }
        reversed.push(digit);
        count += 1;
    }
    reversed.chars().rev().collect()
}

fn unknown(kind: char, name: &str) -> Fault {
    Fault::value_error(format!("Unknown format code '{kind}' for object of type '{name}'"))
}
