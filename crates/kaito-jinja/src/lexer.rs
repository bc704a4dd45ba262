//! Tokens, with the control of white space that `trim_blocks` and `lstrip_blocks` ask for.

use crate::chars::{is_identifier_part, is_space};
use crate::fault::Error;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or delimiter, as it is written.
    Op(&'static str),
    End,
}

impl Token {
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Data(_) => "template data".to_owned(),
            Self::BlockBegin => "begin of statement block".to_owned(),
            Self::BlockEnd => "end of statement block".to_owned(),
            Self::VariableBegin => "begin of print statement".to_owned(),
            Self::VariableEnd => "end of print statement".to_owned(),
            Self::Name(name) => name.chars().take(80).collect(),
            Self::Str(_) => "string".to_owned(),
            Self::Int(_) => "integer".to_owned(),
            Self::Float(_) => "float".to_owned(),
            Self::Op(op) => (*op).to_owned(),
            Self::End => "end of template".to_owned(),
        }
    }
}

/// The longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The kinds of tags: `{%`, `{{` and `{#`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Block,
    Variable,
    Comment,
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// Whether the last match ended with a line.
    line_starting: bool,
    tokens: Vec<(Token, u32)>,
}

/// The tokens of a template, each with its line.
pub(crate) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>, Error> {
    let mut normal = source.replace("\r\n", "\n").replace('\r', "\n");
    if normal.ends_with('\n') {
        normal.pop();
    }
    let mut lexer = Lexer { source: &normal, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run()?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::Syntax { line: self.line, message: message.into() })
    }

    fn emit(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// Moves on, counting lines.
    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        let lines = passed.bytes().filter(|byte| *byte == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.line_starting = passed.ends_with('\n');
        self.at += bytes;
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.emit(Token::Data(text.to_owned()));
        }
    }

    fn run(&mut self) -> Result<(), Error> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let Some((before, tag)) = next_tag(rest) else {
                self.data(rest);
                self.advance(rest.len());
                return Ok(());
            };
            if tag == Tag::Block
                && let Some((sign, length)) = raw_begin(&rest[before..])
            {
                let text = stripped(&rest[..before], sign, true, self.line_starting);
                self.data(text);
                self.advance(before + length);
                self.raw()?;
                continue;
            }
            let sign = rest[before + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let text = stripped(&rest[..before], sign, tag != Tag::Variable, self.line_starting);
            self.data(text);
            self.advance(before + 2 + usize::from(sign.is_some()));
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Block => {
                    self.emit(Token::BlockBegin);
                    self.inside(true)?;
                }
                Tag::Variable => {
                    self.emit(Token::VariableBegin);
                    self.inside(false)?;
                }
            }
        }
        Ok(())
    }

    fn comment(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let Some(close) = rest.find("#}") else { return self.error("Missing end of comment tag") };
        let sign = rest[..close].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        let length = close + 2;
        self.advance(length + trimmed(&rest[length..], sign));
        Ok(())
    }

    /// Up to the end of a raw block, whose text is data.
    fn raw(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let before = from + found;
            if let Some((sign, length)) = raw_end(&rest[before..]) {
                let text = stripped(&rest[..before], sign, true, self.line_starting);
                self.data(text);
                self.advance(before + length);
                return Ok(());
            }
            from = before + 2;
        }
        self.error("Missing end of raw directive")
    }

    /// The tokens between `{%` and `%}` or `{{` and `}}`.
    fn inside(&mut self, block: bool) -> Result<(), Error> {
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Ok(());
            }
            if open.is_empty()
                && let Some(length) = tag_end(rest, block)
            {
                self.emit(if block { Token::BlockEnd } else { Token::VariableEnd });
                self.advance(length);
                return Ok(());
            }
            let spaces = rest.len() - rest.trim_start_matches(is_space).len();
            if spaces > 0 {
                self.advance(spaces);
                continue;
            }
            if rest.starts_with(|c: char| c.is_ascii_digit()) {
                self.number()?;
                continue;
            }
            let name = rest.find(|c| !is_identifier_part(c)).unwrap_or(rest.len());
            if name > 0 {
                self.emit(Token::Name(rest[..name].to_owned()));
                self.advance(name);
                continue;
            }
            if rest.starts_with(['\'', '"']) && self.string()? {
                continue;
            }
            let Some(op) = OPERATORS.iter().copied().find(|op| rest.starts_with(op)) else {
                let unexpected = rest.chars().next().unwrap_or_default();
                return self.error(format!("unexpected char {unexpected:?} at {}", self.at));
            };
            match op {
                "{" => open.push("}"),
                "(" => open.push(")"),
                "[" => open.push("]"),
                "}" | ")" | "]" => match open.pop() {
                    None => return self.error(format!("unexpected '{op}'")),
                    Some(expected) if expected != op => {
                        return self.error(format!("unexpected '{op}', expected '{expected}'"));
                    }
                    Some(_) => {}
                },
                _ => {}
            }
            self.emit(Token::Op(op));
            self.advance(op.len());
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        // After a dot only whole numbers are read: `a.0.1`.
        if !self.source[..self.at].ends_with('.')
            && let Some(length) = float_length(bytes)
        {
            let text = rest[..length].replace('_', "");
            let Ok(value) = text.parse() else { return self.error(format!("{text} is not a number")) };
            self.emit(Token::Float(value));
            self.advance(length);
            return Ok(());
        }
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase) {
            Some(b'b') if bytes[0] == b'0' => 2,
            Some(b'o') if bytes[0] == b'0' => 8,
            Some(b'x') if bytes[0] == b'0' => 16,
            _ => 10,
        };
        let is_digit = |byte: u8| char::from(byte).is_digit(radix);
        let mut start = if radix == 10 { 0 } else { 2 };
        let mut length = digits(bytes, start, is_digit, radix != 10);
        let mut radix = radix;
        if length == start {
            (start, radix, length) = (0, 10, digits(bytes, 0, |byte| byte.is_ascii_digit(), false));
        }
        if radix == 10 && bytes[0] == b'0' {
            length = digits(bytes, 0, |byte| byte == b'0', false);
        }
        let text = rest[start..length].replace('_', "");
        match i128::from_str_radix(&text, radix) {
            Ok(value) => self.emit(Token::Int(value)),
            Err(_) => return self.error("an integer beyond 128 bits is not supported"),
        }
        self.advance(length);
        Ok(())
    }

    /// Whether there is a whole string here.
    fn string(&mut self) -> Result<bool, Error> {
        let rest = self.rest();
        let quote = rest.as_bytes()[0];
        let mut at = 1;
        let end = loop {
            match rest.as_bytes().get(at) {
                None => return Ok(false),
                Some(b'\\') => at += 2,
                Some(byte) if *byte == quote => break at,
                Some(_) => at += 1,
            }
        };
        let text = match unescape(&rest[1..end]) {
            Ok(text) => text,
            Err(message) => return self.error(message),
        };
        self.emit(Token::Str(text));
        self.advance(end + 1);
        Ok(true)
    }
}

fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(found) = text[from..].find('{') {
        let at = from + found;
        let tag = match bytes.get(at + 1) {
            Some(b'%') => Some(Tag::Block),
            Some(b'{') => Some(Tag::Variable),
            Some(b'#') => Some(Tag::Comment),
            _ => None,
        };
        if let Some(tag) = tag {
            return Some((at, tag));
        }
        from = at + 1;
    }
    None
}

/// The text before a tag, without the white space that the tag removes.
fn stripped(text: &str, sign: Option<char>, lstrip: bool, line_starting: bool) -> &str {
    match sign {
        Some('-') => text.trim_end_matches(is_space),
        Some(_) => text,
        None if lstrip => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            let alone = (line > 0 || line_starting) && text[line..].chars().all(is_space);
            if alone { &text[..line] } else { text }
        }
        None => text,
    }
}

/// How much white space after a tag is removed.
fn trimmed(after: &str, sign: Option<char>) -> usize {
    match sign {
        Some('-') => after.len() - after.trim_start_matches(is_space).len(),
        Some(_) => 0,
        None => usize::from(after.starts_with('\n')),
    }
}

/// `{%- raw -%}`: its white space control and length.
fn raw_begin(text: &str) -> Option<(Option<char>, usize)> {
    let (sign, inner) = signed(&text[2..]);
    let inner = inner.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let after = match inner.strip_prefix("-%}") {
        Some(after) => after.trim_start_matches(is_space),
        None => inner.strip_prefix("%}")?,
    };
    Some((sign, text.len() - after.len()))
}

