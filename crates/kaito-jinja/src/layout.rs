//! Line breaking: the filters `wordwrap` (Python's `textwrap`) and `pprint`.

use crate::budget::Buffer;
use crate::chars::{is_space, is_word};
use crate::fault::{Fault, Outcome};
use crate::functions::CallArgs;
use crate::render::Renderer;
use crate::str_methods::lines;
use crate::text::push_repr;
use crate::value::Value;

/// What `textwrap` breaks lines at.
fn is_blank(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ')
}

fn is_letter(character: char) -> bool {
    is_word(character) && !crate::chars::DECIMAL.holds(character)
}

/// The pieces of a line between which it may be broken, as ranges of characters.
fn pieces(line: &[char], hyphens: bool) -> Vec<(usize, usize)> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let end = if line[at..].first().copied().is_some_and(is_blank) {
            at + line[at..].iter().take_while(|c| is_blank(**c)).count()
        } else if hyphens {
            piece_end(line, at)
        } else {
            at + line[at..].iter().take_while(|c| !is_blank(**c)).count()
        };
        pieces.push((at, end));
        at = end;
    }
    pieces
}

fn piece_end(line: &[char], start: usize) -> usize {
    let get = |at: usize| line.get(at).copied();
    let letter = |at: Option<usize>| at.and_then(get).is_some_and(is_letter);
    let punctuation = |at: Option<usize>| {
        at.and_then(get).is_some_and(|c| is_word(c) || matches!(c, '!' | '"' | '\'' | '&' | '.' | ',' | '?'))
    };
    // A dash of several hyphens between two words.
    let dash = |at: usize| {
        let length = line[at..].iter().take_while(|c| **c == '-').count();
        (length >= 2 && get(at + length).is_some_and(is_word)).then_some(at + length)
    };
    if punctuation(start.checked_sub(1))
        && let Some(end) = dash(start)
    {
        return end;
    }
    let mut at = start + 1;
    loop {
        if get(at) == Some('-') {
            let before = letter(at.checked_sub(1)) && letter(at.checked_sub(2));
            let hyphenated =
                letter(at.checked_sub(1)) && at.checked_sub(2).and_then(get) == Some('-') && letter(at.checked_sub(3));
            let after =
                letter(Some(at + 1)) && (letter(Some(at + 2)) || (get(at + 2) == Some('-') && letter(Some(at + 3))));
            if (before || hyphenated) && after {
                return at + 1;
            }
        }
        if get(at).is_none_or(is_blank) || (punctuation(at.checked_sub(1)) && dash(at).is_some()) {
            return at.min(line.len());
        }
        at += 1;
    }
}

struct Wrap {
    width: usize,
    long_words: bool,
    hyphens: bool,
}

/// `textwrap.wrap` of one line.
fn wrap(text: &str, options: &Wrap) -> Vec<String> {
    let line: Vec<char> = text.chars().collect();
    let mut rest = pieces(&line, options.hyphens);
    rest.reverse();
    let blank = |piece: (usize, usize)| line[piece.0..piece.1].iter().all(|c| is_space(*c));
    let mut wrapped = Vec::new();
    while let Some(next) = rest.last().copied() {
        if blank(next) && !wrapped.is_empty() {
            rest.pop();
        }
        let mut current: Vec<(usize, usize)> = Vec::new();
        let mut length = 0;
        while let Some(piece) = rest.last().copied() {
            if length + piece.1 - piece.0 > options.width {
                break;
            }
            length += piece.1 - piece.0;
            current.push(piece);
            rest.pop();
        }
        if let Some(long) = rest.last().copied().filter(|piece| piece.1 - piece.0 > options.width) {
            let room = options.width - length;
            if options.long_words {
                let mut end = long.0 + room;
                let part = &line[long.0..end];
                let hyphen = part.iter().rposition(|c| *c == '-').filter(|_| options.hyphens);
                if let Some(hyphen) = hyphen.filter(|at| part[..*at].iter().any(|c| *c != '-')) {
                    end = long.0 + hyphen + 1;
                }
                current.push((long.0, end));
                if let Some(last) = rest.last_mut() {
                    last.0 = end;
                }
            } else if current.is_empty() {
                current.extend(rest.pop());
            }
        }
        if current.last().copied().is_some_and(blank) {
            current.pop();
        }
        if !current.is_empty() {
            wrapped.push(current.iter().flat_map(|piece| &line[piece.0..piece.1]).collect());
        }
    }
    wrapped
}

