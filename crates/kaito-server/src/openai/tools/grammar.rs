//! Grammars of answers that may call functions, in the Lark dialect of `llguidance`.
//!
//! What holds the calls together is written in one way only, the way the prompt shows it: its tokens are forced, so that the model
//! need not be asked for them. Arguments follow the function's schema. Whatever [`CallReader`](super::CallReader) reads as calls
//! is one by the grammar: no text and no formatted answer begins as calls do.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::native::MARKER;
use super::{CALLS, Choice, Grammar, MAX_CALLS, ToolFormat, Tools, inline_schema};

/// White space between the parts of JSON, as schemas have it: only then can an answer in JSON and a call begin with the same
/// characters.
const WHITE_SPACE: &str = r"\x0A\x20{0,20}|\x20{1,20}";
/// White space before an answer, and the same within a class of characters.
const LEAD: &str = r"[ \t\r\n]*";
const SPACES: &str = r" \t\r\n";

impl Tools {
    /// What an answer must be: calls, or also a text, which follows `response`. `None` where it may be anything.
    pub(crate) fn grammar(&self, format: ToolFormat, response: Option<&Grammar>) -> Option<Grammar> {
        match self.choice {
            // A history shows how calls are written, and a model that copies it would give one as its text.
            Choice::None if response.is_none() && format == ToolFormat::Generic => {
                return answer(format, None).map(|answer| Grammar::Lark(format!("start: answer\n{answer}")));
            }
            Choice::None => return response.cloned(),
            Choice::Required | Choice::Named => {
                return Some(Grammar::Lark(format!("start: calls\n{}", self.calls(format))));
            }
            Choice::Auto => {}
        }
        // What can't be used is refused when it is compiled by itself.
        let Some(answer) = answer(format, response) else { return response.cloned() };
        let json = matches!(response, Some(Grammar::JsonObject | Grammar::JsonSchema { .. }));
        let text = if json && format == ToolFormat::Generic {
            let options = json!({"allow_initial_skip": true, "ignore_once": true});
            let calls = self.calls_among_json();
            format!("%llguidance {options}\n%ignore /{WHITE_SPACE}/\nstart: calls | answer\n{answer}{calls}")
        } else {
            format!("start: calls | answer\n{answer}{}", self.calls(format))
        };
        Some(Grammar::Lark(text))
    }

    /// Whether an answer may have several calls.
    fn several(&self) -> bool {
        self.parallel && self.choice != Choice::Named
    }

    /// The rule `calls` and those under it.
    fn calls(&self, format: ToolFormat) -> String {
        let (before, open, close) = match format {
            ToolFormat::Native { call_token } => (format!("<[{call_token}]> "), " [", "]"),
            ToolFormat::Generic => ("LEAD? ".to_owned(), "{\"tool_calls\": [", "]}"),
        };
        let close = literal(close);
        let mut text = if self.several() {
            let (first, next) = (self.alternatives("first"), self.alternatives("next"));
            format!("calls: {before}first next{{0,{}}} {close}\n{first}{next}", MAX_CALLS - 1)
        } else {
            format!("calls: {before}first {close}\n{}", self.alternatives("first"))
        };
        for (index, function) in self.callable() {
            let call = |before: &str| {
                let begin = literal(&format!("{before}{{\"name\": \"{}\", \"arguments\": ", function.name));
                format!("{begin} arguments-{index} \"}}\"\n")
            };
            let _ = write!(text, "first-{index}: {}", call(open));
            if self.several() {
                let _ = write!(text, "next-{index}: {}", call(", "));
            }
            let _ = writeln!(text, "arguments-{index}: {}", function.schema);
        }
        if format == ToolFormat::Generic {
            // Many tokenizers begin an answer with a space.
            text.push_str("LEAD: /[ \\n]{1,4}/\n");
        }
        text
    }