fn raw_end(text: &str) -> Option<(Option<char>, usize)> {
    let (sign, inner) = signed(&text[2..]);
    let inner = inner.trim_start_matches(is_space).strip_prefix("endraw")?.trim_start_matches(is_space);
    let length = tag_end(inner, true)?;
    Some((sign, text.len() - inner.len() + length))
}

fn signed(text: &str) -> (Option<char>, &str) {
    match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.chars().next(), rest),
        None => (None, text),
    }
}

/// The length of the end of a tag here, with the white space that it removes.
fn tag_end(text: &str, block: bool) -> Option<usize> {
    if !block {
        let after = match text.strip_prefix("-}}") {
            Some(after) => after.trim_start_matches(is_space),
            None => text.strip_prefix("}}")?,
        };
        return Some(text.len() - after.len());
    }
    let (sign, rest) = signed(text);
    let after = rest.strip_prefix("%}")?;
    Some(text.len() - after.len() + trimmed(after, sign))
}

/// The end of a run of digits with single underscores between them.
fn digits(bytes: &[u8], from: usize, is_digit: impl Fn(u8) -> bool, leading_underscore: bool) -> usize {
    let mut at = from;
    loop {
        let underscore = bytes.get(at) == Some(&b'_') && (at > from || leading_underscore);
        let digit = at + usize::from(underscore);
        match bytes.get(digit) {
            Some(byte) if is_digit(*byte) => at = digit + 1,
            _ => return at,
        }
    }
}

fn float_length(bytes: &[u8]) -> Option<usize> {
    let decimal = |from| digits(bytes, from, |byte| byte.is_ascii_digit(), false);
    let mut at = decimal(0);
    let mut is_float = false;
    if bytes.get(at) == Some(&b'.') {
        let end = decimal(at + 1);
        if end > at + 1 {
            (at, is_float) = (end, true);
        }
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let end = decimal(at + 1 + sign);
        if end > at + 1 + sign {
            (at, is_float) = (end, true);
        }
    }
    is_float.then_some(at)
}

/// A string literal's text, by Python's codec `unicode-escape`.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(escape) = rest.chars().next() else { return Err("\\ at end of string".to_owned()) };
        let code = |rest: &str, from: usize, digits: usize| -> Result<char, String> {
            let value = rest.get(from..from + digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            let value = value.and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let value = value.ok_or_else(|| format!("truncated \\{escape} escape in a string"))?;
            char::from_u32(value).ok_or_else(|| format!("a string with the code point {value:#x} is not supported"))
        };
        let (character, length) = match escape {
            '\n' => (None, 1),
            '\\' | '\'' | '"' => (Some(escape), 1),
            'a' => (Some('\x07'), 1),
            'b' => (Some('\x08'), 1),
            'f' => (Some('\x0c'), 1),
            'n' => (Some('\n'), 1),
            'r' => (Some('\r'), 1),
            't' => (Some('\t'), 1),
            'v' => (Some('\x0b'), 1),
            'x' => (Some(code(rest, 1, 2)?), 3),
            'u' => (Some(code(rest, 1, 4)?), 5),
            'U' => (Some(code(rest, 1, 8)?), 9),
            '0'..='7' => {
                let length = rest.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                let value = u32::from_str_radix(&rest[..length], 8).unwrap_or_default();
                (char::from_u32(value), length)
            }
            'N' => return Err("a string with \\N is not supported".to_owned()),
            // The codec sees the escape of a character that is not ASCII, whose backslash this one escapes.
            _ if !escape.is_ascii() => {
                let value = u32::from(escape);
                out.push('\\');
                out.push_str(&match value {
                    ..=0xff => format!("x{value:02x}"),
                    0x100..=0xffff => format!("u{value:04x}"),
                    _ => format!("U{value:08x}"),
                });
                (None, escape.len_utf8())
            }
            _ => {
                out.push('\\');
                (Some(escape), escape.len_utf8())
            }
        };
        out.extend(character);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(out)
}
