//! Tells the calls in an answer from its text, as the text comes.
//!
//! An answer is calls if it begins as the grammar begins them, up to the name of the first function and all; anything else is
//! text. Streamed and whole answers go through the same reader, and what it gives does not depend on where the text was cut.

use std::sync::Arc;

use super::ids::IdStyle;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the user.
    Text(String),
    /// A call begins.
    Call {
        /// Which call of the answer.
        index: usize,
        /// Its name among all calls.
        id: String,
        /// The function's name.
        name: String,
    },
    /// The next part of a call's arguments, as JSON.
    Arguments {
        /// Which call of the answer.
        index: usize,
        /// What follows the part before.
        text: String,
    },
}

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Syntax {
    /// What comes before the list of calls, as tokens between which white space may stand.
    pub(crate) open: &'static [&'static str],
    /// What comes after it.
    pub(crate) close: &'static [&'static str],
    pub(crate) ids: IdStyle,
}

/// What stands between the begin of a call and its arguments; the function's name is between the two.
const BEFORE_NAME: &[&str] = &["{", "\"name\"", ":"];
const AFTER_NAME: &[&str] = &[",", "\"arguments\"", ":"];

/// A part of what is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Literal(&'static str),
    /// A function's name, in quotes.
    Name,
}

/// Follows a list of expected parts.
#[derive(Debug, Default)]
struct Matcher {
    expected: Vec<Expected>,
    part: usize,
    /// Bytes of the present part that have come.
    offset: usize,
    name: String,
}

enum Match {
    More,
    Complete,
    Different,
}

impl Matcher {
    /// A call, after whatever comes before it.
    fn of_call(before: &'static [&'static str]) -> Self {
        let literals = |list: &'static [&'static str]| list.iter().map(|text| Expected::Literal(text));
        let expected =
            literals(before).chain(literals(BEFORE_NAME)).chain([Expected::Name]).chain(literals(AFTER_NAME)).collect();
        Self { expected, ..Self::default() }
    }

    fn take(&mut self, character: char, names: &[String]) -> Match {
        if self.offset == 0 && is_space(character) {
            return Match::More;
        }
        let ended = match self.expected.get(self.part) {
            None => return Match::Different,
            Some(Expected::Literal(text)) => {
                let rest = text.get(self.offset..).unwrap_or_default();
                if !rest.starts_with(character) {
                    return Match::Different;
                }
                rest.len() == character.len_utf8()
            }
            Some(Expected::Name) => match character {
                '"' if self.offset > 0 => {
                    if !names.contains(&self.name) {
                        return Match::Different;
                    }
                    true
                }
                '"' => false,
                _ if self.offset == 0 => return Match::Different,
                _ => {
                    self.name.push(character);
                    if !names.iter().any(|name| name.starts_with(&self.name)) {
                        return Match::Different;
                    }
                    false
                }
            },
        };
        self.offset += character.len_utf8();
        if ended {
            self.part += 1;
            self.offset = 0;
        }
        if self.part == self.expected.len() { Match::Complete } else { Match::More }
    }
}

/// Follows one value of JSON to its end.
#[derive(Debug, Default)]
struct Value {
    depth: usize,
    in_string: bool,
    escaped: bool,
    scalar: bool,
}

enum Step {
    /// White space before the value.
    Before,
    Inside,
    /// This character is the last one.
    Last,
    /// This character comes after the value, which nothing else ends.
    After,
}

impl Value {
    fn take(&mut self, character: char) -> Step {
        if self.in_string {
            match character {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return if self.in_string || self.depth > 0 { Step::Inside } else { Step::Last };
        }
        if self.scalar {
            return if is_space(character) || matches!(character, ',' | '}' | ']') {
                Step::After
            } else {
                Step::Inside
            };
        }
        match character {
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    return Step::Last;
                }
            }
            '"' => self.in_string = true,
            _ if self.depth > 0 => {}
            _ if is_space(character) => return Step::Before,
            _ => self.scalar = true,
        }
        Step::Inside
    }
}

/// White space of JSON.
pub(crate) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}

#[derive(Debug)]
enum State {
    /// It is not certain yet whether these are calls.
    Undecided {
        matcher: Matcher,
        /// The text so far.
        held: String,
    },
    /// All of it is text.
    Text,
    Arguments(Value),
    /// Behind the arguments: the call's end is awaited.
    CallEnd,
    /// Behind a call.
    Between,
    NextCall {
        matcher: Matcher,
        held: String,
    },
    /// Behind the calls: what closes them is awaited, from this part on.
    Closing(usize),
}