impl Renderer<'_> {
    pub(crate) fn word_wrap(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, long_words, separator, hyphens] = args.bind("wordwrap", names, 0)?;
        let width = self.int_arg(width.as_ref(), 79)?;
        let long_words = self.bool_arg(long_words.as_ref(), true)?;
        let hyphens = self.bool_arg(hyphens.as_ref(), true)?;
        let separator = match &separator {
            None | Some(Value::None) => "\n",
            separator => self.str_arg(separator.as_ref(), "wrapstring")?,
        };
        let Value::Str(text) = value else {
            let other = Fault::type_error(format!("'{}' object has no attribute 'splitlines'", value.type_name()));
            return Err(self.undefined_or(value, other));
        };
        // Pieces, and characters of four bytes.
        self.budget.room(text.text.len().saturating_mul(48))?;
        let mut buffer = Buffer::new(&self.budget)?;
        for (index, line) in lines(&text.text, false).into_iter().enumerate() {
            self.step(1 + line.len() / 8)?;
            if index > 0 {
                buffer.push_str(separator)?;
            }
            if line.is_empty() {
                continue;
            }
            let width = usize::try_from(width).ok().filter(|width| *width > 0);
            let width = width.ok_or_else(|| Fault::value_error("invalid width (must be > 0)"))?;
            for (index, line) in wrap(line, &Wrap { width, long_words, hyphens }).iter().enumerate() {
                if index > 0 {
                    buffer.push_str(separator)?;
                }
                buffer.push_str(line)?;
            }
        }
        Ok(self.budget.built(buffer, false))
    }

    /// `pprint.pformat`.
    pub(crate) fn pretty(&mut self, value: &Value) -> Outcome<Value> {
        let mut buffer = Buffer::new(&self.budget)?;
        self.write_pretty(&mut buffer, value, 0, 0, 0)?;
        Ok(self.budget.built(buffer, false))
    }

    /// The value's text on one line, with the keys of dictionaries in order.
    fn plain(&mut self, buffer: &mut Buffer, value: &Value) -> Outcome<()> {
        self.step(1)?;
        match value {
            Value::List(items) | Value::Tuple(items) => {
                let (open, close) = brackets(value, items.items.len());
                buffer.push_str(open)?;
                for (index, item) in items.items.iter().enumerate() {
                    if index > 0 {
                        buffer.push_str(", ")?;
                    }
                    self.deeper(|renderer| renderer.plain(buffer, item))?;
                }
                buffer.push_str(close)
            }
            Value::Dict(_) => {
                buffer.push('{')?;
                for (index, (key, value)) in self.ordered(value)?.iter().enumerate() {
                    if index > 0 {
                        buffer.push_str(", ")?;
                    }
                    self.plain(buffer, key)?;
                    buffer.push_str(": ")?;
                    self.deeper(|renderer| renderer.plain(buffer, value))?;
                }
                buffer.push('}')
            }
            other => self.write_repr(buffer, other),
        }
    }

    /// The entries of a dictionary by their keys; those of types that can't be compared by the types' names.
    fn ordered(&mut self, value: &Value) -> Outcome<Vec<(Value, Value)>> {
        let Value::Dict(dict) = value else { return Ok(Vec::new()) };
        let rank = |value: &Value| match value {
            Value::None => 0,
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => 1,
            Value::Range(_) => 2,
            Value::Str(_) => 3,
            Value::Tuple(_) => 4,
            _ => 5,
        };
        let mut keyed = Vec::new();
        for (key, value) in &dict.entries {
            let entry = self.budget.tuple(vec![key.clone(), value.clone()])?;
            keyed.push((self.budget.tuple(vec![Value::Int(rank(key)), key.clone()])?, entry));
        }
        let mut entries = Vec::new();
        for (_, entry) in self.sorted(keyed, false)? {
            if let Value::Tuple(entry) = entry
                && let [key, value] = entry.items.as_slice()
            {
                entries.push((key.clone(), value.clone()));
            }
        }
        Ok(entries)
    }

    fn write_pretty(
        &mut self,
        buffer: &mut Buffer,
        value: &Value,
        indent: usize,
        allowance: usize,
        level: usize,
    ) -> Outcome<()> {
        const WIDTH: usize = 80;
        self.step(1)?;
        let mut plain = Buffer::new(&self.budget)?;
        self.plain(&mut plain, value)?;
        let fits = plain.text.chars().count() + indent + allowance <= WIDTH;
        match value {
            _ if fits => buffer.push_str(&plain.text),
            Value::Dict(_) => {
                buffer.push('{')?;
                let entries = self.ordered(value)?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    let last = index + 1 == entries.len();
                    let mut name = Buffer::new(&self.budget)?;
                    self.plain(&mut name, key)?;
                    buffer.push_str(&name.text)?;
                    buffer.push_str(": ")?;
                    let indent_value = indent + 1 + name.text.chars().count() + 2;
                    let allowance = if last { allowance + 1 } else { 1 };
                    self.deeper(|r| r.write_pretty(buffer, value, indent_value, allowance, level + 1))?;
                    if !last {
                        buffer.push_str(",\n")?;
                        buffer.fill(' ', indent + 1)?;
                    }
                }
                buffer.push('}')
            }
            Value::List(items) | Value::Tuple(items) => {
                let (open, close) = brackets(value, items.items.len());
                buffer.push_str(open)?;
                for (index, item) in items.items.iter().enumerate() {
                    let last = index + 1 == items.items.len();
                    let allowance = if last { allowance + close.len() } else { 1 };
                    self.deeper(|r| r.write_pretty(buffer, item, indent + 1, allowance, level + 1))?;
                    if !last {
                        buffer.push_str(",\n")?;
                        buffer.fill(' ', indent + 1)?;
                    }
                }
                buffer.push_str(close)
            }
            Value::Str(text) if !text.markup && !text.text.is_empty() => {
                self.write_pretty_text(buffer, &text.text, indent, allowance, level + 1, WIDTH)
            }
            _ => buffer.push_str(&plain.text),
        }
    }

    fn write_pretty_text(
        &mut self,
        buffer: &mut Buffer,
        text: &str,
        mut indent: usize,
        mut allowance: usize,
        level: usize,
        width: usize,
    ) -> Outcome<()> {
        if level == 1 {
            indent += 1;
            allowance += 1;
        }
        let repr = |budget: &crate::budget::Budget, text: &str| -> Outcome<String> {
            let mut buffer = Buffer::new(budget)?;
            push_repr(&mut buffer, text)?;
            Ok(buffer.text)
        };
        self.budget.room(text.len().saturating_mul(16))?;
        let width = width.saturating_sub(indent);
        let all = lines(text, true);
        let mut chunks: Vec<String> = Vec::new();
        for (index, line) in all.iter().enumerate() {
            let last_line = index + 1 == all.len();
            let most = if last_line { width.saturating_sub(allowance) } else { width };
            let whole = repr(&self.budget, line)?;
            self.bytes(line.len())?;
            if whole.chars().count() <= most {
                chunks.push(whole);
                continue;
            }
            let words = words(line);
            let mut current = String::new();
            for (place, word) in words.iter().enumerate() {
                let last = last_line && place + 1 == words.len();
                let most = if last { width.saturating_sub(allowance) } else { width };
                self.bytes(current.len() + 64)?;
                let candidate = repr(&self.budget, &format!("{current}{word}"))?;
                if candidate.chars().count() > most {
                    if !current.is_empty() {
                        chunks.push(repr(&self.budget, &current)?);
                    }
                    current = (*word).to_owned();
                } else {
                    current.push_str(word);
                }
            }
            if !current.is_empty() {
                chunks.push(repr(&self.budget, &current)?);
            }
        }
        if let [chunk] = chunks.as_slice() {
            return buffer.push_str(chunk);
        }
        if level == 1 {
            buffer.push('(')?;
        }
        for (index, chunk) in chunks.iter().enumerate() {
            if index > 0 {
                buffer.push('\n')?;
                buffer.fill(' ', indent)?;
            }
            buffer.push_str(chunk)?;
        }
        if level == 1 {
            buffer.push(')')?;
        }
        Ok(())
    }
}

/// Words, each with the white space after it.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let end = word + (rest[word..].len() - rest[word..].trim_start_matches(is_space).len());
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}

fn brackets(value: &Value, length: usize) -> (&'static str, &'static str) {
    match (value, length) {
        (Value::List(_), _) => ("[", "]"),
        (_, 1) => ("(", ",)"),
        _ => ("(", ")"),
    }
}