    /// The same for calls beside answers in JSON: of the same parts as these, for what has begun as one part can't become two.
    fn calls_among_json(&self) -> String {
        let parts = |parts: &[&str]| parts.iter().map(|part| literal(part)).collect::<Vec<_>>().join(" ");
        let (open, close) = (parts(&["{", "\"tool_calls\"", ":", "["]), parts(&["]", "}"]));
        let more = if self.several() { format!("(\",\" call){{0,{}}} ", MAX_CALLS - 1) } else { String::new() };
        let mut text = format!("calls: {open} call {more}{close}\n{}", self.alternatives("call"));
        for (index, function) in self.callable() {
            let name = format!("\"{}\"", function.name);
            let begin = parts(&["{", "\"name\"", ":", &name, ",", "\"arguments\"", ":"]);
            let _ = writeln!(text, "call-{index}: {begin} arguments-{index} \"}}\"");
            let _ = writeln!(text, "arguments-{index}: {}", function.schema);
        }
        text
    }

    /// A rule that is one of several, one for each function.
    fn alternatives(&self, rule: &str) -> String {
        let names: Vec<String> = self.callable().map(|(index, _)| format!("{rule}-{index}")).collect();
        format!("{rule}: {}\n", names.join(" | "))
    }
}

/// The rule `answer` of an answer that is no call, and those under it. `None` for what can't stand beside calls.
fn answer(format: ToolFormat, response: Option<&Grammar>) -> Option<String> {
    // What calls begin with, however they are spaced.
    let calls = match format {
        ToolFormat::Native { .. } => regex_of(MARKER),
        ToolFormat::Generic => format!(r"\{{{LEAD}\x22{}\x22", regex_of(CALLS)),
    };
    let but_calls =
        |answer: &str, terminal: &str| format!("answer: {answer}\nTEXT: {terminal} & ~/{LEAD}{calls}(?s:.*)/\n");
    let json = |schema: &Value, strict: bool| Some(format!("answer: {}\n", inline_schema(schema, strict).ok()?));
    match response {
        None => Some(match format {
            ToolFormat::Native { .. } => but_calls("TEXT?", "/(?s:.+)/"),
            // The first character decides, so that text streams as it comes.
            ToolFormat::Generic => {
                format!("answer: TEXT?\nTEXT: /[{SPACES}]+|{LEAD}[^{SPACES}{{](?s:.*)/\n")
            }
        }),
        Some(Grammar::JsonObject) => json(&without_calls(format, &json!({"type": "object"})), false),
        Some(Grammar::JsonSchema { schema, strict, .. }) => json(&without_calls(format, schema), *strict),
        Some(Grammar::Regex(regex)) => Some(but_calls("TEXT", &pattern(regex))),
        Some(Grammar::Choice(choices)) => {
            let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            Some(but_calls("TEXT", &format!("({})", choices.join(" | "))))
        }
        Some(Grammar::Lark(_)) => None,
    }
}

/// A schema whose objects do not begin as calls do.
fn without_calls(format: ToolFormat, schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if let (ToolFormat::Generic, Value::Object(schema)) = (format, &mut schema) {
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            properties.insert(CALLS.to_owned(), false.into());
        }
    }
    schema
}

/// A regular expression for exactly this text.
fn regex_of(text: &str) -> String {
    text.chars().map(|character| format!(r"\x{{{:x}}}", u32::from(character))).collect()
}

/// A text in Lark's syntax.
fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression in Lark's syntax, which always matches a whole text.
fn pattern(regex: &str) -> String {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let regex = match regex.strip_suffix('$') {
        Some(before) if before.chars().rev().take_while(|character| *character == '\\').count() % 2 == 0 => before,
        _ => regex,
    };
    if regex.is_empty() {
        return "\"\"".to_owned();
    }
    let mut text = String::from("/");
    let mut characters = regex.chars();
    while let Some(character) = characters.next() {
        match character {
            '/' => text.push_str("\\/"),
            '\\' => text.extend([Some(character), characters.next()].into_iter().flatten()),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            other => text.push(other),
        }
    }
    text.push('/');
    text
}