/// Reads the answer of one sequence.
#[derive(Debug)]
pub(crate) struct CallReader {
    syntax: Syntax,
    names: Arc<[String]>,
    state: State,
    calls: usize,
    pieces: Vec<Piece>,
}

impl CallReader {
    /// Reads calls of these functions, written so.
    pub(crate) fn new(syntax: Syntax, names: Arc<[String]>) -> Self {
        let state = State::Undecided { matcher: Matcher::of_call(syntax.open), held: String::new() };
        Self { syntax, names, state, calls: 0, pieces: Vec::new() }
    }

    /// Reads an answer that has no calls.
    pub(crate) fn of_text() -> Self {
        let syntax = Syntax { open: &[], close: &[], ids: IdStyle::Generic };
        Self { syntax, names: Arc::default(), state: State::Text, calls: 0, pieces: Vec::new() }
    }

    /// Takes the next part of the answer, which is perhaps its `end`, and gives what is certain then.
    pub(crate) fn read(&mut self, text: &str, end: bool) -> Vec<Piece> {
        let mut pieces = self.push(text);
        if end {
            pieces.extend(self.finish());
        }
        pieces
    }

    /// Takes the next part of the answer, and gives what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        for (at, character) in text.char_indices() {
            if matches!(self.state, State::Text) {
                self.text(&text[at..]);
                break;
            }
            self.take(character);
        }
        std::mem::take(&mut self.pieces)
    }

    /// Ends the answer, and gives what was held back. Calls that are not complete stay as they are.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        if let State::Undecided { held, .. } = std::mem::replace(&mut self.state, State::Text) {
            self.text(&held);
        }
        std::mem::take(&mut self.pieces)
    }

    /// Whether the answer has calls, as far as it has come.
    pub(crate) fn called(&self) -> bool {
        self.calls > 0
    }

    fn take(&mut self, character: char) {
        match &mut self.state {
            State::Text => self.text(character.encode_utf8(&mut [0; 4])),
            State::Undecided { matcher, held } | State::NextCall { matcher, held } => {
                held.push(character);
                match matcher.take(character, &self.names) {
                    Match::More => {}
                    Match::Complete => {
                        let name = std::mem::take(&mut matcher.name);
                        self.pieces.push(Piece::Call { index: self.calls, id: self.syntax.ids.make(), name });
                        self.calls += 1;
                        self.state = State::Arguments(Value::default());
                    }
                    Match::Different => {
                        let held = std::mem::take(held);
                        self.be_text(&held);
                    }
                }
            }
            State::Arguments(value) => {
                let step = value.take(character);
                if matches!(step, Step::Inside | Step::Last) {
                    self.argument(character);
                }
                if matches!(step, Step::Last | Step::After) {
                    self.state = State::CallEnd;
                }
                if matches!(step, Step::After) {
                    self.take(character);
                }
            }
            State::CallEnd | State::Between | State::Closing(_) if is_space(character) => {}
            State::CallEnd if character == '}' => self.state = State::Between,
            State::Between if character == ',' => {
                self.state = State::NextCall { matcher: Matcher::of_call(&[]), held: String::from(",") };
            }
            State::Between if self.syntax.close.first().is_some_and(|close| close.starts_with(character)) => {
                self.state = State::Closing(1);
            }
            State::Closing(part) if self.syntax.close.get(*part).is_some_and(|close| close.starts_with(character)) => {
                *part += 1;
            }
            State::CallEnd | State::Between | State::Closing(_) => self.be_text(character.encode_utf8(&mut [0; 4])),
        }
    }

    /// From here on it is text after all.
    fn be_text(&mut self, text: &str) {
        self.state = State::Text;
        self.text(text);
    }

    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    fn argument(&mut self, character: char) {
        match self.pieces.last_mut() {
            Some(Piece::Arguments { text, .. }) => text.push(character),
            _ => self.pieces.push(Piece::Arguments { index: self.calls.saturating_sub(1), text: character.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{generic, native};
    use super::*;

    /// What an answer is, whole.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Answer {
        text: String,
        /// Names and arguments.
        calls: Vec<(String, String)>,
    }

    fn reader(syntax: Syntax) -> CallReader {
        CallReader::new(syntax, ["f", "get_weather", "get"].map(str::to_owned).into())
    }

    /// Reads an answer in these parts. Pieces are in order, and none is empty.
    fn read<'t>(mut reader: CallReader, parts: impl IntoIterator<Item = &'t str>) -> Answer {
        let mut answer = Answer::default();
        let mut ids = Vec::new();
        let mut take = |pieces: Vec<Piece>| {
            for piece in pieces {
                match piece {
                    Piece::Text(text) => {
                        assert!(!text.is_empty());
                        answer.text.push_str(&text);
                    }
                    Piece::Call { index, id, name } => {
                        assert_eq!(index, answer.calls.len());
                        assert!(!ids.contains(&id));
                        ids.push(id);
                        answer.calls.push((name, String::new()));
                    }
                    Piece::Arguments { index, text } => {
                        assert!(!text.is_empty());
                        assert_eq!(index + 1, answer.calls.len());
                        answer.calls[index].1.push_str(&text);
                    }
                }
            }
        };
        for part in parts {
            take(reader.push(part));
        }
        take(reader.finish());
        assert_eq!(reader.called(), !answer.calls.is_empty());
        answer
    }

    const GENERIC: Syntax = generic::SYNTAX;
    const NATIVE: Syntax = native::SYNTAX;

    #[test]
    fn answers_are_calls_or_text() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        for (syntax, answer, text, calls) in [
            (GENERIC, "Hello", "Hello", vec![]),
            (GENERIC, "", "", vec![]),
            (GENERIC, "  \n", "  \n", vec![]),
            (GENERIC, " 1 < 2 { }", " 1 < 2 { }", vec![]),
            (GENERIC, r#"{"a": 1}"#, r#"{"a": 1}"#, vec![]),
            (GENERIC, r#"{"tool_calls": []}"#, r#"{"tool_calls": []}"#, vec![]),
            (GENERIC, r#"{"tool_calls": [{"name": "f", "arguments": {}}]}"#, "", vec![call("f", "{}")]),
            (
                GENERIC,
                " {\"tool_calls\": [{\"name\": \"get_weather\", \"arguments\": {\"a\": \"}]\\\"{\", \"b\": [{}, 1]}}, \
                 {\"name\": \"get\", \"arguments\": {\"x\":\n 1} } ]}\n",
                "",
                vec![call("get_weather", r#"{"a": "}]\"{", "b": [{}, 1]}"#), call("get", "{\"x\":\n 1}")],
            ),
            (
                GENERIC,
                "{\n \"tool_calls\"\t:[ {\"name\":\"f\",\r\"arguments\":1},{\"name\":\"f\",\"arguments\":null },\
                 {\"name\":\"f\",\"arguments\":\"a\\\\\"},{\"name\":\"f\",\"arguments\":[]}]}",
                "",
                vec![call("f", "1"), call("f", "null"), call("f", "\"a\\\\\""), call("f", "[]")],
            ),
            // A function that there is not, or that may not be called.
            (
                GENERIC,
                r#"{"tool_calls": [{"name": "g", "arguments": {}}]}"#,
                r#"{"tool_calls": [{"name": "g", "arguments": {}}]}"#,
                vec![],
            ),
            (
                GENERIC,
                r#"{"tool_calls": [{"name": "ge", "arguments": {}}]}"#,
                r#"{"tool_calls": [{"name": "ge", "arguments": {}}]}"#,
                vec![],
            ),
            // Cut off: what has come of the arguments stays, what comes before a name is complete is text.
            (GENERIC, r#"{"tool_calls": [{"name": "f", "argu"#, r#"{"tool_calls": [{"name": "f", "argu"#, vec![]),
            (GENERIC, r#"{"tool_calls": [{"name": "f", "arguments": "#, "", vec![call("f", "")]),
            (GENERIC, r#"{"tool_calls": [{"name": "f", "arguments": {"a": "b"#, "", vec![call("f", r#"{"a": "b"#)]),
            (GENERIC, r#"{"tool_calls": [{"name": "f", "arguments": {}}, {"na"#, "", vec![call("f", "{}")]),
            (NATIVE, "[1, 2]", "[1, 2]", vec![]),
            (NATIVE, "[TOOL_CALL] no", "[TOOL_CALL] no", vec![]),
            (
                NATIVE,
                r#"{"tool_calls": [{"name": "f", "arguments": {}}]}"#,
                r#"{"tool_calls": [{"name": "f", "arguments": {}}]}"#,
                vec![],
            ),
            (
                NATIVE,
                r#"[TOOL_CALLS] [{"name": "f", "arguments": {"\u00fc": "\ud83d\ude00"}}]"#,
                "",
                vec![call("f", r#"{"\u00fc": "\ud83d\ude00"}"#)],
            ),
            (
                NATIVE,
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"\u{fc}\": \"\u{1f600}\"}}, {\"name\": \"get\", \"arguments\": {}}]",
                "",
                vec![call("f", "{\"\u{fc}\": \"\u{1f600}\"}"), call("get", "{}")],
            ),
            // No grammar lets these through. Nothing is lost.
            (NATIVE, r#"[TOOL_CALLS] [{"name": "f", "arguments": {}}] more"#, "more", vec![call("f", "{}")]),
            (GENERIC, r#"{"tool_calls": [{"name": "f", "arguments": {}}, x"#, ", x", vec![call("f", "{}")]),
        ] {
            let expected = Answer { text: text.to_owned(), calls };
            assert_eq!(read(reader(syntax), [answer]), expected, "{answer}");
            let characters: Vec<String> = answer.chars().map(String::from).collect();
            assert_eq!(read(reader(syntax), characters.iter().map(String::as_str)), expected, "{answer}");
        }
        let answer = r#"{"tool_calls": [{"name": "f", "arguments": {}}]}"#;
        assert_eq!(read(CallReader::of_text(), [answer]).text, answer);
    }

    #[test]
    fn text_and_arguments_come_at_once() {
        let mut text = reader(GENERIC);
        assert_eq!(text.push(" "), []);
        assert_eq!(text.push("{\"tool"), []);
        assert_eq!(text.push("s\""), [Piece::Text(" {\"tools\"".to_owned())]);
        assert_eq!(text.push("{"), [Piece::Text("{".to_owned())]);
        let mut calls = reader(GENERIC);
        assert_eq!(calls.push("{\"tool_calls\": [{\"name\": \"f\", \"arguments\""), []);
        assert!(!calls.called());
        let [Piece::Call { index: 0, name, .. }, Piece::Arguments { index: 0, text }] = &calls.push(": {\"a")[..]
        else {
            panic!("no call")
        };
        assert_eq!((name.as_str(), text.as_str()), ("f", "{\"a"));
        assert_eq!(calls.push("\": 1"), [Piece::Arguments { index: 0, text: "\": 1".to_owned() }]);
        assert_eq!(calls.push("}}]"), [Piece::Arguments { index: 0, text: "}".to_owned() }]);
    }

    /// Cuts a text at some of its characters.
    fn cut<'t>(text: &'t str, cuts: &[bool]) -> Vec<&'t str> {
        let mut parts = Vec::new();
        let mut from = 0;
        for ((at, _), cut) in text.char_indices().zip(cuts.iter().cycle()) {
            if *cut {
                parts.push(&text[from..at]);
                from = at;
            }
        }
        parts.push(&text[from..]);
        parts
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-z{}\\[\\]\"\\\\, \u{fc}\u{1f600}\n]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec(("[a-z\"]{0,4}", inner), 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_the_same_in_any_parts(
            text in r#"(\{"tool_calls": \[\{"name": "f", "arguments": |\[TOOL_CALLS\] \[\{"name": "f", "arguments": )?[{}\[\]",:\\a\u{fc} \n]{0,30}"#,
            cuts in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            for syntax in [GENERIC, NATIVE] {
                prop_assert_eq!(read(reader(syntax), cut(&text, &cuts)), read(reader(syntax), [text.as_str()]));
            }
        }

        #[test]
        fn calls_are_read_as_a_parser_of_json_reads_them(
            calls in prop::collection::vec((prop::sample::select(vec!["f", "get", "get_weather"]), json()), 1..5),
            pretty in any::<bool>(),
            cuts in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let write = |value: &serde_json::Value| {
                if pretty { serde_json::to_string_pretty(value).unwrap() } else { value.to_string() }
            };
            // The name comes first, as it does in every answer.
            let list: Vec<String> = calls
                .iter()
                .map(|(name, arguments)| format!("{{\"name\": \"{name}\", \"arguments\": {}}}", write(arguments)))
                .collect();
            let list = list.join(", ");
            for (syntax, text) in [(GENERIC, format!("{{\"tool_calls\": [{list}]}}")), (NATIVE, format!("[TOOL_CALLS] [{list}]"))] {
                let answer = read(reader(syntax), cut(&text, &cuts));
                prop_assert_eq!(&answer.text, "");
                let read: Vec<(&str, serde_json::Value)> = answer
                    .calls
                    .iter()
                    .map(|(name, arguments)| (name.as_str(), serde_json::from_str(arguments).unwrap()))
                    .collect();
                prop_assert_eq!(&read, &calls);
            }
        }
    }
}
